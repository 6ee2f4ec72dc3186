"""HBM transfers: geometry of a format's rows, addresses, and bytes to values (docs/machine.md section 4.6)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax import arithmetic
from plena_jax.bits import INFINITY, Array, array_module, from_bits, quiet, to_bits, u32
from plena_jax.config import Intended, MachineConfig, Precision
from plena_jax.formats import FloatFormat, IntFormat, MXFormat, pack, unpack
from plena_jax.machine.batching import any_lane

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


class Decoding(NamedTuple):
    """Ways from bytes to float32 [rows, lanes].

    Attributes:
        quick: gives what is right, and has no subnormal numbers, unless ``odd``.
        odd: bool [], or None where there is only one way, which may have such numbers.
        careful: gives what is right.
    """

    quick: Callable[[], jax.Array]
    odd: jax.Array | None
    careful: Callable[[], jax.Array]

    @classmethod
    def only(cls, way: Callable[[], jax.Array]) -> Decoding:
        """One way."""
        return cls(way, None, way)

    def taken(self) -> jax.Array:
        """The result."""
        return self.careful() if self.odd is None else lax.cond(any_lane(self.odd), self.careful, self.quick)


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

    def _codes(self, data: jax.Array, scales: bool = False) -> jax.Array:
        """uint32 [n, lanes], or [n, lanes / block] of the scales, of an MX format."""
        assert isinstance(self.fmt, MXFormat)
        if scales:
            return unpack(data, self.fmt.scale.bits, self.lanes // self.fmt.block)
        return unpack(data, self.fmt.element.bits, self.lanes)

    def _multiplied(self, elements: jax.Array, scales: jax.Array) -> jax.Array:
        """float32 [n, lanes] of a wide MX format."""
        assert isinstance(self.fmt, MXFormat)
        scale = jnp.repeat(self.fmt.scale.decode(self._codes(scales, scales=True)), self.fmt.block, axis=-1)
        return arithmetic.multiply(self.fmt.element.decode(self._codes(elements)), scale)

    def _looked_up(self, elements: jax.Array, scales: jax.Array) -> jax.Array:
        """float32 [n, lanes] of a narrow MX format."""
        assert isinstance(self.fmt, MXFormat)
        factors = jnp.repeat(self._codes(scales, scales=True), self.fmt.block, axis=-1)
        index = (self._codes(elements) | (factors << 8)).astype(jnp.int32)
        return jnp.asarray(_products(self.fmt)).at[index].get(mode="promise_in_bounds")

    def _calculated(self, elements: jax.Array, scales: jax.Array) -> jax.Array:
        """The same for plain scales, in less than half of the time."""
        assert isinstance(self.fmt, MXFormat)
        factors = from_bits(_scale_bits(self.fmt, self._codes(scales, scales=True)))
        blocks = self._codes(elements).reshape(*factors.shape, self.fmt.block)
        return (_element(self.fmt.element, blocks) * factors[..., None]).reshape(-1, self.lanes)

    def decoding(self, rows: int, elements: Callable[[], jax.Array], scales: Callable[[], jax.Array]) -> Decoding:
        """Ways to float32 [rows, lanes].

        Args:
            rows: how many.
            elements, scales: give the bytes [rows, element_bytes] and [rows, scale_bytes]. They are read where they
                are used: to write them to memory first takes longer than to decode them.
        """
        fmt = self.fmt
        if not isinstance(fmt, MXFormat):
            return Decoding.only(lambda: fmt.decode(unpack(elements(), fmt.bits, self.lanes)))
        if fmt.element.bits > 8 or fmt.scale.bits > 8:
            return Decoding.only(lambda: self._multiplied(elements(), scales()))
        look_up = lambda: self._looked_up(elements(), scales())
        first, last = plain_scales(fmt)
        if rows * self.lanes < _MANY or first > last:
            return Decoding.only(look_up)
        factors = self._codes(scales(), scales=True)
        odd = jnp.any((factors < np.uint32(first)) | (factors > np.uint32(last)))
        return Decoding(lambda: self._calculated(elements(), scales()), odd, look_up)

    def encode(self, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Bytes [element_bytes] and [scale_bytes] of float32 [lanes]."""
        if not isinstance(self.fmt, MXFormat):
            return pack(self.fmt.encode(row), self.fmt.bits), jnp.zeros(0, jnp.uint8)
        codes, scales = self.fmt.encode(row)
        return pack(codes, self.fmt.element.bits), pack(scales, self.fmt.scale.bits)


def _element(element: FloatFormat, codes: Array) -> Array:
    """float32 of the codes of a narrow float, as far as these few operations go; see :func:`plain_scales`."""
    xp, mantissa = array_module(codes), element.mantissa
    size, top = element.exponent + mantissa, (1 << element.exponent) - 1
    body = codes & u32((1 << size) - 1)
    field = body >> mantissa
    normal = (body << (23 - mantissa)) + u32((127 - element.bias) << 23)
    unit = np.float32(_decoded(element)[1])
    bits = xp.where(field == 0, to_bits(body.astype(np.float32) * unit), normal)
    if not np.isfinite(_decoded(element)[(1 << size) - 1]):
        bits = xp.where(field == top, u32(INFINITY) | (body << (23 - mantissa)), bits)
    return from_bits(bits | ((codes >> size) << 31) if element.sign else bits)


def _scale_bits(fmt: MXFormat, codes: Array) -> Array:
    """Bit patterns of scales that are only an exponent."""
    return (codes + u32(127 - fmt.scale.bias)) << 23


@lru_cache
@quiet
def _decoded(element: FloatFormat) -> np.ndarray:
    """float32 of every code of a narrow type."""
    values: np.ndarray = element.decode(np.arange(1 << element.bits, dtype=np.uint32))
    return values


@lru_cache
@quiet
def plain_scales(fmt: MXFormat) -> tuple[int, int]:
    """First and last of the scale codes around that of 1 under which a few operations decode every element.

    That no such thing is assumed of a format, all products are compared; without any the first is above the last.
    """
    none, element, scale = (1, 0), fmt.element, fmt.scale
    if not (isinstance(element, FloatFormat) and scale.mantissa == 0 and scale.sign == 0):
        return none
    code = np.arange(1 << element.bits, dtype=np.uint32)
    scales = np.arange(1 << scale.bits, dtype=np.uint32)
    values = _element(element, code) * from_bits(_scale_bits(fmt, scales))[:, None]
    wanted = _products(fmt).reshape(256, 256)[: len(scales), : len(code)]
    # Subnormal results are zero in XLA, and factors too.
    tiny = lambda a: (np.abs(a) < np.float32(2.0**-126)) & (a != 0)
    good = (values.view(np.uint32) == wanted.view(np.uint32)).all(axis=1) & ~tiny(wanted).any(axis=1)
    good &= np.isfinite(wanted[:, np.isfinite(_decoded(element))]).all(axis=1)
    exponents = _scale_bits(fmt, scales) >> 23
    good &= (exponents > 0) & (exponents < 255)
    one = int(np.argmax(good & (scale.decode(scales) == 1)))
    if not good[one]:
        return none
    bad = np.nonzero(~good)[0]
    first, last = bad[bad < one], bad[bad > one]
    return int(first[-1]) + 1 if len(first) else 0, int(last[0]) - 1 if len(last) else len(scales) - 1


#: Elements from which calculating is faster than looking up.
_MANY = 1024


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
