"""What a semantic function sees of the machine: rows, tiles, registers, and the roundings of its places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.formats import plena
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Flag, Step
from plena_jax.machine.transfer import vram_format


def block_of(
    memory: jax.Array, row: jax.Array | int, rows: int, lane: jax.Array | int = 0, lanes: int | None = None
) -> jax.Array:
    """float32 [rows, lanes] of a memory from (row, lane)."""
    start = (row, jnp.asarray(lane, jnp.int32))
    sizes = (rows, memory.shape[1] if lanes is None else lanes)
    return lax.dynamic_slice(memory, start, sizes, allow_negative_indices=False)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["vram", "cells", "hbm", "m_accum", "careful"],
    meta_fields=["config"],
)
@dataclass(frozen=True)
class View:
    """Read access to the memories of a running machine.

    Attributes:
        config: the machine.
        vram: float32 [rows, VLEN].
        cells: float32 [rows, VLEN], see :class:`~plena_jax.machine.layout.Layout`.
        hbm: uint8 [bytes].
        m_accum: float32 [BLEN, BLEN].
        careful: bool [], whether matrix SRAM may hold what fast sums exclude.
    """

    config: MachineConfig
    vram: jax.Array
    cells: jax.Array
    hbm: jax.Array
    m_accum: jax.Array
    careful: jax.Array | bool = True

    @cached_property
    def layout(self) -> Layout:
        """Where things are in ``cells``."""
        return Layout(self.config)

    def row(self, row: jax.Array) -> jax.Array:
        """float32 [VLEN]: a vector SRAM row."""
        return self.rows(row, 1)[0]

    def rows(self, row: jax.Array, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """float32 [rows, lanes] of vector SRAM."""
        return block_of(self.vram, row, rows, lane, lanes)

    def block(self, row: jax.Array | int, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """float32 [rows, lanes] of ``cells``."""
        return block_of(self.cells, row, rows, lane, lanes)

    def scalar(self, row: jax.Array, lane: jax.Array) -> jax.Array:
        """float32 []: an f register or an SRAM entry."""
        return self.block(row, 1, lane, 1)[0, 0]

    def operand(self, step: Step, name: str) -> jax.Array:
        """float32 [VLEN]: a vector SRAM row, or a scalar in every lane; ``name`` is "rs1" or "rs2"."""
        row, lane = getattr(step, name), getattr(step, f"{name}_lane")
        return _operand(self.vram, self.cells, step.has(Flag[f"{name.upper()}_VRAM"]), row, lane)

    @cached_property
    def bmm_scale(self) -> jax.Array:
        """float32 []: the broadcast scale."""
        return self.cells[self.layout.bmm_scale, 0]

    def active(self, step: Step) -> jax.Array:
        """bool [VLEN]: lanes whose head slot is selected by the step's mask (bit h modulo 32 for slot h)."""
        slots = np.arange(self.config.vlen, dtype=np.uint32) // np.uint32(self.config.hlen) % np.uint32(32)
        return (u32(step.mask) >> jnp.asarray(slots)) & 1 == 1

    def with_scalar(self, step: Step, value: jax.Array) -> jax.Array:
        """The row of ``cells`` that holds the scalar rd, with that lane replaced."""
        old = self.block(step.rd, 1)[0]
        return jnp.where(jnp.arange(self.config.vlen, dtype=jnp.int32) == step.rd_lane, value, old)

    def written(self, step: Step, result: jax.Array, inactive: jax.Array) -> jax.Array:
        """The row to write for a lane-wise result: rounded as its place does.

        In vector SRAM head slots that are not active take ``inactive``; a scalar result is the same in every lane.
        """
        return _written(self.cells, step, result, inactive, self.config)

    def round(self, x: jax.Array) -> jax.Array:
        """``x`` as VRAM stores it; straight-through for derivatives."""
        return _round_vram(x, self.config)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round_vram(x: jax.Array, config: MachineConfig) -> jax.Array:
    fmt = vram_format(config)
    if fmt.exponent == 8 and fmt.sign == 1 and fmt.family == "plena":
        return plena.round_8_exponent_bits(x, fmt.mantissa)
    return fmt.decode(fmt.encode(x))


@_round_vram.defjvp
def _round_vram_jvp(
    config: MachineConfig, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return _round_vram(primals[0], config), tangents[0]


@jax.custom_jvp
def round_scalar(x: jax.Array) -> jax.Array:
    """``x`` as an f register stores it; straight-through for derivatives."""
    return plena.round_scalar(x)


@round_scalar.defjvp
def _round_scalar_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return round_scalar(primals[0]), tangents[0]


@jax.jit
def _operand(vram: jax.Array, cells: jax.Array, in_vram: jax.Array, row: jax.Array, lane: jax.Array) -> jax.Array:
    zero = jnp.int32(0)
    scalar = block_of(cells, jnp.where(in_vram, zero, row), 1, jnp.where(in_vram, zero, lane), 1)[0, 0]
    return jnp.where(in_vram, block_of(vram, jnp.where(in_vram, row, zero), 1)[0], scalar)


@partial(jax.jit, static_argnames="config")
def _written(cells: jax.Array, step: Step, result: jax.Array, inactive: jax.Array, config: MachineConfig) -> jax.Array:
    is_row = step.has(Flag.RD_VRAM)
    view = View(config, cells, cells, cells, cells)
    old = view.block(jnp.where(is_row, 0, step.rd), 1)[0]
    here = jnp.arange(config.vlen, dtype=jnp.int32) == step.rd_lane
    row = view.round(jnp.where(view.active(step), result, inactive))
    return jnp.where(is_row, row, jnp.where(here, round_scalar(result), old))
