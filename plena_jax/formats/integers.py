"""Integer formats, plain and as MX elements."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from plena_jax.bits import Array, array_module, float32, i32, is_nan, magnitude, pow2, quiet, u32
from plena_jax.errors import FormatError
from plena_jax.formats.rounding import Rounding


@partial(jax.tree_util.register_dataclass, data_fields=["width", "fraction", "sign"], meta_fields=["family"])
@dataclass(frozen=True)
class IntFormat(Rounding):
    """An integer of ``width`` bits worth ``code * 2 ** -fraction``.

    Attributes:
        width: 1..32 bits. Values are carried in float32: more than 24 bits lose low bits in :meth:`decode`.
        fraction: implied fraction bits; OCP's MXINT8 element has 6.
        sign: 1 for two's complement, 0 for unsigned.
        family: "ieee" rounds to nearest even and saturates; "plena" does what the hardware model does: truncate toward
            zero, saturate to 32 bits, keep the low ``width`` bits, and read them back unsigned (docs/machine.md 5.2).
    """

    width: int
    fraction: int = 0
    sign: int = 1
    family: Literal["ieee", "plena"] = field(default="ieee")

    def __post_init__(self) -> None:
        # While jax passes a format along, anything may stand for its fields.
        if type(self.width) is int and not 1 <= self.width <= 32:
            raise FormatError(f"int{self.width}: an integer format has 1..32 bits")

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return self.width

    @quiet
    def encode(self, x: ArrayLike) -> Array:
        """uint32 codes of float32 ``x``; NaN gives 0. Of NumPy arrays as NumPy array."""
        x = float32(x)
        xp, width = array_module(x, self.width, self.fraction, self.sign), i32(self.width)
        scaled = xp.where(is_nan(x), np.float32(0), x) * pow2(self.fraction)
        mask = xp.where(width == 32, u32(0xFFFFFFFF), (u32(1) << u32(xp.minimum(width, 31))) - u32(1))
        if self.family == "plena":
            return u32(_saturate(xp.trunc(scaled), -(2.0**31), 2.0**31)) & mask
        span = pow2(self.width - self.sign)
        low = xp.where(i32(self.sign) == 1, -span, np.float32(0))
        rounded = xp.round(scaled)
        # Unsigned codes above 2**31 do not pass through int32: take the upper half off first.
        big = rounded >= np.float32(2**31)
        small = xp.where(big, rounded - np.float32(2**31), xp.maximum(rounded, low))
        code = u32(_saturate(small, -(2.0**31), 2.0**31))
        code = xp.where(big, code | u32(0x80000000), code)
        return xp.where(rounded >= span, xp.where(i32(self.sign) == 1, mask >> 1, mask), code & mask)

    @quiet
    def decode(self, code: ArrayLike) -> Array:
        """float32 values of unsigned integer codes; of NumPy arrays as NumPy array."""
        xp = array_module(code, self.width, self.fraction, self.sign)
        spare = u32(32 - i32(self.width))
        body = u32(code) << spare
        signed = (i32(body) >> i32(spare)).astype(np.float32)
        unsigned = (body >> spare).astype(np.float32)
        value = unsigned if self.family == "plena" else xp.where(i32(self.sign) == 1, signed, unsigned)
        return value * pow2(-i32(self.fraction))

    def _held(self, x: Array) -> Array:
        return self.decode(self.encode(x))

    def _largest(self, x: Array) -> tuple[Array, Array]:
        xp, width = array_module(self.width, self.fraction, self.sign), i32(self.width)
        mask = u32(0xFFFFFFFF) >> u32(32 - width)
        signed = (i32(self.sign) == 1) & (self.family != "plena")
        largest, lowest = magnitude(self.decode(mask >> u32(signed))), magnitude(self.decode(u32(1) << u32(width - 1)))
        return largest, xp.where(signed, lowest, u32(0))


def _saturate(x: Array, low: float, high: float) -> Array:
    """int32 of an integral float32, saturated (float32 cannot hold 2**31 - 1, so the top is tested apart)."""
    xp = array_module(x)
    inside = xp.clip(x, np.float32(low), np.nextafter(np.float32(high), np.float32(0)))
    return xp.where(x >= np.float32(high), np.int32(2**31 - 1), inside.astype(np.int32))
