"""The backend's matrix product where it stands for sums in the machine's order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import F32, assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from plena_jax.machine import dots
from plena_jax.machine.sums import accumulate

SHAPE = (64, 64, 64)
needs_order = pytest.mark.skipif(not dots.adds_in_order(*SHAPE), reason="this backend adds up in another order")


def factors(seed: int, low: int = -20, high: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Rows with significands of 8 bits and a tile with 4, of magnitudes 2**low to 2**high; some zeros of both signs."""
    random = np.random.default_rng(seed)

    def numbers(bits: int) -> np.ndarray:
        whole = random.integers(-(1 << bits) + 1, 1 << bits, (64, 64)).astype(F32)
        values = np.ldexp(whole, random.integers(low, high, (64, 64)))
        return np.where(random.random((64, 64)) < 0.1, F32(-0.0), values)

    return numbers(8), numbers(4)


@jax.jit
def by_dot(terms: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    total = jnp.zeros((64, 64), jnp.float32)
    for x, w in terms:
        total = dots.add_dot(total, x, w)
    return dots.lowered(total)


@jax.jit
def in_order(terms: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    total = jnp.zeros((64, 64), jnp.float32)
    for x, w in terms:
        total = accumulate(total, x, w)
    return total


@needs_order
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(-60, -12))
def test_the_bits_are_those_of_the_machines_order(seed: int, low: int) -> None:
    terms = [factors(seed, low, low + 20), factors(seed + 1, low, low + 20)]
    assert_same_bits(by_dot(terms), in_order(terms))


@needs_order
def test_another_order_of_terms_has_other_bits() -> None:
    """What the tests here could not tell apart would say nothing."""
    x, w = factors(0, -20, 5)
    forth, back = (np.asarray(by_dot([(x[:, ::step], w[::step])])) for step in (1, -1))
    assert 0.2 < np.mean(forth.view(np.uint32) != back.view(np.uint32)) < 1


@needs_order
@pytest.mark.parametrize("exponent", [-66, -70, -74])
def test_sums_below_the_smallest_normal_number_are_right_or_not_finite(exponent: int) -> None:
    """A sum that may be rounded when it is lowered is refused, whatever is added to it."""
    small, large = factors(1, exponent, exponent + 4), factors(2, -3, 3)
    for terms in ([small, small], [small, large]):
        found, wanted = np.asarray(by_dot(terms)), np.asarray(in_order(terms))
        good = np.isfinite(found)
        assert_same_bits(found[good], wanted[good])
    assert not np.isfinite(np.asarray(by_dot([factors(1, -80, -70)]))).all()


@needs_order
def test_sums_that_are_too_large_are_not_finite() -> None:
    x, w = factors(3, 30, 40)
    assert np.isfinite(np.asarray(in_order([(x, w)]))).all()
    assert not np.isfinite(np.asarray(by_dot([(x, w)]))).any()


def test_a_backend_that_adds_in_another_order_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    in_loop = dots._in_a_loop
    monkeypatch.setattr(dots, "_in_a_loop", lambda x, w: in_loop(x[:, ::-1].copy(), w[::-1].copy()))
    assert not dots._tried(*SHAPE)


def test_lanes_of_vmap_add_up_in_order_too() -> None:
    pairs = [factors(seed, -20, 5) for seed in range(3)]
    x, w = (np.stack([pair[i] for pair in pairs]) for i in (0, 1))
    zero = jnp.zeros((64, 64), jnp.float32)
    found = jax.jit(jax.vmap(lambda x, w: dots.lowered(dots.add_dot(zero, x, w))))(x, w)
    for lane, pair in zip(found, pairs, strict=True):
        assert_same_bits(lane, in_order([pair]))


@pytest.mark.parametrize("add", [dots.add_dot, dots.add_quickly])
def test_derivatives_are_those_of_the_plain_product(add: object) -> None:
    (x, w), (x_moved, w_moved) = factors(4, -3, 3), factors(5, -3, 3)
    zero = jnp.zeros((64, 64), jnp.float32)
    function = lambda x, w: dots.lowered(add(zero, x, w))  # type: ignore[operator]
    _, tangent = jax.jvp(function, (x, w), (x_moved, w_moved))
    wanted = x_moved.astype(np.float64) @ w + x.astype(np.float64) @ w_moved
    np.testing.assert_allclose(tangent, wanted, rtol=1e-4, atol=1e-3 * np.abs(wanted).max())
    assert not np.allclose(tangent, x_moved.astype(np.float64) @ w, rtol=1e-4, atol=1e-3 * np.abs(wanted).max())
