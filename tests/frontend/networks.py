"""Networks in plain JAX, small, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.models.llama import LlamaShape, decoder_layer, random_weights

Weights = dict[str, Any]
SMALL = LlamaShape(hidden=32, heads=4, kv_heads=2, inter=48)


@dataclass(frozen=True)
class Network:
    """A function of weights and inputs, with both."""

    function: Callable[..., Any]
    weights: Weights
    inputs: tuple[np.ndarray, ...]

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (self.weights, *self.inputs)


def normal(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def weights(**shapes: tuple[int, ...]) -> Weights:
    made = {}
    for number, (name, shape) in enumerate(shapes.items()):
        norm = name.endswith(("norm", "scale"))
        x = normal(number, *shape, scale=shape[-2] ** -0.5 if len(shape) > 1 else 0.3)
        made[name] = x + 1 if norm else x
    return made


def layer_norm(x: Any, scale: Any, bias: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5) * scale + bias


def split_heads(x: Any, heads: int) -> Any:
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def merge_heads(x: Any) -> Any:
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def attend(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    scores = jnp.einsum("...qd,...kd->...qk", q, k) / np.sqrt(q.shape[-1]).astype(np.float32)
    scores = scores if mask is None else jnp.where(mask, scores, -1e30)
    return jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(scores, -1), v)


def mlp(w: Weights, x: Any) -> Any:
    return jax.nn.relu(x @ w["up"] + w["b"]) @ w["down"]


def attention(w: Weights, x: Any, *more: Any, heads: int, kv_heads: int, mask: np.ndarray | None) -> Any:
    """The second input, if there is one, says which keys count."""
    q, k, v = (split_heads(x @ w[n], h) for n, h in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
    k, v = (jnp.repeat(t, heads // kv_heads, axis=-3) for t in (k, v))
    seen = more[0][None, None, :].astype(bool) if more else mask
    return merge_heads(attend(q, k, v, seen)) @ w["o"]


def gpt2(w: Weights, x: Any) -> Any:
    h = layer_norm(x, w["first_scale"], w["first_bias"]) @ w["qkv"] + w["qkv_bias"]
    q, k, v = (split_heads(t, 2) for t in jnp.split(h, 3, -1))
    causal = np.tril(np.ones((x.shape[-2], x.shape[-2]), bool))
    x = x + merge_heads(attend(q, k, v, causal)) @ w["out"] + w["out_bias"]
    h = layer_norm(x, w["second_scale"], w["second_bias"])
    return x + jax.nn.gelu(h @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]


def vision(w: Weights, image: Any) -> Any:
    patches = jax.lax.conv_general_dilated(image, w["patch"], (4, 4), "VALID")
    x = patches.reshape(patches.shape[0], patches.shape[1], -1).swapaxes(1, 2) + w["patch_bias"] + w["positions"]
    h = layer_norm(x, w["first_scale"], w["first_bias"])
    q, k, v = (split_heads(h @ w[n] + w[f"{n}_bias"], 2) for n in "qkv")
    x = x + merge_heads(attend(q, k, v)) @ w["out"] + w["out_bias"]
    h = layer_norm(x, w["second_scale"], w["second_bias"])
    return x + jax.nn.gelu(h @ w["up"], approximate=True) @ w["down"]


def experts(w: Weights, x: Any) -> Any:
    """Two of four, each computed for all tokens."""
    shares, chosen = jax.lax.top_k(jax.nn.softmax(x @ w["router"], -1), 2)
    shares = shares / shares.sum(-1, keepdims=True)
    gates = (shares[..., None] * jax.nn.one_hot(chosen, 4)).sum(-2)
    results = [jax.nn.silu(x @ w["gate"][e]) * (x @ w["up"][e]) @ w["down"][e] for e in range(4)]
    return sum(gates[:, e, None] * results[e] for e in range(4))


def decode(w: Weights, x: Any, keys: Any, values: Any, *, position: int) -> Any:
    """One token against a cache [heads, tokens, size]; the new caches too."""
    q, k, v = (split_heads(x @ w[n], 2) for n in "qkv")
    keys, values = (
        jax.lax.dynamic_update_slice(cache, new, (0, position, 0)) for cache, new in ((keys, k), (values, v))
    )
    seen = np.arange(keys.shape[1]) <= position
    return merge_heads(attend(q, keys, values, seen[None])) @ w["o"], keys, values


def prefill(w: Weights, x: Any) -> Any:
    causal = np.tril(np.ones((x.shape[0], x.shape[0]), bool))
    return attention(w, x, heads=2, kv_heads=2, mask=causal)


def _projections(hidden: int, kv: int) -> Weights:
    return weights(q=(hidden, hidden), k=(hidden, kv), v=(hidden, kv), o=(hidden, hidden))


ROWS = np.arange(20)
CAUSAL = ROWS[:, None] >= ROWS
_X = normal(50, 20, 32)
_GPT2 = weights(
    first_scale=(32,), first_bias=(32,), qkv=(32, 96), qkv_bias=(96,), out=(32, 32), out_bias=(32,),
    second_scale=(32,), second_bias=(32,), up=(32, 64), up_bias=(64,), down=(64, 32), down_bias=(32,),
)  # fmt: skip
_VISION = weights(
    patch=(32, 3, 4, 4), patch_bias=(32,), positions=(9, 32), first_scale=(32,), first_bias=(32,), q=(32, 32),
    q_bias=(32,), k=(32, 32), k_bias=(32,), v=(32, 32), v_bias=(32,), out=(32, 32), out_bias=(32,),
    second_scale=(32,), second_bias=(32,), up=(32, 48), down=(48, 32),
)  # fmt: skip
_EXPERTS = weights(router=(32, 4), gate=(4, 32, 24), up=(4, 32, 24), down=(4, 24, 32))

#: Norms with scales that matter.
LLAMA = {name: 5 * (x - 1) + 1 if x.ndim == 1 else x for name, x in random_weights(SMALL).items()}

NETWORKS: dict[str, Network] = {
    "mlp": Network(mlp, weights(up=(32, 48), b=(48,), down=(48, 20)), (_X,)),
    "attention": Network(partial(attention, heads=4, kv_heads=4, mask=None), _projections(32, 32), (_X,)),
    "grouped, causal": Network(partial(attention, heads=4, kv_heads=2, mask=CAUSAL), _projections(32, 16), (_X,)),
    "sliding window": Network(
        partial(attention, heads=2, kv_heads=2, mask=CAUSAL & (ROWS[:, None] - ROWS < 5)), _projections(32, 32), (_X,)
    ),
    "padded": Network(
        partial(attention, heads=2, kv_heads=1, mask=None),
        _projections(32, 16),
        (_X, (ROWS < 13).astype(np.float32)),
    ),
    "gpt2": Network(gpt2, _GPT2, (_X,)),
    "vision": Network(vision, _VISION, (normal(51, 1, 3, 12, 12),)),
    "experts": Network(experts, _EXPERTS, (normal(52, 6, 32),)),
    "llama": Network(partial(decoder_layer, shape=SMALL), LLAMA, (normal(53, 2, 17, 32),)),
    "decode": Network(
        partial(decode, position=6), _projections(32, 32), (_X[:1], normal(54, 2, 20, 16), normal(55, 2, 20, 16))
    ),
}
