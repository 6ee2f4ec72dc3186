"""What formats do to values, without their codes: floats and integers are the same handful of integers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from plena_jax.bits import INFINITY, MAGNITUDE, SIGN, Array, array_module, from_bits, i32, quiet, to_bits, u32
from plena_jax.errors import FormatError
from plena_jax.formats.floats import FloatFormat
from plena_jax.formats.integers import IntFormat
from plena_jax.formats.rounding import Rounding
from plena_jax.formats.scaling import pow2_bits, scale_bits, scale_limit

#: For positive numbers, for negative numbers.
BySign = tuple[int, int]

_FINITE = INFINITY - 1
#: As a limit: not even the half of float32's smallest value, 2**-150, whose pattern this would be, is beyond it.
_NOTHING = -23 << 23
#: What shows how a format answers overflow, infinity and NaN, positive ones and negative ones, and negative zero.
_PROBES = u32(np.array([_FINITE, INFINITY, 0x7FC00000]))


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mantissa", "quantum", "top", "largest", "limit", "overflow", "infinity", "nan", "zero"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Quantizer(Rounding):
    """The rounding of a float or integer format of the "ieee" family.

    Every field is a pytree leaf or a pair of leaves: Python integers (then it is hashable) or traced ones. So floats,
    fixed-point integers and, in an :class:`~plena_jax.formats.MXFormat`, elements of blocks stack, and ``vmap`` sweeps
    them in one compilation. Construct through :meth:`of`. An integer is a float that has a single binade of normal
    numbers. Bit patterns are those of float32 as int32; pairs are for positive and for negative numbers.

    Attributes:
        mantissa: significant bits after the first one; of integers ``width - 1 - sign``.
        quantum: exponent of the spacing of the smallest values.
        top: exponent of the largest value.
        largest: pattern of the magnitude of the largest finite value.
        limit: pattern of the largest magnitude that rounds to a finite value; above it is overflow.
        overflow, infinity, nan: patterns, signs included, of what finite values beyond the limit, infinities and NaN
            become.
        zero: pattern of negative zero; 0 without one.
    """

    mantissa: int
    quantum: int
    top: int
    largest: BySign
    limit: BySign
    overflow: BySign
    infinity: BySign
    nan: BySign
    zero: int

    @classmethod
    def of(cls, fmt: FloatFormat | IntFormat) -> Quantizer:
        """The quantizer that rounds as ``fmt`` does; its fields are traced where those of ``fmt`` are.

        Raises:
            FormatError: the "plena" family, formats without zero (scales), fixed point outside float32.
        """
        if fmt.family != "ieee":
            raise FormatError(f"a quantizer of the {fmt.family!r} family: only formats of the 'ieee' family have one")
        if isinstance(fmt, FloatFormat):
            if isinstance(fmt.zero, int) and not fmt.zero:
                raise FormatError(f"e{fmt.exponent}m{fmt.mantissa} without zero cannot hold data: it has no quantizer")
            mantissa, quantum = i32(fmt.mantissa), 1 - i32(fmt.bias) - i32(fmt.mantissa)
            top = i32(u32(fmt.largest) >> u32(fmt.mantissa)) - i32(fmt.bias)
        else:
            if isinstance(fmt.fraction, int) and not -126 <= fmt.fraction <= 125:
                raise FormatError(f"{fmt.fraction} fraction bits put integers outside float32; allowed: -126..125")
            mantissa, quantum = i32(fmt.width) - 1 - i32(fmt.sign), -i32(fmt.fraction)
            top = mantissa + quantum
        largest = _each(fmt._largest(_PROBES))
        answers = i32(to_bits(fmt._held(from_bits(_PROBES)))), i32(to_bits(fmt._held(from_bits(_PROBES | u32(SIGN)))))
        overflow, infinity, nan = ((answers[0][i], answers[1][i]) for i in range(3))
        zero = i32(to_bits(fmt._held(from_bits(u32(np.array(SIGN))))))
        found = cls(mantissa, quantum, top, largest, largest, overflow, infinity, nan, zero)
        if isinstance(fmt, FloatFormat):
            found = dataclasses.replace(found, limit=_limits(found, fmt))
        return jax.tree.map(lambda v: v if isinstance(v, jax.Array) else int(v), found)

    def check_scalable(self) -> None:
        """Refuse what MX blocks cannot scale exactly; traced fields pass.

        Raises:
            FormatError: values finer than 2**-125 or as large as 2**127, as of elements with 8 exponent bits.
        """
        if isinstance(self.quantum, int) and isinstance(self.top, int) and (self.quantum < -125 or self.top > 126):
            raise FormatError(
                f"a quantizer with values from 2**{self.quantum} to 2**{self.top} cannot be scaled exactly in float32; "
                "MX elements lie within 2**-125 and 2**127, exclusively"
            )

    @quiet
    def _held(self, x: Array) -> Array:
        return self.held_scaled(x, None)

    def held_scaled(self, x: Array, exponent: Array | None) -> Array:
        """``2 ** exponent`` times what ``x * 2 ** -exponent`` becomes: one exponent for each ``x``, None for 0.

        It equals scaling, rounding and scaling back in float32 where :meth:`check_scalable` has nothing to say: what
        is scaled is the format, because it has few parts.
        """
        xp = array_module(x, exponent, *jax.tree.leaves(self))
        bits = i32(to_bits(x))
        body, negative = bits & MAGNITUDE, bits < 0
        # The last kept bit is worth 2 ** max(exponent - mantissa, quantum): so many bits of the pattern go.
        spare, quantum = 23 - i32(self.mantissa), i32(self.quantum) + (0 if exponent is None else exponent)
        field = xp.maximum(body >> 23, 1)
        # Of subnormals fewer, for formats that have binades down there: a conversion finds the leading bit.
        leading = i32(to_bits(body.astype(np.float32)) >> 23)
        drop = xp.maximum(xp.minimum(spare, leading + (spare - 150)), quantum + 150 - field)
        drop = xp.clip(drop, 0, 23)
        mask = (1 << drop) - 1
        # The parity of a code is that of the last kept bit. When all 23 bits go, that is the last one of the exponent,
        # even where its parity is that of quantum; of subnormals without mantissa the exponent counts as well.
        bare = xp.where(i32(self.mantissa) == 0, leading + quantum, 0)
        odd = ((body >> drop) ^ xp.where(drop == 23, quantum, bare)) & 1
        rounded = (body + ((mask + odd) >> 1)) & ~mask
        # One binade below the smallest value more than 23 bits should have gone.
        rounded = xp.maximum(rounded, pow2_bits(quantum)) | (bits ^ body)
        zero = xp.where(negative, i32(self.zero), 0)
        rounded = xp.where(body <= xp.minimum(pow2_bits(quantum - 1), INFINITY), zero, rounded)
        limit, overflow, infinity, nan = (
            xp.where(negative, i32(pair[1]), i32(pair[0]))
            for pair in (self.limit, self.overflow, self.infinity, self.nan)
        )
        answer = xp.where(body > INFINITY, nan, xp.where(body == INFINITY, infinity, overflow))
        if exponent is None:
            limit = xp.maximum(limit, 0)
        else:
            limit, answer = scale_limit(limit, exponent), scale_bits(answer, exponent)
        return from_bits(xp.where((body > limit) | (body >= INFINITY), answer, rounded))

    def _largest(self, x: Array) -> tuple[Array, Array]:
        return u32(self.largest[0]), u32(self.largest[1])


def _each(pair: tuple[Array, Array]) -> Any:
    return i32(pair[0]), i32(pair[1])


def _limits(found: Quantizer, fmt: FloatFormat) -> Any:
    """The middle between the largest value and the next, or just below it where the largest code is odd."""
    xp = array_module(*jax.tree.leaves(found))
    largest = found.largest[0]
    unit = xp.maximum(largest >> 23, 1) - 150
    drop = xp.clip(xp.maximum(found.top - found.mantissa, found.quantum) - unit, 0, 23)
    middle = largest + ((1 << drop) >> 1) - xp.where(drop > 0, i32(fmt.largest) & 1, 0)
    middle = xp.where(largest == 0, pow2_bits(found.quantum - 1), middle)
    middle = xp.minimum(middle, _FINITE)
    return middle, xp.where(i32(fmt.sign) == 1, middle, _NOTHING)
