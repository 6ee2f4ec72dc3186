"""Sums in the order of the hardware model's arithmetic library, which decides the last bit of float32 results.

The orders below reproduce every recorded case (``docs/numerics.md`` says how they were found): products with a matrix
add along k one by one, in blocks of 128; products with a transposed matrix and one row add in eight lanes; a row sum
adds in four interleaved groups of eight lanes. They are written as plain element-wise additions, because a backend may
reorder a ``dot`` or a ``reduce``.

XLA:CPU treats subnormal numbers as zero. A sum whose terms are scaled by a power of two rounds the same and stays out
of that range, so every sum is taken of lifted terms; where those are too large for that, subnormal ones do not count,
and the plain sum is taken. Derivatives are those of the plain products and sums.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from plena_jax import arithmetic
from plena_jax.arithmetic import differentiable, lift, lower
from plena_jax.bits import (
    DEFAULT_NAN,
    INFINITY,
    MAGNITUDE,
    QUIET_NAN,
    SIGN,
    from_bits,
    i32,
    is_nan,
    magnitude,
    to_bits,
    u32,
)
from plena_jax.machine.batching import any_lane

#: k steps that the reference's matrix product adds up before it starts a new partial sum.
K_BLOCK = 128
#: Lanes of the reference's vector unit, and how many of its vectors a row sum interleaves.
LANES = 8
INTERLEAVE = 4
#: Up to this size products are written to memory before they are added, so that the additions run along whole vectors.
_MATERIALISE_BYTES = 1 << 18
#: Exponent by which sums are lifted. Products below 2**-214, which that leaves subnormal, are all that is lost; the
#: hardware model drops them too.
LIFT = 88
#: Terms that a loop over k adds in one turn.
_UNROLLED = 8
#: The same where products are not written to memory.
_WIDELY_UNROLLED = 16

Plain = Callable[..., jax.Array]


def is_finite(a: jax.Array) -> jax.Array:
    """Whether ``a`` is neither infinite nor NaN, from its bits."""
    return magnitude(a) < u32(INFINITY)


# -- products with a matrix -------------------------------------------------------------------------------------------


@differentiable(lambda a, x, w: a + jnp.dot(x, w, precision=lax.Precision.HIGHEST))
def accumulate(a: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """``a + x @ w`` for float32 [m, n], [m, k], [k, n], added along k."""
    return _add(a, matmul(x, w, _lifted_product), _named(matmul(x, w), x, w))


@differentiable(lambda a, x, w: a + jnp.dot(x, w, precision=lax.Precision.HIGHEST))
def accumulate_lifted(a: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """Like :func:`accumulate` in a third of the time, if ``w`` has no subnormals and no result is infinite or NaN.

    If a true result is too large for this, the result is infinite or NaN, and stays so when more is accumulated.
    """
    return lower(lift(a, LIFT) + matmul(lift(x, LIFT), w), LIFT)


@differentiable(lambda a, x, w: a + jnp.dot(x, w, precision=lax.Precision.HIGHEST))
def accumulate_exact(a: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """Like :func:`accumulate_lifted` in five sixths of the time, if float32 holds every product exactly."""
    return lower(lift(a, LIFT) + exact_matmul(lift(x, LIFT), w), LIFT)


def accumulate_quickly(
    a: jax.Array, x: jax.Array, w: jax.Array, subnormal: jax.Array | bool, fast: Plain = accumulate_lifted
) -> jax.Array:
    """The result of :func:`accumulate`, for large operands: in fast arithmetic, and again only if that will not do.

    Args:
        a, x, w: as there.
        subnormal: whether ``w`` may have subnormals.
        fast: :func:`accumulate_lifted`, or :func:`accumulate_exact` where that will do.
    """
    result = fast(a, x, w)
    good = ~any_lane(jnp.any(~is_finite(result)) | subnormal)
    return lax.cond(good, lambda r, *operands: r, lambda r, *operands: accumulate(*operands), result, a, x, w)


def _product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x * w``, rounded: a choice on its bits keeps XLA:CPU from fusing it with the addition that follows."""
    return from_bits(jnp.where(to_bits(w) == u32(QUIET_NAN), u32(QUIET_NAN), to_bits(x * w)))


def _exact_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x * w`` where it makes no difference whether it is rounded before it is added."""
    return x * w


def _lifted_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x * w * 2**LIFT``: infinite or NaN only if that is too large."""
    # The smaller one is lifted, so that only the product can overflow; if the larger is subnormal, the product is zero.
    return jnp.where(magnitude(x) < magnitude(w), lift(x, LIFT) * w, x * lift(w, LIFT))


def _add(a: jax.Array, lifted: jax.Array, plain: jax.Array) -> jax.Array:
    """``a`` plus a sum that was taken twice: where lifting is too much for it, it has no room for subnormal numbers."""
    lifted = lift(a, LIFT) + lifted
    return jnp.where(is_finite(lifted), lower(lifted, LIFT), arithmetic.propagate_nan(a + plain, a, plain))


def exact_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w`` where float32 holds every product exactly."""
    return matmul(x, w, _exact_product)


@jax.jit
def _named(sums: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    """``sums`` [m, n] of ``x @ w`` with the NaN of the first NaN operand along k, or the default one if there is none.

    Which one an addition of two takes is the order of its operands, which a compiler may change.
    """

    def first(operand: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
        """Place along k of the first NaN, k if there is none, and its bits made quiet."""
        shape, size = operand.shape, operand.shape[axis]
        place = lax.broadcasted_iota(jnp.int32, shape, axis)
        at = jnp.min(jnp.where(is_nan(operand), place, size), axis=axis, keepdims=True)
        bits = jnp.max(jnp.where(place == at, to_bits(operand), u32(0)), axis=axis, keepdims=True)
        return at, bits | u32(QUIET_NAN)

    (row, row_bits), (column, column_bits) = first(x, 1), first(w, 0)
    bits = jnp.where(row <= column, row_bits, column_bits)
    none = jnp.minimum(row, column) == len(w)
    return jnp.where(is_nan(sums), from_bits(jnp.where(none, u32(DEFAULT_NAN), bits)), sums)


@partial(jax.jit, static_argnums=2)
def matmul(x: jax.Array, w: jax.Array, product: Plain = _product) -> jax.Array:
    """``x @ w`` in plain arithmetic: one product after the other along k, in blocks of 128."""
    k = len(w)
    if k <= K_BLOCK:
        return _block_matmul(x, w, product)

    def block(start: Any, size: int) -> jax.Array:
        part = lambda a, axis: lax.dynamic_slice_in_dim(a, start, size, axis)
        return _block_matmul(part(x, 1), part(w, 0), product)

    whole, rest = divmod(k, K_BLOCK)
    total = lax.fori_loop(1, whole, lambda i, t: t + block(i * K_BLOCK, K_BLOCK), block(0, K_BLOCK))
    return total + block(whole * K_BLOCK, rest) if rest else total


def _block_matmul(x: jax.Array, w: jax.Array, product: Plain) -> jax.Array:
    if 4 * x.shape[0] * w.size <= _MATERIALISE_BYTES:
        shape = len(w), x.shape[0], w.shape[1]
        products = product(lax.broadcast_in_dim(x, shape, (1, 0)), lax.broadcast_in_dim(w, shape, (0, 2)))
        products = lax.optimization_barrier(products)
        if product is not _exact_product and len(w) % _UNROLLED == 0 and len(w) > _UNROLLED:
            return _in_order(products)
        return _one_by_one(products)[0]
    if len(w) % _WIDELY_UNROLLED:
        term = lambda k: product(x[:, k, None], w[k][None])
        return lax.fori_loop(1, len(w), lambda k, total: total + term(k), term(0))

    def add(turn: Any, total: jax.Array | None) -> jax.Array:
        part = lambda a, axis: lax.dynamic_slice_in_dim(a, turn * _WIDELY_UNROLLED, _WIDELY_UNROLLED, axis)
        columns, rows = part(x, 1), part(w, 0)
        for k in range(_WIDELY_UNROLLED):
            term = product(columns[:, k : k + 1], rows[k : k + 1])
            total = term if total is None else total + term
        assert total is not None
        return total

    return lax.fori_loop(1, len(w) // _WIDELY_UNROLLED, add, add(0, None))


@custom_vmap
def _in_order(terms: jax.Array) -> jax.Array:
    """Sum over the first axis, one after the other."""
    return _in_loop(terms)


@_in_order.def_vmap
def _in_order_rule(axis_size: int, batched: Any, terms: jax.Array) -> tuple[jax.Array, bool]:
    # Of several lanes the loop would copy slices that do not lie together: three times the time of the sum itself.
    return jax.vmap(_one_by_one)(terms)[:, 0], True


def _in_loop(terms: jax.Array) -> jax.Array:
    """Sum over the first axis, one after the other: less to compile than a term a time, nearly as fast."""

    def add(turn: Any, total: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(terms, turn * _UNROLLED, _UNROLLED, allow_negative_indices=False)
        return _one_by_one(part, total)

    return lax.fori_loop(1, len(terms) // _UNROLLED, add, _one_by_one(terms[:_UNROLLED]))[0]


def _one_by_one(terms: jax.Array, total: jax.Array | None = None) -> jax.Array:
    """[1, ...]: ``total`` plus the terms along the first axis."""
    # Slices keep their axis: reshapes between them would keep two of XLA's passes undoing each other's work.
    for k in range(len(terms)):
        term = lax.slice_in_dim(terms, k, k + 1)
        total = term if total is None else total + term
    assert total is not None
    return total


# -- sums over lanes --------------------------------------------------------------------------------------------------


@differentiable(lambda a, x, rows: a + jnp.dot(rows, x, precision=lax.Precision.HIGHEST))
def accumulate_dots(a: jax.Array, x: jax.Array, rows: jax.Array) -> jax.Array:
    """``a + rows @ x`` for float32 [n], [k] and [n, k]: eight partial sums along k, then halves, then neighbours.

    A k that is not a multiple of 8 adds one by one.
    """
    plain = _named(_dot_lanes(x, rows, _product)[None], x[None], rows.T)[0]
    return _add(a, _dot_lanes(x, rows, _lifted_product), plain)


@partial(jax.jit, static_argnums=2)
def _dot_lanes(x: jax.Array, rows: jax.Array, product: Plain) -> jax.Array:
    products = lax.optimization_barrier(product(x[None], rows))
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


@differentiable(lambda rows: rows.sum(axis=-1))
def row_sum(rows: jax.Array) -> jax.Array:
    """float32 [m] sums over the last axis of [m, n]."""
    total = _settled(_row_sum(lift(rows, LIFT)), rows)
    # A sum from +0 on is never -0, but XLA leaves the +0 out.
    bits = to_bits(total)
    return from_bits(jnp.where(bits == u32(SIGN), u32(0), bits))


@custom_vmap
def _settled(lifted: jax.Array, rows: jax.Array) -> jax.Array:
    """The lifted sum, or the plain one where lifting was too much."""
    return jnp.where(is_finite(lifted), lower(lifted, LIFT), _row_sum(rows))


@_settled.def_vmap
def _settled_rule(axis_size: int, batched: Any, lifted: jax.Array, rows: jax.Array) -> tuple[jax.Array, bool]:
    # Of many rows the plain sums take as long as the lifted ones, and hardly ever any is needed.
    rows = rows if batched[1] else jnp.broadcast_to(rows, (axis_size, *rows.shape))
    lifted = lifted if batched[0] else jnp.broadcast_to(lifted, (axis_size, *lifted.shape))
    good = ~any_lane(jnp.any(~is_finite(lifted)))
    return lax.cond(good, lambda: lower(lifted, LIFT), lambda: jax.vmap(_settled.fun)(lifted, rows)), True


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


@differentiable(lambda rows: rows.max(axis=-1))
def row_max(rows: jax.Array) -> jax.Array:
    """float32 [m]: largest lane of each row of [m, n], NaN if any is; of zeros with both signs, the reference's one."""
    order, rank, bits = _max_order(rows.shape[1]), jnp.asarray(_max_rank(rows.shape[1]))[None], to_bits(rows)
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
