"""Where the floats of a running machine lie: vector SRAM by itself, nearly everything else in one array of rows.

Each separate array in a loop's carry and each separate result of a switch is compiled to a kernel of its own.
Engines therefore keep matrix SRAM, FP SRAM, the f registers and the accumulators of matrix-vector and batched
instructions in ``cells`` [rows, VLEN]. Vector SRAM stays apart because it can be large: a run must not copy it more
than it has to. So do m_accum, which changes most often, and HBM, which is bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES


@dataclass(frozen=True)
class Layout:
    """First rows of the regions of ``cells``. A region of single values has VLEN of them a row."""

    config: MachineConfig

    def _rows(self, values: int) -> int:
        return -(-values // self.config.vlen)

    @property
    def mram(self) -> int:
        """MLEN rows per tile."""
        return 0

    @cached_property
    def fp_sram(self) -> int:
        """1024 entries."""
        return self.config.tiles * self.config.mlen

    @cached_property
    def f(self) -> int:
        """The eight f registers."""
        return self.fp_sram + self._rows(SRAM_ENTRIES)

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
        """Rows in all."""
        return self.hm_accum + self.config.broadcast_amount * self.config.mlen
