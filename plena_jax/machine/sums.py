"""Sums in the order of the hardware model's arithmetic library, which decides the last bit of float32 results.

The orders below reproduce every recorded case (``docs/numerics.md`` says how they were found): products with a matrix add
along k one by one, in blocks of 128; products with a transposed matrix and one row add in eight lanes; a row sum adds in
four interleaved groups of eight lanes. They are written as plain element-wise additions, because a backend may reorder a
``dot`` or a ``reduce``. Derivatives are those of the plain products and sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from plena_jax import arithmetic
from plena_jax.bits import (
    INFINITY,
    SIGN,
    compose,
    from_bits,
    i32,
    is_nan,
    magnitude,
    normalise,
    pow2,
    to_bits,
    u32,
)

#: k steps that the reference's matrix product adds up before it starts a new partial sum.
K_BLOCK = 128
#: Lanes of the reference's vector unit, and how many of its vectors a row sum interleaves.
LANES = 8
INTERLEAVE = 4
#: Up to this size products are written to memory before they are added, so that the additions run along whole vectors.
_MATERIALISE_BYTES = 1 << 18
#: Operands without a non-zero magnitude below this have products and partial sums that are never subnormal: with
#: significands of 8 bits all are multiples of 2**-124.
_SMALL = 2.0**-55


def any_cond(predicate: jax.Array, slow: Callable[..., Any], fast: Callable[..., Any], *operands: Any) -> Any:
    """``slow(*operands) if predicate else fast(*operands)``; under ``vmap``, slow for all lanes if any lane needs it.

    Both must give the same result where the predicate is False. (``lax.cond`` under ``vmap`` would always run both.)
    """

    @custom_vmap
    def run(predicate: jax.Array, *operands: Any) -> Any:
        return lax.cond(predicate, slow, fast, *operands)

    @run.def_vmap
    def rule(axis_size: int, batched: Sequence[bool], predicate: jax.Array, *operands: Any) -> tuple[Any, Any]:
        axes = [0 if b else None for b in batched[1:]]
        both = (jax.vmap(branch, in_axes=axes, axis_size=axis_size) for branch in (slow, fast))
        result = any_cond(jnp.any(predicate), *both, *operands)
        return result, jax.tree.map(lambda _: True, result)

    return run(predicate, *operands)


def _has_small(*arrays: jax.Array, below: float = _SMALL) -> jax.Array:
    """Whether any non-zero element of equally shaped arrays is smaller than ``below`` in magnitude."""
    # Zero wraps around to the largest integer; a signed minimum compiles better than an unsigned one.
    keys = [lax.bitcast_convert_type(magnitude(a) - 1, jnp.int32) ^ np.int32(-(2**31)) for a in arrays]
    least = keys[0]
    for key in keys[1:]:
        least = jnp.minimum(least, key)
    least = lax.reduce(least, np.int32(2**31 - 1), lax.min, tuple(range(least.ndim)))
    return least < np.int32(int(np.float32(below).view(np.uint32)) - 1 - 2**31)


# -- products with a matrix -------------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def accumulate(
    operands: Callable[..., tuple[jax.Array, jax.Array]], accumulator: jax.Array, *sources: jax.Array
) -> jax.Array:
    """``accumulator + x @ w`` where ``x, w = operands(*sources)`` are float32 [m, k] and [k, n].

    Products are rounded to float32 (exact for BF16 times any format of HBM), then added along k. The operands come as a
    function of their sources so that a conditional passes on the sources, large memories it only refers to, and not copies
    of slices.
    """
    x, w = operands(*sources)
    small = _has_small(x.T, w) if x.shape[0] == w.shape[1] else _has_small(x) | _has_small(w)
    slow = lambda a, *s: arithmetic.add(a, _scaled_matmul(*operands(*s)))
    fast = lambda a, *s: arithmetic.add(a, _in_blocks(_block_matmul, *operands(*s)))
    return any_cond(small, slow, fast, accumulator, *sources)


@accumulate.defjvp
def _accumulate_jvp(operands: Any, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    (x, w), (dx, dw) = jax.jvp(operands, primals[1:], tangents[1:])
    dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    return accumulate(operands, *primals), tangents[0] + dot(dx, w) + dot(x, dw)


def _scaled_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x @ w`` with the terms of every output scaled so that the largest is about 2**60: subnormals are no special case.

    Terms more than 2**186 smaller than the largest term of their sum are dropped.
    """
    xs, xe = _split(x)
    ws, we = _split(w)
    top = _largest_exponent(xe, we)
    shift = jnp.where(top < _NO_EXPONENT // 2, 0, jnp.clip(60 - top, 0, 400))

    def term(xs: jax.Array, xe: jax.Array, ws: jax.Array, we: jax.Array) -> jax.Array:
        exponent = jnp.clip(xe + we + shift, -250, 254)
        half = exponent >> 1
        return xs * ws * pow2(half) * pow2(exponent - half)

    def block(xs: jax.Array, xe: jax.Array, ws: jax.Array, we: jax.Array) -> jax.Array:
        if _worth_materialising(xs, ws):
            return _add_up(term(xs.T[:, :, None], xe.T[:, :, None], ws[:, None, :], we[:, None, :]))
        at = lambda k: term(xs[:, k, None], xe[:, k, None], ws[k], we[k])
        return lax.fori_loop(1, len(ws), lambda k, total: total + at(k), at(0))

    return _scale(_in_blocks(block, xs, xe, ws, we), -shift)


def _block_matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """Sum over k, one product after the other."""
    if _worth_materialising(x, w):
        return _add_up(x.T[:, :, None] * w[:, None, :])
    total = x[:, :1] * w[:1]
    for k in range(1, len(w)):
        total = total + x[:, k : k + 1] * w[k : k + 1]
    return total


def _worth_materialising(x: jax.Array, w: jax.Array) -> bool:
    return 4 * x.shape[0] * w.size <= _MATERIALISE_BYTES


def _add_up(products: jax.Array) -> jax.Array:
    """Sum over the first axis, one after the other, of products that are written to memory first."""
    products = lax.optimization_barrier(products)
    total = products[0]
    for k in range(1, len(products)):
        total = total + products[k]
    return total


def _in_blocks(block: Callable[..., jax.Array], *operands: jax.Array) -> jax.Array:
    """Add up ``block`` over blocks of k. The operands are [m, k] in their first half, [k, n] in the second."""
    lefts, rights = operands[: len(operands) // 2], operands[len(operands) // 2 :]
    k = lefts[0].shape[1]
    if k <= K_BLOCK:
        return block(*operands)

    def at(start: Any, size: int) -> jax.Array:
        return block(
            *(lax.dynamic_slice_in_dim(a, start, size, 1) for a in lefts),
            *(lax.dynamic_slice_in_dim(a, start, size, 0) for a in rights),
        )

    whole, rest = divmod(k, K_BLOCK)
    total = lax.fori_loop(1, whole, lambda i, t: t + at(i * K_BLOCK, K_BLOCK), at(0, K_BLOCK))
    return total + at(whole * K_BLOCK, rest) if rest else total


_NO_EXPONENT = -(1 << 14)


def _split(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Significand in [1, 2) with sign, and exponent; zero has exponent ``_NO_EXPONENT``, specials stay as they are."""
    significand, exponent = normalise(a)
    special = magnitude(a) >= u32(INFINITY)
    scaled = to_bits(significand.astype(jnp.float32) * np.float32(2.0**-23)) | (to_bits(a) & u32(SIGN))
    exponent = jnp.where(special, 0, jnp.where(significand == 0, _NO_EXPONENT, exponent))
    return jnp.where(special, a, from_bits(scaled)), exponent


def _largest_exponent(x: jax.Array, w: jax.Array) -> jax.Array:
    """int32 [m, n]: the largest ``x[i, k] + w[k, j]`` over k."""
    first = x[:, :1] + w[:1]
    return lax.fori_loop(1, x.shape[1], lambda k, top: jnp.maximum(top, x[:, k, None] + w[k]), first)


def _scale(a: jax.Array, exponent: jax.Array) -> jax.Array:
    """``a * 2**exponent`` rounded once, subnormal results included."""
    significand, e = normalise(a)
    scaled = from_bits(to_bits(compose(significand, e - 23 + i32(exponent))) | (to_bits(a) & u32(SIGN)))
    return jnp.where(magnitude(a) >= u32(INFINITY), a, scaled)


# -- sums over lanes --------------------------------------------------------------------------------------------------


def dot_lanes(x: jax.Array, rows: jax.Array) -> jax.Array:
    """``rows @ x`` for float32 [k] and [n, k]: eight partial sums along k, then halves, then neighbours.

    A k that is not a multiple of 8 adds one by one.
    """
    small = _has_small(x) | _has_small(rows)
    return any_cond(small, _exact_dot_lanes, lambda x, rows: _dot_lanes(x, rows, lax.add, lax.mul), x, rows)


def _exact_dot_lanes(x: jax.Array, rows: jax.Array) -> jax.Array:
    return _dot_lanes(x, rows, arithmetic.add, arithmetic.multiply)


def _dot_lanes(x: jax.Array, rows: jax.Array, add: Any, multiply: Any) -> jax.Array:
    products = multiply(jnp.broadcast_to(x, rows.shape), rows)
    n, k = rows.shape
    if k % LANES:
        return _sequential(products.T, add)
    lanes = _sequential(products.reshape(n, k // LANES, LANES).swapaxes(0, 1), add)
    while lanes.shape[1] > 4:
        half = lanes.shape[1] // 2
        lanes = add(lanes[:, :half], lanes[:, half:])
    while lanes.shape[1] > 1:
        lanes = add(lanes[:, 0::2], lanes[:, 1::2])
    return lanes[:, 0]


def _sequential(terms: jax.Array, add: Any) -> jax.Array:
    """Sum over the first axis, one after the other."""
    if len(terms) <= 16:
        total = terms[0]
        for term in terms[1:]:
            total = add(total, term)
        return total
    return lax.fori_loop(1, len(terms), lambda i, total: add(total, terms[i]), terms[0])


def row_sum(rows: jax.Array) -> jax.Array:
    """float32 [m] sums over the last axis of [m, n]."""
    slow = lambda rows: _row_sum(rows, arithmetic.add)
    return any_cond(_has_small(rows, below=2.0**-100), slow, lambda rows: _row_sum(rows, lax.add), rows)


def _row_sum(rows: jax.Array, add: Any) -> jax.Array:
    m, n = rows.shape
    whole = n // LANES
    total = jnp.zeros(m, jnp.float32)
    for lane in range(whole * LANES, n):
        total = add(total, rows[:, lane])
    if not whole:
        return total
    vectors = rows[:, : whole * LANES].reshape(m, whole, LANES).swapaxes(0, 1)
    turns = whole // INTERLEAVE
    groups = [jnp.zeros((m, LANES), jnp.float32)]
    if turns:
        groups = list(_sequential(vectors[: turns * INTERLEAVE].reshape(turns, INTERLEAVE, m, LANES), add))
    sums = groups[0]
    for vector in [*vectors[turns * INTERLEAVE :], *groups[1:]]:
        sums = add(sums, vector)
    for lane in range(LANES):
        total = add(total, sums[:, lane])
    return total


def row_max(row: jax.Array) -> jax.Array:
    """Largest lane of float32 [n], NaN if any lane is; of zeros with both signs, the one the reference returns."""
    lanes = jnp.asarray(_max_priority(row.shape[0]))
    row = row[lanes]
    while row.shape[0] > 1:
        pairs = row.shape[0] // 2
        low, high = row[: 2 * pairs : 2], row[1 : 2 * pairs : 2]
        # On a tie the later one stays: only zeros of different sign can tell.
        kept = jnp.where(arithmetic.less(high, low) | is_nan(low), low, high)
        row = jnp.concatenate([kept, row[2 * pairs :]])
    return row[0]


def _max_priority(n: int) -> np.ndarray:
    """Lanes in the order in which an eight-lane maximum, folded in halves, prefers them: the last one wins a tie."""
    order = {lane: rank for rank, lane in enumerate([0, 4, 2, 6, 1, 5, 3, 7])}
    return np.array(sorted(range(n), key=lambda i: (order[i % LANES], i // LANES)), np.int32)
