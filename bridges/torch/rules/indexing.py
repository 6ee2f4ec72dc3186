"""Elements chosen, and written, by indices. Indices beyond the end, which torch refuses, read NaN and write nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..registry import Refused, Rule, refuse_if, rule


@rule("aten.embedding.default")
def embedding(
    weight: Array, indices: Any, padding: int = -1, scale_by_frequency: bool = False, sparse: bool = False
) -> Array:
    """Rows of a table."""
    return jnp.take(weight, indices, axis=0)


@rule("aten.index_select.default")
def index_select(x: Array, dim: int, index: Any) -> Array:
    """Elements of a dimension."""
    return jnp.take(x, jnp.atleast_1d(index), axis=dim)


def _places(indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(x: Array, indices: Sequence[Any]) -> Array:
    """Elements by indices into some dimensions, as NumPy does."""
    return jnp.asarray(x).at[_places(indices)].get(mode="fill")


def _lines(x: Array, dim: int, index: Any) -> tuple[Any, ...]:
    """Indices into all dimensions, of which those of one are given."""
    places = list(jnp.ogrid[tuple(slice(size) for size in index.shape)])
    places[dim % x.ndim] = jnp.where(jnp.asarray(index) < 0, x.shape[dim], index)
    return tuple(places)


#: Indices along one dimension that are written one after the other.
FEW = 64


@rule("aten.gather.default")
def gather(x: Array, dim: int, index: Any, *, sparse_grad: bool = False) -> Array:
    """Elements by an index along one dimension for each place."""
    if x.ndim == 0:
        return jnp.broadcast_to(x, index.shape)
    kept = [size if d == dim % x.ndim else index.shape[d] for d, size in enumerate(x.shape)]
    return jnp.take_along_axis(lax.slice(x, [0] * x.ndim, kept), index, axis=dim)


@rule("aten.scatter.src", "aten.scatter.value")
def scatter(x: Array, dim: int, index: Any, source: Any) -> Array:
    """Elements written to an index along one dimension for each place."""
    x, axis = jnp.asarray(x), dim % max(x.ndim, 1)
    others = [size for d, size in enumerate(x.shape) if d != axis]
    alike = x.ndim == index.ndim and others == [size for d, size in enumerate(index.shape) if d != axis]
    if isinstance(index, jax.core.Tracer) and alike and index.shape[axis] <= FEW:
        return _one_by_one(x, axis, index, source)
    return jnp.asarray(x).at[_lines(x, dim, index)].set(_part(source, index), mode="drop")


def _one_by_one(x: Array, axis: int, index: Array, source: Any) -> Array:
    """By comparisons, so that no place depends on data: the last of equal indices wins."""
    lanes, last = jnp.arange(x.shape[axis]), lambda a: jnp.moveaxis(a, axis, -1)
    found, places = last(x), last(index)
    values = last(jnp.broadcast_to(_part(source, index), index.shape)).astype(x.dtype)
    for turn in range(places.shape[-1]):
        found = jnp.where(places[..., turn, None] == lanes, values[..., turn, None], found)
    return jnp.moveaxis(found, -1, axis)


@rule("aten.scatter_add.default")
def scatter_add(x: Array, dim: int, index: Any, source: Any) -> Array:
    """Elements added at an index along one dimension for each place."""
    return jnp.asarray(x).at[_lines(x, dim, index)].add(_part(source, index), mode="drop")


@rule("aten.scatter_reduce.two")
def scatter_reduce(x: Array, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True) -> Array:
    """Elements joined with those at an index along one dimension for each place."""
    places, part = jnp.asarray(x).at[_lines(x, dim, index)], _part(source, index)
    ways: dict[str, Rule] = {"sum": places.add, "prod": places.multiply, "amax": places.max, "amin": places.min}
    if reduce not in ways or not include_self:
        raise Refused(f"scatter_reduce with {reduce!r}, include_self={include_self}")
    return ways[reduce](part, mode="drop")


def _part(source: Any, index: Any) -> Any:
    if not jnp.ndim(source):
        return source
    return lax.slice(source, [0] * index.ndim, index.shape)


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(x: Array, indices: Sequence[Any], values: Array, accumulate: bool = False) -> Array:
    """Values written, or added, at indices into some dimensions; or one value where a mask holds."""
    masks = [index for index in indices if index is not None and index.dtype == bool]
    if not masks:
        places = jnp.asarray(x).at[_places(indices)]
        return places.add(values, mode="drop") if accumulate else places.set(values.astype(x.dtype), mode="drop")
    before = next(d for d, index in enumerate(indices) if index is not None)
    refuse_if(
        len(masks) != 1 or masks[0].size == 0 or sum(index is not None for index in indices) != 1 or values.size != 1,
        "writing several values where a mask holds: their number depends on the data; use torch.where",
    )
    mask = masks[0].reshape(masks[0].shape + (1,) * (x.ndim - before - masks[0].ndim))
    value = values.reshape(()).astype(x.dtype)
    return jnp.where(mask, x + value if accumulate else value, x)


@rule("aten.index_copy.default")
def index_copy(x: Array, dim: int, index: Any, source: Array) -> Array:
    """Elements of a dimension written."""
    return jnp.asarray(x).at[_along(x, dim, index)].set(source, mode="drop")


@rule("aten.index_add.default")
def index_add(x: Array, dim: int, index: Any, source: Array, *, alpha: float = 1) -> Array:
    """Elements added to those of a dimension."""
    return jnp.asarray(x).at[_along(x, dim, index)].add(source if alpha == 1 else source * alpha, mode="drop")


@rule("aten.index_fill.int_Scalar", "aten.index_fill.int_Tensor")
def index_fill(x: Array, dim: int, index: Any, value: Any) -> Array:
    """One value written to elements of a dimension."""
    return jnp.asarray(x).at[_along(x, dim, index)].set(value, mode="drop")


def _along(x: Array, dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (dim % x.ndim) + (jnp.atleast_1d(index),)


@rule("aten.slice_scatter.default")
def slice_scatter(
    x: Array, source: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    """A part in a row, or every step-th element of it, replaced."""
    dim %= x.ndim
    first, last, _ = slice(start, end).indices(x.shape[dim])
    if step == 1:
        return lax.dynamic_update_slice_in_dim(x, source.astype(x.dtype), first, dim)
    return jnp.asarray(x).at[(slice(None),) * dim + (slice(first, last, step),)].set(source)


@rule("aten.select_scatter.default")
def select_scatter(x: Array, source: Array, dim: int, index: int) -> Array:
    """One element of a dimension replaced."""
    source = jnp.expand_dims(source.astype(x.dtype), dim)
    return lax.dynamic_update_slice_in_dim(x, source, index % x.shape[dim], dim)


@rule("aten.one_hot.default")
def one_hot(x: Array, classes: int = -1) -> Array:
    """1 at the index, else 0."""
    refuse_if(classes < 0, "one_hot without num_classes: the shape depends on the data")
    return jax.nn.one_hot(x, classes, dtype=jnp.int32)
