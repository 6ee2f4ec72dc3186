"""A schedule: operations by level, in groups, with a slot for every value; and the tables that the engine runs.

The level of an operation is the length of the longest way to it. Operations of one level do not depend on each other,
so those of one family run together, in steps of a few sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.machine.fused.accesses import Accesses, accesses
from plena_jax.machine.fused.chains import chains
from plena_jax.machine.fused.conflicts import hbm_edges
from plena_jax.machine.fused.families import COLUMNS, WIDE, Entry, Family, sizes, unit, written_rows
from plena_jax.machine.fused.resources import Ints, Resources
from plena_jax.machine.fused.tables import Bucket, Move, Tables
from plena_jax.machine.fused.versions import INITIAL, Edges, Versions, versions
from plena_jax.machine.layout import Layout

#: Values, words of the pool, steps and moves of the smallest class of schedules.
_SMALLEST = (2048, 16384, 512, 1024)
_PRODUCTS = (int(Family.PRODUCT), int(Family.PRODUCT_TRANSPOSED))


@dataclass(frozen=True, eq=False)
class Schedule:
    """A trace, or a piece of one, as the engine runs it.

    Attributes:
        tables: NumPy arrays, filled up to those of a class of sizes; branches are those of ``buckets``.
        buckets: what occurs, in order of numbers.
        steps, values: used.
        groups: int64 [n, 4], level, family, operations and records of each group.
        levels: of the longest chain of operations.
        read_to: one past the last byte of HBM that it reads.
    """

    tables: Tables
    buckets: tuple[Bucket, ...]
    steps: int
    values: int
    groups: np.ndarray
    levels: int
    read_to: int = 0


def schedule(records: np.ndarray, config: MachineConfig, vram_rows: int) -> Schedule:
    """The schedule of some records, int32 [n, 16], that touch so many rows of VRAM."""
    a = accesses(records, Resources(config, vram_rows))
    c = chains(a)
    v = versions(a, c)
    transfers, top = hbm_edges(a)
    edges = Edges(*(np.concatenate([e[i] for e in (v.edges, transfers)]) for i in (0, 1)))
    return replace(_Scheduler(a, v, edges).build(), read_to=top)


# -- levels -----------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=2)
def _levels(source: jax.Array, target: jax.Array, nodes: int, count: jax.Array) -> jax.Array:
    """int32 [nodes]: the longest way to each; edges are ordered by target, and targets come after sources."""
    take = lambda a, i: lax.dynamic_index_in_dim(a, i, keepdims=False, allow_negative_indices=False)

    def one(index: jax.Array, level: jax.Array) -> jax.Array:
        at = take(target, index)
        new = jnp.maximum(take(level, at), take(level, take(source, index)) + 1)
        return lax.dynamic_update_index_in_dim(level, new, at, 0, allow_negative_indices=False)

    return lax.fori_loop(0, count, one, jnp.zeros(nodes, jnp.int32))


def levels_of(edges: Edges, rank: Ints) -> Ints:
    """The level of each node; ``rank`` orders nodes such that what is needed comes first."""
    source, target = rank[edges.source], rank[edges.target]
    order = np.argsort(target, kind="stable")
    size, nodes = _power(len(order), 1024), _power(len(rank), 1024)
    padded = [np.zeros(size, np.int32) for _ in range(2)]
    padded[0][: len(order)], padded[1][: len(order)] = source[order], target[order]
    device = jax.local_devices(backend="cpu")[0]
    with jax.default_device(device):
        found = np.asarray(_levels(*padded, nodes, np.int32(len(order))))
    return found[rank].astype(np.int64)


def _power(n: int, least: int) -> int:
    """A power of two times ``least`` that is at least ``n``."""
    return least << max(-(-n // least) - 1, 0).bit_length()


# -- groups, slots and steps ------------------------------------------------------------------------------------------


class _Groups(NamedTuple):
    """Runs of nodes that do the same at one level: where each begins in the order, its nodes and entries."""

    first: Ints
    nodes: Ints
    entries: Ints
    family: Ints


class _Scheduler:
    def __init__(self, a: Accesses, v: Versions, edges: Edges) -> None:
        self.a, self.v, self.config = a, v, a.config
        self.operations = a.nodes.count
        rank = np.empty(len(v.key), np.int64)
        rank[np.argsort(v.key, kind="stable")] = np.arange(len(v.key))
        self.level = levels_of(edges, rank)

    def build(self) -> Schedule:
        v = self.v
        order, groups, sequence = self._grouped()
        initial = np.nonzero(v.family == INITIAL)[0]
        initial = initial[np.argsort(v.resource[self._version_of(initial)], kind="stable")]
        placed = np.concatenate([initial, order])
        slot = np.zeros(len(v.family), np.int64)
        rows = v.rows[placed]
        # Slot 0 holds zeros.
        slot[placed] = 1 + np.cumsum(rows) - rows
        total = 1 + int(rows.sum())
        self.slot = slot
        steps, buckets = self._steps(order, groups)
        pool, entries = self._entries(total)
        pool, steps = self._products(pool, steps, order, buckets)
        pool, steps = self._stores(pool, steps, order, buckets)
        moves = [*self._initial_moves(initial), *self._final_moves()]
        tables = self._tables(steps, entries, pool, moves, total)
        table = np.stack([self.level[order[groups.first]], groups.family, groups.nodes, sequence], axis=1)
        deepest = int(self.level.max(initial=0))
        return Schedule(tables, buckets, len(steps), total, table, deepest)

    def _version_of(self, nodes: Ints) -> Ints:
        version = np.zeros(len(self.v.family), np.int64)
        there = self.v.is_initial & (self.v.node >= 0)
        version[self.v.node[there]] = np.nonzero(there)[0]
        return version[nodes]

    def _grouped(self) -> tuple[Ints, _Groups, Ints]:
        v = self.v
        nodes = np.nonzero(v.family >= 0)[0]
        sequence = np.zeros(len(v.family), np.int64)
        products = slice(self.operations, self.operations + len(v.products.first))
        sequence[products] = v.products.sequence + 1
        # Rows of a product in the order of the program, which is mostly that of VRAM.
        place = v.key.copy()
        place[products] = v.products.first
        order = nodes[np.lexsort((place[nodes], sequence[nodes], v.family[nodes], self.level[nodes]))]
        same = np.stack([self.level[order], v.family[order], sequence[order]])
        new = np.ones(len(order), bool)
        new[1:] = (same[:, 1:] != same[:, :-1]).any(axis=0)
        first = np.nonzero(new)[0]
        counts = np.diff(np.append(first, len(order)))
        family = v.family[order[first]] if len(order) else np.zeros(0, np.int64)
        units = np.array([max(unit(f, self.config), 1) for f in Family], np.int64)
        per_node = np.maximum(v.rows[order[first]], 1) // units[family] if len(order) else counts
        return order, _Groups(first, counts, counts * per_node, family), sequence[order[first]]

    def _steps(self, order: Ints, groups: _Groups) -> tuple[np.ndarray, tuple[Bucket, ...]]:
        """int64 [n, 5] steps (branch, slot, place in the pool, count, rows), and the buckets.

        The place is not filled in; the third column has the first entry of the step in its group instead.
        """
        families = [f for f in Family if (groups.family == f).any()]
        small = np.array([sizes(f, self.config)[0] for f in Family])[groups.family]
        large = np.array([sizes(f, self.config)[-1] for f in Family])[groups.family]
        rows = np.array([unit(f, self.config) for f in Family])[groups.family]
        whole, rest = groups.entries // large, groups.entries % large
        # A wide step costs about as much as three small ones.
        few = -(-rest // small)
        rounds_up = few > 3
        whole, few = whole + rounds_up, np.where(rounds_up, 0, few)
        count = whole + few
        of = np.repeat(np.arange(len(count)), count)
        number = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        is_large = number < whole[of]
        begin = np.where(is_large, number * large[of], whole[of] * large[of] + (number - whole[of]) * small[of])
        slot = self.slot[order[groups.first]][of] + begin * rows[of] if len(of) else begin
        size = np.where(is_large, large[of], small[of])
        pairs = [(int(f), s) for f in families for s in sorted(set(sizes(f, self.config)))]
        number_of = {pair: i for i, pair in enumerate(pairs)}
        branch = np.array(
            [number_of[pair] for pair in zip(groups.family[of].tolist(), size.tolist(), strict=True)], int
        )
        left = np.minimum(groups.entries[of] - begin, size)
        steps = np.stack([branch, slot, groups.first[of] + begin, left, left * rows[of]], axis=1)
        return steps, tuple(pairs)

    # -- entries and lists --------------------------------------------------------------------------------------------

    def _entries(self, total: int) -> tuple[list[Ints], np.ndarray]:
        """The pool so far, and int64 [values, COLUMNS] entries."""
        a, v, slot = self.a, self.v, self.slot
        ints, lists = a.ints, a.lists
        seen = slot[v.node[v.reads]] + v.offset[v.reads] + a.reads["offset"] if len(v.reads) else v.reads
        entry, position = a.reads["entry"], a.reads["position"]
        in_list = position >= COLUMNS
        ints[entry[~in_list], position[~in_list]] = seen[~in_list]
        start = np.cumsum(lists) - lists
        pool = np.zeros(int(lists.sum()), np.int64)
        pool[start[entry[in_list]] + position[in_list] - COLUMNS] = seen[in_list]
        ints[lists > 0, Entry.POOL] = start[lists > 0]
        self.ints = ints
        table = np.zeros((total + written_rows(self.config), COLUMNS), np.int64)
        node = a.entries["node"]
        writes = v.rows[node] > 0 if len(node) else np.zeros(0, bool)
        table[(slot[node] + a.entries["offset"])[writes]] = ints[writes]
        first = self.operations + np.arange(len(v.products.first))
        table[slot[first], Entry.ARGUMENT] = v.rounded
        return [pool, self._assembled(table, len(pool))], table

    def _assembled(self, table: np.ndarray, start: int) -> Ints:
        """Codes of rows put together; their places go into the table."""
        v, per_row = self.v, self.config.mlen // self.config.blen
        codes = v.assembled
        kept = codes <= -2
        plain = np.where(kept, -2 - codes, codes)
        block = (self.slot[plain // per_row] + v.assembled_row) * per_row + plain % per_row
        block = np.where(codes == -1, 0, np.where(kept, ~block, block))
        node = self.operations + len(v.products.first) + np.arange(len(codes))
        table[self.slot[node], Entry.POOL] = start + np.arange(len(codes)) * per_row
        return block.reshape(-1)

    def _products(
        self, pool: list[Ints], steps: np.ndarray, order: Ints, buckets: tuple[Bucket, ...]
    ) -> tuple[list[Ints], np.ndarray]:
        """Terms of the steps of products: a tile and rows for each, one after the other."""
        products, start = self.v.products, sum(len(p) for p in pool)
        for branch, (family, size) in enumerate(buckets):
            mine = np.nonzero(steps[:, 0] == branch)[0] if family in _PRODUCTS else ()
            if not len(mine):
                continue
            begin, count = steps[mine, 2], steps[mine, 3]
            at = np.minimum(begin[:, None] + np.arange(size), len(order) - 1)
            product = order[at] - self.operations
            real = np.arange(size) < count[:, None]
            product = np.where(real, product, product[:, :1])
            length = products.length[product[:, 0]]
            of = np.repeat(np.arange(len(mine)), length)
            term = np.arange(len(of)) - np.repeat(np.cumsum(length) - length, length)
            place = products.first[product[of]] + term[:, None]
            rows = np.where(real[of], self._slots(products.rows[place]), 0)
            tile = products.tiles[place[:, 0]]
            codes = self._slots(tile >> 1) * 2 + (tile & 1)
            steps[mine, 2] = start + (np.cumsum(length) - length) * (1 + size)
            steps[mine, 3] = length
            pool = [*pool, np.concatenate([codes[:, None], rows], axis=1).reshape(-1)]
            start += len(pool[-1])
        return pool, steps

    def _slots(self, version: Ints) -> Ints:
        return self.slot[self.v.node[version]] + self.v.offset[version]

    def _stores(
        self, pool: list[Ints], steps: np.ndarray, order: Ints, buckets: tuple[Bucket, ...]
    ) -> tuple[list[Ints], np.ndarray]:
        """Entries of stores, which have no slots: WIDE of them for each step."""
        v, a = self.v, self.a
        is_store = v.family[order] == Family.STORE
        if not is_store.any():
            return pool, steps
        start = sum(len(p) for p in pool)
        entry_of = np.zeros(self.operations, np.int64)
        entry_of[a.entries["node"]] = np.arange(a.entries.count)
        rows = self.ints[entry_of[order[is_store]]]
        rows = np.concatenate([rows, np.zeros((WIDE, COLUMNS), np.int64)]).reshape(-1)
        number = np.cumsum(is_store) - 1
        branches = [i for i, (family, _) in enumerate(buckets) if family == Family.STORE]
        mine = np.isin(steps[:, 0], branches)
        steps[mine, 2] = start + number[steps[mine, 2]] * COLUMNS
        return [*pool, rows], steps

    # -- copies -------------------------------------------------------------------------------------------------------

    def _initial_moves(self, initial: Ints) -> list[np.ndarray]:
        version = self._version_of(initial)
        return self._moves(self.v.resource[version], self.slot[initial], None)

    def _final_moves(self) -> list[np.ndarray]:
        v = self.v
        moves = self._moves(v.resource[v.final], self._slots(v.final), 0)
        layout, blen = Layout(self.config), self.config.blen
        for number, found in enumerate(v.pending):
            if found is not None:
                nodes, column = found
                row = np.arange(len(nodes)) if number == 0 else np.full(1, layout.v_accum)
                kind = int(Move.TO_M_ACCUM if number == 0 else Move.TO_V_ACCUM)
                moves.append(_move(kind, self.slot[nodes], row, np.full(len(nodes), column * blen)))
        return moves

    def _moves(self, resource: Ints, slot: Ints, final: int | None) -> list[np.ndarray]:
        """Copies between places and their values."""
        r, shift = self.a.resources, 0 if final is None else int(Move.TO_VRAM_BLOCK)
        within = lambda first, stop: (resource >= first) & (resource < stop)
        vram, scalar = within(r.vram, r.tile), within(r.scalar, r.m_accum) | (resource == r.scale)
        m_accum, entry = resource == r.m_accum, resource >= r.int_sram
        found = _in_blocks(resource[vram] - r.vram, slot[vram], int(Move.VRAM_BLOCK) + shift)
        tiles = within(r.tile, r.scalar)
        cells = ~(vram | tiles | scalar | m_accum | entry)
        for kind, which in ((Move.TILE_BLOCK, tiles), (Move.CELLS_BLOCK, cells)):
            rows = r.rows(resource[which])
            of = np.repeat(np.arange(len(rows)), rows)
            step = np.arange(len(of)) - np.repeat(np.cumsum(rows) - rows, rows)
            first, _ = r.cells(resource[which])
            found += _in_blocks(first[of] + step, slot[which][of] + step, int(kind) + shift)
        row, lane = r.cells(resource[scalar])
        found.append(_move(int(Move.SCALAR) + shift, slot[scalar], row, lane))
        size = np.arange(self.config.blen)
        for at in slot[m_accum]:
            found.append(_move(int(Move.M_ACCUM) + shift, at + size, size, 0 * size))
        if final is not None:
            index = resource[entry] - r.int_sram
            found.append(_move(int(Move.TO_INT_SRAM), slot[entry], index, 0 * index))
        return found

    # -- tables -------------------------------------------------------------------------------------------------------

    def _tables(
        self, steps: np.ndarray, entries: np.ndarray, pool: list[Ints], moves: list[np.ndarray], total: int
    ) -> Tables:
        """Everything filled up to the sizes of a class."""
        flat = np.concatenate(pool)
        all_moves = np.concatenate(moves)
        all_moves = all_moves[np.argsort(all_moves[:, 0], kind="stable")]
        bounds = np.searchsorted(all_moves[:, 0], np.arange(len(Move) + 1))
        longest = 1 + max(WIDE * COLUMNS, WIDE * self.config.mlen // self.config.blen, self.config.vlen, 1 + WIDE)
        needed = (len(entries), len(flat) + longest, len(steps) + 1, len(all_moves) + 1)
        grade = max(_power(-(-n // least), 1) for n, least in zip(needed, _SMALLEST, strict=True))
        size = [least * grade for least in _SMALLEST]
        return Tables(
            steps=_filled(steps, (size[2], 5)),
            length=np.array(len(steps), np.int32),
            entries=_filled(entries, (size[0], COLUMNS)),
            pool=_filled(flat, (size[1],)),
            moves=_filled(all_moves[:, 1:], (size[3], 3)),
            bounds=bounds.astype(np.int32),
        )


def _filled(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int32, zeros behind; unsigned words as bit patterns."""
    result = np.zeros(shape, np.int32)
    result[tuple(slice(n) for n in array.shape)] = (array & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
    return result


def _move(kind: int, slot: Ints, row: Ints, lane: Ints) -> np.ndarray:
    return np.stack([np.full(len(slot), kind), slot, row, lane], axis=1)


def _in_blocks(row: Ints, slot: Ints, kind: int) -> list[np.ndarray]:
    """Moves of rows: of WIDE at a time where these lie together on both sides, else one by one."""
    if not len(row):
        return []
    order = np.argsort(row, kind="stable")
    row, slot = row[order], slot[order]
    breaks = np.append(True, (np.diff(row) != 1) | (np.diff(slot) != 1))
    run = np.cumsum(breaks) - 1
    first = np.nonzero(breaks)[0]
    length = np.diff(np.append(first, len(row)))
    place = np.arange(len(row)) - first[run]
    whole = place // WIDE < length[run] // WIDE
    starts = whole & (place % WIDE == 0)
    zeros = lambda mask: np.zeros(int(mask.sum()), np.int64)
    return [
        _move(kind, slot[starts], row[starts], zeros(starts)),
        _move(kind + 1, slot[~whole], row[~whole], zeros(~whole)),
    ]
