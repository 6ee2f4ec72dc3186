"""Small functions that use primitives in odd ways, by name; each with the shapes of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _layer(h: Any, w: Any) -> Any:
    return jnp.tanh(h @ w), h.sum()


TRIANGLE = np.tril(np.ones((6, 6), bool))

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "scalars": (lambda x, y: x * y + 2, ((), ())),
    "a vector and a scalar": (lambda x, y: x / (1 + jnp.exp(y)), ((7,), ())),
    "rank 5": (lambda x: jnp.tanh(x).sum((1, 3)), ((2, 3, 1, 4, 5),)),
    "axes of size one": (lambda x, y: x[:, None, :] * y[None, :, None] - 1, ((3, 5), (4,))),
    "outer product": (lambda x, y: jnp.outer(x, y), ((5,), (6,))),
    "a value used again and again": (lambda x: x * x + x - x * x * x, ((4, 9),)),
    "an input that is also a result": (lambda x: (x, x + 1), ((3, 8),)),
    "the same result twice": (lambda x: (y := jnp.exp(-jnp.abs(x)), y), ((3, 8),)),
    "a transposed input": (lambda x: x.T, ((3, 20),)),
    "transposed and added": (lambda x, y: x + y.T, ((6, 17), (17, 6))),
    "product from the left": (lambda x, w: w @ x, ((18, 5), (7, 18))),
    "product of computed values": (lambda x, y: jnp.tanh(x) @ jnp.tanh(y), ((5, 18), (18, 6))),
    "product with itself": (lambda x: (2 * x) @ (2 * x).T, ((6, 19),)),
    "matrix times vector": (lambda w, x: w @ x, ((9, 21), (21,))),
    "inner product": (lambda x, y: jnp.dot(x, y), ((21,), (21,))),
    "batched product": (lambda x, w: jnp.einsum("bij,bjk->bik", x, w), ((3, 4, 5), (3, 5, 6))),
    "contraction of two axes": (lambda x, w: jnp.einsum("abc,cbd->ad", x, w), ((4, 3, 5), (5, 3, 6))),
    "batch axis in the middle": (lambda x, y: jnp.einsum("ibk,jbk->bij", x, jnp.abs(y)), ((4, 2, 5), (3, 2, 5))),
    "reversed": (lambda x: x[::-1, ::-2] * 2, ((4, 9),)),
    "shifted columns": (lambda x: x[:, 1:] - x[:, :-1], ((4, 37),)),
    "concatenated": (lambda x, y: jnp.concatenate([x, 2 * y, x], 1), ((3, 5), (3, 20))),
    "stacked": (lambda x, y: jnp.stack([jnp.exp(x), y], -1), ((3, 5), (3, 5))),
    "split and swapped": (lambda x: jnp.concatenate(jnp.split(jnp.tanh(x), 2, -1)[::-1], -1), ((3, 40),)),
    "padded": (lambda x: jnp.pad(x + 1, ((1, 0), (2, 3)), constant_values=1.5), ((3, 5),)),
    "repeated": (lambda x: jnp.repeat(jnp.tile(jnp.abs(x), (2, 1)), 3, axis=1), ((3, 5),)),
    "reshaped across rows": (lambda x: (x * 2).reshape(10, 6), ((4, 15),)),
    "heads": (lambda x: jnp.tanh(x).reshape(5, 3, 8).transpose(1, 0, 2).sum(-1), ((5, 24),)),
    "known gather": (lambda x: jnp.tanh(x)[jnp.array([2, 0, 2])], ((3, 9),)),
    "update in place": (lambda x, y: x.at[1:3].set(jnp.tanh(y)), ((5, 8), (2, 8))),
    "dynamic slice at a known place": (lambda x: jax.lax.dynamic_slice(x * 2, (1, 3), (2, 4)), ((4, 9),)),
    "mask": (lambda x: jnp.where(TRIANGLE, x, 0.5), ((6, 6),)),
    "comparisons": (lambda x, y: jnp.where((x > y) & ~(x == 0), x, -y), ((4, 9), (4, 9))),
    "clipped": (lambda x: jnp.clip(x, -0.5, 0.25) + jax.nn.relu(x), ((4, 9),)),
    "softmax over rows": (lambda x: jax.nn.softmax(x, 0), ((9, 4),)),
    "softmax over the middle": (lambda x: jax.nn.softmax(x, 1), ((2, 7, 3),)),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, -1), ((4, 9),)),
    "norm of columns": (lambda x: x / jnp.sqrt((x * x).sum(0) + 1e-3), ((8, 5),)),
    "layer norm": (
        lambda x, w, b: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b,
        ((4, 40), (40,), (40,)),
    ),
    "statistics": (lambda x: (x.mean(), x.max(1), x.min((0, 1)), x.std(0)), ((4, 9),)),
    "largest of rows": (lambda x: jnp.argmax(x, -1), ((5, 13),)),
    "running sums": (lambda x: jnp.cumsum(x, 1), ((3, 20),)),
    "powers": (lambda x: (jnp.abs(x) + 0.5) ** 3 + (jnp.abs(x) + 0.5) ** -1.5, ((3, 8),)),
    "logarithms": (lambda x: jnp.log(jnp.abs(x) + 0.1) - jnp.log1p(x * x), ((3, 8),)),
    "error function": (lambda x: jax.lax.erf(x), ((3, 8),)),
    "a loop": (lambda x, w: jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ w) + i, x), ((3, 8), (8, 8))),
    "a scan over layers": (lambda x, w: jax.lax.scan(_layer, x, w), ((3, 8), (3, 8, 8))),
    "a branch that is known": (lambda x: jax.lax.cond(True, jnp.tanh, jnp.exp, x), ((3, 8),)),
    "convolution": (lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME"), ((1, 2, 6, 6), (3, 2, 3, 3))),
    "convolution with strides, of a computed image": (
        lambda x, w: jax.lax.conv_general_dilated(x * 2, w, (2, 1), ((1, 0), (0, 2)), rhs_dilation=(1, 2)),
        ((2, 2, 7, 8), (3, 2, 2, 3)),
    ),
    "convolution by channel": (
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        ),
        ((1, 5, 5, 4), (3, 3, 1, 4)),
    ),
    "pooling": (lambda x: x.reshape(2, 3, 2, 4, 2).max((2, 4)), ((2, 6, 8),)),
}


def arguments(name: str) -> list[np.ndarray]:
    """Normal numbers, the same whenever they are made."""
    random = np.random.default_rng(sum(map(ord, name)))
    return [random.normal(size=shape).astype(np.float32) for shape in FUNCTIONS[name][1]]
