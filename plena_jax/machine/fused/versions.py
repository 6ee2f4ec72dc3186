"""Versions: every write of a place makes a new value, so that reuse of rows, tiles and registers orders nothing.

Reads are matched with the writes that they see by sorting all accesses by place and time. Write-outs of blocks of
lanes to one row, with no read of the row between them, make one new value together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plena_jax.machine.fused.accesses import Accesses
from plena_jax.machine.fused.chains import Chains
from plena_jax.machine.fused.copies import copies
from plena_jax.machine.fused.families import Family
from plena_jax.machine.fused.products import ChainRows, Products, chain_rows, distinct, join
from plena_jax.machine.fused.resources import Ints


class Edges(NamedTuple):
    """That ``target`` needs ``source``; nodes."""

    source: Ints
    target: Ints


@dataclass(frozen=True)
class Versions:
    """The values of a trace.

    A node is an operation of :class:`Accesses`, then a product's row, then a row put together of blocks, then an
    initial value. Initial values are those of versions that some operation sees; operations that make nothing new (see
    ``copies.py``) have no rows.

    Attributes:
        products: rows of products.
        assembled: int64 [n, blocks]: for each row put together, node * blocks + block of its sources, in the order of
            lanes; those of the old row inverted. Sources that have more rows count them as blocks of further nodes'
            rows: see ``assembled_row``.
        assembled_row: int64 [n, blocks]: row of the source node.
        node, offset: of each version, the node and the row of it.
        resource: of each version.
        is_initial: of each version.
        reads: version of each read of the accesses.
        final: versions that places end with and do not begin with.
        rounded: of each product, whether its rows are written to vector SRAM as they are.
        pending: nodes and block of columns that m_accum and v_accum end with, or none.
        family, rows, key: of each node.
        edges: what needs what.
    """

    products: Products
    assembled: Ints
    assembled_row: Ints
    node: Ints
    offset: Ints
    resource: Ints
    is_initial: Ints
    reads: Ints
    final: Ints
    rounded: Ints
    pending: tuple[tuple[Ints, int] | None, tuple[Ints, int] | None]
    family: Ints
    rows: Ints
    key: Ints
    edges: Edges


#: "Family" of a value that is there at the start, and of an operation that makes nothing new.
INITIAL, GONE = -1, -2


class _Events(NamedTuple):
    """Accesses in order of place and time: index of each in the order given, and the version that it sees or makes."""

    version: Ints
    resource: Ints
    is_initial: Ints
    #: The access that makes a version first, -1 if it is initial.
    maker: Ints
    last: Ints


def _ordered(resource: Ints, key: Ints, writes: Ints, partial: Ints) -> _Events:
    """Versions of accesses; ``key`` is the time of a record, at which reads come before writes."""
    order = np.argsort(resource << 34 | key << 1 | writes, kind="stable")
    place, makes, part = resource[order], writes[order], partial[order]
    new_place = np.ones(len(order), bool)
    new_place[1:] = place[1:] != place[:-1]
    after_part = np.zeros(len(order), bool)
    after_part[1:] = part[:-1] & ~new_place[1:]
    starts = makes & ~(part & after_part)
    version = np.cumsum(new_place.astype(np.int64) + starts) - 1
    count = int(version[-1]) + 1 if len(version) else 0
    made_of, is_initial, maker = np.zeros(count, np.int64), np.ones(count, bool), np.full(count, -1)
    made_of[version] = place
    # The initial version of a place comes before the one that its first access makes.
    made_of[version[new_place] - starts[new_place]] = place[new_place]
    is_initial[version[starts]] = False
    maker[version[starts]] = order[starts]
    of = np.empty(len(order), np.int64)
    of[order] = version
    last = version[np.append(new_place[1:], True)] if len(version) else version
    return _Events(of, made_of, is_initial, maker, last)


# -- everything -------------------------------------------------------------------------------------------------------


def versions(a: Accesses, c: Chains) -> Versions:
    """The values of a trace."""
    return _Builder(a, c).build()


class _Builder:
    def __init__(self, a: Accesses, c: Chains) -> None:
        self.a, self.c = a, c
        self.per_row = a.config.mlen // a.config.blen

    def build(self) -> Versions:
        a, c, blocks = self.a, self.c, self.c.blocks
        held = np.nonzero(blocks.held)[0]
        accumulator = np.where(blocks.vector[held], a.resources.v_accum, a.resources.m_accum)
        parts = [
            (a.reads["resource"], a.reads["key"], False),
            (c.matrix.row.reshape(-1), np.repeat(c.matrix.key, c.matrix.row.shape[1]), False),
            (c.matrix.tile, c.matrix.key, False),
            (c.vector.row.reshape(-1), c.vector.key, False),
            (c.vector.tile, c.vector.key, False),
            (accumulator, blocks.key[held], False),
            (a.writes["resource"], a.writes["key"], True),
            (blocks.resource, blocks.key, True),
        ]
        resource, key = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
        sizes = [len(p[0]) for p in parts]
        writes = np.repeat([p[2] for p in parts], sizes)
        partial = np.arange(len(resource)) >= len(resource) - sizes[-1]
        events = _ordered(resource, key, writes, partial)
        seen = np.split(events.version, np.cumsum(sizes)[:-1])
        self.events, self.blocks_first = events, len(resource) - sizes[-1]
        self.writes_first = self.blocks_first - sizes[-2]
        self.copies = copies(a, len(events.resource), seen[0], seen[6])
        # Only scalars are copied.
        seen[0] = self.copies.source[seen[0]]
        matrix = chain_rows(c.matrix, seen[1].reshape(c.matrix.row.shape), seen[2], len(c.matrix_column))
        vector = chain_rows(c.vector, seen[3].reshape(c.vector.row.shape), seen[4], len(c.vector_column))
        rows = join(matrix, vector)
        pending = self._pending_rows(rows)
        products, product_of = distinct(rows, np.concatenate([pending[0], pending[1]]))
        return self._nodes(seen[0], seen[5], seen[7], products, product_of, rows, pending)

    def _pending_rows(self, rows: ChainRows) -> tuple[Ints, Ints]:
        sizes = self.a.config.blen, 1
        found = [
            rows.of_chain[chain] + np.arange(size) if chain >= 0 else np.zeros(0, np.int64)
            for chain, size in zip(self.c.pending, sizes, strict=True)
        ]
        return found[0], found[1]

    def _nodes(
        self,
        reads: Ints,
        held: Ints,
        block_versions: Ints,
        products: Products,
        product_of: Ints,
        summed: ChainRows,
        pending: tuple[Ints, Ints],
    ) -> Versions:
        a, c, events, (source_of, gone) = self.a, self.c, self.events, self.copies
        count = len(events.resource)
        node, offset = np.full(count, -1), np.zeros(count, np.int64)
        operations = a.nodes.count
        plain = (events.maker >= 0) & (events.maker < self.blocks_first)
        write = events.maker[plain] - self.writes_first
        node[plain], offset[plain] = a.writes["node"][write], a.writes["offset"][write]
        # Rows put together of blocks: the last write to each block counts.
        made = np.nonzero(events.maker >= self.blocks_first)[0]
        local = np.full(count, -1)
        local[made] = np.arange(len(made))
        blocks, per_row = c.blocks, self.per_row
        source = np.full((len(made), per_row), -1)
        source[local[block_versions], blocks.block] = np.arange(len(blocks.key))
        rounds_old = np.zeros(len(made), bool)
        rounds_old[local[block_versions[blocks.vector]]] = True
        last_key = np.zeros(len(made), np.int64)
        last_key[local[block_versions]] = blocks.key
        in_product = blocks.chain >= 0
        product = np.full(len(blocks.key), -1)
        product[in_product] = product_of[summed.of_chain[blocks.chain[in_product]] + blocks.row[in_product]]
        whole = self._whole(source, product)
        node[made[whole >= 0]] = operations + whole[whole >= 0]
        rounded = np.zeros(len(products.first), bool)
        rounded[whole[whole >= 0]] = True
        apart = whole < 0
        first_assembled = operations + len(products.first)
        node[made[apart]] = first_assembled + np.arange(int(apart.sum()))
        # What is seen of initial values.
        assembled, keys = source[apart], last_key[apart]
        old = made[apart] - 1
        needs_old = (assembled < 0).any(axis=1)
        used = np.zeros(count, bool)
        used[reads] = used[held] = used[products.rows] = used[products.tiles >> 1] = True
        used[old[needs_old]] = True
        final = events.last[~events.is_initial[events.last]]
        used[source_of[final]] = True
        first_initial = first_assembled + len(assembled)
        initial = np.nonzero(events.is_initial & used)[0]
        node[initial] = first_initial + np.arange(len(initial))
        node, offset = node[source_of], offset[source_of]
        codes, rows, edges = self._assembled(
            assembled, old, rounds_old[apart], product, held, node, offset, first_assembled
        )
        reader = a.entries["node"][a.reads["entry"]]
        there = ~gone[reader]
        read_edges = Edges(node[reads[there]], reader[there])
        family = [
            np.where(gone, GONE, a.nodes["family"]),
            self._product_family(products),
            np.full(len(assembled), int(Family.ASSEMBLE)),
        ]
        family.append(np.full(len(initial), INITIAL))
        ones = np.ones(len(products.first) + len(assembled), np.int64)
        row_counts = np.concatenate(
            [np.where(gone, 0, a.nodes["rows"]), ones, a.resources.rows(events.resource[initial])]
        )
        all_keys = np.concatenate([a.nodes["key"], products.key, keys, np.full(len(initial), -1)])
        return Versions(
            products=products,
            assembled=codes,
            assembled_row=rows,
            node=node,
            offset=offset,
            resource=events.resource,
            is_initial=events.is_initial,
            reads=reads,
            final=final,
            rounded=rounded,
            pending=self._pending(pending, product_of),
            family=np.concatenate(family),
            rows=row_counts,
            key=all_keys,
            edges=_joined([read_edges, self._product_edges(products, node), edges]),
        )

    def _whole(self, source: Ints, product: Ints) -> Ints:
        """The product that a row is, block for block, or -1."""
        if not len(source):
            return np.zeros(0, np.int64)
        blocks = self.c.blocks
        # Index -1 is any block: such rows are not whole anyway.
        of, column = np.append(product, -1)[source], np.append(blocks.column, -1)[source]
        same = (of == of[:, :1]).all(axis=1) & (of[:, 0] >= 0) & (source >= 0).all(axis=1)
        return np.where(same & (column == np.arange(self.per_row)).all(axis=1), of[:, 0], -1)

    def _assembled(
        self,
        source: Ints,
        old: Ints,
        rounds_old: Ints,
        product: Ints,
        held: Ints,
        node: Ints,
        offset: Ints,
        first: int,
    ) -> tuple[Ints, Ints, Edges]:
        """Sources of rows put together (-1 for zeros), the rows of the sources, and what needs what."""
        a, blocks, per_row = self.a, self.c.blocks, self.per_row
        own = np.arange(per_row)
        accumulator = np.full(len(blocks.key) + 1, -1)
        accumulator[np.nonzero(blocks.held)[0]] = node[held]
        of_product = np.append(product, -1)[source]
        of_held = accumulator[source]
        from_product = of_product >= 0
        nodes = np.where(from_product, a.nodes.count + of_product, of_held)
        lanes = np.where(from_product, np.append(blocks.column, 0)[source], 0)
        rows = np.where(from_product, 0, np.append(blocks.row, 0)[source])
        is_old = source < 0
        nodes = np.where(is_old, node[old][:, None] if len(old) else nodes, nodes)
        lanes, rows = np.where(is_old, own, lanes), np.where(is_old, offset[old][:, None] if len(old) else rows, rows)
        there = nodes >= 0
        targets = np.broadcast_to(first + np.arange(len(source))[:, None], nodes.shape)
        edges = Edges(nodes[there], targets[there])
        codes = np.where(there, nodes * per_row + lanes, -1)
        kept = is_old & ~rounds_old[:, None]
        # Inverted codes of old blocks begin at -2, so that -1 stays that of zeros.
        return np.where(kept, -2 - codes, codes), rows, edges

    def _product_family(self, products: Products) -> Ints:
        if not len(products.first):
            return np.zeros(0, np.int64)
        index, target = _spans(products)
        turned = np.bincount(target, weights=products.tiles[index] & 1, minlength=len(products.first))
        return np.where(turned > 0, int(Family.PRODUCT_TRANSPOSED), int(Family.PRODUCT))

    def _product_edges(self, products: Products, node: Ints) -> Edges:
        index, target = _spans(products)
        sources = np.concatenate([node[products.rows[index]], node[products.tiles[index] >> 1]])
        targets = self.a.nodes.count + np.concatenate([target, target])
        return Edges(sources, targets)

    def _pending(
        self, rows: tuple[Ints, Ints], product_of: Ints
    ) -> tuple[tuple[Ints, int] | None, tuple[Ints, int] | None]:
        columns = np.concatenate([self.c.matrix_column, self.c.vector_column])
        found = [
            (self.a.nodes.count + product_of[of], int(columns[chain])) if chain >= 0 else None
            for chain, of in zip(self.c.pending, rows, strict=True)
        ]
        return found[0], found[1]


def _spans(products: Products) -> tuple[Ints, Ints]:
    """For each term of each product its place, and the product."""
    target = np.repeat(np.arange(len(products.first)), products.length)
    begin = np.cumsum(products.length) - products.length
    return np.arange(len(target)) - np.repeat(begin, products.length) + np.repeat(
        products.first, products.length
    ), target


def _joined(edges: list[Edges]) -> Edges:
    return Edges(*(np.concatenate([e[i] for e in edges]) for i in (0, 1)))
