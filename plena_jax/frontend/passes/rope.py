"""Rotary embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Sweep, swept
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import Positions, View, concatenated

Move = Callable[[Positions], Positions]
Split = Callable[[Positions], tuple[Positions, Positions]]


@graph_pass
def rope(graph: TensorGraph) -> TensorGraph:
    """``x * cos + rotate_half(x) * sin``, of whole vectors, of halves or of neighbours, becomes rope."""
    return swept(graph, _whole, _halves)


# -- whole vectors ----------------------------------------------------------------------------------------------------


def _whole(sweep: Sweep, operation: Operation) -> View | None:
    """A sum of two products: of x, and of x turned."""
    pair = _pair(sweep, operation) if operation.name == "add" else None
    if pair is None:
        return None
    for ones, others in _orders(pair.factors):
        for x, cos in _orders(ones):
            for turned, sin in _orders(others):
                found = _turned(sweep, x, turned)
                if found is None:
                    continue
                moved, back, region = found
                if sweep.hidden([*pair.products, *region]):
                    result = sweep.add("rope", *(view.moved(moved) for view in (x, cos, sin)))
                    return result.moved(back)
    return None


def _turned(sweep: Sweep, x: View, turned: View) -> tuple[Move, Move, list[Operation]] | None:
    """How x is to be moved so that ``turned`` is its second half, negated, before its first; and back."""
    negations = {base: made for base in turned.bases if (made := sweep.made.get(base)) and made.name == "neg"}
    if not negations or turned.index.min(initial=0) < 0:
        return None
    starts = np.cumsum([0, *(base.size for base in turned.bases)])
    which = np.searchsorted(starts, turned.index, side="right") - 1
    is_negative = np.isin(which, [n for n, base in enumerate(turned.bases) if base in negations])
    plain = turned.through({base: made.inputs[0] for base, made in negations.items()})
    if plain.bases != x.bases:
        return None
    for axis, size in reversed(list(enumerate(x.shape))):
        if size % 2:
            continue
        for split, join in _layouts(x.shape, axis):
            first, second = split(x.index)
            plain_first, plain_second = split(plain.index)
            negative_first, negative_second = split(is_negative)
            fits = np.array_equal(plain_first, second) and np.array_equal(plain_second, first)
            if fits and negative_first.all() and not negative_second.any():
                return (lambda index, split=split: np.concatenate(split(index), -1)), join, list(negations.values())
    return None


def _layouts(shape: tuple[int, ...], axis: int) -> list[tuple[Split, Move]]:
    """Ways to split an axis in two parts, which becomes the last, and to put joined parts back: halves, neighbours."""
    last = lambda index: np.moveaxis(index, axis, -1)
    half = shape[axis] // 2

    def halves(index: Positions) -> tuple[Positions, Positions]:
        return last(index)[..., :half], last(index)[..., half:]

    def neighbours(index: Positions) -> tuple[Positions, Positions]:
        return last(index)[..., ::2], last(index)[..., 1::2]

    def interleaved(index: Positions) -> Positions:
        pairs = np.stack([index[..., :half], index[..., half:]], -1)
        return np.moveaxis(pairs.reshape(index.shape), -1, axis)

    return [(halves, lambda index: np.moveaxis(index, -1, axis)), (neighbours, interleaved)]


# -- parts ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """``a * c + b * d``, or the difference: the operation, its products and their factors."""

    operation: Operation
    products: tuple[Operation, Operation]
    factors: tuple[tuple[View, View], tuple[View, View]]


def _pair(sweep: Sweep, operation: Operation) -> _Pair | None:
    one, other = (sweep.peel(view, "mul") for view in operation.inputs)
    if one is None or other is None:
        return None
    (a, c), (b, d) = one[1], other[1]
    return _Pair(operation, (one[0], other[0]), ((a, c), (b, d)))


def _halves(sweep: Sweep, operation: Operation) -> View | None:
    """``x1 * cos - x2 * sin`` and ``x2 * cos + x1 * sin``, in either order."""
    later = _pair(sweep, operation) if operation.name in ("add", "sub") else None
    if later is None:
        return None
    for earlier in _mates(sweep, later):
        minus, plus = (later, earlier) if operation.name == "sub" else (earlier, later)
        found = _rotation(minus, plus)
        other = earlier.operation
        if found is None or not sweep.hidden([*minus.products, *plus.products], other):
            continue
        if any(other.output in view.bases for made in sweep.made.values() for view in made.inputs):
            continue
        x1, x2, (c1, c2), (s1, s2) = found
        join = lambda a, b: concatenated([a, b], a.index.ndim - 1)
        result = sweep.add("rope", join(x1, x2), join(c1, c2), join(s1, s2))
        first, second = (result.moved(lambda i, p=p: np.split(i, 2, -1)[p]) for p in range(2))  # type: ignore[misc]
        if operation.name == "sub":
            first, second = second, first
        sweep.replace(other.output, first)
        del sweep.made[other.output]
        return second
    return None


def _mates(sweep: Sweep, pair: _Pair) -> list[_Pair]:
    """Earlier operations of the other sign on products of the same values, the latest first."""
    kind = "add" if pair.operation.name == "sub" else "sub"
    bases = lambda factors: {base for two in factors for view in two for base in view.bases}
    wanted, shape = bases(pair.factors), pair.operation.output.shape
    candidates = [o for o in sweep.made.values() if o.name == kind and o.output.shape == shape]
    pairs = [found for o in reversed(candidates) if (found := _pair(sweep, o))]
    return [found for found in pairs if bases(found.factors) == wanted]


def _rotation(minus: _Pair, plus: _Pair) -> tuple[View, View, tuple[View, View], tuple[View, View]] | None:
    """x1, x2, and their tables: cos and sin."""
    found = []
    for x1, c1 in _orders(minus.factors[0]):
        for x2, s1 in _orders(minus.factors[1]):
            for one, other in _orders(plus.factors):
                for y2, c2 in _orders(one):
                    for y1, s2 in _orders(other):
                        if x1.same(y1) and x2.same(y2) and x1.shape:
                            found.append((x1, x2, (c1, c2), (s1, s2)))
    # Which factors are the tables: those that are known, or repeated, or small.
    return min(found, key=lambda item: _weight(item[2][0]), default=None)


def _orders(two: tuple[Any, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return two, two[::-1]


def _weight(view: View) -> tuple[bool, int, int]:
    return view.constant is None, len(np.unique(view.index)), sum(base.size for base in view.bases)
