"""plena_jax.arithmetic against NumPy's float32, which rounds correctly and keeps subnormals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import (
    EDGES,
    F32,
    all_bfloat16,
    assert_same_bits,
    assert_same_codes,
    assert_same_values,
    bits_of,
    floats_of,
    keep_significand,
    random_patterns,
    tiny_patterns,
    to_bfloat16,
    with_edges,
)

from plena_jax import arithmetic

N = 100_000
DEFAULT_NAN = np.uint32(0xFFC00000)
QUIET = np.uint32(0x00400000)


def near_cancellation(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Operands of opposite sign whose sum is a few units, often subnormal."""
    a = tiny_patterns(n, 5)
    flips = np.random.default_rng(6).integers(0, 8, n).astype(np.uint32) ^ np.uint32(0x80000000)
    return a, floats_of(bits_of(a) ^ flips)


PAIRS = {
    "any": with_edges(random_patterns(N, 1), random_patterns(N, 2)),
    "tiny": (tiny_patterns(N, 3), tiny_patterns(N, 4)),
    "any with tiny": (random_patterns(N, 5), tiny_patterns(N, 6)),
    "cancelling": near_cancellation(N),
}
ONES = np.concatenate([EDGES, random_patterns(N, 7), tiny_patterns(N, 8), all_bfloat16()])


def x86_nan(result: np.ndarray, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """``result`` with the NaN that SSE gives: the first NaN operand made quiet, else the default one."""
    bits = np.where(np.isnan(result), DEFAULT_NAN, bits_of(result))
    if b is not None:
        bits = np.where(np.isnan(b), bits_of(b) | QUIET, bits)
    return floats_of(np.where(np.isnan(a), bits_of(a) | QUIET, bits))


def in_numpy(function, *arguments) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(function(*arguments), F32)


def units_apart(got, want) -> np.ndarray:
    """Distance in units of the last place; both have the same sign."""
    return np.abs(bits_of(got).astype(np.int64) - bits_of(want).astype(np.int64))


# -- correctly rounded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name, plain", [("add", np.add), ("subtract", np.subtract)])
def test_sums_and_differences_are_correctly_rounded(name, plain, pair):
    a, b = PAIRS[pair]
    want = x86_nan(in_numpy(plain, a, b), a, b)
    assert_same_bits(getattr(arithmetic, name)(a, b), want, a, b)


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize("pair", PAIRS)
def test_products_that_fit_float32_are_correctly_rounded(pair, bits):
    a, b = (keep_significand(x, bits) for x in PAIRS[pair])
    assert_same_bits(arithmetic.multiply(a, b), x86_nan(in_numpy(np.multiply, a, b), a, b), a, b)


@pytest.mark.parametrize("pair", ["any", "any with tiny"])
def test_other_products_are_correctly_rounded_unless_subnormal(pair):
    a, b = PAIRS[pair]
    got, want = np.asarray(arithmetic.multiply(a, b)), x86_nan(in_numpy(np.multiply, a, b), a, b)
    subnormal = np.abs(want) < 2.0**-126
    assert_same_bits(got[~subnormal], want[~subnormal], a[~subnormal], b[~subnormal])
    assert units_apart(got, want)[subnormal].max() <= 1
    assert (bits_of(got) >> 31 == bits_of(want) >> 31)[subnormal].all()


def test_reciprocals_are_correctly_rounded():
    # Above 2**126 the result is subnormal: a second rounding would be wrong once in four times.
    huge = floats_of(np.random.default_rng(9).integers(0x7E000000, 0x7F800000, N).astype(np.uint32))
    a = np.concatenate([ONES, huge, -huge])
    assert_same_bits(arithmetic.reciprocal(a), x86_nan(in_numpy(lambda x: 1 / x, a), a), a)
    once = F32(1) / (huge * F32(2.0**-32))
    assert (np.rint(once.astype(np.float64) * 2.0 ** (149 - 32)) != bits_of(in_numpy(np.reciprocal, huge))).any()


def test_square_roots_are_correctly_rounded():
    assert_same_bits(arithmetic.sqrt(ONES), x86_nan(in_numpy(np.sqrt, ONES), ONES), ONES)


@pytest.mark.parametrize("pair", PAIRS)
def test_shares_are_correctly_rounded(pair):
    a, b = (np.abs(x) for x in PAIRS[pair])
    a, b = np.minimum(a, b), np.maximum(a, b)
    allowed = (b >= 2.0**-126) & np.isfinite(b)
    a, b = a[allowed], b[allowed]
    want = in_numpy(np.divide, a, b)
    if pair == "any with tiny":
        assert ((want > 0) & (want < 2.0**-126)).sum() > 1000
    assert_same_bits(arithmetic.divide(a, b), want, a, b)


def test_share_of_a_nan_is_nan():
    nan, one = floats_of([0x7F812345]), F32([1])
    assert bits_of(arithmetic.divide(nan, one))[0] == 0x7FC12345
    assert bits_of(arithmetic.divide(one, nan))[0] == 0x7FC12345


@pytest.mark.parametrize("exponent", [24, 44, 88, 96, 127])
def test_lift_multiplies_exactly(exponent):
    x = np.concatenate([EDGES, random_patterns(N, 10), tiny_patterns(N, 11)])
    want = in_numpy(lambda x: (x.astype(np.float64) * 2.0**exponent).astype(F32), x)
    assert_same_values(arithmetic.lift(x, exponent), want, x)


@pytest.mark.parametrize("exponent", [24, 32, 44, 88, 96, 127, 128, 150, 192])
def test_lower_divides_and_rounds_once(exponent):
    # Of the values that matter most, those whose result is near the subnormal range, there should be many.
    lifted = np.abs(random_patterns(N, 12))
    lifted = in_numpy(lambda x: np.ldexp(np.frexp(x)[0], exponent - 149 + np.arange(N) % 30).astype(F32), lifted)
    x = np.concatenate([EDGES, random_patterns(N, 13), lifted, -lifted])
    want = in_numpy(lambda x: (x.astype(np.float64) * 2.0**-exponent).astype(F32), x)
    assert_same_values(arithmetic.lower(x, exponent), want, x)


def test_lower_undoes_lift():
    x = ONES[np.isfinite(ONES) & (np.abs(ONES) < 2.0**39)]
    assert_same_bits(arithmetic.lower(arithmetic.lift(x, 88), 88), x, x)


# -- NaN --------------------------------------------------------------------------------------------------------------

SIGNALLING, QUIETED = floats_of([0x7F812345]), 0x7FC12345
OTHER, OTHER_QUIETED = floats_of([0xFF854321]), 0xFFC54321


@pytest.mark.parametrize("operation", [arithmetic.add, arithmetic.subtract, arithmetic.multiply])
def test_first_nan_operand_is_returned_quiet(operation):
    one = F32([1])
    assert bits_of(operation(SIGNALLING, one))[0] == QUIETED
    assert bits_of(operation(one, OTHER))[0] == OTHER_QUIETED
    assert bits_of(operation(SIGNALLING, OTHER))[0] == QUIETED
    assert bits_of(operation(OTHER, SIGNALLING))[0] == OTHER_QUIETED


@pytest.mark.parametrize(
    "result",
    [
        lambda: arithmetic.add(F32([np.inf]), F32([-np.inf])),
        lambda: arithmetic.subtract(F32([np.inf]), F32([np.inf])),
        lambda: arithmetic.multiply(F32([np.inf]), F32([-0.0])),
        lambda: arithmetic.sqrt(F32([-1])),
        lambda: arithmetic.sqrt(F32([-1e-40])),
        lambda: arithmetic.sqrt(F32([-np.inf])),
    ],
)
def test_invalid_operations_give_the_default_nan(result):
    assert bits_of(result())[0] == DEFAULT_NAN


@pytest.mark.parametrize(
    "operation",
    [arithmetic.reciprocal, arithmetic.sqrt, arithmetic.exp, arithmetic.exp_below_one],
)
def test_functions_return_a_nan_operand_quiet(operation):
    assert bits_of(operation(SIGNALLING))[0] == QUIETED
    assert bits_of(operation(OTHER))[0] == OTHER_QUIETED


def test_signs_of_zero_results():
    zero, minus = F32([0.0]), F32([-0.0])
    assert bits_of(arithmetic.add(minus, minus))[0] == 0x80000000
    assert bits_of(arithmetic.add(zero, minus))[0] == 0
    assert bits_of(arithmetic.subtract(minus, zero))[0] == 0x80000000
    assert bits_of(arithmetic.add(F32([1e-40]), F32([-1e-40])))[0] == 0
    assert bits_of(arithmetic.multiply(F32([-1e-30]), F32([1e-30])))[0] == 0x80000000
    assert bits_of(arithmetic.sqrt(minus))[0] == 0x80000000
    assert bits_of(arithmetic.reciprocal(F32([0.0, -0.0, np.inf, -np.inf]))).tolist() == [
        *(0x7F800000, 0xFF800000, 0, 0x80000000)
    ]


# -- exp --------------------------------------------------------------------------------------------------------------


def test_exp_of_every_bfloat16_rounds_to_the_right_bfloat16():
    a = all_bfloat16()
    a = np.clip(a[~np.isnan(a)], F32(-88), F32(88))
    want = in_numpy(lambda x: np.exp(x.astype(np.float64)), a)
    assert_same_codes(to_bfloat16(arithmetic.exp(a)), to_bfloat16(want), a)


def test_exp_below_one_of_every_bfloat16_rounds_to_the_right_bfloat16():
    a = -np.abs(all_bfloat16())
    a = a[~np.isnan(a)]
    want = in_numpy(lambda x: np.exp(x.astype(np.float64)), a)
    assert ((want > 0) & (want < 2.0**-126)).sum() > 10
    assert_same_codes(to_bfloat16(arithmetic.exp_below_one(a)), to_bfloat16(want), a)


def test_exp_at_the_clamp():
    got = to_bfloat16(arithmetic.exp(F32([88, -88])))
    assert got.tolist() == [0x7EF9, 0x0042]


@pytest.mark.parametrize(
    "function, low, high", [(arithmetic.exp, -88, 88), (arithmetic.exp_below_one, -110, 0), (arithmetic.exp, -88, -79)]
)
def test_exp_is_within_two_units(function, low, high):
    a = np.random.default_rng(14).uniform(low, high, N).astype(F32)
    want = in_numpy(lambda x: np.exp(x.astype(np.float64)), a)
    assert units_apart(function(a), want).max() <= 2


def test_exp_below_one_ends_in_zero():
    assert arithmetic.exp_below_one(F32([-104, -200, -3e38, -np.inf])).tolist() == [0, 0, 0, 0]
    assert bits_of(arithmetic.exp_below_one(F32([-103])))[0] == 1
    assert arithmetic.exp_below_one(F32([0.0, -0.0])).tolist() == [1, 1]


def test_clamp_keeps_nan_and_zeros():
    with np.errstate(invalid="ignore"):
        want = np.where(np.isnan(ONES), ONES, np.clip(ONES, F32(-88), F32(88)))
    assert_same_bits(arithmetic.clamp_exponent(jnp.asarray(ONES)), want, ONES)


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", PAIRS)
def test_less_compares_subnormals_too(pair):
    a, b = PAIRS[pair]
    np.testing.assert_array_equal(arithmetic.less(a, b), in_numpy(np.less, a, b).astype(bool))
    np.testing.assert_array_equal(arithmetic.less(a, a), np.zeros(len(a), bool))


def test_total_order_sorts_by_value_then_sign():
    names = [0xFFFFFFFF, 0xFFC00000, 0xFF800000, 0xBF800000, 0x80000001, 0x80000000]
    names += [0x00000000, 0x00000001, 0x3F800000, 0x7F800000, 0x7F800001, 0x7FFFFFFF]
    keys = np.asarray(arithmetic.total_order(jnp.asarray(floats_of(names))))
    assert keys.dtype == np.int32
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    finite = np.sort(ONES[np.isfinite(ONES)])
    assert (np.diff(np.asarray(arithmetic.total_order(jnp.asarray(finite[finite != 0]))).astype(np.int64)) >= 0).all()


def test_total_order_has_an_inverse():
    x = jnp.asarray(ONES)
    assert_same_bits(arithmetic.from_total_order(arithmetic.total_order(x)), ONES)


# -- derivatives and transformations ----------------------------------------------------------------------------------

PLAIN = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a / b,
    "reciprocal": lambda a: 1 / a,
    "sqrt": jnp.sqrt,
    "exp": jnp.exp,
    "exp_below_one": jnp.exp,
}
UNARY = ("reciprocal", "sqrt", "exp", "exp_below_one")


def operands(name: str) -> tuple[jax.Array, ...]:
    generator = np.random.default_rng(15)
    draw = lambda low, high: jnp.asarray(generator.uniform(low, high, 500), jnp.float32)
    if name == "exp_below_one":
        return (draw(-60, 0),)
    return (draw(0.1, 2),) if name in UNARY else (draw(0.1, 2), draw(2, 5))


@pytest.mark.parametrize("name", PLAIN)
def test_derivative_is_that_of_the_plain_operation(name):
    values = operands(name)
    tangents = tuple(jnp.cos(jnp.arange(500.0) + i) for i in range(len(values)))
    exact = getattr(arithmetic, name)
    got, slope = jax.jvp(exact, values, tangents)
    # Compiled without the value, as it is inside: with it XLA may divide where it otherwise multiplies by a rsqrt.
    plain_slope = jax.jit(lambda v, t: jax.jvp(PLAIN[name], v, t)[1])(values, tangents)
    assert_same_bits(got, exact(*values))
    assert_same_bits(slope, plain_slope)
    mine = jax.grad(lambda v: exact(*v).sum())(values)
    theirs = jax.jit(jax.grad(lambda v: PLAIN[name](*v).sum()))(values)
    for m, t in zip(mine, theirs, strict=True):
        assert_same_bits(m, t)
        assert np.abs(m).max() > 0


@pytest.mark.parametrize("name", PLAIN)
def test_vmap_and_jit_do_not_change_a_bit(name):
    values = tuple(jnp.asarray(x) for x in (PAIRS["tiny"] if name not in UNARY else PAIRS["tiny"][:1]))
    values = tuple(v[:1000].reshape(10, 100) for v in values)
    exact = getattr(arithmetic, name)
    want = exact(*values)
    assert_same_bits(jax.vmap(exact)(*values), want)
    assert_same_bits(jax.jit(lambda v: exact(*v))(values), want)
