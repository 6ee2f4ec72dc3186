"""Semantics of all that works lane by lane: vector instructions and scalar forms (docs/machine.md 4.3 and 4.4).

One function serves a family: with rows or f registers as operands, and a row, an f register or an SRAM entry
as destination.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax import arithmetic
from plena_jax.bits import from_bits, is_nan
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Stage, semantic
from plena_jax.machine.view import View

_NAN = 0x7FC00000


@semantic("V_ADD_VV", "V_ADD_VF", "S_ADD_FP", stage=Stage.ROW)
@semantic("V_SUB_VV", "V_SUB_VF", "S_SUB_FP", stage=Stage.ROW, argument=lambda fields: 2 if fields.get("order") else 1)
def add(view: View, step: Step) -> jax.Array:
    """A + B, A - B, or A - B reversed, which is -(A - B) and so gives -0 where both are equal."""
    a, b = view.operand(step, "rs1"), view.operand(step, "rs2")
    total = arithmetic.add(a, jnp.where(step.argument == 0, b, -b))
    total = arithmetic.propagate_nan(total, a, b)
    return view.written(step, jnp.where(step.argument == 2, -total, total), a)


@semantic("V_MUL_VV", "V_MUL_VF", "S_MUL_FP", stage=Stage.ROW)
def multiply(view: View, step: Step) -> jax.Array:
    """A * B."""
    a, b = view.operand(step, "rs1"), view.operand(step, "rs2")
    return view.written(step, arithmetic.multiply(a, b), a)


@semantic("V_MAX_VF", stage=Stage.ROW)
@semantic("V_MIN_VF", stage=Stage.ROW, argument=lambda fields: 1)
@semantic("S_MAX_FP", stage=Stage.ROW, argument=lambda fields: 2)
def select(view: View, step: Step) -> jax.Array:
    """B if it is larger than A, or smaller, else A, so that ties and NaN keep A; V_* give NaN if B is."""
    a, b = view.operand(step, "rs1"), view.operand(step, "rs2")
    smallest, scalar = step.argument == 1, step.argument == 2
    chosen = jnp.where(arithmetic.less(jnp.where(smallest, b, a), jnp.where(smallest, a, b)), b, a)
    return view.written(step, jnp.where(is_nan(b) & ~scalar, from_bits(_NAN), chosen), a)


@semantic("V_EXP_V", "S_EXP_FP", stage=Stage.ROW)
def exp(view: View, step: Step) -> jax.Array:
    """exp(A clamped to -88 .. 88); inactive lanes are clamped too."""
    clamped = arithmetic.clamp_exponent(view.operand(step, "rs1"))
    return view.written(step, arithmetic.exp(clamped), clamped)


@semantic("V_RECI_V", "S_RECI_FP", stage=Stage.ROW)
def reciprocal(view: View, step: Step) -> jax.Array:
    """1 / A."""
    a = view.operand(step, "rs1")
    return view.written(step, arithmetic.reciprocal(a), a)


@semantic("S_SQRT_FP", stage=Stage.ROW)
def sqrt(view: View, step: Step) -> jax.Array:
    """sqrt(A)."""
    a = view.operand(step, "rs1")
    return view.written(step, arithmetic.sqrt(a), a)


@semantic("S_LD_FP", "S_ST_FP", stage=Stage.ROW)
def move(view: View, step: Step) -> jax.Array:
    """FP SRAM entry to f register, or back; the destination of a store is its record's rd."""
    return view.with_scalar(step, view.scalar(step.rs1, step.rs1_lane))
