"""Quantizers: bit for bit the rounding of the formats they come from; what rounding loses, and its derivatives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import EDGES, F32, assert_same_bits, boundaries, floats_of, random_patterns, tiny_patterns
from hypothesis import given
from hypothesis import strategies as st

from plena_jax import FormatError, formats
from plena_jax.formats import FloatFormat, IntFormat, MXFormat, Quantizer
from plena_jax.formats.named import FLOATS

SPECIALS = ("ieee", "fn", "fnuz", "finite")
RULES = [rule for rule in formats.SCALE_RULES if rule != "plena"]
ELEMENTS = [name for name in formats.NAMES if name.startswith("mx")]
NAMED = {name: fmt for name, fmt in FLOATS.items() if name != "float8_e8m0fnu"}
POWERS = np.ldexp(F32(1), np.arange(-149, 128)).astype(F32)
#: All powers of two, zeros, infinities, NaN with payloads, subnormals and their neighbours.
EVERYWHERE = np.concatenate([EDGES, POWERS, -POWERS, np.nextafter(POWERS, F32(0)), -np.nextafter(POWERS, F32(np.inf))])
PATTERNS = random_patterns(1 << 18)
SAMPLE = np.concatenate([EVERYWHERE, PATTERNS[: 1 << 13], tiny_patterns(2_000)])
round_traced = jax.jit(lambda fmt, x: fmt.round(x))


def every_split() -> list[FloatFormat]:
    """All eXmY and conventions, saturating and unsigned ones among them."""
    found = []
    for exponent in range(1, 9):
        for mantissa in range(24):
            for specials in SPECIALS:
                for sign in (True, False):
                    for saturate in (True, False):
                        options = dict(specials=specials, sign=sign, saturate=saturate)
                        try:
                            found.append(FloatFormat.make(exponent, mantissa, **options))
                        except FormatError:
                            assert specials == "fnuz" and not sign
    return found


INTEGERS = [
    IntFormat(width, fraction, sign)
    for width in (1, 2, 3, 4, 7, 8, 16, 24, 25, 26, 31, 32)
    for fraction in (0, 3, 6, 24, 125, -5, -100, -126)
    for sign in (0, 1)
]


def held(fmt: FloatFormat | IntFormat, x: np.ndarray) -> np.ndarray:
    """What a format makes of ``x``, by its codes and in NumPy."""
    return fmt.decode(fmt.encode(x))


def near_codes(fmt: FloatFormat | IntFormat) -> np.ndarray:
    """The values of codes, the middles between them, and the float32 neighbours of both."""
    largest = (1 << fmt.bits) - 1
    codes = np.arange(1 << fmt.bits) if fmt.bits <= 10 else np.random.default_rng(0).integers(0, largest, 500)
    values = fmt.decode(np.append(codes, largest).astype(np.uint32))
    values = np.append(values[np.isfinite(values)], F32([0, 1]))
    with np.errstate(over="ignore"):
        return np.concatenate([boundaries(values), np.append(values, -values)])


def stacked(parts: list) -> object:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.int32(leaf) for leaf in leaves]), *parts)


def differs(got: object, want: np.ndarray) -> bool:
    try:
        assert_same_bits(got, want)
    except AssertionError:
        return True
    return False


# -- the same bits as the format --------------------------------------------------------------------------------------


@pytest.mark.parametrize("saturate", [False, True], ids=["plain", "saturating"])
@pytest.mark.parametrize("name", NAMED)
def test_named_floats_round_alike_everywhere(name, saturate):
    fmt = NAMED[name].saturating() if saturate else NAMED[name]
    for x in (EVERYWHERE, PATTERNS, near_codes(fmt)):
        assert_same_bits(round_traced(Quantizer.of(fmt), x), held(fmt, x), x)


def test_every_split_and_convention_rounds_alike():
    for fmt in every_split():
        x = np.concatenate([EVERYWHERE, near_codes(fmt)[::5] if fmt.bits > 8 else near_codes(fmt)])
        assert_same_bits(Quantizer.of(fmt)._held(x), held(fmt, x), x)


@given(
    st.integers(1, 8),
    st.integers(0, 23),
    st.sampled_from(["ieee", "fn", "finite"]),
    st.integers(-100, 150),
    st.booleans(),
    st.integers(0, 1 << 20),
)
def test_any_bias_rounds_alike(exponent, mantissa, specials, bias, sign, seed):
    fmt = FloatFormat.make(exponent, mantissa, specials=specials, bias=bias, sign=sign)
    x = np.concatenate([near_codes(fmt), EVERYWHERE, random_patterns(2_000, seed), tiny_patterns(500, seed)])
    assert_same_bits(Quantizer.of(fmt)._held(x), held(fmt, x), x)


@pytest.mark.parametrize("fmt", INTEGERS, ids=lambda f: f"{'u' * (1 - f.sign)}int{f.width}_{f.fraction}")
def test_integers_round_alike(fmt):
    x = np.concatenate([SAMPLE, near_codes(fmt)])
    assert_same_bits(Quantizer.of(fmt)._held(x), held(fmt, x), x)


def test_integers_round_alike_on_a_quarter_million_patterns():
    for fmt in (IntFormat(8, 6), IntFormat(4), IntFormat(8, sign=0), IntFormat(32)):
        assert_same_bits(round_traced(Quantizer.of(fmt), PATTERNS), held(fmt, PATTERNS), PATTERNS)


def test_what_overflow_and_infinity_become_may_differ():
    # As hardware has it that saturates finite values only.
    fmt = dataclasses.replace(FLOATS["float8_e5m2"], overflow=FLOATS["float8_e5m2"].largest)
    assert_same_bits(Quantizer.of(fmt)._held(SAMPLE), held(fmt, SAMPLE), SAMPLE)
    assert Quantizer.of(fmt)._held(F32([1e9, -1e9, np.inf])).tolist() == [57344, -57344, np.inf]


def test_one_compiled_call_sweeps_them_all():
    parts = [*NAMED.values(), *(fmt.saturating() for fmt in NAMED.values()), *INTEGERS[::3]]
    parts += [fmt for fmt in every_split() if fmt.mantissa in (0, 1, 10, 23)][::3]
    x = np.concatenate([EVERYWHERE, PATTERNS[:2_000]])
    values = jax.jit(jax.vmap(lambda fmt, x: fmt.round(x), in_axes=(0, None)))(stacked(map(Quantizer.of, parts)), x)
    for fmt, value in zip(parts, values, strict=True):
        assert_same_bits(value, held(fmt, x), x)


@pytest.mark.parametrize("change", ["mantissa", "quantum", "limit", "overflow", "infinity", "nan", "zero"])
def test_each_field_of_a_quantizer_matters(change):
    fmt = FLOATS["float8_e4m3fnuz"]
    quantizer = Quantizer.of(fmt)
    other = getattr(Quantizer.of(FLOATS["float8_e5m2"]), change)
    assert differs(
        dataclasses.replace(quantizer, **{change: other})._held(SAMPLE), held(FLOATS["float8_e4m3fnuz"], SAMPLE)
    )


def test_neighbours_in_precision_or_range_are_told_apart():
    for fmt, other in (("float8_e4m3fn", "float8_e4m3"), ("float8_e5m2", "float8_e5m2fnuz"), ("tf32", "bfloat16")):
        assert differs(round_traced(Quantizer.of(FLOATS[fmt]), SAMPLE), held(FLOATS[other], SAMPLE))


def test_quantizers_of_traced_formats():
    parts = [FLOATS[n] for n in ("float8_e4m3fn", "bfloat16", "float4_e2m1fn")]
    for kind in (parts, [IntFormat(8, 6), IntFormat(4, sign=0), IntFormat(32)]):
        sweep = jax.jit(jax.vmap(lambda fmt, x: Quantizer.of(fmt).round(x), in_axes=(0, None)))
        for fmt, value in zip(kind, sweep(stacked(kind), SAMPLE), strict=True):
            assert_same_bits(value, held(fmt, SAMPLE), SAMPLE)


def test_quantizers_are_hashable_and_static():
    assert len({Quantizer.of(fmt) for fmt in [*NAMED.values(), IntFormat(8), IntFormat(8, 6)]}) == len(NAMED) + 2
    assert hash(Quantizer.of(IntFormat(8))) == hash(Quantizer.of(IntFormat(8)))
    got = jax.jit(lambda x, fmt: fmt.round(x), static_argnames="fmt")(SAMPLE, Quantizer.of(FLOATS["float8_e4m3fn"]))
    assert_same_bits(got, held(FLOATS["float8_e4m3fn"], SAMPLE), SAMPLE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quantizer.of(IntFormat(8)).zero = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "fmt, message",
    [
        (FloatFormat.make(4, 3, family="plena"), "'plena' family"),
        (IntFormat(8, family="plena"), "'plena' family"),
        (FLOATS["float8_e8m0fnu"], "e8m0 without zero cannot hold data"),
        (IntFormat(8, 126), r"126 fraction bits.*-126\.\.125"),
        (IntFormat(8, -127), r"-127 fraction bits.*-126\.\.125"),
    ],
)
def test_formats_without_quantizer_are_refused(fmt, message):
    with pytest.raises(FormatError, match=message):
        Quantizer.of(fmt)


# -- blocks -----------------------------------------------------------------------------------------------------------


def blocks_of(element: FloatFormat | IntFormat, block: int, seed: int = 0) -> np.ndarray:
    """Blocks of random patterns, of edges, of powers of two, of values near codes at every scale, and tiny ones."""
    generator = np.random.default_rng(seed)
    near = generator.choice(near_codes(element), (600, block)) * np.ldexp(1.0, generator.integers(-150, 100, (600, 1)))
    patterns = random_patterns(300 * block, seed).reshape(-1, block)
    edges = np.where(generator.random((300, block)) < 0.3, generator.choice(EDGES, (300, block)), patterns)
    powers = generator.choice(EVERYWHERE, (300, block))
    with np.errstate(over="ignore"):
        tiny = tiny_patterns(200 * block, seed).reshape(-1, block)
        return np.concatenate([near.astype(F32), patterns, edges, powers, tiny, [np.full(block, F32("nan"))]])


def mx_held(fmt: MXFormat, x: np.ndarray) -> np.ndarray:
    return fmt.decode(*fmt.encode(x))


@pytest.mark.parametrize("block", [1, 8, 16, 32])
@pytest.mark.parametrize("rule", RULES)
def test_blocks_round_alike(rule, block):
    parts = [formats.named(name, block=block, rule=rule) for name in ELEMENTS]
    x = np.concatenate([blocks_of(fmt.element, block, i)[::3] for i, fmt in enumerate(parts)])
    sweep = jax.jit(jax.vmap(lambda fmt, x: fmt.round(x), in_axes=(0, None)))
    values = sweep(stacked([fmt.quantizer() for fmt in parts]), x)
    for fmt, value in zip(parts, values, strict=True):
        assert_same_bits(value, mx_held(fmt, x), x)
        assert_same_bits(fmt.quantizer()._held(x), mx_held(fmt, x), x)
    assert differs(values[0], mx_held(parts[1], x))


@given(
    st.integers(1, 7),
    st.integers(0, 23),
    st.sampled_from(["ieee", "fn", "finite"]),
    st.sampled_from([None, 20, 90]),
    st.booleans(),
    st.sampled_from(RULES),
    st.integers(1, 8),
    st.integers(0, 1 << 20),
)
def test_any_element_and_scale_round_alike(exponent, mantissa, specials, bias, sign, rule, scale, seed):
    element = FloatFormat.make(exponent, mantissa, specials=specials, bias=bias, sign=sign)
    fmt = MXFormat(element, FloatFormat.exponent_only(scale), 8, rule)
    try:
        quantizer = fmt.quantizer()
    except FormatError:
        assert element.max >= 2.0**127 or 1 - element.bias - mantissa < -125
        return
    x = blocks_of(element, 8, seed)
    assert_same_bits(quantizer._held(x), mx_held(fmt, x), x)


@given(st.integers(1, 32), st.integers(-20, 60), st.integers(0, 1), st.sampled_from(RULES), st.integers(0, 1 << 20))
def test_any_integer_element_rounds_alike(width, fraction, sign, rule, seed):
    fmt = MXFormat(IntFormat(width, fraction, sign), FloatFormat.exponent_only(), 8, rule)
    x = blocks_of(fmt.element, 8, seed)
    assert_same_bits(fmt.quantizer()._held(x), mx_held(fmt, x), x)


def test_floats_and_integers_are_elements_of_one_sweep():
    names = ("mxfp8_e4m3", "mxint8", "mxfp4_e2m1", "mxint4")
    parts = [formats.named(name, block=16).quantizer() for name in names]
    x = random_patterns(2 * 3 * 64, 5).reshape(2, 3, 64)
    values = jax.jit(jax.vmap(lambda fmt, x: fmt.round(x), in_axes=(0, None)))(stacked(parts), x)
    for name, value in zip(names, values, strict=True):
        assert_same_bits(value, mx_held(formats.named(name, block=16), x), x)


def test_unsigned_integer_elements_use_their_whole_range():
    fmt = MXFormat(IntFormat(8, sign=0), FloatFormat.exponent_only(), 8)
    codes, scales = fmt.encode(F32([255, 128, 1, 0, 0, 0, 0, -3]))
    assert codes.tolist() == [255, 128, 1, 0, 0, 0, 0, 0]
    assert scales.tolist() == [127]


def test_blocks_of_quantizers_have_no_codes():
    fmt = formats.named("mxfp4_e2m1", block=8).quantizer()
    assert fmt.quantizer() is fmt
    assert isinstance(fmt.element, Quantizer)
    assert (fmt.block, fmt.rule, fmt.scale) == (8, "floor", FLOATS["float8_e8m0fnu"])
    with pytest.raises(FormatError, match="no codes"):
        fmt.encode(np.ones(8, F32))
    with pytest.raises(FormatError, match="no codes"):
        fmt.decode(np.ones(8, np.uint32), np.ones(1, np.uint32))
    with pytest.raises(FormatError, match="not a multiple of the MX block 8"):
        fmt.round(np.ones(7, F32))


def test_blocks_that_cannot_be_scaled_are_refused():
    element, scale = Quantizer.of(FLOATS["float8_e4m3fn"]), FloatFormat.exponent_only()
    with pytest.raises(FormatError, match=r"2\*\*-133.*cannot be scaled exactly"):
        MXFormat(FLOATS["bfloat16"], scale, 8).quantizer()
    with pytest.raises(FormatError, match="scale rule 'plena' with a quantizer"):
        MXFormat(element, scale, 8, "plena")
    with pytest.raises(FormatError, match="scale without zero"):
        MXFormat(element, FloatFormat.make(8, 0), 8)


# -- what rounding loses ----------------------------------------------------------------------------------------------

LOSSY = {
    "float8_e4m3fn": FLOATS["float8_e4m3fn"],
    "float8_e5m2": FLOATS["float8_e5m2"].saturating(),
    "fnuz": FLOATS["float8_e4m3fnuz"],
    "float4": FLOATS["float4_e2m1fn"],
    "bfloat16": FLOATS["bfloat16"],
    "unsigned": FloatFormat.make(3, 2, sign=False),
    "int8": IntFormat(8, 6),
    "uint4": IntFormat(4, sign=0),
    "plena_float": FloatFormat.make(4, 3, family="plena"),
    "plena_bfloat16": FloatFormat.make(8, 7, family="plena"),
    "plena_int": IntFormat(8, family="plena"),
}


def float64(x: np.ndarray) -> np.ndarray:
    """Exact; signalling NaN are no accident."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def values_of(fmt: FloatFormat | IntFormat) -> np.ndarray:
    values = float64(fmt.decode(np.arange(1 << fmt.bits, dtype=np.uint32)))
    return values[np.isfinite(values)]


def losses(fmt: FloatFormat | IntFormat, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Saturated and flushed, from all values of the format."""
    values, exact = values_of(fmt), float64(x)
    finite = np.isfinite(exact)
    saturated = finite & ((exact > max(values.max(), 0)) | (exact < min(values.min(), 0)))
    return saturated, finite & (exact != 0) & (held(fmt, x) == 0)


@pytest.mark.parametrize("name", LOSSY)
def test_losses_are_those_of_the_values(name):
    fmt = LOSSY[name]
    x = np.concatenate([SAMPLE, near_codes(fmt)])
    saturated, flushed = losses(fmt, x)
    forms = [fmt] if fmt.family == "plena" else [fmt, Quantizer.of(fmt)]
    for form in forms:
        for of in (lambda f, x: (f.saturates(x), f.flushes(x)), jax.jit(lambda f, x: (f.saturates(x), f.flushes(x)))):
            saturates, flushes = of(form, x)
            assert saturates.dtype == flushes.dtype == bool
            np.testing.assert_array_equal(saturates, saturated)
            np.testing.assert_array_equal(flushes, flushed)
    assert saturated.any() and flushed.any() and not saturated.all() and not flushed.all()


def test_losses_begin_at_the_ends_of_the_range():
    fmt = FLOATS["float8_e4m3fn"]
    x = F32([448, np.nextafter(F32(448), F32(449)), 464, 1e30, np.inf, np.nan, 0, -500])
    assert fmt.saturates(x).tolist() == [False, True, True, True, False, False, False, True]
    assert fmt.flushes(F32([2.0**-10, np.nextafter(F32(2.0**-10), F32(1)), -1e-45, 0])).tolist() == [
        True,
        False,
        True,
        False,
    ]
    assert IntFormat(8).saturates(F32([127, 127.1, -128, -128.1])).tolist() == [False, True, False, True]
    assert IntFormat(8, sign=0).saturates(F32([255, 256, -0.0, -0.1])).tolist() == [False, True, False, True]
    assert isinstance(fmt.saturates(x), np.ndarray) and isinstance(fmt.flushes(x), np.ndarray)


@pytest.mark.parametrize("rule", formats.SCALE_RULES)
@pytest.mark.parametrize("name", ELEMENTS)
def test_blocks_lose_what_their_scale_cannot_hold(name, rule):
    fmt = formats.named(name, block=8, rule=rule)
    x = blocks_of(fmt.element, 8, 1)
    codes, scales = fmt.encode(x)
    factor = np.repeat(fmt.scale.decode(scales).astype(np.float64), 8, axis=-1)
    values, exact = values_of(fmt.element), float64(x)
    saturated = np.isfinite(exact) & ((exact > values.max() * factor) | (exact < values.min() * factor))
    flushed = np.isfinite(exact) & (exact != 0) & (fmt.decode(codes, scales) == 0)
    assert flushed.any()
    assert saturated.any() == (rule in ("floor", "even") or name.startswith("mxint"))
    for form in [fmt] if rule == "plena" else [fmt, fmt.quantizer()]:
        for of in (lambda f, x: (f.saturates(x), f.flushes(x)), jax.jit(lambda f, x: (f.saturates(x), f.flushes(x)))):
            saturates, flushes = of(form, x)
            np.testing.assert_array_equal(saturates, saturated)
            np.testing.assert_array_equal(flushes, flushed)


# -- derivatives ------------------------------------------------------------------------------------------------------

DIFFERENTIABLE: dict[str, Callable[[], object]] = {
    "float": lambda: FLOATS["float8_e4m3fn"],
    "int": lambda: IntFormat(8, 1),
    "plena": lambda: FloatFormat.make(4, 3, family="plena"),
    "mx": lambda: formats.named("mxfp4_e2m1", block=8),
    "plena_mx": lambda: formats.named("mxfp4_e2m1", block=8, rule="plena"),
    "quantizer": lambda: Quantizer.of(FLOATS["float8_e4m3fn"]),
    "mx_quantizer": lambda: formats.named("mxfp4_e2m1", block=8).quantizer(),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_plain_and_clipped(name):
    fmt = DIFFERENTIABLE[name]()
    x = jnp.asarray(np.random.default_rng(0).standard_normal(64) * 400, jnp.float32)
    weights = jnp.cos(jnp.arange(64.0))
    inside = ~np.asarray(fmt.saturates(x))
    # Elements of the hardware model are below 2 times the scale.
    assert inside.any() and inside.all() == (name == "plena_mx")
    want = {False: weights, True: jnp.where(inside, weights, 0)}
    for clipped in (False, True):
        gradient = jax.jit(jax.grad(lambda x, fmt, c=clipped: (weights * fmt.round(x, clipped=c)).sum()))(x, fmt)
        assert_same_bits(gradient, want[clipped])
        value, tangent = jax.jvp(lambda x, c=clipped: fmt.round(x, clipped=c), (x,), (weights,))
        assert_same_bits(tangent, want[clipped])
        assert_same_bits(value, fmt.round(x))
    assert differs(want[True], want[False]) == (name != "plena_mx")


@pytest.mark.parametrize("clipped", [False, True])
def test_derivatives_of_a_sweep(clipped):
    parts = [Quantizer.of(fmt) for fmt in (FLOATS["float4_e2m1fn"], IntFormat(8, 6), FLOATS["float8_e5m2"])]
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(F32) * 4
    gradient = jax.grad(lambda x, fmt: fmt.round(x, clipped=clipped).sum())
    got = jax.jit(jax.vmap(jax.vmap(gradient, in_axes=(0, None)), in_axes=(None, 0)))(x, stacked(parts))
    for fmt, of_format in zip(parts, got, strict=True):
        assert_same_bits(of_format, np.where(fmt.saturates(x) & clipped, F32(0), F32(1)))


def test_losses_of_a_sweep():
    parts = [FLOATS["float4_e2m1fn"], FLOATS["float8_e5m2"], FLOATS["bfloat16"]]
    sweep = jax.jit(jax.vmap(lambda fmt, x: (fmt.saturates(x), fmt.flushes(x)), in_axes=(0, None)))
    for stack in (stacked(parts), stacked([Quantizer.of(fmt) for fmt in parts])):
        for fmt, saturates, flushes in zip(parts, *sweep(stack, SAMPLE), strict=True):
            np.testing.assert_array_equal(saturates, fmt.saturates(SAMPLE))
            np.testing.assert_array_equal(flushes, fmt.flushes(SAMPLE))


def test_formats_of_32_bits_round_too():
    # The code of their NaN does not fit the int32 that jax makes of a Python integer.
    for specials in ("fnuz", "finite"):
        fmt = FloatFormat.make(8, 23, specials=specials)
        assert_same_bits(fmt.round(SAMPLE), held(fmt, SAMPLE), SAMPLE)
    assert fmt.round(floats_of([0x7FC00000])).tolist() == [0]
