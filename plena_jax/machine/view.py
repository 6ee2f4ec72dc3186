"""What a semantic function sees of the machine: rows, tiles, registers, and the roundings of its places."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import from_bits, is_nan, to_bits, u32
from plena_jax.config import MachineConfig
from plena_jax.formats import FloatFormat, plena
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Step
from plena_jax.machine.transfer import vram_format


@dataclass(frozen=True)
class View:
    """Read access to the memories of a running machine.

    Attributes:
        layout: where things are in ``cells``.
        cells: float32 [rows, VLEN].
        hbm: uint8 [bytes].
        m_accum: float32 [BLEN, BLEN].
    """

    layout: Layout
    cells: jax.Array
    hbm: jax.Array
    m_accum: jax.Array

    @property
    def config(self) -> MachineConfig:
        """The machine's configuration."""
        return self.layout.config

    def block(self, row: jax.Array, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """float32 [rows, lanes] of ``cells`` from (row, lane)."""
        start = (row, jnp.asarray(lane, jnp.int32))
        sizes = (rows, self.config.vlen if lanes is None else lanes)
        return lax.dynamic_slice(self.cells, start, sizes, allow_negative_indices=False)

    def row(self, row: jax.Array) -> jax.Array:
        """float32 [VLEN]: a row of ``cells``; VRAM row n is row n."""
        return self.block(row, 1)[0]

    def tile(
        self, tile: jax.Array, *, row: jax.Array | int = 0, rows: int, column: jax.Array | int = 0, columns: int
    ) -> jax.Array:
        """float32 [rows, columns] of an MRAM tile."""
        return self.block(self.layout.mram + tile * self.config.mlen + row, rows, column, columns)

    def f(self, register: jax.Array) -> jax.Array:
        """float32 []: an f register."""
        lanes = self.config.vlen
        return self.block(self.layout.f + register // lanes, 1, register % lanes, 1)[0, 0]

    def with_f(self, register: jax.Array, value: jax.Array) -> jax.Array:
        """The row of the f registers with one of them replaced."""
        lanes = self.config.vlen
        return self.with_lane(self.row(self.layout.f + register // lanes), register % lanes, value)

    def with_lane(self, row: jax.Array, lane: jax.Array, value: jax.Array) -> jax.Array:
        """``row`` with one lane replaced."""
        return jnp.where(jnp.arange(self.config.vlen, dtype=jnp.int32) == lane, value, row)

    def sram(self, region: int, entry: jax.Array, entries: int = 1) -> jax.Array:
        """float32 [entries] of FP or INT SRAM from ``entry`` on; ``region`` is its first row."""
        flat = self.cells.reshape(-1)
        start = (region * self.config.vlen + entry,)
        return lax.dynamic_slice(flat, start, (entries,), allow_negative_indices=False)

    @cached_property
    def bmm_scale(self) -> jax.Array:
        """float32 []: the broadcast scale."""
        return self.cells[self.layout.bmm_scale, 0]

    def active(self, step: Step) -> jax.Array:
        """bool [VLEN]: lanes whose head slot is selected by the step's mask (bit h modulo 32 for slot h)."""
        slots = np.arange(self.config.vlen, dtype=np.uint32) // np.uint32(self.config.hlen) % np.uint32(32)
        return (u32(step.mask) >> jnp.asarray(slots)) & 1 == 1

    def round(self, x: jax.Array) -> jax.Array:
        """``x`` as VRAM stores it; straight-through for derivatives."""
        return _round_vram(x, self.config)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _round_vram(x: jax.Array, config: MachineConfig) -> jax.Array:
    fmt = vram_format(config)
    if fmt.exponent != 8:
        return fmt.decode(fmt.encode(x))
    rounded = plena.round_8_exponent_bits(x, fmt.mantissa)
    if fmt.family == "plena":
        return rounded
    return jnp.where(is_nan(x), from_bits(to_bits(x) | u32(0x00400000)), rounded)


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
