"""Semantics of the scalar units (isa.md sections 4.4 and 4.5). Integer arithmetic is in control.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax import arithmetic
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.registry import Stage, Target, semantic
from plena_jax.machine.view import View, round_scalar


def _set(view: View, step: Step, value: jax.Array) -> jax.Array:
    return view.with_f(step.rd, round_scalar(value))


@semantic("S_ADD_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_add_fp(view: View, step: Step) -> jax.Array:
    """A + B."""
    return _set(view, step, arithmetic.add(view.f(step.rs1), view.f(step.rs2)))


@semantic("S_SUB_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_sub_fp(view: View, step: Step) -> jax.Array:
    """A - B."""
    return _set(view, step, arithmetic.subtract(view.f(step.rs1), view.f(step.rs2)))


@semantic("S_MAX_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_max_fp(view: View, step: Step) -> jax.Array:
    """B if it is larger than A, else A: NaN in A stays, NaN in B is ignored."""
    a, b = view.f(step.rs1), view.f(step.rs2)
    return _set(view, step, jnp.where(arithmetic.less(a, b), b, a))


@semantic("S_MUL_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_mul_fp(view: View, step: Step) -> jax.Array:
    """A * B."""
    return _set(view, step, arithmetic.multiply(view.f(step.rs1), view.f(step.rs2)))


@semantic("S_EXP_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_exp_fp(view: View, step: Step) -> jax.Array:
    """exp(A clamped to -88 .. 88)."""
    return _set(view, step, arithmetic.exp(arithmetic.clamp_exponent(view.f(step.rs1))))


@semantic("S_RECI_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_reci_fp(view: View, step: Step) -> jax.Array:
    """1 / A."""
    return _set(view, step, arithmetic.reciprocal(view.f(step.rs1)))


@semantic("S_SQRT_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_sqrt_fp(view: View, step: Step) -> jax.Array:
    """sqrt(A)."""
    return _set(view, step, arithmetic.sqrt(view.f(step.rs1)))


@semantic("S_LD_FP", Stage.ROW, target=Target.F_RD, region="f")
def s_ld_fp(view: View, step: Step) -> jax.Array:
    """FP SRAM entry to f register."""
    return view.with_f(step.rd, view.sram(view.layout.fp_sram, step.rs1)[0])


@semantic("S_ST_FP", Stage.ROW, target=Target.SRAM_RS1, region="fp_sram")
def s_st_fp(view: View, step: Step) -> jax.Array:
    """f register to FP SRAM entry."""
    lanes = view.config.vlen
    row = view.row(view.layout.fp_sram + step.rs1 // lanes)
    return view.with_lane(row, step.rs1 % lanes, view.f(step.rd))


@semantic("S_MAP_V_FP", Stage.ROW, target=Target.VRAM_RD)
def s_map_v_fp(view: View, step: Step) -> jax.Array:
    """VLEN entries of FP SRAM to a row."""
    return view.round(view.sram(view.layout.fp_sram, step.rs1, view.config.vlen))


@semantic("S_ST_INT", Stage.ROW, target=Target.SRAM_RS1, region="int_sram")
def s_st_int(view: View, step: Step) -> jax.Array:
    """gp register to INT SRAM entry: ``cells`` holds its bit pattern."""
    lanes = view.config.vlen
    row = view.row(view.layout.int_sram + step.rs1 // lanes)
    return view.with_lane(row, step.rs1 % lanes, lax.bitcast_convert_type(step.rd, jnp.float32))
