"""Values that are there already: moves of scalars, and operations of scalars on the same values.

Kernels clear an f register before every reduction and fetch the same constant for every row. None of that makes a new
value.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plena_jax.machine.fused.accesses import Accesses
from plena_jax.machine.fused.families import COPY, OF_SCALARS, Entry, Family
from plena_jax.machine.fused.resources import Ints

#: Operations whose results depend on the values of A and B and on ARGUMENT alone.
_PURE = (*OF_SCALARS.values(), Family.SQRT)
#: How often to look: operations on results that were found to be the same are the same too.
_ROUNDS = 2


class Copies(NamedTuple):
    """What need not be computed.

    Attributes:
        source: of each version the one whose value it has: itself, if it is new.
        gone: bool, of each node, whether it makes nothing new.
    """

    source: Ints
    gone: np.ndarray


def copies(a: Accesses, count: int, seen: Ints, made: Ints) -> Copies:
    """Find them.

    Args:
        a: the operations.
        count: versions.
        seen, made: version of each of their reads and writes.
    """
    family, node = a.nodes["family"], a.entries["node"]
    made_by = np.full(a.nodes.count, -1)
    made_by[a.writes["node"]] = made
    source, gone = np.arange(count), np.zeros(a.nodes.count, bool)
    reader, position = node[a.reads["entry"]], a.reads["position"]
    is_copy, is_pure = family == COPY, np.isin(family, _PURE)
    source[made_by[reader[is_copy[reader]]]] = seen[is_copy[reader]]
    gone[is_copy] = True
    source = _followed(source)

    pure = np.nonzero(is_pure)[0]
    if not len(pure):
        return Copies(source, gone)
    operands = np.full((2, a.nodes.count), -1)
    for row, name in enumerate((Entry.A, Entry.B)):
        mine = (position == name) & is_pure[reader]
        operands[row, reader[mine]] = seen[mine]
    argument = np.zeros(a.nodes.count, np.int64)
    argument[node] = a.ints[:, Entry.ARGUMENT]
    for _ in range(_ROUNDS):
        first = np.where(operands[:, pure] >= 0, source[operands[:, pure]], -1)
        keys = np.stack([a.nodes["key"][pure], argument[pure], *first, family[pure]])
        order = np.lexsort(keys)
        copied = np.append(False, (keys[1:, order[1:]] == keys[1:, order[:-1]]).all(axis=0))
        # Of those that are the same the first one in time computes.
        leader = np.maximum.accumulate(np.where(copied, 0, np.arange(len(order))))
        source[made_by[pure[order[copied]]]] = made_by[pure[order[leader[copied]]]]
        gone[pure[order[copied]]] = True
        source = _followed(source)
        pure = pure[order[~copied]]
        if not copied.any():
            break
    return Copies(source, gone)


def _followed(source: Ints) -> Ints:
    """Sources that are no copies themselves."""
    while True:
        further = source[source]
        if (further == source).all():
            return source
        source = further
