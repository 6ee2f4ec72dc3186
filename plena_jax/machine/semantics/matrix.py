"""Semantics of the matrix unit (docs/machine.md section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Accumulator, Stage, semantic
from plena_jax.machine.sums import accumulate, accumulate_dots, accumulate_exact, accumulate_lifted, accumulate_quickly
from plena_jax.machine.transfer import exact_products
from plena_jax.machine.view import View


def wide_rows(config: MachineConfig) -> int:
    """Rows that a WIDE instruction writes at a time: the largest divisor of MLEN up to 64."""
    return max(n for n in range(1, min(config.mlen, 64) + 1) if config.mlen % n == 0)


def fresh(step: Step, accumulator: jax.Array) -> jax.Array:
    """The accumulator, or zeros if it has been drained since anything was added."""
    return jnp.where(step.fresh == 1, jnp.float32(0), accumulator)


def fast_sums(view: View) -> Callable[..., jax.Array]:
    """The fastest sum of products that is right for the formats of a machine."""
    # Values of HBM can have any significand, and so can traced formats.
    known = not view.has_values and view.precision is None
    return accumulate_exact if known and exact_products(view.config) else accumulate_lifted


# -- one tile ---------------------------------------------------------------------------------------------------------


@semantic("M_MM", stage=Stage.MATMUL, adds_to=Accumulator.M)
def m_mm(view: View, step: Step) -> tuple[jax.Array, jax.Array]:
    """BLEN rows, and BLEN columns of a tile."""
    config = view.config
    # The offset in the tile counts whole columns of MLEN elements.
    tile, column = _split(step.rs1, config)
    return view.rows(step.rs2, config.blen), view.block(tile, config.mlen, column, config.blen)


@semantic("M_TMM", stage=Stage.MATMUL, adds_to=Accumulator.M)
def m_tmm(view: View, step: Step) -> tuple[jax.Array, jax.Array]:
    """BLEN rows, and BLEN rows of a tile, transposed."""
    config = view.config
    return view.rows(step.rs1, config.blen), view.block(step.rs2, config.blen).T


def _split(row: jax.Array, config: MachineConfig) -> tuple[jax.Array, jax.Array]:
    """First row of the tile that a row of matrix SRAM is in, and its number there."""
    # Matrix SRAM is first in ``cells``.
    within = lax.rem(row, jnp.int32(config.mlen))
    return row - within, within


@semantic("M_MM_WO", stage=Stage.WRITE, drains=Accumulator.M)
def m_mm_wo(view: View, step: Step, old: jax.Array, first: jax.Array) -> jax.Array:
    """BLEN lanes of BLEN rows := m_accum; of rows that are not neighbours one a part, row ``first`` of ``old``."""
    size = view.config.blen
    new = view.round(fresh(step, view.m_accum))
    row = lax.dynamic_slice_in_dim(new, jnp.minimum(step.part, size - 1), 1, 0)
    here = jnp.arange(size)[:, None] == first
    return jnp.where(step.parts == 1, new, jnp.where(here, row, old))


def written_row(step: Step, config: MachineConfig) -> jax.Array:
    """int32 row of vector SRAM that a part of M_MM_WO writes: addresses wrap at 2**32 elements."""
    address = (u32(step.rd) + u32(step.part) * u32(step.mask)) * u32(config.mlen)
    return (address // u32(config.mlen)).astype(jnp.int32)


@semantic("M_MV", stage=Stage.ROW, region="v_accum", adds_to=Accumulator.V)
def m_mv(view: View, step: Step) -> jax.Array:
    """v_accum += row @ BLEN columns of a tile."""
    config = view.config
    w = view.block(step.rs1, config.mlen, step.rs1_lane, config.blen)
    old = fresh(step, view.block(view.layout.v_accum, 1, 0, config.blen))
    return _padded(accumulate(old, view.rows(step.rs2, 1), w)[0], config.vlen)


@semantic("M_TMV", stage=Stage.ROW, region="v_accum", adds_to=Accumulator.V)
def m_tmv(view: View, step: Step) -> jax.Array:
    """v_accum += row @ transposed first BLEN rows of a tile."""
    config = view.config
    old = fresh(step, view.block(view.layout.v_accum, 1, 0, config.blen)[0])
    return _padded(accumulate_dots(old, view.row(step.rs2), view.block(step.rs1, config.blen)), config.vlen)


@semantic("M_MV_WO", stage=Stage.ROW, drains=Accumulator.V)
def m_mv_wo(view: View, step: Step) -> jax.Array:
    """BLEN lanes of a row := v_accum."""
    values = fresh(step, view.block(view.layout.v_accum, 1, 0, view.config.blen)[0])
    start = (jnp.asarray(step.rd_lane, jnp.int32),)
    return view.round(lax.dynamic_update_slice(view.row(step.rd), values, start, allow_negative_indices=False))


def _padded(values: jax.Array, lanes: int) -> jax.Array:
    return jnp.pad(values, (0, lanes - values.shape[0]))


# -- head slots -------------------------------------------------------------------------------------------------------


def _interleaved(x: jax.Array, head: jax.Array, config: MachineConfig) -> jax.Array:
    """Lanes head, head + BROADCAST_AMOUNT, ... of [rows, MLEN]: [rows, HLEN]."""
    slots = x.reshape(x.shape[0], config.hlen, -1)
    return lax.dynamic_index_in_dim(slots, head, axis=2, keepdims=False, allow_negative_indices=False)


def _head_rows(step: Step, config: MachineConfig) -> tuple[jax.Array, jax.Array]:
    """The head slot and first row of a part of M_BMM or M_BTMM."""
    blocks = config.mlen // wide_rows(config)
    return step.part // blocks, (step.part % blocks) * wide_rows(config)


def _batched_parts(config: MachineConfig) -> int:
    return config.broadcast_amount * config.mlen // wide_rows(config)


def _add_scaled(view: View, old: jax.Array, product: jax.Array) -> jax.Array:
    return arithmetic.add(old, arithmetic.multiply(product, jnp.broadcast_to(view.bmm_scale, product.shape)))


def _add_product(view: View, step: Step, x: jax.Array, w: jax.Array, row: jax.Array | int) -> jax.Array:
    old = fresh(step, view.block(row, x.shape[0]))
    total = accumulate_quickly(jnp.zeros_like(old), x, w, view.careful, fast_sums(view))
    return _add_scaled(view, old, total)


_HEADS: dict[str, Any] = {
    "stage": Stage.WIDE,
    "parts": _batched_parts,
    "region": "hm_accum",
    "adds_to": Accumulator.HM,
}


@semantic("M_BMM", **_HEADS)
@semantic("M_BTMM", argument=lambda fields: 1, **_HEADS)
def m_bmm(view: View, step: Step) -> jax.Array:
    """hm_accum[j] += bmm_scale * head j of MLEN rows @ HLEN rows of a tile, or HLEN columns of it transposed.

    Heads are contiguous lanes where the tile is transposed, interleaved where it is not.
    """
    config, rows = view.config, wide_rows(view.config)
    if not config.heads_match:
        return jnp.zeros((rows, config.vlen), jnp.float32)  # never executed: the instruction faults
    head, row = _head_rows(step, config)
    transposed = step.argument == 1
    lanes = view.rows(step.rs2 + row, rows)
    contiguous = lax.dynamic_slice_in_dim(lanes, head * config.hlen, config.hlen, 1, allow_negative_indices=False)
    x = jnp.where(transposed, contiguous, _interleaved(lanes, head, config))
    # The offset of a head in the tile counts columns, or rows.
    tile_columns = view.block(step.rs1, config.mlen, jnp.where(transposed, step.rs1_lane, 0), config.hlen).T
    tile_rows = view.block(step.rs1 + jnp.where(transposed, 0, step.rs1_lane), config.hlen)
    w = jnp.where(transposed, tile_columns, tile_rows)
    return _add_product(view, step, x, w, view.layout.hm_accum + step.part * rows)


@semantic("M_BMM_WO", stage=Stage.WIDE, parts=_batched_parts, drains=Accumulator.HM)
def m_bmm_wo(view: View, step: Step) -> jax.Array:
    """Rows := hm_accum, head after head."""
    rows = wide_rows(view.config)
    return view.round(fresh(step, view.block(view.layout.hm_accum + step.part * rows, rows)))


@semantic("M_BMV", stage=Stage.ROW, parts=lambda c: c.broadcast_amount, region="hv_accum", adds_to=Accumulator.HV)
def m_bmv(view: View, step: Step) -> jax.Array:
    """hv_accum[j] += bmm_scale * interleaved head j of a row @ HLEN rows of a tile (only as intended behaviour)."""
    config = view.config
    if not config.intended.m_bmv or not config.heads_match:
        return jnp.zeros(config.vlen, jnp.float32)  # never executed: the instruction faults
    x = _interleaved(view.rows(step.rs2, 1), step.part, config)
    w = view.block(step.rs1 + step.rs1_lane, config.hlen)
    return _add_product(view, step, x, w, view.layout.hv_accum + step.part)[0]


@semantic("M_BTMV", stage=Stage.ROW, parts=lambda c: c.broadcast_amount, region="hv_accum", adds_to=Accumulator.HV)
def m_btmv(view: View, step: Step) -> jax.Array:
    """hv_accum[j] += bmm_scale * head j of a row @ transposed HLEN columns of a tile."""
    config = view.config
    x = view.rows(step.rs2, 1, step.part * config.hlen, config.hlen)[0]
    rows = view.block(step.rs1, config.mlen, step.rs1_lane, config.hlen)
    old = fresh(step, view.block(view.layout.hv_accum + step.part, 1)[0])
    return _add_scaled(view, old, accumulate_dots(jnp.zeros_like(old), x, rows))


@semantic("M_BMV_WO", stage=Stage.ROW, parts=lambda c: c.broadcast_amount, drains=Accumulator.HV)
def m_bmv_wo(view: View, step: Step) -> jax.Array:
    """Rows := hv_accum."""
    return view.round(fresh(step, view.block(view.layout.hv_accum + step.part, 1)[0]))
