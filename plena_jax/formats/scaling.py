"""Exact multiplication of float32 by powers of two, on bit patterns."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from plena_jax.bits import (
    INFINITY,
    MAGNITUDE,
    SIGN,
    Array,
    array_module,
    compose,
    from_bits,
    i32,
    magnitude,
    normalise,
    to_bits,
    u32,
)


def times_pow2(x: Array, exponent: Array) -> Array:
    """``x * 2 ** exponent``, rounded where it falls below the float32 normal range; infinities and NaN as they are."""
    xp = array_module(x, exponent)
    significand, e = normalise(x)
    scaled = to_bits(compose(significand, e - 23 + exponent)) | (to_bits(x) & u32(SIGN))
    return xp.where(magnitude(x) >= u32(INFINITY), x, from_bits(scaled))


def limit_times_pow2(bits: ArrayLike, exponent: Array) -> Array:
    """int32 pattern of the largest finite float32 that is not above ``2 ** exponent`` times that of ``bits`` (>= 0)."""
    value = from_bits(bits)
    xp = array_module(value, exponent)
    significand, e = normalise(value)
    e = e + i32(exponent)
    normal = (i32(xp.clip(e, -126, 127) + 126) << 23) + i32(significand)
    # Below the normal range the pattern counts units of 2**-149; what is left over is cut off.
    subnormal = i32(significand >> u32(xp.clip(-126 - e, 0, 31)))
    normal = xp.where(e > 127, np.int32(INFINITY - 1), normal)
    scaled = xp.where((e < -126) | (significand == 0), subnormal, normal)
    return xp.where(i32(bits) >= INFINITY, np.int32(INFINITY - 1), scaled)


def pow2_bits(exponent: ArrayLike) -> Array:
    """int32 bit pattern of ``2.0 ** exponent`` for any integer: 0 below float32's range, infinity above it."""
    e = i32(exponent)
    xp = array_module(e)
    subnormal = xp.where(e < -149, 0, 1 << xp.clip(e + 149, 0, 22))
    return i32(xp.where(e < -126, subnormal, (xp.clip(e, -126, 128) + 127) << 23))


def scale_limit(bits: Array, exponent: Array) -> Array:
    """:func:`limit_times_pow2` in fewer operations: of normal numbers, or of the smaller ones that negative fields say.

    A pattern of 0 counts as 2**-127.
    """
    xp = array_module(bits, exponent)
    field, significand = (bits >> 23) + exponent, (bits & 0x7FFFFF) | 0x800000
    scaled = xp.where(field > 0, bits + (exponent << 23), significand >> xp.clip(1 - field, 0, 31))
    return xp.where(field > 254, np.int32(INFINITY - 1), scaled)


def scale_bits(bits: Array, exponent: Array) -> Array:
    """:func:`times_pow2` of int32 patterns in fewer operations: no subnormal operands."""
    xp, body = array_module(bits, exponent), bits & MAGNITUDE
    field, significand = (body >> 23) + exponent, (bits & 0x7FFFFF) | 0x800000
    drop = xp.clip(1 - field, 0, 25)
    mask = (1 << drop) - 1
    subnormal = (significand + ((mask + ((significand >> drop) & 1)) >> 1)) >> drop
    scaled = xp.where(field > 0, body + (exponent << 23), subnormal)
    scaled = xp.where(field > 254, np.int32(INFINITY), scaled) | (bits ^ body)
    return xp.where((body == 0) | (body >= INFINITY), bits, scaled)
