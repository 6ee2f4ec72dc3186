"""Exact multiplication of float32 by powers of two, on bit patterns."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from plena_jax.bits import (
    INFINITY,
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


def bits_times_pow2(bits: ArrayLike, exponent: Array) -> Array:
    """:func:`times_pow2` from and to an int32 bit pattern."""
    return i32(to_bits(times_pow2(from_bits(bits), exponent)))


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
