"""plena_jax.machine.sums against NumPy float32, one addition after the other, in the orders of docs/numerics.md."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import F32, assert_same_bits, assert_same_values, bits_of, floats_of, keep_significand

from plena_jax.machine import sums

# -- models: NumPy adds and multiplies float32 with subnormals, one rounding each --------------------------------------


def one_by_one(terms: np.ndarray) -> np.ndarray:
    """Over the first axis, from the first term on."""
    with np.errstate(all="ignore"):
        return reduce(np.add, terms)


def matmul_model(x: np.ndarray, w: np.ndarray, block: int = 128) -> np.ndarray:
    """Along k one by one, in blocks of 128, block sums one by one."""
    with np.errstate(all="ignore"):
        products = x.T[:, :, None] * w[:, None, :]
    blocks = [one_by_one(products[start : start + block]) for start in range(0, len(w), block)]
    return one_by_one(np.stack(blocks))


def accumulate_model(a: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return a + matmul_model(x, w)


def dots_model(a: np.ndarray, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Eight partial sums (k modulo 8), then halves, then neighbours; other lengths one by one."""
    with np.errstate(all="ignore"):
        products = x * rows
        if len(x) % 8:
            return a + one_by_one(products.T)
        s = one_by_one(products.reshape(len(rows), -1, 8).swapaxes(0, 1)).T
        s = [s[i] + s[i + 4] for i in range(4)]
        return a + ((s[0] + s[1]) + (s[2] + s[3]))


def row_sum_model(rows: np.ndarray) -> np.ndarray:
    """Vectors of 8 in four interleaved groups, then what is left, then the other groups, then lane by lane from 0."""
    m, n = rows.shape
    vectors = [rows[:, i : i + 8] for i in range(0, n - n % 8, 8)]
    turns = len(vectors) // 4 * 4
    groups = [one_by_one(np.stack(vectors[g:turns:4])) for g in range(4)] if turns else [np.zeros((m, 8), F32)]
    total = one_by_one(np.stack([groups[0], *vectors[turns:], *groups[1:]]))
    lanes = [total[:, i] for i in range(8)] if vectors else []
    return one_by_one(np.stack([np.zeros(m, F32), *[rows[:, i] for i in range(n - n % 8, n)], *lanes]))


def row_max_model(row: np.ndarray) -> np.float32:
    """Fold lanes in the order 0 4 2 6 1 5 3 7, each over its vectors; of equal ones (zeros) the last decides."""
    most = F32(-np.inf)
    for lane in (0, 4, 2, 6, 1, 5, 3, 7):
        for value in row[lane::8]:
            if np.isnan(value) or np.isnan(most):
                most = F32(np.nan)
            elif value >= most:
                most = value
    return most


# -- operands ---------------------------------------------------------------------------------------------------------

Draw = Callable[..., np.ndarray]


def normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(F32)


def scaled(generator: np.random.Generator, *shape: int, low: int = -25, high: int = 25) -> np.ndarray:
    return np.ldexp(generator.standard_normal(shape), generator.integers(low, high, shape)).astype(F32)


def zeros(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.choice(F32([0.0, -0.0, 0.0, -0.0, 1.5, -1.5]), shape)


def minus_zeros(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return np.full(shape, F32(-0.0))


def tiny(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Small multiples of the smallest subnormal."""
    return np.ldexp(generator.integers(-40, 41, shape), generator.integers(-149, -141, shape)).astype(F32)


def whole(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Small integers: their product with a multiple of the smallest subnormal is one too."""
    return generator.integers(-9, 10, shape).astype(F32)


def positive(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.integers(1, 10, shape).astype(F32)


def huge(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return scaled(generator, *shape, low=40, high=63)


def overflowing(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return scaled(generator, *shape, low=50, high=66)


def enormous(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return scaled(generator, *shape, low=90, high=122)


def special(generator: np.random.Generator, *shape: int) -> np.ndarray:
    x = normal(generator, *shape)
    return np.where(generator.random(shape) < 0.02, generator.choice(F32([np.inf, -np.inf, np.nan]), shape), x)


def mixed(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows of huge ones beside rows of tiny ones."""
    rows = generator.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.5
    return np.where(rows, huge(generator, *shape), tiny(generator, *shape))


def rounded(draw: Draw, bits: int) -> Draw:
    """Significands of so many bits: 8 in vector SRAM, of which there are few in matrix SRAM too."""
    return lambda *arguments: keep_significand(draw(*arguments), bits)


#: name: what a, x and w are drawn from
OPERANDS: dict[str, tuple[Draw, Draw, Draw]] = {
    "normal": (normal, normal, normal),
    "scaled": (scaled, scaled, scaled),
    "zeros": (zeros, zeros, zeros),
    "minus zeros": (minus_zeros, minus_zeros, positive),
    "tiny x": (tiny, tiny, whole),
    "tiny w": (tiny, whole, tiny),
    "tiny a": (tiny, zeros, normal),
    "tiny products": (tiny, lambda *a: np.ldexp(whole(*a), -75), lambda *a: np.ldexp(whole(*a), -74)),
    "huge": (huge, huge, huge),
    "overflowing": (overflowing, overflowing, overflowing),
    "huge x, tiny w": (normal, huge, tiny),
    "enormous x, tiny w": (normal, enormous, tiny),
    "tiny x, enormous w": (normal, tiny, enormous),
    "huge a": (huge, normal, normal),
    "huge a, tiny x": (huge, tiny, whole),
    "special": (normal, special, special),
    "special a": (special, normal, normal),
    "mixed": (normal, mixed, whole),
}
MATRIX_SHAPES = [
    (1, 1, 1),
    (2, 2, 8),
    (4, 4, 64),
    (1, 4, 64),
    (3, 5, 13),
    (8, 8, 4),
    (2, 3, 128),
    (2, 2, 129),
    (2, 2, 300),
]
DOT_SHAPES = [(1, 1), (4, 8), (8, 16), (4, 64), (64, 16), (3, 13), (2, 128), (2, 256)]
ROW_SHAPES = [(1, 1), (3, 7), (3, 8), (2, 9), (2, 16), (3, 24), (3, 32), (3, 40), (3, 64), (2, 75), (2, 128), (1, 256)]


def operands(name: str, m: int, n: int, k: int, seed: int, kinds=OPERANDS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw_a, draw_x, draw_w = kinds[name]
    generator = np.random.default_rng([seed, m, n, k])
    return draw_a(generator, m, n), draw_x(generator, m, k), draw_w(generator, k, n)


# -- products with a matrix -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MATRIX_SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERANDS)
def test_products_add_along_k_in_blocks(name, shape):
    for seed in range(4):
        a, x, w = operands(name, *shape, seed)
        assert_same_values(sums.accumulate(a, x, w), accumulate_model(a, x, w))


@pytest.mark.parametrize("shape", [(16, 64, 64), (64, 64, 64)], ids=str)
@pytest.mark.parametrize("name", ["normal", "tiny x", "huge", "special"])
def test_large_products_take_the_same_order(name, shape):
    a, x, w = operands(name, *shape, 0)
    assert_same_values(sums.accumulate(a, x, w), accumulate_model(a, x, w))


def test_operands_reach_what_they_are_meant_to():
    # The cases above are worth something only if subnormal results, infinities and NaN occur in them.
    results = {name: accumulate_model(*operands(name, 4, 4, 64, 0)) for name in OPERANDS}
    assert (np.abs(results["tiny x"]) < 2.0**-126).any()
    assert (np.abs(results["tiny w"]) < 2.0**-126).any()
    assert np.isinf(results["overflowing"]).any()
    assert np.isnan(results["overflowing"]).any()
    assert np.isfinite(results["huge"]).all()
    assert np.abs(results["huge"]).max() > 2.0**120
    assert np.isnan(results["special"]).any()
    assert np.signbit(results["minus zeros"]).all()


#: What :func:`sums.accumulate_lifted` is for: no subnormals in w, no large results.
QUICK: dict[str, tuple[Draw, Draw, Draw]] = {
    "full": (normal, normal, normal),
    "normal": (normal, rounded(normal, 8), rounded(normal, 16)),
    "scaled": (
        normal,
        rounded(lambda *a: scaled(*a, low=-12, high=12), 12),
        rounded(lambda *a: scaled(*a, low=-12, high=12), 12),
    ),
    "zeros": (zeros, zeros, zeros),
    "minus zeros": (minus_zeros, minus_zeros, positive),
    "tiny x": (tiny, tiny, whole),
    "tiny a": (tiny, zeros, rounded(normal, 16)),
}


@pytest.mark.parametrize("shape", MATRIX_SHAPES, ids=str)
@pytest.mark.parametrize("name", QUICK)
def test_quick_products_are_the_same_without_subnormals_in_w(name, shape):
    for seed in range(4):
        a, x, w = operands(name, *shape, seed, QUICK)
        assert_same_bits(sums.accumulate_lifted(a, x, w), accumulate_model(a, x, w))


@pytest.mark.parametrize("name", ["huge", "overflowing", "special"])
def test_quick_products_that_are_too_large_are_never_finite(name):
    for seed in range(4):
        a, x, w = (keep_significand(part, 12) for part in operands(name, 4, 4, 64, seed))
        got, want = np.asarray(sums.accumulate_lifted(a, x, w)), accumulate_model(a, x, w)
        finite = np.isfinite(got)
        assert_same_bits(got[finite], want[finite])
        assert not finite.all()
        # They stay so.
        again = np.asarray(sums.accumulate_lifted(got, np.ones_like(x), np.ones_like(w)))
        assert not np.isfinite(again[~finite]).any()


@pytest.mark.parametrize("name", OPERANDS)
def test_quick_products_are_repeated_where_they_will_not_do(name):
    subnormal = name in ("tiny w", "huge x, tiny w", "enormous x, tiny w")
    a, x, w = operands(name, 8, 16, 64, 0)
    got = jax.jit(sums.accumulate_quickly)(a, x, w, subnormal)
    assert_same_values(got, accumulate_model(a, x, w))


def test_the_sum_of_no_rounding_is_the_product():
    x, w = np.arange(-8, 8, dtype=F32).reshape(2, 8), np.arange(24, dtype=F32).reshape(8, 3)
    assert_same_bits(sums.accumulate(np.ones((2, 3), F32), x, w), x @ w + 1)


def test_other_orders_of_products_differ():
    _, x, w = operands("normal", 4, 4, 300, 0)
    got = np.asarray(sums.accumulate(np.zeros((4, 4), F32), x, w))
    transposed = np.pad(w.T, [(0, 0), (0, 4)])
    others = {
        "backwards": matmul_model(x[:, ::-1], w[::-1]),
        "in one block": matmul_model(x, w, 300),
        "in blocks of 64": matmul_model(x, w, 64),
        "rounded once": (x.astype(np.float64) @ w.astype(np.float64)).astype(F32),
        "in eight lanes": np.stack(
            [dots_model(np.zeros(4, F32), padded, transposed) for padded in np.pad(x, [(0, 0), (0, 4)])]
        ),
    }
    for name, other in others.items():
        assert (bits_of(got) != bits_of(other)).any(), name


def test_the_accumulator_is_added_last():
    a, x, w = operands("normal", 4, 4, 64, 1)
    with np.errstate(all="ignore"):
        first = reduce(np.add, [a, *(x.T[:, :, None] * w[:, None, :])])
    got = sums.accumulate(a, x, w)
    assert_same_bits(got, accumulate_model(a, x, w))
    assert (bits_of(got) != bits_of(first)).any()


# -- sums over lanes --------------------------------------------------------------------------------------------------


def dot_operands(name: str, n: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, x, w = operands(name, 1, n, k, seed)
    return a[0], x[0], np.ascontiguousarray(w.T)


@pytest.mark.parametrize("shape", DOT_SHAPES, ids=str)
@pytest.mark.parametrize("name", OPERANDS)
def test_dots_add_in_eight_lanes(name, shape):
    for seed in range(4):
        a, x, rows = dot_operands(name, *shape, seed)
        assert_same_values(sums.accumulate_dots(a, x, rows), dots_model(a, x, rows))


def test_other_orders_of_dots_differ():
    a, x, rows = dot_operands("normal", 16, 64, 0)
    got = bits_of(sums.accumulate_dots(a, x, rows))
    assert (got != bits_of(accumulate_model(a[None], x[None], rows.T)[0])).any()
    assert (got != bits_of(dots_model(a, x[::-1], rows[:, ::-1]))).any()


@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("draw", [normal, scaled, zeros, minus_zeros, tiny, huge, special, mixed, enormous])
def test_rows_add_in_four_groups_of_eight_lanes(draw, shape):
    for seed in range(4):
        rows = draw(np.random.default_rng([seed, *shape]), *shape)
        assert_same_values(sums.row_sum(rows), row_sum_model(rows), rows[:, 0])


def test_a_row_of_minus_zeros_adds_up_to_zero():
    assert bits_of(sums.row_sum(np.full((1, 64), F32(-0.0))))[0] == 0


def test_other_orders_of_rows_differ():
    rows = normal(np.random.default_rng(0), 64, 64)
    got = bits_of(sums.row_sum(rows))
    others = {
        "one by one": one_by_one(rows.T),
        "backwards": row_sum_model(np.ascontiguousarray(rows[:, ::-1])),
        "lanes only": np.array([dots_model(F32([0]), np.ones(64, F32), row[None])[0] for row in rows]),
        "rounded once": rows.astype(np.float64).sum(axis=1).astype(F32),
        "left over first": row_sum_model(np.roll(rows, 8, axis=1)),
    }
    for name, other in others.items():
        assert (got != bits_of(other)).any(), name


# -- maxima -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 8, 16, 24, 64, 75])
@pytest.mark.parametrize("draw", [normal, tiny, scaled, huge, minus_zeros, mixed])
def test_the_largest_lane_wins(draw, n):
    rows = draw(np.random.default_rng(n), 40, n)
    assert_same_bits(sums.row_max(rows), np.array([row_max_model(row) for row in rows]))
    if draw is not minus_zeros:
        np.testing.assert_array_equal(sums.row_max(rows), rows.max(axis=1))


@pytest.mark.parametrize("n", [2, 8, 9, 16, 64])
def test_of_zeros_the_last_in_folding_order_wins(n):
    generator = np.random.default_rng(n)
    rows = generator.choice(F32([0.0, -0.0]), (200, n))
    rows[100:] = np.where(generator.random((100, n)) < 0.5, F32(-1), rows[100:])
    want = np.array([row_max_model(row) for row in rows])
    assert_same_bits(sums.row_max(rows), want)
    assert np.signbit(want[want == 0]).any()
    assert not np.signbit(want[want == 0]).all()
    # It is not the greater zero; nor, where other lanes are smaller, the one in the last lane that has one.
    assert (np.signbit(want[:100]) != np.signbit(rows[:100]).all(axis=1)).any()
    last = np.array([[lane for lane in row if lane == 0][-1] if (row == 0).any() else F32(-1) for row in rows])
    assert (np.signbit(want) != np.signbit(last)).any() == (n > 2)


@pytest.mark.parametrize("n", [1, 8, 64])
def test_a_nan_anywhere_is_the_maximum(n):
    for lane in range(n):
        row = np.full((1, n), np.inf, F32)
        row[0, lane] = floats_of([0x7FC12345])[0]
        assert bits_of(sums.row_max(row))[0] == 0x7FC12345


def test_infinities_have_their_place():
    rows = np.full((2, 8), -np.inf, F32)
    rows[1, 3] = np.inf
    assert sums.row_max(rows).tolist() == [-np.inf, np.inf]


# -- transformations --------------------------------------------------------------------------------------------------


def test_vmap_does_not_change_a_bit():
    names = list(OPERANDS)
    batch = [np.stack(parts) for parts in zip(*(operands(name, 4, 4, 64, 3) for name in names), strict=True)]
    got = jax.vmap(sums.accumulate)(*batch)
    for i, name in enumerate(names):
        assert_same_bits(got[i], sums.accumulate(*(part[i] for part in batch)), name and np.full(16, i))
    rows = np.stack([normal(np.random.default_rng(0), 3, 64), tiny(np.random.default_rng(1), 3, 64)])
    for function in (sums.row_sum, sums.row_max):
        assert_same_bits(jax.vmap(function)(rows), np.stack([function(part) for part in rows]))


@pytest.mark.parametrize(
    "function, plain, shapes",
    [
        (sums.accumulate, lambda a, x, w: a + x @ w, [(2, 3), (2, 16), (16, 3)]),
        (sums.accumulate_lifted, lambda a, x, w: a + x @ w, [(2, 3), (2, 16), (16, 3)]),
        (sums.accumulate_dots, lambda a, x, rows: a + rows @ x, [(3,), (16,), (3, 16)]),
        (sums.row_sum, lambda rows: rows.sum(axis=-1), [(3, 40)]),
    ],
)
def test_derivative_is_that_of_the_plain_sum(function, plain, shapes):
    # Small integers: no order rounds, so that the two can be compared exactly.
    generator = np.random.default_rng(0)
    values = [jnp.asarray(whole(generator, *shape)) for shape in shapes]
    tangents = [jnp.asarray(whole(generator, *shape)) for shape in shapes]
    for mine, theirs in zip(jax.jvp(function, values, tangents), jax.jvp(plain, values, tangents), strict=True):
        assert_same_bits(mine, theirs)
        assert np.any(np.asarray(mine))
    (out, pull), (_, plain_pull) = jax.vjp(function, *values), jax.vjp(plain, *values)
    cotangent = jnp.asarray(whole(generator, *out.shape))
    for mine, theirs in zip(pull(cotangent), plain_pull(cotangent), strict=True):
        assert_same_bits(mine, theirs)


# -- which NaN --------------------------------------------------------------------------------------------------------


def named_model(a: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bits of the NaN that each sum is: that of the accumulator, else the first operand along k, the row's before."""
    found = np.zeros(a.shape, np.uint32)
    for i, j in np.ndindex(*a.shape):
        operands = [a[i, j], *np.stack([x[i], w[:, j]], axis=1).reshape(-1)]
        named = [bits_of(o).item() | 0x00400000 for o in operands if np.isnan(o)]
        found[i, j] = named[0] if named else 0xFFC00000
    return found


@pytest.mark.parametrize("seed", range(4))
def test_of_several_nan_the_first_one_counts(seed: int) -> None:
    random = np.random.default_rng(seed)
    payloads = floats_of(np.array([0x7FC00000, 0x7FE00000, 0xFFD00000, 0x7FA00000, 0xFF810000], np.uint32))

    def some(shape: tuple[int, ...], share: float) -> np.ndarray:
        values = random.normal(size=shape).astype(F32)
        return np.where(random.random(shape) < share, random.choice(payloads, shape), values)

    a, x, w = some((5, 6), 0.1), some((5, 24), 0.05), some((24, 6), 0.05)
    x[0, 3], x[0, 4], w[3], w[4] = np.inf, np.inf, 1, -1
    found = bits_of(sums.accumulate(a, x, w))
    is_nan = np.isnan(floats_of(found))
    wanted = named_model(a, x, w)
    assert is_nan.sum() > 10
    assert len(np.unique(found[is_nan])) > 2
    assert_same_bits(floats_of(found[is_nan]), floats_of(wanted[is_nan]))
    dots = bits_of(sums.accumulate_dots(a[1], x[1], w.T))
    of_dots = np.isnan(floats_of(dots))
    assert_same_bits(floats_of(dots[of_dots]), floats_of(named_model(a[1:2], x[1:2], w)[0][of_dots]))
