"""Codec of the hardware model: the conversions of docs/machine.md section 5, defects included.

``FloatFormat`` objects of the "plena" family hold the same fields as the others; only the rules below differ:
subnormals below 8 exponent bits are worth half of what IEEE gives them, NaN keeps its mantissa, the plain encoder of
types with fewer than 8 exponent bits is defective, and MX elements have their own rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from plena_jax.bits import (
    INFINITY,
    MAGNITUDE,
    SIGN,
    Array,
    array_module,
    compose,
    from_bits,
    i32,
    is_nan,
    magnitude,
    pow2,
    shift_right_even,
    to_bits,
    u32,
)

if TYPE_CHECKING:
    from plena_jax.formats.floats import FloatFormat


def decode(code: Array, fmt: FloatFormat) -> Array:
    """float32 value of uint32 ``code``: plain decoding, docs/machine.md section 5.1."""
    xp = array_module(code, *fmt.values)
    code, exponent, mantissa = u32(code), i32(fmt.exponent), i32(fmt.mantissa)
    width = u32(exponent + mantissa)
    negative = xp.where(i32(fmt.sign) == 1, (code >> width) & 1, u32(0))
    field = i32((code & ((u32(1) << width) - 1)) >> u32(mantissa))
    fraction = code & ((u32(1) << u32(mantissa)) - 1)
    bias = (1 << (exponent - 1)) - 1
    # With 8 exponent bits the code is the top of a float32; below, a subnormal is worth m / 2**M * 2**-bias.
    subnormal_unit = xp.where(exponent == 8, -126, -bias) - mantissa
    value = xp.where(
        field == 0,
        to_bits(compose(fraction, subnormal_unit)),
        to_bits(compose(fraction | (u32(1) << u32(mantissa)), field - bias - mantissa)),
    )
    special = u32(INFINITY) | (fraction << u32(23 - mantissa))
    value = xp.where(field == (1 << exponent) - 1, special, value)
    return from_bits(value | (negative << 31))


def largest(fmt: FloatFormat) -> Array:
    """uint32 code, without sign, of the largest finite value: the last one below the top exponent."""
    return (((u32(1) << u32(fmt.exponent)) - u32(1)) << u32(fmt.mantissa)) - u32(1)


def encode(x: Array, fmt: FloatFormat) -> Array:
    """uint32 code of float32 ``x``: plain encoding, docs/machine.md 5.1, for any number of exponent bits up to 8."""
    xp = array_module(x, *fmt.values)
    exponent, mantissa = i32(fmt.exponent), i32(fmt.mantissa)
    bits = to_bits(x)
    field = (bits >> 23) & 0xFF
    top = (u32(1) << u32(exponent)) - 1
    # The reference's re-biasing, which is right for 8 exponent bits (distance 0) and wrong for all others.
    distance = (field - top) >> 1
    rebiased = xp.where(
        (field == 0) | (field <= distance),
        u32(0),
        xp.where(field - distance >= top, top, field - distance),
    )
    new_field = xp.where(exponent == 8, field, xp.where(field == 0xFF, top, rebiased))
    rounded = shift_right_even(bits & u32(0x7FFFFF), 23 - mantissa)
    carry = rounded >> u32(mantissa)
    new_field = new_field + carry
    rounded = xp.where((carry > 0) | (new_field > top), u32(0), rounded)
    new_field = xp.minimum(new_field, top)
    code = (new_field << u32(mantissa)) | rounded
    negative = bits >> 31
    sign_bit = negative << u32(exponent + mantissa)
    return xp.where(i32(fmt.sign) == 1, code | sign_bit, xp.where(negative == 1, u32(0), code))


def round_8_exponent_bits(x: Array, mantissa: int) -> Array:
    """``decode(encode(x))`` of a signed type with 8 exponent bits in a few integer operations (VRAM's rounding)."""
    xp = array_module(x)
    bits = to_bits(x)
    body = bits & u32(MAGNITUDE)
    drop = 23 - mantissa
    if drop == 0:
        return x
    # Without a mantissa there is nothing odd about what is kept.
    odd = (body >> drop) & 1 if mantissa else u32(0)
    rounded = (body + u32((1 << (drop - 1)) - 1) + odd) & u32(0xFFFFFFFF << drop)
    # Only a NaN can carry out of the exponent: it becomes infinity.
    rounded = xp.where(rounded >= u32(SIGN), u32(INFINITY), rounded)
    return from_bits(rounded | (bits & u32(SIGN)))


def round_scalar(x: Array) -> Array:
    """Round to BF16 as the scalar unit does: nearest even, NaN made quiet (docs/machine.md section 5.3)."""
    xp = array_module(x)
    quiet = from_bits((to_bits(x) & u32(0xFFFF0000)) | u32(0x00400000))
    return xp.where(is_nan(x), quiet, round_8_exponent_bits(x, 7))


def _ulps_that_round_up() -> np.ndarray:
    """At index n + 151, for n in -151 .. 129: how many float32 below 2**n have a log2 that float32 rounds to n."""
    counts = []
    for n in range(-151, 130):
        below = np.abs(np.float32(n) - np.nextafter(np.float32(n), np.float32(-np.inf))) if n else 0.0
        counts.append(int(float(below) / 2 * np.log(2) * 2**24))
    return np.array(counts, np.int32)


_ROUNDS_UP = _ulps_that_round_up()


def floor_log2(a: Array) -> Array:
    """int32 ``floor(log2f(a + 1e-9))`` for finite ``a >= 0``, with both operations rounded to float32."""
    xp = array_module(a)
    bits = to_bits(a + np.float32(1e-9))
    exponent = i32(bits >> 23) - 127
    below_next = u32(0x800000) - (bits & u32(0x7FFFFF))
    allowed = xp.asarray(_ROUNDS_UP)[xp.clip(exponent + 1 + 151, 0, len(_ROUNDS_UP) - 1)]
    return exponent + (i32(below_next) <= allowed).astype(np.int32)


def _quarter_round(v: Array) -> Array:
    """Truncate ``v >= 0`` to quarters, then round to the nearest integer, ties to even (docs/machine.md 5.4, HW)."""
    quarters = i32(array_module(v).floor(v * 4))
    whole, rest = quarters >> 2, quarters & 3
    return whole + ((rest == 3) | ((rest == 2) & (whole & 1 == 1))).astype(np.int32)


def encode_element(y: Array, fmt: FloatFormat) -> Array:
    """uint32 code of the scaled MX element ``y`` (docs/machine.md section 5.4, step 4)."""
    xp = array_module(y, *fmt.values)
    mantissa = i32(fmt.mantissa)
    body = magnitude(y)
    a = from_bits(body)
    infinite, nan = body == u32(INFINITY), is_nan(y)
    finite = xp.where(infinite | nan, np.float32(1), a)
    bias = (1 << (i32(fmt.exponent) - 1)) - 1
    emax = (1 << i32(fmt.exponent)) - 2 - bias
    r = xp.where(nan, 0, xp.where(infinite, 1 << 20, floor_log2(finite)))
    k = xp.clip(r, -bias, emax)
    normal = k > -bias
    # 2**-k can leave the float32 range for 8 exponent bits: scale in two steps.
    scaled = finite * pow2(-(k >> 1)) * pow2(-(k - (k >> 1)))
    fraction = xp.where(normal, scaled - 1, scaled) * pow2(mantissa)
    q = xp.where(fraction < 0, 1, _quarter_round(xp.clip(fraction, 0, 2.0**24)))
    top = (1 << mantissa) - 1
    q = xp.where(nan, 0, xp.where(r > emax, top, xp.clip(q, 0, top)))
    code = (u32(k + bias) << u32(mantissa)) | u32(q)
    negative = xp.where(nan, u32(0), to_bits(y) >> 31) & u32(i32(fmt.sign))
    code = code | (negative << u32(i32(fmt.exponent) + mantissa))
    return xp.where(body == 0, u32(0), code)


def block_exponent(largest: Array, scale_exponent_bits: int) -> Array:
    """int32 shared exponent of a block whose largest magnitude (NaN left out) is ``largest``."""
    xp = array_module(largest)
    limit = 2 ** (scale_exponent_bits - 1) - 1
    infinite = magnitude(largest) == u32(INFINITY)
    e = xp.clip(floor_log2(xp.where(infinite, np.float32(1), largest)), -limit, limit)
    return xp.where(infinite, limit, e)
