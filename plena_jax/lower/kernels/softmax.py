"""Softmax over rows of any length."""

from __future__ import annotations

import jax

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import LARGE, Kernel, masked_rows
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Rows, Shape, Tensor


def reference(x: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """Softmax of each row: ``exp(scale * x - max) / sum``."""
    return jax.nn.softmax(scale * x, axis=1)


def rounded(r: Rounded, x: jax.Array, *, scale: float = 1.0) -> jax.Array:
    """Scaled row, difference, exponential and quotient are rounded to vector SRAM; maximum, sum, 1 / sum to scalars."""
    if scale != 1.0:
        x = r.multiply(x, r.scalar(scale))
    e = r.exp(r.subtract(x, r.row_max(x, -LARGE, -LARGE)))
    return r.multiply(e, r.scalar_reciprocal(r.row_sum(e)))


def shape(config: MachineConfig, x: Tensor, *, scale: float = 1.0) -> Shape:
    """That of x."""
    return x.shape


def workspace(config: MachineConfig, x: Tensor, *, scale: float = 1.0) -> Workspace:
    """Two rows for the lanes behind the last column, if there are any."""
    return Workspace(rows=masked_rows(config, x.shape[1]))


def emit(k: Kernel, out: Rows, x: Rows, *, scale: float = 1.0) -> None:
    """One pass over the rows; maximum and sum are seeded for each, and stay in registers.

    FP SRAM: -LARGE, and scale unless it is 1. Registers: f for the seed, the scale, maximum and sum.
    """
    b, last = k.b, x.blocks - 1
    with b.scope():
        lowest = b.fp(-LARGE, "seed of the maximum")
        factor = b.fp(scale, "scale") if scale != 1.0 else None
        most, total = b.fp(purpose="maximum"), b.fp(purpose="sum")
        masks = k.lowest_behind(x.shape[1]) if x.rest else ()
        with k.each_row(x.shape[0], x, out, fixed=masks) as at:
            b.s_add_fp(most, lowest, b.fp_zero)
            source = x
            for block in range(x.blocks):
                if factor is not None:
                    b.v_mul_vf(at(out, block), at(x, block), factor)
                    source = out
                if block == last and masks:
                    b.v_add_vv(at(out, block), at(source, block), at(masks[1]))
                    b.v_red_max(most, at(out, block))
                else:
                    b.v_red_max(most, at(source, block))
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
            for block in range(x.blocks):
                row = at(out, block)
                b.v_sub_vf(row, row if masks and block == last else at(source, block), most)
                b.v_exp_v(row, row)
                if block == last and masks:
                    b.v_mul_vv(row, row, at(masks[0]))
                b.v_red_sum(total, row)
            b.s_reci_fp(total, total)
            for block in range(x.blocks):
                b.v_mul_vf(at(out, block), at(out, block), total)


register(
    Operator(
        name="softmax",
        family="softmax",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        shares=("x",),
        cost="rows * (5 + 5 * blocks) and the steps of the row pointers; with a scale one more for each block",
    )
)
