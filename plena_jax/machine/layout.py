"""Where everything float lies while a machine runs: one array of rows, so that a step is one small write.

Each separate array in a loop's carry and each separate result of a switch is a kernel of its own (design.md section 2).
Engines therefore keep all memories and registers of the datapath in ``cells`` [rows, VLEN]: vector SRAM first (VRAM row n is
row n), then matrix SRAM, FP SRAM, INT SRAM (bit patterns), the f registers, and the accumulators of matrix-vector and
batched instructions. Only m_accum, which changes most often, and HBM, which is bytes, stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES


@dataclass(frozen=True)
class Layout:
    """First rows of the regions of ``cells`` for a configuration and a number of allocated VRAM rows."""

    config: MachineConfig
    vram_rows: int

    def _rows(self, lanes: int) -> int:
        return -(-lanes // self.config.vlen)

    @property
    def vram(self) -> int:
        """VRAM rows."""
        return 0

    @cached_property
    def mram(self) -> int:
        """MLEN rows per tile."""
        return self.vram_rows

    @cached_property
    def fp_sram(self) -> int:
        """1024 entries, VLEN a row."""
        return self.mram + self.config.tiles * self.config.mlen

    @cached_property
    def int_sram(self) -> int:
        """1024 entries as bit patterns, VLEN a row."""
        return self.fp_sram + self._rows(SRAM_ENTRIES)

    @cached_property
    def f(self) -> int:
        """The eight f registers."""
        return self.int_sram + self._rows(SRAM_ENTRIES)

    @cached_property
    def bmm_scale(self) -> int:
        """The broadcast scale in lane 0."""
        return self.f + self._rows(8)

    @cached_property
    def v_accum(self) -> int:
        """BLEN lanes."""
        return self.bmm_scale + 1

    @cached_property
    def hv_accum(self) -> int:
        """A row per head slot."""
        return self.v_accum + 1

    @cached_property
    def hm_accum(self) -> int:
        """MLEN rows per head slot."""
        return self.hv_accum + self.config.broadcast_amount

    @cached_property
    def rows(self) -> int:
        """Rows in all, with slack for writes of several rows that keep what lies behind."""
        return self.hm_accum + self.config.broadcast_amount * self.config.mlen + self.config.blen + 8
