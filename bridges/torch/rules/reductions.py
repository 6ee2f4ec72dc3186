"""Sums, means, extremes, orders along dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..registry import refuse_if, rule

Dims = int | Sequence[int] | None


def _axes(x: Array, dims: Dims) -> tuple[int, ...]:
    """Dimensions that are summed up: all, if none is named."""
    chosen = (dims,) if isinstance(dims, int) else tuple(dims or ())
    return tuple(d % x.ndim for d in chosen if x.ndim) or tuple(range(x.ndim))


def _cast(x: Array, dtype: Any) -> Array:
    if dtype is not None:
        return x.astype(dtype)
    return x.astype(jnp.int32) if x.dtype == bool else x


@rule("aten.sum.default")
def sum_all(x: Array, *, dtype: Any = None) -> Array:
    """The sum of all."""
    return jnp.sum(_cast(x, dtype))


@rule("aten.sum.dim_IntList")
def sum_(x: Array, dims: Dims, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Sums."""
    return jnp.sum(_cast(x, dtype), _axes(x, dims), keepdims=keepdim)


@rule("aten.mean.default")
def mean_all(x: Array, *, dtype: Any = None) -> Array:
    """The mean of all."""
    return jnp.mean(_cast(x, dtype))


@rule("aten.mean.dim")
def mean(x: Array, dims: Dims, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Means."""
    return jnp.mean(_cast(x, dtype), _axes(x, dims), keepdims=keepdim)


@rule("aten.prod.default")
def prod_all(x: Array, *, dtype: Any = None) -> Array:
    """The product of all."""
    return jnp.prod(_cast(x, dtype))


@rule("aten.prod.dim_int")
def prod(x: Array, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Array:
    """Products."""
    return jnp.prod(_cast(x, dtype), dim, keepdims=keepdim)


def _register_extremes(name: str, function: Callable[..., Array], argument: Callable[..., Array]) -> None:
    def over_dims(x: Array, dims: Dims = None, keepdim: bool = False) -> Array:
        return function(x, _axes(x, dims), keepdims=keepdim)

    def with_index(x: Array, dim: int, keepdim: bool = False) -> tuple[Any, ...]:
        return function(x, dim, keepdims=keepdim), lambda: argument(x, dim, keepdims=keepdim)

    def of_all(x: Array) -> Array:
        return function(x)

    def place(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
        return argument(x, dim, keepdims=keepdim)

    rule(f"aten.a{name}.default")(over_dims)
    rule(f"aten.{name}.dim")(with_index)
    rule(f"aten.{name}.default")(of_all)
    rule(f"aten.arg{name}.default")(place)


_register_extremes("max", jnp.max, jnp.argmax)
_register_extremes("min", jnp.min, jnp.argmin)


@rule("aten.any.default", "aten.any.dim", "aten.any.dims")
def any_(x: Array, dims: Dims = None, keepdim: bool = False) -> Array:
    """Whether any is not zero."""
    return jnp.any(x, _axes(x, dims), keepdims=keepdim)


@rule("aten.all.default", "aten.all.dim", "aten.all.dims")
def all_(x: Array, dims: Dims = None, keepdim: bool = False) -> Array:
    """Whether none is zero."""
    return jnp.all(x, _axes(x, dims), keepdims=keepdim)


def _variance(x: Array, dims: Dims, correction: float, keepdim: bool) -> tuple[Array, Array]:
    axes = _axes(x, dims)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    mean_ = jnp.mean(x, axes, keepdims=True)
    centred = x - mean_
    # Torch divides by zero, never by less.
    total = jnp.sum(centred * centred, axes, keepdims=keepdim) / jnp.float32(max(0.0, count - correction))
    return total, mean_ if keepdim else jnp.squeeze(mean_, axes)


def _correction(correction: float | None) -> float:
    return 1 if correction is None else correction


@rule("aten.var.correction")
def var(x: Array, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Array:
    """Variances."""
    return _variance(x, dims, _correction(correction), keepdim)[0]


@rule("aten.var.dim")
def var_dim(x: Array, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Array:
    """Variances."""
    return _variance(x, dims, int(unbiased), keepdim)[0]


@rule("aten.var.default")
def var_all(x: Array, unbiased: bool = True) -> Array:
    """The variance of all."""
    return _variance(x, None, int(unbiased), False)[0]


@rule("aten.std.correction")
def std(x: Array, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False) -> Array:
    """Deviations."""
    return jnp.sqrt(_variance(x, dims, _correction(correction), keepdim)[0])


@rule("aten.std.dim")
def std_dim(x: Array, dims: Dims, unbiased: bool = True, keepdim: bool = False) -> Array:
    """Deviations."""
    return jnp.sqrt(_variance(x, dims, int(unbiased), keepdim)[0])


@rule("aten.std.default")
def std_all(x: Array, unbiased: bool = True) -> Array:
    """The deviation of all."""
    return jnp.sqrt(_variance(x, None, int(unbiased), False)[0])


@rule("aten.var_mean.correction")
def var_mean(
    x: Array, dims: Dims = None, *, correction: float | None = None, keepdim: bool = False
) -> tuple[Array, Array]:
    """Variances and means."""
    return _variance(x, dims, _correction(correction), keepdim)


@rule("aten.logsumexp.default")
def logsumexp(x: Array, dims: Dims, keepdim: bool = False) -> Array:
    """Logarithms of sums of exponentials."""
    return jax.nn.logsumexp(x, _axes(x, dims), keepdims=keepdim)


@rule("aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim")
def vector_norm(
    x: Array, order: float | None = 2, dims: Dims = None, keepdim: bool = False, *, dtype: Any = None
) -> Array:
    """Roots of sums of powers; the largest for an infinite power."""
    axes, order = _axes(x, dims), 2 if order is None else order
    x = _cast(x, dtype)
    if order == 2:
        return jnp.sqrt(jnp.sum(x * x, axes, keepdims=keepdim))
    if order == 1:
        return jnp.sum(jnp.abs(x), axes, keepdims=keepdim)
    if order == float("inf"):
        return jnp.max(jnp.abs(x), axes, keepdims=keepdim)
    refuse_if(order <= 0, f"a norm of order {order}")
    return jnp.sum(jnp.abs(x) ** order, axes, keepdims=keepdim) ** (1 / order)


@rule("aten.cumsum.default")
def cumsum(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """Sums of all up to each."""
    return jnp.cumsum(_cast(x, dtype), dim) if x.ndim else _cast(x, dtype)


@rule("aten.cumprod.default")
def cumprod(x: Array, dim: int, *, dtype: Any = None) -> Array:
    """Products of all up to each."""
    return jnp.cumprod(_cast(x, dtype), dim) if x.ndim else _cast(x, dtype)


@rule("aten.topk.default")
def topk(x: Array, k: int, dim: int = -1, largest: bool = True, sorted_: bool = True) -> tuple[Array, Array]:
    """The largest, or smallest, and where they are; of equal ones the first come first."""
    lines = jnp.moveaxis(x, dim, -1) if dim % x.ndim != x.ndim - 1 else x
    if largest:
        values, places = lax.top_k(lines, k)
    else:
        places = jnp.argsort(lines, -1, stable=True)[..., :k]
        values = jnp.take_along_axis(lines, places, -1)
    if dim % x.ndim != x.ndim - 1:
        values, places = jnp.moveaxis(values, -1, dim), jnp.moveaxis(places, -1, dim)
    return values, places


@rule("aten.sort.default")
def sort(x: Array, dim: int = -1, descending: bool = False) -> tuple[Any, ...]:
    """In order, and where they were; equal ones stay in order."""
    places = jnp.argsort(x, dim, stable=True, descending=descending)
    return jnp.take_along_axis(x, places, dim), places


@rule("aten.sort.stable")
def stable_sort(x: Array, *, stable: bool | None = False, dim: int = -1, descending: bool = False) -> tuple[Any, ...]:
    """In order, and where they were; equal ones stay in order."""
    return sort(x, dim, descending)


@rule("aten.argsort.default")
def argsort(x: Array, dim: int = -1, descending: bool = False) -> Array:
    """Where they are, in order."""
    return jnp.argsort(x, dim, stable=True, descending=descending)
