"""Block formats: elements that share one scale per block (OCP Microscaling and the hardware model's own variant)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from plena_jax import arithmetic
from plena_jax.bits import (
    Array,
    array_module,
    compose,
    float32,
    from_bits,
    i32,
    is_nan,
    magnitude,
    normalise,
    quiet,
    to_bits,
    u32,
)
from plena_jax.errors import FormatError
from plena_jax.formats import plena
from plena_jax.formats.floats import FloatFormat
from plena_jax.formats.integers import IntFormat
from plena_jax.formats.rounding import straight_through

ScaleRule = Literal["floor", "ceil", "even", "rceil", "plena"]
SCALE_RULES: tuple[ScaleRule, ...] = ("floor", "ceil", "even", "rceil", "plena")


@partial(jax.tree_util.register_dataclass, data_fields=["element", "scale"], meta_fields=["block", "rule"])
@dataclass(frozen=True)
class MXFormat:
    """``block`` consecutive elements of the last axis share one power-of-two scale.

    Attributes:
        element: float or integer format of the elements.
        scale: format of the scales, normally 8 exponent bits and nothing else.
        block: elements per scale; static.
        rule: how the shared exponent follows from the largest magnitude m of a block. With E the exponent of the
            element format's largest value: "floor" (OCP MX v1.0) ``floor(log2 m) - E``; "ceil" ``ceil(log2 m) - E``;
            "even" first rounds m to the element's mantissa; "rceil" ``ceil(log2(m / largest element))``; "plena" is the
            hardware model's: ``floor(log2f(m + 1e-9))``, the element's exponent not subtracted (docs/machine.md 5.4).
    """

    element: FloatFormat | IntFormat
    scale: FloatFormat
    block: int
    rule: ScaleRule = "floor"

    def __post_init__(self) -> None:
        if isinstance(self.block, int) and self.block < 1:
            raise FormatError(f"MX block of {self.block} elements; allowed: 1 or more")
        if self.rule not in SCALE_RULES:
            raise FormatError(f"scale rule {self.rule!r}; allowed: {', '.join(SCALE_RULES)}")

    @quiet
    def encode(self, x: ArrayLike) -> tuple[Array, Array]:
        """Codes of float32 ``x`` [..., n]: elements uint32 [..., n] and scales uint32 [..., n / block].

        Of NumPy arrays as NumPy arrays.

        Raises:
            FormatError: n is not a multiple of ``block``.
        """
        values = float32(x)
        xp, shape = array_module(values, *self._values), values.shape
        if not shape or shape[-1] % self.block:
            raise FormatError(f"last axis of shape {shape} is not a multiple of the MX block {self.block}")
        blocks = values.reshape(*shape[:-1], shape[-1] // self.block, self.block)
        bits = xp.where(is_nan(blocks), u32(0), magnitude(blocks))
        largest = from_bits(xp.max(bits, axis=-1))
        empty = magnitude(largest) == 0
        exponent = self.shared_exponent(largest)
        scaled = _times_pow2(blocks, -exponent[..., None])
        if self.rule == "plena":
            codes = self._plena_elements(scaled)
            codes = xp.where(empty[..., None], u32(0), codes)
            scales = xp.where(empty, u32(0), u32(exponent + i32(self.scale.bias)))
        else:
            codes = self.element.encode(scaled)
            # A block of zeros has the smallest scale; a block with infinity keeps it in the elements.
            scales = u32(exponent + i32(self.scale.bias))
        return codes.reshape(shape), scales

    @property
    def _values(self) -> list[Any]:
        return jax.tree.leaves(self)

    def _plena_elements(self, scaled: Array) -> Array:
        if isinstance(self.element, FloatFormat):
            return plena.encode_element(scaled, self.element)
        return self.element.encode(scaled)

    def shared_exponent(self, largest: Array) -> Array:
        """int32 shared exponent for blocks whose largest magnitudes are ``largest`` (NaN left out), before encoding."""
        xp = array_module(largest, *self._values)
        if self.rule == "plena":
            return plena.block_exponent(largest, self.scale.exponent)
        finite = xp.where(magnitude(largest) >= u32(0x7F800000), from_bits(u32(0x7F7FFFFF)), largest)
        element, low = self.element, -i32(self.scale.bias)
        if isinstance(element, FloatFormat):
            top, mantissa = from_float_exponent(element), i32(element.mantissa)
            most = element.decode(element.largest)
        else:
            # The largest integer is just below 2 ** (width - 1 - fraction).
            top, mantissa = i32(element.width) - 2 - i32(element.fraction), i32(element.width) - 2
            most = element.decode((u32(1) << u32(i32(element.width) - 1)) - 1)
        significand, exponent = normalise(finite)
        fraction = significand & u32(0x7FFFFF)
        if self.rule == "ceil":
            exponent = exponent + (fraction > 0)
        elif self.rule == "even":
            half = u32(1) << u32(xp.maximum(22 - mantissa, 0))
            exponent = exponent + ((significand + xp.where(mantissa >= 23, u32(0), half)) >= u32(1 << 24))
        elif self.rule == "rceil":
            limit, limit_exponent = normalise(most)
            exponent = exponent - limit_exponent + (significand > limit)
            top = i32(0)
        exponent = xp.where(magnitude(largest) == 0, low, exponent - top)
        return xp.clip(exponent, low, i32(self.scale.largest) - i32(self.scale.bias))

    @quiet
    def decode(self, codes: ArrayLike, scales: ArrayLike) -> Array:
        """float32 values [..., n] of element codes [..., n] and scale codes [..., n / block]; NumPy in, NumPy out."""
        elements, factors = self.element.decode(codes), self.scale.decode(scales)
        if array_module(elements, factors) is np:
            return elements * np.repeat(factors, self.block, axis=-1)
        return arithmetic.multiply(elements, jnp.repeat(factors, self.block, axis=-1))

    def round(self, x: ArrayLike) -> jax.Array:
        """float32 ``decode(*encode(x))``; its derivative is 1 everywhere (straight-through)."""
        return straight_through(jnp.asarray(x, jnp.float32), self)


def from_float_exponent(fmt: FloatFormat) -> Array:
    """int32 exponent of the largest finite value of ``fmt``."""
    return i32(u32(fmt.largest) >> u32(fmt.mantissa)) - i32(fmt.bias)


def _times_pow2(x: Array, exponent: Array) -> Array:
    """``x * 2 ** exponent`` exactly, subnormals and specials included."""
    xp = array_module(x, exponent)
    significand, e = normalise(x)
    scaled = to_bits(compose(significand, e - 23 + exponent)) | (to_bits(x) & u32(0x80000000))
    return xp.where(magnitude(x) >= u32(0x7F800000), x, from_bits(scaled))
