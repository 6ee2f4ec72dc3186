"""Running records with a journal of what each write replaced, so that the adjoint can go back step by step.

Memories are undone, not saved: going backwards the old rows are put back, and every operand is then where it was when
it was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import Formats, MachineConfig
from plena_jax.machine.datapath import Cursor, Sweep, Used
from plena_jax.machine.memories import Memories, first_row, held, pick_rows, window_start
from plena_jax.machine.record import Record, Step
from plena_jax.machine.semantics import Stage
from plena_jax.machine.semantics.matrix import wide_rows, written_row
from plena_jax.machine.semantics.memory import stored_cells
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.transfer import Transfers, cell_bits
from plena_jax.machine.view import block_of
from plena_jax.program import Program


class Journal(NamedTuple):
    """What was overwritten, by stage, one entry for each part.

    Attributes:
        write: float32 [n, 2, BLEN, BLEN], m_accum and the block of vector SRAM.
        row: float32 [n, VLEN].
        wide: float32 [n, rows, VLEN].
        topk: float32 [n, rows, VLEN], of ``cells``.
        store: float32 [n, window], cells of HBM.
    """

    write: jax.Array
    row: jax.Array
    wide: jax.Array
    topk: jax.Array
    store: jax.Array


#: The fields of a journal, by stage.
FIELDS = {
    Stage.WRITE: "write",
    Stage.ROW: "row",
    Stage.WIDE: "wide",
    Stage.TOPK: "topk",
    Stage.STORE: "store",
}


def topk_rows(config: MachineConfig) -> int:
    """Rows of ``cells`` that V_TOPK may write: entries may run into the next row; behind FP SRAM there are others."""
    return -(-TOPK_ENTRIES // config.vlen) + 1


def store_window(config: MachineConfig) -> int:
    """Cells from the first to the last that a stored row takes."""
    return config.vlen * max(t.bits for t in Transfers.of(config).vector) // cell_bits(config)


def entry_shapes(config: MachineConfig) -> dict[str, tuple[int, ...]]:
    """Shape of one entry of each field."""
    return {
        "write": (2, config.blen, config.blen),
        "row": (config.vlen,),
        "wide": (wide_rows(config), config.vlen),
        "topk": (topk_rows(config), config.vlen),
        "store": (store_window(config),),
    }


@dataclass(frozen=True)
class Plan:
    """What a differentiable run is compiled for, besides shapes. Hashable.

    Attributes:
        config: the machine.
        clipped: roundings have derivative 0 where they saturate.
        used: the functions that occur, as (stage, position among those of the stage).
        entries: entries of a journal by stage, in the order of ``FIELDS``.
        debug: the program, where a derivative that is not finite is an error; None where it is not.
    """

    config: MachineConfig
    clipped: bool
    used: Used
    entries: tuple[int, ...]
    debug: Program | None = None

    @property
    def stores(self) -> bool:
        """Whether HBM is written."""
        return any(stage == Stage.STORE for stage, _ in self.used)

    def empty(self) -> Journal:
        """A journal with nothing in it."""
        shapes = entry_shapes(self.config)
        return Journal(
            **{
                name: jnp.zeros((n, *shapes[name]), jnp.float32)
                for name, n in zip(FIELDS.values(), self.entries, strict=True)
            }
        )


def with_slots(records: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """``records`` int32 [n, 16] with their places in the journal filled in, and entries by stage."""
    records, counts = records.copy(), []
    for stage in FIELDS:
        here = records[:, Record.STAGE] == stage
        parts = np.where(here, np.maximum(records[:, Record.PARTS], 1), 0)
        before = np.cumsum(parts) - parts
        records[here, Record.SLOT] = before[here]
        counts.append(int(parts.sum()))
    return records, tuple(counts)


def block_start(config: MachineConfig, s: Step, vram: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The row of vector SRAM that a part of a WRITE instruction writes, and where the block is that has it."""
    row = written_row(s, config)
    return row, (jnp.minimum(row, vram.shape[0] - config.blen), s.rd_lane)


class JournalledSweep(Sweep):
    """A sweep that keeps a journal. Its loops are those of :class:`Sweep`, for the stages that occur."""

    def __init__(self, plan: Plan, trace: jax.Array, end: jax.Array, precision: Formats | None) -> None:
        super().__init__(plan.config, trace, end, precision, plan.clipped, plan.used)
        self.plan = plan

    def run_with_journal(self, memories: Memories) -> tuple[Memories, Journal]:
        """The memories after the last record, and the journal."""

        def turn(carry: tuple[Memories, Journal, Cursor]) -> tuple[Memories, Journal, Cursor]:
            return self._turn(*carry)

        start = (memories, self.plan.empty(), jnp.zeros(2, jnp.int32))
        memories, journal, _ = lax.while_loop(lambda c: c[2][0] < self.end, turn, start)
        return memories, journal

    def _turn(self, memories: Memories, journal: Journal, cursor: Cursor) -> tuple[Memories, Journal, Cursor]:
        vram, cells, m_accum, hbm, int_sram, careful = memories
        write, row, wide, topk, store = journal
        if self.functions(Stage.MATMUL):
            cursor, m_accum = self.matmul(vram, cells, hbm, careful, cursor, m_accum)
        if self.functions(Stage.WRITE):
            cursor, vram, write = lax.while_loop(
                lambda c: self.at(c[0], Stage.WRITE),
                lambda c: self._write(cells, m_accum, hbm, *c),
                (cursor, vram, write),
            )
        if self.functions(Stage.ROW):
            cursor, vram, cells, row = lax.while_loop(
                lambda c: self.at(c[0], Stage.ROW), lambda c: self._row(m_accum, hbm, *c), (cursor, vram, cells, row)
            )
        if self.functions(Stage.WIDE):
            cursor, vram, cells, careful, wide = lax.while_loop(
                lambda c: self.at(c[0], Stage.WIDE),
                lambda c: self._wide(m_accum, hbm, *c),
                (cursor, vram, cells, careful, wide),
            )
        if self.functions(Stage.TOPK):
            cursor, cells, int_sram, topk = lax.while_loop(
                lambda c: self.at(c[0], Stage.TOPK),
                lambda c: self._topk(vram, m_accum, hbm, *c),
                (cursor, cells, int_sram, topk),
            )
        if self.functions(Stage.STORE):
            cursor, hbm, store = lax.while_loop(
                lambda c: self.at(c[0], Stage.STORE),
                lambda c: self._store(vram, cells, m_accum, *c),
                (cursor, hbm, store),
            )
        return Memories(vram, cells, m_accum, hbm, int_sram, careful), Journal(write, row, wide, topk, store), cursor

    def _write(
        self,
        cells: jax.Array,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        vram: jax.Array,
        journal: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        s, size = self.step(cursor), self.config.blen
        _, start = block_start(self.config, s, vram)
        read = partial(lax.dynamic_slice, start_indices=start, slice_sizes=(size, size), allow_negative_indices=False)
        old = held(s, read, vram)
        journal = entered(journal, s, jnp.stack([m_accum, old]))
        return *self.write(cells, m_accum, hbm, behind(cursor, s, old), vram), journal

    def _row(
        self,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        vram: jax.Array,
        cells: jax.Array,
        journal: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array, jax.Array]:
        s = self.step(cursor)
        first, in_vram = first_row(self.config, Stage.ROW, s, 1)
        old = held(s, partial(pick_rows, in_vram, first, 1), vram, cells)
        journal = entered(journal, s, old[0])
        return *self.row(m_accum, hbm, behind(cursor, s, old), vram, cells), journal

    def _wide(
        self,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        vram: jax.Array,
        cells: jax.Array,
        careful: jax.Array,
        journal: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array, jax.Array, jax.Array]:
        s, rows = self.step(cursor), wide_rows(self.config)
        first, in_vram = first_row(self.config, Stage.WIDE, s, rows)
        old = held(s, partial(pick_rows, in_vram, first, rows), vram, cells)
        journal = entered(journal, s, old)
        return *self.wide(m_accum, hbm, behind(cursor, s, old), vram, cells, careful), journal

    def _topk(
        self,
        vram: jax.Array,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        cells: jax.Array,
        int_sram: jax.Array,
        journal: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array, jax.Array]:
        s = self.step(cursor)
        old = held(s, lambda cells: block_of(cells, s.rd, topk_rows(self.config)), cells)
        journal = entered(journal, s, old)
        return *self.topk(vram, m_accum, hbm, behind(cursor, s, old), cells, int_sram), journal

    def _store(
        self,
        vram: jax.Array,
        cells: jax.Array,
        m_accum: jax.Array,
        cursor: Cursor,
        hbm: jax.Array,
        journal: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        s = self.step(cursor)
        start = stored_window(self.config, s, hbm)
        size = journal.shape[1:]
        old = held(s, lambda hbm: lax.dynamic_slice(hbm, (start,), size, allow_negative_indices=False), hbm)
        journal = entered(journal, s, old)
        return *self.store(vram, cells, m_accum, behind(cursor, s, old), hbm), journal


def stored_window(config: MachineConfig, s: Step, hbm: jax.Array) -> jax.Array:
    """int32: where the window of cells begins that a part of H_STORE_V writes."""
    first, _ = stored_cells(config, s, Transfers.of(config).vector, s.part.reshape(1))
    return window_start(hbm, first[0, 0], store_window(config))


def behind(cursor: Cursor, s: Step, old: jax.Array) -> Cursor:
    """``cursor``, known only when ``old`` is: what is done with it is done after that has been read."""
    first = lax.bitcast_convert_type(old.reshape(-1)[0], jnp.int32)
    return jnp.where(s.parts < 0, first, cursor)


def entered(journal: jax.Array, s: Step, old: jax.Array) -> jax.Array:
    """The journal of a stage with the entry of a part."""
    start = (s.slot + s.part, *(jnp.int32(0) for _ in old.shape))
    return lax.dynamic_update_slice(journal, old[None], start, allow_negative_indices=False)


def entry(journal: jax.Array, s: Step) -> jax.Array:
    """The entry of a part."""
    start = (s.slot + s.part, *(jnp.int32(0) for _ in journal.shape[1:]))
    return lax.dynamic_slice(journal, start, (1, *journal.shape[1:]), allow_negative_indices=False)[0]
