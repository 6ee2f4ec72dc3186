"""Convolutions: images made into matrices of patches, then products."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.kernels.patches import Geometry, Pair, Patches, gathered_rows
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph


def host_im2col(
    array: jax.Array,
    *,
    channels: int,
    height: int,
    width: int,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
) -> jax.Array:
    """Patches of an image [channels * height, width], on the host: [out_h * out_w, channels * kernel size].

    Rows are ``oh * out_w + ow``; columns are in the order channel, kernel row, kernel column.
    """
    g = Geometry.of(channels, height, width, kernel, stride, padding)
    (ph, pw), (sh, sw), (oh, ow) = g.padding, g.stride, g.out
    x = jnp.pad(jnp.asarray(array).reshape(channels, height, width), ((0, 0), (ph, ph), (pw, pw)))
    pieces = [
        x[:, r : r + (oh - 1) * sh + 1 : sh, c : c + (ow - 1) * sw + 1 : sw]
        for r in range(g.kernel[0])
        for c in range(g.kernel[1])
    ]
    return jnp.stack(pieces, axis=1).reshape(g.shape[1], g.shape[0]).T


# -- the operator -----------------------------------------------------------------------------------------------------


def reference(
    image: jax.Array,
    *,
    channels: int,
    height: int,
    width: int,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    shift: bool = True,
) -> jax.Array:
    """Patches of an image [channels * height, width]: [out_h * out_w, channels * kernel size].

    Rows are ``oh * out_w + ow``; columns are in the order channel, kernel row, kernel column. With ``shift`` pieces are
    placed with products and V_SHFT_V; without it element by element through FP SRAM, as the published compiler does.
    """
    return host_im2col(
        image, channels=channels, height=height, width=width, kernel=kernel, stride=stride, padding=padding
    )


def rounded(r: Rounded, image: jax.Array, *, shift: bool = True, **sizes: Any) -> jax.Array:
    """Moves round nothing but what vector SRAM, or without ``shift`` a scalar, does not hold."""
    x = r.vector(image)
    return host_im2col(x if shift else r.vector(r.scalar(x)), **sizes)


def shape(
    config: MachineConfig, image: Tensor, *, shift: bool, channels: int, height: int, width: int, **sizes: Any
) -> Shape:
    """A row for each result, a column for each element of the kernel."""
    g = Geometry.of(channels, height, width, **sizes)
    expect("im2col", f"shape of image ({image.name})", (channels * height, width), image.shape)
    if not isinstance(shift, bool):
        raise OperatorError(f"im2col: shift: expected True or False, got {shift!r}")
    needed = config.prefetch_m_rows // config.mlen
    needed *= -(-2 // needed)
    if shift and config.tiles < needed:
        raise OperatorError(
            f"im2col: shift: expected {needed} tiles of matrix SRAM, got {config.tiles}; shift=False needs none"
        )
    return g.shape


def workspace(config: MachineConfig, image: Tensor, *, shift: bool, **sizes: Any) -> Workspace:
    """A spare row, the gathered rows of a channel; pieces at lane 0, or one-hot rows and a row of FP SRAM."""
    g = Geometry.of(**sizes)
    lines, blocks = gathered_rows(config, g), -(-g.image[1] // config.mlen)
    if shift:
        return Workspace(rows=1 + lines * (blocks + 1))
    return Workspace(rows=1 + lines * blocks + constant_rows(config, min(g.image[1], config.mlen)), fp=config.mlen)


def emit(k: Kernel, out: Rows, image: Matrix, *, shift: bool, **sizes: Any) -> None:
    """Channel after channel: its rows are gathered in the workspace, then go to the result's rows.

    With ``shift``, for each result column: a product brings its pieces to lane 0 (not if they are there, with zeros
    behind them), V_SHFT_V to their lanes, V_ADD_VV into the result. Without it each element takes V_MUL_VV, S_ADD_FP,
    V_RED_SUM and S_ST_FP, each row of a block S_MAP_V_FP and V_ADD_VV.

    FP SRAM: without ``shift`` MLEN entries of workspace. Registers: 13 gp at most.
    """
    p = Patches(k, out, image, Geometry.of(**sizes))
    k.clear(out.address, out.pitch // out.lanes * out.blocks)
    if shift:
        # Lanes behind those that products write.
        k.clear(p.pieces.address, p.pieces.pitch // out.lanes)
    basis = p.basis() if not shift else None
    for channel in range(p.g.channels):
        p.gather(channel)
        for column in range(p.g.out[1]):
            if basis is None:
                p.shifted(channel, column)
            else:
                p.element_by_element(channel, column, basis)


# -- conv2d -----------------------------------------------------------------------------------------------------------


def conv2d_reference(
    image: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    channels: int,
    height: int,
    width: int,
    kernel: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    shift: bool = True,
) -> jax.Array:
    """Convolution of an image [channels * height, width]: [out_h * out_w, out_channels].

    w is [channels * kernel size, out_channels], rows in the order channel, kernel row, kernel column. The patches of
    im2col, then linear.
    """
    g = Geometry.of(channels, height, width, kernel, stride, padding, "conv2d")
    y = jax.lax.conv_general_dilated(
        jnp.asarray(image).reshape(1, channels, height, width),
        jnp.asarray(w).T.reshape(w.shape[1], channels, *g.kernel),
        g.stride,
        [(p, p) for p in g.padding],
        precision=jax.lax.Precision.HIGHEST,
    )
    y = y.reshape(w.shape[1], -1).T
    return y if bias is None else y + bias


def conv2d_expand(g: Graph, image: Tensor, w: Tensor, bias: Tensor | None, *, shift: bool, **sizes: Any) -> Tensor:
    """im2col, then linear."""
    geometry = Geometry.of(**sizes, operator="conv2d")
    expect("conv2d", f"rows of w ({w.name})", geometry.shape[1], w.shape[0])
    return g.apply("linear", g.apply("im2col", image, shift=shift, **sizes), w, bias)


register(
    Operator(
        name="im2col",
        family="convolution",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        places={"image": ("hbm",)},
        cost="with shift 3 to 5 for each piece (kernel row of a patch), and products where pieces are not at lane 0: "
        "ceil(kernel columns/BLEN) * ceil(rows/BLEN) * 5 to 7 for each result column and channel; without it 4 or 5 "
        "for each element",
    )
)
register(
    Operator(
        name="conv2d",
        family="convolution",
        reference=conv2d_reference,
        expand=conv2d_expand,
        places={"image": ("hbm",), "w": ("hbm",), "bias": ("vram", "hbm")},
        matrix=("w",),
        cost="im2col and linear",
    )
)
