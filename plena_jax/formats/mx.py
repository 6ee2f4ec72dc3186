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
    float32,
    from_bits,
    i32,
    is_nan,
    magnitude,
    normalise,
    quiet,
    u32,
)
from plena_jax.errors import FormatError
from plena_jax.formats import plena
from plena_jax.formats.floats import FloatFormat
from plena_jax.formats.quantizer import Quantizer
from plena_jax.formats.rounding import Rounding
from plena_jax.formats.scaling import limit_times_pow2, times_pow2

#: FloatFormat, IntFormat or Quantizer. What moves codes, as machines do, knows that its elements are not the last.
Element = Any

ScaleRule = Literal["floor", "ceil", "even", "rceil", "plena"]
SCALE_RULES: tuple[ScaleRule, ...] = ("floor", "ceil", "even", "rceil", "plena")


@partial(jax.tree_util.register_dataclass, data_fields=["element", "scale"], meta_fields=["block", "rule"])
@dataclass(frozen=True)
class MXFormat(Rounding):
    """``block`` consecutive elements of the last axis share one power-of-two scale.

    Attributes:
        element: float or integer format of the elements, or the quantizer of one: then there are no codes, only
            rounding, the rule is not "plena", and the scale has no zero.
        scale: format of the scales, normally 8 exponent bits and nothing else.
        block: elements per scale; static.
        rule: how the shared exponent follows from the largest magnitude m of a block. With E the exponent of the
            element format's largest value: "floor" (OCP MX v1.0) ``floor(log2 m) - E``; "ceil" ``ceil(log2 m) - E``;
            "even" first rounds m to the element's mantissa; "rceil" ``ceil(log2(m / largest element))``; "plena" is the
            hardware model's: ``floor(log2f(m + 1e-9))``, the element's exponent not subtracted (docs/machine.md 5.4).
    """

    element: Element
    scale: FloatFormat
    block: int
    rule: ScaleRule = "floor"

    def __post_init__(self) -> None:
        if isinstance(self.block, int) and self.block < 1:
            raise FormatError(f"MX block of {self.block} elements; allowed: 1 or more")
        if self.rule not in SCALE_RULES:
            raise FormatError(f"scale rule {self.rule!r}; allowed: {', '.join(SCALE_RULES)}")
        if isinstance(self.element, Quantizer):
            self.element.check_scalable()
            if self.rule == "plena":
                raise FormatError("scale rule 'plena' with a quantizer as element; allowed: floor, ceil, even, rceil")
            # Not isinstance: vmap builds formats of flags, True where a field is batched.
            if isinstance(self.scale, FloatFormat) and type(self.scale.zero) is int and self.scale.zero:
                raise FormatError(
                    "a quantizer as element needs a scale without zero, as FloatFormat.exponent_only makes"
                )

    def quantizer(self) -> MXFormat:
        """The same block format with the quantizer of its element: rounds alike, faster, and stacks with others.

        Raises:
            FormatError: rule "plena", an element that has no quantizer or cannot be scaled exactly.
        """
        if isinstance(self.element, Quantizer):
            return self
        return MXFormat(Quantizer.of(self.element), self.scale, self.block, self.rule)

    @quiet
    def encode(self, x: ArrayLike) -> tuple[Array, Array]:
        """Codes of float32 ``x`` [..., n]: elements uint32 [..., n] and scales uint32 [..., n / block].

        Of NumPy arrays as NumPy arrays.

        Raises:
            FormatError: n is not a multiple of ``block``, or the element is a quantizer.
        """
        self._check_codes()
        blocks, largest, exponent = self._shared(float32(x))
        xp = array_module(blocks, *self._values)
        scaled = times_pow2(blocks, -exponent[..., None])
        scales = self._scales(largest, exponent)
        if self.rule == "plena":
            codes = xp.where(magnitude(largest)[..., None] == 0, u32(0), self._plena_elements(scaled))
        else:
            codes = self.element.encode(scaled)
        return codes.reshape(np.shape(x)), scales

    def _check_codes(self) -> None:
        if isinstance(self.element, Quantizer):
            raise FormatError("an MX format with a quantizer as element rounds only: it has no codes")

    def _shared(self, x: Array) -> tuple[Array, Array, Array]:
        """Blocks [..., n / block, block] of ``x`` [..., n], their largest magnitudes and their shared exponents."""
        xp, shape = array_module(x, *self._values), x.shape
        if not shape or shape[-1] % self.block:
            raise FormatError(f"last axis of shape {shape} is not a multiple of the MX block {self.block}")
        blocks = x.reshape(*shape[:-1], shape[-1] // self.block, self.block)
        largest = from_bits(xp.max(xp.where(is_nan(blocks), u32(0), magnitude(blocks)), axis=-1))
        return blocks, largest, self.shared_exponent(largest)

    def _scales(self, largest: Array, exponent: Array) -> Array:
        # A block of zeros has the smallest scale; a block with infinity keeps it in the elements.
        scales = u32(exponent + i32(self.scale.bias))
        empty = magnitude(largest) == 0
        return array_module(scales).where(empty, u32(0), scales) if self.rule == "plena" else scales

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
        most = from_bits(u32(element._largest(largest)[0]))
        if isinstance(element, Quantizer):
            top, mantissa = i32(element.top), i32(element.mantissa)
        elif isinstance(element, FloatFormat):
            top, mantissa = from_float_exponent(element), i32(element.mantissa)
            most = element.decode(element.largest)
        else:
            # The largest integer is just below 2 ** (width - sign - fraction).
            mantissa = i32(element.width) - 1 - i32(element.sign)
            top = mantissa - i32(element.fraction)
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
        """float32 values [..., n] of element codes [..., n] and scale codes [..., n / block]; NumPy in, NumPy out.

        Raises:
            FormatError: the element is a quantizer.
        """
        self._check_codes()
        elements, factors = self.element.decode(codes), self.scale.decode(scales)
        if array_module(elements, factors) is np:
            return elements * np.repeat(factors, self.block, axis=-1)
        return arithmetic.multiply(elements, jnp.repeat(factors, self.block, axis=-1))

    def _held(self, x: Array) -> Array:
        if not isinstance(self.element, Quantizer):
            return self.decode(*self.encode(x))
        blocks, _, exponent = self._shared(x)
        return self.element.held_scaled(blocks, exponent[..., None]).reshape(x.shape)

    def _largest(self, x: Array) -> tuple[Array, Array]:
        _, largest, exponent = self._shared(x)
        factor = self.scale.decode(self._scales(largest, exponent))
        xp, factor_exponent = array_module(x, *self._values), normalise(factor)[1]

        def for_each(bits: Array) -> Array:
            limit = xp.where(magnitude(factor) == 0, u32(0), u32(limit_times_pow2(bits, factor_exponent)))
            return xp.repeat(limit, self.block, axis=-1)

        positive, negative = self.element._largest(x)
        return for_each(positive), for_each(negative)


def from_float_exponent(fmt: FloatFormat) -> Array:
    """int32 exponent of the largest finite value of ``fmt``."""
    return i32(u32(fmt.largest) >> u32(fmt.mantissa)) - i32(fmt.bias)
