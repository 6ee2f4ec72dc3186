"""plena_jax.bits: conversions and rounding on bit patterns, with NumPy and with jax."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import EDGES, F32, assert_same_bits, bits_of, floats_of, random_patterns, tiny_patterns
from hypothesis import given
from hypothesis import strategies as st

from plena_jax import bits

PATTERNS = np.concatenate([EDGES, random_patterns(20_000), tiny_patterns(5_000)])
FINITE = PATTERNS[np.isfinite(PATTERNS)]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def both(function, *arguments):
    """The result on NumPy arrays, after checking that jit on jax arrays gives the same, type and all."""
    plain = function(*arguments)
    traced = jax.jit(function)(*map(jnp.asarray, arguments))
    for mine, theirs in zip(jax.tree.leaves(plain), jax.tree.leaves(traced), strict=True):
        assert not isinstance(mine, jax.Array)
        assert isinstance(theirs, jax.Array)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(np.asarray(mine).view(np.uint32), np.asarray(theirs).view(np.uint32))
    return plain


def round_half_even(value: int, count: int) -> int:
    """``value / 2**count`` to the nearest integer, in exact integers."""
    whole, rest = divmod(value, 1 << count)
    return whole + (2 * rest > 1 << count or (2 * rest == 1 << count and whole % 2))


def test_array_module_follows_the_values():
    assert bits.array_module(1, 2.0, np.zeros(2)) is np
    assert bits.array_module() is np
    assert bits.array_module(np.zeros(2), jnp.zeros(2)) is jnp
    jax.jit(lambda x: x if bits.array_module(np.zeros(2), x) is jnp else 1 / 0)(np.zeros(2, F32))


def test_integers_become_unsigned_modulo_two_to_the_32():
    assert bits.u32(-1) == 0xFFFFFFFF
    assert bits.u32(1 << 32 | 5) == 5
    assert both(bits.u32, np.array([-1, -(2**31), 7], np.int32)).tolist() == [0xFFFFFFFF, 0x80000000, 7]
    assert bits.u32(3).dtype == np.uint32


def test_unsigned_becomes_signed_with_the_same_bits():
    assert both(bits.i32, np.array([0xFFFFFFFF, 0x80000000, 7], np.uint32)).tolist() == [-1, -(2**31), 7]
    assert bits.i32(-3).dtype == np.int32
    assert bits.i32(-3) == -3


def test_float32_converts_numbers_and_keeps_float32():
    assert bits.float32(0.1).dtype == np.float32
    assert bits.float32([1, 2]).tolist() == [1.0, 2.0]
    assert bits.float32(jnp.arange(3)).dtype == jnp.float32
    assert_same_bits(both(bits.float32, PATTERNS), PATTERNS)


def test_bits_are_those_of_the_value():
    assert bits.to_bits(1.0) == 0x3F800000
    assert bits.to_bits(-0.0) == 0x80000000
    np.testing.assert_array_equal(both(bits.to_bits, PATTERNS), PATTERNS.view(np.uint32))


def test_every_pattern_survives_the_round_trip():
    assert_same_bits(both(lambda x: bits.from_bits(bits.to_bits(x)), PATTERNS), PATTERNS)
    assert_same_bits(both(bits.from_bits, PATTERNS.view(np.uint32)), PATTERNS)


def test_magnitude_drops_the_sign_only():
    np.testing.assert_array_equal(both(bits.magnitude, PATTERNS), PATTERNS.view(np.uint32) & np.uint32(0x7FFFFFFF))


def test_nan_is_told_from_infinity():
    np.testing.assert_array_equal(both(lambda x: bits.u32(bits.is_nan(x)), PATTERNS), np.isnan(PATTERNS))
    assert bits.is_nan(floats_of([0x7F800001]))[0]
    assert not bits.is_nan(floats_of([0x7F800000]))[0]


def test_leading_zeros_count_from_bit_31():
    near = [x for n in range(32) for x in ((1 << n) - 1, 1 << n, (1 << n) + 1)] + [0xFFFFFFFF]
    values = np.concatenate([np.array(near, np.uint64), bits_of(random_patterns(2_000))]).astype(np.uint32)
    assert both(bits.leading_zeros, values).tolist() == [32 - int(v).bit_length() for v in values]


def test_pow2_is_exact_and_clamped_to_the_normal_range():
    exponents = np.arange(-126, 128, dtype=np.int32)
    assert_same_bits(both(bits.pow2, exponents), (2.0 ** exponents.astype(np.float64)).astype(F32))
    assert both(bits.pow2, np.array([-500, -127, 128, 500], np.int32)).tolist() == [2.0**-126] * 2 + [2.0**127] * 2
    assert bits.pow2(3) == 8


def test_shift_rounds_to_nearest_even():
    generator = np.random.default_rng(1)
    value = np.concatenate([np.arange(64), generator.integers(0, 1 << 24, 4_000)]).astype(np.uint32)
    for count in range(25):
        got = both(bits.shift_right_even, value, np.full(value.shape, count, np.int32))
        assert got.tolist() == [round_half_even(int(v), count) for v in value], count
    # Ties are what tells this rule from others.
    assert bits.shift_right_even(np.uint32([1, 3, 5, 7]), 1).tolist() == [0, 2, 2, 4]


def test_shift_by_25_and_more_leaves_nothing_and_negative_counts_do_not_shift():
    value = np.array([1, 0x800000, 0xFFFFFF], np.uint32)
    for count in (25, 26, 31, 32, 1000):
        assert both(bits.shift_right_even, value, np.int32([count] * 3)).tolist() == [0, 0, 0]
    assert both(bits.shift_right_even, value, np.int32([-4] * 3)).tolist() == value.tolist()


def test_shift_takes_the_parity_it_is_given():
    value, count = np.array([0b0110, 0b1010, 0b1011], np.uint32), np.int32([2, 2, 2])
    assert bits.shift_right_even(value, count).tolist() == [2, 2, 3]
    ones, zeros = np.ones(3, np.uint32), np.zeros(3, np.uint32)
    assert both(bits.shift_right_even, value, count, ones).tolist() == [2, 3, 3]
    assert both(bits.shift_right_even, value, count, zeros).tolist() == [1, 2, 3]


def test_normalise_gives_a_24_bit_significand_and_its_exponent():
    significand, exponent = both(bits.normalise, FINITE)
    fraction, power = np.frexp(np.abs(FINITE.astype(np.float64)))
    nonzero = FINITE != 0
    np.testing.assert_array_equal(significand[nonzero], (fraction * 2**24)[nonzero])
    np.testing.assert_array_equal(exponent[nonzero], power[nonzero] - 1)
    assert (significand[~nonzero] == 0).all()


def test_compose_rounds_as_a_cast_from_float64_does():
    generator = np.random.default_rng(2)
    significand = np.concatenate([np.arange(256), generator.integers(0, 1 << 24, 20_000)]).astype(np.uint32)
    unit = generator.integers(-190, 140, significand.size).astype(np.int32)
    with np.errstate(over="ignore"):
        want = np.ldexp(significand.astype(np.float64), unit).astype(F32)
    assert np.isinf(want).any()
    assert ((want > 0) & (want < 2.0**-126)).any()
    assert_same_bits(both(bits.compose, significand, unit), want, significand, unit)


def test_compose_needs_its_rounding():
    # Half a subnormal unit: down to even, up to even, and just above half.
    got = bits.compose(np.uint32([1, 3, 0xC00001]), np.int32([-150, -150, -173]))
    assert bits_of(got).tolist() == [0, 2, 1]


@given(FLOATS)
def test_compose_undoes_normalise(x):
    significand, exponent = bits.normalise(F32(x))
    assert_same_bits(bits.compose(significand, exponent - 23), np.abs(F32(x)))


@pytest.mark.parametrize("function", [bits.to_bits, bits.magnitude, bits.is_nan, bits.normalise, bits.float32])
def test_python_numbers_are_taken_too(function):
    for mine, theirs in zip(jax.tree.leaves(function(1.5)), jax.tree.leaves(function(F32([1.5]))), strict=True):
        assert mine == theirs[0]
