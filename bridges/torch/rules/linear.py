"""Products of matrices."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..registry import rule


@rule("aten.linear.default")
def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x weight' + bias; the weight is contracted where it is, without a transposed copy."""
    contracted = (x.ndim - 1,), (weight.ndim - 1,)
    y = lax.dot_general(x, weight, (contracted, ((), ())), preferred_element_type=jnp.result_type(x, weight))
    return y if bias is None else y + bias


@rule(*(f"aten.{name}.default" for name in ("mm", "bmm", "matmul", "mv", "dot")))
def matmul(a: Array, b: Array) -> Array:
    """a b, for each of the leading dimensions."""
    if a.ndim == b.ndim > 2 and a.shape[:-2] == b.shape[:-2]:
        # jnp.matmul takes leading dimensions of size 1 out and puts them back.
        return jnp.einsum("...qk,...kd->...qd", a, b)
    return jnp.matmul(a, b)


rule("aten.outer.default")(jnp.outer)


def _sum(x: Any, product: Any, beta: float, alpha: float) -> Array:
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (x if beta == 1 else x * beta)


@rule("aten.addmm.default", "aten.baddbmm.default", "aten.addmv.default")
def addmm(x: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    """beta x + alpha a b."""
    return _sum(x, matmul(a, b), beta, alpha)


@rule("plena.affine.default")
def affine(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """x weight + bias, for rows in any number of dimensions."""
    y = jnp.matmul(x, weight)
    return y if bias is None else y + bias


@rule("plena.matmul_transposed.default")
def matmul_transposed(a: Array, b: Array) -> Array:
    """a b', with b contracted where it is, without a transposed copy."""
    return jnp.einsum("...qd,...kd->...qk", a, b)


@rule("aten.einsum.default")
def einsum(equation: str, operands: list[Array]) -> Array:
    """Sums of products, in Einstein's notation."""
    return jnp.einsum(equation.replace(" ", ""), *operands)
