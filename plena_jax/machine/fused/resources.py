"""Numbers of the places that are renamed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.layout import Layout
from plena_jax.machine.semantics.matrix import wide_rows

Ints = np.ndarray
_F_REGISTERS = 8


@dataclass(frozen=True)
class Resources:
    """Numbers of places, one range after the other."""

    config: MachineConfig
    vram_rows: int

    def __post_init__(self) -> None:
        config = self.config
        parts = config.broadcast_amount * config.mlen // wide_rows(config)
        sizes = {
            "vram": self.vram_rows,
            "tile": config.tiles,
            "scalar": SRAM_ENTRIES + _F_REGISTERS,
            "m_accum": 1,
            "v_accum": 1,
            "hv": config.broadcast_amount,
            "hm": parts,
            "scale": 1,
            "int_sram": SRAM_ENTRIES,
        }
        first = 0
        for name, size in sizes.items():
            object.__setattr__(self, name, first)
            first += size
        object.__setattr__(self, "count", first)

    vram: int = field(init=False)
    tile: int = field(init=False)
    scalar: int = field(init=False)
    m_accum: int = field(init=False)
    v_accum: int = field(init=False)
    hv: int = field(init=False)
    hm: int = field(init=False)
    scale: int = field(init=False)
    int_sram: int = field(init=False)
    count: int = field(init=False)

    def scalars(self, row: Ints, lane: Ints) -> Ints:
        """Of lanes of rows of ``cells``."""
        layout = Layout(self.config)
        entry = (row - layout.fp_sram) * self.config.vlen + lane
        register = SRAM_ENTRIES + (row - layout.f) * self.config.vlen + lane
        return self.scalar + np.where(row < layout.f, entry, register)

    def rows(self, resource: Ints) -> Ints:
        """Rows of each."""
        config = self.config
        rows = np.ones(len(resource), np.int64)
        rows[(resource >= self.tile) & (resource < self.scalar)] = config.mlen
        rows[resource == self.m_accum] = config.blen
        rows[(resource >= self.hm) & (resource < self.scale)] = wide_rows(config)
        return rows

    def cells(self, resource: Ints) -> tuple[Ints, Ints]:
        """First row and lane in ``cells`` of tiles, scalars, v_accum, hv, hm and the scale."""
        config, layout = self.config, Layout(self.config)
        row, lane = np.zeros(len(resource), np.int64), np.zeros(len(resource), np.int64)
        within = lambda first, stop: (resource >= first) & (resource < stop)
        tile, scalar = within(self.tile, self.scalar), within(self.scalar, self.m_accum)
        row[tile] = layout.mram + (resource[tile] - self.tile) * config.mlen
        index = resource[scalar] - self.scalar
        is_f = index >= SRAM_ENTRIES
        index = np.where(is_f, index - SRAM_ENTRIES, index)
        row[scalar] = np.where(is_f, layout.f, layout.fp_sram) + index // config.vlen
        lane[scalar] = index % config.vlen
        row[resource == self.v_accum] = layout.v_accum
        hv, hm = within(self.hv, self.hm), within(self.hm, self.scale)
        row[hv] = layout.hv_accum + resource[hv] - self.hv
        row[hm] = layout.hm_accum + (resource[hm] - self.hm) * wide_rows(config)
        row[resource == self.scale] = layout.bmm_scale
        return row, lane
