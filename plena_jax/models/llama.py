"""A decoder layer of Llama, as SmolLM2 has it, in plain JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = Mapping[str, Any]


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a layer; those of SmolLM2-135M by default.

    Attributes:
        hidden: columns of the residual stream.
        heads, kv_heads: of queries, and of keys and values.
        inter: columns inside of the feed-forward network.
        eps: of the norms.
        theta: of the rotary embedding.
    """

    hidden: int = 576
    heads: int = 9
    kv_heads: int = 3
    inter: int = 1536
    eps: float = 1e-5
    theta: float = 1e5

    @property
    def size(self) -> int:
        """Columns of a head."""
        return self.hidden // self.heads

    @property
    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names of a checkpoint, without ``model.layers.N.``; matrices are [out, in]."""
        kv = self.kv_heads * self.size
        return {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (self.hidden, self.hidden),
            "self_attn.k_proj.weight": (kv, self.hidden),
            "self_attn.v_proj.weight": (kv, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, self.hidden),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.inter, self.hidden),
            "mlp.up_proj.weight": (self.inter, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.inter),
        }


def random_weights(shape: LlamaShape, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 weights by name: normal, matrices of unit gain, norms about one."""
    random = np.random.default_rng(seed)
    found = {}
    for name, size in shape.weights.items():
        x = random.normal(size=size)
        found[name] = (x / size[1] ** 0.5 if len(size) == 2 else 1 + 0.1 * x).astype(np.float32)
    return found


def rope_tables(shape: LlamaShape, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of positions from 0 on: [tokens, size of a head], halves alike."""
    frequencies = shape.theta ** (-np.arange(0, shape.size, 2) / shape.size)
    angles = np.arange(tokens)[:, None] * np.concatenate([frequencies, frequencies])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def decoder_layer(weights: Weights, x: jax.Array, shape: LlamaShape | None = None) -> jax.Array:
    """``x + attention(norm(x))``, then ``x + feed_forward(norm(x))``.

    Args:
        weights: by name, see :attr:`LlamaShape.weights`.
        x: [batch, tokens, hidden].
        shape: sizes.
    """
    shape = shape or LlamaShape()
    x = x + _attention(weights, _norm(x, weights["input_layernorm.weight"], shape.eps), shape)
    return x + _feed_forward(weights, _norm(x, weights["post_attention_layernorm.weight"], shape.eps))


def _norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    return weight * (x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + eps))


def _linear(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("...k,nk->...n", x, w)


def _feed_forward(weights: Weights, x: jax.Array) -> jax.Array:
    gate, up = (_linear(x, weights[f"mlp.{name}_proj.weight"]) for name in ("gate", "up"))
    return _linear(jax.nn.silu(gate) * up, weights["mlp.down_proj.weight"])


def _rotate_half(x: jax.Array) -> jax.Array:
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


def _attention(weights: Weights, x: jax.Array, shape: LlamaShape) -> jax.Array:
    batch, tokens, _ = x.shape
    cos, sin = rope_tables(shape, tokens)
    heads = lambda t, n: t.reshape(batch, tokens, n, shape.size).transpose(0, 2, 1, 3)
    q, k, v = (_linear(x, weights[f"self_attn.{name}_proj.weight"]) for name in "qkv")
    q, k, v = heads(q, shape.heads), heads(k, shape.kv_heads), heads(v, shape.kv_heads)
    q, k = (t * cos + _rotate_half(t) * sin for t in (q, k))
    q = q.reshape(batch, shape.kv_heads, -1, tokens, shape.size)
    scores = jnp.einsum("bhgqd,bhkd->bhgqk", q, k) * shape.size**-0.5
    scores = jnp.where(np.tril(np.ones((tokens, tokens), bool)), scores, -jnp.inf)
    found = jnp.einsum("bhgqk,bhkd->bhgqd", jax.nn.softmax(scores, -1), v)
    found = found.reshape(batch, shape.heads, tokens, shape.size).transpose(0, 2, 1, 3)
    return _linear(found.reshape(batch, tokens, shape.hidden), weights["self_attn.o_proj.weight"])
