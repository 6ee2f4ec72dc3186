"""How a rearrangement is made: for each run of vectors the cheapest of the ways in which the machine moves lanes.

* Pieces: a vector is copied, or moved up with V_SHFT_V, other lanes are masked, pieces are added.
* Products: BLEN lanes of BLEN rows at a time with columns of zeros and ones (M_MM), or of one row (M_MV); lanes of
  several vectors are added in the accumulator.
* A number: one element to a register with V_RED_SUM, then to all lanes.
* Gathers: lanes from a row each, as in a transposition. A product of BLEN rows gives one lane of each, all lanes of the
  result after MLEN/BLEN of them, the right one of each in one of BLEN rows; masks take it from there.
* Elements: one after the other through FP SRAM; where matrix SRAM does not hold the columns that products need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from plena_jax.lower.kernels.rearrange_choice import Draft, Run, drafts
from plena_jax.lower.kernels.rearrange_gather import Gather, Windows
from plena_jax.lower.kernels.rearrange_lanes import Lanes, runs
from plena_jax.lower.rearrangement import Source
from plena_jax.lower.tensors import Shape

#: Masks of a rearrangement at most: each takes a row.
_MASKS = 64


@dataclass(frozen=True)
class Piece:
    """Lanes of one vector, moved up together.

    Attributes:
        term: number of the vector.
        shift: lanes.
        mask: number of the mask, or None.
    """

    term: int
    shift: int
    mask: int | None


@dataclass(frozen=True)
class Number:
    """One element, in several lanes.

    Attributes:
        term: number of the vector.
        lane: number of the mask that has a one in its lane; None if the others are zero.
        mask: number of the mask of the lanes that it goes to.
    """

    term: int
    lane: int | None
    mask: int


@dataclass(frozen=True)
class Group:
    """BLEN lanes of a vector.

    Attributes:
        number: which.
        parts: numbers of terms and of the columns that they are multiplied with.
    """

    number: int
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Move:
    """A run of vectors: zeros, a number, or pieces first; then groups of lanes are written over them.

    Attributes:
        places: [vectors, 1 + terms, 2], in arithmetic progression: block and row, of the result, of each term.
        into: number of the term that is ``into``, or None.
        batched: whether groups of BLEN vectors take consecutive rows.
        clear: whether they are cleared first.
        pieces, number, groups: see there.
    """

    places: np.ndarray
    into: int | None
    batched: bool
    clear: bool
    pieces: tuple[Piece, ...]
    number: Number | None
    groups: tuple[Group, ...]


@dataclass(frozen=True, eq=False)
class Elements:
    """A vector, element by element.

    Attributes:
        place: block and row.
        lanes: [MLEN, 4]: 1 if it comes from ``into``, block, row and lane; -1 for zeros.
    """

    place: tuple[int, int]
    lanes: np.ndarray


@dataclass
class Table:
    """Different rows of numbers, in the order in which they come.

    Attributes:
        most: how many there may be.
        rows: all.
        found: numbers by contents.
    """

    most: int
    rows: list[np.ndarray] = field(default_factory=list)
    found: dict[bytes, int] = field(default_factory=dict)

    def has_room(self, rows: list[np.ndarray]) -> bool:
        """Whether these fit."""
        return len(self.rows) + len({row.tobytes() for row in rows} - self.found.keys()) <= self.most

    def number(self, row: np.ndarray) -> int:
        """The number of a row."""
        row = np.ascontiguousarray(row, np.int64)
        key = row.tobytes()
        if key not in self.found:
            self.found[key] = len(self.rows)
            self.rows.append(row)
        return self.found[key]


@dataclass(frozen=True)
class Sizes:
    """What decides.

    Attributes:
        lanes, size: MLEN and BLEN.
        columns: groups of BLEN columns that matrix SRAM holds.
    """

    lanes: int
    size: int
    columns: int


@dataclass(frozen=True, eq=False)
class Rearrangement:
    """All moves.

    Attributes:
        moves, gathers, elements: in this order.
        masks: rows of zeros and ones.
        columns: of each group of columns the BLEN lanes that are multiplied with one; -1 for none.
    """

    moves: list[Move]
    gathers: list[Gather]
    elements: list[Elements]
    masks: list[np.ndarray]
    columns: list[np.ndarray]


@lru_cache(maxsize=128)
def rearrangement(source: Source, x: Shape, has_into: bool, sizes: Sizes) -> Rearrangement:
    """Plan a rearrangement of a matrix of shape ``x``."""
    return _Planner(source, x, has_into, sizes).run()


class _Planner:
    def __init__(self, source: Source, x: Shape, has_into: bool, sizes: Sizes) -> None:
        self.sizes = sizes
        self.lanes = Lanes.of(source, x, has_into, sizes.lanes)
        self.windows = Windows(self.lanes, x[0], sizes.size)
        self.masks, self.columns = Table(_MASKS), Table(sizes.columns)
        self.moves: list[Move] = []
        self.elements: list[Elements] = []

    def run(self) -> Rearrangement:
        """Signature after signature; those that are gathers together at the end."""
        signatures = self.lanes.signatures()
        order = np.argsort(signatures, kind="stable")
        begins = np.flatnonzero(np.diff(signatures[order], prepend=-1))
        gathered: list[np.ndarray] = []
        for members in np.split(order, begins[1:]):
            vector, size = int(members[0]), self.sizes.size
            # Different vectors: those of few like ones.
            if len(members) < size and self.windows.cost[vector] < self.windows.single[vector]:
                gathered.append(members)
                continue
            found = self._runs(members)
            best = [self._best(one) for one in found]
            cost = sum(
                (draft.cost if draft else np.inf) * len(one.places) for one, draft in zip(found, best, strict=True)
            )
            if self.windows.cost[vector] * len(members) < cost:
                gathered.append(members)
                continue
            for one, draft in zip(found, best, strict=True):
                self._move(one, draft)
        gathers: list[Gather] = []
        if gathered:
            gathers, rest = self.windows.gather(np.sort(np.concatenate(gathered)), self.masks, self.columns)
            for vector in rest:
                for one in self._runs(np.array([vector])):
                    self._move(one, self._best(one))
        return Rearrangement(self.moves, gathers, self.elements, self.masks.rows, self.columns.rows)

    def _runs(self, members: np.ndarray) -> list[Run]:
        all_, vector = self.lanes, int(members[0])
        terms = all_.terms(vector)
        alike = terms, all_.first[vector], all_.lane[vector], all_.width[vector], all_.kept[vector], self.sizes.size
        return [Run(places, *alike) for places in runs(all_.places(members, terms))]

    def _best(self, run: Run) -> Draft | None:
        """The cheapest way for which there is room."""
        return min(filter(self._has_room, drafts(run)), key=lambda draft: draft.cost, default=None)

    def _has_room(self, draft: Draft) -> bool:
        return self.masks.has_room(draft.masks()) and self.columns.has_room(draft.columns())

    def _move(self, run: Run, draft: Draft | None) -> None:
        if draft is not None and not self._has_room(draft):
            # Other runs of the signature have taken it.
            draft = self._best(run)
        if draft is None:
            self.elements += [self._elements(run, number) for number in range(len(run.places))]
            return
        mask = lambda lanes: None if lanes is None else self.masks.number(lanes)
        pieces = tuple(Piece(term, shift, mask(lanes)) for term, shift, lanes in draft.pieces)
        number = None
        if draft.number is not None:
            term, only, lanes = draft.number
            number = Number(term, mask(only), self.masks.number(lanes))
        groups = tuple(
            Group(group, tuple((term, self.columns.number(lanes)) for term, lanes in parts))
            for group, parts in draft.groups
        )
        batched = run.consecutive({term for group in groups for term, _ in group.parts})
        self.moves.append(Move(run.places, run.into, batched, draft.clear, pieces, number, groups))

    def _elements(self, run: Run, number: int) -> Elements:
        where = np.full((self.sizes.lanes, 4), -1)
        for lane in np.flatnonzero(run.first >= 0):
            term = run.terms.index(int(run.first[lane]))
            where[lane] = run.kept[lane], *run.places[number, 1 + term], run.lane[lane]
        block, row = run.places[number, 0].tolist()
        return Elements((block, row), where)
