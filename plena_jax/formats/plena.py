"""Codec of the hardware model: the conversions of isa.md section 5, defects included.

``FloatFormat`` objects of the "plena" family hold the same fields as the others; only the rules below differ:
subnormals below 8 exponent bits are worth half of what IEEE gives them, NaN keeps its mantissa, the plain encoder of
types with fewer than 8 exponent bits is defective, and MX elements have their own rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.bits import (
    INFINITY,
    MAGNITUDE,
    SIGN,
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


def decode(code: jax.Array, fmt: FloatFormat) -> jax.Array:
    """float32 value of uint32 ``code``: plain decoding, isa.md section 5.1."""
    code, exponent, mantissa = u32(code), i32(fmt.exponent), i32(fmt.mantissa)
    width = u32(exponent + mantissa)
    negative = jnp.where(i32(fmt.sign) == 1, (code >> width) & 1, u32(0))
    field = i32((code & ((u32(1) << width) - 1)) >> u32(mantissa))
    fraction = code & ((u32(1) << u32(mantissa)) - 1)
    bias = (1 << (exponent - 1)) - 1
    # With 8 exponent bits the code is the top of a float32; below, a subnormal is worth m / 2**M * 2**-bias.
    subnormal_unit = jnp.where(exponent == 8, -126, -bias) - mantissa
    value = jnp.where(
        field == 0,
        to_bits(compose(fraction, subnormal_unit)),
        to_bits(compose(fraction | (u32(1) << u32(mantissa)), field - bias - mantissa)),
    )
    special = u32(INFINITY) | (fraction << u32(23 - mantissa))
    value = jnp.where(field == (1 << exponent) - 1, special, value)
    return from_bits(value | (negative << 31))


def encode(x: jax.Array, fmt: FloatFormat) -> jax.Array:
    """uint32 code of float32 ``x``: plain encoding, isa.md section 5.1, for any number of exponent bits up to 8."""
    exponent, mantissa = i32(fmt.exponent), i32(fmt.mantissa)
    bits = to_bits(x)
    field = (bits >> 23) & 0xFF
    top = (u32(1) << u32(exponent)) - 1
    # The reference's re-biasing, which is right for 8 exponent bits (distance 0) and wrong for all others.
    distance = (field - top) >> 1
    rebiased = jnp.where(
        (field == 0) | (field <= distance),
        u32(0),
        jnp.where(field - distance >= top, top, field - distance),
    )
    new_field = jnp.where(exponent == 8, field, jnp.where(field == 0xFF, top, rebiased))
    rounded = shift_right_even(bits & u32(0x7FFFFF), 23 - mantissa)
    carry = rounded >> u32(mantissa)
    new_field = new_field + carry
    rounded = jnp.where((carry > 0) | (new_field > top), u32(0), rounded)
    new_field = jnp.minimum(new_field, top)
    code = (new_field << u32(mantissa)) | rounded
    negative = bits >> 31
    sign_bit = negative << u32(exponent + mantissa)
    return jnp.where(i32(fmt.sign) == 1, code | sign_bit, jnp.where(negative == 1, u32(0), code))


def round_8_exponent_bits(x: jax.Array, mantissa: int) -> jax.Array:
    """``decode(encode(x))`` of a signed type with 8 exponent bits in a few integer operations (VRAM's rounding)."""
    bits = to_bits(x)
    body = bits & u32(MAGNITUDE)
    drop = 23 - mantissa
    if drop == 0:
        return x
    rounded = (body + u32((1 << (drop - 1)) - 1) + ((body >> drop) & 1)) & u32(0xFFFFFFFF << drop)
    # Only a NaN can carry out of the exponent: it becomes infinity.
    rounded = jnp.where(rounded >= u32(SIGN), u32(INFINITY), rounded)
    return from_bits(rounded | (bits & u32(SIGN)))


def round_scalar(x: jax.Array) -> jax.Array:
    """Round to BF16 as the scalar unit does: nearest even, NaN made quiet (isa.md section 5.3)."""
    quiet = from_bits((to_bits(x) & u32(0xFFFF0000)) | u32(0x00400000))
    return jnp.where(is_nan(x), quiet, round_8_exponent_bits(x, 7))


def _ulps_that_round_up() -> np.ndarray:
    """At index n + 151, for n in -151 .. 129: how many float32 below 2**n have a log2 that float32 rounds to n."""
    counts = []
    for n in range(-151, 130):
        below = np.abs(np.float32(n) - np.nextafter(np.float32(n), np.float32(-np.inf))) if n else 0.0
        counts.append(int(float(below) / 2 * np.log(2) * 2**24))
    return np.array(counts, np.int32)


_ROUNDS_UP = _ulps_that_round_up()


def floor_log2(a: jax.Array) -> jax.Array:
    """int32 ``floor(log2f(a + 1e-9))`` for finite ``a >= 0``, with both operations rounded to float32."""
    bits = to_bits(a + jnp.float32(1e-9))
    exponent = i32(bits >> 23) - 127
    below_next = u32(0x800000) - (bits & u32(0x7FFFFF))
    allowed = jnp.asarray(_ROUNDS_UP)[jnp.clip(exponent + 1 + 151, 0, len(_ROUNDS_UP) - 1)]
    return exponent + (i32(below_next) <= allowed).astype(jnp.int32)


def _quarter_round(v: jax.Array) -> jax.Array:
    """Truncate ``v >= 0`` to quarters, then round to the nearest integer, ties to even (isa.md section 5.4, HW)."""
    quarters = i32(jnp.floor(v * 4))
    whole, rest = quarters >> 2, quarters & 3
    return whole + ((rest == 3) | ((rest == 2) & (whole & 1 == 1))).astype(jnp.int32)


def encode_element(y: jax.Array, fmt: FloatFormat) -> jax.Array:
    """uint32 code of the scaled MX element ``y`` (isa.md section 5.4, step 4)."""
    mantissa = i32(fmt.mantissa)
    body = magnitude(y)
    a = from_bits(body)
    infinite, nan = body == u32(INFINITY), is_nan(y)
    finite = jnp.where(infinite | nan, jnp.float32(1), a)
    bias = (1 << (i32(fmt.exponent) - 1)) - 1
    emax = (1 << i32(fmt.exponent)) - 2 - bias
    r = jnp.where(nan, 0, jnp.where(infinite, 1 << 20, floor_log2(finite)))
    k = jnp.clip(r, -bias, emax)
    normal = k > -bias
    # 2**-k can leave the float32 range for 8 exponent bits: scale in two steps.
    scaled = finite * pow2(-(k >> 1)) * pow2(-(k - (k >> 1)))
    fraction = jnp.where(normal, scaled - 1, scaled) * pow2(mantissa)
    q = jnp.where(fraction < 0, 1, _quarter_round(jnp.clip(fraction, 0, 2.0**24)))
    top = (1 << mantissa) - 1
    q = jnp.where(nan, 0, jnp.where(r > emax, top, jnp.clip(q, 0, top)))
    code = (u32(k + bias) << u32(mantissa)) | u32(q)
    negative = jnp.where(nan, u32(0), to_bits(y) >> 31) & u32(i32(fmt.sign))
    code = code | (negative << u32(i32(fmt.exponent) + mantissa))
    return jnp.where(body == 0, u32(0), code)


def block_exponent(largest: jax.Array, scale_exponent_bits: int) -> jax.Array:
    """int32 shared exponent of a block whose largest magnitude (NaN left out) is ``largest``."""
    limit = 2 ** (scale_exponent_bits - 1) - 1
    infinite = magnitude(largest) == u32(INFINITY)
    e = jnp.clip(floor_log2(jnp.where(infinite, jnp.float32(1), largest)), -limit, limit)
    return jnp.where(infinite, limit, e)
