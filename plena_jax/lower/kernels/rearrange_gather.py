"""Vectors whose lanes come from a row each: windows of BLEN rows, products, and masks.

For BLEN lanes of the result a window of BLEN rows of x is multiplied with columns that have a one each in the lane that
is wanted: of the BLEN x BLEN results the one of the right row counts in each column. Results of row i of all windows go
to row i of the workspace; times masks of the lanes whose row is i, these rows add up to the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plena_jax.lower.kernels.rearrange_lanes import Lanes, numbered, numbered_sorted, progressions


class Numbers(Protocol):
    """See :class:`~plena_jax.lower.kernels.rearrange_plan.Table`."""

    def has_room(self, rows: list[np.ndarray]) -> bool:
        """Whether these fit."""

    def number(self, row: np.ndarray) -> int:
        """The number of a row."""


@dataclass(frozen=True, eq=False)
class Gather:
    """A run of vectors.

    Attributes:
        places: [vectors, 2], in arithmetic progression: block and row, of the result.
        groups: [groups, 4]: lane group, block and first row of the window, number of columns; of the first vector.
        steps: what is added to block and row of the windows, and to the numbers of columns, from vector to vector.
        masks: numbers of the mask of each row of a window that has any lanes, with the row.
    """

    places: np.ndarray
    groups: np.ndarray
    steps: tuple[int, int, int]
    masks: tuple[tuple[int, int], ...]


class Windows:
    """Windows of all vectors of a result.

    Attributes:
        cost: instructions for each vector; infinite if its lanes are not in windows.
        single: instructions if it is made with products of single rows.
    """

    def __init__(self, lanes: Lanes, rows: int, size: int) -> None:
        self.size, self.lanes = size, lanes
        count, width = lanes.first.shape
        grouped = lambda values: values.reshape(count, width // size, size)
        there = grouped(lanes.first >= 0)
        block, row = grouped(lanes.block), grouped(lanes.row)
        far = np.iinfo(np.int64).max
        least = lambda values: np.where(there, values, far).min(axis=2)
        most = lambda values: np.where(there, values, -1).max(axis=2)
        self.active = there.any(axis=2)
        self.block = np.where(self.active, least(block), 0)
        last = np.where(self.active, most(row), 0)
        self.row = np.minimum(np.where(self.active, least(row), 0), rows - size)
        inside = (most(block) <= self.block) & (last - self.row < size)
        possible = (
            (rows >= size) & (inside | ~self.active).all(axis=1) & ~lanes.kept.any(axis=1) & self.active.any(axis=1)
        )
        self.cost = np.where(possible, 4.2 * self.active.sum(axis=1) + 3.5 * size + 4, np.inf)
        # Lanes of a group that have another term than the one before: parts, but for terms that come twice.
        first = grouped(lanes.first)
        parts = (there[:, :, 0] + ((first[:, :, 1:] != first[:, :, :-1]) & there[:, :, 1:]).sum(axis=2)).sum(axis=1)
        self.single = 2.2 * parts + self.active.sum(axis=1)

    def gather(self, vectors: np.ndarray, masks: Numbers, columns: Numbers) -> tuple[list[Gather], list[int]]:
        """Runs of vectors, and the vectors for which there is no room."""
        lanes, size = self.lanes, self.size
        wanted = lanes.lane[vectors].reshape(-1, size)
        index, number = numbered_sorted(wanted)
        if not columns.has_room([np.ascontiguousarray(wanted[i], np.int64) for i in index]):
            return [], vectors.tolist()
        column = np.array([columns.number(wanted[i]) for i in index])[number].reshape(len(vectors), -1)
        inside = lanes.row[vectors] - np.repeat(self.row[vectors], size, axis=1)
        inside = np.where(lanes.first[vectors] >= 0, inside, -1)
        found: list[Gather] = []
        rest: list[int] = []
        kinds = numbered(inside)
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            rows = [i for i in range(size) if (inside[members[0]] == i).any()]
            needed = [np.asarray(inside[members[0]] == i, np.int64) for i in rows]
            if not masks.has_room(needed):
                rest += vectors[members].tolist()
                continue
            numbers = tuple((masks.number(mask), row) for mask, row in zip(needed, rows, strict=True))
            found += self._runs(vectors[members], column[members], numbers)
        return found, rest

    def _runs(self, vectors: np.ndarray, column: np.ndarray, masks: tuple[tuple[int, int], ...]) -> list[Gather]:
        active = np.flatnonzero(self.active[vectors[0]])
        parts = [self.block[vectors][:, active], self.row[vectors][:, active], column[:, active]]
        at = self.lanes.at[vectors]
        windows = np.stack(parts, axis=2)
        found = []
        for part in progressions(np.concatenate([at, windows.reshape(len(vectors), -1)], axis=1)):
            step = windows[part][1] - windows[part][0] if part.stop - part.start > 1 else np.zeros_like(windows[0])
            # Windows that do not move together have a run each.
            cut = [part] if (step == step[0]).all() else [slice(i, i + 1) for i in range(part.start, part.stop)]
            for one in cut:
                steps = tuple(int(v) for v in (step[0] if len(cut) == 1 else np.zeros(3, int)))
                groups = np.concatenate([active[:, None], windows[one.start]], axis=1)
                found.append(Gather(at[one], groups, (steps[0], steps[1], steps[2]), masks))
        return found
