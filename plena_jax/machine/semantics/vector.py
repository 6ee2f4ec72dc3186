"""Semantics of the vector unit's instructions that cross lanes (docs/machine.md section 4.3)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import INFINITY, is_nan, magnitude, to_bits, u32
from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Stage, semantic
from plena_jax.machine.sums import row_max, row_sum
from plena_jax.machine.view import View


@semantic("V_SHFT_V", stage=Stage.ROW)
def v_shft_v(view: View, step: Step) -> jax.Array:
    """A moved to higher lanes, zeros below."""
    lanes = view.config.vlen
    shift = jnp.minimum(u32(step.rs2), u32(lanes)).astype(jnp.int32)
    padded = jnp.pad(view.row(step.rs1), (lanes, 0))
    return view.round(lax.dynamic_slice_in_dim(padded, lanes - shift, lanes, allow_negative_indices=False))


@semantic("S_MAP_V_FP", stage=Stage.ROW)
def s_map_v_fp(view: View, step: Step) -> jax.Array:
    """VLEN entries of FP SRAM to a row."""
    # Entries that start in the middle of a row of cells end in the next one; there always is one.
    pair = view.block(step.rs1, 2).reshape(-1)
    return view.round(lax.dynamic_slice_in_dim(pair, step.rs1_lane, view.config.vlen, allow_negative_indices=False))


# -- reductions -------------------------------------------------------------------------------------------------------


def _slots(row: jax.Array, config: MachineConfig) -> jax.Array:
    return row.reshape(-1, config.hlen)


def _replicated(per_slot: jax.Array, config: MachineConfig) -> jax.Array:
    return jnp.broadcast_to(per_slot[:, None], (per_slot.shape[0], config.hlen)).reshape(-1)


def _selected(
    view: View, step: Step, row: jax.Array, reduce: Callable[[jax.Array], jax.Array], neutral: float
) -> jax.Array:
    """The row that a masked reduction reduces: slots that the mask selects are replaced by copies of their own result.

    As it is meant: lanes of the other slots are replaced by the neutral element.
    """
    config = view.config
    if config.intended.masked_reductions:
        return jnp.where(view.active(step), row, jnp.float32(neutral))
    return jnp.where(view.active(step), _replicated(reduce(_slots(row, config)), config), row)


def _masked(fields: dict[str, int]) -> bool:
    return fields["mask"] != 0


def _add_sum(view: View, step: Step, row: jax.Array) -> jax.Array:
    value = arithmetic.add(view.scalar(step.rd, step.rd_lane), row_sum(row[None])[0])
    return view.with_scalar(step, view.round_scalar(value))


@semantic("V_RED_SUM", stage=Stage.ROW, when=_masked)
def v_red_sum_masked(view: View, step: Step) -> jax.Array:
    """f += sum of all lanes, after each slot that the mask selects has been replaced by copies of its sum."""
    return _add_sum(view, step, _selected(view, step, view.row(step.rs1), row_sum, 0.0))


@semantic("V_RED_SUM", stage=Stage.ROW)
def v_red_sum(view: View, step: Step) -> jax.Array:
    """f += sum of all lanes."""
    return _add_sum(view, step, view.row(step.rs1))


def _larger(view: View, step: Step, row: jax.Array) -> jax.Array:
    most, f = row_max(row[None])[0], view.scalar(step.rd, step.rd_lane)
    keeps_f = is_nan(most) | arithmetic.less(most, f)
    return view.with_scalar(step, view.round_scalar(jnp.where(keeps_f & ~is_nan(f), f, most)))


@semantic("V_RED_MAX", stage=Stage.ROW, when=_masked)
def v_red_max_masked(view: View, step: Step) -> jax.Array:
    """Like V_RED_MAX, after each slot that the mask selects has been replaced by copies of its maximum."""
    return _larger(view, step, _selected(view, step, view.row(step.rs1), row_max, -np.inf))


@semantic("V_RED_MAX", stage=Stage.ROW)
def v_red_max(view: View, step: Step) -> jax.Array:
    """f := the larger of f and the largest lane; a NaN on one side is ignored, and a tie keeps the lane."""
    return _larger(view, step, view.row(step.rs1))


# -- top k ------------------------------------------------------------------------------------------------------------

#: Entries that V_TOPK writes at most.
TOPK_ENTRIES = max(k for _, k in TOPK_POLICIES)


def topk_window(policy: jax.Array, offset: jax.Array) -> jax.Array:
    """Whether an entry ``offset`` (uint32) behind the first one is written."""
    return offset < _by_policy(policy, 1).astype(jnp.uint32)


def _by_policy(policy: jax.Array, column: int) -> jax.Array:
    """int32: experts (column 0) or selected experts (column 1) of a policy."""
    return jnp.array([entry[column] for entry in TOPK_POLICIES], jnp.int32)[policy]


def _ranked(keys: jax.Array, values: jax.Array) -> jax.Array:
    """uint32: the entries of ``values`` [n] at the TOPK_ENTRIES largest keys, the lower index first."""
    index = jnp.arange(keys.shape[0], dtype=jnp.int32)
    ahead = (keys[None] > keys[:, None]) | ((keys[None] == keys[:, None]) & (index[None] < index[:, None]))
    rank = jnp.sum(ahead, axis=1, dtype=jnp.int32)
    wanted = rank[None] == jnp.arange(TOPK_ENTRIES, dtype=jnp.int32)[:, None]
    return jnp.sum(jnp.where(wanted, values, np.uint32(0)), axis=1, dtype=jnp.uint32)


@semantic("V_TOPK", stage=Stage.TOPK, argument=lambda fields: fields["policy"])
def v_topk(view: View, step: Step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, expert indices, and how many of them count."""
    most = max(experts for experts, _ in TOPK_POLICIES)
    rows = -(-most // view.config.vlen)
    # The smaller policy may stand in the last rows of vector SRAM: read from where all rows exist.
    first = jnp.maximum(jnp.minimum(step.rs1, view.vram_rows - rows), 0)
    available = min(rows, view.vram_rows)
    logits = view.rows(first, available).reshape(-1)
    logits = jnp.pad(logits, (0, max(2 * most - logits.shape[0], 0)))
    skip = (step.rs1 - first) * view.config.vlen
    logits = lax.dynamic_slice_in_dim(logits, skip, most, allow_negative_indices=False)
    experts, count = (_by_policy(step.argument, column) for column in (0, 1))
    logits = jnp.where(is_nan(logits), -jnp.inf, logits)
    index = jnp.arange(most, dtype=jnp.int32)
    keys = jnp.where(index < experts, arithmetic.total_order(logits), np.int32(-(2**31)))
    order = _ranked(keys, u32(index))
    chosen = logits.at[order.astype(jnp.int32)].get(mode="promise_in_bounds")
    weights = arithmetic.exp_below_one(arithmetic.subtract(chosen, jnp.broadcast_to(chosen[0], chosen.shape)))
    weights = jnp.where(np.arange(TOPK_ENTRIES) < count, weights, jnp.float32(0))
    # The first weight is 1 (or NaN): subnormal ones do not count.
    total = weights[0]
    for rank in range(1, TOPK_ENTRIES):
        total = total + weights[rank]
    good = (magnitude(total) < u32(INFINITY)) & (to_bits(total) < u32(INFINITY)) & (total > 0)
    shares = jnp.where(good, arithmetic.divide(weights, jnp.broadcast_to(total, weights.shape)), jnp.float32(0))
    return view.round_scalar(shares), order, count
