"""Values of a tensor graph, and views: any movement of their elements as one array of positions.

Reshapes, transpositions, broadcasts, slices, concatenations, padding and gathers at known places are not operations of
the graph: they are absorbed into the views through which operations see their operands. However a movement was
written, the view is the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

#: Positions, of any shape.
Positions = np.ndarray
#: The position of an element that is zero.
ZERO = -1


@dataclass(frozen=True, eq=False)
class Value:
    """An array in a tensor graph: an input, a constant or the result of an operation.

    Attributes:
        name: unique in its graph.
        shape: of any rank.
        dtype: as the function sees it; the machine holds all as numbers of its formats.
        constant: what it holds, or None.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default=np.dtype(np.float32))
    constant: np.ndarray | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class View:
    """Elements of values in some order.

    Attributes:
        bases: the values; each is part of the view.
        index: for each element of the view its position in the flattened bases, one behind the other, or ``ZERO``.
            Broadcasts have strides of zero.
        dtype: of the elements.
    """

    bases: tuple[Value, ...]
    index: Positions
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, value: Value) -> View:
        """A value as it is."""
        return cls((value,), np.arange(value.size, dtype=np.int32).reshape(value.shape), value.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the view."""
        return self.index.shape

    @property
    def size(self) -> int:
        """Elements."""
        return self.index.size

    @property
    def base(self) -> Value:
        """The only base."""
        (base,) = self.bases
        return base

    @cached_property
    def is_whole(self) -> bool:
        """All elements of one base in their order, in whatever shape."""
        if len(self.bases) != 1 or self.size != self.bases[0].size:
            return False
        return bool(np.array_equal(self.index.reshape(-1), np.arange(self.size, dtype=np.int32)))

    @cached_property
    def is_permutation(self) -> bool:
        """All elements of one base, each once."""
        if len(self.bases) != 1 or self.size != self.bases[0].size:
            return False
        seen = np.zeros(self.size, bool)
        flat = self.index.reshape(-1)
        if (flat < 0).any():
            return False
        seen[flat] = True
        return bool(seen.all())

    @cached_property
    def constant(self) -> np.ndarray | None:
        """What it holds, if that is known."""
        if any(base.constant is None for base in self.bases):
            return None
        return self.evaluate([base.constant for base in self.bases]).astype(self.dtype)

    @cached_property
    def scalar(self) -> float | None:
        """The one number that it holds everywhere, if that is known."""
        if self.size == 0 or any(base.constant is None for base in self.bases):
            return None
        if all(step == 0 or size == 1 for step, size in zip(self.index.strides, self.shape, strict=True)):
            first = self._replaced(self.index.reshape(-1)[:1]).constant
        else:
            first = self.constant
        assert first is not None
        number = first.reshape(-1)[0]
        # NaN equals nothing, itself included.
        return float(number) if (first == number).all() else None

    def moved(self, move: Callable[[Positions], Positions]) -> View:
        """The view of moved positions, by NumPy functions that keep what an element is."""
        return self._replaced(move(self.index))

    def _replaced(self, index: Positions) -> View:
        """Of other positions in the same bases; those that are no longer seen are left out."""
        if len(self.bases) == 1:
            return View(self.bases, index, self.dtype)
        return merged(self.bases, index, self.dtype)

    def __getitem__(self, where: Any) -> View:
        """As of NumPy arrays."""
        return self.moved(lambda index: index[where])

    def reshape(self, *shape: int) -> View:
        """As ``numpy.reshape``."""
        return self.moved(lambda index: index.reshape(shape))

    def transpose(self, permutation: Sequence[int]) -> View:
        """As ``numpy.transpose``."""
        return self.moved(lambda index: index.transpose(permutation))

    def broadcast(self, shape: Sequence[int]) -> View:
        """As ``numpy.broadcast_to``."""
        return self if tuple(shape) == self.shape else self.moved(lambda index: np.broadcast_to(index, tuple(shape)))

    def evaluate(self, arrays: Sequence[Any], xp: Any = np) -> Any:
        """The elements, from arrays of the bases."""
        if len(arrays) == 1 and self.is_whole:
            return arrays[0].reshape(self.shape)
        flat = xp.concatenate([array.reshape(-1).astype(self.dtype) for array in arrays])
        index = np.ascontiguousarray(self.index)
        found = flat[np.maximum(index, 0)]
        return found if index.min(initial=0) >= 0 else xp.where(index >= 0, found, xp.zeros((), self.dtype))

    def same(self, other: View) -> bool:
        """Whether both see the same elements."""
        if self is other:
            return True
        return (
            self.shape == other.shape
            and len(self.bases) == len(other.bases)
            and all(a is b for a, b in zip(self.bases, other.bases, strict=True))
            and bool(np.array_equal(self.index, other.index))
        )

    def through(self, inner: dict[Value, View]) -> View:
        """The view in which each base in ``inner`` is replaced by what that view sees."""
        if not any(base in inner for base in self.bases):
            return self
        views = [inner.get(base) or View.of(base) for base in self.bases]
        joined = _joined(views)
        flat = np.concatenate([positions.reshape(-1) for positions in joined[1]])
        index = np.where(self.index >= 0, flat[np.maximum(self.index, 0)], ZERO)
        return merged(joined[0], index, self.dtype)


def _joined(views: Sequence[View]) -> tuple[list[Value], list[Positions]]:
    """All bases, and the positions of each view in them."""
    bases = list(dict.fromkeys(base for view in views for base in view.bases))
    offsets = dict(zip(bases, np.cumsum([0, *(base.size for base in bases)]).tolist(), strict=False))
    positions = []
    for view in views:
        index = view.index
        if len(view.bases) == 1:
            offset = offsets[view.bases[0]]
            index = index if offset == 0 else np.where(index >= 0, index + np.int32(offset), ZERO)
        else:
            starts = np.cumsum([0, *(base.size for base in view.bases)])
            which = np.searchsorted(starts, np.maximum(index, 0), side="right") - 1
            shift = np.array([offsets[base] for base in view.bases])[which] - starts[which]
            index = np.where(index >= 0, index + shift, ZERO)
        positions.append(index)
    return bases, positions


def merged(bases: Sequence[Value], index: Positions, dtype: np.dtype[Any]) -> View:
    """A view of those bases that it sees, in their order."""
    sizes = [base.size for base in bases]
    starts = np.cumsum([0, *sizes])
    flat = index.reshape(-1)
    used = np.zeros(len(bases), bool)
    seen = flat[flat >= 0]
    which = np.searchsorted(starts, seen, side="right") - 1
    used[np.unique(which)] = True
    if not used.any():
        used[0] = True
    kept = [base for base, is_used in zip(bases, used, strict=True) if is_used]
    if len(kept) < len(bases):
        shift = np.cumsum(np.where(used, 0, sizes))
        moved = np.searchsorted(starts, np.maximum(index, 0), side="right") - 1
        index = np.where(index >= 0, index - shift[moved], ZERO)
    return View(tuple(kept), index.astype(np.int32, copy=False), dtype)


def joined(views: Sequence[View], move: Callable[[list[Positions]], Positions]) -> View:
    """A view of several others: ``move`` makes one array of their positions."""
    bases, positions = _joined(views)
    return merged(bases, move(positions), np.result_type(*(view.dtype for view in views)))


def concatenated(views: Sequence[View], axis: int) -> View:
    """As ``numpy.concatenate``."""
    return views[0] if len(views) == 1 else joined(views, lambda positions: np.concatenate(positions, axis))


def zeros(like: View, shape: tuple[int, ...]) -> View:
    """Zeros, as a view of anything."""
    return View(like.bases[:1], np.broadcast_to(np.int32(ZERO), shape), like.dtype)
