"""Functions for the tests of passes: attention in many layouts, under many masks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.frontend.programs import random

BATCH, TIME, HEADS, GROUPS, SIZE = 2, 5, 4, 2, 8
Q, K, V = (random(BATCH, HEADS, TIME, SIZE) for _ in range(3))
KEYS, VALUES = random(BATCH, GROUPS, TIME, SIZE), random(BATCH, GROUPS, TIME, SIZE)
QKV, GROUPED = (Q, K, V), (Q, KEYS, VALUES)
BEFORE = np.tril(np.ones((TIME, TIME), bool))
PADDING = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
SINKS = random(HEADS)
_ROW, _COLUMN = np.arange(TIME)[:, None], np.arange(TIME)[None]
WINDOW = (_COLUMN <= _ROW) & (_COLUMN > _ROW - 2)
LEAST = float(np.finfo(np.float32).min)


def plain(q: Any, k: Any, v: Any, change: Any = lambda scores: scores) -> Any:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(SIZE).astype(np.float32)
    return jax.nn.softmax(change(scores), -1) @ v


def under(mask: Any, hidden: float = -1e30) -> Any:
    return lambda q, k, v: plain(q, k, v, lambda scores: jnp.where(mask, scores, hidden))


def plus(numbers: Any) -> Any:
    return lambda q, k, v: plain(q, k, v, lambda scores: scores + np.float32(numbers))


def _repeat(k: Any) -> Any:
    shape = (BATCH, GROUPS, HEADS // GROUPS, TIME, SIZE)
    return jnp.broadcast_to(k[:, :, None], shape).reshape(BATCH, HEADS, TIME, SIZE)


def _grouped(q: Any, k: Any, v: Any) -> Any:
    q = q.reshape(BATCH, GROUPS, HEADS // GROUPS, TIME, SIZE)
    scores = jnp.where(BEFORE, jnp.einsum("bgrqd,bgkd->bgrqk", q, k) * SIZE**-0.5, LEAST)
    return jnp.einsum("bgrqk,bgkd->bgrqd", jax.nn.softmax(scores), v).reshape(BATCH, HEADS, TIME, SIZE)


def _time_first(q: Any, k: Any, v: Any) -> Any:
    q = q.transpose(0, 2, 1, 3).reshape(BATCH, TIME, GROUPS, HEADS // GROUPS, SIZE)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    scores = jnp.where(BEFORE, jnp.einsum("bqgrd,bkgd->bgrqk", q, k) * SIZE**-0.5, LEAST)
    return jnp.einsum("bgrqk,bkgd->bqgrd", jax.nn.softmax(scores), v)


def _jax_nn(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.dot_product_attention(*(z.transpose(0, 2, 1, 3) for z in (q, k, v)), is_causal=True)


def _numbers_everywhere(q: Any, k: Any, v: Any) -> Any:
    return jax.nn.softmax(((q[0, 0] * 0.2) @ (k[0, 0] * 0.5).T) * 3.0) @ v[0, 0]


def _values_first(q: Any, k: Any, v: Any) -> Any:
    return jnp.einsum("bhkd,bhqk->bhdq", v, jax.nn.softmax(jnp.einsum("bhkd,bhqd->bhqk", k, q)))


def _padded(q: Any, k: Any, v: Any, padding: Any) -> Any:
    return plain(q, k, v, lambda scores: jnp.where(padding[:, None, None], scores, -1e30))


def _padded_causal(q: Any, k: Any, v: Any, padding: Any) -> Any:
    return plain(q, k, v, lambda scores: jnp.where(padding[:, None, None] & BEFORE, scores, -1e30))


def _padding_added(q: Any, k: Any, v: Any, padding: Any) -> Any:
    mask = jnp.where(padding[:, None, None] & BEFORE, 0.0, LEAST)
    return plain(q, k, v, lambda scores: scores + mask)


def _padding_times(q: Any, k: Any, v: Any, padding: Any) -> Any:
    mask = (1 - padding[:, None, None].astype(jnp.float32)) * -1e9
    return plain(q, k, v, lambda scores: scores + mask)


def _sinks(q: Any, k: Any, v: Any, sinks: Any) -> Any:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * 0.3 + jnp.where(BEFORE, 0.0, -3e38)
    column = jnp.broadcast_to(sinks.reshape(1, -1, 1, 1), (BATCH, HEADS, TIME, 1))
    logits = jnp.concatenate([scores, column], -1)
    return jax.nn.softmax(logits - logits.max(-1, keepdims=True), -1)[..., :-1] @ v


def _gpt2(q: Any, k: Any, v: Any) -> Any:
    ones = np.float32(BEFORE)
    return plain(q, k, v, lambda scores: scores * ones - 1e4 * (1 - ones))


def _erased_only(q: Any, k: Any, v: Any) -> Any:
    return plain(q, k, v, lambda scores: scores * np.float32(BEFORE))


def _cache(q: Any, k: Any, v: Any, new: Any) -> Any:
    k, v = (jax.lax.dynamic_update_slice(old, new, (0, 0, 3, 0)) for old in (k, v))
    return under(np.arange(TIME) < 4)(q[:, :, :1], _repeat(k), _repeat(v)), k, v


_CAUSAL = {"causal": True, "window": None, "offset": 0, "keys": None}
_OPEN = {"causal": False, "window": None, "keys": None}
_SLOPE = -np.abs(_ROW - _COLUMN)

#: How many operations, their attributes, the function and its arguments.
MATCHED: dict[str, tuple[Any, ...]] = {
    "heads": (1, _OPEN | {"scale": SIZE**-0.5}, plain, *QKV),
    "causal": (1, _CAUSAL | {"scale": SIZE**-0.5}, under(BEFORE), *QKV),
    "one key later": (1, _CAUSAL | {"offset": 1}, under(np.tril(np.ones((TIME, TIME), bool), 1)), *QKV),
    "repeated": (1, _CAUSAL, lambda q, k, v: under(BEFORE)(q, _repeat(k), _repeat(v)), *GROUPED),
    "grouped": (1, _CAUSAL, _grouped, *GROUPED),
    "time first": (1, _CAUSAL, _time_first, *GROUPED),
    "jax.nn": (1, _CAUSAL, _jax_nn, *QKV),
    "jax.nn grouped": (1, _CAUSAL, _jax_nn, *GROUPED),
    "values first": (1, _OPEN | {"scale": 1}, _values_first, *QKV),
    "numbers everywhere": (1, _OPEN | {"scale": 0.3}, _numbers_everywhere, *QKV),
    "added": (1, _CAUSAL, plus(np.where(BEFORE, 0, -1e9)), *QKV),
    "window": (1, _CAUSAL | {"window": 2}, under(WINDOW, -np.inf), *QKV),
    "length": (1, _OPEN | {"keys": 3}, under(np.arange(TIME) < 3, -np.inf), *QKV),
    "slopes": (1, _CAUSAL, plus(_SLOPE + np.where(BEFORE, 0, -np.inf)), *QKV),
    "any known mask": (1, _OPEN, under(np.eye(TIME, dtype=bool)[::-1] | BEFORE, -np.inf), *QKV),
    "decode": (1, _OPEN | {"keys": 4}, lambda q, k, v: under(np.arange(TIME) <= 3)(q[:, :, :1], k, v), *QKV),
    "chunk": (1, _CAUSAL | {"offset": 2}, lambda q, k, v: under(BEFORE[2:4])(q[:, :, :2], k, v), *QKV),
    "known padding": (2, {"causal": True}, under(PADDING[:, None, None] & BEFORE), *QKV),
    "padding": (2, _OPEN, _padded, *QKV, PADDING),
    "padding and causal": (2, _CAUSAL, _padded_causal, *QKV, PADDING),
    "padding added": (2, _CAUSAL, _padding_added, *QKV, PADDING),
    "padding times a number": (2, _OPEN, _padding_times, *QKV, PADDING),
    "gpt2": (1, _CAUSAL | {"scale": SIZE**-0.5}, _gpt2, *QKV),
    "cache": (1, _OPEN | {"keys": 4}, _cache, *GROUPED, random(BATCH, GROUPS, 1, SIZE)),
    "tiled": (1, _OPEN, lambda q, k, v: plain(q, jnp.tile(k, (1, 2, 1, 1)), jnp.tile(v, (1, 2, 1, 1))), *GROUPED),
    "bias of a head": (
        HEADS,
        _OPEN,
        lambda q, k, v, b: plain(q, k, v, lambda s: s + b),
        *QKV,
        random(HEADS, TIME, TIME),
    ),
    "sinks": (1, _CAUSAL, _sinks, *QKV, SINKS),
}


def _shares_used(q: Any, k: Any, v: Any) -> Any:
    shares = jax.nn.softmax(q @ k.swapaxes(-1, -2))
    return shares @ v, shares


def _dropout(q: Any, k: Any, v: Any) -> Any:
    return (jax.nn.softmax(q @ k.swapaxes(-1, -2)) * 1.1) @ v


ALIKE: dict[str, tuple[Any, ...]] = {
    "shares are scaled": (_dropout, *QKV),
    "shares are used too": (_shares_used, *QKV),
    "scores are bent": (lambda q, k, v: plain(q, k, v, jnp.tanh), *QKV),
    "rows that see nothing": (under(np.tril(np.ones((TIME, TIME), bool), -1)), *QKV),
    "scores made zero": (_erased_only, *QKV),
    "mask with zeros": (under(BEFORE, 0.0), *QKV),
    "shares of queries": (lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(-1, -2), -2) @ v, *QKV),
    "keys are cut": (lambda q, k, v: jax.nn.softmax(q @ k.swapaxes(-1, -2))[..., :3] @ v[:, :, :3], *QKV),
}


# -- all passes -------------------------------------------------------------------------------------------------------


def _block(x: Any, w: Any, b: Any, gain: Any, cos: Any, sin: Any) -> Any:
    normed = x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * gain
    q = normed @ w + b
    rotate = lambda y: jnp.concatenate([-y[:, 4:], y[:, :4]], -1)
    q, k = q * cos + rotate(q) * sin, normed * cos + rotate(normed) * sin
    mixed = jax.nn.softmax(jnp.where(BEFORE, q @ k.T, -jnp.inf)) @ x
    return jax.nn.softmax(mixed / (1 + jnp.exp(-mixed)), -1)


EVERYTHING = (_block, random(TIME, 8), random(8, 8), random(8), random(8), random(TIME, 8), random(TIME, 8))
