"""What the engine is compiled for, and schedules as data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from plena_jax.bits import Array
from plena_jax.config import MachineConfig
from plena_jax.hashing import hashed_once
from plena_jax.machine.fused.families import OF_SCALARS, Family
from plena_jax.machine.layout import Layout

#: What takes no part of the matrix unit.
_VECTOR = (
    *(
        Family.ADD,
        Family.MULTIPLY,
        Family.SELECT,
        Family.EXP,
        Family.RECIPROCAL,
        Family.SQRT,
        *OF_SCALARS.values(),
        Family.SHIFT,
    ),
    *(Family.SUM, Family.SUM_MASKED, Family.MAX, Family.MAX_MASKED, Family.MAP, Family.PREFETCH_V),
    *(Family.PREFETCH_V_KV, Family.TOPK, Family.STORE),
)
MATRIX = frozenset(Family) - frozenset(_VECTOR)
#: What changes accumulators of head slots.
HEADS = frozenset({Family.BMM, Family.BMV, Family.BTMV, Family.WRITE_OUT})
#: A family and how many of its operations a step takes.
Bucket = tuple[int, int]


@hashed_once
@dataclass(frozen=True)
class Plan:
    """What the loop is compiled for.

    Attributes:
        config: the machine.
        buckets: the branches of its switch.
        strict: products add up in the machine's order; else as the backend's matrix product does.
        clipped, inside: see :class:`View`.
        whole: ``cells`` begin with the tiles, which lie apart from them otherwise.
    """

    config: MachineConfig
    buckets: tuple[Bucket, ...]
    strict: bool = False
    clipped: bool = False
    inside: bool = False
    whole: bool = False

    @cached_property
    def stores(self) -> bool:
        """Whether HBM is written."""
        return any(family == Family.STORE for family, _ in self.buckets)

    @cached_property
    def unchanged(self) -> tuple[str, ...]:
        """Fields of the state that a run leaves as they are."""
        kept = ("bmm_scale", *(() if self.stores else ("hbm",)))
        if not self.has_matrix:
            return (*kept, "mram", "m_accum", "v_accum", "hv_accum", "hm_accum")
        return kept if any(family in HEADS for family, _ in self.buckets) else (*kept, "hv_accum", "hm_accum")

    @cached_property
    def has_matrix(self) -> bool:
        """Whether the matrix unit and its memory take part."""
        return any(family in MATRIX for family, _ in self.buckets)

    @property
    def first_cell(self) -> int:
        """The first row of ``cells`` that is there."""
        return 0 if self.whole else Layout(self.config).fp_sram


class Move(enum.IntEnum):
    """Copies between memories and values: first those at the start, then those at the end."""

    VRAM_BLOCK = 0
    VRAM_ROW = 1
    TILE_BLOCK = 2
    TILE_ROW = 3
    #: Of ``cells`` behind the tiles.
    CELLS_BLOCK = 4
    CELLS_ROW = 5
    #: One lane of a row of ``cells``, in every lane of a value.
    SCALAR = 6
    M_ACCUM = 7
    TO_VRAM_BLOCK = 8
    TO_VRAM_ROW = 9
    TO_TILE_BLOCK = 10
    TO_TILE_ROW = 11
    TO_CELLS_BLOCK = 12
    TO_CELLS_ROW = 13
    TO_SCALAR = 14
    TO_M_ACCUM = 15
    TO_INT_SRAM = 16
    TO_V_ACCUM = 17


class Tables(NamedTuple):
    """A schedule as data.

    Attributes:
        steps: int32 [n, 5]: branch, first slot, place in the pool, count of terms or operations, rows written.
        length: int32 [], steps.
        entries: int32 [slots, COLUMNS], at the slot of the operation's first value.
        pool: int32 [n], lists of slots.
        moves: int32 [n, 3]: slot, row, lane; by kind.
        bounds: int32 [19], where the moves of each :class:`Move` begin.
    """

    steps: Array
    length: Array
    entries: Array
    pool: Array
    moves: Array
    bounds: Array
