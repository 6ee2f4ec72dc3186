"""The backend's matrix product, where it gives the bits of the machine's order.

A product of float32 matrices is as good as the sum along k of ``sums.py`` if every single product is exact, so that it
makes no difference whether it is rounded before it is added, and if the backend adds along k from one end to the other,
each element for itself. Kernels for CPUs mostly do, for small matrices: elements of the result stay in registers while
k runs. Nobody promises it, so it is tried for each shape, once a process, on numbers for which hardly any other order
gives the same result.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from plena_jax.arithmetic import differentiable, lift, lower
from plena_jax.bits import magnitude, u32
from plena_jax.machine.sums import K_BLOCK, LIFT, exact_matmul

#: Random matrices that a shape is tried on.
_TRIALS = 4
#: Lifted sums below this may have parts below the smallest float32: lowered after each product they lose them.
_FINE = np.float32(2.0 ** (LIFT - 125)).view(np.uint32)


_dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)


@differentiable(lambda total, x, w: total + _dot(x, w))
def add_dot(total: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """``total + x @ w``, where the total is lifted (and its tangent is not), by the backend's product.

    After the last term :func:`lowered` gives the bits of the machine's order, if that is what :func:`adds_in_order`
    says and products are exact, or NaN or infinity where it does not: ``accumulate`` does then.
    """
    term = _product(lift(x, LIFT), w)
    return jnp.where(magnitude(term) - u32(1) < _FINE, jnp.float32(np.nan), total + term)


@differentiable(lambda total, x, w: total + _dot(x, w))
def add_quickly(total: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """The same in whatever order is fast: now and then the sum is another one."""
    return total + _dot(lift(x, LIFT), w)


@differentiable(lambda total: total)
def lowered(total: jax.Array) -> jax.Array:
    """A sum of :func:`add_dot` or :func:`add_quickly`."""
    return lower(total, LIFT)


@custom_vmap
def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, w, cpu=_dots, default=exact_matmul)


@_product.def_vmap
def _product_rule(axis_size: int, batched: Any, x: jax.Array, w: jax.Array) -> tuple[jax.Array, bool]:
    # Another kernel would do several products at once, in an order of its own.
    return jax.vmap(exact_matmul, [0 if b else None for b in batched])(x, w), True


def _dots(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w`` in blocks of 128 along k."""
    total = None
    for start in range(0, len(w), K_BLOCK):
        # Operands are what they were when this was tried: arrays, not part of other computations.
        left, right = lax.optimization_barrier((x[:, start : start + K_BLOCK], w[start : start + K_BLOCK]))
        term = _dot(left, right)
        total = term if total is None else total + term
    assert total is not None
    return total


@lru_cache(maxsize=64)
def adds_in_order(m: int, k: int, n: int) -> bool:
    """Whether :func:`add_dot` of [m, k] and [k, n] adds up in the machine's order on CPU."""
    # In a thread of its own, because the caller may be tracing and this is not part of its computation.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_tried, m, k, n).result()


def _tried(m: int, k: int, n: int) -> bool:
    random = np.random.default_rng(0)
    # Significands of 8 and 4 bits, as BF16 and MXFP8 have; and magnitudes that differ, so that every addition rounds.
    numbers = lambda shape, bits: np.ldexp(
        random.integers(-(1 << bits) + 1, 1 << bits, shape).astype(np.float32), random.integers(-12, 12, shape)
    )
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for _ in range(_TRIALS):
            x, w = numbers((m, k), 8), numbers((k, n), 4)
            found = np.asarray(_in_a_loop(x, w))
            if not np.array_equal(found.view(np.uint32), _in_order(x, w).view(np.uint32)):
                return False
    return True


@jax.jit
def _in_a_loop(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w`` as the engine takes it: in a loop, of part of an array."""
    both = jnp.concatenate([w, w])

    def turn(index: Any, total: jax.Array) -> jax.Array:
        tile = lax.dynamic_slice_in_dim(both, index * len(w), len(w), allow_negative_indices=False)
        return add_dot(total, x, tile)

    # Known only when it runs to be one turn.
    turns = jnp.int32(1) + (x[0, 0] != x[0, 0])
    return lowered(lax.fori_loop(0, turns, turn, jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)))


def _in_order(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """``x @ w`` added along k, in blocks of 128."""
    total = np.zeros((len(x), w.shape[1]), np.float32)
    for start in range(0, len(w), K_BLOCK):
        block = np.zeros_like(total)
        for i in range(start, min(start + K_BLOCK, len(w))):
            block = block + x[:, i, None] * w[i]
        total = total + block
    return total
