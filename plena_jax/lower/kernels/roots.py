"""Square roots, which only the scalar unit takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.registers import Fp, Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Rows, Shape, Tensor


def reference(x: jax.Array) -> jax.Array:
    """``sqrt(x)`` of finite numbers that are not negative."""
    return jnp.sqrt(x)


def rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """The root is rounded to a scalar, then to vector SRAM."""
    # An element gets to a register through a sum with zeros, which has no negative zero.
    return r.vector(r.scalar_sqrt(r.scalar(x + 0.0)))


def shape(config: MachineConfig, x: Tensor) -> Shape:
    """That of x."""
    return x.shape


def workspace(config: MachineConfig, x: Tensor) -> Workspace:
    """A row, and a row for each lane with a one there; MLEN entries of FP SRAM."""
    return Workspace(rows=1 + constant_rows(config, config.mlen), fp=config.mlen)


def emit(k: Kernel, out: Rows, x: Rows) -> None:
    """Element by element: times a row with a one in its lane, V_RED_SUM, S_SQRT_FP, S_ST_FP; S_MAP_V_FP of each row.

    A row with an infinite or NaN element becomes NaN where that element is not: infinity times zero. Registers: f for
    the root. FP SRAM: MLEN entries of workspace. Workspace: a row and MLEN rows with a single one.
    """
    b, lanes = k.b, x.lanes
    ones = k.fetch_constant(np.eye(lanes, dtype=np.float32), 1)
    with b.scope():
        root, piece = b.fp(purpose="root"), b.gp(k.scratch, "element")
        for block in range(x.blocks):
            count = min(x.shape[1] - block * lanes, lanes)
            if count < lanes:
                k.clear_entries(k.entry + count, lanes - count)
            with b.scope():
                source, target = b.gp(x.at(block), x.name), b.gp(out.at(block), out.name)
                with b.loop(x.shape[0], (source, lanes), (target, lanes)):
                    _row(k, source, piece, ones, root, count)
                    b.s_map_v_fp(target, b.zero, k.entry)


def _row(k: Kernel, source: Gp, piece: Gp, ones: Rows, root: Fp, count: int) -> None:
    """The roots of the first elements of a row to FP SRAM."""
    b = k.b
    with b.scope():
        one, entry = b.gp(ones.address, "lane"), b.gp(k.entry, "entry")
        with b.loop(count, (one, ones.lanes), (entry, 1), unroll=4):
            b.v_mul_vv(piece, source, one)
            b.s_add_fp(root, b.fp_zero, b.fp_zero)
            b.v_red_sum(root, piece)
            b.s_sqrt_fp(root, root)
            b.s_st_fp(root, entry, 0)


register(
    Operator(
        name="sqrt",
        family="roots",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        shares=("x",),
        cost="rows * (7 * columns + 4 * blocks), about",
    )
)
