"""float32 arithmetic as the hardware model does it: correctly rounded, subnormals kept, x86 NaN rules.

XLA:CPU treats subnormal operands and results of float32 arithmetic as zero. Each operation here is the plain one,
corrected by scaled arithmetic where a subnormal takes part; corrections are branch-free and cost a few integer
operations a lane.
Derivatives are those of the plain operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import (
    DEFAULT_NAN,
    INFINITY,
    MAGNITUDE,
    SIGN,
    from_bits,
    i32,
    is_nan,
    magnitude,
    normalise,
    to_bits,
    u32,
)

#: Scaling that lifts any product of a small operand out of the subnormal range.
_LIFT = 96


def _bits_of(value: float) -> jax.Array:
    return u32(int(np.float32(value).view(np.uint32)))


def _power(exponent: int) -> np.float32:
    return np.float32(2.0**exponent)


@partial(jax.jit, static_argnums=1)
def lift(x: jax.Array, exponent: int = _LIFT) -> jax.Array:
    """``x * 2**exponent`` exactly unless it overflows, subnormals included, for exponents 24 .. 127."""
    bits = to_bits(x)
    body = bits & u32(MAGNITUDE)
    # A subnormal is its integer image times 2**-149.
    subnormal = to_bits(body.astype(jnp.float32) * _power(exponent - 149)) | (bits & u32(SIGN))
    return jnp.where(body < u32(0x00800000), from_bits(subnormal), x * _power(exponent))


@partial(jax.jit, static_argnums=1)
def lower(y: jax.Array, exponent: int) -> jax.Array:
    """``y * 2**-exponent`` rounded once to nearest even, subnormal results included, for exponents 24 .. 192."""
    bits = to_bits(y)
    body = bits & u32(0x7FFFFFFF)
    # In the normal range only the exponent field changes. (Two multiplications by constants would do, but XLA folds
    # them into one, and 2**-192 is zero.)
    normal = jnp.where(body >= u32(INFINITY), body, body - u32(exponent << 23))
    # Below it the result counts units of 2**-149: its bits are that count.
    count = jnp.round(from_bits(body) * _power(149 - exponent))
    subnormal = jnp.minimum(count, np.float32(2**24)).astype(jnp.uint32)
    small = body < _bits_of(2.0 ** (exponent - 126))
    return from_bits(jnp.where(small, subnormal, normal) | (bits & u32(SIGN)))


def propagate_nan(result: jax.Array, a: jax.Array, b: jax.Array | None = None) -> jax.Array:
    """``result`` with x86 NaN rules: the first NaN operand made quiet, or the default NaN for an invalid operation."""
    result = jnp.where(is_nan(result), from_bits(DEFAULT_NAN), result)
    if b is not None:
        result = jnp.where(is_nan(b), from_bits(to_bits(b) | u32(0x00400000)), result)
    return jnp.where(is_nan(a), from_bits(to_bits(a) | u32(0x00400000)), result)


def differentiable(rule: Callable[..., jax.Array]) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Give an exact operation the derivative of the plain operation ``rule``."""

    def decorate(exact: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        wrapped = jax.custom_jvp(exact)

        def jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            _, tangent = jax.jvp(rule, primals, tangents)
            return wrapped(*primals), tangent

        wrapped.defjvp(jvp)
        # Traced once for each shape, however often it is used.
        return wraps(exact)(jax.jit(wrapped))

    return decorate


@differentiable(lax.add)
def add(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a + b``."""
    # With one operand above 2**-100 the other, if subnormal, is below half a unit: dropping it is right.
    small = (magnitude(a) < _bits_of(2.0**-100)) & (magnitude(b) < _bits_of(2.0**-100))
    return propagate_nan(jnp.where(small, lower(lift(a) + lift(b), _LIFT), a + b), a, b)


@differentiable(lax.sub)
def subtract(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a - b``."""
    return propagate_nan(add(a, -b), a, b)


@differentiable(lax.mul)
def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a * b``; rounded once where the product of the significands fits float32, as BF16 operands' does."""
    plain = a * b
    small_a, small_b = magnitude(a) < _bits_of(2.0**-50), magnitude(b) < _bits_of(2.0**-50)
    lifted = jnp.where(small_a, lift(a), a) * jnp.where(small_b, lift(b), b)
    lowered = jnp.where(small_a & small_b, lower(lifted, 2 * _LIFT), lower(lifted, _LIFT))
    subnormal = (magnitude(a) < u32(0x00800000)) | (magnitude(b) < u32(0x00800000))
    needed = (small_a | small_b) & (subnormal | (magnitude(plain) < _bits_of(2.0**-100)))
    return propagate_nan(jnp.where(needed, lowered, plain), a, b)


def _settle(quotient: jax.Array, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """``quotient``, rounded twice and so perhaps a unit off, corrected to ``numerator / denominator`` to nearest even.

    Its magnitude is below 2**-125, so that its bits count units of 2**-149. The numerator, in such units, is given
    modulo 2**32; the denominator, an integer below 2**28, is exact.
    """
    count = magnitude(quotient)
    twice, denominator = 2 * i32(numerator - count * denominator), i32(denominator)
    odd = count & 1 == 1
    up = (twice > denominator) | ((twice == denominator) & odd)
    down = (twice < -denominator) | ((twice == -denominator) & odd)
    return from_bits((to_bits(quotient) & u32(SIGN)) | (count + u32(up) - u32(down)))


@differentiable(lambda a: 1 / a)
def reciprocal(a: jax.Array) -> jax.Array:
    """``1 / a``."""
    one = np.float32(1)
    body = magnitude(a)
    tiny = (one / lift(a)) * _power(_LIFT)
    # In units of 2**-149 the result is 2**(172 - exponent) / significand: a numerator of 0 modulo 2**32.
    huge = _settle(lower(one / (a * _power(-32)), 32), u32(0), normalise(a)[0])
    result = jnp.where(body < u32(0x00800000), tiny, one / a)
    return propagate_nan(jnp.where((body > _bits_of(2.0**125)) & (body < u32(INFINITY)), huge, result), a)


@differentiable(jnp.sqrt)
def sqrt(a: jax.Array) -> jax.Array:
    """Square root; the default NaN for negative operands."""
    subnormal = magnitude(a) < u32(0x00800000)
    root = jnp.sqrt(jnp.where(subnormal, lift(a), a))
    return propagate_nan(jnp.where(subnormal, root * _power(-_LIFT // 2), root), a)


def clamp_exponent(a: jax.Array) -> jax.Array:
    """``a`` clamped to -88 .. 88; NaN stays."""
    # On bit patterns, because comparisons of floats followed by a choice become a maximum that drops subnormals.
    limit, body = _bits_of(88.0), magnitude(a)
    outside = (body > limit) & (body <= u32(INFINITY))
    return jnp.where(outside, from_bits(limit | (to_bits(a) & u32(SIGN))), a)


@differentiable(jnp.exp)
def exp(a: jax.Array) -> jax.Array:
    """``exp(a)`` for -88 <= a <= 88, subnormal results included."""
    # Below -80 the result leaves the normal range: exp(a + 32) * exp(-32), the second factor carried at 2**32.
    factor = np.float32(np.exp(-32.0) * 2.0**32)
    low = lower(jnp.exp(a + np.float32(32)) * factor, 32)
    return propagate_nan(jnp.where(a < np.float32(-80), low, jnp.exp(a)), a)


@jax.jit
def less(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a < b`` where subnormals are not zero; False with NaN, and between the two zeros."""
    ordered = ~(is_nan(a) | is_nan(b)) & ((magnitude(a) | magnitude(b)) != 0)
    return ordered & (total_order(a) < total_order(b))


def total_order(a: jax.Array) -> jax.Array:
    """int32 key that orders like float32 (IEEE total order: -0 below +0, NaN beyond infinity)."""
    bits = lax.bitcast_convert_type(a, jnp.int32)
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def from_total_order(key: jax.Array) -> jax.Array:
    """The float32 that has this key."""
    return lax.bitcast_convert_type(key ^ ((key >> 31) & np.int32(0x7FFFFFFF)), jnp.float32)


@differentiable(lax.div)
def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a / b`` for 0 <= a <= b with b normal, as the shares of a softmax are; subnormal results included."""
    small = magnitude(a) < _bits_of(2.0**30)
    quotient = jnp.where(small, lower(jnp.where(small, lift(a), a) / b, _LIFT), a / b)
    (significand, exponent), (divisor, divisor_exponent) = normalise(a), normalise(b)
    # Both significands four times, so that quotients of half a unit are integers too.
    shift = exponent - divisor_exponent + 151
    numerator = jnp.where(shift >= 0, significand << u32(jnp.clip(shift, 0, 31)), u32(0))
    exact = _settle(quotient, numerator, divisor << 2)
    return propagate_nan(jnp.where(magnitude(quotient) < _bits_of(2.0**-125), exact, quotient), a, b)


@differentiable(jnp.exp)
def exp_below_one(a: jax.Array) -> jax.Array:
    """``exp(a)`` for a <= 0 without clamping: subnormal results down to the smallest, then zero."""
    factor = np.float32(np.exp(-32.0) * 2.0**32)
    shifted = jnp.exp(jnp.maximum(a + np.float32(32), np.float32(-87)))
    low = jnp.where(a < np.float32(-110), np.float32(0), lower(shifted * factor, 32))
    return propagate_nan(jnp.where(a < np.float32(-80), low, jnp.exp(a)), a)
