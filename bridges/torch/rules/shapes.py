"""The same elements in another shape or order; joined, cut, repeated, padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..registry import Refused, rule


@rule(*(f"aten.{name}.default" for name in ("view", "_unsafe_view", "reshape", "view_copy", "_reshape_copy")))
def reshape(x: Array, shape: Sequence[int]) -> Array:
    """The same elements in another shape."""
    return jnp.reshape(x, tuple(shape))


@rule("aten.flatten.using_ints")
def flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    """Several dimensions as one."""
    if x.ndim == 0:
        return x.reshape(1)
    start, end = start % x.ndim, end % x.ndim
    return x.reshape(*x.shape[:start], -1, *x.shape[end + 1 :])


@rule("aten.unflatten.int")
def unflatten(x: Array, dim: int, sizes: Sequence[int]) -> Array:
    """One dimension as several."""
    dim %= x.ndim
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


@rule("aten.permute.default")
def permute(x: Array, dims: Sequence[int]) -> Array:
    """The dimensions in another order."""
    return jnp.transpose(x, tuple(dims))


@rule("aten.transpose.int")
def transpose(x: Array, a: int, b: int) -> Array:
    """Two dimensions exchanged."""
    return jnp.swapaxes(x, a, b) if x.ndim else x


@rule("aten.t.default", "aten.numpy_T.default")
def matrix_transpose(x: Array) -> Array:
    """Rows as columns."""
    return jnp.transpose(x)


@rule("aten.mT.default")
def last_transpose(x: Array) -> Array:
    """The last two dimensions exchanged."""
    return jnp.swapaxes(x, -1, -2)


@rule("aten.movedim.int", "aten.movedim.intlist")
def movedim(x: Array, source: Any, destination: Any) -> Array:
    """Dimensions at another place."""
    return jnp.moveaxis(x, source, destination)


@rule("aten.unsqueeze.default")
def unsqueeze(x: Array, dim: int) -> Array:
    """A new dimension of size 1."""
    return jnp.expand_dims(x, dim)


@rule("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")
def squeeze(x: Array, dims: int | Sequence[int] | None = None) -> Array:
    """Without dimensions of size 1: all, or those of some that have it."""
    if dims is None:
        return jnp.squeeze(x)
    chosen = (dims,) if isinstance(dims, int) else dims
    return jnp.squeeze(x, tuple(d for d in chosen if x.ndim and x.shape[d] == 1))


@rule("aten.expand.default")
def expand(x: Array, sizes: Sequence[int], *, implicit: bool = False) -> Array:
    """Dimensions of size 1 repeated; -1 keeps one."""
    kept = (1,) * (len(sizes) - x.ndim) + x.shape
    return jnp.broadcast_to(x, tuple(old if new == -1 else new for old, new in zip(kept, sizes, strict=True)))


@rule("aten.expand_as.default")
def expand_as(x: Array, other: Array) -> Array:
    """Dimensions of size 1 repeated, to the shape of another."""
    return jnp.broadcast_to(x, other.shape)


@rule("aten.copy.default")
def copy(x: Array, source: Array, non_blocking: bool = False) -> Array:
    """The values of another, in this shape."""
    return jnp.broadcast_to(source, x.shape)


@rule("aten.repeat.default", "aten.tile.default")
def repeat(x: Array, times: Sequence[int]) -> Array:
    """The whole, several times along each dimension."""
    return jnp.tile(x, tuple(times))


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(x: Array, times: int, dim: int | None = None, *, output_size: int | None = None) -> Array:
    """Each element several times."""
    return jnp.repeat(x, times, dim)


@rule("aten.cat.default", "aten.concat.default")
def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    """One behind the other. Tensors of shape (0,) join anything."""
    kept = [x for x in tensors if x.shape != (0,)] or list(tensors[:1])
    return jnp.concatenate(kept, dim)


@rule("aten.stack.default")
def stack(tensors: Sequence[Array], dim: int = 0) -> Array:
    """One beside the other, along a new dimension."""
    return jnp.stack(list(tensors), dim)


@rule("aten.slice.Tensor")
def slice_(x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    """Every step-th element from start to end; limits beyond the ends are the ends."""
    dim %= x.ndim
    first, last, _ = slice(start, end).indices(x.shape[dim])
    if (first, step) == (0, 1) and last == x.shape[dim]:
        return x
    return lax.slice_in_dim(x, first, max(first, last), step, dim)


@rule("aten.narrow.default")
def narrow(x: Array, dim: int, start: int, length: int) -> Array:
    """Some elements in a row."""
    start %= max(1, x.shape[dim])
    return slice_(x, dim, start, start + length)


@rule("aten.select.int")
def select(x: Array, dim: int, index: int) -> Array:
    """One element of a dimension, without the dimension."""
    return lax.index_in_dim(x, index, dim, keepdims=False)


@rule("aten.unbind.int")
def unbind(x: Array, dim: int = 0) -> tuple[Array, ...]:
    """All elements of a dimension, without the dimension."""
    return tuple(lax.index_in_dim(x, i, dim, keepdims=False) for i in range(x.shape[dim]))


@rule("aten.split_with_sizes.default", "aten.split.sizes")
def split_with_sizes(x: Array, sizes: Sequence[int], dim: int = 0) -> tuple[Array, ...]:
    """Parts of given sizes."""
    ends = np.cumsum(sizes).tolist()
    return tuple(slice_(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True))


@rule("aten.split.Tensor", "aten.unsafe_split.Tensor")
def split(x: Array, size: int, dim: int = 0) -> tuple[Array, ...]:
    """Parts of one size; the last may be smaller."""
    return tuple(slice_(x, dim, first, first + size) for first in range(0, max(1, x.shape[dim]), max(1, size)))


@rule("aten.chunk.default")
def chunk(x: Array, chunks: int, dim: int = 0) -> tuple[Array, ...]:
    """At most so many parts of one size; the last may be smaller."""
    return split(x, -(-x.shape[dim] // chunks), dim)


@rule("aten.tensor_split.sections")
def tensor_split(x: Array, sections: int, dim: int = 0) -> tuple[Array, ...]:
    """So many parts; the first may be larger by one."""
    small, larger = divmod(x.shape[dim], sections)
    return split_with_sizes(x, [small + (i < larger) for i in range(sections)], dim)


@rule("aten.flip.default")
def flip(x: Array, dims: Sequence[int]) -> Array:
    """The other way round."""
    return jnp.flip(x, tuple(dims))


@rule("aten.roll.default")
def roll(x: Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> Array:
    """Moved, with what falls off one end put to the other."""
    return jnp.roll(x, tuple(shifts), tuple(dims)) if dims else jnp.roll(x, shifts[0])


@rule("aten.pad.default")
def pad(x: Array, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    """More at the ends, the last dimension first; less where a width is negative."""
    pairs = [(0, 0)] * (x.ndim - len(widths) // 2) + list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    if mode == "constant":
        return lax.pad(x, jnp.asarray(value or 0, x.dtype), [(low, high, 0) for low, high in pairs])
    names = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if mode not in names or any(width < 0 for width in widths):
        raise Refused(f"padding with mode {mode!r} and widths {list(widths)}")
    return jnp.pad(x, pairs, mode=names[mode])


@rule("aten.constant_pad_nd.default")
def constant_pad(x: Array, widths: Sequence[int], value: float = 0) -> Array:
    """More of one value at the ends."""
    return pad(x, widths, "constant", value)


@rule(*(f"aten.reflection_pad{n}d.default" for n in (1, 2, 3)))
def reflection_pad(x: Array, widths: Sequence[int]) -> Array:
    """More at the ends, as in a mirror."""
    return pad(x, widths, "reflect")


@rule(*(f"aten.replication_pad{n}d.default" for n in (1, 2, 3)))
def replication_pad(x: Array, widths: Sequence[int]) -> Array:
    """More of what is at the ends."""
    return pad(x, widths, "replicate")


@rule("aten.tril.default")
def tril(x: Array, diagonal: int = 0) -> Array:
    """Zeros above a diagonal."""
    return jnp.tril(x, diagonal)


@rule("aten.triu.default")
def triu(x: Array, diagonal: int = 0) -> Array:
    """Zeros below a diagonal."""
    return jnp.triu(x, diagonal)


@rule("aten.diagonal.default")
def diagonal(x: Array, offset: int = 0, a: int = 0, b: int = 1) -> Array:
    """A diagonal of two dimensions, as the last."""
    return jnp.diagonal(x, offset, a, b)


@rule("aten.unfold.default")
def unfold(x: Array, dim: int, size: int, step: int) -> Array:
    """Windows along a dimension, their elements as a new last one."""
    dim %= x.ndim
    starts = np.arange(0, x.shape[dim] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=dim)
    return jnp.moveaxis(windows, dim + 1, -1)


@rule("aten.pixel_shuffle.default")
def pixel_shuffle(x: Array, factor: int) -> Array:
    """Channels as pixels."""
    *batch, channels, height, width = x.shape
    cut = x.reshape(*batch, channels // factor**2, factor, factor, height, width)
    n = len(batch)
    moved = jnp.transpose(cut, (*range(n), n, n + 3, n + 1, n + 4, n + 2))
    return moved.reshape(*batch, channels // factor**2, height * factor, width * factor)


@rule("aten.pixel_unshuffle.default")
def pixel_unshuffle(x: Array, factor: int) -> Array:
    """Pixels as channels."""
    *batch, channels, height, width = x.shape
    cut = x.reshape(*batch, channels, height // factor, factor, width // factor, factor)
    n = len(batch)
    moved = jnp.transpose(cut, (*range(n), n, n + 2, n + 4, n + 1, n + 3))
    return moved.reshape(*batch, channels * factor**2, height // factor, width // factor)
