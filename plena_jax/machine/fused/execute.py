"""Running a schedule: one loop over wide steps, with the program as data.

Every value has a slot of its own in ``values``, in the order of the steps, so that a step's results are one block that
is written in place. Every step writes ``written_rows`` of them: those behind its own belong to later steps, which write
them again. Nothing else is written until the end, but HBM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.config import Formats
from plena_jax.machine.batching import any_lane
from plena_jax.machine.datapath import put_stored
from plena_jax.machine.dots import add_dot, add_quickly, adds_in_order, lowered
from plena_jax.machine.fused.families import (
    COLUMNS,
    KINDS,
    LOADS,
    WIDE,
    Entry,
    Family,
    transfer_step,
    unit,
    written_rows,
)
from plena_jax.machine.fused.moves import loaded, stored
from plena_jax.machine.fused.operands import Machine
from plena_jax.machine.fused.tables import Move, Plan, Tables
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import Memories, is_subnormal, leaves_too_few
from plena_jax.machine.semantics.matrix import fast_sums
from plena_jax.machine.semantics.memory import h_store_v, tile_decoding
from plena_jax.machine.sums import accumulate, accumulate_exact, is_finite
from plena_jax.machine.transfer import Decoding, significand, vram_format
from plena_jax.machine.view import View

Rows = tuple[jax.Array, jax.Array]
PRODUCTS = (Family.PRODUCT, Family.PRODUCT_TRANSPOSED)
#: What a tile may have that fast products exclude: subnormal numbers, or so long significands that a product with a
#: row's element is not exact. Only values of HBM are suspect of the latter. Places in bool [2].
SUBNORMAL, LONG = 0, 1


def run_values(
    plan: Plan,
    memories: Memories,
    precision: Formats | None,
    tables: Tables,
    values: jax.Array,
    tiles: jax.Array | None = None,
) -> tuple[Memories, jax.Array, jax.Array | None]:
    """The memories after a schedule, all values, and the tiles where they lie apart.

    Args:
        plan, precision, tables: what to run.
        memories: at the start.
        values: [slots, VLEN] of anything.
        tiles: rows of matrix SRAM, if the plan needs them and ``cells`` are without.
    """
    values = loaded(plan, memories, tiles, tables, values)
    steps = WideSteps(plan, precision, tables)
    found = jnp.stack([memories.careful, steps.long_at_start(memories, tiles)])
    values, hbm, care = steps.run(values, memories.hbm, found)
    memories, tiles = stored(plan, memories, tiles, tables, values)
    return memories._replace(hbm=hbm, careful=care[SUBNORMAL]), values, tiles


def reads_tiles(tables: Tables) -> jax.Array:
    """bool []: whether anything is read of the tiles that are there at the start."""
    return tables.bounds[Move.CELLS_BLOCK] > tables.bounds[Move.TILE_BLOCK]


class WideSteps:
    """The loop over the steps of a schedule."""

    def __init__(self, plan: Plan, precision: Formats | None, tables: Tables) -> None:
        self.plan, self.config, self.precision, self.tables = plan, plan.config, precision, tables
        self.branches = [(i, Family(f), size) for i, (f, size) in enumerate(plan.buckets) if f != Family.STORE]
        #: Branches of the switch come first, then products, loads of tiles, and stores.
        self.first_store = len(self.branches)
        self.products = [branch for branch in self.branches if branch[1] in PRODUCTS]
        self.loads = [branch for branch in self.branches if branch[1] in LOADS]
        self.first_load = self.first_store - len(self.loads)
        self.first_product = self.first_load - len(self.products)

    def long_at_start(self, memories: Memories, tiles: jax.Array | None) -> jax.Array:
        """bool []: whether the tiles that are there have long significands, and some of them are read."""
        if not (self.plan.has_matrix and memories.hbm.dtype == jnp.float32):
            return jnp.bool_(False)
        held = memories.cells[: Layout(self.config).fp_sram] if tiles is None else tiles
        look = lambda: jnp.any(self.is_long(held))
        return lax.cond(reads_tiles(self.tables), look, lambda: jnp.bool_(False))

    def is_long(self, tile: jax.Array) -> jax.Array:
        """bool: elements whose product with an element of vector SRAM may not be exact."""
        return leaves_too_few(tile, significand(vram_format(self.config)))

    def run(self, values: jax.Array, hbm: jax.Array, careful: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Values, HBM, and what some tile has, at the end."""
        if not (self.plan.stores or self.loads):
            _, values = self._until(lambda i: i < self.tables.length, jnp.int32(0), values, hbm, careful)
            return values, hbm, careful
        within = lambda low, high: (
            lambda i: (i < self.tables.length) & (low <= self.step(i)[0]) & (self.step(i)[0] < high)
        )
        last = len(self.plan.buckets)

        def turn(carry: Any) -> Any:
            index, values, hbm, careful = carry
            index, values = self._until(within(0, self.first_load), index, values, hbm, careful)
            if self.loads:
                load = lambda c: (c[0] + 1, *self.load(c[1], hbm, c[2], self.step(c[0])))
                loads = within(self.first_load, self.first_store)
                index, values, careful = lax.while_loop(lambda c: loads(c[0]), load, (index, values, careful))
            if self.plan.stores:
                store = lambda c: (c[0] + 1, self.store(self.step(c[0]), values, c[1]))
                stores = within(self.first_store, last)
                index, hbm = lax.while_loop(lambda c: stores(c[0]), store, (index, hbm))
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
        careful: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        def turn(carry: Any) -> Any:
            index, values = carry
            step = self.step(index)
            runs: list[Any] = [partial(self.branch, family, size) for _, family, size in self.branches]
            runs[self.first_product :] = [self.product] if self.products else []
            place = jnp.minimum(step[0], len(runs) - 1)
            new = lax.switch(place, runs, values, hbm, careful, step)
            return index + 1, put_rows(values, step[1], new)

        return lax.while_loop(lambda c: goes_on(c[0]), turn, (index, values))

    # -- branches -----------------------------------------------------------------------------------------------------

    def machine(self, hbm: jax.Array, careful: Any) -> Machine:
        """What operations depend on."""
        return Machine(self.config, hbm, careful, self.precision, self.plan.clipped, self.plan.inside)

    def branch(
        self, family: Family, size: int, values: jax.Array, hbm: jax.Array, careful: jax.Array, step: jax.Array
    ) -> jax.Array:
        """Results of a step that is no product."""
        machine = self.machine(hbm, careful[SUBNORMAL])
        if family is Family.ASSEMBLE:
            new = self.assemble(machine, size, values, step)
        else:
            entries, kind = self.entries(family, size, step), KINDS[family]
            slots = self.operands(family, entries)
            each = [gather(values, slots[:, i], is_one) for i, is_one in enumerate(kind.lanes)]
            rows: Any = each or gather(values, slots)
            new = jax.vmap(partial(kind.compute, machine))(entries, rows).reshape(-1, self.config.vlen)
        return self.padded(new)

    # -- loads of tiles -----------------------------------------------------------------------------------------------

    def load(
        self, values: jax.Array, hbm: jax.Array, careful: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Values after a step that loads tiles, and what tiles have."""
        machine = self.machine(hbm, False)
        ways = [self.decoding(machine, family, size, step) for _, family, size in self.loads]

        def take(way: Callable[[Decoding], jax.Array]) -> jax.Array:
            if len(ways) == 1:
                return way(ways[0])
            return lax.switch(step[0] - self.first_load, [partial(way, decoding) for decoding in ways])

        # Decoded to where they belong: to write them elsewhere first takes longer than to decode them.
        values = put_rows(values, step[1], take(lambda d: d.quick()))
        if all(decoding.odd is None for decoding in ways):
            return values, careful | any_lane(take(lambda d: self.seen(d.quick(), step)))

        def again(carry: Any) -> Any:
            rows = take(lambda d: d.careful())
            return jnp.bool_(False), put_rows(carry[1], step[1], rows), any_lane(self.seen(rows, step))

        odd = any_lane(take(lambda d: jnp.bool_(True) if d.odd is None else d.odd))
        _, values, found = lax.while_loop(lambda c: c[0], again, (odd, values, jnp.zeros(2, bool)))
        return values, careful | found

    def decoding(self, machine: Machine, family: Family, size: int, step: jax.Array) -> Decoding:
        """Ways to the rows of a step."""
        none, is_kv = jnp.zeros((1, self.config.vlen), jnp.float32), family is Family.PREFETCH_M_KV
        view, entries = machine.view(none, none), self.entries(family, size, step)
        one = lambda entry: tile_decoding(view, transfer_step(entry, int(is_kv)), is_kv)

        def rows(way: str) -> jax.Array:
            found = jax.vmap(lambda entry: getattr(one(entry), way)())(entries)
            return self.padded(found.reshape(-1, self.config.vlen))

        odd = None if one(entries[0]).odd is None else jnp.any(jax.vmap(lambda e: jnp.asarray(one(e).odd))(entries))
        return Decoding(partial(rows, "quick"), odd, partial(rows, "careful"))

    def seen(self, rows: jax.Array, step: jax.Array) -> jax.Array:
        """bool [2]: what a step's own rows have; behind them may be anything."""
        own = (jnp.arange(len(rows)) < step[4])[:, None]
        return jnp.stack([jnp.any(which(rows) & own) for which in (is_subnormal, self.is_long)])

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

    def product(self, values: jax.Array, hbm: jax.Array, careful: jax.Array, step: jax.Array) -> jax.Array:
        """Rows times tiles, in fast arithmetic, and again only if that will not do."""
        machine = self.machine(hbm, careful[SUBNORMAL])
        runs = [partial(self.quick_product, machine, family, size) for _, family, size in self.products]
        new, good = lax.switch(step[0] - self.first_product, runs, values, careful[LONG], step)
        again = any_lane(careful[SUBNORMAL] | ~good)
        return lax.cond(again, lambda new, values: self.careful_product(values, step), lambda new, _: new, new, values)

    def quick_product(
        self, machine: Machine, family: Family, size: int, values: jax.Array, long: jax.Array, step: jax.Array
    ) -> Rows:
        """Rows times tiles, one tile after the other; and whether the results are right if no tile has subnormals."""
        mlen = self.config.mlen

        def turn(add: Callable[..., jax.Array], term: Any, total: jax.Array) -> jax.Array:
            at = self.listed(step[2] + term * (1 + size), 1 + size)
            tile = lax.dynamic_slice(values, (at[0] >> 1, jnp.int32(0)), (mlen, mlen), allow_negative_indices=False)
            if family is Family.PRODUCT_TRANSPOSED:
                tile = jnp.where(at[0] & 1 == 1, tile.T, tile)
            return add(total, gather(values, at[1:]), tile)

        def terms(add: Callable[..., jax.Array]) -> jax.Array:
            total = lax.fori_loop(0, step[3], partial(turn, add), jnp.zeros((size, mlen), jnp.float32))
            return lowered(total) if add in (add_dot, add_quickly) else total

        usual, otherwise = self.sums(machine.view(values, values), size)
        if otherwise is None:
            total = terms(usual)
        else:
            total = lax.cond(any_lane(long), lambda: terms(otherwise), lambda: terms(usual))
        return self.padded(self.rounded(machine, total, step)), jnp.all(is_finite(total))

    def sums(self, view: View, size: int) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array] | None]:
        """How products of so many rows are added up; and how if tiles have long significands, where that may be."""
        ordered, mlen = fast_sums(view), self.config.mlen
        quick = (ordered is accumulate_exact or self.may_be_short(view)) and adds_in_order(size, mlen, mlen)
        if not quick:
            return ordered if self.plan.strict else add_quickly, None
        if not self.plan.strict and jax.default_backend() != "cpu":
            # The backend's product is fast, and in another order.
            return add_quickly, None
        return add_dot, None if ordered is accumulate_exact else ordered

    def may_be_short(self, view: View) -> bool:
        """Whether values of HBM may have significands that make products exact: they are looked at."""
        return view.has_values and view.precision is None and significand(vram_format(self.config)) <= 16

    def careful_product(self, values: jax.Array, step: jax.Array) -> jax.Array:
        """The same for a branch of any size, where operands are subnormal or results very large."""
        mlen = self.config.mlen
        size = jnp.asarray([size for _, _, size in self.products], jnp.int32)[step[0] - self.first_product]

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


def gather(values: jax.Array, slots: jax.Array, is_one: bool = False) -> jax.Array:
    """float32 [..., lanes]: rows at slots, or their first lane; what lies behind a step's own entries is anything."""
    if is_one:
        return values.at[slots, 0].get(mode="clip", wrap_negative_indices=False)[..., None]
    return values.at[slots].get(mode="clip", wrap_negative_indices=False)


def put_rows(values: jax.Array, slot: jax.Array, rows: jax.Array) -> jax.Array:
    """``values`` with rows from a slot on."""
    return lax.dynamic_update_slice(values, rows, (slot, jnp.int32(0)), allow_negative_indices=False)
