"""RMS norm and layer norm over rows of any length."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.registers import Fp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, Rows, Shape, Tensor, vram_rows


def rms_norm_reference(x: jax.Array, weight: jax.Array | None = None, *, eps: float = 1e-6) -> jax.Array:
    """Root mean square norm of each row: ``x / sqrt(mean(x ** 2) + eps) * weight``."""
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)
    return y if weight is None else y * weight


def rms_norm_rounded(r: Rounded, x: jax.Array, weight: jax.Array | None = None, *, eps: float = 1e-6) -> jax.Array:
    """Squares are rounded to vector SRAM; their sum, mean, root and its reciprocal to scalars; then the products."""
    y = r.multiply(x, _inverse_root(r, x, eps))
    return y if weight is None else r.multiply(y, weight)


def layer_norm_reference(
    x: jax.Array, weight: jax.Array | None = None, bias: jax.Array | None = None, *, eps: float = 1e-5
) -> jax.Array:
    """Layer norm of each row: ``(x - mean) / sqrt(mean((x - mean) ** 2) + eps) * weight + bias``."""
    d = x - jnp.mean(x, axis=1, keepdims=True)
    y = d * jax.lax.rsqrt(jnp.mean(d * d, axis=1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def layer_norm_rounded(
    r: Rounded, x: jax.Array, weight: jax.Array | None = None, bias: jax.Array | None = None, *, eps: float = 1e-5
) -> jax.Array:
    """The mean is rounded to a scalar, the differences to vector SRAM; then as RMS norm does with them."""
    mean = r.scalar_multiply(r.row_sum(x), r.scalar(1 / x.shape[1]))
    d = r.subtract(x, mean)
    y = r.multiply(d, _inverse_root(r, d, eps))
    y = y if weight is None else r.multiply(y, weight)
    return y if bias is None else r.add(y, bias)


def _inverse_root(r: Rounded, x: jax.Array, eps: float) -> jax.Array:
    """[rows, 1]: ``1 / sqrt(mean(x ** 2) + eps)``."""
    mean = r.scalar_multiply(r.row_sum(r.multiply(x, x)), r.scalar(1 / x.shape[1]))
    return r.scalar_reciprocal(r.scalar_sqrt(r.scalar_add(mean, r.scalar(eps))))


def _check(name: str, x: Tensor, parameters: dict[str, Tensor | None], eps: float) -> Shape:
    for argument, tensor in parameters.items():
        if tensor is not None:
            expect(name, f"shape of {argument}", (1, x.shape[1]), tensor.shape)
    expect(name, "eps, at least 0", True, eps >= 0)
    return x.shape


def rms_norm_shape(config: MachineConfig, x: Tensor, weight: Tensor | None, *, eps: float) -> Shape:
    """That of x; the weight is a row as long."""
    return _check("rms_norm", x, {"weight": weight}, eps)


def layer_norm_shape(
    config: MachineConfig, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Shape:
    """That of x; weight and bias are rows as long."""
    return _check("layer_norm", x, {"weight": weight, "bias": bias}, eps)


def rms_norm_workspace(config: MachineConfig, x: Tensor, weight: Tensor | None, *, eps: float) -> Workspace:
    """A row for squares, and what comes from HBM."""
    return Workspace(rows=1 + _held(config, weight))


def layer_norm_workspace(
    config: MachineConfig, x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> Workspace:
    """A row for squares, a mask of the lanes behind the last column, and what comes from HBM."""
    mask = constant_rows(config) if x.shape[1] % config.mlen else 0
    return Workspace(rows=1 + mask + _held(config, weight) + _held(config, bias))


def _held(config: MachineConfig, parameter: Tensor | None) -> int:
    return 0 if parameter is None or parameter.place == "vram" else vram_rows(config, parameter.shape)


def rms_norm_emit(k: Kernel, out: Rows, x: Rows, weight: Rows | Matrix | None, *, eps: float) -> None:
    """Rows one after the other: squares, their sum, its root in registers, products.

    FP SRAM: eps and 1 / columns. Registers: f for these and the sum. Workspace: a row for squares; the weight, if it is
    in HBM.
    """
    b = k.b
    scale, _ = _in_vram(k, weight, 1)
    squares = k.scratch_rows(1, x.lanes)
    with b.scope():
        mean, epsilon, total = b.fp(1 / x.shape[1], "1 / columns"), b.fp(eps, "eps"), b.fp(purpose="sum")
        with k.each_row(x.shape[0], x, out, fixed=[squares, *([scale] if scale else [])]) as at:
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
            for block in range(x.blocks):
                b.v_mul_vv(at(squares), at(x, block), at(x, block))
                b.v_red_sum(total, at(squares))
            _to_inverse_root(k, total, mean, epsilon)
            for block in range(x.blocks):
                b.v_mul_vf(at(out, block), at(x, block), total)
                if scale:
                    b.v_mul_vv(at(out, block), at(out, block), at(scale, block))


def layer_norm_emit(
    k: Kernel, out: Rows, x: Rows, weight: Rows | Matrix | None, bias: Rows | Matrix | None, *, eps: float
) -> None:
    """Rows one after the other: sum, differences, their squares, sum and root in registers, products and sums.

    FP SRAM: eps and 1 / columns. Registers: f for these, the mean and the sum. Workspace: a row for squares, a mask of
    the lanes behind the last column if there are any; weight and bias, if they are in HBM.
    """
    b, last, first = k.b, x.blocks - 1, 1
    squares, mask = k.scratch_rows(1, x.lanes), None
    if x.rest:
        mask = k.lane_mask(x.shape[1], first)
        first += constant_rows(k.config)
    scale, first = _in_vram(k, weight, first)
    shift, first = _in_vram(k, bias, first)
    with b.scope():
        mean, epsilon, total = b.fp(1 / x.shape[1], "1 / columns"), b.fp(eps, "eps"), b.fp(purpose="sum")
        fixed = [rows for rows in (squares, mask, scale, shift) if rows is not None]
        with k.each_row(x.shape[0], x, out, fixed=fixed) as at:
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
            for block in range(x.blocks):
                b.v_red_sum(total, at(x, block))
            b.s_mul_fp(total, total, mean)
            for block in range(x.blocks):
                b.v_sub_vf(at(out, block), at(x, block), total)
                if mask is not None and block == last:
                    b.v_mul_vv(at(out, block), at(out, block), at(mask))
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
            for block in range(x.blocks):
                b.v_mul_vv(at(squares), at(out, block), at(out, block))
                b.v_red_sum(total, at(squares))
            _to_inverse_root(k, total, mean, epsilon)
            for block in range(x.blocks):
                b.v_mul_vf(at(out, block), at(out, block), total)
                if scale:
                    b.v_mul_vv(at(out, block), at(out, block), at(scale, block))
                if shift:
                    b.v_add_vv(at(out, block), at(out, block), at(shift, block))


def _to_inverse_root(k: Kernel, total: Fp, mean: Fp, epsilon: Fp) -> None:
    """A sum of squares becomes ``1 / sqrt(mean + eps)``."""
    b = k.b
    b.s_mul_fp(total, total, mean)
    b.s_add_fp(total, total, epsilon)
    b.s_sqrt_fp(total, total)
    b.s_reci_fp(total, total)


def _in_vram(k: Kernel, parameter: Rows | Matrix | None, first: int) -> tuple[Rows | None, int]:
    return (None, first) if parameter is None else k.in_vram(parameter, first)


register(
    Operator(
        name="rms_norm",
        family="normalization",
        reference=rms_norm_reference,
        rounded=rms_norm_rounded,
        shape=rms_norm_shape,
        emit=rms_norm_emit,
        workspace=rms_norm_workspace,
        places={"weight": ("vram", "hbm")},
        shares=("x",),
        cost="rows * (5 + 3 * blocks) and the steps of the row pointers; with a weight one more for each block",
    )
)
register(
    Operator(
        name="layer_norm",
        family="normalization",
        reference=layer_norm_reference,
        rounded=layer_norm_rounded,
        shape=layer_norm_shape,
        emit=layer_norm_emit,
        workspace=layer_norm_workspace,
        places={"weight": ("vram", "hbm"), "bias": ("vram", "hbm")},
        shares=("x",),
        cost="rows * (7 + 5 * blocks) and the steps of the row pointers; one more for each block with weight, bias",
    )
)
