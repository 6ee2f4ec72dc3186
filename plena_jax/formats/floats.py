"""Floating-point formats as data: a pytree of small integers, so that ``vmap`` sweeps formats in one compilation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
from jax.typing import ArrayLike

from plena_jax.bits import Array, array_module, float32, i32, magnitude, quiet, u32
from plena_jax.errors import FormatError
from plena_jax.formats import ieee, plena
from plena_jax.formats.rounding import Rounding
from plena_jax.formats.scaling import limit_times_pow2

Family = Literal["ieee", "plena"]
Specials = Literal["ieee", "fn", "fnuz", "finite"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "exponent",
        "mantissa",
        "bias",
        "sign",
        "largest",
        "infinity",
        "nan",
        "overflow",
        "infinite",
        "one_nan",
        "zero",
    ],
    meta_fields=["family"],
)
@dataclass(frozen=True)
class FloatFormat(Rounding):
    """A float of ``sign`` + ``exponent`` + ``mantissa`` bits, at most as wide as float32.

    Every field but ``family`` is a pytree leaf: a Python integer (then the format is hashable and can be a static
    argument) or a traced one. Construct through :meth:`make`, which derives the special codes from a convention.

    Attributes:
        exponent, mantissa: number of bits, 1..8 and 0..23.
        bias: exponent bias; a normal code is worth ``2 ** (field - bias) * (1 + fraction)``.
        sign: 1 with a sign bit, 0 without.
        largest: code (without sign) of the largest finite value.
        infinity: code of infinity, -1 without one.
        nan: code that NaN encodes to.
        overflow: code that finite values beyond ``largest`` encode to.
        infinite: code that infinity encodes to.
        one_nan: 1 where the only NaN takes the place of negative zero ("fnuz").
        zero: 0 for exponent-only formats (E8M0), which have neither zero nor subnormals.
        family: "ieee" (OCP, IEEE, ml_dtypes) or "plena" (the hardware model, docs/machine.md section 5).
    """

    exponent: int
    mantissa: int
    bias: int
    sign: int
    largest: int
    infinity: int
    nan: int
    overflow: int
    infinite: int
    one_nan: int = 0
    zero: int = 1
    family: Family = field(default="ieee")

    @classmethod
    def make(
        cls,
        exponent: int,
        mantissa: int,
        *,
        sign: bool = True,
        bias: int | None = None,
        specials: Specials = "ieee",
        saturate: bool = False,
        family: Family = "ieee",
    ) -> FloatFormat:
        """A format by its bit counts and its convention for special codes.

        Args:
            exponent, mantissa: number of bits, 1..8 and 0..23.
            sign: whether there is a sign bit.
            bias: exponent bias, ``2 ** (exponent - 1) - 1`` unless given (one more for "fnuz").
            specials: "ieee" (top exponent holds infinity and NaN), "fn" (only the last code is NaN, overflow gives
                NaN), "fnuz" (NaN in the place of negative zero, overflow gives NaN) or "finite" (no specials, overflow
                saturates).
            saturate: overflow and infinity give the largest finite value.
            family: codec, see the class.

        Raises:
            FormatError: bit counts outside the range of float32, or no room for the convention's codes.
        """
        if not (1 <= exponent <= 8 and 0 <= mantissa <= 23):
            raise FormatError(
                f"e{exponent}m{mantissa}: a float format has 1..8 exponent and 0..23 mantissa bits (float32 carries it)"
            )
        bias = 2 ** (exponent - 1) - 1 + (specials == "fnuz") if bias is None else bias
        if not -100 <= bias <= 150:
            raise FormatError(
                f"e{exponent}m{mantissa}: bias {bias} puts the format outside float32; allowed: -100..150"
            )
        width = exponent + mantissa
        last = 2**width - 1
        if specials == "ieee":
            infinity = ((1 << exponent) - 1) << mantissa
            largest, nan = infinity - 1, infinity | (1 << mantissa >> 1)
            overflow, one_nan = infinity, 0
        elif specials == "fn":
            largest, infinity, nan, overflow, one_nan = last - 1, -1, last, last, 0
        elif specials == "fnuz":
            largest, infinity, nan, overflow, one_nan = last, -1, last + 1, last + 1, 1
        elif specials == "finite":
            largest, infinity, nan, overflow, one_nan = last, -1, last + 1 if sign else last, last, 0
        else:
            raise FormatError(f"specials {specials!r}; allowed: 'ieee', 'fn', 'fnuz', 'finite'")
        if largest < 0 or (specials == "fnuz" and not sign):
            raise FormatError(f"e{exponent}m{mantissa} has no room for {specials!r} special codes")
        overflow = largest if saturate else overflow
        return cls(exponent, mantissa, bias, int(sign), largest, infinity, nan, overflow, overflow, one_nan, 1, family)

    @classmethod
    def exponent_only(cls, exponent: int = 8) -> FloatFormat:
        """A scale format without sign, zero and mantissa; the last code is NaN. 8 bits: OCP's E8M0.

        Raises:
            FormatError: not 1..8 bits.
        """
        if not 1 <= exponent <= 8:
            raise FormatError(f"e{exponent}m0: a scale format has 1..8 exponent bits (float32 carries it)")
        last = 2**exponent - 1
        return cls(exponent, 0, 2 ** (exponent - 1) - 1, 0, last - 1, -1, last, last, last, 0, 0)

    @property
    def values(self) -> tuple[int, ...]:
        """The fields that may be traced."""
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "family")

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return self.sign + self.exponent + self.mantissa

    def saturating(self) -> FloatFormat:
        """The same format with overflow and infinity encoded as the largest finite value."""
        return dataclasses.replace(self, overflow=self.largest, infinite=self.largest)

    @quiet
    def encode(self, x: ArrayLike) -> Array:
        """uint32 codes of float32 ``x``, any shape; of NumPy arrays as NumPy array."""
        return plena.encode(float32(x), self) if self.family == "plena" else ieee.encode(float32(x), self)

    @quiet
    def decode(self, code: ArrayLike) -> Array:
        """float32 values of unsigned integer codes, any shape; of NumPy arrays as NumPy array."""
        return plena.decode(u32(code), self) if self.family == "plena" else ieee.decode(u32(code), self)

    def _held(self, x: Array) -> Array:
        return self.decode(self.encode(x))

    def _largest(self, x: Array) -> tuple[Array, Array]:
        code = plena.largest(self) if self.family == "plena" else u32(self.largest)
        largest = magnitude(self.decode(code))
        xp = array_module(largest, *self.values)
        if self.family == "ieee":
            # Decoding rounds what float32 is too coarse for: find it where it is exact, then cut off.
            bias = xp.minimum(i32(self.bias), 100)
            exact = magnitude(dataclasses.replace(self, bias=bias).decode(code))
            exact = limit_times_pow2(exact, bias - i32(self.bias))
            largest = xp.where(largest <= u32(0x00800000), u32(exact), largest)
        return largest, xp.where(i32(self.sign) == 1, largest, u32(0))

    @property
    def max(self) -> float:
        """Largest finite value."""
        return float(self.decode(self.largest))
