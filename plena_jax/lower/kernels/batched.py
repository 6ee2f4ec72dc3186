"""Products of many matrices with many others."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor, round_up, row_unit, vram_rows


def reference(x: jax.Array, w: jax.Array, *, batch: int, transposed: bool = False) -> jax.Array:
    """``x[i] @ w[i]`` for ``batch`` matrices, one below the other in x and in w; ``transposed``: ``x[i] @ w[i].T``."""
    a, b = (m.reshape(batch, -1, m.shape[1]) for m in (x, w))
    b = b.swapaxes(1, 2) if transposed else b
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST).reshape(x.shape[0], -1)


def rounded(r: Rounded, x: jax.Array, w: jax.Array, *, batch: int, transposed: bool = False) -> jax.Array:
    """Each as ``linear``."""
    parts = zip(jnp.split(x, batch), jnp.split(w, batch), strict=True)
    return jnp.concatenate([r.matmul(a, b.T if transposed else b) for a, b in parts])


def shape(config: MachineConfig, x: Tensor, w: Tensor, *, batch: int, transposed: bool) -> Shape:
    """Rows of x, columns of the matrices in w."""
    for name, tensor in (("x", x), ("w", w)):
        if batch < 1 or tensor.shape[0] % batch:
            raise OperatorError(
                f"batched_matmul: rows of {name} ({tensor.name}): expected a multiple of batch {batch}, got "
                f"{tensor.shape[0]}"
            )
    rows, columns = w.shape[0] // batch, w.shape[1]
    k, n = (columns, rows) if transposed else (rows, columns)
    if k != x.shape[1]:
        what = "columns" if transposed else f"rows of each of the {batch} matrices"
        raise OperatorError(f"batched_matmul: {what} of w ({w.name}): expected {x.shape[1]}, got {k}")
    if transposed and n % config.mlen and batch > 1:
        raise OperatorError(
            f"batched_matmul: rows of each of the {batch} matrices of w ({w.name}): expected a multiple of "
            f"{config.mlen} when transposed, got {n}"
        )
    return x.shape[0], n


def reads(config: MachineConfig, x: Tensor, w: Tensor, *, batch: int, transposed: bool) -> dict[str, int]:
    """Whole tiles of the last matrix, wherever it begins."""
    height = w.shape[0] // batch
    return {"w": (batch - 1) * height + round_up(height, config.mlen)}


def workspace(config: MachineConfig, x: Tensor, w: Tensor, *, batch: int, transposed: bool) -> Workspace:
    """One result, if its rows are not a multiple of BLEN: products write that many at once."""
    rows, n = x.shape[0] // batch, (w.shape[0] // batch if transposed else w.shape[1])
    return Workspace(rows=vram_rows(config, (rows, n)) if rows % config.blen else 0)


def emit(k: Kernel, out: Rows, x: Rows, w: Matrix, *, batch: int, transposed: bool) -> None:
    """One product after the other, through the workspace if their rows are not a multiple of BLEN.

    Registers as ``linear``. FP SRAM: 1.
    """
    lanes, rows, height = out.lanes, x.shape[0] // batch, w.shape[0] // batch
    part = lambda of, i: Rows(of.name, of.at(0, i * rows), (rows, of.shape[1]), of.lanes, of.pitch)
    held = Rows("workspace", k.scratch, (rows, out.shape[1]), lanes, round_up(rows, row_unit(k.config)) * lanes)
    for i in range(batch):
        start = w.start[0] + i * height, w.start[1]
        matrix = Matrix((height, w.shape[1]), w.tensor, w.role, start)
        target, copied = part(out, i), rows % k.config.blen != 0
        Product(k, part(x, i), matrix, transposed).emit(held if copied else target)
        if copied:
            k.copy(held, target)


register(
    Operator(
        name="batched_matmul",
        family="matmul",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        reads=reads,
        places={"w": ("hbm",)},
        matrix=("w",),
        cost="batch times linear",
    )
)
