"""Codes to bytes and back: a bit stream, least significant bit first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import F32
from hypothesis import given
from hypothesis import strategies as st

from plena_jax import FormatError, formats
from plena_jax.config import BF16

CODES = st.integers(1, 32).flatmap(
    lambda width: st.tuples(st.just(width), st.lists(st.integers(0, 2**width - 1), max_size=40))
)


def stream(codes: list[int], width: int) -> bytes:
    """The same bytes by way of one large integer."""
    whole = sum(code << (i * width) for i, code in enumerate(codes))
    return whole.to_bytes(-(-len(codes) * width // 8), "little")


@given(CODES)
def test_bytes_are_those_of_one_large_integer(case):
    width, codes = case
    data = formats.pack(np.array(codes, np.uint32), width)
    assert data.dtype == np.uint8
    assert data.tobytes() == stream(codes, width)


@given(CODES)
def test_codes_come_back(case):
    width, codes = case
    data = np.frombuffer(stream(codes, width), np.uint8)
    got = formats.unpack(data, width, len(codes))
    assert got.dtype == np.uint32
    assert got.tolist() == codes


@given(CODES, st.binary(max_size=5))
def test_what_follows_is_not_read(case, rest):
    width, codes = case
    data = np.frombuffer(stream(codes, width) + rest, np.uint8)
    assert formats.unpack(data, width, len(codes)).tolist() == codes


@pytest.mark.parametrize("width", range(1, 33))
def test_jax_packs_and_unpacks_the_same_bytes(width):
    codes = np.random.default_rng(width).integers(0, 1 << width, (2, 3, 16), dtype=np.uint64).astype(np.uint32)
    packed = formats.pack(codes, width)
    assert packed.shape == (2, 3, 2 * width)
    traced = jax.jit(formats.pack, static_argnums=1)(codes, width)
    assert isinstance(traced, jax.Array)
    np.testing.assert_array_equal(traced, packed)
    assert packed[1, 2].tobytes() == stream(codes[1, 2].tolist(), width)
    unpacked = jax.jit(formats.unpack, static_argnums=(1, 2))(jnp.asarray(packed), width, 16)
    np.testing.assert_array_equal(unpacked, codes)
    np.testing.assert_array_equal(formats.unpack(packed, width, 16), codes)


@pytest.mark.parametrize(
    "codes, width, data",
    [
        ([1, 2, 3, 4], 4, [0x21, 0x43]),
        ([0x3F80, 0xC000], 16, [0x80, 0x3F, 0x00, 0xC0]),
        ([0x20, 0x28, 0x30, 0x38], 8, [0x20, 0x28, 0x30, 0x38]),
        ([1, 2, 3], 4, [0x21, 0x03]),
        ([1, 0, 1, 1, 0, 0, 0, 1, 1], 1, [0x8D, 0x01]),
        ([0b101, 0b011, 0b111], 3, [0b11_011_101, 0b1]),
        ([0x12345678], 32, [0x78, 0x56, 0x34, 0x12]),
        ([0xABCDE, 0x12345], 20, [0xDE, 0xBC, 0x5A, 0x34, 0x12]),
        ([], 7, []),
    ],
)
def test_worked_examples(codes, width, data):
    packed = formats.pack(np.array(codes, np.uint32), width)
    assert packed.tolist() == data
    assert formats.unpack(packed, width, len(codes)).tolist() == codes


def test_bf16_values_pack_as_isa_md_says():
    assert formats.pack(BF16.encode(F32([1, -2])), 16).tobytes() == bytes.fromhex("803F00C0")


def test_bits_above_the_width_are_dropped():
    assert formats.pack(np.uint32([0x1F, 0xF0]), 4).tolist() == [0x0F]


def test_order_matters():
    assert formats.pack(np.uint32([1, 2]), 4).tolist() != formats.pack(np.uint32([2, 1]), 4).tolist()
    assert formats.unpack(np.uint8([0x21]), 4, 2).tolist() != [2, 1]


@pytest.mark.parametrize("width", [0, -1, 33])
def test_impossible_widths_are_refused(width):
    with pytest.raises(FormatError, match=rf"codes of {width} bits.*1\.\.32"):
        formats.pack(np.zeros(4, np.uint32), width)
    with pytest.raises(FormatError, match=rf"codes of {width} bits.*1\.\.32"):
        formats.unpack(np.zeros(64, np.uint8), width, 1)


@pytest.mark.parametrize("count, width, have, needed", [(4, 4, 1, 2), (3, 3, 1, 2), (1, 32, 3, 4), (5, 7, 4, 5)])
def test_too_few_bytes_are_refused(count, width, have, needed):
    with pytest.raises(FormatError, match=rf"{count} codes of {width} bits need {needed} bytes, got {have}"):
        formats.unpack(np.zeros((2, have), np.uint8), width, count)
