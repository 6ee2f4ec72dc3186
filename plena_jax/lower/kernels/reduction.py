"""Sums, maxima and minima of each row, and scalars made into rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import LARGE, Kernel, masked_rows
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Entries, Rows, Shape, Tensor

# -- references -------------------------------------------------------------------------------------------------------


def sum_reference(x: jax.Array) -> jax.Array:
    """The sum of each row: [rows, 1]."""
    return jnp.sum(x, axis=1, keepdims=True)


def sum_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """The sum so far is rounded to a scalar after each block of MLEN columns."""
    return r.vector(r.row_sum(x))


def max_reference(x: jax.Array) -> jax.Array:
    """The maximum of each row: [rows, 1]. The machine begins with -3.39e38, so that minus infinity gives that."""
    return jnp.max(x, axis=1, keepdims=True)


def max_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """Rounded to a scalar."""
    return r.vector(r.row_max(x, -LARGE, -LARGE))


def min_reference(x: jax.Array) -> jax.Array:
    """The minimum of each row: [rows, 1]. The machine begins with 3.39e38, so that infinity gives that."""
    return jnp.min(x, axis=1, keepdims=True)


def min_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """Rounded to a scalar."""
    return r.vector(-r.row_max(-x, -LARGE, -LARGE))


# -- kernels ----------------------------------------------------------------------------------------------------------


def _shape(config: MachineConfig, x: Tensor) -> Shape:
    return x.shape[0], 1


def _workspace(kind: str, config: MachineConfig, x: Tensor) -> Workspace:
    """MLEN entries of FP SRAM; of maxima and minima a mask and a row for the lanes behind the last column."""
    return Workspace(rows=masked_rows(config, x.shape[1]) if kind != "sum" else 0, fp=config.mlen)


def _emit(kind: str, k: Kernel, out: Rows, x: Rows) -> None:
    """V_RED_SUM or V_RED_MAX of each block into a register, S_ST_FP, S_MAP_V_FP of that entry and zeros behind it.

    The minimum is minus the maximum of 0 - x. FP SRAM: -LARGE and LARGE of maxima, MLEN entries of workspace.
    Registers: f for the result and the seed.
    """
    b, last, extremum = k.b, x.blocks - 1, kind != "sum"
    with b.scope():
        seed = b.fp(-LARGE, "seed of the maximum") if extremum else b.fp_zero
        result = b.fp(purpose="result")
        k.clear_entries(k.entry, out.lanes)
        low = [k.lowest_behind(x.shape[1])[1]] if extremum and x.rest else []
        with k.each_row(x.shape[0], x, out, fixed=low) as at:
            b.s_add_fp(result, seed, b.fp_zero)
            for block in range(x.blocks):
                source = at(x, block)
                if kind == "min":
                    b.v_sub_vf(at(out), source, b.fp_zero, 0, 1)
                    source = at(out)
                if low and block == last:
                    b.v_add_vv(at(out), source, at(low[0]))
                    source = at(out)
                (b.v_red_max if extremum else b.v_red_sum)(result, source)
            if kind == "min":
                b.s_sub_fp(result, b.fp_zero, result)
            b.s_st_fp(result, b.zero, k.entry)
            b.s_map_v_fp(at(out), b.zero, k.entry)


# -- map_row ----------------------------------------------------------------------------------------------------------


def map_row_reference(values: jax.Array) -> jax.Array:
    """Entries of FP SRAM as a row of vector SRAM: [1, n]."""
    return values


def map_row_rounded(r: Rounded, values: jax.Array) -> jax.Array:
    """Rounded to vector SRAM."""
    return r.vector(values)


def map_row_shape(config: MachineConfig, values: Tensor) -> Shape:
    """That of the values, which are a row."""
    expect("map_row", f"rows of values ({values.name})", 1, values.shape[0])
    return values.shape


def map_row_emit(k: Kernel, out: Rows, values: Entries) -> None:
    """S_MAP_V_FP for each MLEN entries. Behind the last one FP SRAM has zeros."""
    b = k.b
    with b.scope():
        row, entry = b.gp(out.address, out.name), b.gp(values.first, values.name)
        with b.loop(out.blocks, (row, out.pitch), (entry, out.lanes)):
            b.s_map_v_fp(row, entry, 0)


for _kind, _reference, _rounded, _cost in (
    (
        "sum",
        sum_reference,
        sum_rounded,
        "rows * (3 + blocks) and the steps of the row pointers; 3 * MLEN to clear FP SRAM",
    ),
    ("max", max_reference, max_rounded, "as reduce_sum; one more for each row if its last block is not full"),
    ("min", min_reference, min_rounded, "as reduce_max; one more for each block and each row"),
):
    register(
        Operator(
            name=f"reduce_{_kind}",
            family="reduction",
            reference=_reference,
            rounded=_rounded,
            shape=_shape,
            emit=partial(_emit, _kind),
            workspace=partial(_workspace, _kind),
            cost=_cost,
        )
    )
register(
    Operator(
        name="map_row",
        family="reduction",
        reference=map_row_reference,
        rounded=map_row_rounded,
        shape=map_row_shape,
        emit=map_row_emit,
        places={"values": ("fp_sram",)},
        cost="4 for each MLEN entries",
    )
)
