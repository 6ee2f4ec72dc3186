"""Reductions, products and what else goes along axes."""

from __future__ import annotations

from functools import partial

import numpy as np

from plena_jax.frontend.tracing import Call, Entry, Unsupported, Walk, primitive
from plena_jax.frontend.views import View, concatenated


def _reduced(kind: str, walk: Walk, call: Call, x: Entry) -> Entry:
    view, axes = walk.view(x), tuple(int(axis) for axis in call.params["axes"])
    if view.dtype.kind in "iu":
        raise Unsupported("arithmetic on integers that depend on data")
    if not all(view.shape[axis] for axis in axes):
        raise Unsupported("a reduction of nothing: an axis has size zero")
    if all(view.shape[axis] == 1 for axis in axes):
        return view.reshape(*call.shape)
    axes = tuple(axis for axis in axes if view.shape[axis] > 1)
    kept = [size for axis, size in enumerate(view.shape) if axis not in axes]
    return walk.add(kind, view, shape=kept, axes=axes, dtype=call.dtype).reshape(*call.shape)


for _primitive, _kind in {
    "reduce_sum": "reduce_sum",
    "reduce_max": "reduce_max",
    "reduce_min": "reduce_min",
    "reduce_or": "reduce_max",
    "reduce_and": "reduce_min",
}.items():
    primitive(_primitive)(partial(_reduced, _kind))


@primitive("reduce_prod")
def reduce_prod(walk: Walk, call: Call, x: Entry) -> Entry:
    """A product of halves."""
    view, axes = walk.view(x), tuple(call.params["axes"])
    kept = tuple(axis for axis in range(view.index.ndim) if axis not in axes)
    count = int(np.prod([view.shape[axis] for axis in axes]))
    parts = view.transpose((*axes, *kept)).reshape(count, *call.shape)
    while parts.shape[0] > 1:
        half = parts.shape[0] // 2
        product = walk.elementwise("mul", parts[:half], parts[half : 2 * half])
        rest = parts[2 * half :]
        parts = concatenated([product, rest], 0) if rest.size else product
    return parts.reshape(*call.shape)


def _to_last(view: View, axis: int) -> View:
    return view.moved(lambda index: np.moveaxis(index, axis, -1))


@primitive("argmax", "argmin")
def argmax(walk: Walk, call: Call, x: Entry) -> Entry:
    """The first of the largest or smallest along one axis."""
    (axis,) = call.params["axes"]
    view = walk.view(x)
    view = view if call.primitive.name == "argmax" else walk.elementwise("neg", view)
    return walk.add("argmax", _to_last(view, axis), shape=call.shape, dtype=call.dtype)


@primitive("cumsum")
def cumsum(walk: Walk, call: Call, x: Entry) -> Entry:
    """Along any axis, in both directions."""
    axis, turned = call.params["axis"], call.params["reverse"]
    view = _to_last(walk.view(x), axis)
    turn = lambda v: v.moved(lambda index: index[..., ::-1]) if turned else v
    found = turn(walk.add("cumsum", turn(view), shape=view.shape))
    return found.moved(lambda index: np.moveaxis(index, -1, axis))


@primitive("top_k")
def top_k(walk: Walk, call: Call, x: Entry) -> list[Entry]:
    """The largest one after the other: each is found, and taken out."""
    view, k = walk.view(x), call.params["k"]
    if call.params.get("axis", -1) not in (-1, view.index.ndim - 1):
        raise Unsupported("top_k along another axis than the last")
    rest, values, places = view, [], []
    lanes = np.arange(view.shape[-1], dtype=np.float32)
    kept = (*view.shape[:-1], 1)
    for turn in range(k):
        values.append(walk.add("reduce_max", rest, shape=kept[:-1], axes=(len(kept) - 1,)).reshape(*kept))
        places.append(walk.add("argmax", rest, shape=kept[:-1], dtype=call.dtypes[1]).reshape(*kept))
        if turn < k - 1:
            at = walk.elementwise("equal", places[-1], lanes, dtype=bool)
            rest = walk.elementwise("select", at, np.asarray(-np.inf, np.float32), rest)
    return [concatenated(values, len(kept) - 1), concatenated(places, len(kept) - 1)]


@primitive("dot_general")
def dot_general(walk: Walk, call: Call, x: Entry, y: Entry) -> Entry:
    """Any axes: operands become [batch, m, k] and [batch, n, k]."""
    (contract_x, contract_y), (batch_x, batch_y) = call.params["dimension_numbers"]
    a, b = walk.view(x), walk.view(y)
    if call.dtype.kind in "iu":
        raise Unsupported("arithmetic on integers that depend on data")
    left, rows = _in_three(a, batch_x, contract_x)
    right, columns = _in_three(b, batch_y, contract_y)
    batch = [a.shape[axis] for axis in batch_x]
    if left.shape[2] == 0:
        raise Unsupported("a product along an axis of size zero")
    found = walk.add("dot", left, right, shape=(left.shape[0], left.shape[1], right.shape[1]), rows=rows)
    return found.reshape(*batch, *rows, *columns)


def _in_three(view: View, batch: tuple[int, ...], contract: tuple[int, ...]) -> tuple[View, tuple[int, ...]]:
    """A view as [batch, free, contracted], and the free sizes."""
    free = [axis for axis in range(view.index.ndim) if axis not in (*batch, *contract)]
    sizes = tuple(view.shape[axis] for axis in free)
    size = lambda axes: int(np.prod([view.shape[axis] for axis in axes], dtype=int))
    moved = view.transpose([*batch, *free, *contract])
    return moved.reshape(size(batch), size(free), size(contract)), sizes


@primitive("conv_general_dilated")
def convolution(walk: Walk, call: Call, x: Entry, w: Entry) -> Entry:
    """In two dimensions, or one; any layout, padding, stride, dilation of the kernel and groups."""
    p = call.params
    numbers = p["dimension_numbers"]
    dimensions = len(numbers.lhs_spec) - 2
    if dimensions not in (1, 2) or p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]):
        raise Unsupported("expected a convolution in one or two dimensions, without dilated input or batch groups")
    pair = lambda values, fill: tuple(values) if dimensions == 2 else (fill, *values)
    image = walk.view(x).transpose(numbers.lhs_spec)
    kernel = walk.view(w).transpose(numbers.rhs_spec)
    if dimensions == 1:
        image = image.reshape(*image.shape[:2], 1, image.shape[2])
        kernel = kernel.reshape(*kernel.shape[:2], 1, kernel.shape[2])
    out = [call.shape[axis] for axis in numbers.out_spec]
    found = walk.add(
        "conv2d",
        image,
        kernel,
        shape=out if dimensions == 2 else (*out[:2], 1, out[2]),
        stride=pair(p["window_strides"], 1),
        padding=tuple(tuple(int(n) for n in item) for item in pair(p["padding"], (0, 0))),
        dilation=pair(p["rhs_dilation"], 1),
        groups=p["feature_group_count"],
    )
    return found.reshape(*out).transpose([int(axis) for axis in np.argsort(numbers.out_spec)])
