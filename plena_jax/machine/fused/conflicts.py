"""Order among transfers: HBM is written in place, so that loads and stores of the same bytes keep their order."""

from __future__ import annotations

import numpy as np

from plena_jax.machine.fused.accesses import Accesses
from plena_jax.machine.fused.families import Entry, Family
from plena_jax.machine.fused.resources import Ints
from plena_jax.machine.fused.versions import Edges
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.transfer import Transfers, element_address, scale_address

_FAMILIES = {
    Family.PREFETCH_M: ("matrix", 0),
    Family.PREFETCH_M_KV: ("matrix", 1),
    Family.PREFETCH_V: ("vector", 0),
    Family.PREFETCH_V_KV: ("vector", 1),
}


def hbm_edges(a: Accesses) -> tuple[Edges, int]:
    """What must come before what because of HBM; and one past the last byte that is read."""
    node, ints = a.entries["node"], a.ints
    family = a.nodes["family"][node] if len(node) else node
    transfers = Transfers.of(a.config)
    ranges = []
    for which, (unit, kv) in _FAMILIES.items():
        of = np.nonzero(family == which)[0]
        rows = wide_rows(a.config) if unit == "matrix" else 1
        ranges += _ranges(ints[of], node[of], getattr(transfers, unit)[kv], rows, False)
    for kv in (0, 1):
        of = np.nonzero((family == Family.STORE) & (ints[:, Entry.ARGUMENT] == kv))[0]
        ranges += _ranges(ints[of], node[of], transfers.vector[kv], 1, True)
    starts, sizes, nodes, stores = (np.concatenate([r[i] for r in ranges]) for i in range(4))
    top = int((starts + sizes)[~stores.astype(bool)].max(initial=0))
    if not stores.any():
        none = np.zeros(0, np.int64)
        return Edges(none, none), top
    step = int(np.gcd.reduce(np.concatenate([starts, sizes]))) or 1
    units = -(-sizes // step)
    of = np.repeat(np.arange(len(starts)), units)
    place = starts[of] // step + np.arange(len(of)) - np.repeat(np.cumsum(units) - units, units)
    return _ordered(place, nodes[of], stores[of], a.nodes["key"]), top


def _ranges(ints: Ints, node: Ints, transfer: object, rows: int, store: bool) -> list[tuple[Ints, Ints, Ints, Ints]]:
    """Start, size, node and whether it is written, of the elements and the scales of transfers."""
    ints, node = np.repeat(ints, rows, axis=0), np.repeat(node, rows)
    part = ints[:, Entry.X] * rows + np.tile(np.arange(rows), len(ints) // rows)
    word = lambda name: (ints[:, name] & 0xFFFFFFFF).astype(np.uint32)
    wide = lambda pair: pair[0].astype(np.int64) | pair[1].astype(np.int64) << 32
    part = part.astype(np.int32)
    with np.errstate(over="ignore"):
        elements = element_address(word(Entry.A), word(Entry.Y), word(Entry.MASK), part)
        ratio = np.uint32(transfer.ratio)  # type: ignore[attr-defined]
        scales = scale_address(word(Entry.B), word(Entry.FRESH), word(Entry.MASK), part, ratio)
    found = []
    for address, name in ((elements, "element_bytes"), (scales, "scale_bytes")):
        size = np.full(len(node), getattr(transfer, name))
        found.append((wide(address), size, node, np.full(len(node), store)))
    return found


def _ordered(place: Ints, node: Ints, stores: Ints, key: Ints) -> Edges:
    """Edges between accesses of a place of which one at least stores."""
    order = np.lexsort((node, key[node], place))
    place, node, stores = place[order], node[order], stores[order]
    index = np.arange(len(order))
    before = np.maximum.accumulate(np.where(stores, index, -1))
    last = np.append(-1, before[:-1])
    after = np.minimum.accumulate(np.where(stores, index, len(order))[::-1])[::-1]
    following = np.append(after[1:], len(order))
    sources, targets = [], []
    # After the store before, and before the store after.
    for other, earlier in ((last, True), (following, False)):
        there = (other >= 0) & (other < len(order))
        there[there] = place[other[there]] == place[there]
        pair = node[other[there]], node[there]
        sources.append(pair[0] if earlier else pair[1])
        targets.append(pair[1] if earlier else pair[0])
    source, target = np.concatenate(sources), np.concatenate(targets)
    pairs = np.unique(np.stack([source, target], axis=1)[source != target], axis=0)
    return Edges(pairs[:, 0], pairs[:, 1])
