"""HBM transfers: geometry of a format's rows, addresses, and bytes to values (docs/machine.md section 4.6)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import Array, array_module, quiet, u32
from plena_jax.config import Intended, MachineConfig, Precision
from plena_jax.formats import FloatFormat, IntFormat, MXFormat, pack, unpack

#: HBM is accessed in aligned blocks of so many bytes.
BLOCK = 64


def effective(fmt: Precision, intended: Intended) -> Precision:
    """The format as the machine converts it, given the switches to intended behaviour."""
    if isinstance(fmt, MXFormat):
        if isinstance(fmt.element, IntFormat) and intended.sub_byte_formats:
            width = fmt.element.width
            return dataclasses.replace(fmt, element=IntFormat(width, fraction=max(width - 2, 0)))
        return fmt
    if not intended.plain_formats:
        return fmt
    if isinstance(fmt, IntFormat):
        return IntFormat(fmt.width)
    return FloatFormat.make(fmt.exponent, fmt.mantissa, sign=bool(fmt.sign))


def exact_products(config: MachineConfig) -> bool:
    """Whether float32 holds every product of a VRAM element and a matrix SRAM element (scales are powers of two)."""
    p = config.precision
    return significand(vram_format(config)) + max(map(significand, (p.hbm_m_weight_type, p.hbm_m_kv_type))) <= 24


def significand(fmt: Precision) -> int:
    """Bits of the largest significand of an element."""
    element = fmt.element if isinstance(fmt, MXFormat) else fmt
    return element.width if isinstance(element, IntFormat) else element.mantissa + 1


def vram_format(config: MachineConfig) -> FloatFormat:
    """The float format of a VRAM element (an MX entry gives its element type)."""
    fmt = config.precision.vector_sram_type
    fmt = fmt.element if isinstance(fmt, MXFormat) else effective(fmt, config.intended)
    assert isinstance(fmt, FloatFormat)
    return fmt


@dataclass(frozen=True)
class Transfer:
    """How rows of ``lanes`` elements of one format lie in HBM.

    Attributes:
        fmt: the format.
        lanes: elements per row.
        element_bytes, scale_bytes: per row.
        ratio: bytes of elements per byte of scales.
        row_step: bytes from row to row in contiguous mode.
        problem: why the machine cannot transfer this format, empty if it can.
    """

    fmt: Precision
    lanes: int
    element_bytes: int
    scale_bytes: int
    ratio: int
    row_step: int
    problem: str

    @classmethod
    def of(cls, config: MachineConfig, fmt: Precision) -> Transfer:
        """The geometry for one of the configuration's HBM formats."""
        fmt = effective(fmt, config.intended)
        lanes = config.mlen
        if not isinstance(fmt, MXFormat):
            size = fmt.bits * lanes // 8
            problem = "" if fmt.bits in (1, 2, 4, 8, 16, 32) else f"elements of {fmt.bits} bits, not a power of two"
            if fmt.bits == 32 and not config.intended.plain_formats:
                problem = "32-bit elements do not unpack in the hardware model (Intended.plain_formats makes them)"
            if fmt.bits * lanes % 8:
                problem = f"a row of {lanes} x {fmt.bits} bits is not a whole number of bytes"
            return cls(fmt, lanes, size, 0, 1, size if config.intended.plain_formats else lanes, problem)
        bits, scale_bits, scales = fmt.element.bits, fmt.scale.bits, lanes // fmt.block
        problem = ""
        if bits % 8 and not config.intended.sub_byte_formats:
            problem = (
                f"MX elements of {bits} bits do not work in the hardware model (Intended.sub_byte_formats makes them)"
            )
        elif bits == 32:
            problem = "32-bit elements do not unpack in the hardware model"
        elif bits & (bits - 1) and not config.intended.sub_byte_formats:
            problem = f"elements of {bits} bits, not a power of two"
        elif scale_bits & (scale_bits - 1):
            problem = f"scales of {scale_bits} bits, not a power of two"
        elif bits * lanes % 8 or scales * scale_bits % 8:
            problem = f"a row of {lanes} elements or its {scales} scales are not a whole number of bytes"
        elif bits * fmt.block % scale_bits:
            problem = f"a block of {fmt.block} x {bits} bits is not a whole number of scales of {scale_bits} bits"
        row_step = bits * lanes // 8 if config.intended.sub_byte_formats else lanes
        ratio = max(bits * fmt.block // scale_bits, 1)
        return cls(fmt, lanes, bits * lanes // 8, scales * scale_bits // 8, ratio, row_step, problem)

    @property
    def bits(self) -> int:
        """Width of an element."""
        return self.fmt.element.bits if isinstance(self.fmt, MXFormat) else self.fmt.bits

    def decode(self, elements: jax.Array, scales: jax.Array) -> jax.Array:
        """float32 [n, lanes] from bytes [n, element_bytes] and [n, scale_bytes]."""
        if not isinstance(self.fmt, MXFormat):
            return self.fmt.decode(unpack(elements, self.fmt.bits, self.lanes))
        codes = unpack(elements, self.fmt.element.bits, self.lanes)
        factors = unpack(scales, self.fmt.scale.bits, self.lanes // self.fmt.block)
        if self.fmt.element.bits <= 8 and self.fmt.scale.bits <= 8:
            index = codes | (jnp.repeat(factors, self.fmt.block, axis=-1) << 8)
            return jnp.asarray(_products(self.fmt)).at[index.astype(jnp.int32)].get(mode="promise_in_bounds")
        scale = jnp.repeat(self.fmt.scale.decode(factors), self.fmt.block, axis=-1)
        return arithmetic.multiply(self.fmt.element.decode(codes), scale)

    def encode(self, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Bytes [element_bytes] and [scale_bytes] of float32 [lanes]."""
        if not isinstance(self.fmt, MXFormat):
            return pack(self.fmt.encode(row), self.fmt.bits), jnp.zeros(0, jnp.uint8)
        codes, scales = self.fmt.encode(row)
        return pack(codes, self.fmt.element.bits), pack(scales, self.fmt.scale.bits)


@lru_cache
@quiet
def _products(fmt: MXFormat) -> np.ndarray:
    """float32 [65536]: what code ``c`` under scale code ``s`` is worth, at ``c + 256 * s``. Less code and less work."""
    code = np.arange(256, dtype=np.uint32)
    # Codes beyond a narrower type's are never looked up.
    element, scale = (f.decode(code & np.uint32((1 << f.bits) - 1)) for f in (fmt.element, fmt.scale))
    return (element * scale[:, None]).reshape(-1)


@dataclass(frozen=True)
class Transfers:
    """The four HBM formats of a configuration: (weight, KV) of the matrix unit, (activation, KV) of the vector unit."""

    matrix: tuple[Transfer, Transfer]
    vector: tuple[Transfer, Transfer]

    @classmethod
    def of(cls, config: MachineConfig) -> Transfers:
        """The transfers of a configuration."""
        p = config.precision
        return cls(
            (Transfer.of(config, p.hbm_m_weight_type), Transfer.of(config, p.hbm_m_kv_type)),
            (Transfer.of(config, p.hbm_v_act_type), Transfer.of(config, p.hbm_v_kv_type)),
        )


# -- the values face --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def cell_bits(config: MachineConfig) -> int:
    """Bits of HBM that one cell of the values face stands for: 8, or less if elements begin inside bytes."""
    transfers = Transfers.of(config)
    return math.gcd(8, *(t.bits for t in (*transfers.matrix, *transfers.vector) if not t.problem))


def cells_of(transfer: Transfer, unit: int, low: Array, high: Array) -> tuple[Array, Array]:
    """int32 [n, lanes] cells of the elements of rows at addresses [n], and whether int32 holds them.

    Args:
        transfer: the format.
        unit: bits of a cell, see :func:`cell_bits`.
        low, high: uint32 [n], addresses of the rows in bytes.
    """
    xp, per_byte = array_module(low), np.uint32(8 // unit)
    offset = np.arange(transfer.lanes, dtype=np.uint32)[None] * np.uint32(transfer.bits // unit)
    index = low[:, None] * per_byte + offset
    limit = np.uint32((1 << 31) // int(per_byte) - 1)
    there = (high[:, None] == 0) & (low[:, None] <= limit) & (index <= np.uint32((1 << 31) - 1))
    return xp.where(there, index, np.uint32(0)).astype(np.int32), there


# -- 64-bit addresses as pairs of uint32, NumPy arrays or traced ones -------------------------------------------------


def add64(low: Array, high: Array, more: Array, more_high: Array | None = None) -> tuple[Array, Array]:
    """``(low, high) + (more, more_high)`` modulo 2**64."""
    total = low + more
    carried = high + (total < more).astype(np.uint32)
    return total, carried if more_high is None else carried + more_high


def element_address(low: Array, high: Array, stride: Array, row: Array) -> tuple[Array, Array]:
    """Byte address of the elements of rows ``row``: base plus ``row * stride`` modulo 2**32."""
    return add64(low, high, row.astype(np.uint32) * stride.astype(np.uint32))


def scale_address(low: Array, high: Array, stride: Array, row: Array, ratio: int | Array) -> tuple[Array, Array]:
    """Byte address of the scales of rows ``row``: base plus the truncated float32 ``row * (stride / ratio)``."""
    xp = array_module(row)
    step = stride.astype(np.uint32).astype(np.float32) / xp.asarray(ratio, np.float32)
    offset = xp.trunc(row.astype(np.float32) * step)
    upper = xp.floor(offset * np.float32(2.0**-32))
    lower = offset - upper * np.float32(2.0**32)
    return add64(low, high, lower.astype(np.uint32), upper.astype(np.uint32))


def read_bytes(
    hbm: jax.Array, low: jax.Array, high: jax.Array, count: int, line_only: bool = False, inside: bool = False
) -> jax.Array:
    """uint8 [n, count] from addresses [n]; what lies beyond the allocated bytes is zero.

    With ``line_only``, so is what lies beyond the 64-byte line of the first byte (scales are fetched by one block
    read). ``inside`` promises that nothing lies beyond the allocated bytes.
    """
    offset = jnp.arange(count, dtype=jnp.uint32)[None]
    if inside and count:
        data = slices(hbm, low.astype(jnp.int32), count)
        return jnp.where((low[:, None] % BLOCK) + offset < BLOCK, data, jnp.uint8(0)) if line_only else data
    index = low[:, None] + offset
    there = (high[:, None] == 0) & (index >= low[:, None]) & (index < u32(hbm.shape[0]))
    if line_only:
        there = there & ((low[:, None] % BLOCK) + offset < BLOCK)
    data = hbm.at[jnp.where(there, index, u32(0)).astype(jnp.int32)].get(mode="promise_in_bounds")
    return jnp.where(there, data, jnp.uint8(0))


def slices(memory: jax.Array, start: jax.Array, count: int) -> jax.Array:
    """[n, count]: elements from ``start`` int32 [n] on; starts too late for that are moved forward."""
    take = lambda at: lax.dynamic_slice(memory, (at,), (count,), allow_negative_indices=False)
    return jax.vmap(take)(start)


def blocks_touched(low: Array, count: Array) -> Array:
    """Aligned 64-byte blocks that ``count`` > 0 bytes at ``low`` overlap."""
    return (low % BLOCK + count + np.uint32(BLOCK - 1)) // BLOCK
