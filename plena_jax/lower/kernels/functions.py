"""Functions of single elements that take many instructions: signs, logarithms, error functions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from plena_jax.lower.kernels.elementwise import ERF, register_formula
from plena_jax.lower.sequence import Algebra, Value

#: Times this twice, everything but zero is at least one, subnormal numbers included.
HUGE = 2.0**127

# -- signs ------------------------------------------------------------------------------------------------------------


def abs_reference(x: jax.Array) -> jax.Array:
    """``abs(x)``."""
    return jnp.abs(x)


def absolute(v: Algebra, x: Value) -> Value:
    """``max(x, 0) - min(x, 0)``, exact."""
    return v.sub(v.max(x, 0.0), v.min(x, 0.0))


def sign_reference(x: jax.Array) -> jax.Array:
    """-1, 0 or 1; of NaN NaN."""
    return jnp.sign(x)


def sign(v: Algebra, x: Value) -> Value:
    """x times 2 ** 254, clamped to -1..1: exact."""
    return v.min(v.max(v.mul(v.mul(x, HUGE), HUGE), -1.0), 1.0)


def heaviside_reference(x: jax.Array) -> jax.Array:
    """1 where x is above 0, else 0; of NaN NaN."""
    return jnp.where(jnp.isnan(x), x, jnp.heaviside(x, jnp.float32(0)))


def heaviside(v: Algebra, x: Value) -> Value:
    """``max(x, 0)`` times 2 ** 254, at most 1: exact."""
    return v.min(v.mul(v.mul(v.max(x, 0.0), HUGE), HUGE), 1.0)


def is_zero_reference(x: jax.Array) -> jax.Array:
    """1 where x is 0, else 0; of NaN NaN."""
    return jnp.where(jnp.isnan(x), x, (x == 0).astype(jnp.float32))


def is_zero(v: Algebra, x: Value) -> Value:
    """``1 - sign(x) ** 2``, exact."""
    s = sign(v, x)
    return v.from_number(1.0, v.mul(s, s))


# -- logarithms -------------------------------------------------------------------------------------------------------


def _polynomial(v: Algebra, x: Value, coefficients: list[float]) -> Value:
    """By Horner's rule; the coefficients from the constant one on."""
    result = v.mul(x, coefficients[-1])
    for c in reversed(coefficients[1:-1]):
        result = v.mul(v.add(result, c), x)
    return v.add(result, coefficients[0])


def _twice_atanh(v: Algebra, above_one: Value, terms: int) -> Value:
    """``log(1 + a)`` of a between -1/3 and 1, the sooner accurate the smaller: 2 * atanh(a / (a + 2)) as a series."""
    t = v.mul(v.reciprocal(v.add(above_one, 2.0)), above_one)
    series = _polynomial(v, v.mul(t, t), [2 / (2 * n + 1) for n in range(terms)])
    return v.mul(series, t)


def _reduced(v: Algebra, x: Value) -> tuple[Value, Value]:
    """(f, n): a power of two for which ``f * x`` is between sqrt(1/2) and sqrt(2), and log2 of 1 / f."""
    below = v.min(v.mul(v.max(v.from_number(1.0, x), 0.0), HUGE), 1.0)
    factor = v.max(v.mul(below, 2.0**126), 1.0)
    exponent = v.mul(below, -126.0)
    reduced = v.mul(x, factor)
    for k in (64, 32, 16, 8, 4, 2, 1):
        above = v.min(v.mul(v.max(v.sub(reduced, 2.0 ** (k - 0.5)), 0.0), HUGE), 1.0)
        step = v.max(v.from_number(1.0, above), 2.0**-k)
        factor = v.mul(factor, step)
        exponent = v.add(v.mul(above, float(k)), exponent)
        if k > 1:
            reduced = v.mul(reduced, step)
    return factor, exponent


def _minus_infinity(v: Algebra, result: Value, x: Value) -> Value:
    """The result, but minus infinity where x is not above 0."""
    none = v.from_number(1.0, v.min(v.mul(v.mul(x, HUGE), HUGE), 1.0))
    return v.sub(result, v.mul(v.mul(none, HUGE), HUGE))


def log_reference(x: jax.Array) -> jax.Array:
    """``log(x)``, accurate near 1 too; minus infinity of 0 and below, NaN of infinity, wrong below 1.2e-38."""
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1)), -jnp.inf)


def log(v: Algebra, x: Value) -> Value:
    """Times a power of two, found by comparisons, x is between sqrt(1/2) and sqrt(2): a = f * x - 1.

    Then ``n * log(2) + 2 * atanh(a / (a + 2))``, the latter as a series of 5 terms.
    """
    factor, exponent = _reduced(v, x)
    result = v.add(_twice_atanh(v, v.sub(v.mul(factor, x), 1.0), 5), v.mul(exponent, math.log(2)))
    return _minus_infinity(v, result, x)


def log1p_reference(x: jax.Array) -> jax.Array:
    """``log(1 + x)``, accurate near 0; minus infinity of -1 and below, NaN of infinity."""
    return jnp.where(x > -1, jnp.log1p(jnp.where(x > -1, x, 0)), -jnp.inf)


def log1p(v: Algebra, x: Value) -> Value:
    """As log of 1 + x, with a = f * x + (f - 1), which is x if f is 1."""
    one_more = v.add(x, 1.0)
    factor, exponent = _reduced(v, one_more)
    above_one = v.add(v.mul(factor, x), v.sub(factor, 1.0))
    result = v.add(_twice_atanh(v, above_one, 5), v.mul(exponent, math.log(2)))
    return _minus_infinity(v, result, one_more)


def softplus_reference(x: jax.Array) -> jax.Array:
    """``log(1 + exp(x))``."""
    return jax.nn.softplus(x)


def softplus(v: Algebra, x: Value) -> Value:
    """``max(x, 0) + log(1 + exp(-abs(x)))``, that logarithm as a series of 9 terms."""
    small = v.exp(v.sub(v.min(x, 0.0), v.max(x, 0.0)))
    return v.add(_twice_atanh(v, small, 9), v.max(x, 0.0))


# -- exponentials -----------------------------------------------------------------------------------------------------


def expm1_reference(x: jax.Array) -> jax.Array:
    """``exp(x) - 1``, accurate near 0; the machine clamps x to -88..88."""
    return jnp.expm1(x)


def expm1(v: Algebra, x: Value) -> Value:
    """``e * p + (e - 1)`` with c = x clamped to -0.35..0.35, p = exp(c) - 1 as a series, e = exp(x - c)."""
    near = v.min(v.max(x, -0.35), 0.35)
    far = v.exp(v.sub(x, near))
    series = v.mul(_polynomial(v, near, [1 / math.factorial(n) for n in range(1, 8)]), near)
    return v.add(v.mul(series, far), v.sub(far, 1.0))


def erf_reference(x: jax.Array) -> jax.Array:
    """The error function."""
    return jax.scipy.special.erf(x)


def erf(v: Algebra, x: Value) -> Value:
    """Between -0.5 and 0.5 a series of 7 terms; else formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7.

    With s the series of x clamped to there, and m 1 outside, 0 inside: s + m * (formula - s).
    """
    near = v.min(v.max(x, -0.5), 0.5)
    terms = [2 / math.sqrt(math.pi) * (-1) ** n / math.factorial(n) / (2 * n + 1) for n in range(7)]
    series = v.mul(_polynomial(v, v.mul(near, near), terms), near)
    magnitude = absolute(v, x)
    p, coefficients = ERF
    t = v.reciprocal(v.add(v.mul(magnitude, p), 1.0))
    tail = v.mul(_polynomial(v, t, list(coefficients)), t)
    tail = v.mul(v.exp(v.from_number(0.0, v.mul(magnitude, magnitude))), tail)
    formula = v.mul(v.from_number(1.0, tail), sign(v, x))
    outside = heaviside(v, v.sub(magnitude, 0.5))
    return v.add(v.mul(v.sub(formula, series), outside), series)


register_formula("abs", abs_reference, absolute, keeps_zero=True)
register_formula("sign", sign_reference, sign, keeps_zero=True)
register_formula("heaviside", heaviside_reference, heaviside, keeps_zero=True)
register_formula("is_zero", is_zero_reference, is_zero, keeps_zero=False)
register_formula("log", log_reference, log, keeps_zero=False, guarded=True)
register_formula("log1p", log1p_reference, log1p, keeps_zero=True)
register_formula("softplus", softplus_reference, softplus, keeps_zero=False)
register_formula("expm1", expm1_reference, expm1, keeps_zero=True)
register_formula("erf", erf_reference, erf, keeps_zero=True)
