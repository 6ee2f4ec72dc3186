"""Reductions, and what else goes along the last axis."""

from __future__ import annotations

from functools import partial

import numpy as np

from plena_jax.frontend.graph import Operation
from plena_jax.frontend.lowering import Held, Lowering, lowers, without_infinity
from plena_jax.frontend.views import ZERO, View
from plena_jax.lower.rearrangement import Source
from plena_jax.lower.tensors import Tensor


def _rows(view: View) -> View:
    """[all but the last axis, last axis]."""
    return view.reshape(view.size // view.shape[-1], view.shape[-1])


def _vector(view: View) -> View:
    return view.reshape(1, view.size)


# -- reductions -------------------------------------------------------------------------------------------------------


def _reduced(over_columns: str, over_rows: str, lowering: Lowering, operation: Operation) -> Held:
    view, axes = without_infinity(operation.inputs[0]), operation.attributes["axes"]
    kept = [axis for axis in range(view.index.ndim) if axis not in axes]
    count = int(np.prod([view.shape[axis] for axis in axes]))
    across = view.transpose([*kept, *axes]).reshape(operation.output.size, count)
    down = view.transpose([*axes, *kept]).reshape(count, operation.output.size)
    if not lowering.is_free(across) and lowering.is_free(down):
        return Held(lowering.g.apply(over_rows, lowering.vram(down)))
    if not lowering.is_free(across):
        found = _by_parts(over_rows, lowering, view, axes, operation.output.size)
        if found is not None:
            return found
    return Held(lowering.g.apply(over_columns, lowering.vram(across)))


def _by_parts(over_rows: str, lowering: Lowering, view: View, axes: tuple[int, ...], size: int) -> Held | None:
    """Over an axis in the middle: groups of rows, one after the other, if they are free."""
    first, last = min(axes), max(axes)
    if last - first + 1 != len(axes) or last == view.index.ndim - 1:
        return None
    outer = int(np.prod(view.shape[:first], dtype=int))
    inner = int(np.prod(view.shape[last + 1 :], dtype=int))
    parts = view.reshape(outer, -1, inner)
    pieces = [parts[i] for i in range(outer)]
    if outer == 1 or not all(lowering.is_free(piece) for piece in pieces):
        return None
    rows = [lowering.g.apply(over_rows, lowering.vram(piece)) for piece in pieces]
    return Held(joined(lowering, rows, 0))


def joined(lowering: Lowering, parts: list[Tensor], axis: int) -> Tensor:
    """Matrices one below the other (axis 0), or side by side (axis 1)."""
    sizes = [part.shape[axis] for part in parts]
    shape = (sum(sizes), parts[0].shape[1]) if axis == 0 else (parts[0].shape[0], sum(sizes))
    result: Tensor | None = None
    for part, start in zip(parts, np.cumsum([0, *sizes]), strict=False):
        positions = np.full(shape, ZERO)
        own = positions if axis == 0 else positions.T
        inner = np.arange(part.shape[0] * part.shape[1]).reshape(part.shape)
        own[start : start + part.shape[axis]] = inner if axis == 0 else inner.T
        into = [] if result is None else [result]
        result = lowering.g.rearrange(part, *into, source=Source(positions))
    assert result is not None
    return result


lowers("reduce_sum")(partial(_reduced, "reduce_sum", "sum_rows"))
lowers("reduce_max")(partial(_reduced, "reduce_max", "max_rows"))
lowers("reduce_min")(partial(_reduced, "reduce_min", "min_rows"))


@lowers("argmax")
def argmax(lowering: Lowering, operation: Operation) -> Held:
    """Of rows."""
    return Held(lowering.g.argmax(lowering.vram(_rows(without_infinity(operation.inputs[0])))))


@lowers("cumsum")
def cumsum(lowering: Lowering, operation: Operation) -> Held:
    """Of rows."""
    return Held(lowering.g.cumsum(lowering.vram(_rows(operation.inputs[0]))))


# -- normalizations ---------------------------------------------------------------------------------------------------


@lowers("softmax")
def softmax(lowering: Lowering, operation: Operation) -> Held:
    """Of rows."""
    x = lowering.vram(_rows(without_infinity(operation.inputs[0])))
    return Held(lowering.g.softmax(x, **operation.attributes))


@lowers("rms_norm", "layer_norm")
def norm(lowering: Lowering, operation: Operation) -> Held:
    """Of rows; weight and bias are rows."""
    x, *affine = operation.inputs
    vectors = [lowering.either(_vector(view)) for view in affine]
    return Held(lowering.g.apply(operation.name, lowering.vram(_rows(x)), *vectors, **operation.attributes))


@lowers("lookup")
def lookup(lowering: Lowering, operation: Operation) -> Held:
    """Rows of a table in HBM, by integers that are data of a run."""
    table, ids = operation.inputs
    held = lowering.stage(table, "hbm", "activations")
    if ids.constant is not None:
        tokens = tuple(int(i) for i in ids.constant.reshape(-1))
        return Held(lowering.g.embedding(held.tensor, tokens=tokens))
    return Held(lowering.g.lookup(held.tensor, lowering.stage(_vector(ids), "int_sram").tensor))


@lowers("rope")
def rope(lowering: Lowering, operation: Operation) -> Held:
    """The last axis is a head; heads that lie side by side in the rows of x stay so."""
    x, cos, sin = operation.inputs
    order = _heads_side_by_side(lowering, x)
    size = x.shape[-1]
    tables = [lowering.in_order(table, order) for table in (cos, sin)]
    if all((t.index.reshape(len(order), -1, size) == t.index[:, None, :size]).all() for t in tables):
        tables = [View(t.bases, t.index[:, :size], t.dtype) for t in tables]
    found = lowering.g.rope(
        lowering.vram(lowering.in_order(x, order)),
        *(lowering.either(table) for table in tables),
        heads=order.shape[1] // size,
    )
    return lowering.holding(found, order)


def _heads_side_by_side(lowering: Lowering, x: View) -> np.ndarray:
    """An order of the elements of x in whose rows there are whole heads, free if there is one."""
    plain = np.arange(x.size, dtype=np.int32).reshape(-1, x.shape[-1])
    order = lowering.own_order(x)
    if order is not None and order.shape[1] % x.shape[-1] == 0:
        heads = order.reshape(-1, x.shape[-1])
        if (heads == heads[:, :1] + np.arange(x.shape[-1])).all() and not (heads[:, 0] % x.shape[-1]).any():
            return order
    if x.index.ndim < 3 or lowering.is_free(lowering.in_order(x, plain)):
        return plain
    # [heads, rows, size] as [rows, heads * size]
    side = plain.reshape(-1, *x.shape[-2:]).transpose(1, 0, 2).reshape(x.shape[-2], -1)
    return side if lowering.is_free(lowering.in_order(x, side)) else plain
