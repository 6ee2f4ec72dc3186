"""Scaled dot product attention, in the forms that torch has for it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..registry import refuse_if, rule

#: Of a masked score: its exponential is zero beside any other.
_MASKED = float(np.finfo(np.float32).min)


def _grouped_mask(mask: Any, kv_heads: int, group: int) -> Any:
    """A mask for scores [.., kv_heads, group, q, k] of one for [.., heads, q, k]."""
    if mask.ndim < 3:
        return mask
    if mask.shape[-3] == 1:
        return mask[..., None, :, :]
    return mask.reshape(*mask.shape[:-3], kv_heads, group, *mask.shape[-2:])


def _masked(scores: Array, mask: Any) -> Array:
    return jnp.where(mask, scores, _MASKED) if mask.dtype == bool else scores + mask


def _seen(mask: Any) -> Any:
    """Whether a query sees any key; None if all do."""
    allowed = mask if mask.dtype == bool else mask > -np.inf
    if isinstance(allowed, np.ndarray):
        seen = allowed.any(-1, keepdims=True)
        return None if seen.all() else seen
    return jnp.any(allowed, -1, keepdims=True)


def _scores(
    q: Array, k: Array, mask: Any, causal: bool, scale: float | None, equation: str = "...qd,...kd->...qk"
) -> tuple[Array, Any]:
    """Masked scores, and which queries see any key."""
    scores = jnp.einsum(equation, q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    seen = None
    if causal:
        refuse_if(mask is not None, "is_causal and a mask exclude each other")
        scores = _masked(scores, np.tri(q.shape[-2], k.shape[-2], dtype=bool))
    if mask is not None:
        scores, seen = _masked(scores, mask), _seen(mask)
    return scores, seen


@rule("aten.scaled_dot_product_attention.default")
def attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(q k' scale + mask) v; groups of query heads may share a head of k and v, which is not repeated."""
    refuse_if(dropout > 0, "attention with dropout is random; dropout_p must be 0 outside of training")
    heads, kv_heads = (q.shape[-3], k.shape[-3]) if enable_gqa else (1, 1)
    if heads == kv_heads:
        scores, seen = _scores(q, k, mask, causal, scale)
        y = jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(scores, -1), v)
        return y if seen is None else jnp.where(seen, y, 0.0)
    group = heads // kv_heads
    mask = None if mask is None else _grouped_mask(mask, kv_heads, group)
    grouped = q.reshape(*q.shape[:-3], kv_heads, group, *q.shape[-2:])
    scores, seen = _scores(grouped, k, mask, causal, scale, "...hgqd,...hkd->...hgqk")
    y = jnp.einsum("...hgqk,...hkd->...hgqd", jax.nn.softmax(scores, -1), v)
    y = y if seen is None else jnp.where(seen, y, 0.0)
    return y.reshape(*q.shape[:-1], v.shape[-1])


@rule("aten._scaled_dot_product_flash_attention_for_cpu.default")
def flash_attention(
    q: Array,
    k: Array,
    v: Array,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> tuple[Any, ...]:
    """Attention, and the logarithms of the sums of exponentials."""
    y = attention(q, k, v, attn_mask, dropout, causal, scale=scale)
    return y, lambda: jax.nn.logsumexp(_scores(q, k, attn_mask, causal, scale)[0], -1)


@rule("aten._scaled_dot_product_attention_math.default")
def attention_math(
    q: Array,
    k: Array,
    v: Array,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    dropout_mask: Any = None,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Any, ...]:
    """Attention, and the weights."""
    refuse_if(dropout_mask is not None, "attention with dropout is random")
    y = attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=enable_gqa)
    refuse_if(enable_gqa and q.shape[-3] != k.shape[-3], "the weights of grouped attention")
    return y, lambda: jax.nn.softmax(_scores(q, k, mask, causal, scale)[0], -1)
