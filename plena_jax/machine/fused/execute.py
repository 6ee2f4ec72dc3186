"""Running a schedule: one loop over wide steps, with the program as data.

Every value has a slot of its own in ``values``, in the order of the steps, so that a step's results are one block that
is written in place. Every step writes ``written_rows`` of them: those behind its own belong to later steps, which write
them again. Nothing else is written until the end, but HBM.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.arithmetic import lift, lower
from plena_jax.bits import Array
from plena_jax.config import Formats, MachineConfig
from plena_jax.machine.batching import any_lane
from plena_jax.machine.datapath import put_stored
from plena_jax.machine.fused.families import (
    COLUMNS,
    KINDS,
    WIDE,
    Entry,
    Family,
    Machine,
    transfer_step,
    unit,
    written_rows,
)
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import Memories, is_subnormal
from plena_jax.machine.semantics.matrix import fast_sums
from plena_jax.machine.semantics.memory import h_store_v
from plena_jax.machine.sums import LIFT, accumulate, is_finite

#: A family and how many of its operations a step takes.
Bucket = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """What the loop is compiled for.

    Attributes:
        config: the machine.
        buckets: the branches of its switch.
        strict: products add up in the machine's order; else as the backend's matrix product does.
        clipped, inside: see :class:`View`.
        whole: memories have all of ``cells``, even without the matrix unit.
    """

    config: MachineConfig
    buckets: tuple[Bucket, ...]
    strict: bool = False
    clipped: bool = False
    inside: bool = False
    whole: bool = False

    @property
    def stores(self) -> bool:
        """Whether HBM is written."""
        return any(family == Family.STORE for family, _ in self.buckets)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """Fields of the state that a run leaves as they are."""
        kept = ("bmm_scale", *(() if self.stores else ("hbm",)))
        return kept if self.has_matrix else (*kept, "mram", "m_accum", "v_accum", "hv_accum", "hm_accum")

    @property
    def has_matrix(self) -> bool:
        """Whether the matrix unit and its memory take part."""
        return any(family in MATRIX for family, _ in self.buckets)

    @property
    def first_cell(self) -> int:
        """The first row of ``cells`` that is there: without the matrix unit they begin with FP SRAM."""
        return 0 if self.whole or self.has_matrix else Layout(self.config).fp_sram


class Move(enum.IntEnum):
    """Copies between memories and values: first those at the start, then those at the end."""

    VRAM_BLOCK = 0
    VRAM_ROW = 1
    CELLS_BLOCK = 2
    CELLS_ROW = 3
    #: One lane of a row of ``cells``, in every lane of a value.
    SCALAR = 4
    M_ACCUM = 5
    TO_VRAM_BLOCK = 6
    TO_VRAM_ROW = 7
    TO_CELLS_BLOCK = 8
    TO_CELLS_ROW = 9
    TO_SCALAR = 10
    TO_M_ACCUM = 11
    TO_INT_SRAM = 12
    TO_V_ACCUM = 13


class Tables(NamedTuple):
    """A schedule as data.

    Attributes:
        steps: int32 [n, 5]: branch, first slot, place in the pool, count of terms or operations, rows written.
        length: int32 [], steps.
        entries: int32 [slots, COLUMNS], at the slot of the operation's first value.
        pool: int32 [n], lists of slots.
        moves: int32 [n, 3]: slot, row, lane; by kind.
        bounds: int32 [15], where the moves of each :class:`Move` begin.
    """

    steps: Array
    length: Array
    entries: Array
    pool: Array
    moves: Array
    bounds: Array


Rows = tuple[jax.Array, jax.Array]
#: What takes no part of the matrix unit.
_VECTOR = (
    *(
        Family.ADD,
        Family.MULTIPLY,
        Family.SELECT,
        Family.EXP,
        Family.RECIPROCAL,
        Family.SQRT,
        Family.MOVE,
        Family.SHIFT,
    ),
    *(Family.SUM, Family.SUM_MASKED, Family.MAX, Family.MAX_MASKED, Family.MAP, Family.PREFETCH_V),
    *(Family.PREFETCH_V_KV, Family.TOPK, Family.STORE),
)
MATRIX = frozenset(Family) - frozenset(_VECTOR)
PRODUCTS = (Family.PRODUCT, Family.PRODUCT_TRANSPOSED)


def run_values(
    plan: Plan, memories: Memories, precision: Formats | None, tables: Tables, values: jax.Array
) -> tuple[Memories, jax.Array]:
    """The memories after a schedule, and all values; ``values`` [slots, VLEN] may hold anything."""
    values = loaded(plan, memories, tables, values)
    # A value for each lane: reducing whole rows at every step would take as long as loading them.
    care = jnp.broadcast_to(memories.careful, (plan.config.vlen,))
    values, hbm, care = WideSteps(plan, precision, tables).run(values, memories.hbm, care)
    return stored(plan, memories, tables, values)._replace(hbm=hbm, careful=jnp.any(care)), values


class WideSteps:
    """The loop over the steps of a schedule."""

    def __init__(self, plan: Plan, precision: Formats | None, tables: Tables) -> None:
        self.plan, self.config, self.precision, self.tables = plan, plan.config, precision, tables
        self.branches = [(i, Family(f), size) for i, (f, size) in enumerate(plan.buckets) if f != Family.STORE]
        #: Branches of the switch come first, stores last.
        self.first_store = len(self.branches)

    def run(self, values: jax.Array, hbm: jax.Array, careful: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Values, HBM, and for each lane whether some tile needs care, at the end."""
        if not self.plan.stores:
            _, values, careful = self._until(lambda i: i < self.tables.length, jnp.int32(0), values, hbm, careful)
            return values, hbm, careful

        def turn(carry: Any) -> Any:
            index, values, hbm, careful = carry
            computes = lambda i: (i < self.tables.length) & (self.step(i)[0] < self.first_store)
            index, values, careful = self._until(computes, index, values, hbm, careful)
            stores = lambda c: (c[0] < self.tables.length) & (self.step(c[0])[0] >= self.first_store)
            store = lambda c: (c[0] + 1, self.store(self.step(c[0]), values, c[1]))
            index, hbm = lax.while_loop(stores, store, (index, hbm))
            return index, values, hbm, careful

        start = (jnp.int32(0), values, hbm, careful)
        return lax.while_loop(lambda c: c[0] < self.tables.length, turn, start)[1:]

    def step(self, index: jax.Array) -> jax.Array:
        """int32 [5]."""
        return lax.dynamic_index_in_dim(self.tables.steps, index, keepdims=False, allow_negative_indices=False)

    def _until(
        self,
        goes_on: Callable[[jax.Array], jax.Array],
        index: jax.Array,
        values: jax.Array,
        hbm: jax.Array,
        careful: Any,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def turn(carry: Any) -> Any:
            index, values, careful = carry
            step = self.step(index)
            runs = [partial(self.branch, family, size) for _, family, size in self.branches]
            new, found = lax.switch(step[0], runs, values, hbm, careful, step)
            values, found = put_rows(values, step[1], new), any_lane(found)
            if not self.sizes:
                return index + 1, values, careful | found
            is_product = self.is_product(step)
            again = lambda values: put_rows(values, step[1], self.careful_product(values, step))
            redo = (is_product & jnp.any(found | careful), values)
            _, values = lax.while_loop(lambda c: c[0], lambda c: (jnp.bool_(False), again(c[1])), redo)
            return index + 1, values, careful | (found & ~is_product)

        return lax.while_loop(lambda c: goes_on(c[0]), turn, (index, values, careful))

    # -- branches -----------------------------------------------------------------------------------------------------

    def machine(self, hbm: jax.Array, careful: Any) -> Machine:
        """What operations depend on."""
        return Machine(self.config, hbm, careful, self.precision, self.plan.clipped, self.plan.inside)

    def branch(
        self, family: Family, size: int, values: jax.Array, hbm: jax.Array, careful: jax.Array, step: jax.Array
    ) -> Rows:
        """Results of a step; and for each lane whether tiles need care, or a product was too fast."""
        machine, found = self.machine(hbm, jnp.any(careful)), jnp.zeros(self.config.vlen, bool)
        if family in PRODUCTS:
            new, found = self.product(machine, family, size, values, step)
        elif family is Family.ASSEMBLE:
            new = self.assemble(machine, size, values, step)
        else:
            entries = self.entries(family, size, step)
            # Apart from the arithmetic, which would not be vectorised with it.
            rows = lax.optimization_barrier(gather(values, self.operands(family, entries)))
            new = jax.vmap(partial(KINDS[family].compute, machine))(entries, rows).reshape(-1, self.config.vlen)
            if family in (Family.PREFETCH_M, Family.PREFETCH_M_KV):
                # Not loaded a second time for this.
                new = lax.optimization_barrier(new)
                found = is_subnormal(new)
                if size > 1:
                    # Behind the step's own blocks may be anything.
                    found = found & (jnp.arange(len(new)) < step[4])[:, None]
                found = jnp.any(found, axis=0)
        return self.padded(new), found

    def entries(self, family: Family, size: int, step: jax.Array) -> jax.Array:
        """int32 [size, COLUMNS]."""
        rows = unit(family, self.config)
        start = (step[1], jnp.int32(0))
        entries = lax.dynamic_slice(self.tables.entries, start, (size * rows, COLUMNS), allow_negative_indices=False)
        return entries[::rows]

    def operands(self, family: Family, entries: jax.Array) -> jax.Array:
        """int32 [size, k]: slots."""
        return jax.vmap(lambda entry: KINDS[family].operands(self.config, entry, self.tables.pool))(entries)

    def listed(self, start: jax.Array, count: int) -> jax.Array:
        """Part of the pool."""
        return lax.dynamic_slice(self.tables.pool, (start,), (count,), allow_negative_indices=False)

    # -- products -----------------------------------------------------------------------------------------------------

    @property
    def sizes(self) -> list[tuple[int, Family, int]]:
        """Number, family and rows of the branches that multiply."""
        return [branch for branch in self.branches if branch[1] in PRODUCTS]

    def is_product(self, step: jax.Array) -> jax.Array:
        """bool []."""
        return functools.reduce(jnp.logical_or, [step[0] == number for number, _, _ in self.sizes])

    def product(self, machine: Machine, family: Family, size: int, values: jax.Array, step: jax.Array) -> Rows:
        """Rows times tiles, one tile after the other; and whether that has to be done again with care."""
        mlen, view = self.config.mlen, machine.view(values, values)
        strict = fast_sums(view)

        def turn(term: Any, total: jax.Array) -> jax.Array:
            at = self.listed(step[2] + term * (1 + size), 1 + size)
            tile = lax.dynamic_slice(values, (at[0] >> 1, jnp.int32(0)), (mlen, mlen), allow_negative_indices=False)
            if family is Family.PRODUCT_TRANSPOSED:
                tile = jnp.where(at[0] & 1 == 1, tile.T, tile)
            x = gather(values, at[1:])
            if self.plan.strict:
                return strict(total, x, tile)
            return _add_lifted(total, x, tile)

        total = lax.fori_loop(0, step[3], turn, jnp.zeros((size, mlen), jnp.float32))
        bad = jnp.any(~is_finite(total), axis=0)
        return self.rounded(machine, total if self.plan.strict else _lowered(total), step), bad

    def careful_product(self, values: jax.Array, step: jax.Array) -> jax.Array:
        """The same for a branch of any size, where operands are subnormal or results very large."""
        mlen = self.config.mlen
        size = functools.reduce(jnp.add, [jnp.where(step[0] == number, size, 0) for number, _, size in self.sizes])

        def turn(term: Any, total: jax.Array) -> jax.Array:
            at = self.listed(step[2] + term * (1 + size), 1 + WIDE)
            tile = lax.dynamic_slice(values, (at[0] >> 1, jnp.int32(0)), (mlen, mlen), allow_negative_indices=False)
            tile = jnp.where(at[0] & 1 == 1, tile.T, tile)
            # What lies behind a smaller branch's rows belongs to the next term.
            slots = jnp.where(jnp.arange(WIDE) < size, at[1:], 0)
            return accumulate(total, gather(values, slots), tile)

        total = lax.fori_loop(0, step[3], turn, jnp.zeros((WIDE, mlen), jnp.float32))
        none = jnp.zeros(1, jnp.uint8)
        return self.padded(self.rounded(self.machine(none, True), total, step))

    def rounded(self, machine: Machine, rows: jax.Array, step: jax.Array) -> jax.Array:
        """Rows of vector SRAM are rounded, as M_MM_WO does; what is put together of several is so later."""
        start = (step[1], jnp.int32(0))
        entries = lax.dynamic_slice(self.tables.entries, start, (len(rows), COLUMNS), allow_negative_indices=False)
        return jnp.where(entries[:, Entry.ARGUMENT, None] == 1, machine.view(rows, rows).round(rows), rows)

    def padded(self, rows: jax.Array) -> jax.Array:
        """As many rows as every step writes."""
        return jnp.pad(rows, ((0, written_rows(self.config) - len(rows)), (0, 0)))

    def assemble(self, machine: Machine, size: int, values: jax.Array, step: jax.Array) -> jax.Array:
        """Rows of blocks of BLEN lanes, which are rounded but where they are those of the old row."""
        codes = self.codes(size, step)
        blocks = gather(values.reshape(-1, self.config.blen), jnp.where(codes < 0, ~codes, codes))
        rows = blocks.reshape(size, self.config.vlen)
        kept = jnp.repeat(codes < 0, self.config.blen, axis=1)
        return jnp.where(kept, rows, machine.view(rows, rows).round(rows))

    def codes(self, size: int, step: jax.Array) -> jax.Array:
        """int32 [size, blocks]: numbers of blocks, inverted if of the old row."""
        places = self.entries(Family.ASSEMBLE, size, step)[:, Entry.POOL]
        return jax.vmap(lambda place: self.listed(place, self.config.mlen // self.config.blen))(places)

    # -- stores -------------------------------------------------------------------------------------------------------

    def store(self, step: jax.Array, values: jax.Array, hbm: jax.Array) -> jax.Array:
        """HBM with the rows of a step."""
        entries = self.stores(step)
        machine, rows = self.machine(hbm, False), gather(values, entries[:, Entry.D])
        steps = jax.vmap(lambda entry: transfer_step(entry, entry[Entry.ARGUMENT]))(entries)
        data = jax.vmap(lambda row, s: h_store_v(machine.view(row[None], row[None]), s))(rows, steps)

        def put(index: Any, hbm: jax.Array) -> jax.Array:
            take = lambda a: lax.dynamic_index_in_dim(a, index, keepdims=False, allow_negative_indices=False)
            return put_stored(self.config, jax.tree.map(take, steps), jax.tree.map(take, data), hbm)

        return lax.fori_loop(0, step[3], put, hbm)

    def stores(self, step: jax.Array) -> jax.Array:
        """int32 [WIDE, COLUMNS]: entries of a step of stores."""
        return self.listed(step[2], WIDE * COLUMNS).reshape(WIDE, COLUMNS)


_dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def _add_lifted(total: jax.Array, x: jax.Array, tile: jax.Array) -> jax.Array:
    """``total + x @ tile``, where the total is lifted, and its tangent is not."""
    return total + _dot(lift(x, LIFT), tile)


@_add_lifted.defjvp
def _add_lifted_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (_, x, tile), (moved, x_moved, tile_moved) = primals, tangents
    return _add_lifted(*primals), moved + _dot(x_moved, tile) + _dot(x, tile_moved)


@jax.custom_jvp
def _lowered(total: jax.Array) -> jax.Array:
    return lower(total, LIFT)


@_lowered.defjvp
def _lowered_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _lowered(*primals), tangents[0]


def gather(values: jax.Array, slots: jax.Array) -> jax.Array:
    """float32 [..., lanes]: rows at slots; what lies behind a step's own entries may be anything."""
    return values.at[slots].get(mode="clip", wrap_negative_indices=False)


def put_rows(values: jax.Array, slot: jax.Array, rows: jax.Array) -> jax.Array:
    """``values`` with rows from a slot on."""
    return lax.dynamic_update_slice(values, rows, (slot, jnp.int32(0)), allow_negative_indices=False)


# -- between memories and values --------------------------------------------------------------------------------------


def each_move(tables: Tables, kind: Move, function: Callable[[Any, jax.Array], Any], carry: Any) -> Any:
    """``carry`` after ``function(carry, move)`` for each move of a kind."""
    take = lambda i: lax.dynamic_index_in_dim(tables.moves, i, keepdims=False, allow_negative_indices=False)
    return lax.fori_loop(tables.bounds[kind], tables.bounds[kind + 1], lambda i, c: function(c, take(i)), carry)


def _copy(target: jax.Array, at: Any, source: jax.Array, start: Any, rows: int) -> jax.Array:
    zero = jnp.int32(0)
    block = lax.dynamic_slice(source, (start, zero), (rows, source.shape[1]), allow_negative_indices=False)
    return lax.dynamic_update_slice(target, block, (at, zero), allow_negative_indices=False)


def _take(source: jax.Array, rows: int, first: int, values: jax.Array, move: jax.Array) -> jax.Array:
    return _copy(values, move[0], source, move[1] - first, rows)


def _give(values: jax.Array, rows: int, first: int, target: jax.Array, move: jax.Array) -> jax.Array:
    return _copy(target, move[1] - first, values, move[0], rows)


_BLOCKS = ((Move.VRAM_BLOCK, WIDE), (Move.VRAM_ROW, 1), (Move.CELLS_BLOCK, WIDE), (Move.CELLS_ROW, 1))


def loaded(plan: Plan, memories: Memories, tables: Tables, values: jax.Array) -> jax.Array:
    """Values at the start: zeros in slot 0, and what the schedule reads of the memories."""
    config, first = plan.config, plan.first_cell
    values = values.at[0].set(0.0)
    for kind, rows in _BLOCKS:
        is_vram = kind < Move.CELLS_BLOCK
        source = memories.vram if is_vram else memories.cells
        if source.shape[0] >= rows:
            values = each_move(tables, kind, partial(_take, source, rows, 0 if is_vram else first), values)

    def scalar(values: jax.Array, move: jax.Array) -> jax.Array:
        one = lax.dynamic_slice(memories.cells, (move[1] - first, move[2]), (1, 1), allow_negative_indices=False)
        row = jnp.broadcast_to(one, (1, config.vlen))
        return lax.dynamic_update_slice(values, row, (move[0], jnp.int32(0)), allow_negative_indices=False)

    values = each_move(tables, Move.SCALAR, scalar, values)
    m_accum = jnp.pad(memories.m_accum, ((0, 0), (0, config.vlen - config.blen)))
    return each_move(tables, Move.M_ACCUM, lambda v, m: _copy(v, m[0], m_accum, m[1], 1), values)


def stored(plan: Plan, memories: Memories, tables: Tables, values: jax.Array) -> Memories:
    """The memories at the end."""
    config, first = plan.config, plan.first_cell
    vram, cells = memories.vram, memories.cells
    for (kind, rows), is_vram in zip(_BLOCKS, (True, True, False, False), strict=True):
        target = vram if is_vram else cells
        if target.shape[0] >= rows:
            kind = Move(kind + Move.TO_VRAM_BLOCK)
            target = each_move(tables, kind, partial(_give, values, rows, 0 if is_vram else first), target)
        vram, cells = (target, cells) if is_vram else (vram, target)

    def part(target: jax.Array, move: jax.Array, lane: Any, lanes: int) -> jax.Array:
        taken = lax.dynamic_slice(values, (move[0], lane), (1, lanes), allow_negative_indices=False)
        return lax.dynamic_update_slice(target, taken, (move[1], move[2] - lane), allow_negative_indices=False)

    cells = each_move(tables, Move.TO_SCALAR, lambda c, m: part(c, m, jnp.int32(0), 1), cells)
    m_accum = each_move(tables, Move.TO_M_ACCUM, lambda a, m: part(a, m, m[2], config.blen), memories.m_accum)

    cells = each_move(tables, Move.TO_V_ACCUM, lambda c, m: part(c, m, m[2], config.blen), cells)

    def entry(int_sram: jax.Array, move: jax.Array) -> jax.Array:
        bits = lax.bitcast_convert_type(values, jnp.uint32)
        word = lax.dynamic_slice(bits, (move[0], jnp.int32(0)), (1, 1), allow_negative_indices=False)[0]
        return lax.dynamic_update_slice(int_sram, word, (move[1],), allow_negative_indices=False)

    int_sram = each_move(tables, Move.TO_INT_SRAM, entry, memories.int_sram)
    return memories._replace(vram=vram, cells=cells, m_accum=m_accum, int_sram=int_sram)
