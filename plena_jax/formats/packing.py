"""Codes to bytes and back: a little-endian bit stream, least significant bit first (docs/machine.md section 5.2)."""

from __future__ import annotations

import numpy as np

from plena_jax.bits import Array, array_module, u32
from plena_jax.errors import FormatError


def pack(codes: Array, width: int) -> Array:
    """uint8 [..., ceil(n * width / 8)] from codes [..., n] of ``width`` bits; the last byte is filled with zeros.

    Raises:
        FormatError: ``width`` is not 1..32.
    """
    _check(width)
    xp, codes = array_module(codes), u32(codes)
    n = codes.shape[-1]
    bits = (codes[..., None] >> _positions(width, codes.ndim + 1)) & 1
    bits = bits.reshape(*codes.shape[:-1], n * width)
    bits = xp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -(n * width) % 8)])
    octets = bits.reshape(*codes.shape[:-1], bits.shape[-1] // 8, 8) << _positions(8, codes.ndim + 1)
    return xp.sum(octets, axis=-1, dtype=np.uint32).astype(np.uint8)


def unpack(data: Array, width: int, count: int) -> Array:
    """uint32 codes [..., count] from uint8 [..., at least ceil(count * width / 8)].

    Raises:
        FormatError: ``width`` is not 1..32, or there are too few bytes.
    """
    _check(width)
    needed = -(-count * width // 8)
    if data.shape[-1] < needed:
        raise FormatError(f"{count} codes of {width} bits need {needed} bytes, got {data.shape[-1]}")
    xp, octets = array_module(data), u32(data[..., :needed])
    if width % 8 == 0:
        octets = octets.reshape(*data.shape[:-1], count, width // 8)
        shifts = 8 * _positions(width // 8, octets.ndim)
        return xp.sum(octets << shifts, axis=-1, dtype=np.uint32)
    bits = (octets[..., None] >> _positions(8, octets.ndim + 1)) & 1
    bits = bits.reshape(*data.shape[:-1], needed * 8)[..., : count * width]
    bits = bits.reshape(*data.shape[:-1], count, width) << _positions(width, octets.ndim + 1)
    return xp.sum(bits, axis=-1, dtype=np.uint32)


def _positions(count: int, axes: int) -> np.ndarray:
    """uint32 0 .. count - 1 along the last of so many axes: jax may be set to refuse arrays of fewer."""
    return np.arange(count, dtype=np.uint32).reshape((1,) * (axes - 1) + (count,))


def _check(width: int) -> None:
    if not 1 <= width <= 32:
        raise FormatError(f"codes of {width} bits cannot be packed; allowed: 1..32")
