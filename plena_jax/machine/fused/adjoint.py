"""The adjoint of a schedule: its steps in reverse.

Every value has a slot of its own, so that after a run all operands are still there, and the way back needs no journal.
A step takes the cotangents of its results, pulls them back through its operations, and adds them where the operands
are.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.config import Formats
from plena_jax.machine.adjoint import Floats
from plena_jax.machine.datapath import spread
from plena_jax.machine.fused.execute import PRODUCTS, WideSteps, gather
from plena_jax.machine.fused.families import KINDS, OF_SCALARS, WIDE, Entry, Family, transfer_step, unit
from plena_jax.machine.fused.moves import each_move
from plena_jax.machine.fused.tables import Move, Plan, Tables
from plena_jax.machine.journal import store_window, stored_window
from plena_jax.machine.memories import merged
from plena_jax.machine.replay import pull_back
from plena_jax.machine.semantics.memory import h_prefetch_m, h_prefetch_v, h_store_v

_TRANSFERS = {
    Family.PREFETCH_M: (h_prefetch_m, 0),
    Family.PREFETCH_M_KV: (h_prefetch_m, 1),
    Family.PREFETCH_V: (h_prefetch_v, 0),
    Family.PREFETCH_V_KV: (h_prefetch_v, 1),
}
#: Families of one or two operands, which are rows or scalars.
_SIMPLE = frozenset(
    {
        *(Family.ADD, Family.MULTIPLY, Family.SELECT, Family.EXP, Family.RECIPROCAL, Family.SQRT),
        *OF_SCALARS.values(),
        *(Family.SHIFT, Family.SUM, Family.SUM_MASKED, Family.MAX, Family.MAX_MASKED, Family.WRITE_OUT),
    }
)
_HIGHEST = lax.Precision.HIGHEST


class Adjoint:
    """The way back over one piece."""

    def __init__(
        self, plan: Plan, precision: Formats | None, tables: Tables, values: jax.Array, hbm: jax.Array, careful: Any
    ) -> None:
        """A way back.

        Args:
            plan, precision, tables: what was run.
            values: all values, after the run.
            hbm, careful: as they were, of any time.
        """
        self.plan, self.config, self.tables, self.values = plan, plan.config, tables, values
        self.hbm = hbm
        self.steps = WideSteps(plan, precision, tables)
        self.machine = self.steps.machine(hbm, careful)

    def run_back(self, bar: Floats) -> Floats:
        """Cotangents at the start from those at the end."""
        bar, values_bar = self.from_memories(bar)

        simple = [(number, f, size) for number, f, size in self.steps.branches if f in _SIMPLE]
        others = [(number, f, size) for number, f, size in self.steps.branches if f not in _SIMPLE]
        runs: list[Any] = [partial(self.simple, family, size) for _, family, size in simple]
        # The last one is for steps that are not simple.
        runs.append(lambda step, bar: (jnp.zeros(2 * WIDE, jnp.int32), jnp.zeros((2 * WIDE, self.config.vlen))))
        places = jnp.full(len(self.plan.buckets), len(simple), jnp.int32)
        places = places.at[jnp.asarray([number for number, _, _ in simple], jnp.int32)].set(jnp.arange(len(simple)))

        def turn(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            index, values_bar, hbm_bar = carry
            step = self.steps.step(index)
            # Branches return what is added, not all cotangents: these would be copied.
            slots, added = lax.switch(places[step[0]], runs, step, values_bar)
            values_bar = values_bar.at[slots].add(added, mode="promise_in_bounds")
            values_bar, hbm_bar = self._others(others, step, values_bar, hbm_bar)
            return index - 1, values_bar, hbm_bar

        start = (self.tables.length - 1, values_bar, bar.hbm)
        _, values_bar, hbm_bar = lax.while_loop(lambda c: c[0] >= 0, turn, start)
        return self.to_memories(bar._replace(hbm=hbm_bar), values_bar)

    def _others(
        self, branches: list[tuple[int, Family, int]], step: jax.Array, bar: jax.Array, hbm_bar: jax.Array
    ) -> Any:
        """Cotangents after a step, if it is one of these."""
        runs: list[tuple[Any, Any]] = [
            (step[0] == number, partial(self.branch, family, size, step)) for number, family, size in branches
        ]
        if self.plan.stores:
            runs.append((step[0] >= self.steps.first_store, partial(self.store, step)))
        carry = bar, hbm_bar
        for holds, run in runs:
            # A loop of one turn or none changes memory in place, where a conditional would copy it.
            once = lambda c, run=run: (jnp.bool_(False), run(*c[1]))
            _, carry = lax.while_loop(lambda c: c[0], once, (holds, carry))
        return carry

    # -- one step -----------------------------------------------------------------------------------------------------

    def taken(self, step: jax.Array, rows: int, bar: jax.Array) -> jax.Array:
        """float32 [rows, VLEN]: cotangents of a step's own results, zero behind them."""
        start = (step[1], jnp.int32(0))
        block = lax.dynamic_slice(bar, start, (rows, self.config.vlen), allow_negative_indices=False)
        return jnp.where(jnp.arange(rows)[:, None] < step[4], block, jnp.float32(0))

    def branch(
        self, family: Family, size: int, step: jax.Array, bar: jax.Array, hbm_bar: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Cotangents after a step, on the way back."""
        if family in PRODUCTS:
            return self.product(size, step, bar), hbm_bar
        if family is Family.ASSEMBLE:
            return self.assemble(size, step, bar), hbm_bar
        if family in _TRANSFERS:
            entries, new, own = self._entries(family, size, step, bar)
            return bar, self.load(family, entries, new, own, hbm_bar)
        slots, added = self.added(family, size, step, bar)
        return bar.at[slots].add(added, mode="promise_in_bounds"), hbm_bar

    def simple(self, family: Family, size: int, step: jax.Array, bar: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a step of few operands adds, filled up to a common size."""
        slots, added = self.added(family, size, step, bar)
        missing = 2 * WIDE - len(slots)
        return jnp.pad(slots, (0, missing)), jnp.pad(added, ((0, missing), (0, 0)))

    def _entries(
        self, family: Family, size: int, step: jax.Array, bar: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Entries of a step, cotangents of their results, and which entries are its own."""
        rows = unit(family, self.config)
        new = self.taken(step, size * rows, bar).reshape(size, rows, -1)
        return self.steps.entries(family, size, step), new, jnp.arange(size) * rows < step[4]

    def added(self, family: Family, size: int, step: jax.Array, bar: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Slots of all operands, and their cotangents."""
        entries, new, own = self._entries(family, size, step, bar)
        slots = self.steps.operands(family, entries)

        def one(entry: jax.Array, operands: jax.Array, cotangent: jax.Array) -> jax.Array:
            _, transpose = jax.vjp(lambda r: KINDS[family].compute(self.machine, entry, r), operands)
            return transpose(cotangent)[0]

        operands = lax.optimization_barrier(gather(self.values, slots))
        added = jax.vmap(one)(entries, operands, new)
        # What stands behind a step's own entries may have any derivative.
        added = jnp.where(own[:, None, None], added, jnp.float32(0)).reshape(-1, self.config.vlen)
        return jnp.where(own[:, None], slots, 0).reshape(-1), added

    def product(self, size: int, step: jax.Array, bar: jax.Array) -> jax.Array:
        """Of rows times tiles: cotangents of both factors of each term."""
        mlen, new = self.config.mlen, self.taken(step, size, bar)
        if self.plan.clipped:
            total = lax.fori_loop(0, step[3], partial(self._term, size, step), jnp.zeros((size, mlen), jnp.float32))
            _, transpose = jax.vjp(lambda t: self.steps.rounded(self.machine, t, step), total)
            (new,) = transpose(new)

        def turn(term: Any, bar: jax.Array) -> jax.Array:
            at, x, tile, turned = self._factors(size, step, term)
            x_bar = jnp.dot(new, tile.T, precision=_HIGHEST)
            tile_bar = jnp.dot(x.T, new, precision=_HIGHEST)
            tile_bar = jnp.where(turned, tile_bar.T, tile_bar)
            start = (at[0] >> 1, jnp.int32(0))
            old = lax.dynamic_slice(bar, start, (mlen, mlen), allow_negative_indices=False)
            bar = lax.dynamic_update_slice(bar, old + tile_bar, start, allow_negative_indices=False)
            return bar.at[at[1:]].add(x_bar, mode="promise_in_bounds")

        return lax.fori_loop(0, step[3], turn, bar)

    def _factors(self, size: int, step: jax.Array, term: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        at = self.steps.listed(step[2] + term * (1 + size), 1 + size)
        mlen, start = self.config.mlen, (at[0] >> 1, jnp.int32(0))
        tile = lax.dynamic_slice(self.values, start, (mlen, mlen), allow_negative_indices=False)
        turned = at[0] & 1 == 1
        return at, gather(self.values, at[1:]), jnp.where(turned, tile.T, tile), turned

    def _term(self, size: int, step: jax.Array, term: Any, total: jax.Array) -> jax.Array:
        _, x, tile, _ = self._factors(size, step, term)
        return total + jnp.dot(x, tile, precision=_HIGHEST)

    def assemble(self, size: int, step: jax.Array, bar: jax.Array) -> jax.Array:
        """Of rows put together: cotangents of their blocks."""
        codes, blen = self.steps.codes(size, step), self.config.blen
        new = self.taken(step, size, bar)
        own = jnp.arange(size)[:, None] < step[4]
        blocks = jnp.where(own, jnp.where(codes < 0, ~codes, codes), 0)
        if self.plan.clipped:
            rows = gather(self.values.reshape(-1, blen), blocks).reshape(size, -1)
            kept = jnp.repeat(codes < 0, blen, axis=1)
            _, transpose = jax.vjp(self.machine.view(rows, rows).round, rows)
            new = jnp.where(kept, new, transpose(new)[0])
        added = bar.reshape(-1, blen).at[blocks].add(new.reshape(size, -1, blen), mode="promise_in_bounds")
        return added.reshape(bar.shape)

    # -- HBM ----------------------------------------------------------------------------------------------------------

    def load(self, family: Family, entries: jax.Array, new: jax.Array, own: jax.Array, hbm_bar: jax.Array) -> jax.Array:
        """Of prefetches: cotangents of the cells; bytes have none."""
        if self.hbm.dtype != jnp.float32:
            return hbm_bar
        function, argument = _TRANSFERS[family]
        none = jnp.zeros((1, self.config.vlen), jnp.float32)

        def one(entry: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            output = lambda result: (result, cotangent.reshape(result.shape))
            view = self.machine.view(none, none)
            ((site, taken),), _ = pull_back(function, view, transfer_step(entry, argument), output)
            return site.index, site.there, taken

        index, there, taken = jax.vmap(one)(entries, new)
        added = jnp.where(there & own[:, None, None], taken, jnp.float32(0))
        return hbm_bar.at[jnp.where(there, index, 0)].add(added, mode="drop")

    def store(self, step: jax.Array, bar: jax.Array, hbm_bar: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of stores on the values face, the last one first: what they overwrote has no cotangent from here on."""
        entries = self.steps.stores(step)

        def turn(number: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            bar, hbm_bar = carry
            entry = entries[step[3] - 1 - number]
            s, row = transfer_step(entry, entry[Entry.ARGUMENT]), self.values[entry[Entry.D]]
            start, size = (stored_window(self.config, s, hbm_bar),), store_window(self.config)
            new = lax.dynamic_slice(hbm_bar, start, (size,), allow_negative_indices=False)

            def place(row: jax.Array, old: jax.Array) -> jax.Array:
                stored = h_store_v(self.machine.view(row[None], row[None]), s)
                first, data, wanted = spread(self.config, s, stored)
                return merged(old, first - start[0], data, wanted)

            _, transpose = jax.vjp(place, row, jnp.zeros(size, jnp.float32))
            row_bar, old_bar = transpose(new)
            hbm_bar = lax.dynamic_update_slice(hbm_bar, old_bar, start, allow_negative_indices=False)
            return bar.at[entry[Entry.D]].add(row_bar, mode="promise_in_bounds"), hbm_bar

        if self.hbm.dtype != jnp.float32:
            return bar, hbm_bar  # refused before
        return lax.fori_loop(0, step[3], turn, (bar, hbm_bar))

    # -- between memories and values ----------------------------------------------------------------------------------

    def from_memories(self, bar: Floats) -> tuple[Floats, jax.Array]:
        """Cotangents of memories without those of what was written at the end, and cotangents of values."""
        values_bar = jnp.zeros_like(self.values)
        vram, cells, m_accum, _ = bar
        vlen, blen = self.config.vlen, self.config.blen

        def take(
            kind: Move, memory: jax.Array, values_bar: jax.Array, rows: int, lanes: int, at_lane: bool
        ) -> tuple[jax.Array, jax.Array]:
            def one(carry: tuple[jax.Array, jax.Array], move: jax.Array) -> tuple[jax.Array, jax.Array]:
                memory, values_bar = carry
                # A scalar's lane is one of the memory, an accumulator's one of the value.
                there, here = (move[2], jnp.int32(0)) if not at_lane else (jnp.int32(0), move[2])
                new = lax.dynamic_slice(memory, (move[1], there), (rows, lanes), allow_negative_indices=False)
                old = lax.dynamic_slice(values_bar, (move[0], here), (rows, lanes), allow_negative_indices=False)
                # The zeros depend on what was read, so that they come after it.
                zeros = jnp.where(move[0] < 0, new, jnp.float32(0))
                put = partial(lax.dynamic_update_slice, allow_negative_indices=False)
                return put(memory, zeros, (move[1], there)), put(values_bar, old + new, (move[0], here))

            return each_move(self.tables, kind, one, (memory, values_bar))

        cells, values_bar = take(Move.TO_V_ACCUM, cells, values_bar, 1, blen, True)
        m_accum, values_bar = take(Move.TO_M_ACCUM, m_accum, values_bar, 1, blen, True)
        cells, values_bar = take(Move.TO_SCALAR, cells, values_bar, 1, 1, False)
        for kind, rows in (
            *((Move.TO_CELLS_ROW, 1), (Move.TO_CELLS_BLOCK, WIDE)),
            *((Move.TO_TILE_ROW, 1), (Move.TO_TILE_BLOCK, WIDE)),
        ):
            if cells.shape[0] >= rows:
                cells, values_bar = take(kind, cells, values_bar, rows, vlen, False)
        for kind, rows in ((Move.TO_VRAM_ROW, 1), (Move.TO_VRAM_BLOCK, WIDE)):
            if vram.shape[0] >= rows:
                vram, values_bar = take(kind, vram, values_bar, rows, vlen, False)
        return bar._replace(vram=vram, cells=cells, m_accum=m_accum), values_bar

    def to_memories(self, bar: Floats, values_bar: jax.Array) -> Floats:
        """Cotangents of memories with those of the values that were there at the start."""
        vram, cells, m_accum, _ = bar
        vlen, blen = self.config.vlen, self.config.blen

        def give(kind: Move, memory: jax.Array, rows: int, lanes: int) -> jax.Array:
            def one(memory: jax.Array, move: jax.Array) -> jax.Array:
                width = vlen if kind is Move.SCALAR else lanes
                block = lax.dynamic_slice(
                    values_bar, (move[0], jnp.int32(0)), (rows, width), allow_negative_indices=False
                )
                block = block.sum(axis=1, keepdims=True) if kind is Move.SCALAR else block
                at = (move[1], move[2])
                old = lax.dynamic_slice(memory, at, (rows, lanes), allow_negative_indices=False)
                return lax.dynamic_update_slice(memory, old + block, at, allow_negative_indices=False)

            return each_move(self.tables, kind, one, memory)

        for kind, rows in ((Move.VRAM_BLOCK, WIDE), (Move.VRAM_ROW, 1)):
            vram = give(kind, vram, rows, vlen) if vram.shape[0] >= rows else vram
        for kind, rows in (
            *((Move.TILE_BLOCK, WIDE), (Move.TILE_ROW, 1)),
            *((Move.CELLS_BLOCK, WIDE), (Move.CELLS_ROW, 1)),
        ):
            cells = give(kind, cells, rows, vlen) if cells.shape[0] >= rows else cells
        cells = give(Move.SCALAR, cells, 1, 1)
        m_accum = give(Move.M_ACCUM, m_accum, 1, blen)
        return bar._replace(vram=vram, cells=cells, m_accum=m_accum)
