"""Movements: they become views."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from plena_jax.frontend.tracing import Call, Entry, Unsupported, Walk, primitive
from plena_jax.frontend.views import ZERO, Positions, View, concatenated, joined

#: Products that elements at places that depend on data may take.
MOST_PRODUCTS = 1 << 20


@primitive("reshape")
def reshape(walk: Walk, call: Call, x: Entry) -> View:
    """In the order of elements."""
    if call.params.get("dimensions") is not None:
        raise Unsupported("a reshape with an order of axes")
    return walk.view(x).reshape(*call.shape)


@primitive("squeeze", "expand_dims")
def squeeze(walk: Walk, call: Call, x: Entry) -> View:
    """Axes of size one."""
    return walk.view(x).reshape(*call.shape)


@primitive("transpose")
def transpose(walk: Walk, call: Call, x: Entry) -> View:
    """Axes in another order."""
    return walk.view(x).transpose(call.params["permutation"])


@primitive("broadcast_in_dim")
def broadcast_in_dim(walk: Walk, call: Call, x: Entry, *sizes: Entry) -> View:
    """Elements repeated along new axes and along those of size one."""
    view, shape = walk.view(x), [1] * len(call.shape)
    for axis, size in zip(call.params["broadcast_dimensions"], view.shape, strict=True):
        shape[axis] = size
    return view.reshape(*shape).broadcast(call.shape)


@primitive("slice")
def slice_(walk: Walk, call: Call, x: Entry) -> View:
    """Known places."""
    p = call.params
    steps = p["strides"] or [1] * len(p["start_indices"])
    parts = tuple(slice(*item) for item in zip(p["start_indices"], p["limit_indices"], steps, strict=True))
    return walk.view(x).moved(lambda index: index[parts])


@primitive("rev")
def rev(walk: Walk, call: Call, x: Entry) -> View:
    """The other way round."""
    return walk.view(x).moved(lambda index: np.flip(index, call.params["dimensions"]))


@primitive("concatenate")
def concatenate(walk: Walk, call: Call, *operands: Entry) -> View:
    """One behind the other."""
    return concatenated([walk.view(o) for o in operands], call.params["dimension"])


@primitive("stack")
def stack(walk: Walk, call: Call, *operands: Entry) -> View:
    """Along a new axis."""
    axis = call.params["axis"]
    return joined([walk.view(o) for o in operands], lambda positions: np.stack(positions, axis))


@primitive("tile")
def tile(walk: Walk, call: Call, x: Entry) -> View:
    """Copies side by side."""
    return walk.view(x).moved(lambda index: np.tile(index, call.params["reps"]))


@primitive("split")
def split(walk: Walk, call: Call, x: Entry) -> list[Entry]:
    """Parts along an axis."""
    axis, view = call.params["axis"], walk.view(x)
    edges = np.cumsum([0, *call.params["sizes"]])
    part = lambda first, stop: view.moved(lambda index: np.take(index, np.arange(first, stop), axis))
    return [part(first, stop) for first, stop in itertools.pairwise(edges)]


@primitive("pad")
def pad(walk: Walk, call: Call, x: Entry, value: Entry) -> View:
    """Zeros are positions of nothing; other numbers are a base of the view."""
    return joined(
        [walk.view(x), walk.view(value)],
        lambda positions: _bound(call, positions[0], _zero(walk, value, positions[1])),
    )


def _zero(walk: Walk, value: Entry, position: Positions) -> Positions:
    return np.full(position.shape, ZERO, np.int32) if walk.view(value).scalar == 0 else position.astype(np.int32)


def _bound(call: Call, *operands: Any, **changes: Any) -> Positions:
    """A primitive applied to positions instead of numbers."""
    with jax.ensure_compile_time_eval():
        return np.asarray(call.primitive.bind(*operands, **(call.params | changes)))


def _starts(walk: Walk, starts: tuple[Entry, ...], what: str) -> list[np.ndarray]:
    known = [walk.known(start) for start in starts]
    if any(start is None for start in known):
        raise Unsupported(
            f"{what} at a place that depends on data: make the place static (static_argnums, or a Python number)"
        )
    return [start for start in known if start is not None]


@primitive("dynamic_slice")
def dynamic_slice(walk: Walk, call: Call, x: Entry, *starts: Entry) -> View:
    """Where the place is known."""
    known = _starts(walk, starts, "a slice")
    return walk.view(x).moved(lambda index: _bound(call, index, *known))


@primitive("dynamic_update_slice")
def dynamic_update_slice(walk: Walk, call: Call, x: Entry, update: Entry, *starts: Entry) -> View:
    """Where the place is known."""
    known = _starts(walk, starts, "an update")
    return joined([walk.view(x), walk.view(update)], lambda positions: _bound(call, *positions, *known))


@primitive("scatter")
def scatter(walk: Walk, call: Call, x: Entry, indices: Entry, updates: Entry) -> View:
    """Replaces elements at known places."""
    (known,) = _starts(walk, (indices,), "an update")
    return joined([walk.view(x), walk.view(updates)], lambda p: _bound(call, p[0], known, p[1]))


@primitive("gather")
def gather(walk: Walk, call: Call, x: Entry, indices: Entry) -> View:
    """At known places a view; rows of a table, by integers of an input, a lookup."""
    known = walk.known(indices)
    if known is not None:
        fill = {"fill_value": ZERO} if "FILL" in str(call.params["mode"]) else {}
        index = _bound(call, walk.view(x).index, known, **fill)
        if fill and (index < 0).any() and not (walk.view(x).index < 0).any():
            raise Unsupported("elements outside of the array, which would be NaN")
        return walk.view(x).moved(lambda _: index)
    along = _along_one_axis(walk, call, walk.view(x), walk.view(indices))
    return _lookup(walk, call, walk.view(x), walk.view(indices)) if along is None else along


def _along_one_axis(walk: Walk, call: Call, x: View, indices: View) -> View | None:
    """``take_along_axis``: the sum of products with where the place is that of the index."""
    numbers, dimensions = call.params["dimension_numbers"], x.index.ndim
    batch, start = tuple(numbers.operand_batching_dims), tuple(numbers.start_index_map)
    if len(start) != 1 or len(batch) != dimensions - 1 or tuple(numbers.collapsed_slice_dims) != start:
        return None
    if tuple(numbers.start_indices_batching_dims) != batch or len(call.shape) != dimensions:
        return None
    (axis,), count = start, x.shape[start[0]]
    if count * int(np.prod(call.shape)) > MOST_PRODUCTS:
        return None
    # [..., places, elements]
    to_last = lambda index: np.moveaxis(index, axis, -1)
    places = indices.reshape(*call.shape).moved(to_last)
    shape = (*places.shape, count)
    at = walk.elementwise(
        "equal", places.reshape(*places.shape, 1).broadcast(shape), np.arange(count, dtype=np.float32)
    )
    elements = x.moved(to_last).moved(lambda index: np.broadcast_to(index[..., None, :], shape))
    products = walk.elementwise("mul", elements, at)
    found = walk.add("reduce_sum", products, shape=places.shape, axes=(len(shape) - 1,))
    return found.moved(lambda index: np.moveaxis(index, -1, axis))


def _lookup(walk: Walk, call: Call, table: View, indices: View) -> View:
    numbers, sizes = call.params["dimension_numbers"], call.params["slice_sizes"]
    whole = tuple(sizes) == (1, *table.shape[1:])
    ids = _unwrapped(walk, indices)
    rows = (
        whole
        and tuple(numbers.start_index_map) == (0,)
        and tuple(numbers.collapsed_slice_dims) == (0,)
        and tuple(numbers.offset_dims) == tuple(range(len(call.shape) - table.index.ndim + 1, len(call.shape)))
        and not numbers.operand_batching_dims
    )
    if not rows or ids is None:
        raise Unsupported("elements at places that depend on data, other than rows of a table by integers of an input")
    columns = table.size // table.shape[0]
    found = walk.add("lookup", table.reshape(table.shape[0], columns), ids.reshape(ids.size), shape=(ids.size, columns))
    return found.reshape(*call.shape)


def _unwrapped(walk: Walk, indices: View) -> View | None:
    """Integers of an input, without the arithmetic that makes negative ones count from the end."""
    producers, inputs = walk.graph.producers(), set(walk.graph.inputs)
    view = indices
    while len(view.bases) == 1 and view.base in producers:
        operation = producers[view.base]
        if operation.name not in ("select", "maximum", "minimum", "add"):
            return None
        # select(greater(0, i), i + n, i); clip to the table
        view = view.through({view.base: operation.inputs[-1 if operation.name == "select" else 0]})
    return view if len(view.bases) == 1 and view.base in inputs and view.dtype.kind in "iu" else None
