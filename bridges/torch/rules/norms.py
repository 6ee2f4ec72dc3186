"""Normalisations and softmax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..registry import refuse_if, rule


def _affine(y: Array, weight: Array | None, bias: Array | None) -> Array:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _centred(x: Array, axes: tuple[int, ...], eps: float) -> tuple[Array, Array, Array]:
    mean = jnp.mean(x, axes, keepdims=True)
    centred = x - mean
    scale = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + eps)
    return centred * scale, mean, scale


@rule("aten.native_layer_norm.default")
def native_layer_norm(
    x: Array, shape: list[int], weight: Array | None, bias: Array | None, eps: float
) -> tuple[Any, ...]:
    """Mean 0 and variance 1 over the last dimensions; and the mean and the reciprocal deviation."""
    y, mean, scale = _centred(x, tuple(range(x.ndim - len(shape), x.ndim)), eps)
    return _affine(y, weight, bias), mean, scale


@rule("aten.layer_norm.default")
def layer_norm(
    x: Array,
    shape: list[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Array:
    """Mean 0 and variance 1 over the last dimensions."""
    return native_layer_norm(x, shape, weight, bias, eps)[0]


@rule("aten._fused_rms_norm.default")
def fused_rms_norm(
    x: Array, shape: list[int], weight: Array | None = None, eps: float | None = None
) -> tuple[Any, ...]:
    """Mean square 1 over the last dimensions; and the reciprocal deviation."""
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    scale = lax.rsqrt(jnp.mean(x * x, axes, keepdims=True) + eps)
    return _affine(x * scale, weight, None), scale


@rule("aten.rms_norm.default")
def rms_norm(x: Array, shape: list[int], weight: Array | None = None, eps: float | None = None) -> Array:
    """Mean square 1 over the last dimensions."""
    return fused_rms_norm(x, shape, weight, eps)[0]


def _channels(vector: Array | None, rank: int) -> Array | None:
    return None if vector is None else vector.reshape((-1,) + (1,) * (rank - 2))


def _grouped(x: Array, groups: int, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, Array, Array]:
    grouped = x.reshape(x.shape[0], groups, -1)
    y, mean, scale = _centred(grouped, (2,), eps)
    y = _affine(y.reshape(x.shape), _channels(weight, x.ndim), _channels(bias, x.ndim))
    return y, mean[..., 0], scale[..., 0]


@rule("aten.group_norm.default")
def group_norm(
    x: Array,
    groups: int,
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Array:
    """Mean 0 and variance 1 in each group of channels."""
    return _grouped(x, groups, weight, bias, eps)[0]


@rule("aten.native_group_norm.default")
def native_group_norm(
    x: Array, weight: Array | None, bias: Array | None, n: int, c: int, positions: int, groups: int, eps: float
) -> tuple[Any, ...]:
    """Mean 0 and variance 1 in each group of channels; and the mean and the reciprocal deviation."""
    return _grouped(x, groups, weight, bias, eps)


@rule("aten.batch_norm.default")
def batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn: bool = True,
) -> Array:
    """Each channel by the mean and variance of the training."""
    refuse_if(
        training, "batch norm with statistics of the batch; export the module in eval mode, with running statistics"
    )
    mean, variance = _channels(mean, x.ndim), _channels(variance, x.ndim)
    assert mean is not None and variance is not None
    return _affine((x - mean) * lax.rsqrt(variance + eps), _channels(weight, x.ndim), _channels(bias, x.ndim))


@rule("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array,
    variance: Array,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    """Each channel by the mean and variance of the training; and two empty results."""
    empty = jnp.zeros((0,), jnp.float32)
    return batch_norm(x, weight, bias, mean, variance, False, momentum, eps), empty, empty


@rule("aten._native_batch_norm_legit.no_stats")
def instance_norm(
    x: Array, weight: Array | None, bias: Array | None, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """Each channel by its own mean and variance, as instance norms do; and these."""
    y, mean, scale = _centred(x, (0, *range(2, x.ndim)), eps)
    y = _affine(y, _channels(weight, x.ndim), _channels(bias, x.ndim))
    return y, lambda: mean.reshape(-1), lambda: scale.reshape(-1)


@rule("aten.softmax.int")
def softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Exponentials with sum 1."""
    return jax.nn.softmax(x if dtype is None else x.astype(dtype), dim)


@rule("aten._softmax.default")
def plain_softmax(x: Array, dim: int, half_to_float: bool) -> Array:
    """Exponentials with sum 1."""
    return jax.nn.softmax(x, dim)


@rule("aten._safe_softmax.default")
def safe_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """Exponentials with sum 1; zeros where all are -inf."""
    known = jnp.any(x > -jnp.inf, dim, keepdims=True)
    return jnp.where(known, jax.nn.softmax(jnp.where(known, x, 0.0), dim), 0.0)


@rule("aten.log_softmax.int")
def log_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """The logarithm of softmax."""
    return jax.nn.log_softmax(x if dtype is None else x.astype(dtype), dim)


@rule("aten._log_softmax.default")
def plain_log_softmax(x: Array, dim: int, half_to_float: bool) -> Array:
    """The logarithm of softmax."""
    return jax.nn.log_softmax(x, dim)
