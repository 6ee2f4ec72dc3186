"""Semantics of the vector unit (isa.md section 4.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import INFINITY, from_bits, is_nan, magnitude, to_bits, u32
from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Stage, Target, semantic
from plena_jax.machine.sums import row_max, row_sum
from plena_jax.machine.view import View, round_scalar

_NAN = 0x7FC00000


def _masked(view: View, step: Step, result: jax.Array, inactive: jax.Array) -> jax.Array:
    """The row to write: ``result`` in active head slots, ``inactive`` in the others."""
    return view.round(jnp.where(view.active(step), result, inactive))


def _scalar_row(view: View, step: Step) -> jax.Array:
    return jnp.broadcast_to(view.f(step.rs2), (view.config.vlen,))


# -- two operands -----------------------------------------------------------------------------------------------------


@semantic("V_ADD_VV", Stage.ROW, target=Target.VRAM_RD)
def v_add_vv(view: View, step: Step) -> jax.Array:
    """A + B."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.add(a, view.row(step.rs2)), a)


@semantic("V_ADD_VF", Stage.ROW, target=Target.VRAM_RD)
def v_add_vf(view: View, step: Step) -> jax.Array:
    """A + f."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.add(a, _scalar_row(view, step)), a)


@semantic("V_SUB_VV", Stage.ROW, target=Target.VRAM_RD)
def v_sub_vv(view: View, step: Step) -> jax.Array:
    """A - B."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.subtract(a, view.row(step.rs2)), a)


@semantic("V_SUB_VF", Stage.ROW, target=Target.VRAM_RD)
def v_sub_vf(view: View, step: Step) -> jax.Array:
    """A - f; reversed it is -(A - f), which gives -0 where both are equal."""
    a = view.row(step.rs1)
    difference = arithmetic.subtract(a, _scalar_row(view, step))
    return _masked(view, step, jnp.where(step.argument != 0, -difference, difference), a)


@semantic("V_MUL_VV", Stage.ROW, target=Target.VRAM_RD)
def v_mul_vv(view: View, step: Step) -> jax.Array:
    """A * B."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.multiply(a, view.row(step.rs2)), a)


@semantic("V_MUL_VF", Stage.ROW, target=Target.VRAM_RD)
def v_mul_vf(view: View, step: Step) -> jax.Array:
    """A * f."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.multiply(a, _scalar_row(view, step)), a)


@semantic("V_MAX_VF", Stage.ROW, target=Target.VRAM_RD)
def v_max_vf(view: View, step: Step) -> jax.Array:
    """max(A, f): NaN if f is, a NaN lane stays, ties keep the lane."""
    a, f = view.row(step.rs1), _scalar_row(view, step)
    larger = jnp.where(arithmetic.less(a, f), f, a)
    return _masked(view, step, jnp.where(is_nan(f), from_bits(_NAN), larger), a)


@semantic("V_MIN_VF", Stage.ROW, target=Target.VRAM_RD)
def v_min_vf(view: View, step: Step) -> jax.Array:
    """min(A, f): NaN if f is, a NaN lane stays, ties keep the lane."""
    a, f = view.row(step.rs1), _scalar_row(view, step)
    smaller = jnp.where(arithmetic.less(f, a), f, a)
    return _masked(view, step, jnp.where(is_nan(f), from_bits(_NAN), smaller), a)


# -- one operand ------------------------------------------------------------------------------------------------------


@semantic("V_EXP_V", Stage.ROW, target=Target.VRAM_RD)
def v_exp_v(view: View, step: Step) -> jax.Array:
    """exp(A clamped to -88 .. 88); inactive lanes are clamped too."""
    clamped = arithmetic.clamp_exponent(view.row(step.rs1))
    return _masked(view, step, arithmetic.exp(clamped), clamped)


@semantic("V_RECI_V", Stage.ROW, target=Target.VRAM_RD)
def v_reci_v(view: View, step: Step) -> jax.Array:
    """1 / A."""
    a = view.row(step.rs1)
    return _masked(view, step, arithmetic.reciprocal(a), a)


@semantic("V_SHFT_V", Stage.ROW, target=Target.VRAM_RD)
def v_shft_v(view: View, step: Step) -> jax.Array:
    """A moved to higher lanes, zeros below."""
    lanes = view.config.vlen
    shift = jnp.minimum(u32(step.rs2), u32(lanes)).astype(jnp.int32)
    padded = jnp.pad(view.row(step.rs1), (lanes, 0))
    return view.round(lax.dynamic_slice_in_dim(padded, lanes - shift, lanes, allow_negative_indices=False))


# -- reductions -------------------------------------------------------------------------------------------------------


def _slots(row: jax.Array, config: MachineConfig) -> jax.Array:
    return row.reshape(-1, config.hlen)


def _replicated(per_slot: jax.Array, config: MachineConfig) -> jax.Array:
    return jnp.repeat(per_slot, config.hlen, total_repeat_length=config.vlen)


@semantic("V_RED_SUM", Stage.ROW, target=Target.F_RD, region="f")
def v_red_sum(view: View, step: Step) -> jax.Array:
    """f += sum of all lanes, after each slot that a mask selects has been replaced by copies of its sum."""
    row, config = view.row(step.rs1), view.config
    masked = step.argument != 0
    if config.intended.masked_reductions:
        row = jnp.where(view.active(step), row, jnp.float32(0))
    else:
        sums = _replicated(row_sum(_slots(row, config)), config)
        row = jnp.where(masked & view.active(step), sums, row)
    value = arithmetic.add(view.f(step.rd), row_sum(row[None])[0])
    return view.with_f(step.rd, round_scalar(value))


@semantic("V_RED_MAX", Stage.ROW, target=Target.F_RD, region="f")
def v_red_max(view: View, step: Step) -> jax.Array:
    """f := the larger of f and the largest lane; a NaN on one side is ignored, and a tie keeps the lane."""
    row, config = view.row(step.rs1), view.config
    if config.intended.masked_reductions:
        row = jnp.where(view.active(step), row, -jnp.inf)
    else:
        slots = _replicated(jax.vmap(row_max)(_slots(row, config)), config)
        row = jnp.where((step.argument != 0) & view.active(step), slots, row)
    most, f = row_max(row), view.f(step.rd)
    keeps_f = is_nan(most) | arithmetic.less(most, f)
    return view.with_f(step.rd, round_scalar(jnp.where(keeps_f & ~is_nan(f), f, most)))


# -- top k ------------------------------------------------------------------------------------------------------------

#: Entries that V_TOPK writes at most.
TOPK_ENTRIES = max(k for _, k in TOPK_POLICIES)


@semantic("V_TOPK", Stage.TOPK)
def v_topk(view: View, step: Step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, expert indices, and how many of them count."""
    lanes = view.config.vlen
    most = max(experts for experts, _ in TOPK_POLICIES)
    # Reads past the logits of the smaller policy stay inside cells: the other regions follow VRAM.
    logits = view.sram(0, step.rs1 * lanes, most)
    experts = jnp.where(step.argument == 0, *(experts for experts, _ in TOPK_POLICIES))
    count = jnp.where(step.argument == 0, *(k for _, k in TOPK_POLICIES))
    logits = jnp.where(is_nan(logits), -jnp.inf, logits)
    present = jnp.arange(most) < experts
    keys = jnp.where(present, arithmetic.total_order(logits), np.int32(-(2**31)))
    # A stable sort of the complement puts the largest first and, among equals, the lower index.
    order = jnp.argsort(~keys, stable=True)[:TOPK_ENTRIES]
    chosen = logits[order]
    lead = chosen[0]
    weights = arithmetic.exp_below_one(arithmetic.subtract(chosen, jnp.broadcast_to(lead, chosen.shape)))
    total = jnp.float32(0)
    for rank in range(TOPK_ENTRIES):
        total = jnp.where(rank < count, arithmetic.add(total, weights[rank]), total)
    good = (magnitude(total) < u32(INFINITY)) & (to_bits(total) < u32(INFINITY)) & (total > 0)
    shares = jnp.where(good, arithmetic.divide(weights, jnp.broadcast_to(total, weights.shape)), jnp.float32(0))
    return round_scalar(shares), order.astype(jnp.uint32), count.astype(jnp.int32)
