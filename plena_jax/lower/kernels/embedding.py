"""Rows of a table: the embedding of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor


def reference(table: jax.Array, *, tokens: tuple[int, ...]) -> jax.Array:
    """``table[tokens]``, for tokens that are known when the program is made."""
    return jnp.asarray(table)[jnp.asarray(tokens)]


def rounded(r: Rounded, table: jax.Array, *, tokens: tuple[int, ...]) -> jax.Array:
    """What HBM holds, rounded to vector SRAM."""
    return r.vector(reference(table, tokens=tokens))


def shape(config: MachineConfig, table: Tensor, *, tokens: tuple[int, ...]) -> Shape:
    """A row for each token."""
    wrong = [token for token in tokens if not 0 <= token < table.shape[0]]
    if not tokens or wrong:
        got = f"token {wrong[0]}" if wrong else "none"
        raise OperatorError(f"embedding: tokens: expected numbers from 0 to {table.shape[0] - 1}, got {got}")
    return len(tokens), table.shape[1]


def reads(config: MachineConfig, table: Tensor, *, tokens: tuple[int, ...]) -> dict[str, int]:
    """Whole transfers from the last token on."""
    return {"table": max(tokens) + config.hbm_v_prefetch_amount}


def workspace(config: MachineConfig, table: Tensor, *, tokens: tuple[int, ...]) -> Workspace:
    """The rows of one transfer."""
    return Workspace(rows=config.hbm_v_prefetch_amount)


def emit(k: Kernel, out: Rows, table: Matrix, *, tokens: tuple[int, ...]) -> None:
    """A transfer for each token and block of columns, block after block.

    A transfer brings HBM_V_Prefetch_Amount rows, of which the first counts. The others land where later tokens go; the
    last ones of a block go through the workspace, so that nothing behind is touched. FP SRAM: 1.
    """
    b, lanes, step = k.b, out.lanes, k.config.hbm_v_prefetch_amount
    direct = max(len(tokens) - step + 1, 0)
    with k.opened(table) as base, b.scope():
        offset, target, group = b.gp(purpose="row of the table"), b.gp(purpose=out.name), b.gp(k.scratch, "transfer")
        one = b.fp(1.0)
        for row, token in enumerate(tokens):
            b.set(offset, table.offset(token, 0))
            b.set(target, out.at(0, row))
            with b.loop(out.blocks, (offset, lanes * table.bits // 8), (target, out.pitch)):
                if row < direct:
                    b.h_prefetch_v(target, offset, base, 1, table.precision)
                else:
                    b.h_prefetch_v(group, offset, base, 1, table.precision)
                    b.v_mul_vf(target, group, one)


register(
    Operator(
        name="embedding",
        family="embedding",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        reads=reads,
        places={"table": ("hbm",)},
        cost="tokens * (4 + 4 * blocks), about",
    )
)
