"""Semantics of the matrix unit (isa.md section 4.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Accumulator, Stage, Target, semantic
from plena_jax.machine.sums import accumulate, dot_lanes
from plena_jax.machine.view import View


def wide_rows(config: MachineConfig) -> int:
    """Rows that a WIDE instruction writes at a time: the largest divisor of MLEN up to 64."""
    return max(n for n in range(1, min(config.mlen, 64) + 1) if config.mlen % n == 0)


def _fresh(step: Step, accumulator: jax.Array) -> jax.Array:
    return jnp.where(step.fresh == 1, jnp.float32(0), accumulator)


# -- one tile ---------------------------------------------------------------------------------------------------------


@semantic("M_MM", Stage.MATMUL, adds_to=Accumulator.M)
def m_mm(view: View, step: Step) -> jax.Array:
    """m_accum += BLEN rows @ BLEN columns of a tile."""
    config, layout = view.config, view.layout

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view = View(layout, cells, cells, cells)
        column = step.rs1_offset // config.mlen
        x = view.block(step.rs2, config.blen)
        return x, view.tile(step.rs1, rows=config.mlen, column=column, columns=config.blen)

    return accumulate(operands, _fresh(step, view.m_accum), view.cells, step)


@semantic("M_TMM", Stage.MATMUL, adds_to=Accumulator.M)
def m_tmm(view: View, step: Step) -> jax.Array:
    """m_accum += BLEN rows @ transposed BLEN rows of a tile."""
    config, layout = view.config, view.layout

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view = View(layout, cells, cells, cells)
        row = step.rs2_offset // config.mlen
        x = view.block(step.rs1, config.blen)
        return x, view.tile(step.rs2, row=row, rows=config.blen, columns=config.mlen).T

    return accumulate(operands, _fresh(step, view.m_accum), view.cells, step)


@semantic("M_MM_WO", Stage.WRITE, drains=Accumulator.M)
def m_mm_wo(view: View, step: Step, old: jax.Array) -> jax.Array:
    """BLEN lanes of BLEN rows := m_accum; one row a part where the rows are not neighbours."""
    new = view.round(_fresh(step, view.m_accum))
    row = lax.dynamic_slice_in_dim(new, jnp.minimum(step.part, view.config.blen - 1), 1, 0)
    first = jnp.arange(view.config.blen)[:, None] == 0
    return jnp.where(step.parts == 1, new, jnp.where(first, row, old))


@semantic("M_MV", Stage.ROW, region="v_accum", adds_to=Accumulator.V)
def m_mv(view: View, step: Step) -> jax.Array:
    """v_accum += row @ BLEN columns of a tile."""
    config, layout = view.config, view.layout

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view = View(layout, cells, cells, cells)
        w = view.tile(step.rs1, rows=config.mlen, column=step.rs1_offset, columns=config.blen)
        return view.block(step.rs2, 1), w

    old = _fresh(step, view.block(layout.v_accum, 1, 0, config.blen))
    return _padded(accumulate(operands, old, view.cells, step)[0], config.vlen)


@semantic("M_TMV", Stage.ROW, region="v_accum", adds_to=Accumulator.V)
def m_tmv(view: View, step: Step) -> jax.Array:
    """v_accum += row @ transposed first BLEN rows of a tile."""
    config = view.config
    old = _fresh(step, view.block(view.layout.v_accum, 1, 0, config.blen)[0])
    product = dot_lanes(view.row(step.rs2), view.tile(step.rs1, rows=config.blen, columns=config.mlen))
    return _padded(arithmetic.add(old, product), config.vlen)


@semantic("M_MV_WO", Stage.ROW, target=Target.VRAM_RD, drains=Accumulator.V)
def m_mv_wo(view: View, step: Step) -> jax.Array:
    """BLEN lanes of a row := v_accum."""
    values = _fresh(step, view.block(view.layout.v_accum, 1, 0, view.config.blen)[0])
    start = (jnp.asarray(step.rd_offset, jnp.int32),)
    return view.round(lax.dynamic_update_slice(view.row(step.rd), values, start, allow_negative_indices=False))


def _padded(values: jax.Array, lanes: int) -> jax.Array:
    return jnp.pad(values, (0, lanes - values.shape[0]))


# -- head slots -------------------------------------------------------------------------------------------------------


def _interleaved(x: jax.Array, head: jax.Array, config: MachineConfig) -> jax.Array:
    """Lanes head, head + BROADCAST_AMOUNT, ... of [rows, MLEN]: [rows, HLEN]."""
    slots = x.reshape(x.shape[0], config.hlen, -1)
    return lax.dynamic_index_in_dim(slots, head, axis=2, keepdims=False, allow_negative_indices=False)


def _head_rows(layout: Layout, cells: jax.Array, step: Step) -> tuple[View, jax.Array, jax.Array]:
    """The view, head slot and block of rows of a part of M_BMM or M_BTMM."""
    config = layout.config
    blocks = config.mlen // wide_rows(config)
    return View(layout, cells, cells, cells), step.part // blocks, (step.part % blocks) * wide_rows(config)


def _batched_parts(config: MachineConfig) -> int:
    return config.broadcast_amount * config.mlen // wide_rows(config)


def _add_scaled(view: View, old: jax.Array, product: jax.Array) -> jax.Array:
    return arithmetic.add(old, arithmetic.multiply(product, jnp.broadcast_to(view.bmm_scale, product.shape)))


@semantic("M_BMM", Stage.WIDE, parts=_batched_parts, region="hm_accum", adds_to=Accumulator.HM)
def m_bmm(view: View, step: Step) -> jax.Array:
    """hm_accum[j] += bmm_scale * interleaved head j of MLEN rows @ HLEN rows of a tile."""
    config, layout = view.config, view.layout
    if not config.heads_match:
        return jnp.zeros((wide_rows(config), config.vlen), jnp.float32)  # never executed: the instruction faults

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view, head, row = _head_rows(layout, cells, step)
        x = view.block(step.rs2 + row, wide_rows(config))
        w = view.tile(step.rs1, row=step.rs1_offset, rows=config.hlen, columns=config.mlen)
        return _interleaved(x, head, config), w

    return _batched(view, step, operands)


@semantic("M_BTMM", Stage.WIDE, parts=_batched_parts, region="hm_accum", adds_to=Accumulator.HM)
def m_btmm(view: View, step: Step) -> jax.Array:
    """hm_accum[j] += bmm_scale * head j of MLEN rows @ transposed HLEN columns of a tile."""
    config, layout = view.config, view.layout

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view, head, row = _head_rows(layout, cells, step)
        x = view.block(step.rs2 + row, wide_rows(config), head * config.hlen, config.hlen)
        w = view.tile(step.rs1, rows=config.mlen, column=step.rs1_offset, columns=config.hlen)
        return x, w.T

    return _batched(view, step, operands)


def _batched(view: View, step: Step, operands: object) -> jax.Array:
    rows = wide_rows(view.config)
    zeros = jnp.zeros((rows, view.config.mlen), jnp.float32)
    product = accumulate(operands, zeros, view.cells, step)
    old = _fresh(step, view.block(view.layout.hm_accum + step.part * rows, rows))
    return _add_scaled(view, old, product)


@semantic("M_BMM_WO", Stage.WIDE, parts=_batched_parts, target=Target.VRAM_RD, drains=Accumulator.HM)
def m_bmm_wo(view: View, step: Step) -> jax.Array:
    """Rows := hm_accum, head after head."""
    rows = wide_rows(view.config)
    return view.round(_fresh(step, view.block(view.layout.hm_accum + step.part * rows, rows)))


@semantic("M_BMV", Stage.ROW, parts=lambda c: c.broadcast_amount, region="hv_accum", adds_to=Accumulator.HV)
def m_bmv(view: View, step: Step) -> jax.Array:
    """hv_accum[j] += bmm_scale * interleaved head j of a row @ HLEN rows of a tile (only as intended behaviour)."""
    config, layout = view.config, view.layout
    if not config.intended.m_bmv or not config.heads_match:
        return jnp.zeros(config.vlen, jnp.float32)  # never executed: the instruction faults

    def operands(cells: jax.Array, step: Step) -> tuple[jax.Array, jax.Array]:
        view = View(layout, cells, cells, cells)
        x = _interleaved(view.block(step.rs2, 1), step.part, config)
        return x, view.tile(step.rs1, row=step.rs1_offset, rows=config.hlen, columns=config.mlen)

    product = accumulate(operands, jnp.zeros((1, config.mlen), jnp.float32), view.cells, step)[0]
    return _add_scaled(view, _fresh(step, view.row(layout.hv_accum + step.part)), product)


@semantic("M_BTMV", Stage.ROW, parts=lambda c: c.broadcast_amount, region="hv_accum", adds_to=Accumulator.HV)
def m_btmv(view: View, step: Step) -> jax.Array:
    """hv_accum[j] += bmm_scale * head j of a row @ transposed HLEN columns of a tile."""
    config = view.config
    x = view.block(step.rs2, 1, step.part * config.hlen, config.hlen)[0]
    rows = view.tile(step.rs1, rows=config.mlen, column=step.rs1_offset, columns=config.hlen)
    old = _fresh(step, view.row(view.layout.hv_accum + step.part))
    return _add_scaled(view, old, dot_lanes(x, rows))


@semantic(
    "M_BMV_WO", Stage.ROW, parts=lambda c: c.broadcast_amount, target=Target.VRAM_RD, drains=Accumulator.HV
)
def m_bmv_wo(view: View, step: Step) -> jax.Array:
    """Rows := hv_accum."""
    return view.round(_fresh(step, view.row(view.layout.hv_accum + step.part)))


def written_row(step: Step, config: MachineConfig) -> jax.Array:
    """int32 row of ``cells`` that a part of M_MM_WO writes: addresses wrap at 2**32 elements."""
    address = (u32(step.rd) + u32(step.part) * u32(step.mask)) * u32(config.mlen)
    return (address // u32(config.mlen)).astype(jnp.int32)
