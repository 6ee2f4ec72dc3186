"""OCP block formats: the scale rules against float64 arithmetic, the elements against ml_dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_formats import (
    EDGES,
    F32,
    assert_same_bits,
    assert_same_codes,
    assert_same_values,
    cast_codes,
    random_patterns,
    tiny_patterns,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plena_jax import FormatError, formats
from plena_jax.formats import FloatFormat, IntFormat, MXFormat

#: Element type, largest finite element, exponent of that, mantissa bits.
ELEMENTS = {
    "mxfp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0, 8, 3),
    "mxfp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0, 15, 2),
    "mxfp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5, 2, 3),
    "mxfp6_e3m2": (ml_dtypes.float6_e3m2fn, 28.0, 4, 2),
    "mxfp4_e2m1": (ml_dtypes.float4_e2m1fn, 6.0, 2, 1),
    "mxint8": (8, 127 / 64, 0, 6),
    "mxint4": (4, 7 / 4, 0, 2),
}
OCP_RULES = [rule for rule in formats.SCALE_RULES if rule != "plena"]
BLOCKS = (8, 16, 32)


def mx(name: str, rule: str = "floor", block: int = 32) -> MXFormat:
    fmt = formats.named(name, block=block, rule=rule)
    assert isinstance(fmt, MXFormat)
    return fmt


def rows(block: int, seed: int = 0) -> np.ndarray:
    """Blocks of every size and content: normal, uniform bit patterns, tiny, next to powers of two, with zeros."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((800, block)) * 2.0 ** generator.integers(-60, 60, (800, 1))
    patterns = random_patterns(500 * block, seed).reshape(-1, block)
    tiny = tiny_patterns(150 * block, seed).reshape(-1, block)
    # Largest values where the rules differ: next to 1, 1.75 and 1.9375 times a power of two.
    top = F32([1, 1.25, 1.5, 1.75, 1.9375, 1.96875, 1.99])
    top = np.concatenate([top, np.nextafter(top, F32(0)), np.nextafter(top, F32(4))])
    top = (top[:, None] * 2.0 ** np.arange(-130, 128, 3)).astype(F32).reshape(-1, 1)
    small = (top * generator.uniform(-1, 1, (top.size, block - 1))).astype(F32)
    sparse = np.where(generator.random((200, block)) < 0.9, 0, generator.standard_normal((200, block))).astype(F32)
    return np.concatenate([normal.astype(F32), patterns, tiny, np.concatenate([top, small], 1), sparse])


def floor_log2(x: np.ndarray) -> np.ndarray:
    return np.frexp(x)[1] - 1


def exponent_model(largest: np.ndarray, name: str, rule: str) -> np.ndarray:
    """Shared exponent of blocks with these largest magnitudes, in float64."""
    _, most, top, mantissa = ELEMENTS[name]
    m = np.where(np.isinf(largest), np.finfo(F32).max, largest).astype(np.float64)
    m = np.where(m == 0, 1, m)
    if rule == "floor":
        e = floor_log2(m) - top
    elif rule == "ceil":
        e = floor_log2(m) + (np.ldexp(1.0, floor_log2(m)) < m) - top
    elif rule == "even":
        unit = np.ldexp(1.0, floor_log2(m) - mantissa)
        e = floor_log2(np.rint(m / unit) * unit) - top
    else:
        # The least power of two that brings all elements into range.
        e = floor_log2(m) - floor_log2(np.float64(most)) - 2
        for _ in range(4):
            e = e + (np.ldexp(most, e) < m)
    return np.where(largest == 0, -127, np.clip(e, -127, 127))


def model(x: np.ndarray, name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows of one block each."""
    kind, most, _, _ = ELEMENTS[name]
    largest = np.max(np.where(np.isnan(x), F32(0), np.abs(x)), axis=1)
    e = exponent_model(largest, name, rule)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.ldexp(x.astype(np.float64), -e[:, None])
        if isinstance(kind, int):
            low, high = -(2 ** (kind - 1)), 2 ** (kind - 1) - 1
            number = np.where(np.isnan(x), 0, np.clip(np.rint(scaled * 2 ** (kind - 2)), low, high))
            codes = number.astype(np.int64) & (2**kind - 1)
        else:
            codes = cast_codes(np.clip(scaled, -most, most).astype(F32), np.dtype(kind))
    return codes, e + 127


# -- encoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", OCP_RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_scales_and_elements_follow_the_rule(name, rule):
    for block in BLOCKS:
        x = rows(block, block)
        codes, scales = mx(name, rule, block).encode(x)
        want, want_scales = model(x, name, rule)
        assert_same_codes(scales, want_scales[:, None], np.abs(x).max(axis=1))
        assert_same_codes(codes, want, x)


round_traced = jax.jit(lambda fmt, x: fmt.round(x))
encode_traced = jax.jit(lambda fmt, x: fmt.encode(x))
decode_traced = jax.jit(lambda fmt, codes, scales: fmt.decode(codes, scales))


@pytest.mark.parametrize("rule", OCP_RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_jax_encodes_and_decodes_like_numpy(name, rule):
    fmt, x = mx(name, rule, 8), rows(8, 1)
    codes, scales = fmt.encode(x)
    traced, traced_scales = encode_traced(fmt, x)
    assert_same_codes(traced, codes, x)
    assert_same_codes(traced_scales, scales)
    assert_same_values(decode_traced(fmt, codes, scales), fmt.decode(codes, scales), codes)


@pytest.mark.parametrize("name, rule, block", [("mxfp8_e4m3", "floor", 32), ("mxfp4_e2m1", "even", 16)])
def test_compiled_for_one_format_equals_numpy(name, rule, block):
    fmt, x = mx(name, rule, block), rows(block, 1)
    codes, scales = fmt.encode(x)
    traced, traced_scales = jax.jit(fmt.encode)(x)
    assert_same_codes(traced, codes, x)
    assert_same_codes(traced_scales, scales)
    assert_same_values(jax.jit(fmt.decode)(codes, scales), fmt.decode(codes, scales), codes)


@pytest.mark.parametrize("name", ELEMENTS)
def test_each_rule_differs_from_every_other(name):
    x = rows(8, 2)
    scales = {rule: mx(name, rule, 8).encode(x)[1] for rule in OCP_RULES}
    for a in OCP_RULES:
        for b in OCP_RULES:
            if a < b:
                assert (scales[a] != scales[b]).any(), (a, b)


@pytest.mark.parametrize(
    "largest, floor, ceil, even, rceil",
    [
        # E4M3: largest element 448 = 1.75 * 2**8.
        (448.0, 0, 1, 0, 0),
        (449.0, 0, 1, 0, 1),
        (480.0, 0, 1, 0, 1),
        (496.0, 0, 1, 1, 1),
        (495.9, 0, 1, 0, 1),
        (512.0, 1, 1, 1, 1),
        (256.0, 0, 0, 0, 0),
        (257.0, 0, 1, 0, 0),
        (1.0, -8, -8, -8, -8),
        (1.7501, -8, -7, -8, -7),
    ],
)
def test_rules_on_single_values(largest, floor, ceil, even, rceil):
    want = dict(floor=floor, ceil=ceil, even=even, rceil=rceil)
    for rule, exponent in want.items():
        _, scale = mx("mxfp8_e4m3", rule, 8).encode(F32([largest, 0, 0, 0, 0, 0, 0, -1]))
        assert scale.tolist() == [127 + exponent], rule


# -- special contents -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", OCP_RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_a_block_of_zeros_has_the_smallest_scale(name, rule):
    fmt = mx(name, rule, 8)
    codes, scales = fmt.encode(F32([[0.0] * 8, [-0.0] * 8]))
    assert scales.tolist() == [[0], [0]]
    assert (fmt.decode(codes, scales) == 0).all()
    if isinstance(fmt.element, FloatFormat):
        assert np.signbit(fmt.decode(codes, scales))[1].all()


@pytest.mark.parametrize("rule", OCP_RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_infinity_saturates_under_the_scale_of_the_largest_float(name, rule):
    fmt = mx(name, rule, 8)
    codes, scales = fmt.encode(F32([np.inf, -np.inf, 1, 0, 0, 0, 0, 3e38]))
    _, most, _, _ = ELEMENTS[name]
    _, finite = fmt.encode(F32([3.4028235e38] * 8))
    assert scales.tolist() == finite.tolist()
    values = fmt.element.decode(codes)
    assert values[0] == most
    assert values[1] == (-most if isinstance(fmt.element, FloatFormat) else -2.0)
    assert values[2] == 0
    assert np.isfinite(fmt.decode(codes, scales)[2:7]).all()


@pytest.mark.parametrize("name", ELEMENTS)
def test_nan_is_left_out_of_the_scale(name):
    fmt = mx(name, "floor", 8)
    x = F32([np.nan, 1, 2, 3, -1, 0, 0.5, 1])
    codes, scales = fmt.encode(x)
    without, same_scales = fmt.encode(np.nan_to_num(x))
    assert scales.tolist() == same_scales.tolist()
    assert codes[1:].tolist() == without[1:].tolist()
    value = fmt.decode(codes, scales)[0]
    # Formats without NaN say zero.
    assert np.isnan(value) if name.startswith("mxfp8") else value == 0


def test_nan_scale_makes_the_block_nan():
    fmt = mx("mxfp8_e4m3", block=8)
    got = fmt.decode(np.full(16, 0x38, np.uint32), np.uint32([0xFF, 127]))
    assert np.isnan(got[:8]).all()
    assert (got[8:] == 1).all()
    assert np.isnan(decode_traced(fmt, np.full(16, 0x38, np.uint32), np.uint32([0xFF, 127]))[:8]).all()


@pytest.mark.parametrize("name", ELEMENTS)
def test_decoding_is_element_times_scale(name):
    fmt = mx(name, block=8)
    codes = np.random.default_rng(3).integers(0, 1 << fmt.element.bits, (256, 8)).astype(np.uint32)
    scales = np.arange(256, dtype=np.uint32)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        element = fmt.element.decode(codes).astype(np.float64)
        want = np.where(scales == 255, np.nan, np.ldexp(element, scales.astype(np.int64) - 127)).astype(F32)
    assert_same_values(fmt.decode(codes, scales), want)
    assert_same_values(decode_traced(fmt, codes, scales), want)


# -- accuracy ---------------------------------------------------------------------------------------------------------

MODERATE = hnp.arrays(F32, (4, 8), elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))


@given(MODERATE, st.sampled_from(list(ELEMENTS)), st.sampled_from(OCP_RULES))
def test_decoded_values_encode_to_themselves(x, name, rule):
    fmt = mx(name, rule, 8)
    once = fmt.decode(*fmt.encode(x))
    if isinstance(fmt.element, IntFormat) and rule == "floor":
        # -2 times the scale is the one element that the next scale holds too: leave out blocks that have it.
        lowest = fmt.encode(x)[0] == 1 << (fmt.element.width - 1)
        once = once[~lowest.any(axis=1)]
    assert_same_values(fmt.decode(*fmt.encode(once)), once)


def test_nothing_encodes_to_nothing():
    for shape in ((0, 16), (3, 0), (2, 0, 8)):
        codes, scales = mx("mxfp8_e4m3", block=8).encode(np.zeros(shape, F32))
        assert codes.shape == shape
        assert scales.shape == (*shape[:-1], shape[-1] // 8)


def test_the_lowest_integer_element_is_why_that_exception_is_made():
    fmt = mx("mxint8", block=8)
    once = fmt.decode(*fmt.encode(F32([-1.999, 1 / 64, 0, 0, 0, 0, 0, 0])))
    assert once[:2].tolist() == [-2, 1 / 64]
    assert fmt.decode(*fmt.encode(once))[:2].tolist() == [-2, 0]


@given(MODERATE, st.sampled_from(list(ELEMENTS)), st.sampled_from(OCP_RULES))
def test_errors_are_within_half_a_unit(x, name, rule):
    fmt = mx(name, rule, 8)
    kind, most, _, mantissa = ELEMENTS[name]
    codes, scales = fmt.encode(x)
    scale = fmt.scale.decode(scales).astype(np.float64)
    value, exact = fmt.decode(codes, scales).astype(np.float64), x.astype(np.float64)
    error = np.abs(value - exact)
    if isinstance(kind, int):
        unit = scale * 2.0**-mantissa
    else:
        smallest = float(ml_dtypes.finfo(kind).smallest_subnormal)
        unit = np.ldexp(1.0, floor_log2(np.where(exact == 0, 1e-45, np.abs(exact))) - mantissa)
        unit = np.maximum(unit, scale * smallest)
    saturated = np.abs(exact) > most * scale
    assert (error <= unit / 2)[~saturated].all()
    assert (np.abs(value) >= most * scale)[saturated].all()
    if rule in ("ceil", "rceil"):
        assert not saturated.any()


def test_floor_saturates_where_rceil_does_not():
    x = F32([500, 1, 0, 0, 0, 0, 0, 0])
    floor, rceil = mx("mxfp8_e4m3", "floor", 8), mx("mxfp8_e4m3", "rceil", 8)
    assert floor.decode(*floor.encode(x))[0] == 448
    assert rceil.decode(*rceil.encode(x))[0] == 512


@pytest.mark.parametrize("name", ELEMENTS)
def test_rounding_is_encode_then_decode(name):
    fmt, x = mx(name, "even", 8), rows(8, 4)
    assert_same_values(round_traced(fmt, x), fmt.decode(*fmt.encode(x)), x)


# -- construction, shapes, transformations ----------------------------------------------------------------------------


def test_block_formats_by_name():
    for name, (kind, most, *_) in ELEMENTS.items():
        fmt = mx(name, "rceil", 16)
        assert (fmt.block, fmt.rule, fmt.scale) == (16, "rceil", formats.named("float8_e8m0fnu"))
        assert fmt.element.bits == (kind if isinstance(kind, int) else int(name[4]))
        if isinstance(fmt.element, FloatFormat):
            assert fmt.element.max == most
    assert mx("mxfp8_e4m3").block == 32
    assert mx("mxfp8_e4m3").rule == "floor"


def test_bad_blocks_and_rules_are_refused():
    element, scale = formats.named("float8_e4m3fn"), formats.named("float8_e8m0fnu")
    with pytest.raises(FormatError, match="MX block of 0 elements; allowed: 1 or more"):
        MXFormat(element, scale, 0)
    with pytest.raises(FormatError, match="scale rule 'round'; allowed: floor, ceil, even, rceil, plena"):
        MXFormat(element, scale, 8, "round")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (7,), (8, 12)])
def test_rows_that_are_no_whole_number_of_blocks_are_refused(shape):
    with pytest.raises(FormatError, match="not a multiple of the MX block 8"):
        mx("mxfp4_e2m1", block=8).encode(np.ones(shape, F32))


def test_blocks_run_along_the_last_axis():
    x = random_patterns(2 * 3 * 64, 5).reshape(2, 3, 64)
    fmt = mx("mxfp6_e3m2", block=16)
    codes, scales = fmt.encode(x)
    assert (codes.shape, scales.shape) == ((2, 3, 64), (2, 3, 4))
    assert isinstance(codes, np.ndarray)
    part, part_scale = fmt.encode(x[1, 2, 32:48])
    assert_same_codes(codes[1, 2, 32:48], part)
    assert_same_codes(scales[1, 2, 2:3], part_scale)
    assert fmt.decode(codes, scales).shape == x.shape


def test_formats_stack_and_sweep_under_vmap():
    parts = [mx(name, block=8) for name in ELEMENTS if name.startswith("mxfp")]
    stack = jax.tree.map(lambda *fields: jnp.stack([jnp.int32(f) for f in fields]), *parts)
    x = rows(8, 6)
    sweep = jax.jit(jax.vmap(lambda fmt, x: (*fmt.encode(x), fmt.round(x)), in_axes=(0, None)))
    for fmt, codes, scales, values in zip(parts, *sweep(stack, x), strict=True):
        want, want_scales = fmt.encode(x)
        assert_same_codes(codes, want, x)
        assert_same_codes(scales, want_scales)
        assert_same_values(values, fmt.decode(want, want_scales), x)


@pytest.mark.parametrize("rule", formats.SCALE_RULES)
def test_integer_elements_stack_too(rule):
    parts = [MXFormat(IntFormat(w, fraction=w - 2), FloatFormat.exponent_only(), 8, rule) for w in (4, 6, 8)]
    stack = jax.tree.map(lambda *fields: jnp.stack([jnp.int32(f) for f in fields]), *parts)
    x = rows(8, 7)
    encode = jax.jit(jax.vmap(lambda fmt, x: fmt.encode(x), in_axes=(0, None)))
    for fmt, codes, scales in zip(parts, *encode(stack, x), strict=True):
        want, want_scales = fmt.encode(x)
        assert_same_codes(codes, want, x)
        assert_same_codes(scales, want_scales)


def test_formats_are_hashable_and_static():
    names = [mx(name, rule, block) for name in ELEMENTS for rule in OCP_RULES for block in BLOCKS]
    assert len(set(names)) == len(names)
    assert hash(mx("mxint8")) == hash(mx("mxint8"))
    x = rows(32, 8)
    rounded = jax.jit(lambda x, fmt: fmt.round(x), static_argnames="fmt")(x, mx("mxfp4_e2m1"))
    assert_same_values(rounded, mx("mxfp4_e2m1").decode(*mx("mxfp4_e2m1").encode(x)), x)


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp4_e2m1", "mxint8"])
def test_gradient_of_rounding_is_straight_through(name):
    weights = jnp.cos(jnp.arange(64.0))
    fmt = mx(name)
    gradient = jax.jit(jax.grad(lambda x: (weights * fmt.round(x)).sum()))(jnp.linspace(-5, 900, 64))
    assert_same_bits(gradient, weights)


def test_single_edge_values_fill_blocks():
    for value in EDGES:
        for rule in OCP_RULES:
            x = np.full((1, 8), value)
            codes, scales = mx("mxfp8_e5m2", rule, 8).encode(x)
            want, want_scales = model(x, "mxfp8_e5m2", rule)
            assert_same_codes(codes, want, x)
            assert_same_codes(scales, want_scales[:, None])
