"""What a rearrangement does to the lanes of single vectors, found with NumPy.

A vector is a row of a block of MLEN columns. Each vector of the result takes lanes of some vectors, its terms. Vectors
whose lanes do the same with their terms have one signature; those of one signature whose places are an arithmetic
progression are a run, which a loop of the machine goes through. Places are (block, row): addresses depend on the plan
of the memories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plena_jax.lower.rearrangement import Source
from plena_jax.lower.tensors import Shape


@dataclass(frozen=True)
class Lanes:
    """All vectors of a result, block after block; arrays are [vectors, MLEN].

    Attributes:
        at: [vectors, 2], where they are.
        moved: whether a lane comes from x.
        kept: whether it is that of ``into``.
        block, row: where its term is; 0 of lanes that are zero.
        lane: its lane there; -1 if it is zero.
        first: the first lane with the same term; -1 if it is zero.
        width: columns of the term's block.
    """

    at: np.ndarray
    moved: np.ndarray
    kept: np.ndarray
    block: np.ndarray
    row: np.ndarray
    lane: np.ndarray
    first: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, source: Source, x: Shape, has_into: bool, lanes: int) -> Lanes:
        """Look at a source of a matrix of shape ``x``."""
        rows, columns = source.shape
        blocks = -(-columns // lanes)
        padded = np.pad(source.positions, ((0, 0), (0, blocks * lanes - columns)), constant_values=-1)
        positions = padded.reshape(rows, blocks, lanes).transpose(1, 0, 2).reshape(-1, lanes)
        at = np.stack(np.divmod(np.arange(blocks * rows), rows), axis=1)
        moved = positions >= 0
        row, column = np.divmod(np.where(moved, positions, 0), x[1])
        block, lane = np.divmod(column, lanes)
        term = block * x[0] + row
        width = np.minimum(x[1] - block * lanes, lanes)
        kept = ~moved if has_into else np.zeros_like(moved)
        here = np.arange(lanes)
        if has_into:
            block, row = np.where(moved, block, at[:, :1]), np.where(moved, row, at[:, 1:])
            lane, term, width = np.where(moved, lane, here), np.where(moved, term, -2), np.where(moved, width, lanes)
        else:
            lane, term, width = (np.where(moved, values, -1) for values in (lane, term, width))
        first = np.where(term == -1, -1, _first_equal(term))
        return cls(at, moved, kept, block, row, lane, first, width)

    def signatures(self) -> np.ndarray:
        """A number for each vector, equal if lanes do the same."""
        return numbered(np.concatenate([self.first, self.lane, self.width, self.kept], axis=1))

    def terms(self, vector: int) -> list[int]:
        """The first lanes of the terms of a vector."""
        found = np.unique(self.first[vector])
        return [int(lane) for lane in found if lane >= 0]

    def places(self, vectors: np.ndarray, terms: list[int]) -> np.ndarray:
        """[vectors, 1 + terms, 2]: where vectors of one signature and their terms are."""
        parts = [np.stack([self.block[vectors, lane], self.row[vectors, lane]], axis=1) for lane in terms]
        return np.stack([self.at[vectors], *parts], axis=1)


def numbered(rows: np.ndarray) -> np.ndarray:
    """A number for each row, equal if the rows are."""
    return numbered_sorted(rows)[1]


def numbered_sorted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of different rows, in lexicographic order, and for each row the number of its like among them."""
    # Big-endian, so that bytes are in the order of the (nonnegative) numbers.
    data = np.ascontiguousarray(rows + 1, ">u2")
    keys = data.view(np.dtype((np.void, data.shape[1] * 2))).ravel()
    _, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return index, inverse.reshape(-1)


def _first_equal(values: np.ndarray) -> np.ndarray:
    """For each element the first index in its row that has the same value."""
    order = np.argsort(values, axis=1, kind="stable")
    inside = np.take_along_axis(values, order, axis=1)
    begins = np.ones(values.shape, bool)
    begins[:, 1:] = inside[:, 1:] != inside[:, :-1]
    start = np.maximum.accumulate(np.where(begins, np.arange(values.shape[1]), 0), axis=1)
    found = np.empty_like(order)
    np.put_along_axis(found, order, np.take_along_axis(order, start, axis=1), axis=1)
    return found


def progressions(places: np.ndarray) -> list[slice]:
    """Cut a list of places [n, ...] into arithmetic progressions, greedily."""
    n = len(places)
    steps = np.diff(places.reshape(n, -1), axis=0)
    breaks = [*(np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1).tolist(), n - 1]
    found, start, number = [], 0, 0
    while start < n - 1:
        while breaks[number] <= start:
            number += 1
        found.append(slice(start, breaks[number] + 1))
        start = breaks[number] + 1
    if start == n - 1:
        found.append(slice(start, n))
    return found


def runs(places: np.ndarray) -> list[np.ndarray]:
    """Places [n, vectors, 2] in few arithmetic progressions: in the order of the result's or of the first term's."""
    if len(places) == 1:
        return [places]
    orders = [np.arange(len(places)), np.lexsort((places[:, 0, 0], places[:, 0, 1]))]
    if places.shape[1] > 1:
        orders.append(np.lexsort((places[:, 0, 1], places[:, 0, 0], places[:, 1, 0])))
        orders.append(np.lexsort((places[:, 1, 1], places[:, 1, 0])))
    cut = [(order, progressions(places[order])) for order in orders]
    order, found = min(cut, key=lambda one: len(one[1]))
    return [places[order[part]] for part in found]
