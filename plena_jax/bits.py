"""Exact float32 arithmetic on bit patterns: no flush to zero, no casts that a backend may drop.

XLA:CPU treats subnormal float32 as zero in arithmetic and XLA:GPU may remove float32 -> bfloat16 -> float32 casts, so
every codec works on the integer image of its input. Integers are int32 or uint32 throughout: nothing needs
``jax_enable_x64``. All functions take NumPy arrays and Python numbers too, and then do their work, without compiling
anything, in NumPy.
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


def array_module(*values: Array) -> Any:
    """``jax.numpy`` if any of the values is a jax array, traced or not, else ``numpy``."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


#: Decorator for what works on NumPy arrays too: overflow and the like are results here, not accidents.
quiet = np.errstate(all="ignore")


def float32(x: ArrayLike) -> Array:
    """``x`` as float32 array."""
    return array_module(x).asarray(x, np.float32)


def u32(x: ArrayLike) -> Array:
    """``x`` as uint32, negative integers modulo 2**32."""
    return np.uint32(x & 0xFFFFFFFF) if isinstance(x, int) else array_module(x).asarray(x).astype(np.uint32)


def i32(x: ArrayLike) -> Array:
    """``x`` as int32."""
    return np.int32(x) if isinstance(x, int) else array_module(x).asarray(x).astype(np.int32)


def to_bits(x: ArrayLike) -> Array:
    """uint32 bit pattern of float32 ``x``."""
    return _as_type(float32(x), np.uint32)


def from_bits(bits: ArrayLike) -> Array:
    """float32 with the uint32 bit pattern ``bits``."""
    return _as_type(u32(bits), np.float32)


def _as_type(x: Array, dtype: Any) -> Array:
    return lax.bitcast_convert_type(x, dtype) if isinstance(x, jax.Array) else x.view(dtype)


def magnitude(x: ArrayLike) -> Array:
    """Bit pattern of ``|x|``: orders like the value and shows subnormals that arithmetic would flush."""
    return to_bits(x) & u32(MAGNITUDE)


def is_nan(x: ArrayLike) -> Array:
    """Whether ``x`` is NaN, from its bits."""
    return magnitude(x) > u32(INFINITY)


def leading_zeros(x: Array) -> Array:
    """int32: zero bits of uint32 ``x`` above its highest one; 32 for zero."""
    if isinstance(x, jax.Array):
        return lax.clz(x).astype(np.int32)
    return (32 - np.frexp(x.astype(np.float64))[1]).astype(np.int32)


def pow2(exponent: ArrayLike) -> Array:
    """``2.0 ** exponent`` exactly, for integer exponents -126 .. 127 (others are clamped)."""
    return from_bits(u32(array_module(exponent).clip(i32(exponent), -126, 127) + 127) << 23)


def shift_right_even(value: Array, count: Array, odd: Array | None = None) -> Array:
    """uint32 ``value >> count`` rounded to nearest, ties to even.

    Counts of 25 and more give 0 for values below 2**24. ``odd`` replaces the lowest kept bit in the tie rule, for
    formats whose code parity is not the parity of the significand (no mantissa bits).
    """
    xp = array_module(value, count)
    count = u32(xp.clip(i32(count), 0, 25))
    kept = value >> count
    half = xp.where(count > 0, u32(1) << (xp.maximum(count, u32(1)) - u32(1)), u32(0))
    rest = value & ((u32(1) << count) - u32(1))
    odd = kept & 1 if odd is None else odd
    up = (rest > half) | ((rest == half) & (odd == 1))
    return kept + xp.where((count > 0) & up, u32(1), u32(0))


def normalise(x: ArrayLike) -> tuple[Array, Array]:
    """Split finite non-zero ``|x|`` into ``(significand, exponent)``.

    ``significand`` is uint32 with 2**23 <= significand < 2**24 (0 for zero), and
    ``|x| = significand * 2 ** (exponent - 23)``; subnormals included.
    """
    xp, bits = array_module(x), magnitude(x)
    field = i32(bits >> 23)
    fraction = bits & u32(0x7FFFFF)
    # A subnormal has its leading one somewhere in the 23 fraction bits: move it to bit 23.
    lead = leading_zeros(fraction) - 8
    subnormal = field == 0
    significand = xp.where(subnormal, fraction << u32(xp.clip(lead, 0, 31)), fraction | u32(0x800000))
    return significand, xp.where(subnormal, -126 - lead, field - 127)


def compose(significand: Array, unit: Array) -> Array:
    """float32 ``significand * 2 ** unit`` for uint32 significands below 2**24.

    Rounds to nearest even where the value falls below the float32 normal range and overflows to infinity.
    """
    xp, unit = array_module(significand, unit), i32(unit)
    lead = leading_zeros(significand) - 8
    exponent = unit + 23 - lead
    normal = (u32(xp.clip(exponent + 127, 1, 255)) << 23) | ((significand << u32(xp.clip(lead, 0, 31))) & u32(0x7FFFFF))
    normal = xp.where(exponent > 127, u32(INFINITY), normal)
    shift = -149 - unit
    subnormal = xp.where(shift > 0, shift_right_even(significand, shift), significand << u32(xp.clip(-shift, 0, 31)))
    return from_bits(xp.where(significand == 0, u32(0), xp.where(exponent >= -126, normal, subnormal)))
