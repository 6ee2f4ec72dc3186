"""Codes to bytes and back: a little-endian bit stream, least significant bit first (isa.md section 5.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.bits import u32
from plena_jax.errors import FormatError


def pack(codes: jax.Array, width: int) -> jax.Array:
    """uint8 [..., ceil(n * width / 8)] from codes [..., n] of ``width`` bits; the last byte is filled with zeros.

    Raises:
        FormatError: ``width`` is not 1..32.
    """
    _check(width)
    codes = u32(codes)
    n = codes.shape[-1]
    bits = (codes[..., None] >> jnp.arange(width, dtype=jnp.uint32)) & 1
    bits = bits.reshape(*codes.shape[:-1], n * width)
    bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, -(n * width) % 8)])
    octets = bits.reshape(*codes.shape[:-1], -1, 8) << jnp.arange(8, dtype=jnp.uint32)
    return jnp.sum(octets, axis=-1, dtype=jnp.uint32).astype(jnp.uint8)


def unpack(data: jax.Array, width: int, count: int) -> jax.Array:
    """uint32 codes [..., count] from uint8 [..., at least ceil(count * width / 8)].

    Raises:
        FormatError: ``width`` is not 1..32, or there are too few bytes.
    """
    _check(width)
    needed = -(-count * width // 8)
    if data.shape[-1] < needed:
        raise FormatError(f"{count} codes of {width} bits need {needed} bytes, got {data.shape[-1]}")
    octets = u32(data[..., :needed])
    if width % 8 == 0:
        octets = octets.reshape(*data.shape[:-1], count, width // 8)
        shifts = 8 * jnp.arange(width // 8, dtype=jnp.uint32)
        return jnp.sum(octets << shifts, axis=-1, dtype=jnp.uint32)
    bits = (octets[..., None] >> jnp.arange(8, dtype=jnp.uint32)) & 1
    bits = bits.reshape(*data.shape[:-1], needed * 8)[..., : count * width]
    bits = bits.reshape(*data.shape[:-1], count, width) << jnp.arange(width, dtype=jnp.uint32)
    return jnp.sum(bits, axis=-1, dtype=jnp.uint32)


def _check(width: int) -> None:
    if not 1 <= width <= 32:
        raise FormatError(f"codes of {width} bits cannot be packed; allowed: 1..32")
