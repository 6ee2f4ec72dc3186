"""Products, convolutions and attention."""

from __future__ import annotations

import numpy as np

from plena_jax.frontend.graph import Operation
from plena_jax.frontend.lowering import Held, Lowering, lowers, without_infinity
from plena_jax.frontend.rules.axes import joined
from plena_jax.frontend.views import ZERO, View
from plena_jax.lower.tensors import Tensor


@lowers("dot")
def dot(lowering: Lowering, operation: Operation) -> Held:
    """The operand that is an input, or the second, is the matrix unit's."""
    x, y, *bias = operation.inputs
    batch, m, k = x.shape
    n = y.shape[1]
    if batch > 1:
        return Held(_batched(lowering, x, y, [lowering.vram(view.reshape(1, n)) for view in bias]))
    row = [lowering.either(view.reshape(1, n)) for view in bias]
    x, y = x.reshape(m, k), y.reshape(n, k)
    if lowering.is_given(x) and not lowering.is_given(y) and not bias:
        product = lowering.g.linear(lowering.vram(y), lowering.matrix_unit(x.transpose((1, 0))))
        return lowering.holding(product, np.arange(m * n, dtype=np.int32).reshape(m, n).T)
    return Held(_linear(lowering, x, y, row))


def _linear(lowering: Lowering, x: View, y: View, bias: list[Tensor]) -> Tensor:
    """``x @ y.T``; weights are staged so that the matrix unit takes their tiles as they are."""
    # Computed ones are stored as they are.
    transposed = not lowering.is_given(y) and not lowering.is_free(y.transpose((1, 0)))
    w = lowering.matrix_unit(y if transposed else y.transpose((1, 0)))
    return lowering.g.linear(lowering.vram(x), w, *bias, transposed=transposed)


def _batched(lowering: Lowering, x: View, y: View, bias: list[Tensor]) -> Tensor:
    batch, m, k = x.shape
    n = y.shape[1]
    rows = x.reshape(batch * m, k)
    if not lowering.is_given(y):
        parts = [_linear(lowering, x[b], y[b], bias) for b in range(batch)]
        return joined(lowering, parts, 0)
    w = lowering.matrix_unit(y.transpose((0, 2, 1)).reshape(batch * k, n))
    product = lowering.g.batched_matmul(lowering.vram(rows), w, batch=batch)
    return product if not bias else lowering.g.add(product, bias[0])


# -- convolution ------------------------------------------------------------------------------------------------------


@lowers("conv2d")
def conv2d(lowering: Lowering, operation: Operation) -> Held:
    """Image by image: patches made on the machine where its kernel can, else as views; then products with patches."""
    x, w = operation.inputs
    parts = [_one_image(lowering, x[b], w, operation) for b in range(x.shape[0])]
    images, channels, height, width = operation.output.shape
    found = parts[0] if len(parts) == 1 else joined(lowering, parts, 0)
    # The machine's rows are pixels.
    order = np.arange(operation.output.size, dtype=np.int32).reshape(images, channels, height, width)
    return lowering.holding(found, order.transpose(0, 2, 3, 1).reshape(-1, channels))


def _one_image(lowering: Lowering, image: View, w: View, operation: Operation) -> Tensor:
    a = operation.attributes
    (channels, height, width), (_, _, tall, wide) = image.shape, w.shape
    padding = [n for pair in a["padding"] for n in pair]
    kernel = w.reshape(w.shape[0], -1).transpose((1, 0))
    regular = (
        tall == wide
        and a["groups"] == 1
        and a["dilation"] == (1, 1)
        and len(set(padding)) == 1
        and len(set(a["stride"])) == 1
        and lowering.is_given(image)
        and lowering.is_given(w)
    )
    if regular:
        return lowering.g.conv2d(
            lowering.stage(image.reshape(channels * height, width), "hbm", "activations").tensor,
            lowering.matrix_unit(kernel),
            channels=channels,
            height=height,
            width=width,
            kernel=tall,
            stride=a["stride"][0],
            padding=padding[0],
        )
    groups, out = a["groups"], w.shape[0] // a["groups"]
    patches = _patches(image, (tall, wide), a["stride"], a["padding"], a["dilation"])
    taken = channels // groups
    parts = []
    for group in range(groups):
        own = patches[:, group * taken : (group + 1) * taken].reshape(patches.shape[0], -1)
        weights = w[group * out : (group + 1) * out].reshape(out, -1)
        parts.append(_linear(lowering, own, weights, []))
    return parts[0] if groups == 1 else joined(lowering, parts, 1)


def _patches(
    image: View,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int],
) -> View:
    """[out height * out width, channels, kernel height, kernel width]."""

    def moved(index: np.ndarray) -> np.ndarray:
        padded = np.pad(index, ((0, 0), *padding), constant_values=ZERO)
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(padded, extent, (1, 2))
        windows = windows[:, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]
        return windows.transpose(1, 2, 0, 3, 4).reshape(-1, len(index), *kernel)

    return image.moved(moved)


# -- attention --------------------------------------------------------------------------------------------------------


@lowers("attention")
def attention(lowering: Lowering, operation: Operation) -> Held:
    """Heads side by side; keys and values are stored in HBM if they are computed.

    Heads of several sequences are in one operation: those of one at a time, if that is how they lie.
    """
    q, k, v, *more = operation.inputs
    heads, queries, size = q.shape
    parts = _sequences(lowering, q, k)
    each, of_keys = heads // parts, k.shape[0] // parts
    mask = lowering.vram(without_infinity(more[0])) if more else None
    found = []
    for part in range(parts):
        own, others = slice(part * each, (part + 1) * each), slice(part * of_keys, (part + 1) * of_keys)
        sinks = lowering.vram(more[1][own].reshape(1, each)) if len(more) > 1 else None
        found.append(_attend(lowering, operation, q[own], k[others], v[others], mask, sinks))
    order = np.arange(q.size, dtype=np.int32).reshape(parts, each, queries, size).transpose(0, 2, 1, 3)
    return lowering.holding(joined(lowering, found, 0) if parts > 1 else found[0], order.reshape(-1, each * size))


def _side_by_side_heads(view: View) -> View:
    return view.transpose((1, 0, 2)).reshape(view.shape[1], -1)


def _sequences(lowering: Lowering, q: View, k: View) -> int:
    """Into how many parts heads fall so that the queries of each are free."""
    heads = k.shape[0]
    for parts in (n for n in range(1, heads + 1) if heads % n == 0):
        each = q.shape[0] // parts
        rows = [_side_by_side_heads(q[i * each : (i + 1) * each]) for i in range(parts)]
        if all(lowering.is_free(part) for part in rows):
            return parts
    return 1


def _attend(
    lowering: Lowering,
    operation: Operation,
    q: View,
    k: View,
    v: View,
    mask: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    a = operation.attributes
    return lowering.g.attention(
        lowering.vram(_side_by_side_heads(q)),
        lowering.matrix_unit(_side_by_side_heads(k), "kv"),
        lowering.matrix_unit(_side_by_side_heads(v), "kv"),
        mask,
        sinks,
        heads=q.shape[0],
        kv_heads=k.shape[0],
        scale=a["scale"],
        causal=a["causal"],
        window=a["window"],
        query_offset=a["offset"],
        kv_length=a["keys"],
    )
