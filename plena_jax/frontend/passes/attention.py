"""Attention, whatever the order of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.masks import Masks, mask_of, masks_of
from plena_jax.frontend.passes.matching import Sweep, pulled, swept, with_number
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import Positions, View, joined


@graph_pass
def attention(graph: TensorGraph) -> TensorGraph:
    """``softmax(scale * q @ k.T + mask) @ v`` becomes attention: one for the heads that share a mask."""
    return swept(graph, _attention)


@dataclass
class _Match:
    """Rows of queries [batch, rows], each with the keys and values of its batch.

    Attributes:
        q, k: vectors, [any, size].
        query: for each row its vector.
        key: for each batch and key its vector.
        values: [batch, keys, value size].
        masks: of rows and keys.
        sinks: for each row its logit, or None.
        sizes: axes that make the rows.
    """

    q: View
    k: View
    query: Positions
    key: Positions
    values: View
    masks: Masks
    sinks: View | None
    sizes: tuple[int, ...]


def _attention(sweep: Sweep, operation: Operation) -> View | None:
    if operation.name != "dot" or len(operation.inputs) != 2:
        return None
    x, y = operation.inputs
    for shares, values, turned in ((x, y, False), (y, x, True)):
        match = _matched(sweep, shares, values, () if turned else operation.attributes["rows"])
        order = None if match is None else _rows_by_head(match)
        if match is None or order is None:
            continue
        result = _built(sweep, match, order)
        return result.transpose((0, 2, 1)) if turned else result
    return None


# -- the match --------------------------------------------------------------------------------------------------------


def _matched(sweep: Sweep, shares: View, values: View, sizes: tuple[int, ...]) -> _Match | None:
    soft = sweep.producer(shares, "softmax")
    if soft is None or not sweep.hidden([soft]):
        return None
    scale, n = soft.attributes["scale"], soft.output.shape[-1]
    row, column = shares.index // n, shares.index % n
    if not (row == row[..., :1]).all() or not (column == column[:1, :1]).all():
        return None
    dropped = np.setdiff1d(np.arange(n), column[0, 0])
    if len(dropped) + shares.shape[2] != n or len(dropped) > 1 or (len(dropped) and scale != 1):
        return None
    logits = soft.inputs[0]
    sinks = None
    if len(dropped):
        sinks = logits.moved(lambda index: index.reshape(-1)[row[..., 0] * n + dropped[0]])
    masks = masks_of(sweep, pulled(logits, shares), scale)
    product = masks and sweep.producer(masks.scores, "dot")
    if masks is None or not product or len(product.inputs) != 2:
        return None
    masks.region += [soft, product]
    sides = _sides(masks.scores.index, product)
    if sides is None:
        return None
    (first, query), (second, key) = sides
    q, k = _unscaled(sweep, first, masks), _unscaled(sweep, second, masks)
    if not sweep.hidden(masks.region):
        return None
    key = _first_alike(k.index)[key]
    if not (key == key[:, :1]).all():
        return None
    rows = shares.shape[1]
    sizes = sizes if sizes and int(np.prod(sizes)) == rows else (rows,)
    return _Match(q, k, query, key[:, 0], values.transpose((0, 2, 1)), masks, sinks, sizes)


def _sides(index: Positions, product: Operation) -> tuple[tuple[View, Positions], tuple[View, Positions]] | None:
    """Vectors of queries and which of them makes each row, and vectors of keys and which makes each score."""
    x, y = product.inputs
    _, m, n = product.output.shape
    batch, left, right = index // (m * n), index // n % m, index % n
    one = x.reshape(-1, x.shape[2]), batch * m + left
    other = y.reshape(-1, y.shape[2]), batch * n + right
    for (q, query), key in ((one, other), (other, one)):
        if (query == query[..., :1]).all():
            return (q, query[..., 0]), key
    return None


def _unscaled(sweep: Sweep, vectors: View, masks: Masks) -> View:
    """Queries or keys before they are multiplied by a known number, which goes to the scale."""
    found = sweep.peel(vectors, "mul")
    known = found and with_number(found[1])
    if not found or not known or not sweep.hidden([found[0]], *masks.region):
        return vectors
    masks.region.append(found[0])
    masks.scale *= known[1]
    return known[0]


def _first_alike(rows: Positions) -> Positions:
    """For each row the first that sees the same elements."""
    _, first, inverse = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    alike = first[inverse.reshape(-1)]
    return alike if np.array_equal(rows, rows[alike]) else np.arange(len(rows))


# -- heads ------------------------------------------------------------------------------------------------------------


def _rows_by_head(match: _Match) -> Positions | None:
    """The rows, [heads, queries]: masks follow queries, sinks heads."""
    rows = match.query.shape[1]
    if len(match.sizes) > 1:
        return _split(match, match.sizes)
    # The axes are not known: they are what masks and sinks repeat along.
    divisors = [n for n in range(2, rows) if rows % n == 0]
    found = [order for n in divisors if (order := _split(match, (n, rows // n))) is not None]
    whole = _split(match, (rows,))
    best = max(found, key=len, default=whole)
    depends = match.sinks is not None or any(_varies(p, (rows,), 0) for p in match.masks.patterns())
    return best if depends and best is not None else whole


def _split(match: _Match, sizes: tuple[int, ...]) -> Positions | None:
    """The rows, [heads, queries], if each of their axes is one of them."""
    axes = range(len(sizes))
    masked = [axis for axis in axes if any(_varies(p, sizes, axis) for p in match.masks.patterns())]
    sunk = [axis for axis in axes if match.sinks is not None and _varies(match.sinks.index, sizes, axis)]
    if set(masked) & set(sunk):
        return None
    queries = masked or [axis for axis in axes if axis not in sunk][-1:]
    heads = [axis for axis in axes if axis not in queries]
    order = np.arange(match.query.shape[1]).reshape(sizes).transpose(*heads, *queries)
    return order.reshape(int(np.prod([sizes[axis] for axis in heads], dtype=int)), -1)


def _varies(pattern: Positions, sizes: Sequence[int], axis: int) -> bool:
    """Whether a pattern [batch, rows, ...] depends on an axis of its rows."""
    array = pattern.reshape(pattern.shape[0], *sizes, *pattern.shape[2:])
    return not bool((array == array.take([0], axis + 1)).all())


def _built(sweep: Sweep, match: _Match, order: Positions) -> View:
    """The operations, and the view of their results [batch, rows, value size]."""
    batch, rows = match.query.shape
    count, size = len(order), match.values.shape[2]
    results: list[View] = []
    places: list[tuple[int, int, int]] = []
    for group in _groups(match, order):
        found = _operation(sweep, match, group, order)
        first = 0
        for one in (b for members in group for b in members):
            places.append((one, len(results), first))
            first += count
        results.append(found)

    def together(positions: list[Positions]) -> Positions:
        whole = np.zeros((batch, rows, size), np.int32)
        for one, number, first in places:
            whole[one, order] = positions[number][first : first + count]
        return whole

    return joined(results, together)


def _groups(match: _Match, order: Positions) -> list[list[list[int]]]:
    """Batches by mask, and in it by keys and values; all keys of a group have as many batches."""
    patterns = [pattern[:, order[0]] for pattern in match.masks.patterns()]
    masks: dict[tuple[bytes, ...], dict[tuple[bytes, bytes], list[int]]] = {}
    for one in range(match.query.shape[0]):
        mask = tuple(np.ascontiguousarray(pattern[one]).tobytes() for pattern in patterns)
        of_mask = masks.setdefault(mask, {})
        of_mask.setdefault((match.key[one].tobytes(), match.values.index[one].tobytes()), []).append(one)
    groups = []
    for of_mask in masks.values():
        for size in dict.fromkeys(map(len, of_mask.values())):
            groups.append([members for members in of_mask.values() if len(members) == size])
    return groups


def _operation(sweep: Sweep, match: _Match, group: list[list[int]], order: Positions) -> View:
    members = [one for same in group for one in same]
    firsts = [same[0] for same in group]
    count, queries = order.shape
    chosen = match.query[members][:, order].reshape(len(members) * count, queries)
    q = match.q.moved(lambda index: index[chosen])
    k = match.k.moved(lambda index: index[match.key[firsts]])
    v = match.values.moved(lambda index: index[firsts])
    mask, attributes = mask_of(sweep, match.masks, (members[0], order[0]))
    inputs = [q, k, v, *([] if mask is None else [mask])]
    if match.sinks is not None:
        if mask is None:
            inputs.append(sweep.number(0, (queries, k.shape[1])))
        inputs.append(match.sinks.moved(lambda index: index[members][:, order[:, 0]].reshape(-1)))
    scale = float(np.float32(match.masks.scale))
    return sweep.add("attention", *inputs, shape=(q.shape[0], queries, v.shape[2]), scale=scale, **attributes)
