"""Integer formats, plain and as MX elements."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from plena_jax.bits import i32, is_nan, u32
from plena_jax.errors import FormatError


@partial(jax.tree_util.register_dataclass, data_fields=["width", "fraction", "sign"], meta_fields=["family"])
@dataclass(frozen=True)
class IntFormat:
    """An integer of ``width`` bits worth ``code * 2 ** -fraction``.

    Attributes:
        width: 1..32 bits. Values are carried in float32: more than 24 bits lose low bits in :meth:`decode`.
        fraction: implied fraction bits; OCP's MXINT8 element has 6.
        sign: 1 for two's complement, 0 for unsigned.
        family: "ieee" rounds to nearest even and saturates; "plena" does what the hardware model does: truncate toward
            zero, saturate to 32 bits, keep the low ``width`` bits, and read them back unsigned (isa.md section 5.2).
    """

    width: int
    fraction: int = 0
    sign: int = 1
    family: Literal["ieee", "plena"] = field(default="ieee")

    def __post_init__(self) -> None:
        if isinstance(self.width, int) and not 1 <= self.width <= 32:
            raise FormatError(f"int{self.width}: an integer format has 1..32 bits")

    @property
    def bits(self) -> int:
        """Width of a code in bits."""
        return self.width

    def encode(self, x: ArrayLike) -> jax.Array:
        """uint32 codes of float32 ``x``; NaN gives 0."""
        x = jnp.asarray(x, jnp.float32)
        scaled = jnp.where(is_nan(x), jnp.float32(0), x) * jnp.exp2(i32(self.fraction).astype(jnp.float32))
        mask = jnp.where(i32(self.width) == 32, u32(0xFFFFFFFF), (u32(1) << u32(jnp.minimum(i32(self.width), 31))) - 1)
        if self.family == "plena":
            return u32(_saturate(jnp.trunc(scaled), -(2.0**31), 2.0**31)) & mask
        span = jnp.exp2(i32(self.width - self.sign).astype(jnp.float32))
        low = jnp.where(i32(self.sign) == 1, -span, jnp.float32(0))
        rounded = jnp.round(scaled)
        # Unsigned codes above 2**31 do not pass through int32: take the upper half off first.
        big = rounded >= jnp.float32(2**31)
        code = u32(
            _saturate(jnp.where(big, rounded - jnp.float32(2**31), jnp.maximum(rounded, low)), -(2.0**31), 2.0**31)
        )
        code = jnp.where(big, code | u32(0x80000000), code)
        return jnp.where(rounded >= span, jnp.where(i32(self.sign) == 1, mask >> 1, mask), code & mask)

    def decode(self, code: ArrayLike) -> jax.Array:
        """float32 values of unsigned integer codes."""
        spare = u32(32 - i32(self.width))
        body = u32(code) << spare
        signed = (i32(body) >> i32(spare)).astype(jnp.float32)
        unsigned = (body >> spare).astype(jnp.float32)
        value = unsigned if self.family == "plena" else jnp.where(i32(self.sign) == 1, signed, unsigned)
        return value * jnp.exp2(-i32(self.fraction).astype(jnp.float32))

    def round(self, x: ArrayLike) -> jax.Array:
        """float32 ``decode(encode(x))``; its derivative is 1 everywhere (straight-through)."""
        return _round(jnp.asarray(x, jnp.float32), self)


def _saturate(x: jax.Array, low: float, high: float) -> jax.Array:
    """int32 of an integral float32, saturated (float32 cannot hold 2**31 - 1, so the top is tested apart)."""
    inside = jnp.clip(x, low, high - 256.0)
    return jnp.where(x >= jnp.float32(high), jnp.int32(2**31 - 1), inside.astype(jnp.int32))


@jax.custom_jvp
def _round(x: jax.Array, fmt: IntFormat) -> jax.Array:
    return fmt.decode(fmt.encode(x))


@_round.defjvp
def _round_jvp(
    primals: tuple[jax.Array, IntFormat], tangents: tuple[jax.Array, IntFormat]
) -> tuple[jax.Array, jax.Array]:
    return _round(*primals), tangents[0]
