"""Convolutions and pooling over any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from ..registry import Refused, refuse_if, rule

Sizes = int | Sequence[int]


def _each(value: Sizes, count: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * count if len(values) == 1 else values


def _convolved(x: Array, weight: Array, bias: Array | None, batched: bool, **windows: Any) -> Array:
    letters = "DHW"[-(weight.ndim - 2) :]
    numbers = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
    y = lax.conv_general_dilated(x if batched else x[None], weight, dimension_numbers=numbers, **windows)
    if bias is not None:
        y = y + bias.reshape((1, -1) + (1,) * len(letters))
    return y if batched else y[0]


def _flipped(weight: Array, groups: int) -> Array:
    """Weights of a transposed convolution as those of a convolution: outputs first, the window turned round."""
    inputs, outputs, *window = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, *window)
    turned = jnp.flip(jnp.swapaxes(grouped, 1, 2), tuple(range(3, grouped.ndim)))
    return turned.reshape(groups * outputs, inputs // groups, *window)


@rule("aten.convolution.default")
def convolution(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Array:
    """Of any stride, padding, dilation and groups; transposed or not."""
    count = weight.ndim - 2
    batched = x.ndim == weight.ndim
    strides, dilations, widths = _each(stride, count), _each(dilation, count), _each(padding, count)
    if not transposed:
        pairs = [(width, width) for width in widths]
        return _convolved(
            x,
            weight,
            bias,
            batched,
            window_strides=strides,
            padding=pairs,
            rhs_dilation=dilations,
            feature_group_count=groups,
        )
    reach = [d * (size - 1) for d, size in zip(dilations, weight.shape[2:], strict=True)]
    more = _each(output_padding, count)
    pairs = [(r - width, r - width + m) for r, width, m in zip(reach, widths, more, strict=True)]
    return _convolved(
        x,
        _flipped(weight, groups),
        bias,
        batched,
        window_strides=(1,) * count,
        padding=pairs,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        feature_group_count=groups,
    )


@rule(*(f"aten.conv{n}d.{kind}" for n in (1, 2, 3) for kind in ("default", "padding")))
def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """Of any stride, padding, dilation and groups."""
    if padding == "valid":
        padding = 0
    if not isinstance(padding, str):
        return convolution(x, weight, bias, stride, padding, dilation, False, 0, groups)
    count = weight.ndim - 2
    reach = [d * (size - 1) for d, size in zip(_each(dilation, count), weight.shape[2:], strict=True)]
    return _convolved(
        x,
        weight,
        bias,
        x.ndim == weight.ndim,
        window_strides=_each(stride, count),
        padding=[(r // 2, r - r // 2) for r in reach],
        rhs_dilation=_each(dilation, count),
        feature_group_count=groups,
    )


@rule(*(f"aten.conv_transpose{kind}" for kind in ("1d.default", "2d.input", "3d.input")))
def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Array:
    """The transposed convolution."""
    return convolution(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


def _windows(x: Array, size: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, count: int) -> dict[str, Any]:
    front = (1,) * (x.ndim - count)
    sizes = _each(size, count)
    strides = _each(stride, count) if stride not in ([], ()) else sizes
    pairs = [(0, 0)] * len(front) + [(width, width) for width in _each(padding, count)]
    return {
        "window_dimensions": front + sizes,
        "window_strides": front + strides,
        "padding": pairs,
        "window_dilation": front + _each(dilation, count),
    }


@rule("aten.max_pool2d.default")
def max_pool2d(
    x: Array, size: Sizes, stride: Sizes = (), padding: Sizes = 0, dilation: Sizes = 1, ceil: bool = False
) -> Array:
    """The largest of each window."""
    refuse_if(ceil, "pooling with ceil_mode")
    return lax.reduce_window(x, -jnp.inf, lax.max, **_windows(x, size, stride, padding, dilation, 2))


@rule("aten.max_pool2d_with_indices.default")
def max_pool2d_with_indices(
    x: Array, size: Sizes, stride: Sizes = (), padding: Sizes = 0, dilation: Sizes = 1, ceil: bool = False
) -> tuple[Any, ...]:
    """The largest of each window; where it is is refused, if it is used."""

    def places() -> Array:
        raise Refused("the indices of max_pool2d")

    return max_pool2d(x, size, stride, padding, dilation, ceil), places


@rule("aten.avg_pool2d.default")
def avg_pool2d(
    x: Array,
    size: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil: bool = False,
    count_padding: bool = True,
    divisor: int | None = None,
) -> Array:
    """The mean of each window."""
    refuse_if(ceil, "pooling with ceil_mode")
    windows = _windows(x, size, stride, padding, 1, 2)
    total = lax.reduce_window(x, 0.0, lax.add, **windows)
    height, width = _each(size, 2)
    if divisor is not None or count_padding or not any(_each(padding, 2)):
        return total / (divisor or height * width)
    return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, **windows)
