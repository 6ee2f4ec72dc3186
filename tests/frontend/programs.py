"""Functions for the tests of passes: many spellings of one thing, and what only looks like it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Function = Callable[..., Any]
RANDOM = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


X, W, B = random(4, 8), random(8), random(8)

# -- activations: kinds by name of the function -----------------------------------------------------------------------

ROOT = float(np.sqrt(2 / np.pi))
ACTIVATIONS: dict[str, tuple[list[str], Function]] = {
    "silu": (["silu"], jax.nn.silu),
    "silu by exp": (["silu"], lambda x: x / (1 + jnp.exp(-x))),
    "silu by tanh": (["silu"], lambda x: 0.5 * x * (1 + jnp.tanh(x / 2))),
    "gelu": (["gelu"], jax.nn.gelu),
    "gelu_new": (["gelu"], lambda x: 0.5 * x * (1 + jnp.tanh(ROOT * (x + 0.044715 * jnp.power(x, 3.0))))),
    "gelu by erf": (["gelu"], lambda x: x * (0.5 * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))))),
    "gelu by erfc": (["gelu"], lambda x: jax.nn.gelu(x, approximate=False)),
    "quick gelu": (["gelu"], lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "sigmoid": (["sigmoid"], lambda x: 1 / (1 + jnp.exp(-x))),
    "sigmoid by tanh": (["sigmoid"], lambda x: 0.5 * (jnp.tanh(x / 2) + 1)),
    "tanh by sigmoid": (["tanh"], lambda x: 2 * jax.nn.sigmoid(2 * x) - 1),
    "tanh by exp": (["tanh"], lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x))),
    "relu": (["relu"], jax.nn.relu),
    "relu by where": (["relu"], lambda x: jnp.where(x > 0, x, 0.0)),
    "softplus": (["softplus"], jax.nn.softplus),
    "square": (["square"], lambda x: x * x),
    "squared relu": (["relu", "square"], lambda x: jax.nn.relu(x) ** 2),
    "mish": (["softplus", "tanh", "mul"], lambda x: x * jnp.tanh(jax.nn.softplus(x))),
    "silu of a part": (["silu", "mul"], lambda x: jax.nn.silu(x[:, :4]) * x[:, 4:]),
    "silu on the other part": (["silu", "mul"], lambda x: x[:, :4] * jax.nn.silu(x[:, 4:])),
    "silu turned": (["silu"], lambda x: (x.T * jax.nn.sigmoid(x.T)).T),
    # What looks like it.
    "sigmoid of other elements": (["sigmoid", "mul"], lambda x: x * jax.nn.sigmoid(x[::-1])),
    "sigmoid is used too": (["sigmoid", "mul"], lambda x: (jax.nn.silu(x), jax.nn.sigmoid(x))),
    "another slope": (["mul", "sigmoid", "mul"], lambda x: x * jax.nn.sigmoid(1.7 * x)),
}

# -- norms ------------------------------------------------------------------------------------------------------------

_mean = lambda x: jnp.mean(x, -1, keepdims=True)
_rms = lambda x: x * jax.lax.rsqrt(_mean(x * x) + 1e-6)


def _fast_variance(x: Any, w: Any, b: Any) -> Any:
    mean = _mean(x)
    variance = jnp.maximum(0.0, _mean(jnp.square(x)) - jnp.square(mean))
    return (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * w) + b


def _two_passes(x: Any, w: Any, b: Any) -> Any:
    mean = x.mean(-1)
    variance = ((x - mean[:, None]) ** 2).mean(-1)
    return w * ((x - mean[:, None]) / jnp.sqrt(variance + 1e-5)[:, None]) + b


def _turned(x: Any, w: Any, b: Any) -> Any:
    return x.T * jax.lax.rsqrt(jnp.mean(x.T**2, 0, keepdims=True) + 1e-6) * w[:, None]


def _two_axes(x: Any, w: Any, b: Any) -> Any:
    z = x.reshape(4, 2, 4)
    return z * jax.lax.rsqrt(jnp.mean(z * z, (1, 2), keepdims=True) + 1e-6)


def _norm_and_mean(x: Any, w: Any, b: Any) -> Any:
    mean = _mean(x * x)
    return x * jax.lax.rsqrt(mean + 1e-6), mean


NORMS: dict[str, tuple[list[str], Function]] = {
    "rsqrt": (["rms_norm"], lambda x, w, b: _rms(x) * w),
    "sqrt": (["rms_norm"], lambda x, w, b: w * (x / jnp.sqrt(_mean(x**2) + 1e-6))),
    "sum": (["rms_norm"], lambda x, w, b: (x * w) * (1 / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) / 8 + 1e-6))),
    "power": (["rms_norm"], lambda x, w, b: x * jnp.power(_mean(jnp.abs(x) ** 2) + 1e-6, -0.5) * w),
    "one plus weight": (["add", "rms_norm"], lambda x, w, b: _rms(x) * (1 + w)),
    "other axis": (["rms_norm"], _turned),
    "two axes": (["rms_norm"], _two_axes),
    "unit length": (["rms_norm"], lambda x, w, b: x / jnp.linalg.norm(x, axis=-1, keepdims=True)),
    "residual": (["add", "rms_norm", "add"], lambda x, w, b: (lambda h: _rms(h) * w + h)(x + b)),
    "norm of a norm": (["rms_norm", "rms_norm"], lambda x, w, b: _rms(_rms(x) * w) * b),
    "two weights": (["rms_norm", "mul", "mul"], lambda x, w, b: (_rms(x) * w, _rms(x) * b)),
    "one row": (["rms_norm", "add"], lambda x, w, b: (lambda h: _rms(h) * w + h)(x[:1])),
    "var": (["layer_norm"], lambda x, w, b: (x - _mean(x)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b),
    "var without axis": (
        ["layer_norm"],
        lambda x, w, b: (x - x.mean(-1)[:, None]) * jax.lax.rsqrt(x.var(-1)[:, None] + 1e-5) * w + b,
    ),
    "fast variance": (["layer_norm"], _fast_variance),
    "two passes": (["layer_norm"], _two_passes),
    "std": (["layer_norm"], lambda x, w, b: (x - _mean(x)) / x.std(-1, keepdims=True)),
    "std squared": (
        ["layer_norm"],
        lambda x, w, b: (x - _mean(x)) / jnp.sqrt(x.std(-1, keepdims=True) ** 2 + 1e-5) * w + b,
    ),
    "bias only": (["layer_norm"], lambda x, w, b: jax.nn.standardize(x) + b),
    "centred first": (["layer_norm"], lambda x, w, b: _rms(x - _mean(x))),
    # What looks like it.
    "eps outside": (
        ["square", "reduce_sum", "mul", "sqrt", "add", "div"],
        lambda x, w, b: x / (jnp.sqrt(_mean(x * x)) + 1e-2),
    ),
    "wrong axis": (
        ["square", "reduce_sum", "mul", "add", "rsqrt", "mul"],
        lambda x, w, b: x[:, :4] * jax.lax.rsqrt(jnp.mean(x[:, :4] ** 2, 0, keepdims=True) + 1e-2).T,
    ),
    "mean is used too": (["square", "reduce_sum", "mul", "add", "rsqrt", "mul"], _norm_and_mean),
    "of something else": (
        ["add", "square", "reduce_sum", "mul", "add", "rsqrt", "mul"],
        lambda x, w, b: x * jax.lax.rsqrt(_mean((x + b) ** 2) + 1e-6),
    ),
    "weight of rows": (["rms_norm", "mul"], lambda x, w, b: _rms(x) * w[:4, None]),
}

# -- softmax ----------------------------------------------------------------------------------------------------------


def _exponentials_used(x: Any) -> Any:
    e = jnp.exp(x)
    return e / e.sum(-1, keepdims=True), e


SOFTMAX: dict[str, tuple[list[str], Function]] = {
    "scaled": (["softmax"], lambda x: jax.nn.softmax(x / 3.0)),
    "other axis": (["softmax"], lambda x: jax.nn.softmax(x, 0)),
    "all axes": (["softmax"], lambda x: jax.nn.softmax(x, (0, 1))),
    "no maximum": (["softmax"], lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)),
    "one maximum": (["softmax"], lambda x: jnp.exp(x - x.max()) * (1 / jnp.exp(x - x.max()).sum(-1))[:, None]),
    "logsumexp": (["softmax"], lambda x: jnp.exp(x - jax.nn.logsumexp(x, -1, keepdims=True))),
    "log_softmax": (["softmax"], lambda x: jnp.exp(jax.nn.log_softmax(x, 0))),
    "log": (["softmax"], lambda x: jnp.exp(x - jnp.log(jnp.exp(x).sum(-1, keepdims=True)))),
    # What looks like it.
    "wrong axis": (["exp", "reduce_sum", "div"], lambda x: jnp.exp(x[:, :4]) / jnp.exp(x[:, :4]).sum(0)[:, None]),
    "exponentials are used too": (["exp", "reduce_sum", "div"], _exponentials_used),
    "one more": (["exp", "reduce_sum", "add", "div"], lambda x: jnp.exp(x) / (jnp.exp(x).sum(-1, keepdims=True) + 1)),
}

# -- rope -------------------------------------------------------------------------------------------------------------

HEADS = random(2, 3, 4, 8)
_ANGLES = np.outer(np.arange(4), 10.0 ** -np.arange(4))
COS, SIN = np.cos(_ANGLES).astype(np.float32), np.sin(_ANGLES).astype(np.float32)
_twice = lambda table: jnp.concatenate([table, table], -1)
_rotated = lambda x: jnp.concatenate([-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]], -1)
_joined = lambda *parts: jnp.concatenate(parts, -1)


def _split(x: Any, c: Any, s: Any) -> Any:
    a, b = jnp.split(x, 2, -1)
    return _joined(a * c - b * s, a * s + b * c)


def _neighbours(x: Any, c: Any, s: Any) -> Any:
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)


def _gptj(x: Any, c: Any, s: Any) -> Any:
    turned = jnp.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return x * jnp.repeat(c, 2, -1) + turned * jnp.repeat(s, 2, -1)


def _heads_last(x: Any, c: Any, s: Any) -> Any:
    y = x.transpose(0, 2, 1, 3)
    return y * _twice(c)[:, None] + _rotated(y) * _twice(s)[:, None]


def _part(x: Any, c: Any, s: Any) -> Any:
    y = x[..., :4]
    return _joined(y * _twice(c[:, :2]) + _rotated(y) * _twice(s[:, :2]), x[..., 4:])


def _half_used(x: Any, c: Any, s: Any) -> Any:
    a, b = jnp.split(x, 2, -1)
    crossed = b * s
    return _joined(a * c - crossed, a * s + b * c), crossed


ROPE: dict[str, tuple[list[str], Function]] = {
    "rotate_half": (["rope"], lambda x, c, s: x * _twice(c) + _rotated(x) * _twice(s)),
    "tables first": (["rope"], lambda x, c, s: _twice(s) * _rotated(x) + _twice(c) * x),
    "heads last": (["rope"], _heads_last),
    "halves": (["rope"], _split),
    "neighbours": (["rope"], _neighbours),
    "gptj": (["rope"], _gptj),
    "part": (["rope"], _part),
    "scaled": (["mul", "rope"], lambda x, c, s: (x * 1.5) * _twice(c) + _rotated(x * 1.5) * _twice(s)),
    # What looks like it.
    "wrong sign": (
        ["mul", "neg", "mul", "add"],
        lambda x, c, s: x * _twice(c) + _joined(x[..., 4:], -x[..., :4]) * _twice(s),
    ),
    "no sign": (["mul", "mul", "add"], lambda x, c, s: x * _twice(c) + _joined(x[..., 4:], x[..., :4]) * _twice(s)),
    "a product is used too": (["mul", "mul", "sub", "mul", "mul", "add"], _half_used),
}

# -- linear -----------------------------------------------------------------------------------------------------------

LINEAR: dict[str, tuple[list[str], Function]] = {
    "bias": (["dot"], lambda x, w, b: x @ w + b),
    "bias first": (["dot"], lambda x, w, b: b + jnp.einsum("ij,jk->ik", x, w)),
    "torch": (["dot"], lambda x, w, b: jnp.einsum("ij,kj->ik", x, w.T) + b[None]),
    "batches": (["dot"], lambda x, w, b: x.reshape(2, 2, 8) @ w + b),
    "heads": (["dot"], lambda x, w, b: (x @ w).reshape(4, 2, 4) + b.reshape(2, 4)),
    "turned": (["dot"], lambda x, w, b: w.T @ x.T + b[:, None]),
    # What looks like it.
    "residual": (["dot", "add"], lambda x, w, b: x @ w + x),
    "residual of one row": (["dot", "add"], lambda x, w, b: x[:1] @ w + x[:1]),
    "product is used too": (["dot", "add"], lambda x, w, b: (x @ w, x @ w + b)),
    "another bias for each row": (["dot", "add"], lambda x, w, b: x @ w + jnp.stack([b, b, b, x[0]])),
}
