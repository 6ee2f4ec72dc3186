"""The float side: runs records. One loop for each stage, carrying only what the stage writes.

A loop that carried every memory would copy one at each write of another; a loop for each stage does not, and the stages
of a sweep hand the cursor on as long as the next record is of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import Formats, MachineConfig
from plena_jax.machine.batching import any_lane, in_groups
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import Memories, first_row, has_subnormal, put, put_counted, put_rows
from plena_jax.machine.record import Flag, Record, Step, field, step
from plena_jax.machine.semantics import SEMANTICS, Stage, branch_index, branches
from plena_jax.machine.semantics.matrix import fast_sums, fresh, written_row
from plena_jax.machine.semantics.memory import stored_cells
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.sums import accumulate, is_finite
from plena_jax.machine.transfer import (
    Transfers,
    cell_bits,
    element_address,
    scale_address,
)
from plena_jax.machine.view import View, block_of

#: Functions, as (stage, position among those of the stage).
Used = frozenset[tuple[int, int]]
#: int32 [2]: index of the record, and the part of it that is next.
Cursor = jax.Array


def execute(
    config: MachineConfig,
    memories: Memories,
    trace: jax.Array,
    end: jax.Array,
    precision: Formats | None = None,
    clipped: bool = False,
    used: Used | None = None,
) -> Memories:
    """Run records 0 to ``end`` of ``trace`` int32 [n, 16]; the record at ``end`` must exist, with any content.

    Under ``vmap`` over memories or formats, machines take each step together; on CPU only so many at a time as the
    caches hold. With different records machines run one after the other.

    Args:
        config: the machine.
        memories, trace, end: what to run.
        precision: formats that replace those of ``config``.
        clipped: for derivatives, see :class:`View`.
        used: the functions that occur, all by default. Without stores HBM is not copied for each machine.
    """
    stores = used is None or any(stage == Stage.STORE for stage, _ in used)

    def run(data: tuple[Memories, Formats | None], trace: jax.Array, end: jax.Array) -> Memories:
        memories, precision = data
        sweep = Sweep(config, trace, end, precision, clipped, used)
        final = sweep.run_all(memories)
        # What is not returned is not copied for each machine.
        return final if stores else final._replace(hbm=final.hbm[:1])

    final = in_groups(run, (memories, precision), (trace, end))
    return final if stores else final._replace(hbm=memories.hbm)


class Sweep:
    """The stage loops over one trace. Each turn advances by at least one record."""

    def __init__(
        self,
        config: MachineConfig,
        trace: jax.Array,
        end: jax.Array,
        precision: Formats | None = None,
        clipped: bool = False,
        used: Used | None = None,
    ) -> None:
        self.config, self.trace, self.end = config, trace, end
        self.precision, self.clipped, self.used = precision, clipped, used

    def functions(self, stage: Stage) -> list[int]:
        """Positions among those of their stage of the functions that may occur."""
        return [i for i in range(len(branches(stage))) if self.used is None or (stage, i) in self.used]

    def run_all(self, memories: Memories) -> Memories:
        """The memories after the last record."""
        start = (memories, jnp.zeros(2, jnp.int32))
        memories, _ = lax.while_loop(lambda c: c[1][0] < self.end, lambda c: self.run(*c), start)
        return memories

    def view(
        self,
        vram: jax.Array,
        cells: jax.Array,
        hbm: jax.Array,
        m_accum: jax.Array,
        careful: jax.Array | bool = True,
    ) -> View:
        """What semantic functions see."""
        return View(self.config, vram, cells, hbm, m_accum, careful, self.precision, self.clipped)

    def run(self, memories: Memories, cursor: Cursor) -> tuple[Memories, Cursor]:
        """One turn: what is next of each stage, in their order."""
        vram, cells, m_accum, hbm, int_sram, careful = memories
        if self.functions(Stage.MATMUL):
            cursor, m_accum = self.matmul(vram, cells, hbm, careful, cursor, m_accum)
        if self.functions(Stage.WRITE):
            cursor, vram = lax.while_loop(
                lambda c: self.at(c[0], Stage.WRITE), lambda c: self.write(cells, m_accum, hbm, *c), (cursor, vram)
            )
        if self.functions(Stage.ROW):
            cursor, vram, cells = lax.while_loop(
                lambda c: self.at(c[0], Stage.ROW), lambda c: self.row(m_accum, hbm, *c), (cursor, vram, cells)
            )
        seldom = (cursor, vram, cells, hbm, int_sram, careful)
        stages = [s for s in (Stage.WIDE, Stage.TOPK, Stage.STORE) if self.functions(s)]
        if stages:
            goes_on = lambda c: self.at(c[0], stages[0], stages[-1])
            seldom = lax.while_loop(goes_on, lambda c: self.seldom(m_accum, *c), seldom)
        cursor, vram, cells, hbm, int_sram, careful = seldom
        return Memories(vram, cells, m_accum, hbm, int_sram, careful), cursor

    def seldom(
        self,
        m_accum: jax.Array,
        cursor: Cursor,
        vram: jax.Array,
        cells: jax.Array,
        hbm: jax.Array,
        int_sram: jax.Array,
        careful: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        """The stages from WIDE to STORE, which share a turn so that the others wait for one loop and not for three."""
        if self.functions(Stage.WIDE):
            cursor, vram, cells, careful = lax.while_loop(
                lambda c: self.at(c[0], Stage.WIDE),
                lambda c: self.wide(m_accum, hbm, *c),
                (cursor, vram, cells, careful),
            )
        if self.functions(Stage.TOPK):
            cursor, cells, int_sram = lax.while_loop(
                lambda c: self.at(c[0], Stage.TOPK),
                lambda c: self.topk(vram, m_accum, hbm, *c),
                (cursor, cells, int_sram),
            )
        if self.functions(Stage.STORE):
            cursor, hbm = lax.while_loop(
                lambda c: self.at(c[0], Stage.STORE), lambda c: self.store(vram, cells, m_accum, *c), (cursor, hbm)
            )
        return cursor, vram, cells, hbm, int_sram, careful

    # -- the cursor ---------------------------------------------------------------------------------------------------

    def at(self, cursor: Cursor, first: Stage, last: Stage | None = None) -> jax.Array:
        """Whether the next record is of a stage, or one of several."""
        stage = field(self.trace, cursor[0], Record.STAGE)
        there = stage == first if last is None else (stage >= first) & (stage <= last)
        return there & (cursor[0] < self.end)

    def step(self, cursor: Cursor) -> Step:
        """The next part of the next record."""
        return step(self.trace, cursor[0], cursor[1])

    def next(self, cursor: Cursor, step: Step) -> Cursor:
        """The cursor behind that part."""
        done = step.part + 1 >= step.parts
        return jnp.stack([cursor[0] + done.astype(jnp.int32), jnp.where(done, 0, step.part + 1)])

    # -- matrix products ----------------------------------------------------------------------------------------------

    def matmul(
        self,
        vram: jax.Array,
        cells: jax.Array,
        hbm: jax.Array,
        careful: jax.Array,
        cursor: Cursor,
        m_accum: jax.Array,
    ) -> tuple[Cursor, jax.Array]:
        """Products in a row: in fast arithmetic if that is exact for what came out, else again in careful one."""
        functions = {i: branches(Stage.MATMUL)[i].function for i in self.functions(Stage.MATMUL)}

        Carry = tuple[Cursor, jax.Array]
        Operands = Callable[[Cursor, jax.Array], Any]

        def run(carry: Carry, operands: Operands, add: Callable[..., jax.Array]) -> Carry:
            cursor, m_accum = carry
            s = self.step(cursor)
            x, w = operands(cursor, m_accum)
            return self.next(cursor, s), add(fresh(s, m_accum), x, w)

        def read(cursor: Cursor, m_accum: jax.Array, function: Callable[..., Any]) -> Any:
            return function(self.view(vram, cells, hbm, m_accum), self.step(cursor))

        def read_any(cursor: Cursor, m_accum: jax.Array) -> Any:
            return self.switch(Stage.MATMUL, vram, cells, m_accum, hbm, cursor)

        start = fast = (cursor, m_accum)
        add = fast_sums(self.view(vram, cells, hbm, m_accum))
        for branch, function in functions.items():
            goes_on = partial(self._at_product, branch=branch, careful=careful)
            one = partial(run, operands=partial(read, function=function), add=add)
            fast = lax.while_loop(goes_on, one, fast)
        good = ~any_lane(jnp.any(~is_finite(fast[1]))) & ~careful
        again = jax.tree.map(lambda new, old: jnp.where(good, new, old), fast, start)
        return lax.while_loop(
            lambda c: self.at(c[0], Stage.MATMUL) & ~good, lambda c: run(c, read_any, accumulate), again
        )

    def _at_product(self, carry: tuple[Cursor, jax.Array], branch: int, careful: jax.Array) -> jax.Array:
        cursor, _ = carry
        here = field(self.trace, cursor[0], Record.BRANCH) == branch
        return self.at(cursor, Stage.MATMUL) & here & ~careful

    # -- the other stages ---------------------------------------------------------------------------------------------

    def write(
        self, cells: jax.Array, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, vram: jax.Array
    ) -> tuple[Cursor, jax.Array]:
        """A part of a WRITE instruction."""
        s = self.step(cursor)
        size = self.config.blen
        row = written_row(s, self.config)
        # One row a part may be the last row: the block then starts above it.
        start = (jnp.minimum(row, vram.shape[0] - size), s.rd_lane)
        (semantic,) = branches(Stage.WRITE)
        view = self.view(vram, cells, hbm, m_accum)
        old = lax.dynamic_slice(vram, start, (size, size), allow_negative_indices=False)
        new = semantic.function(view, s, old, row - start[0])
        return self.next(cursor, s), lax.dynamic_update_slice(vram, new, start, allow_negative_indices=False)

    def row(
        self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, vram: jax.Array, cells: jax.Array
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        """A part of a ROW instruction."""
        s = self.step(cursor)
        new = self.switch(Stage.ROW, vram, cells, m_accum, hbm, cursor)
        first, in_vram = first_row(self.config, Stage.ROW, s, 1)
        vram, cells = put_rows(in_vram, first, new[None], vram, cells)
        return self.next(cursor, s), vram, cells

    def wide(
        self,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        vram: jax.Array,
        cells: jax.Array,
        careful: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array, jax.Array]:
        """A part of a WIDE instruction."""
        s = self.step(cursor)
        new = self.switch(Stage.WIDE, vram, cells, m_accum, hbm, cursor, careful)
        first, in_vram = first_row(self.config, Stage.WIDE, s, len(new))
        vram, cells = put_rows(in_vram, first, new, vram, cells)
        is_tile = ~s.has(Flag.RD_VRAM) & (s.rd < Layout(self.config).fp_sram) & (s.branch == _prefetch_branch())
        return self.next(cursor, s), vram, cells, careful | any_lane(is_tile & has_subnormal(new))

    def switch(
        self,
        stage: Stage,
        vram: jax.Array,
        cells: jax.Array,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        careful: jax.Array | bool = True,
    ) -> Any:
        """What the function of the record at the cursor returns."""

        # A branch reads the record itself: each scalar computed for it would be a kernel of its own.
        def run(view: View, trace: jax.Array, cursor: Cursor, function: Callable[..., Any]) -> Any:
            return function(view, step(trace, cursor[0], cursor[1]))

        view, functions = self.view(vram, cells, hbm, m_accum, careful), self.functions(stage)
        runs = [partial(run, function=branches(stage)[i].function) for i in functions]
        return lax.switch(self.place(stage, cursor), runs, view, self.trace, cursor)

    def place(self, stage: Stage, cursor: Cursor) -> jax.Array:
        """int32: the position of the record's function among those that may occur."""
        branch, functions = field(self.trace, cursor[0], Record.BRANCH), self.functions(stage)
        if len(functions) == len(branches(stage)):
            return branch
        places = np.zeros(len(branches(stage)), np.int32)
        places[functions] = np.arange(len(functions))
        return jnp.asarray(places)[branch]

    def topk(
        self,
        vram: jax.Array,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        cells: jax.Array,
        int_sram: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        """V_TOPK."""
        s = self.step(cursor)
        (semantic,) = branches(Stage.TOPK)
        weights, indices, count = semantic.function(self.view(vram, cells, hbm, m_accum), s)
        # The entries may run into the next row; behind FP SRAM there are others.
        rows = -(-TOPK_ENTRIES // self.config.vlen) + 1
        flat = put_counted(block_of(cells, s.rd, rows).reshape(-1), s.rd_lane, weights, count)
        new, start = flat.reshape(rows, -1), (s.rd, jnp.int32(0))
        cells = lax.dynamic_update_slice(cells, new, start, allow_negative_indices=False)
        return self.next(cursor, s), cells, put_counted(int_sram, s.rs2, indices, count)

    def store(
        self, vram: jax.Array, cells: jax.Array, m_accum: jax.Array, cursor: Cursor, hbm: jax.Array
    ) -> tuple[Cursor, jax.Array]:
        """A part of a STORE instruction."""
        s = self.step(cursor)
        (semantic,) = branches(Stage.STORE)
        stored = semantic.function(self.view(vram, cells, hbm, m_accum), s)
        return self.next(cursor, s), put_stored(self.config, s, stored, hbm)


def put_stored(config: MachineConfig, s: Step, stored: Any, hbm: jax.Array) -> jax.Array:
    """HBM with what a part of a STORE instruction has returned."""
    if hbm.dtype == jnp.float32:
        first, data, wanted = spread(config, s, stored)
        return put(hbm, first, data, wanted)
    transfers = Transfers.of(config).vector
    is_kv = s.argument != 0
    pick = lambda name: jnp.where(is_kv, getattr(transfers[1], name), getattr(transfers[0], name))
    elements, scales = stored
    low, _ = element_address(u32(s.rs1), u32(s.rs1_lane), s.mask, s.part)
    hbm = put_counted(hbm, low, elements, pick("element_bytes"))
    low, _ = scale_address(u32(s.rs2), u32(s.rs2_lane), s.mask, s.part, pick("ratio"))
    return put_counted(hbm, low, scales, pick("scale_bytes"))


def spread(config: MachineConfig, s: Step, row: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where a stored row goes on the values face: the first cell, cells from there on, and which of them count."""
    transfers, unit = Transfers.of(config).vector, cell_bits(config)
    first, _ = stored_cells(config, s, transfers, s.part.reshape(1))
    steps = [t.bits // unit for t in transfers]
    step = jnp.where(s.argument != 0, steps[1], steps[0])
    cell = jnp.arange(config.vlen * max(steps), dtype=jnp.int32)
    lane = jnp.minimum(cell // step, config.vlen - 1)
    wanted = (cell % step == 0) & (cell // step < config.vlen)
    return first[0, 0], row.at[lane].get(mode="promise_in_bounds"), wanted


def _prefetch_branch() -> int:
    (semantic,) = SEMANTICS["H_PREFETCH_M"]
    return branch_index(semantic)
