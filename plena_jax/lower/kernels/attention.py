"""Attention: online softmax over tiles of keys, for any heads, sequences and masks."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import LARGE
from plena_jax.lower.kernels.attention_geometry import BMM_SCALE, Geometry, Room
from plena_jax.lower.kernels.attention_kernel import emit
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import OperatorError, Shape, Tensor, stored_shape

# -- references -------------------------------------------------------------------------------------------------------


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    sinks: jax.Array | None = None,
    *,
    heads: int,
    kv_heads: int | None = None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    query_offset: int = 0,
    kv_length: int | None = None,
) -> jax.Array:
    """``softmax(scale * q @ k.T + mask) @ v`` for each head.

    Args:
        q: [queries, heads * size].
        k, v: [keys, kv_heads * size]; query head h uses head ``h // (heads / kv_heads)``.
        mask: [queries, keys], added to scores.
        sinks: [1, heads]: one more logit of each head, which takes part in the denominator only.
        heads, kv_heads: numbers of heads; as many of keys and values as of queries by default.
        scale: by default ``1 / sqrt(size)``.
        causal: a query sees keys up to its own position.
        window: it sees keys that are less than so many positions behind it.
        query_offset: position of the first query; that of the first key is 0.
        kv_length: keys that count, the first ones; by default all.
    """
    g = Geometry.of(
        MachineConfig(),
        q,
        k,
        heads=heads,
        kv_heads=kv_heads,
        scale=scale,
        causal=causal,
        window=window,
        query_offset=query_offset,
        kv_length=kv_length,
    )
    seen, highest = g.seen(0, g.rows, 0, k.shape[0]), jax.lax.Precision.HIGHEST
    results = []
    for head in range(heads):
        at = g.key(head).columns
        scores = g.scale * jnp.dot(q[:, g.query(head).columns], k[:, at].T, precision=highest)
        if mask is not None:
            scores = scores + mask
        scores = jnp.where(seen, jnp.maximum(scores, -LARGE), -LARGE)
        most = scores.max(axis=1, keepdims=True)
        most = most if sinks is None else jnp.maximum(most, sinks[0, head])
        shares = jnp.exp(scores - most) * seen
        total = shares.sum(axis=1, keepdims=True) + (0 if sinks is None else jnp.exp(sinks[0, head] - most))
        results.append(jnp.dot(shares, v[:, at], precision=highest) / total)
    return jnp.concatenate(results, axis=1)


def rounded(
    r: Rounded,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    sinks: jax.Array | None = None,
    **attributes: Any,
) -> jax.Array:
    """Tile after tile of MLEN keys, for groups of up to MLEN queries; tiles that no query of a group sees are left out.

    Scores are rounded to vector SRAM, then with scale and mask; so are differences to the running maximum,
    exponentials, each tile's part of the result, the result times the correction, and sums of the two. Maximum,
    denominator and correction are rounded to scalars. Moving heads between lanes is exact. Heads of one head slot have
    scores of M_BTMM, which are multiplied with 0.25 before they are rounded; the scale is that much larger.
    """
    g = Geometry.of(r.config, q, k, mask is not None, **attributes)
    vectors = [None if x is None else r.vector(x) for x in (mask, sinks)]
    heads = [
        jnp.concatenate([_rounded_group(r, g, head, first, rows, q, k, v, *vectors) for first, rows in g.groups])
        for head in range(g.heads)
    ]
    return jnp.concatenate(heads, axis=1)


def _rounded_group(
    r: Rounded,
    g: Geometry,
    head: int,
    first: int,
    rows: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    sinks: jax.Array | None,
) -> jax.Array:
    at, lanes = g.key(head), g.config.mlen
    # The lane decides the order of sums.
    placed = lambda x: jnp.pad(x, ((0, 0), (at.lane, 0)))
    tile_of = lambda x, tile: jnp.pad(
        x[tile * lanes : (tile + 1) * lanes], ((0, max(0, (tile + 1) * lanes - x.shape[0])), (0, 0))
    )
    own = q[first : first + rows, g.query(head).columns]
    query = placed(own)
    most = jnp.full((rows, 1), -LARGE) if sinks is None else jnp.broadcast_to(r.scalar(sinks[0, head]), (rows, 1))
    total = None if sinks is None else jnp.ones((rows, 1), jnp.float32)
    result: jax.Array | None = None
    for tile, seen in g.tiles(first, rows):
        some = tile_of(k, tile)[:, at.columns]
        scores = r.scaled_matmul(own, some.T, BMM_SCALE) if g.batched else r.matmul(query, placed(some).T)
        if g.factor != 1.0:
            scores = r.multiply(scores, r.scalar(g.factor))
        visible = None if seen is None else jnp.asarray(seen, jnp.float32)
        if visible is not None:
            scores = r.add(scores, r.multiply(r.subtract(visible, jnp.float32(1)), jnp.float32(LARGE)))
        if mask is not None:
            scores = r.maximum(r.add(scores, tile_of(mask[first : first + rows].T, tile).T), jnp.float32(-LARGE))
        before, most = most, r.row_max(scores, most, -LARGE)
        shares = r.exp(r.subtract(scores, most))
        shares = shares if visible is None else r.multiply(shares, visible)
        change = r.scalar_exp(r.scalar_subtract(before, most))
        total = r.row_sum(shares, 0.0 if total is None else r.scalar_multiply(total, change))
        part = r.matmul(shares, tile_of(v, tile)[:, at.columns])
        result = part if result is None else r.add(r.multiply(result, change), part)
    assert result is not None and total is not None
    return r.multiply(result, r.scalar_reciprocal(total))


# -- shapes -----------------------------------------------------------------------------------------------------------


def shape(
    config: MachineConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, **attributes: Any
) -> Shape:
    """That of q."""
    _check_numbers(q, k, attributes)
    heads, kv_heads = attributes["heads"], attributes["kv_heads"] or attributes["heads"]
    expect("attention", f"columns of k ({k.name})", q.shape[1] // heads * kv_heads, k.shape[1])
    expect("attention", f"shape of v ({v.name})", k.shape, v.shape)
    if mask is not None:
        expect("attention", f"shape of mask ({mask.name})", (q.shape[0], k.shape[0]), mask.shape)
    if sinks is not None:
        expect("attention", f"shape of sinks ({sinks.name})", (1, heads), sinks.shape)
    g = Geometry.of(config, q, k, **attributes)
    for name, tensor in (("k", k), ("v", v), ("mask", mask)):
        if tensor is not None and tensor.place == "hbm":
            _check_view(config, name, tensor, 0 if name == "mask" else g.keys)
    blind = np.flatnonzero(~g.seen(0, g.rows, 0, g.keys).any(axis=1))
    if len(blind):
        raise OperatorError(
            f"attention: window, query_offset, kv_length: expected keys for every query, got none for that at position "
            f"{g.offset + blind[0]} (window {g.window}, {g.keys} keys)"
        )
    return q.shape


def _check_numbers(q: Tensor, k: Tensor, attributes: dict[str, Any]) -> None:
    """Attributes alone."""
    heads = attributes["heads"]
    limits: dict[str, tuple[int, float]] = {
        "heads": (1, q.shape[1]),
        "kv_heads": (1, math.inf),
        "window": (1, math.inf),
        "query_offset": (0, math.inf),
        "kv_length": (1, k.shape[0]),
    }
    for name, (least, most) in limits.items():
        value = attributes[name]
        if value is None and name not in ("heads", "query_offset"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            upper = f"to {most}" if most < math.inf else "or more"
            raise OperatorError(f"attention: {name}: expected {least} {upper}, got {value!r}")
    if q.shape[1] % heads:
        raise OperatorError(f"attention: heads: expected a divisor of the {q.shape[1]} columns of q, got {heads}")
    if heads % (attributes["kv_heads"] or heads):
        raise OperatorError(f"attention: kv_heads: expected a divisor of heads ({heads}), got {attributes['kv_heads']}")
    scale = attributes["scale"]
    if scale is not None and not (isinstance(scale, int | float) and math.isfinite(scale)):
        raise OperatorError(f"attention: scale: expected a finite number or None, got {scale!r}")


def _check_view(config: MachineConfig, name: str, tensor: Tensor, keys: int) -> None:
    """Tiles are fetched whole: they must end before the tensor does."""
    assert tensor.role is not None
    held = stored_shape(config, tensor.root.shape, tensor.role)[0]
    end = tensor.start[0] - (-keys // config.mlen) * config.mlen
    if end > held:
        raise OperatorError(
            f"attention: {name} ({tensor.name}): expected whole tiles of {config.mlen} (MLEN) rows inside the {held} "
            f"that are stored, got a view whose tiles end with row {end}"
        )


def workspace(
    config: MachineConfig, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, **attributes: Any
) -> Workspace:
    """Scores, parts of results and what is seen, for a group of queries; running values in FP SRAM."""
    g = Geometry.of(config, q, k, mask is not None, **attributes)
    room = Room.of(g, mask is not None and mask.place == "hbm", sinks)
    return Workspace(rows=room.end, fp=2 * g.stack + (g.heads if sinks is not None else 0))


register(
    Operator(
        name="attention",
        family="attention",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        places={"k": ("hbm",), "v": ("hbm",), "mask": ("vram", "hbm"), "sinks": ("vram", "hbm")},
        matrix=("k", "v"),
        roles={"k": "kv", "v": "kv"},
        cost="for each head, group of MLEN queries and tile of keys that is seen two products (see linear) and rows * "
        "(17 + 4 * blocks); if heads are HLEN columns, about 10 for scores, and HLEN columns of the other product",
    )
)
