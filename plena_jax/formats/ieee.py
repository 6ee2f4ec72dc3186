"""Codec of the IEEE / OCP family: nearest even, gradual underflow, specials as the format says.

Agrees with the casts of ``ml_dtypes`` on every code and on float32 inputs. All parameters of a format may be traced
integers, so one compilation serves every format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from plena_jax.bits import (
    INFINITY,
    QUIET_NAN,
    Array,
    array_module,
    compose,
    from_bits,
    i32,
    is_nan,
    magnitude,
    normalise,
    shift_right_even,
    to_bits,
    u32,
)

if TYPE_CHECKING:
    from plena_jax.formats.floats import FloatFormat


def encode(x: Array, fmt: FloatFormat) -> Array:
    """uint32 code of float32 ``x`` in ``fmt``."""
    xp = array_module(x, *fmt.values)
    mantissa, has_zero = i32(fmt.mantissa), i32(fmt.zero) == 1
    code = _round(x, fmt)

    # A significand that does not fit has a code beyond the largest, or an exponent that the code cannot even hold.
    largest = u32(fmt.largest)
    _, exponent = normalise(x)
    is_zero = magnitude(x) == 0
    over = (exponent + i32(fmt.bias) > i32(largest >> u32(mantissa))) | (code > largest)
    code = xp.where(over, u32(fmt.overflow), code)
    code = xp.where(magnitude(x) == u32(INFINITY), u32(fmt.infinite), code)
    code = xp.where(is_zero, u32(0), code)
    code = xp.where(is_nan(x), u32(fmt.nan), code)

    negative = to_bits(x) >> 31
    sign_bit = u32(1) << u32(i32(fmt.exponent) + mantissa)
    # Where NaN takes the place of negative zero there is one NaN and one zero, both without sign.
    takes_sign = (i32(fmt.one_nan) == 0) | ((code > 0) & (code < sign_bit))
    signed = xp.where(takes_sign, code ^ (negative * sign_bit), code)
    # Without a sign, or without a zero, what cannot be said is what NaN is.
    unsayable = (negative == 1) & ~(is_zero & has_zero)
    unsigned = xp.where(unsayable | (is_zero & ~has_zero), u32(fmt.nan), code)
    return xp.where(i32(fmt.sign) == 1, signed, unsigned)


def _round(x: Array, fmt: FloatFormat) -> Array:
    """Code of ``|x|`` for finite non-zero ``x``, carries into the exponent included, no overflow handling."""
    xp = array_module(x, *fmt.values)
    mantissa, has_zero = i32(fmt.mantissa), i32(fmt.zero) == 1
    significand, exponent = normalise(x)
    biased = exponent + i32(fmt.bias)
    # Below the smallest normal the unit stays what it is there: shift further. Without zero there is no such range.
    below = xp.where(has_zero, xp.maximum(1 - biased, 0), 0)
    base = u32(xp.where(has_zero, xp.maximum(biased, 1), biased) - 1) << u32(mantissa)
    shift = 23 - mantissa + below
    truncated = base + (significand >> u32(xp.clip(shift, 0, 31)))
    # Even means an even code; a format without zero counts the significand instead, as ml_dtypes' E8M0 cast does.
    odd = xp.where(has_zero, truncated, significand >> u32(xp.clip(shift, 0, 31))) & 1
    code = base + shift_right_even(significand, shift, odd)
    # ml_dtypes rounds what lies between the two smallest codes of E8M0, which is subnormal in float32, to the second.
    lowest = (biased == 0) & (exponent == -127) & (significand > u32(1 << 23))
    return xp.where(has_zero, code, xp.where(biased < 0, u32(0), xp.where(lowest, u32(1), code)))


def decode(code: Array, fmt: FloatFormat) -> Array:
    """float32 value of uint32 ``code`` in ``fmt``; NaN codes give a quiet NaN with the code's sign."""
    xp = array_module(code, *fmt.values)
    code, mantissa = u32(code), i32(fmt.mantissa)
    sign_bit = u32(1) << u32(i32(fmt.exponent) + mantissa)
    negative = xp.where((i32(fmt.sign) == 1) & (code & sign_bit != 0), u32(1), u32(0))
    body = code & (sign_bit - 1)
    field = i32(body >> u32(mantissa))
    fraction = body & ((u32(1) << u32(mantissa)) - 1)
    subnormal = (field == 0) & (i32(fmt.zero) == 1)
    significand = xp.where(subnormal, fraction, fraction | (u32(1) << u32(mantissa)))
    unit = xp.where(subnormal, 1, field) - i32(fmt.bias) - mantissa
    value = to_bits(compose(significand, unit))
    value = xp.where(i32(body) == i32(fmt.infinity), u32(INFINITY), value)
    nan = (body > u32(fmt.largest)) & (i32(body) != i32(fmt.infinity))
    nan = nan | ((i32(fmt.one_nan) == 1) & (code == sign_bit))
    value = xp.where(nan, u32(QUIET_NAN), value)
    return from_bits(value | (negative << 31))
