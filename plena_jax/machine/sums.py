"""Sums in the order of the hardware model's arithmetic library, which decides the last bit of float32 results.

The orders below reproduce every recorded case (``docs/numerics.md`` says how they were found): products with a matrix
add along k one by one, in blocks of 128; products with a transposed matrix and one row add in eight lanes; a row sum
adds in four interleaved groups of eight lanes. They are written as plain element-wise additions, because a backend may
reorder a ``dot`` or a ``reduce``.

XLA:CPU treats subnormal numbers as zero. A sum whose terms are scaled by a power of two rounds the same and stays out
of that range, so every sum is taken of lifted operands; where lifting overflows, terms are so large that subnormal ones
cannot count, and the plain sum is taken. Derivatives are those of the plain products and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax import arithmetic
from plena_jax.arithmetic import lift, lower
from plena_jax.bits import INFINITY, MAGNITUDE, from_bits, i32, is_nan, magnitude, to_bits, u32

#: k steps that the reference's matrix product adds up before it starts a new partial sum.
K_BLOCK = 128
#: Lanes of the reference's vector unit, and how many of its vectors a row sum interleaves.
LANES = 8
INTERLEAVE = 4
#: Up to this size products are written to memory before they are added, so that the additions run along whole vectors.
_MATERIALISE_BYTES = 1 << 18
#: Exponent by which one operand is lifted where the other has no subnormals, and by which both are otherwise. Twice the
#: second, products below half the smallest subnormal number are all that is lost; the hardware model drops them too.
LIFT = 88
LIFT_BOTH = 44
#: Exponent up to which lifted terms may be summed: what is left of float32's range allows for 2**17 of them.
_ROOM = 110

Plain = Callable[..., jax.Array]


def _differentiable(plain: Plain) -> Callable[[Plain], Plain]:
    """Give an ordered sum the derivative of ``plain``."""

    def decorate(exact: Plain) -> Plain:
        wrapped = jax.custom_jvp(exact)

        def jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            return wrapped(*primals), jax.jvp(plain, primals, tangents)[1]

        wrapped.defjvp(jvp)
        return wraps(exact)(jax.jit(wrapped))

    return decorate


def is_finite(a: jax.Array) -> jax.Array:
    """Whether ``a`` is neither infinite nor NaN, from its bits."""
    return magnitude(a) < u32(INFINITY)


# -- products with a matrix -------------------------------------------------------------------------------------------


@_differentiable(lambda a, x, w: a + jnp.dot(x, w, precision=lax.Precision.HIGHEST))
def accumulate(a: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """``a + x @ w`` for float32 [m, n], [m, k], [k, n], added along k."""
    x, w, large = _lifted_operands(x, w)
    return _add_lifted(a, matmul(x, w), large)


@_differentiable(lambda a, x, w: a + jnp.dot(x, w, precision=lax.Precision.HIGHEST))
def accumulate_lifted(a: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """Like :func:`accumulate` in half the time, if ``w`` has no subnormals and no result is infinite or NaN.

    If a true result is too large for this, the result is infinite or NaN, and stays so when more is accumulated.
    """
    return lower(lift(a, LIFT) + matmul(lift(x, LIFT), w), LIFT)


def _lifted_operands(x: jax.Array, w: jax.Array, k_axis: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both operands of a product lifted, or as they are if that might overflow; and which of the two.

    x is [m, k]; w is [k, n] or, with ``k_axis`` 1, [n, k].
    """
    # Of each k the largest product.
    most = _largest(_exponent(x), 0) + _largest(_exponent(w), 1 - k_axis)
    large = _largest(most, 0) >= 2 * 127 + _ROOM - 2 * LIFT_BOTH
    safely = lambda a: jnp.where(large, a, lift(a, LIFT_BOTH))
    return *lax.optimization_barrier((safely(x), safely(w))), large


def _exponent(a: jax.Array) -> jax.Array:
    """int32: exponent fields."""
    return i32(magnitude(a) >> 23)


def _add_lifted(a: jax.Array, total: jax.Array, large: jax.Array) -> jax.Array:
    """``a + total``, where total is lifted unless ``large``."""
    # If a itself is too large to be lifted, total cannot be so small that a subnormal part of it counts.
    lifted = lift(a, LIFT) + total
    plain = a + jnp.where(large, total, lower(total, LIFT))
    return jnp.where(large | ~is_finite(lifted), arithmetic.propagate_nan(plain, a, total), lower(lifted, LIFT))


@jax.jit
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w``, in plain arithmetic: one product after the other along k, in blocks of 128."""
    k = len(w)
    if k <= K_BLOCK:
        return _block_matmul(x, w)

    def block(start: Any, size: int) -> jax.Array:
        part = lambda a, axis: lax.dynamic_slice_in_dim(a, start, size, axis)
        return _block_matmul(part(x, 1), part(w, 0))

    whole, rest = divmod(k, K_BLOCK)
    total = lax.fori_loop(1, whole, lambda i, t: t + block(i * K_BLOCK, K_BLOCK), block(0, K_BLOCK))
    return total + block(whole * K_BLOCK, rest) if rest else total


def _block_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    if 4 * x.shape[0] * w.size <= _MATERIALISE_BYTES:
        shape = len(w), x.shape[0], w.shape[1]
        products = lax.broadcast_in_dim(x, shape, (1, 0)) * lax.broadcast_in_dim(w, shape, (0, 2))
        products = lax.optimization_barrier(products)
        # Slices keep their axis: reshapes between them would keep two of XLA's passes undoing each other's work.
        total = products[:1]
        for k in range(1, len(w)):
            total = total + products[k : k + 1]
        return total[0]
    term = lambda k: x[:, k, None] * w[k]
    return lax.fori_loop(1, len(w), lambda k, total: total + term(k), term(0))


# -- sums over lanes --------------------------------------------------------------------------------------------------


@_differentiable(lambda a, x, rows: a + jnp.dot(rows, x, precision=lax.Precision.HIGHEST))
def accumulate_dots(a: jax.Array, x: jax.Array, rows: jax.Array) -> jax.Array:
    """``a + rows @ x`` for float32 [n], [k] and [n, k]: eight partial sums along k, then halves, then neighbours.

    A k that is not a multiple of 8 adds one by one.
    """
    lifted, rows, large = _lifted_operands(x[None], rows, 1)
    return _add_lifted(a, _dot_lanes(lifted[0], rows), large)


@jax.jit
def _dot_lanes(x: jax.Array, rows: jax.Array) -> jax.Array:
    products = lax.optimization_barrier(x * rows)
    n, k = rows.shape
    if k % LANES:
        return _sequential(products.T)
    lanes = _sequential(products.reshape(n, k // LANES, LANES).swapaxes(0, 1))
    while lanes.shape[1] > 4:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    return lanes[:, 0]


def _sequential(terms: jax.Array) -> jax.Array:
    """Sum over the first axis, one after the other."""
    if len(terms) <= 16:
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total
    return lax.fori_loop(1, len(terms), lambda i, total: total + terms[i], terms[0])


@_differentiable(lambda rows: rows.sum(axis=-1))
def row_sum(rows: jax.Array) -> jax.Array:
    """float32 [m] sums over the last axis of [m, n]."""
    large = _largest(_exponent(rows).reshape(-1), 0) >= 127 + _ROOM - LIFT
    total = _row_sum(jnp.where(large, rows, lift(rows, LIFT)))
    return jnp.where(large, total, lower(total, LIFT))


@jax.jit
def _row_sum(rows: jax.Array) -> jax.Array:
    m, n = rows.shape
    whole = n // LANES
    total = jnp.zeros(m, jnp.float32)
    for lane in range(whole * LANES, n):
        total = total + rows[:, lane]
    if not whole:
        return total
    vectors = rows[:, : whole * LANES].reshape(m, whole, LANES).swapaxes(0, 1)
    turns = whole // INTERLEAVE
    groups = [jnp.zeros((m, LANES), jnp.float32)]
    if turns:
        groups = list(_sequential(vectors[: turns * INTERLEAVE].reshape(turns, INTERLEAVE, m, LANES)))
    sums = groups[0]
    for vector in [*vectors[turns * INTERLEAVE :], *groups[1:]]:
        sums = sums + vector
    for lane in range(LANES):
        total = total + sums[:, lane]
    return total


@jax.jit
def row_max(rows: jax.Array) -> jax.Array:
    """float32 [m]: largest lane of each row of [m, n], NaN if any is; of zeros with both signs, the reference's one."""
    order, rank, bits = _max_order(rows.shape[1]), jnp.asarray(_max_rank(rows.shape[1])), to_bits(rows)
    nan, zero = is_nan(rows), magnitude(rows) == 0
    # Both zeros have the key 0. Any NaN is above infinity, of several the first in rank.
    most = _largest(jnp.where(nan, np.int32(_NAN_KEY) - rank, jnp.where(zero, 0, arithmetic.total_order(rows))), 1)
    # Of several zeros the last in rank counts.
    last_zero = _largest(jnp.where(zero, 2 * rank + i32(bits >> 31), -1), 1)
    largest = jnp.where(most == 0, u32(last_zero & 1) << 31, to_bits(arithmetic.from_total_order(most)))
    is_nan_key = most > INFINITY
    lane = jnp.asarray(order)[jnp.where(is_nan_key, np.int32(_NAN_KEY) - most, 0)]
    payload = jnp.take_along_axis(bits & u32(MAGNITUDE), lane[:, None], axis=1, mode="promise_in_bounds")[:, 0]
    return from_bits(jnp.where(is_nan_key, payload, largest))


#: Key of the NaN that comes first.
_NAN_KEY = 0x7FFFFFFF


def _largest(keys: jax.Array, axis: int) -> jax.Array:
    """Maximum of int32 over one axis."""
    # XLA:CPU makes two kernels of a reduction of more than 32 elements.
    while keys.shape[axis] > 32 and keys.shape[axis] % 2 == 0:
        half = keys.shape[axis] // 2
        part = lambda start, half=half, keys=keys: lax.slice_in_dim(keys, start, start + half, axis=axis)
        keys = jnp.maximum(part(0), part(half))
    return lax.reduce(keys, np.int32(-(2**31)), lax.max, (axis,))


def _max_order(n: int) -> np.ndarray:
    """The lanes in the order in which an eight-lane maximum, folded in halves, prefers them."""
    order = {lane: rank for rank, lane in enumerate([0, 4, 2, 6, 1, 5, 3, 7])}
    return np.array(sorted(range(n), key=lambda i: (order[i % LANES], i // LANES)), np.int32)


def _max_rank(n: int) -> np.ndarray:
    """The place of each lane in that order."""
    return np.argsort(_max_order(n)).astype(np.int32)
