"""Exact float32 arithmetic on bit patterns: no flush to zero, no casts that a backend may drop.

XLA:CPU treats subnormal float32 as zero in arithmetic and XLA:GPU may remove float32 -> bfloat16 -> float32 casts, so
every codec works on the integer image of its input. Integers are int32 or uint32 throughout: nothing needs
``jax_enable_x64``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

#: A NumPy array or a jax one; where code takes both, it does the same with either.
Array = Any

SIGN = 0x80000000
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
QUIET_NAN = 0x7FC00000
#: What x86 arithmetic returns for an invalid operation (inf - inf, 0 * inf, sqrt(-1)).
DEFAULT_NAN = 0xFFC00000


def array_module(x: Array) -> Any:
    """``numpy`` for NumPy arrays, else ``jax.numpy``."""
    return np if isinstance(x, (np.ndarray, np.generic)) else jnp


def u32(x: ArrayLike) -> jax.Array:
    """``x`` as uint32 (Python integers up to 2**32 - 1 included)."""
    return jnp.asarray(x).astype(jnp.uint32) if not isinstance(x, int) else jnp.uint32(x & 0xFFFFFFFF)


def i32(x: ArrayLike) -> jax.Array:
    """``x`` as int32."""
    return jnp.asarray(x).astype(jnp.int32)


def to_bits(x: ArrayLike) -> jax.Array:
    """uint32 bit pattern of float32 ``x``."""
    return lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.uint32)


def from_bits(bits: ArrayLike) -> jax.Array:
    """float32 with the uint32 bit pattern ``bits``."""
    return lax.bitcast_convert_type(u32(bits), jnp.float32)


def magnitude(x: ArrayLike) -> jax.Array:
    """Bit pattern of ``|x|``: orders like the value and shows subnormals that arithmetic would flush."""
    return to_bits(x) & u32(MAGNITUDE)


def is_nan(x: ArrayLike) -> jax.Array:
    """Whether ``x`` is NaN, from its bits."""
    return magnitude(x) > u32(INFINITY)


def pow2(exponent: ArrayLike) -> jax.Array:
    """``2.0 ** exponent`` exactly, for integer exponents -126 .. 127 (others are clamped)."""
    return from_bits(u32(jnp.clip(i32(exponent), -126, 127) + 127) << 23)


def shift_right_even(value: jax.Array, count: jax.Array, odd: jax.Array | None = None) -> jax.Array:
    """uint32 ``value >> count`` rounded to nearest, ties to even.

    Counts of 25 and more give 0 for values below 2**24. ``odd`` replaces the lowest kept bit in the tie rule, for
    formats whose code parity is not the parity of the significand (no mantissa bits).
    """
    count = u32(jnp.clip(i32(count), 0, 25))
    kept = value >> count
    half = jnp.where(count > 0, u32(1) << (jnp.maximum(count, 1) - 1), u32(0))
    rest = value & ((u32(1) << count) - 1)
    odd = kept & 1 if odd is None else odd
    up = (rest > half) | ((rest == half) & (odd == 1))
    return kept + jnp.where((count > 0) & up, u32(1), u32(0))


def normalise(x: ArrayLike) -> tuple[jax.Array, jax.Array]:
    """Split finite non-zero ``|x|`` into ``(significand, exponent)``.

    ``significand`` is uint32 with 2**23 <= significand < 2**24 (0 for zero), and
    ``|x| = significand * 2 ** (exponent - 23)``; subnormals included.
    """
    bits = magnitude(x)
    field = i32(bits >> 23)
    fraction = bits & u32(0x7FFFFF)
    # A subnormal has its leading one somewhere in the 23 fraction bits: move it to bit 23.
    lead = i32(lax.clz(i32(fraction))) - 8
    subnormal = field == 0
    significand = jnp.where(subnormal, fraction << u32(jnp.clip(lead, 0, 31)), fraction | u32(0x800000))
    return significand, jnp.where(subnormal, -126 - lead, field - 127)


def compose(significand: jax.Array, unit: ArrayLike) -> jax.Array:
    """float32 ``significand * 2 ** unit`` for uint32 significands below 2**24.

    Rounds to nearest even where the value falls below the float32 normal range and overflows to infinity.
    """
    unit = i32(unit)
    lead = i32(lax.clz(i32(significand))) - 8
    exponent = unit + 23 - lead
    normal = (u32(jnp.clip(exponent + 127, 1, 255)) << 23) | (
        (significand << u32(jnp.clip(lead, 0, 31))) & u32(0x7FFFFF)
    )
    normal = jnp.where(exponent > 127, u32(INFINITY), normal)
    shift = -149 - unit
    subnormal = jnp.where(shift > 0, shift_right_even(significand, shift), significand << u32(jnp.clip(-shift, 0, 31)))
    return from_bits(jnp.where(significand == 0, u32(0), jnp.where(exponent >= -126, normal, subnormal)))
