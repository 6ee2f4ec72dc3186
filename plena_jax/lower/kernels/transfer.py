"""Between HBM and vector SRAM."""

from __future__ import annotations

import jax

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.operators import Operator, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, Rows, Shape, Tensor


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
