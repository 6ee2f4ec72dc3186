"""Integer formats of both families, against exact float64 arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_formats import EDGES, F32, assert_same_bits, assert_same_codes, random_patterns
from hypothesis import given
from hypothesis import strategies as st

from plena_jax import FormatError
from plena_jax.formats import IntFormat

GENERATOR = np.random.default_rng(0)
#: Values of all sizes up to 2**34, halves, and the float32 neighbours of the powers of two where codes saturate.
POWERS = (2.0 ** np.arange(-2, 35)).astype(F32)
NEAR = np.concatenate([POWERS, np.nextafter(POWERS, F32(0)), np.nextafter(POWERS, F32(np.inf))])
HALVES = (np.arange(-600, 600) / 4).astype(F32)
VALUES = np.concatenate(
    [
        EDGES,
        NEAR,
        -NEAR,
        HALVES,
        (GENERATOR.standard_normal(5_000) * 2.0 ** GENERATOR.uniform(-4, 34, 5_000)).astype(F32),
        random_patterns(2_000),
    ]
)
WIDTHS = range(1, 33)


def nearest_model(x: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """Round to nearest even, saturate; NaN gives 0."""
    width, sign = fmt.width, fmt.sign
    low, high = (-(2.0 ** (width - 1)), 2.0 ** (width - 1) - 1) if sign else (0.0, 2.0**width - 1)
    number = np.where(np.isnan(x), F32(0), x).astype(np.float64) * 2.0**fmt.fraction
    return np.clip(np.rint(number), low, high).astype(np.int64) & (2**width - 1)


def truncating_model(x: np.ndarray, fmt: IntFormat) -> np.ndarray:
    """docs/machine.md 5.2: truncate, saturate to 32 bits, keep the low bits; NaN gives 0."""
    number = np.where(np.isnan(x), F32(0), x).astype(np.float64)
    return np.clip(np.trunc(number), -(2.0**31), 2.0**31 - 1).astype(np.int64) & (2**fmt.width - 1)


def value_model(codes: np.ndarray, fmt: IntFormat) -> np.ndarray:
    codes = codes.astype(np.int64)
    if fmt.sign and fmt.family == "ieee":
        codes = np.where(codes >= 2 ** (fmt.width - 1), codes - 2**fmt.width, codes)
    return (codes * 2.0**-fmt.fraction).astype(F32)


def some_codes(width: int) -> np.ndarray:
    if width <= 12:
        return np.arange(1 << width, dtype=np.uint32)
    codes = np.random.default_rng(width).integers(0, 1 << width, 2_000, dtype=np.uint64)
    return np.concatenate([codes, [0, 1, (1 << width) - 1, 1 << (width - 1), (1 << (width - 1)) - 1]]).astype(np.uint32)


@pytest.mark.parametrize("sign", [0, 1], ids=["unsigned", "signed"])
@pytest.mark.parametrize("width", WIDTHS)
def test_encoding_rounds_to_nearest_even_and_saturates(width, sign):
    for fraction in (0, 3, 24, -5):
        fmt = IntFormat(width, fraction, sign)
        assert_same_codes(fmt.encode(VALUES), nearest_model(VALUES, fmt), VALUES)


@pytest.mark.parametrize("width", WIDTHS)
def test_plena_encoding_truncates_and_wraps(width):
    fmt = IntFormat(width, family="plena")
    assert_same_codes(fmt.encode(VALUES), truncating_model(VALUES, fmt), VALUES)


@pytest.mark.parametrize("sign", [0, 1], ids=["unsigned", "signed"])
@pytest.mark.parametrize("width", WIDTHS)
def test_decoding_gives_the_value_of_the_code(width, sign):
    codes = some_codes(width)
    for fmt in (IntFormat(width, sign=sign), IntFormat(width, 6, sign), IntFormat(width, family="plena")):
        assert_same_bits(fmt.decode(codes), value_model(codes, fmt), codes)


@pytest.mark.parametrize("family", ["ieee", "plena"])
def test_one_compiled_codec_serves_all_widths_and_equals_numpy(family):
    encode = jax.jit(lambda fmt, x: fmt.encode(x))
    decode = jax.jit(lambda fmt, codes: fmt.decode(codes))
    codes = some_codes(32)
    for width in WIDTHS:
        for fraction, sign in ((0, 1), (0, 0), (6, 1), (-3, 1), (13, 0)):
            fmt = IntFormat(width, fraction, sign, family)
            assert_same_codes(encode(fmt, VALUES), fmt.encode(VALUES), VALUES)
            assert_same_bits(decode(fmt, codes), fmt.decode(codes), codes)
    assert encode._cache_size() == decode._cache_size() == 1


@pytest.mark.parametrize("fmt", [IntFormat(8), IntFormat(32), IntFormat(5, 2, 0), IntFormat(13, family="plena")])
def test_compiled_for_one_format_equals_numpy(fmt):
    assert_same_codes(jax.jit(fmt.encode)(VALUES), fmt.encode(VALUES), VALUES)
    codes = some_codes(fmt.width)
    assert_same_bits(jax.jit(fmt.decode)(codes), fmt.decode(codes), codes)


@given(st.integers(1, 24), st.integers(0, 1), st.integers(-8, 8))
def test_codes_of_up_to_24_bits_come_back(width, sign, fraction):
    fmt, codes = IntFormat(width, fraction, sign), some_codes(width)
    assert_same_codes(fmt.encode(fmt.decode(codes)), codes)


@pytest.mark.parametrize("name", ["int2", "int4", "uint2", "uint4", "int8", "uint8"])
def test_values_are_those_of_the_type_of_that_name(name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    fmt = IntFormat(int(name.strip("uint")), sign=int(not name.startswith("u")))
    codes = np.arange(1 << fmt.width, dtype=np.uint8)
    assert_same_bits(fmt.decode(codes), codes.view(dtype).astype(F32), codes)


def test_worked_examples():
    int8, plena8 = IntFormat(8), IntFormat(8, family="plena")
    x = F32([0.5, 1.5, 2.5, -0.5, -1.5, 127.4, 127.5, 1e9, -128.5, -1e9, np.inf, -np.inf, np.nan])
    assert int8.encode(x).tolist() == [0, 2, 2, 0, 0xFE, 127, 127, 127, 0x80, 0x80, 127, 0x80, 0]
    # Truncated, then the low bits of a 32-bit integer: no saturation to 8 bits.
    x = F32([0.5, 1.9, -1.9, 127.9, 128, 300, -1, 1e9, 3e9, -3e9, np.inf, -np.inf, np.nan])
    assert plena8.encode(x).tolist() == [0, 1, 0xFF, 127, 128, 44, 0xFF, 0, 0xFF, 0, 0xFF, 0, 0]
    assert int8.decode(np.uint32([0x80, 0xFF, 0x7F])).tolist() == [-128, -1, 127]
    assert plena8.decode(np.uint32([0x80, 0xFF, 0x7F])).tolist() == [128, 255, 127]


def test_the_largest_float_below_saturation_is_not_saturated():
    # 2**31 - 128 is the largest float32 that fits 32 bits.
    x = F32([2**31 - 128, 2**31, -(2**31), -(2**31) - 256])
    want = [0x7FFFFF80, 0x7FFFFFFF, 0x80000000, 0x80000000]
    for fmt in (IntFormat(32), IntFormat(32, family="plena")):
        assert fmt.encode(x).tolist() == want
        assert jax.jit(fmt.encode)(x).tolist() == want
    assert IntFormat(32, sign=0).encode(F32([2**32 - 256, 2**32, -1])).tolist() == [0xFFFFFF00, 0xFFFFFFFF, 0]


def test_fraction_bits_scale_exactly_when_traced():
    # XLA's exp2 is not exact for most integers.
    powers = jnp.arange(-40, 41)
    got = jax.jit(jax.vmap(lambda f: IntFormat(8, f).decode(jnp.uint32(1))))(powers)
    assert_same_bits(got, (2.0 ** -np.arange(-40, 41, dtype=np.float64)).astype(F32))


@pytest.mark.parametrize("width", [0, -3, 33])
def test_impossible_widths_are_refused(width):
    with pytest.raises(FormatError, match=rf"int{width}: an integer format has 1\.\.32 bits"):
        IntFormat(width)


def test_formats_stack_under_vmap():
    parts = [IntFormat(w, f, s) for w in (1, 4, 8, 24, 32) for f in (0, 6) for s in (0, 1)]
    stack = jax.tree.map(lambda *fields: jnp.stack([jnp.int32(f) for f in fields]), *parts)
    codes, values = jax.jit(jax.vmap(lambda fmt, x: (fmt.encode(x), fmt.round(x)), in_axes=(0, None)))(stack, VALUES)
    for fmt, code, value in zip(parts, codes, values, strict=True):
        assert_same_codes(code, fmt.encode(VALUES), VALUES)
        assert_same_bits(value, fmt.decode(fmt.encode(VALUES)), VALUES)


def test_formats_are_hashable_and_static():
    assert hash(IntFormat(8)) == hash(IntFormat(8))
    assert len({IntFormat(8), IntFormat(8, 6), IntFormat(8, sign=0), IntFormat(8, family="plena")}) == 4
    rounded = jax.jit(lambda x, fmt: fmt.round(x), static_argnames="fmt")(F32([1.26, -9]), IntFormat(4, 1))
    assert rounded.tolist() == [1.5, -4]


@pytest.mark.parametrize("fmt", [IntFormat(8), IntFormat(8, 6), IntFormat(8, family="plena")])
def test_gradient_of_rounding_is_straight_through(fmt):
    weights = jnp.cos(jnp.arange(100.0))
    gradient = jax.jit(jax.grad(lambda x: (weights * fmt.round(x)).sum()))(jnp.linspace(-200, 200, 100))
    assert_same_bits(gradient, weights)


def test_numpy_stays_numpy():
    fmt = IntFormat(8)
    assert isinstance(fmt.encode(np.ones((2, 3), F32)), np.ndarray)
    assert fmt.encode(np.ones((2, 3), F32)).dtype == np.uint32
    assert fmt.encode(3.0) == 3
    assert fmt.decode(0xFF) == -1
