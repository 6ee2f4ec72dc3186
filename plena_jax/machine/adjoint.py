"""The adjoint of a run: the records in reverse, in place.

A step reads, computes and writes a few rows. Its adjoint takes the cotangents of what was written and clears them, puts
back what was there before, pulls the cotangents back through the computation, which now finds its operands where they
were, and adds the results where these were read. Nothing is as large as a memory, so a step costs the same whatever the
size of memories.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.config import Formats
from plena_jax.machine.datapath import Cursor, Sweep, spread
from plena_jax.machine.journal import (
    Journal,
    Plan,
    block_start,
    entry,
    stored_window,
    topk_rows,
)
from plena_jax.machine.memories import Memories, first_row, held, merged, pick_rows, put_rows
from plena_jax.machine.record import Record, Step, field
from plena_jax.machine.replay import Memory, Read, Site, add_block, add_reads, pull_back, reads_of
from plena_jax.machine.semantics import Stage, branches
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.view import block_of


class Floats(NamedTuple):
    """The memories that have derivatives: of a run, or their tangents or cotangents.

    Attributes:
        vram, cells: float32 [rows, VLEN].
        m_accum: float32 [BLEN, BLEN].
        hbm: float32 [cells]; a single zero where HBM shows its bytes.
    """

    vram: jax.Array
    cells: jax.Array
    m_accum: jax.Array
    hbm: jax.Array


class _Carry(NamedTuple):
    """Where the adjoint is, memories as they were before what comes next, and cotangents."""

    cursor: Cursor
    memories: Memories
    bar: Floats


class Adjoint(Sweep):
    """The stage loops over one trace in reverse. Each turn goes back by at least one record."""

    def __init__(
        self, plan: Plan, trace: jax.Array, end: jax.Array, precision: Formats | None, journal: Journal
    ) -> None:
        super().__init__(plan.config, trace, end, precision, plan.clipped, plan.used)
        self.plan, self.journal = plan, journal

    def run_back(self, memories: Memories, bar: Floats) -> Floats:
        """Cotangents of the memories before the first record.

        Args:
            memories: after the last record.
            bar: their cotangents.
        """
        start = _Carry(self._last_part(self.end - 1), memories, bar)
        return lax.while_loop(lambda c: c.cursor[0] >= 0, self._turn, start).bar

    def first_not_finite(self, memories: Memories, bar: Floats) -> jax.Array:
        """int32: the record whose step makes a cotangent infinite or NaN where all were finite; -1 for none.

        Looks at all of them after each step.
        """
        start = _Carry(self._last_part(self.end - 1), memories, bar)

        def one_step(carry: tuple[_Carry, jax.Array]) -> tuple[_Carry, jax.Array]:
            c, _ = carry
            after = _OneStep(self, c.cursor)._turn(c)
            return after, jnp.where(all_finite(after.bar), jnp.int32(-1), c.cursor[0])

        goes_on = lambda carry: (carry[0].cursor[0] >= 0) & (carry[1] < 0) & all_finite(bar)
        return lax.while_loop(goes_on, one_step, (start, jnp.int32(-1)))[1]

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def at(self, cursor: Cursor, first: Stage, last: Stage | None = None) -> jax.Array:
        """Whether the next record is of a stage."""
        return (field(self.trace, cursor[0], Record.STAGE) == first) & (cursor[0] >= 0)

    def next(self, cursor: Cursor, step: Step) -> Cursor:
        """The cursor before a part."""
        return jnp.where(step.part > 0, jnp.stack([cursor[0], step.part - 1]), self._last_part(cursor[0] - 1))

    def _last_part(self, index: jax.Array) -> Cursor:
        parts = field(self.trace, jnp.maximum(index, 0), Record.PARTS)
        return jnp.stack([index, jnp.maximum(parts, 1) - 1])

    def _turn(self, c: _Carry) -> _Carry:
        if self.functions(Stage.STORE):
            c = self._stores(c)
        if self.functions(Stage.TOPK):
            c = self._topks(c)
        for index in self.functions(Stage.WIDE):
            c = self._rows(c, Stage.WIDE, index)
        light, heavy = self._weights(c)
        for index in heavy:
            c = self._rows(c, Stage.ROW, index)
        if light:
            c = self._light_rows(c, light)
        if self.functions(Stage.WRITE):
            c = self._writes(c)
        for index in self.functions(Stage.MATMUL):
            c = self._products(c, index)
        return c

    def _is(self, cursor: Cursor, stage: Stage, index: int) -> jax.Array:
        return self.at(cursor, stage) & (field(self.trace, cursor[0], Record.BRANCH) == index)

    # -- matrix products ----------------------------------------------------------------------------------------------

    def _products(self, c: _Carry, index: int) -> _Carry:
        """M_MM and the like: m_accum += x @ w."""
        function = branches(Stage.MATMUL)[index].function
        memories = c.memories
        view = self.view(memories.vram, memories.cells, memories.hbm, memories.m_accum)

        def body(carry: tuple[Cursor, jax.Array, jax.Array, jax.Array]) -> tuple[Any, ...]:
            cursor, vram, cells, m_accum = carry
            s = self.step(cursor)

            def output(operands: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
                x, w = operands
                dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
                return (x, w), (dot(m_accum, w.T), dot(x.T, m_accum))

            reads, _ = pull_back(function, view, s, output)
            bar = add_reads({Memory.VRAM: vram, Memory.CELLS: cells}, reads)
            m_accum = jnp.where(s.fresh == 1, jnp.float32(0), m_accum)
            return self.next(cursor, s), bar[Memory.VRAM], bar[Memory.CELLS], m_accum

        start = (c.cursor, c.bar.vram, c.bar.cells, c.bar.m_accum)
        goes_on = lambda carry: self._is(carry[0], Stage.MATMUL, index)
        cursor, vram, cells, m_accum = lax.while_loop(goes_on, body, start)
        return c._replace(cursor=cursor, bar=c.bar._replace(vram=vram, cells=cells, m_accum=m_accum))

    def _writes(self, c: _Carry) -> _Carry:
        """M_MM_WO."""
        (semantic,), size, memories = branches(Stage.WRITE), self.config.blen, c.memories

        def body(carry: tuple[Cursor, jax.Array, jax.Array, jax.Array]) -> tuple[Any, ...]:
            cursor, vram, bar, bar_m = carry
            s = self.step(cursor)
            m_accum, old = entry(self.journal.write, s)
            row, start = block_start(self.config, s, vram)
            read = partial(lax.dynamic_slice, start_indices=start, slice_sizes=(size, size))
            new_bar = held(s, partial(read, allow_negative_indices=False), bar)

            def write(m_accum: jax.Array, old: jax.Array) -> jax.Array:
                view = self.view(vram, memories.cells, memories.hbm, m_accum)
                return semantic.function(view, s, old, row - start[0])

            _, transpose = jax.vjp(write, m_accum, old)
            more, old_bar = transpose(new_bar)
            put = partial(lax.dynamic_update_slice, start_indices=start, allow_negative_indices=False)
            return self.next(cursor, s), put(vram, old), put(bar, old_bar), bar_m + more

        start = (c.cursor, memories.vram, c.bar.vram, c.bar.m_accum)
        cursor, vram, bar, bar_m = lax.while_loop(lambda carry: self.at(carry[0], Stage.WRITE), body, start)
        return _Carry(cursor, memories._replace(vram=vram), c.bar._replace(vram=bar, m_accum=bar_m))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _rows(self, c: _Carry, stage: Stage, index: int) -> _Carry:
        """One function that writes rows."""
        function = branches(stage)[index].function
        rows = wide_rows(self.config) if stage is Stage.WIDE else 1
        journal = self.journal.wide if stage is Stage.WIDE else self.journal.row
        hbm = c.memories.hbm
        reads_hbm = any(site.memory is Memory.HBM for site in self._sites(function, c))

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            cursor, vram, cells, bars = carry
            s = self.step(cursor)
            first, in_vram = first_row(self.config, stage, s, rows)
            bar, bar_vram, bar_cells = _take(s, in_vram, first, rows, bars[0], bars[1])
            vram, cells = put_rows(in_vram, first, entry(journal, s).reshape(rows, -1), vram, cells)
            view = self.view(vram, cells, hbm, c.memories.m_accum)
            reads, _ = pull_back(function, view, s, lambda new: (new, bar.reshape(new.shape)))
            given = {Memory.VRAM: bar_vram, Memory.CELLS: bar_cells}
            given |= {Memory.HBM: bars[2]} if reads_hbm else {}
            added = add_reads(given, reads)
            return self.next(cursor, s), vram, cells, tuple(added[m] for m in given)

        bars = (c.bar.vram, c.bar.cells, *([c.bar.hbm] if reads_hbm else []))
        start = (c.cursor, c.memories.vram, c.memories.cells, bars)
        goes_on = lambda carry: self._is(carry[0], stage, index)
        cursor, vram, cells, bars = lax.while_loop(goes_on, body, start)
        names = ("vram", "cells", "hbm")[: len(bars)]
        bar = c.bar._replace(**dict(zip(names, bars, strict=True)))
        return _Carry(cursor, c.memories._replace(vram=vram, cells=cells), bar)

    def _sites(self, function: Any, c: _Carry) -> list[Any]:
        """What a function reads; only shapes and memories of it mean anything."""
        found: list[Site] = []

        def look(memories: Memories, cursor: Cursor) -> None:
            view = self.view(memories.vram, memories.cells, memories.hbm, memories.m_accum)
            sites, values = reads_of(function, view, self.step(cursor))
            found.extend(
                s._replace(row=v.shape, lane=None, index=None, there=None) for s, v in zip(sites, values, strict=True)
            )

        jax.eval_shape(look, c.memories, c.cursor)
        return found

    def _weights(self, c: _Carry) -> tuple[dict[int, list[Any]], list[int]]:
        """The ROW functions that read only a few rows, which share a loop, with what they read; and the others."""
        light, heavy = {}, []
        for index in self.functions(Stage.ROW):
            sites = self._sites(branches(Stage.ROW)[index].function, c)
            if all(site.memory is not Memory.HBM and site.row[0] <= 2 for site in sites):
                light[index] = sites
            else:
                heavy.append(index)
        return light, heavy

    def _light_rows(self, c: _Carry, light: dict[int, list[Any]]) -> _Carry:
        """Functions that read a few rows: what they add to cotangents is brought into one form."""
        slots = {
            memory: max(sum(site.row[0] for site in sites if site.memory is memory) for sites in light.values())
            for memory in (Memory.VRAM, Memory.CELLS)
        }
        place = jnp.array(
            [list(light).index(i) if i in light else 0 for i in range(len(branches(Stage.ROW)))], jnp.int32
        )
        hbm, m_accum = c.memories.hbm, c.memories.m_accum

        def reads(index: int, vram: jax.Array, cells: jax.Array, cursor: Cursor, bar: jax.Array) -> Any:
            function = branches(Stage.ROW)[index].function
            view = self.view(vram, cells, hbm, m_accum)
            found, _ = pull_back(function, view, self.step(cursor), lambda new: (new, bar[0]))
            return [_slots([r for r in found if r.site.memory is m], n, self.config.vlen) for m, n in slots.items()]

        def here(cursor: Cursor) -> jax.Array:
            branch = field(self.trace, cursor[0], Record.BRANCH)
            is_light = jnp.zeros((), bool)
            for index in light:
                is_light = is_light | (branch == index)
            return self.at(cursor, Stage.ROW) & is_light

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            cursor, vram, cells, bar_vram, bar_cells = carry
            s = self.step(cursor)
            first, in_vram = first_row(self.config, Stage.ROW, s, 1)
            bar, bar_vram, bar_cells = _take(s, in_vram, first, 1, bar_vram, bar_cells)
            vram, cells = put_rows(in_vram, first, entry(self.journal.row, s)[None], vram, cells)
            added = lax.switch(place[s.branch], [partial(reads, i) for i in light], vram, cells, cursor, bar)
            bars = []
            for memory, (rows, values) in zip((bar_vram, bar_cells), added, strict=True):
                for slot in range(len(rows)):
                    memory = add_block(memory, rows[slot], 0, values[slot : slot + 1])
                bars.append(memory)
            return self.next(cursor, s), vram, cells, *bars

        start = (c.cursor, c.memories.vram, c.memories.cells, c.bar.vram, c.bar.cells)
        cursor, vram, cells, bar_vram, bar_cells = lax.while_loop(lambda carry: here(carry[0]), body, start)
        memories = c.memories._replace(vram=vram, cells=cells)
        return _Carry(cursor, memories, c.bar._replace(vram=bar_vram, cells=bar_cells))

    # -- the seldom ones ----------------------------------------------------------------------------------------------

    def _topks(self, c: _Carry) -> _Carry:
        """V_TOPK: weights to FP SRAM."""
        (semantic,), rows, memories = branches(Stage.TOPK), topk_rows(self.config), c.memories

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            cursor, cells, bar_vram, bar_cells = carry
            s = self.step(cursor)
            new_bar = held(s, lambda bar: block_of(bar, s.rd, rows), bar_cells).reshape(-1)
            old = entry(self.journal.topk, s)
            put = lambda memory, block: lax.dynamic_update_slice(
                memory, block, (s.rd, jnp.int32(0)), allow_negative_indices=False
            )
            cells = put(cells, old)
            view = self.view(memories.vram, cells, memories.hbm, memories.m_accum)
            index = jnp.arange(new_bar.shape[0], dtype=jnp.int32) - s.rd_lane

            def output(result: Any) -> tuple[jax.Array, jax.Array]:
                weights, _, count = result
                entries = jnp.arange(len(weights), dtype=jnp.int32)
                taken = new_bar.at[jnp.clip(entries + s.rd_lane, 0, len(new_bar) - 1)].get(mode="promise_in_bounds")
                return weights, jnp.where(entries < count, taken, jnp.float32(0))

            reads, (_, _, count) = pull_back(semantic.function, view, s, output)
            kept = jnp.where((index >= 0) & (index < count), jnp.float32(0), new_bar)
            bar = add_reads({Memory.VRAM: bar_vram, Memory.CELLS: put(bar_cells, kept.reshape(rows, -1))}, reads)
            return self.next(cursor, s), cells, bar[Memory.VRAM], bar[Memory.CELLS]

        start = (c.cursor, memories.cells, c.bar.vram, c.bar.cells)
        cursor, cells, vram_bar, cells_bar = lax.while_loop(lambda carry: self.at(carry[0], Stage.TOPK), body, start)
        return _Carry(cursor, memories._replace(cells=cells), c.bar._replace(vram=vram_bar, cells=cells_bar))

    def _stores(self, c: _Carry) -> _Carry:
        """H_STORE_V on the values face."""
        (semantic,), memories = branches(Stage.STORE), c.memories

        def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            cursor, hbm, bar_hbm, bar_vram = carry
            s = self.step(cursor)
            old, start = entry(self.journal.store, s), (stored_window(self.config, s, hbm),)
            read = partial(lax.dynamic_slice, start_indices=start, slice_sizes=old.shape)
            new_bar = held(s, partial(read, allow_negative_indices=False), bar_hbm)
            put = partial(lax.dynamic_update_slice, start_indices=start, allow_negative_indices=False)
            hbm = put(hbm, old)

            def place(row: jax.Array, old: jax.Array) -> jax.Array:
                first, data, wanted = spread(self.config, s, row)
                return merged(old, first - start[0], data, wanted)

            _, transpose = jax.vjp(place, jnp.zeros(self.config.vlen, jnp.float32), old)
            row_bar, old_bar = transpose(new_bar)
            view = self.view(memories.vram, memories.cells, hbm, memories.m_accum)
            reads, _ = pull_back(semantic.function, view, s, lambda row: (row, row_bar))
            bar = add_reads({Memory.VRAM: bar_vram}, reads)
            return self.next(cursor, s), hbm, put(bar_hbm, old_bar), bar[Memory.VRAM]

        start = (c.cursor, memories.hbm, c.bar.hbm, c.bar.vram)
        cursor, hbm, bar_hbm, bar_vram = lax.while_loop(lambda carry: self.at(carry[0], Stage.STORE), body, start)
        return _Carry(cursor, memories._replace(hbm=hbm), c.bar._replace(hbm=bar_hbm, vram=bar_vram))


class _OneStep(Adjoint):
    """The same loops, each for one part of one record."""

    def __init__(self, adjoint: Adjoint, cursor: Cursor) -> None:
        super().__init__(adjoint.plan, adjoint.trace, adjoint.end, adjoint.precision, adjoint.journal)
        self._cursor = cursor

    def at(self, cursor: Cursor, first: Stage, last: Stage | None = None) -> jax.Array:
        return super().at(cursor, first) & jnp.all(cursor == self._cursor)


def all_finite(floats: Floats) -> jax.Array:
    """bool []: whether no value is infinite or NaN."""
    good = jnp.bool_(True)
    for values in floats:
        good = good & jnp.all(jnp.isfinite(values))
    return good


def _take(
    s: Step, in_vram: jax.Array, first: jax.Array, rows: int, vram: jax.Array, cells: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cotangents of rows of either memory, and both memories with zeros there."""
    bar = held(s, partial(pick_rows, in_vram, first, rows), vram, cells)
    # The zeros depend on what was read, so that they come after it.
    zeros = jnp.where(s.parts < 0, bar, jnp.float32(0))
    return bar, *put_rows(in_vram, first, zeros, vram, cells)


def _slots(reads: list[Read], count: int, lanes: int) -> tuple[jax.Array, jax.Array]:
    """Reads of parts of rows as int32 [count] rows and float32 [count, lanes] to be added to them."""
    rows, values = [], []
    for site, cotangent in reads:
        for i in range(cotangent.shape[0]):
            rows.append(jnp.asarray(site.row, jnp.int32) + i)
            value = cotangent[i]
            if value.shape[0] != lanes:
                at = (jnp.asarray(site.lane, jnp.int32),)
                value = lax.dynamic_update_slice(jnp.zeros(lanes, jnp.float32), value, at, allow_negative_indices=False)
            values.append(value)
    missing = count - len(rows)
    rows += [jnp.int32(0)] * missing
    values += [jnp.zeros(lanes, jnp.float32)] * missing
    if not count:
        return jnp.zeros(0, jnp.int32), jnp.zeros((0, lanes), jnp.float32)
    return jnp.stack(rows), jnp.stack(values)
