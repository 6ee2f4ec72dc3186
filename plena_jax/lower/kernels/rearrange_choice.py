"""Ways to make a run of like vectors, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Vectors of more pieces are made in other ways.
_PIECES = 16
#: Instructions of a step of a row pointer in an unrolled loop.
_STEP = 1.1


@dataclass(frozen=True, eq=False)
class Run:
    """Vectors of one signature, in arithmetic progression.

    Attributes:
        places: [vectors, 1 + terms, 2]: block and row, of the result, then of each term.
        terms: the first lanes of the terms.
        first, lane, width, kept: of one vector, see :class:`~plena_jax.lower.kernels.rearrange_lanes.Lanes`.
        size: BLEN.
    """

    places: np.ndarray
    terms: list[int]
    first: np.ndarray
    lane: np.ndarray
    width: np.ndarray
    kept: np.ndarray
    size: int

    @cached_property
    def into(self) -> int | None:
        """The number of the term that is ``into``."""
        lanes = np.flatnonzero(self.kept)
        return self.terms.index(int(self.first[lanes[0]])) if len(lanes) else None

    @cached_property
    def moved(self) -> np.ndarray:
        """Lanes that come from x."""
        return (self.first >= 0) & ~self.kept

    def consecutive(self, terms: set[int]) -> bool:
        """Whether groups of BLEN vectors take consecutive rows of these terms."""
        if len(self.places) < self.size:
            return False
        steps = self.places[1, 1:] - self.places[0, 1:]
        return all(tuple(steps[term]) == (0, 1) for term in terms)

    def parts(self, group: int) -> tuple[tuple[int, np.ndarray], ...]:
        """The terms of a group of lanes, with the lanes of each that it takes."""
        at = slice(group * self.size, (group + 1) * self.size)
        first, lane = self.first[at], self.lane[at]
        found = [t for t in dict.fromkeys(first.tolist()) if t >= 0]
        return tuple((self.terms.index(t), np.where(first == t, lane, -1)) for t in found)


@dataclass(frozen=True, eq=False)
class Draft:
    """A way to make a run; see :class:`~plena_jax.lower.kernels.rearrange_plan.Move`.

    Attributes:
        cost: instructions for a vector.
        clear: whether vectors are cleared first.
        pieces: term, lanes up, mask or None.
        number: term, mask of its lane or None, mask of lanes; or None.
        groups: number and parts, each a term and the lanes to take.
    """

    cost: float
    clear: bool = False
    pieces: tuple[tuple[int, int, np.ndarray | None], ...] = ()
    number: tuple[int, np.ndarray | None, np.ndarray] | None = None
    groups: tuple[tuple[int, tuple[tuple[int, np.ndarray], ...]], ...] = ()

    def masks(self) -> list[np.ndarray]:
        """All masks."""
        found = [mask for _, _, mask in self.pieces] + (list(self.number[1:]) if self.number else [])
        return [np.asarray(mask, np.int64) for mask in found if mask is not None]

    def columns(self) -> list[np.ndarray]:
        """All groups of columns."""
        return [np.asarray(lanes, np.int64) for _, parts in self.groups for _, lanes in parts]


def drafts(run: Run) -> Iterator[Draft]:
    """All ways."""
    if not (run.first >= 0).any():
        yield Draft(1 + _STEP, clear=True)
        return
    if not run.moved.any():
        # They are copied, if ``into`` is elsewhere.
        yield Draft(0)
        return
    yield _products(run)
    if (found := _pieces(run)) is not None:
        yield found
    if (found := _number(run)) is not None:
        yield found


def group_cost(run: Run, groups: list[tuple[int, tuple[tuple[int, np.ndarray], ...]]]) -> float:
    """Instructions for a vector of products of groups of lanes."""
    count = sum(len(parts) for _, parts in groups)
    if run.consecutive({term for _, parts in groups for term, _ in parts}):
        return (2 * count + 2 * len(groups)) / run.size
    return 2.2 * count + len(groups) + _STEP * len(run.terms)


def _written(run: Run, lanes: np.ndarray) -> list[tuple[int, tuple[tuple[int, np.ndarray], ...]]]:
    """The groups with some of these lanes."""
    numbers = np.flatnonzero(lanes.reshape(-1, run.size).any(axis=1))
    return [(int(number), run.parts(int(number))) for number in numbers]


def _products(run: Run) -> Draft:
    groups = _written(run, run.moved)
    clear = run.into is None and len(groups) * run.size < len(run.first)
    return Draft(group_cost(run, groups) + (1 + _STEP if clear else 0), clear=clear, groups=tuple(groups))


def _pieces(run: Run) -> Draft | None:
    """Pieces that cost less than products of their lanes, products for the others."""
    here = np.arange(len(run.first))
    shifts = here - run.lane
    keys = {(int(f), int(s)) for f, s in zip(run.first[run.moved], shifts[run.moved], strict=True) if s >= 0}
    if not 0 < len(keys) <= _PIECES:
        return None
    pieces = {(f, s): run.moved & (run.first == f) & (shifts == s) for f, s in sorted(keys)}
    # Without masks: whether they are needed depends on the choice.
    chosen = {
        key: lanes for key, lanes in pieces.items() if (key[1] > 0) + 1 + _STEP <= group_cost(run, _written(run, lanes))
    }
    if not chosen:
        return None
    covered = np.any(list(chosen.values()), axis=0)
    groups = _written(run, run.moved & ~covered)
    over = np.zeros(len(here), bool)
    for number, _ in groups:
        over[number * run.size : (number + 1) * run.size] = True
    found: list[tuple[int, int, np.ndarray | None]] = []
    cost = group_cost(run, groups) + _STEP
    if run.into is not None:
        found.append((run.into, 0, run.kept))
        cost += 1 + _STEP
    for (first, shift), lanes in chosen.items():
        there = (here >= shift) & (here - shift < run.width[first])
        mask = lanes if (there & ~lanes & ~(over & ~run.kept)).any() else None
        cost += (
            1
            + _STEP
            + (mask is not None and shift > 0)
            + ((bool(found) and shift > 0) or bool(found and mask is not None))
        )
        found.append((run.terms.index(first), shift, mask))
    return Draft(cost, pieces=tuple(found), groups=tuple(groups))


def _number(run: Run) -> Draft | None:
    """One element in all lanes."""
    first, lane = run.first[run.moved], run.lane[run.moved]
    if run.kept.any() or (first != first[0]).any() or (lane != lane[0]).any():
        return None
    only = np.arange(len(run.first)) == lane[0]
    alone = run.width[run.moved][0] == 1
    still = len(run.places) > 1 and not (run.places[1, 1] - run.places[0, 1]).any()
    load = 0.0 if still else 2 + _STEP + (not alone)
    number = run.terms.index(int(first[0])), None if alone else only, run.moved
    return Draft(1 + _STEP + load, number=number)
