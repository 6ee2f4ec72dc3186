"""Between HBM and vector SRAM."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, last_group
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Place, Role, Rows, Shape, Tensor

# -- load -------------------------------------------------------------------------------------------------------------


def load_reference(x: jax.Array) -> jax.Array:
    """A matrix from HBM to vector SRAM."""
    return x


def load_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """What HBM holds, rounded to vector SRAM."""
    return r.vector(x)


def load_shape(config: MachineConfig, x: Tensor) -> Shape:
    """That of x."""
    return x.shape


def load_emit(k: Kernel, out: Rows, x: Matrix) -> None:
    """H_PREFETCH_V for each group of rows of each block."""
    k.fetch(x, out)


# -- store ------------------------------------------------------------------------------------------------------------


def store_reference(x: jax.Array, *, role: Role = "activations") -> jax.Array:
    """A matrix from vector SRAM to HBM, in the format of its role ("activations" or "kv")."""
    return x


def store_rounded(r: Rounded, x: jax.Array, *, role: Role = "activations") -> jax.Array:
    """Rounded to the format in HBM."""
    return r.staged(x, role)


def store_shape(config: MachineConfig, x: Tensor, *, role: Role) -> Shape:
    """That of x."""
    if role not in ("activations", "kv"):
        raise OperatorError(f"store: role: expected activations or kv, got {role!r}")
    return x.shape


def store_result(config: MachineConfig, x: Tensor, *, role: Role) -> tuple[Place, Role | None]:
    """HBM."""
    return "hbm", role


def store_workspace(config: MachineConfig, x: Tensor, *, role: Role) -> Workspace:
    """A group of rows, if the last one is not full."""
    return Workspace(rows=last_group(config, x.shape[0]))


def store_emit(k: Kernel, out: Matrix, x: Rows, *, role: Role) -> None:
    """H_STORE_V for each group of HBM_V_Writeback_Amount rows of each block; the last with zeros behind the last row.

    Workspace: that last group.
    """
    k.store(x, out, 0)


# -- update -----------------------------------------------------------------------------------------------------------


def update_reference(cache: jax.Array, x: jax.Array, *, row: int) -> jax.Array:
    """The cache with rows from ``row`` on replaced by x, in place: nobody may need the old one later."""
    return jnp.concatenate([cache[:row], x, cache[row + x.shape[0] :]])


def update_rounded(r: Rounded, cache: jax.Array, x: jax.Array, *, row: int) -> jax.Array:
    """Rounded to the format in HBM; rows behind that are in the last transfer are read and rounded once more."""
    stop, step = row + x.shape[0], r.config.hbm_v_writeback_amount
    again = slice(stop, stop + -x.shape[0] % step)
    behind = r.staged(r.vector(cache[again]), "kv")
    return jnp.concatenate([cache[:row], r.staged(x, "kv"), behind, cache[again.stop :]])


def update_shape(config: MachineConfig, cache: Tensor, x: Tensor, *, row: int) -> Shape:
    """That of the cache."""
    expect("update", "role of cache", "kv", cache.role)
    expect("update", "columns of x", cache.shape[1], x.shape[1])
    if not 0 <= row <= cache.shape[0] - x.shape[0]:
        raise OperatorError(
            f"update: row: expected 0 to {cache.shape[0] - x.shape[0]}, so that {x.shape[0]} rows fit, got {row}"
        )
    return cache.shape


def update_result(config: MachineConfig, cache: Tensor, x: Tensor, *, row: int) -> tuple[Place, Role | None]:
    """Where the cache is."""
    return "hbm", "kv"


def update_workspace(config: MachineConfig, cache: Tensor, x: Tensor, *, row: int) -> Workspace:
    """A group of rows, if the last one is not full."""
    return store_workspace(config, x, role="kv")


def update_emit(k: Kernel, out: Matrix, cache: Matrix, x: Rows, *, row: int) -> None:
    """Like store, in place; what is behind the last row is fetched first, because whole transfers are stored.

    Workspace: the last group.
    """
    k.store(x, out, row, keep=True)


register(
    Operator(
        name="load",
        family="transfer",
        reference=load_reference,
        rounded=load_rounded,
        shape=load_shape,
        emit=load_emit,
        places={"x": ("hbm",)},
        cost="4 for each HBM_V_Prefetch_Amount rows of each block",
    )
)
register(
    Operator(
        name="store",
        family="transfer",
        reference=store_reference,
        rounded=store_rounded,
        shape=store_shape,
        emit=store_emit,
        workspace=store_workspace,
        result=store_result,
        cost="4 for each HBM_V_Writeback_Amount rows of each block",
    )
)
register(
    Operator(
        name="update",
        family="transfer",
        reference=update_reference,
        rounded=update_rounded,
        shape=update_shape,
        emit=update_emit,
        workspace=update_workspace,
        result=update_result,
        places={"cache": ("hbm",)},
        roles={"cache": "kv"},
        shares=("cache",),
        cost="4 for each HBM_V_Writeback_Amount rows of each block of x",
    )
)
