"""The float side: runs records. One loop for each stage, carrying only what the stage writes.

A loop that carried every memory would copy one at each write of another; a loop for each stage does not, and the stages
of a sweep hand the cursor on as long as the next record is of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.batching import any_lane, in_groups
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Flag, Record, Step, field, step
from plena_jax.machine.semantics import SEMANTICS, Accumulator, Stage, branch_index, branches
from plena_jax.machine.semantics.matrix import fast_sums, fresh, written_row
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.state import MachineState
from plena_jax.machine.sums import accumulate, is_finite
from plena_jax.machine.transfer import (
    Transfers,
    element_address,
    exact_products,
    scale_address,
    significand,
    vram_format,
)
from plena_jax.machine.view import View, block_of


class Memories(NamedTuple):
    """What the datapath writes.

    Attributes:
        vram: float32 [rows, VLEN].
        cells: float32 [rows, VLEN], see :class:`Layout`.
        m_accum: float32 [BLEN, BLEN].
        hbm: uint8 [bytes].
        int_sram: uint32 [1024]; the datapath writes what V_TOPK writes, and reads nothing.
        careful: bool [], whether matrix SRAM may hold what fast sums exclude: subnormals, or longer significands than
            the formats of HBM give.
    """

    vram: jax.Array
    cells: jax.Array
    m_accum: jax.Array
    hbm: jax.Array
    int_sram: jax.Array
    careful: jax.Array


#: int32 [2]: index of the record, and the part of it that is next.
Cursor = jax.Array


def execute(config: MachineConfig, memories: Memories, trace: jax.Array, end: jax.Array) -> Memories:
    """Run records 0 to ``end`` of ``trace`` int32 [n, 16]; the record at ``end`` must exist, with any content.

    Under ``vmap`` over memories, machines take each step together; on CPU only so many at a time as the caches hold.
    With different records machines run one after the other.
    """
    return in_groups(partial(_execute, config), memories, (trace, end))


def _execute(config: MachineConfig, memories: Memories, trace: jax.Array, end: jax.Array) -> Memories:
    sweep = _Sweep(config, trace, end)
    start = (memories, jnp.zeros(2, jnp.int32))
    memories, _ = lax.while_loop(lambda c: c[1][0] < end, lambda c: sweep.run(*c), start)
    return memories


class _Sweep:
    """The stage loops over one trace. Each turn advances by at least one record."""

    def __init__(self, config: MachineConfig, trace: jax.Array, end: jax.Array) -> None:
        self.config, self.trace, self.end = config, trace, end

    def run(self, memories: Memories, cursor: Cursor) -> tuple[Memories, Cursor]:
        vram, cells, m_accum, hbm, int_sram, careful = memories
        cursor, m_accum = self.matmul(vram, cells, hbm, careful, cursor, m_accum)
        cursor, vram = lax.while_loop(
            lambda c: self.at(c[0], Stage.WRITE), lambda c: self.write(cells, m_accum, hbm, *c), (cursor, vram)
        )
        cursor, vram, cells = lax.while_loop(
            lambda c: self.at(c[0], Stage.ROW), lambda c: self.row(m_accum, hbm, *c), (cursor, vram, cells)
        )
        seldom = (cursor, vram, cells, hbm, int_sram, careful)
        seldom = lax.while_loop(
            lambda c: self.at(c[0], Stage.WIDE, Stage.STORE), lambda c: self.seldom(m_accum, *c), seldom
        )
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
        cursor, vram, cells, careful = lax.while_loop(
            lambda c: self.at(c[0], Stage.WIDE),
            lambda c: self.wide(m_accum, hbm, *c),
            (cursor, vram, cells, careful),
        )
        cursor, cells, int_sram = lax.while_loop(
            lambda c: self.at(c[0], Stage.TOPK), lambda c: self.topk(vram, m_accum, hbm, *c), (cursor, cells, int_sram)
        )
        cursor, hbm = lax.while_loop(
            lambda c: self.at(c[0], Stage.STORE), lambda c: self.store(vram, cells, m_accum, *c), (cursor, hbm)
        )
        return cursor, vram, cells, hbm, int_sram, careful

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
        functions = [b.function for b in branches(Stage.MATMUL)]

        Carry = tuple[Cursor, jax.Array]
        Operands = Callable[[Cursor, jax.Array], Any]

        def run(carry: Carry, operands: Operands, add: Callable[..., jax.Array]) -> Carry:
            cursor, m_accum = carry
            s = self.step(cursor)
            x, w = operands(cursor, m_accum)
            return self.next(cursor, s), add(fresh(s, m_accum), x, w)

        def read(cursor: Cursor, m_accum: jax.Array, function: Callable[..., Any]) -> Any:
            return function(View(self.config, vram, cells, hbm, m_accum), self.step(cursor))

        def read_any(cursor: Cursor, m_accum: jax.Array) -> Any:
            return self.switch(Stage.MATMUL, vram, cells, m_accum, hbm, cursor)

        start = fast = (cursor, m_accum)
        for branch, function in enumerate(functions):
            goes_on = partial(self._at_product, branch=branch, careful=careful)
            one = partial(run, operands=partial(read, function=function), add=fast_sums(self.config))
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
        s = self.step(cursor)
        size = self.config.blen
        row = written_row(s, self.config)
        # One row a part may be the last row: the block then starts above it.
        start = (jnp.minimum(row, vram.shape[0] - size), s.rd_lane)
        (semantic,) = branches(Stage.WRITE)
        view = View(self.config, vram, cells, hbm, m_accum)
        old = lax.dynamic_slice(vram, start, (size, size), allow_negative_indices=False)
        new = semantic.function(view, s, old, row - start[0])
        return self.next(cursor, s), lax.dynamic_update_slice(vram, new, start, allow_negative_indices=False)

    def row(
        self, m_accum: jax.Array, hbm: jax.Array, cursor: Cursor, vram: jax.Array, cells: jax.Array
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        s = self.step(cursor)
        new = self.switch(Stage.ROW, vram, cells, m_accum, hbm, cursor)
        vram, cells = self.put_rows(Stage.ROW, s, new[None], vram, cells)
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
        s = self.step(cursor)
        new = self.switch(Stage.WIDE, vram, cells, m_accum, hbm, cursor, careful)
        vram, cells = self.put_rows(Stage.WIDE, s, new, vram, cells)
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

        runs = [partial(run, function=branch.function) for branch in branches(stage)]
        branch = field(self.trace, cursor[0], Record.BRANCH)
        view = View(self.config, vram, cells, hbm, m_accum, careful)
        return lax.switch(branch, runs, view, self.trace, cursor)

    def put_rows(
        self, stage: Stage, s: Step, new: jax.Array, vram: jax.Array, cells: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Write rows where the record says: to vector SRAM, or to ``cells``; the other one gets back what it has."""
        layout, count = Layout(self.config), new.shape[0]
        regions = np.array([getattr(layout, b.region) if b.region else -1 for b in branches(stage)], np.int32)
        region = jnp.asarray(regions)[s.branch]
        first = jnp.where(region < 0, s.rd, region) + s.part * count
        in_vram = s.has(Flag.RD_VRAM)

        def put(memory: jax.Array, here: jax.Array) -> jax.Array:
            if memory.shape[0] < count:
                return memory  # too small for anything that is written so
            row = jnp.where(here, first, 0)
            kept = jnp.where(here, new, block_of(memory, row, count))
            return lax.dynamic_update_slice(memory, kept, (row, jnp.int32(0)), allow_negative_indices=False)

        return put(vram, in_vram), put(cells, ~in_vram)

    def topk(
        self,
        vram: jax.Array,
        m_accum: jax.Array,
        hbm: jax.Array,
        cursor: Cursor,
        cells: jax.Array,
        int_sram: jax.Array,
    ) -> tuple[Cursor, jax.Array, jax.Array]:
        s = self.step(cursor)
        (semantic,) = branches(Stage.TOPK)
        weights, indices, count = semantic.function(View(self.config, vram, cells, hbm, m_accum), s)
        # The entries may run into the next row; behind FP SRAM there are others.
        rows = -(-TOPK_ENTRIES // self.config.vlen) + 1
        flat = _put_counted(block_of(cells, s.rd, rows).reshape(-1), s.rd_lane, weights, count)
        new, start = flat.reshape(rows, -1), (s.rd, jnp.int32(0))
        cells = lax.dynamic_update_slice(cells, new, start, allow_negative_indices=False)
        return self.next(cursor, s), cells, _put_counted(int_sram, s.rs2, indices, count)

    def store(
        self, vram: jax.Array, cells: jax.Array, m_accum: jax.Array, cursor: Cursor, hbm: jax.Array
    ) -> tuple[Cursor, jax.Array]:
        s = self.step(cursor)
        (semantic,) = branches(Stage.STORE)
        elements, scales = semantic.function(View(self.config, vram, cells, hbm, m_accum), s)
        transfers = Transfers.of(self.config).vector
        is_kv = s.argument != 0
        pick = lambda name: jnp.where(is_kv, getattr(transfers[1], name), getattr(transfers[0], name))
        low, _ = element_address(u32(s.rs1), u32(s.rs1_lane), s.mask, s.part)
        hbm = _put_counted(hbm, low, elements, pick("element_bytes"))
        low, _ = scale_address(u32(s.rs2), u32(s.rs2_lane), s.mask, s.part, pick("ratio"))
        return self.next(cursor, s), _put_counted(hbm, low, scales, pick("scale_bytes"))


def _put_counted(memory: jax.Array, at: jax.Array, data: jax.Array, count: jax.Array) -> jax.Array:
    """``memory`` [n] with the first ``count`` elements of ``data`` at ``at``; what lies behind them stays."""
    size = data.shape[0]
    if size == 0:
        return memory
    # Near the end the window starts earlier.
    start = jnp.minimum(at.astype(jnp.int32), memory.shape[0] - size)
    old = lax.dynamic_slice(memory, (start,), (size,), allow_negative_indices=False)
    index = jnp.arange(size, dtype=jnp.int32) - (at.astype(jnp.int32) - start)
    wanted = (index >= 0) & (index < count)
    new = jnp.where(wanted, data[jnp.clip(index, 0, size - 1)], old)
    return lax.dynamic_update_slice(memory, new, (start,), allow_negative_indices=False)


def _prefetch_branch() -> int:
    (semantic,) = SEMANTICS["H_PREFETCH_M"]
    return branch_index(semantic)


def has_subnormal(a: jax.Array) -> jax.Array:
    """bool []: whether any element is subnormal."""
    bits = lax.bitcast_convert_type(a, jnp.uint32) & np.uint32(0x7FFFFFFF)
    return jnp.any((bits != 0) & (bits < np.uint32(0x00800000)))


def has_long_significand(mram: jax.Array, config: MachineConfig) -> jax.Array:
    """bool []: whether a product with a VRAM element may not be exact although the configuration's formats say so."""
    # A product has as many bits as both significands together: of 24, so many must be free.
    taken = significand(vram_format(config)) if exact_products(config) else 0
    low = np.uint32((1 << taken) - 1)
    return jnp.any((lax.bitcast_convert_type(mram, jnp.uint32) & low) != 0)


# -- between the readable state and what runs -------------------------------------------------------------------------


def pack_memories(config: MachineConfig, state: MachineState) -> Memories:
    """The memories and float registers of a state as the datapath holds them."""
    layout = Layout(config)

    def rows(values: jax.Array) -> jax.Array:
        flat = values.reshape(-1)
        return jnp.pad(flat, (0, -flat.shape[0] % config.vlen)).reshape(-1, config.vlen)

    parts = (state.mram, state.fp_sram, state.f, state.bmm_scale, state.v_accum, state.hv_accum, state.hm_accum)
    cells = jnp.concatenate([rows(part) for part in parts])
    assert cells.shape[0] == layout.rows
    # A store writes a window of a whole row, a write-out BLEN rows: smaller memories are filled up while they run.
    window = max(max(t.element_bytes, t.scale_bytes) for t in Transfers.of(config).vector)
    hbm = jnp.pad(state.hbm, (0, max(window - state.hbm.shape[0], 0)))
    vram = jnp.pad(state.vram, ((0, max(config.blen - state.vram.shape[0], 0)), (0, 0)))
    careful = has_subnormal(state.mram) | has_long_significand(state.mram, config)
    return Memories(vram, cells, state.m_accum, hbm, state.int_sram, any_lane(careful))


def unpack_memories(config: MachineConfig, memories: Memories, state: MachineState, fresh: jax.Array) -> MachineState:
    """``state`` with memories and float registers taken from what ran; ``fresh`` has a bit per drained accumulator."""
    cells, layout = memories.cells, Layout(config)

    def values(first: int, shape: tuple[int, ...]) -> jax.Array:
        count = int(np.prod(shape))
        return cells[first : first - (-count // config.vlen)].reshape(-1)[:count].reshape(shape)

    def accumulator(kind: Accumulator, held: jax.Array) -> jax.Array:
        return jnp.where((fresh >> np.uint32(kind)) & 1 == 1, jnp.float32(0), held)

    heads, mlen = config.broadcast_amount, config.mlen
    return state.replace(
        vram=memories.vram[: state.vram.shape[0]],
        mram=values(layout.mram, (config.tiles, mlen, mlen)),
        fp_sram=values(layout.fp_sram, (SRAM_ENTRIES,)),
        f=values(layout.f, (8,)),
        m_accum=accumulator(Accumulator.M, memories.m_accum),
        v_accum=accumulator(Accumulator.V, values(layout.v_accum, (config.blen,))),
        hv_accum=accumulator(Accumulator.HV, values(layout.hv_accum, (heads, mlen))),
        hm_accum=accumulator(Accumulator.HM, values(layout.hm_accum, (heads, mlen, mlen))),
        hbm=memories.hbm[: state.hbm.shape[0]],
    )
