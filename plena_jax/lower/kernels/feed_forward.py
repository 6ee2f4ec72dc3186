"""What is made of other operators: feed-forward networks and heads of models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from plena_jax.lower.kernels.elementwise import ACTIVATIONS
from plena_jax.lower.operators import Operator, register
from plena_jax.lower.tensors import OperatorError, Place, Tensor

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph


def activate(g: Graph, operator: str, name: str, x: Tensor) -> Tensor:
    """One of :data:`~plena_jax.lower.kernels.elementwise.ACTIVATIONS`.

    Raises:
        OperatorError: there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise OperatorError(f"{operator}: activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return g.apply(ACTIVATIONS[name].operator, x, **ACTIVATIONS[name].attributes)


def _activated(name: str, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[name].reference(x, **ACTIVATIONS[name].attributes)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def gated_ffn_reference(
    x: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array, *, activation: str = "silu"
) -> jax.Array:
    """``(activation(x @ gate) * (x @ up)) @ down``: the activation is on the gate, as in Llama, Qwen and SmolLM."""
    return _dot(_activated(activation, _dot(x, gate)) * _dot(x, up), down)


def gated_ffn(g: Graph, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, *, activation: str) -> Tensor:
    """Three products, the activation, and one product of elements."""
    gated = activate(g, "gated_ffn", activation, g.apply("linear", x, gate))
    return g.apply("linear", g.apply("mul", gated, g.apply("linear", x, up)), down)


def ffn_reference(
    x: jax.Array,
    up: jax.Array,
    down: jax.Array,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    activation: str = "gelu",
) -> jax.Array:
    """``activation(x @ up + up_bias) @ down + down_bias``."""
    hidden = _dot(x, up)
    hidden = _activated(activation, hidden if up_bias is None else hidden + up_bias)
    y = _dot(hidden, down)
    return y if down_bias is None else y + down_bias


def ffn(
    g: Graph, x: Tensor, up: Tensor, down: Tensor, up_bias: Tensor | None, down_bias: Tensor | None, *, activation: str
) -> Tensor:
    """Two products and the activation."""
    return g.apply("linear", activate(g, "ffn", activation, g.apply("linear", x, up, up_bias)), down, down_bias)


def lm_head_reference(x: jax.Array, table: jax.Array) -> jax.Array:
    """Logits of every token: ``x @ table.T`` with the table [vocabulary, hidden] of the embedding."""
    return _dot(x, table.T)


def lm_head(g: Graph, x: Tensor, table: Tensor) -> Tensor:
    """One product with transposed tiles."""
    return g.apply("linear", x, table, transposed=True)


_VECTORS: dict[str, tuple[Place, ...]] = {"up_bias": ("vram", "hbm"), "down_bias": ("vram", "hbm")}

register(
    Operator(
        name="gated_ffn",
        family="feed_forward",
        reference=gated_ffn_reference,
        expand=gated_ffn,
        places={"gate": ("hbm",), "up": ("hbm",), "down": ("hbm",)},
        matrix=("gate", "up", "down"),
        cost="three linear, the activation, mul",
    )
)
register(
    Operator(
        name="ffn",
        family="feed_forward",
        reference=ffn_reference,
        expand=ffn,
        places={"up": ("hbm",), "down": ("hbm",), **_VECTORS},
        matrix=("up", "down"),
        cost="two linear, the activation",
    )
)
register(
    Operator(
        name="lm_head",
        family="feed_forward",
        reference=lm_head_reference,
        expand=lm_head,
        places={"table": ("hbm",)},
        matrix=("table",),
        cost="linear",
    )
)
