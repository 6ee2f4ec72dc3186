"""The float side: records executed on the memories. Both engines run it.

One loop per stage, each carrying only what its stage writes: an array that a loop merely refers to costs nothing. The loops
of a sweep hand the cursor on as long as the next record is of their stage.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Record, Step, field, step
from plena_jax.machine.semantics import SEMANTICS, Accumulator, Stage, branches
from plena_jax.machine.semantics.matrix import wide_rows, written_row
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.state import MachineState
from plena_jax.machine.transfer import Transfers, element_address, scale_address
from plena_jax.machine.view import View


class Memories(NamedTuple):
    """What the datapath writes.

    Attributes:
        cells: float32 [rows, VLEN], see :class:`Layout`.
        m_accum: float32 [BLEN, BLEN].
        hbm: uint8 [bytes].
    """

    cells: jax.Array
    m_accum: jax.Array
    hbm: jax.Array


#: int32 [2]: index of the record, and the part of it that is next.
Cursor = jax.Array


def cursor_at(index: int) -> Cursor:
    """A cursor at the first part of a record."""
    return jnp.array([index, 0], jnp.int32)


def sweep(layout: Layout, memories: Memories, trace: jax.Array, cursor: Cursor, end: jax.Array) -> tuple[Memories, Cursor]:
    """Run each stage's loop once, in turn. Advances by at least one record if ``cursor`` is before ``end``."""
    return _Sweep(layout, trace, end).run(memories, cursor)


class _Sweep:
    """The stage loops over one trace."""

    def __init__(self, layout: Layout, trace: jax.Array, end: jax.Array) -> None:
        self.layout, self.trace, self.end = layout, trace, end

    @property
    def config(self) -> MachineConfig:
        return self.layout.config

    def run(self, memories: Memories, cursor: Cursor) -> tuple[Memories, Cursor]:
        cells, m_accum, hbm = memories
        cursor, m_accum = lax.while_loop(
            lambda c: self.at(c[0], Stage.MATMUL), lambda c: self.matmul(cells, hbm, *c), (cursor, m_accum)
        )
        cursor, cells = lax.while_loop(
            lambda c: self.at(c[0], Stage.WRITE), lambda c: self.write(m_accum, hbm, *c), (cursor, cells)
        )
        cursor, cells = lax.while_loop(
            lambda c: self.at(c[0], Stage.ROW), lambda c: self.row(m_accum, hbm, *c), (cursor, cells)
        )
        cursor, cells, hbm = lax.while_loop(
            lambda c: self.at(c[0], Stage.WIDE, Stage.STORE), lambda c: self.seldom(m_accum, *c), (cursor, cells, hbm)
        )
        return Memories(cells, m_accum, hbm), cursor

    def seldom(
        self, m_accum: jax.Array, cursor: Cursor, cells: jax.Array, hbm: jax.Array
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        """The stages between WIDE and STORE, which share a turn so that the others wait for one loop and not for three."""
        cursor, cells = lax.while_loop(
            lambda c: self.at(c[0], Stage.WIDE), lambda c: self.wide(m_accum, hbm, *c), (cursor, cells)
        )
        cursor, cells = lax.while_loop(
            lambda c: self.at(c[0], Stage.TOPK), lambda c: self.topk(m_accum, hbm, *c), (cursor, cells)
        )
        cursor, hbm = lax.while_loop(
            lambda c: self.at(c[0], Stage.STORE), lambda c: self.store(m_accum, cells, *c), (cursor, hbm)
        )
        return cursor, cells, hbm

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def at(self, cursor: Cursor, first: Stage, last: Stage | None = None) -> jax.Array:
        stage = field(self.trace, cursor[0], Record.STAGE)
        there = stage == first if last is None else (stage >= first) & (stage <= last)
        return there & (cursor[0] < self.end)

    def step(self, cursor: Cursor) -> Step:
        return step(self.trace, cursor[0], cursor[1])

    def next(self, cursor: Cursor, step: Step) -> Cursor:
        done = step.part + 1 >= step.parts
        return jnp.stack([cursor[0] + done.astype(jnp.int32), jnp.where(done, 0, step.part + 1)])

    def first_row(self, stage: Stage, step: Step) -> jax.Array:
        bases = [getattr(self.layout, s.region) for s in SEMANTICS.values() if s.stage is stage]
        return jnp.asarray(np.array(bases, np.int32))[step.branch] + step.target

    # -- the stages ---------------------------------------------------------------------------------------------------

    def matmul(self, cells: jax.Array, hbm: jax.Array, cursor: Cursor, m_accum: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        run = [lambda c, h, m, s, f=f: f(View(self.layout, c, h, m), s) for f in branches(Stage.MATMUL)]
        return self.next(cursor, s), lax.switch(s.branch, run, cells, hbm, m_accum, s)

    def write(self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, cells: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        size = self.config.blen
        start = (written_row(s, self.config), s.rd_offset)
        old = lax.dynamic_slice(cells, start, (size, size), allow_negative_indices=False)
        (function,) = branches(Stage.WRITE)
        new = function(View(self.layout, cells, hbm, m_accum), s, old)
        return self.next(cursor, s), lax.dynamic_update_slice(cells, new, start, allow_negative_indices=False)

    def row(self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, cells: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        run = [lambda c, h, m, s, f=f: f(View(self.layout, c, h, m), s) for f in branches(Stage.ROW)]
        new = lax.switch(s.branch, run, cells, hbm, m_accum, s)
        start = (self.first_row(Stage.ROW, s) + s.part, jnp.int32(0))
        return self.next(cursor, s), lax.dynamic_update_slice(cells, new[None], start, allow_negative_indices=False)

    def wide(self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, cells: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        run = [lambda c, h, m, s, f=f: f(View(self.layout, c, h, m), s) for f in branches(Stage.WIDE)]
        new = lax.switch(s.branch, run, cells, hbm, m_accum, s)
        start = (self.first_row(Stage.WIDE, s) + s.part * wide_rows(self.config), jnp.int32(0))
        return self.next(cursor, s), lax.dynamic_update_slice(cells, new, start, allow_negative_indices=False)

    def topk(self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, cells: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        (function,) = branches(Stage.TOPK)
        weights, indices, count = function(View(self.layout, cells, hbm, m_accum), s)
        flat = cells.reshape(-1)
        patterns = lax.bitcast_convert_type(indices, jnp.float32)
        for region, entry, values in ((self.layout.fp_sram, s.rd, weights), (self.layout.int_sram, s.rs2, patterns)):
            start = (region * self.config.vlen + entry,)
            old = lax.dynamic_slice(flat, start, (TOPK_ENTRIES,), allow_negative_indices=False)
            new = jnp.where(jnp.arange(TOPK_ENTRIES) < count, values, old)
            flat = lax.dynamic_update_slice(flat, new, start, allow_negative_indices=False)
        return self.next(cursor, s), flat.reshape(cells.shape)

    def store(self, m_accum: jax.Array, cells: jax.Array, cursor: Cursor, hbm: jax.Array) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        (function,) = branches(Stage.STORE)
        elements, scales = function(View(self.layout, cells, hbm, m_accum), s)
        transfers = Transfers.of(self.config).vector
        is_kv = s.argument != 0
        pick = lambda name: jnp.where(is_kv, getattr(transfers[1], name), getattr(transfers[0], name))
        low, _ = element_address(u32(s.rs1), u32(s.rs1_offset), s.mask, s.part)
        hbm = _write_bytes(hbm, low, elements, pick("element_bytes"))
        low, _ = scale_address(u32(s.rs2), u32(s.rs2_offset), s.mask, s.part, pick("ratio"))
        return self.next(cursor, s), _write_bytes(hbm, low, scales, pick("scale_bytes"))


def _write_bytes(hbm: jax.Array, low: jax.Array, data: jax.Array, count: jax.Array) -> jax.Array:
    """``hbm`` with the first ``count`` bytes of ``data`` at ``low``; the bytes behind them stay."""
    size = data.shape[0]
    if size == 0:
        return hbm
    # Near the end of what is allocated the window starts earlier.
    start = jnp.minimum(low.astype(jnp.int32), hbm.shape[0] - size)
    old = lax.dynamic_slice(hbm, (start,), (size,), allow_negative_indices=False)
    index = jnp.arange(size, dtype=jnp.int32) - (low.astype(jnp.int32) - start)
    wanted = (index >= 0) & (index < count)
    new = jnp.where(wanted, data[jnp.clip(index, 0, size - 1)], old)
    return lax.dynamic_update_slice(hbm, new, (start,), allow_negative_indices=False)


# -- between the readable state and what runs -------------------------------------------------------------------------


def pack_memories(layout: Layout, state: MachineState) -> Memories:
    """The memories and float registers of a state as the datapath holds them."""
    lanes = layout.config.vlen

    def rows(values: jax.Array) -> jax.Array:
        flat = values.reshape(-1)
        return jnp.pad(flat, (0, -flat.shape[0] % lanes)).reshape(-1, lanes)

    parts = [state.vram, rows(state.mram), rows(state.fp_sram)]
    parts += [rows(lax.bitcast_convert_type(state.int_sram, jnp.float32)), rows(state.f), rows(state.bmm_scale)]
    parts += [rows(state.v_accum), rows(state.hv_accum), rows(state.hm_accum)]
    used = sum(part.shape[0] for part in parts)
    cells = jnp.concatenate([*parts, jnp.zeros((layout.rows - used, lanes), jnp.float32)])
    # A store writes a window of a whole row: a smaller HBM is filled up while it runs.
    window = max(max(t.element_bytes, t.scale_bytes) for t in Transfers.of(layout.config).vector)
    return Memories(cells, state.m_accum, jnp.pad(state.hbm, (0, max(window - state.hbm.shape[0], 0))))


def unpack_memories(layout: Layout, memories: Memories, state: MachineState, fresh: jax.Array) -> MachineState:
    """``state`` with its memories and float registers taken from what ran; ``fresh`` has a bit per drained accumulator."""
    cells, config = memories.cells, layout.config

    def values(first: int, shape: tuple[int, ...]) -> jax.Array:
        count = int(np.prod(shape))
        return cells[first : first - (-count // config.vlen)].reshape(-1)[:count].reshape(shape)

    def accumulator(kind: Accumulator, held: jax.Array) -> jax.Array:
        return jnp.where((fresh >> np.uint32(kind)) & 1 == 1, jnp.float32(0), held)

    heads, mlen = config.broadcast_amount, config.mlen
    return state.replace(
        vram=cells[: layout.vram_rows],
        mram=values(layout.mram, (config.tiles, mlen, mlen)),
        fp_sram=values(layout.fp_sram, (SRAM_ENTRIES,)),
        int_sram=lax.bitcast_convert_type(values(layout.int_sram, (SRAM_ENTRIES,)), jnp.uint32),
        f=values(layout.f, (8,)),
        m_accum=accumulator(Accumulator.M, memories.m_accum),
        v_accum=accumulator(Accumulator.V, values(layout.v_accum, (config.blen,))),
        hv_accum=accumulator(Accumulator.HV, values(layout.hv_accum, (heads, mlen))),
        hm_accum=accumulator(Accumulator.HM, values(layout.hm_accum, (heads, mlen, mlen))),
        hbm=memories.hbm[: state.hbm.shape[0]],
    )
