"""The kinds of operations in a tensor graph: what each computes. One entry each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Kind:
    """A kind of operation.

    Attributes:
        name: in graphs.
        evaluate: arrays by position, attributes by keyword; the result in float32 (or of booleans and integers as the
            function sees it). Its docstring documents the kind.
        elementwise: operands have the shape of the result, and each element depends on those at its place only.
    """

    name: str
    evaluate: Callable[..., Any]
    elementwise: bool = False


KINDS: dict[str, Kind] = {}


def kind(name: str, *, elementwise: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a kind by the function that computes it."""

    def declared(evaluate: Callable[..., Any]) -> Callable[..., Any]:
        assert name not in KINDS, name
        KINDS[name] = Kind(name, evaluate, elementwise)
        return evaluate

    return declared


def find(name: str) -> Kind:
    """The kind of a name."""
    return KINDS[name]


# -- element by element -----------------------------------------------------------------------------------------------

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": jnp.abs,
    "erf": jax.lax.erf,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "gelu": lambda x, *, approximate: (
        x * jax.nn.sigmoid(1.702 * x) if approximate == "sigmoid" else jax.nn.gelu(x, approximate == "tanh")
    ),
    "log": jnp.log,
    "log1p": jnp.log1p,
    "neg": jnp.negative,
    "not": lambda x: 1 - x.astype(jnp.float32),
    "reciprocal": lambda x: 1 / x,
    "relu": jax.nn.relu,
    "rsqrt": jax.lax.rsqrt,
    "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "tanh": jnp.tanh,
    "clamp": lambda x, *, low, high: jnp.clip(x, low, high),
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "equal": lambda x, y: jnp.equal(x, y).astype(jnp.float32),
    "greater": lambda x, y: jnp.greater(x, y).astype(jnp.float32),
    "select": lambda mask, x, y: jnp.where(mask.astype(bool), x, y),
}
for _name, _function in _ELEMENTWISE.items():
    kind(_name, elementwise=True)(_function)

# -- along axes -------------------------------------------------------------------------------------------------------


@kind("reduce_sum")
def reduce_sum(x: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """The sum along axes, which go."""
    return jnp.sum(x, axes)


@kind("reduce_max")
def reduce_max(x: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """The maximum along axes, which go."""
    return jnp.max(x, axes)


@kind("reduce_min")
def reduce_min(x: jax.Array, *, axes: tuple[int, ...]) -> jax.Array:
    """The minimum along axes, which go."""
    return jnp.min(x, axes)


@kind("argmax")
def argmax(x: jax.Array) -> jax.Array:
    """The place of the first maximum along the last axis, which goes."""
    return jnp.argmax(x, -1).astype(jnp.float32)


@kind("cumsum")
def cumsum(x: jax.Array) -> jax.Array:
    """Sums up to each element along the last axis."""
    return jnp.cumsum(x, -1)


@kind("top_k")
def top_k(x: jax.Array, *, k: int) -> jax.Array:
    """The k largest numbers of the last axis, the largest first."""
    return jax.lax.top_k(x, k)[0]


@kind("softmax")
def softmax(x: jax.Array, *, scale: float) -> jax.Array:
    """Along the last axis, of ``scale * x``."""
    return jax.nn.softmax(scale * x, -1)


@kind("rms_norm")
def rms_norm(x: jax.Array, weight: jax.Array | None = None, *, eps: float) -> jax.Array:
    """Along the last axis; weight: of its size."""
    normed = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return normed if weight is None else normed * weight


@kind("layer_norm")
def layer_norm(
    x: jax.Array, weight: jax.Array | None = None, bias: jax.Array | None = None, *, eps: float
) -> jax.Array:
    """Along the last axis; weight and bias: of its size."""
    normed = rms_norm(x - jnp.mean(x, -1, keepdims=True), weight, eps=eps)
    return normed if bias is None else normed + bias


# -- products ---------------------------------------------------------------------------------------------------------


@kind("dot")
def dot(x: jax.Array, y: jax.Array, bias: jax.Array | None = None, *, rows: tuple[int, ...]) -> jax.Array:
    """``x[b] @ y[b].T + bias``: x is [batch, m, k], y is [batch, n, k], bias is [n]; rows: the axes that made m."""
    product = jnp.einsum("bmk,bnk->bmn", x, y, precision=HIGHEST)
    return product if bias is None else product + bias


@kind("conv2d")
def conv2d(
    x: jax.Array,
    w: jax.Array,
    *,
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int],
    groups: int,
) -> jax.Array:
    """x is [batch, channels, height, width], w is [out, channels / groups, height, width]."""
    return jax.lax.conv_general_dilated(
        x, w, stride, padding, rhs_dilation=dilation, feature_group_count=groups, precision=HIGHEST
    )


@kind("host")
def host(*operands: Any, function: Callable[..., Any]) -> Any:
    """Anything that the machine does not do, if it may be done elsewhere."""
    return function(*operands)


@kind("lookup")
def lookup(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a table [rows, columns] for ids [n]."""
    return table[ids]


@kind("rope")
def rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """``x * cos + rotate_half(x) * sin`` along the last axis; tables have the shape of x."""
    first, second = jnp.split(x, 2, -1)
    return x * cos + jnp.concatenate([-second, first], -1) * sin


@kind("attention")
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    sinks: jax.Array | None = None,
    *,
    scale: float,
    causal: bool,
    window: int | None,
    offset: int,
    keys: int | None,
) -> jax.Array:
    """``softmax(scale * q @ k.T + mask) @ v`` for each head.

    q is [heads, queries, size], k and v are [kv_heads, keys, size]; mask is [queries, keys]; sinks are [heads], one
    more logit each, for the denominator only. ``causal``: a query sees keys up to its own position, which begin with
    ``offset``; ``window``: it sees keys that are less than so many positions behind it; ``keys``: that count.
    """
    heads, queries, size = q.shape
    group = heads // k.shape[0]
    scores = scale * jnp.einsum("hgqd,hkd->hgqk", q.reshape(-1, group, queries, size), k, precision=HIGHEST).reshape(
        heads, queries, -1
    )
    if mask is not None:
        scores = scores + mask
    scores = jnp.where(seen(queries, k.shape[1], causal, window, offset, keys), scores, -jnp.inf)
    if sinks is not None:
        scores = jnp.concatenate([scores, jnp.broadcast_to(sinks[:, None, None], (heads, queries, 1))], -1)
    shares = jax.nn.softmax(scores, -1)[..., : k.shape[1]].reshape(-1, group, queries, k.shape[1])
    return jnp.einsum("hgqk,hkd->hgqd", shares, v, precision=HIGHEST).reshape(heads, queries, -1)


def seen(queries: int, keys: int, causal: bool, window: int | None, offset: int, length: int | None) -> Any:
    """Which keys each query sees: [queries, keys] of booleans."""
    row, column = np.arange(queries)[:, None] + offset, np.arange(keys)[None]
    found = np.ones((queries, keys), bool)
    if causal:
        found &= column <= row
    if window is not None:
        found &= column > row - window
    if length is not None:
        found &= column < length
    return found
