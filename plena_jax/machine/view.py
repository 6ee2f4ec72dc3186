"""What a semantic function sees of the machine: rows, tiles, registers, and the roundings of its places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import Formats, MachineConfig
from plena_jax.machine import rounding
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Flag, Step


def block_of(
    memory: jax.Array, row: jax.Array | int, rows: int, lane: jax.Array | int = 0, lanes: int | None = None
) -> jax.Array:
    """float32 [rows, lanes] of a memory from (row, lane)."""
    start = (jnp.asarray(row, jnp.int32), jnp.asarray(lane, jnp.int32))
    sizes = (rows, memory.shape[1] if lanes is None else lanes)
    return lax.dynamic_slice(memory, start, sizes, allow_negative_indices=False)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["vram", "cells", "hbm", "m_accum", "careful", "precision"],
    meta_fields=["config", "clipped", "inside"],
)
@dataclass(frozen=True)
class View:
    """Read access to the memories of a running machine.

    A semantic function reads memories through :meth:`rows`, :meth:`block` and :meth:`hbm_values` only (bytes of HBM,
    which have no derivative, apart): the adjoint replays it with the rows that it has read.

    Attributes:
        config: the machine.
        vram: float32 [rows, VLEN].
        cells: float32 [rows, VLEN], see :class:`~plena_jax.machine.layout.Layout`.
        hbm: uint8 [bytes], or float32 [cells] on the values face.
        m_accum: float32 [BLEN, BLEN].
        careful: bool [], whether matrix SRAM may hold what fast sums exclude.
        precision: formats that replace those of the configuration, traced or not; None for none.
        clipped: roundings have derivative 0 where they saturate.
        inside: no transfer reads beyond the part of HBM that is allocated.
    """

    config: MachineConfig
    vram: jax.Array
    cells: jax.Array
    hbm: jax.Array
    m_accum: jax.Array
    careful: jax.Array | bool = True
    precision: Formats | None = None
    clipped: bool = False
    inside: bool = False

    @cached_property
    def layout(self) -> Layout:
        """Where things are in ``cells``."""
        return Layout(self.config)

    @property
    def has_values(self) -> bool:
        """Whether HBM shows its values face."""
        return self.hbm.dtype == jnp.float32

    @property
    def vram_rows(self) -> int:
        """Rows allocated."""
        return self.vram.shape[0]

    # -- memories -----------------------------------------------------------------------------------------------------

    def rows(self, row: jax.Array, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """float32 [rows, lanes] of vector SRAM."""
        return block_of(self.vram, row, rows, lane, lanes)

    def block(self, row: jax.Array | int, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """float32 [rows, lanes] of ``cells``."""
        return block_of(self.cells, row, rows, lane, lanes)

    def hbm_values(self, index: jax.Array, there: jax.Array) -> jax.Array:
        """float32 [n, lanes] of HBM cells int32 [n, lanes]; zero where not ``there``. Values face only."""
        return jnp.where(there, self.hbm.at[index].get(mode="promise_in_bounds"), jnp.float32(0))

    # -- operands -----------------------------------------------------------------------------------------------------

    def row(self, row: jax.Array) -> jax.Array:
        """float32 [VLEN]: a vector SRAM row."""
        return self.rows(row, 1)[0]

    def scalar(self, row: jax.Array, lane: jax.Array) -> jax.Array:
        """float32 []: an f register or an SRAM entry."""
        return self.block(row, 1, lane, 1)[0, 0]

    def operand(self, step: Step, name: str) -> jax.Array:
        """float32 [VLEN]: a vector SRAM row, or a scalar in every lane; ``name`` is "rs1" or "rs2"."""
        row, lane, zero = getattr(step, name), getattr(step, f"{name}_lane"), jnp.int32(0)
        in_vram = step.has(Flag[f"{name.upper()}_VRAM"])
        scalar = self.scalar(jnp.where(in_vram, zero, row), jnp.where(in_vram, zero, lane))
        return jnp.where(in_vram, self.row(jnp.where(in_vram, row, zero)), scalar)

    @property
    def bmm_scale(self) -> jax.Array:
        """float32 []: the broadcast scale."""
        return self.block(self.layout.bmm_scale, 1, 0, 1)[0, 0]

    def active(self, step: Step) -> jax.Array:
        """bool [VLEN]: lanes whose head slot is selected by the step's mask (bit h modulo 32 for slot h)."""
        slots = np.arange(self.config.vlen, dtype=np.uint32) // np.uint32(self.config.hlen) % np.uint32(32)
        return (u32(step.mask) >> jnp.asarray(slots)) & 1 == 1

    # -- results ------------------------------------------------------------------------------------------------------

    def with_scalar(self, step: Step, value: jax.Array) -> jax.Array:
        """The row of ``cells`` that holds the scalar rd, with that lane replaced."""
        old = self.block(step.rd, 1)[0]
        return jnp.where(jnp.arange(self.config.vlen, dtype=jnp.int32) == step.rd_lane, value, old)

    def written(self, step: Step, result: jax.Array, inactive: jax.Array) -> jax.Array:
        """The row to write for a lane-wise result: rounded as its place does.

        In vector SRAM head slots that are not active take ``inactive``; a scalar result is the same in every lane.
        """
        is_row = step.has(Flag.RD_VRAM)
        old = self.block(jnp.where(is_row, 0, step.rd), 1)[0]
        here = jnp.arange(self.config.vlen, dtype=jnp.int32) == step.rd_lane
        row = self.round(jnp.where(self.active(step), result, inactive))
        return jnp.where(is_row, row, jnp.where(here, self.round_scalar(result), old))

    # -- roundings: straight-through for derivatives ------------------------------------------------------------------

    def round(self, x: jax.Array) -> jax.Array:
        """``x`` as vector SRAM stores it."""
        return rounding.vector(x, self.config, self.precision, self.clipped)

    def round_scalar(self, x: jax.Array) -> jax.Array:
        """``x`` as an f register or FP SRAM stores it."""
        return rounding.scalar(x, self.config, self.precision, self.clipped)

    def round_matrix(self, x: jax.Array) -> jax.Array:
        """``x`` as matrix SRAM stores it."""
        return rounding.matrix(x, self.config, self.precision, self.clipped)

    def round_stored(self, row: jax.Array, is_kv: bool) -> jax.Array:
        """A row as HBM gives it back after H_STORE_V: elements and scales encoded and decoded."""
        return rounding.stored(row, is_kv, self.config, self.precision, self.clipped)
