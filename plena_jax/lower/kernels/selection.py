"""Comparisons, and choices by them; made of operators of one and two operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from plena_jax.lower.operators import Operator, register
from plena_jax.lower.tensors import Tensor

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph


def greater_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 where ``x > y``, else 0; one row, one column or one number is repeated.

    Exact of finite operands, as the machine's formats hold them; equal infinities, and NaN, give NaN.
    """
    return (x > y).astype(jnp.float32)


def greater_expand(g: Graph, x: Tensor, y: Tensor) -> Tensor:
    """sub, then heaviside: a difference is zero only of equal operands, as there are subnormal numbers."""
    return g.apply("heaviside", g.apply("sub", x, y))


def equal_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """1 where ``x == y``, else 0; one row, one column or one number is repeated. As greater."""
    return (x == y).astype(jnp.float32)


def equal_expand(g: Graph, x: Tensor, y: Tensor) -> Tensor:
    """sub, then is_zero."""
    return g.apply("is_zero", g.apply("sub", x, y))


def select_reference(mask: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """x where the mask is 1, y where it is 0; one row, one column or one number of any is repeated.

    Exact of finite operands; infinities and NaN make NaN where they are not chosen.
    """
    return jnp.where(mask > 0.5, x, y)


def select_expand(g: Graph, mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """``mask * x + (1 - mask) * y``."""
    return g.apply("add", g.apply("mul", mask, x), g.apply("mul", g.apply("subtract_from", mask, number=1.0), y))


for _name, _reference, _expand, _cost in (
    ("greater", greater_reference, greater_expand, "sub and heaviside"),
    ("equal", equal_reference, equal_expand, "sub and is_zero"),
    ("select", select_reference, select_expand, "two mul, subtract_from and add"),
):
    register(Operator(name=_name, family="selection", reference=_reference, expand=_expand, cost=_cost))
