"""Norms, along any axes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import (
    Sweep,
    close,
    columns,
    places,
    rows_of,
    seen_in,
    swept,
    with_number,
)
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View

#: Products that are looked into for a root and what it scales.
DEEPEST = 4


@graph_pass
def norms(graph: TensorGraph) -> TensorGraph:
    """``x * rsqrt(mean(x**2) + eps)`` becomes rms_norm, of x less its mean layer_norm; with weights and biases."""
    return swept(graph, _root_mean_square, _centred, _weighted, _shifted)


# -- the norm itself --------------------------------------------------------------------------------------------------


def _root_mean_square(sweep: Sweep, operation: Operation) -> View | None:
    """A product of ``rsqrt`` of the mean square of rows, and of their elements."""
    if operation.name != "mul":
        return None
    shape = operation.output.shape
    for root, inside in _factors(sweep, View.of(operation.output), [], 0):
        found = sweep.peel(root, "rsqrt")
        if found is None:
            continue
        power = _mean_square(sweep, found[1][0])
        if power is None:
            continue
        for x, others in _factors(sweep, View.of(operation.output), [], 0):
            if x is root or x.same(root):
                continue
            at, norm = _normed(sweep, power, x)
            if at is None or norm is None:
                continue
            rest = _without(sweep, View.of(operation.output), (x, root))
            if rest is None:
                continue
            region = [found[0], *power.region, *(o for o in (*inside, *others) if o is not operation)]
            if not sweep.hidden([o for o in region if o.output in sweep.users]):
                continue
            result = _result(sweep, power, norm, at)
            for view in rest:
                result = sweep.add("mul", result, view, shape=shape)
            return result
    return None


def _factors(sweep: Sweep, view: View, path: list[Operation], depth: int) -> Iterator[tuple[View, list[Operation]]]:
    """The factors of a product, and of those that are products, each with the products that it is in."""
    inner = sweep.peel(view, "mul") if depth else (sweep.operation, list(sweep.operation.inputs))
    if depth:
        yield view, path
    if inner is not None and depth < DEEPEST and inner[0].name == "mul":
        for operand in inner[1]:
            yield from _factors(sweep, operand, [*path, inner[0]], depth + 1)


def _without(sweep: Sweep, view: View, taken: tuple[View, View], depth: int = 0) -> list[View] | None:
    """The factors but two, each of which must be there once."""
    remaining = list(taken)

    def walk(view: View, depth: int) -> list[View]:
        for number, one in enumerate(remaining):
            if depth and one.same(view):
                del remaining[number]
                return []
        inner = sweep.peel(view, "mul") if depth else (sweep.operation, list(sweep.operation.inputs))
        if inner is None or depth >= DEEPEST or not remaining:
            return [view]
        before = list(remaining)
        found = [factor for operand in inner[1] for factor in walk(operand, depth + 1)]
        return found if len(remaining) < len(before) or not depth else [view]

    rest = walk(view, depth)
    return None if remaining else rest


class _Power:
    """``scale * sum(x**2) + eps`` as a function of rows: what was matched."""

    def __init__(self, total: View, reduction: Operation, scale: float, eps: float, region: list[Operation]) -> None:
        self.row = total.index
        self.rows = rows_of(reduction)
        self.scale, self.eps, self.region = scale, eps, region
        #: The view of the mean of x, if its square is taken off.
        self.mean: View | None = None


def _mean_square(sweep: Sweep, view: View) -> _Power | None:
    """The sum of squares that a view is made of, times a number, plus a number."""
    region: list[Operation] = []
    eps, scale = 0.0, 1.0
    if (found := sweep.peel(view, "add")) and (known := with_number(found[1])):
        region.append(found[0])
        view, eps = known
    if (found := sweep.peel(view, "maximum", "relu")) and (found[0].name == "relu" or found[1][1].scalar == 0.0):
        # A variance is never below zero; only rounding makes it so.
        if sweep.peel(found[1][0], "sub") is None:
            return None
        region.append(found[0])
        view = found[1][0]
    # A standard deviation, squared again.
    if (found := sweep.peel(view, "square")) and (root := sweep.peel(found[1][0], "sqrt")):
        region += [found[0], root[0]]
        view = root[1][0]
    mean: View | None = None
    if difference := sweep.peel(view, "sub"):
        squared = sweep.peel(difference[1][1], "square")
        if squared is None:
            return None
        region += [difference[0], squared[0]]
        view, mean = difference[1][0], squared[1][0]
    while (found := sweep.peel(view, "mul")) and (known := with_number(found[1])):
        region.append(found[0])
        view, scale = known[0], scale * known[1]
    total = sweep.producer(view, "reduce_sum")
    if total is None or scale <= 0:
        return None
    power = _Power(view, total, scale, eps / scale, [*region, total])
    squares = sweep.peel(power.rows, "square")
    if squares is None:
        return None
    power.region.append(squares[0])
    power.rows, power.mean = squares[1][0], mean
    return power


def _normed(sweep: Sweep, power: _Power, x: View) -> tuple[np.ndarray | None, View | None]:
    """Where the elements of x are in the rows that are normed, and those rows."""
    if power.mean is None:
        return places(x, power.row, power.rows), power.rows
    # E[x**2] - mean**2: x is centred only here.
    centred = sweep.peel(x, "sub")
    if centred is None or not close(power.scale * power.rows.shape[1], 1):
        return None, None
    at = places(centred[1][0], power.row, power.rows)
    means = all(_is_mean(sweep, mean, power.rows, power.row) for mean in (power.mean, centred[1][1]))
    if at is None or not means:
        return None, None
    power.region.append(centred[0])
    return at, power.rows


def _result(sweep: Sweep, power: _Power, rows: View, at: np.ndarray) -> View:
    n = rows.shape[1]
    name = "rms_norm" if power.mean is None else "layer_norm"
    # scale * sum(x**2) + eps = scale * n * (mean(x**2) + eps / (scale * n))
    found = seen_in(sweep.add(name, rows, eps=float(np.float32(power.eps / n))), at)
    if close(power.scale * n, 1):
        return found
    return sweep.add("mul", found, sweep.number(1 / math.sqrt(power.scale * n), found.shape))


# -- the mean ---------------------------------------------------------------------------------------------------------


def _is_mean(sweep: Sweep, view: View, rows: View, row: np.ndarray) -> bool:
    """Whether elements of a view are means of those rows of ``rows`` that ``row`` says."""
    scale = 1.0
    while (found := sweep.peel(view, "mul")) and (known := with_number(found[1])):
        view, scale = known[0], scale * known[1]
    total = sweep.producer(view, "reduce_sum")
    if total is None or not close(scale * rows.shape[1], 1):
        return False
    summed = rows_of(total)
    if summed.bases != rows.bases or summed.shape[1] != rows.shape[1]:
        return False
    pairs = np.unique(np.stack([view.index.reshape(-1), row.reshape(-1)]), axis=1)
    ordered = lambda positions: np.sort(positions, axis=1)
    return bool(np.array_equal(ordered(summed.index[pairs[0]]), ordered(rows.index[pairs[1]])))


def _centred(sweep: Sweep, operation: Operation) -> View | None:
    """rms_norm of rows less their mean is layer_norm of the rows."""
    if operation.name != "rms_norm":
        return None
    found = sweep.peel(operation.inputs[0], "sub")
    if found is None or not sweep.hidden([found[0]]):
        return None
    x, mean = found[1]
    row = np.broadcast_to(np.arange(x.shape[0])[:, None], x.shape)
    if not _is_mean(sweep, mean, x, row):
        return None
    return sweep.add("layer_norm", x, *operation.inputs[1:], **operation.attributes)


# -- weight and bias --------------------------------------------------------------------------------------------------


def _weighted(sweep: Sweep, operation: Operation) -> View | None:
    """A norm times numbers that depend on the column only."""
    return _with_columns(sweep, operation, "mul", 1)


def _shifted(sweep: Sweep, operation: Operation) -> View | None:
    """A layer_norm plus numbers that depend on the column only."""
    return _with_columns(sweep, operation, "add", 2)


def _with_columns(sweep: Sweep, operation: Operation, kind: str, operands: int) -> View | None:
    if operation.name != kind:
        return None
    for normed, numbers in (operation.inputs, operation.inputs[::-1]):
        norm = sweep.producer(normed, *(("rms_norm", "layer_norm") if kind == "mul" else ("layer_norm",)))
        if norm is None or len(norm.inputs) > operands or not sweep.hidden([norm]):
            continue
        count, n = norm.inputs[0].shape
        found = columns(numbers, normed.index % n, n, count)
        if found is None:
            continue
        inputs = list(norm.inputs)
        if len(inputs) < operands:
            inputs.append(sweep.number(1, (n,)))
        return seen_in(sweep.add(norm.name, *inputs, found, **norm.attributes), normed.index)
    return None
