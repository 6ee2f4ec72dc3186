"""Where the elements of a rearranged matrix come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
from numpy.typing import ArrayLike

from plena_jax.lower.tensors import OperatorError, Shape


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A map from the elements of a result to those of a matrix x; equal and hashable by its contents.

    >>> Source([[2, 0], [1, -1]])
    Source(2x2, 3 moved, 4f9d9f2f)

    Attributes:
        positions: [rows, columns] of flat positions in x, ``row * columns_of_x + column``; -1 for an element that does
            not come from x. Read-only.
    """

    positions: np.ndarray
    _key: bytes = field(init=False)

    def __init__(self, positions: ArrayLike) -> None:
        array = np.asarray(positions)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
            raise OperatorError(f"source: expected integers [rows, columns], got {array.dtype} {array.shape}")
        array = np.array(array, np.int64, order="C")
        if array.min() < -1:
            raise OperatorError(f"source: expected positions from 0 on, or -1, got {array.min()}")
        array.setflags(write=False)
        object.__setattr__(self, "positions", array)
        object.__setattr__(self, "_key", sha256(repr(array.shape).encode() + array.tobytes()).digest())

    @property
    def shape(self) -> Shape:
        """Rows and columns of the result."""
        return self.positions.shape[0], self.positions.shape[1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Source) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        moved = int((self.positions >= 0).sum())
        return f"Source({self.shape[0]}x{self.shape[1]}, {moved} moved, {self._key.hex()[:8]})"
