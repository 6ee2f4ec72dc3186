"""Rows of a table by numbers that are data of the run."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.registers import Ar, Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Entries, Matrix, Rows, Shape, Tensor


def reference(table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]``, for integers ids [1, n] in INT SRAM: a row for each.

    There is no gradient: addresses depend on data, so that it runs on the architectural engine only. Integers that are
    known before the run are checked; the machine fetches whatever others point to.
    """
    return jnp.asarray(table)[jnp.asarray(ids)[0]]


def rounded(r: Rounded, table: jax.Array, ids: jax.Array) -> jax.Array:
    """What HBM holds, rounded to vector SRAM."""
    return r.vector(reference(table, ids))


def shape(config: MachineConfig, table: Tensor, ids: Tensor) -> Shape:
    """A row for each number."""
    return ids.shape[1], table.shape[1]


def bounds(config: MachineConfig, table: Tensor, ids: Tensor) -> dict[str, int]:
    """Rows of the table."""
    return {"ids": table.shape[0]}


def workspace(config: MachineConfig, table: Tensor, ids: Tensor) -> Workspace:
    """The rows of one transfer."""
    return Workspace(rows=config.hbm_v_prefetch_amount)


def emit(k: Kernel, out: Rows, table: Matrix, ids: Entries) -> None:
    """A loop over numbers: S_LD_INT, S_MUL_INT with the bytes of a row, a transfer for each block of columns.

    A transfer brings HBM_V_Prefetch_Amount rows, of which the first counts. The others land where later rows go; the
    last ones go through the workspace. FP SRAM: 1. Registers: 9 gp at most.
    """
    b, count = k.b, out.shape[0]
    direct = max(count - k.config.hbm_v_prefetch_amount + 1, 0)
    with k.opened(table) as base, b.scope():
        entry, row = b.gp(ids.first, ids.name), b.gp(out.address, out.name)
        offset, size = b.gp(purpose="row of the table"), b.gp(table.stride, "bytes of a row")
        for part, is_direct in ((direct, True), (count - direct, False)):
            if not part:
                continue
            with b.loop(part, (entry, 1), (row, out.lanes)):
                b.s_ld_int(offset, entry, 0)
                b.s_mul_int(offset, offset, size)
                b.add(offset, offset, table.offset(0, 0))
                _fetch(k, out, table, base, row, offset, is_direct)


def _fetch(k: Kernel, out: Rows, table: Matrix, base: Ar, row: Gp, offset: Gp, is_direct: bool) -> None:
    """All blocks of a row."""
    b = k.b
    with b.scope():
        target, group, one = b.gp(purpose=out.name), b.gp(k.scratch, "transfer"), b.fp(1.0)
        b.add(target, row, 0)
        with b.loop(out.blocks, (offset, out.lanes * table.bits // 8), (target, out.pitch)):
            b.h_prefetch_v(target if is_direct else group, offset, base, 1, table.precision)
            if not is_direct:
                b.v_mul_vf(target, group, one)


register(
    Operator(
        name="lookup",
        family="lookup",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        places={"table": ("hbm",), "ids": ("int_sram",)},
        bounds=bounds,
        cost="ids * (9 + 4 * blocks), about",
    )
)
