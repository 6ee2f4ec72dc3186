"""From records to operations: what each one reads and writes, by name of the place; a whole trace at once.

Places that are renamed, *resources*, are numbered: rows of vector SRAM, tiles, scalars, accumulators, entries of INT
SRAM. An operation (a node) writes some rows; its entries say how. Products and write-outs of m_accum and v_accum are
left to :mod:`.chains`, where they are not executed one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from plena_jax.isa import TOPK_POLICIES
from plena_jax.machine.fused.families import COLUMNS, COPY, OF_SCALARS, Entry, Family, topk_rows
from plena_jax.machine.fused.resources import Ints, Resources
from plena_jax.machine.record import Flag, Record
from plena_jax.machine.semantics import Stage, branches
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.transfer import Transfer, Transfers


class _Columns:
    """Columns of arrays of one length, collected in pieces."""

    def __init__(self, *names: str) -> None:
        self.pieces: dict[str, list[Ints]] = {name: [] for name in names}
        self.count = 0

    def add(self, size: int, **columns: Ints | int) -> int:
        """Append, and return the index of the first."""
        first = self.count
        for name, piece in self.pieces.items():
            piece.append(np.broadcast_to(np.asarray(columns[name], np.int64), (size,)))
        self.count += size
        return first

    def __getitem__(self, name: str) -> Ints:
        pieces = self.pieces[name]
        if len(pieces) != 1:
            self.pieces[name] = pieces = [np.concatenate(pieces) if pieces else np.zeros(0, np.int64)]
        return pieces[0]


class Accesses:
    """Operations of a trace, and what they read and write.

    Attributes:
        nodes: family, rows written, key (number of the record).
        entries: node, offset of its rows in those of the node; ``ints`` has the rest.
        reads: resource, key, entry, position (a column of the entry, or COLUMNS + place in its list), offset.
        writes: resource, key, node, offset.
        records: the trace, int32 [n, 16].
        codes: family of each record's function, see :data:`NAMES`.
    """

    def __init__(self, records: np.ndarray, resources: Resources) -> None:
        self.records, self.resources, self.config = records, resources, resources.config
        self.nodes = _Columns("family", "rows", "key")
        self.entries = _Columns("node", "offset")
        self.reads = _Columns("resource", "key", "entry", "position", "offset")
        self.writes = _Columns("resource", "key", "node", "offset")
        self._ints: list[np.ndarray] = []
        #: Length of the list of each entry.
        self._lists: list[Ints] = []
        functions = [(stage, i, b.function.__name__) for stage in Stage for i, b in enumerate(branches(stage))]
        stage, branch = records[:, Record.STAGE], records[:, Record.BRANCH]
        #: Indices of the records of each function, by its name.
        self.of: dict[str, Ints] = {}
        for number, index, name in functions:
            found = np.nonzero((stage == number) & (branch == index))[0]
            if len(found):
                self.of[name] = found

    @property
    def ints(self) -> np.ndarray:
        """int64 [entries, COLUMNS]."""
        return np.concatenate(self._ints) if self._ints else np.zeros((0, COLUMNS), np.int64)

    @property
    def lists(self) -> Ints:
        """Lengths of the lists of entries."""
        return np.concatenate(self._lists) if self._lists else np.zeros(0, np.int64)

    def column(self, name: Record, index: Ints) -> Ints:
        """int64: a column of some records."""
        return self.records[index, name].astype(np.int64)

    def add(self, family: int, index: Ints, rows: int = 1, each: int = 1, listed: int = 0, **ints: Any) -> Ints:
        """Operations of records ``index``, each with ``each`` entries; returns the entries. Lower-case columns."""
        size = len(index)
        first = self.nodes.add(size, family=int(family), rows=rows * each, key=index)
        node, offset = np.repeat(np.arange(size) + first, each), np.tile(np.arange(each) * rows, size)
        entry = self.entries.add(size * each, node=node, offset=offset)
        table = np.zeros((size * each, COLUMNS), np.int64)
        for name, column in ints.items():
            table[:, Entry[name.upper()]] = column
        self._ints.append(table)
        self._lists.append(np.full(size * each, listed))
        return np.arange(size * each) + entry

    def read(self, entry: Ints, index: Ints, resource: Ints, position: Ints | int, offset: Ints | int = 0) -> None:
        """Entries of records ``index`` read rows of resources."""
        columns = {"resource": resource, "key": index, "entry": entry, "position": position, "offset": offset}
        self.reads.add(len(entry), **columns)

    def read_list(self, entry: Ints, index: Ints, resource: Ints, count: int) -> None:
        """Entries read ``count`` resources from ``resource`` on, as the beginning of their lists."""
        steps = np.tile(np.arange(count), len(entry))
        repeated = lambda a: np.repeat(a, count)
        self.read(repeated(entry), repeated(index), repeated(resource) + steps, COLUMNS + steps)

    def write(self, entry: Ints, index: Ints, resource: Ints, offset: Ints | int = 0) -> None:
        """The nodes of entries write resources."""
        node = self.entries["node"][entry]
        self.writes.add(len(entry), resource=resource, key=index, node=node, offset=offset)

    def tile(self, row: Ints) -> Ints:
        """The tile of a row of ``cells``."""
        return self.resources.tile + row // self.config.mlen


# -- lane by lane -----------------------------------------------------------------------------------------------------


_OF_TWO = frozenset(
    kind for family in (Family.ADD, Family.MULTIPLY, Family.SELECT) for kind in (family, OF_SCALARS[family])
)


def _operand(a: Accesses, index: Ints, name: str) -> Ints:
    in_vram = (a.column(Record.FLAGS, index) & int(Flag[f"{name}_VRAM"])) != 0
    row, lane = a.column(Record[name], index), a.column(Record[f"{name}_LANE"], index)
    return np.where(in_vram, a.resources.vram + row, a.resources.scalars(row, lane))


def _lanewise(family: int, a: Accesses, index: Ints) -> None:
    if family not in OF_SCALARS:
        return _of_one_kind(family, a, index)
    in_vram = (a.column(Record.FLAGS, index) & int(Flag.RD_VRAM)) != 0
    for kind, which in ((family, in_vram), (OF_SCALARS[family], ~in_vram)):
        if which.any():
            _of_one_kind(kind, a, index[which])


def _of_one_kind(family: int, a: Accesses, index: Ints) -> None:
    entry = a.add(
        family,
        index,
        mask=a.column(Record.MASK, index),
        argument=a.column(Record.ARGUMENT, index),
        x=a.column(Record.RS2, index) if family is Family.SHIFT else 0,
    )
    a.read(entry, index, _operand(a, index, "RS1"), Entry.A)
    if family in _OF_TWO:
        a.read(entry, index, _operand(a, index, "RS2"), Entry.B)
    dest = _operand(a, index, "RD")
    if family in (Family.SUM, Family.SUM_MASKED, Family.MAX, Family.MAX_MASKED):
        a.read(entry, index, dest, Entry.D)
    a.write(entry, index, dest)


def _map(a: Accesses, index: Ints) -> None:
    lanes = a.config.vlen
    entry = a.add(Family.MAP, index, listed=lanes)
    a.read_list(entry, index, _operand(a, index, "RS1"), lanes)
    a.write(entry, index, a.resources.vram + a.column(Record.RD, index))


# -- accumulators of head slots ---------------------------------------------------------------------------------------


def _parts(index: Ints, count: int) -> tuple[Ints, Ints]:
    """Records repeated for each part, and the part."""
    return np.repeat(index, count), np.tile(np.arange(count), len(index))


def _read_old(a: Accesses, entry: Ints, index: Ints, resource: Ints, position: Entry, offset: Ints | int = 0) -> None:
    """Entries read an accumulator unless it counts as zero."""
    held = a.column(Record.FRESH, index) == 0
    offset = np.broadcast_to(offset, held.shape)[held]
    a.read(entry[held], index[held], np.broadcast_to(resource, held.shape)[held], position, offset)


def _heads(a: Accesses, index: Ints) -> None:
    config, size = a.config, wide_rows(a.config)
    index, part = _parts(index, config.broadcast_amount * config.mlen // size)
    column = lambda name: a.column(name, index)
    entry = a.add(
        Family.BMM,
        index,
        rows=size,
        listed=size,
        argument=column(Record.ARGUMENT),
        fresh=column(Record.FRESH),
        x=column(Record.RS1_LANE),
        y=part,
    )
    first = a.resources.vram + column(Record.RS2) + part % (config.mlen // size) * size
    a.read_list(entry, index, first, size)
    _read_old(a, entry, index, a.resources.hm + part, Entry.D)
    a.read(entry, index, np.full(len(entry), a.resources.scale), Entry.A)
    a.read(entry, index, a.tile(column(Record.RS1)), Entry.B)
    a.write(entry, index, a.resources.hm + part)


def _write_heads(a: Accesses, index: Ints) -> None:
    config, size = a.config, wide_rows(a.config)
    index, row = _parts(index, config.broadcast_amount * config.mlen)
    entry = a.add(Family.WRITE_OUT, index, fresh=a.column(Record.FRESH, index))
    _read_old(a, entry, index, a.resources.hm + row // size, Entry.A, row % size)
    a.write(entry, index, a.resources.vram + a.column(Record.RD, index) + row)


def _write_vectors(a: Accesses, index: Ints) -> None:
    index, part = _parts(index, a.config.broadcast_amount)
    entry = a.add(Family.WRITE_OUT, index, fresh=a.column(Record.FRESH, index))
    _read_old(a, entry, index, a.resources.hv + part, Entry.A)
    a.write(entry, index, a.resources.vram + a.column(Record.RD, index) + part)


def _head_vectors(family: Family, a: Accesses, index: Ints) -> None:
    index, part = _parts(index, a.config.broadcast_amount)
    entry = _times_tile(a, family, index, part, a.resources.hv + part)
    a.read(entry, index, np.full(len(entry), a.resources.scale), Entry.Y)


def _times_tile(a: Accesses, family: Family, index: Ints, part: Ints | int, accumulator: Ints) -> Ints:
    column = lambda name: a.column(name, index)
    entry = a.add(family, index, argument=part, fresh=column(Record.FRESH), x=column(Record.RS1_LANE))
    a.read(entry, index, a.resources.vram + column(Record.RS2), Entry.A)
    a.read(entry, index, a.tile(column(Record.RS1)), Entry.B)
    _read_old(a, entry, index, accumulator, Entry.D)
    a.write(entry, index, accumulator)
    return entry


def single_vectors(a: Accesses, family: Family, index: Ints) -> None:
    """M_MV or M_TMV by themselves."""
    _times_tile(a, family, index, 0, np.full(len(index), a.resources.v_accum))


def single_blocks(a: Accesses, family: Family, index: Ints) -> None:
    """M_MM or M_TMM by themselves."""
    config = a.config
    tile, x = (Record.RS1, Record.RS2) if family is Family.MM else (Record.RS2, Record.RS1)
    row = a.column(tile, index)
    y, fresh = row % config.mlen, a.column(Record.FRESH, index)
    entry = a.add(family, index, rows=config.blen, listed=config.blen, y=y, fresh=fresh)
    a.read_list(entry, index, a.resources.vram + a.column(x, index), config.blen)
    accumulator = np.full(len(index), a.resources.m_accum)
    _read_old(a, entry, index, accumulator, Entry.D)
    a.read(entry, index, a.tile(row), Entry.B)
    a.write(entry, index, accumulator)


# -- transfers, top k -------------------------------------------------------------------------------------------------


def _transfer_columns(a: Accesses, index: Ints, part: Ints) -> dict[str, Any]:
    column = lambda name: a.column(name, index)
    return {
        "a": column(Record.RS1),
        "y": column(Record.RS1_LANE),
        "b": column(Record.RS2),
        "fresh": column(Record.RS2_LANE),
        "mask": column(Record.MASK),
        "x": part,
    }


def _precision(a: Accesses, index: Ints, transfers: tuple[Transfer, Transfer]) -> Ints:
    """0 or 1 for the format of each; 0 where both are the same."""
    return a.column(Record.ARGUMENT, index) * (transfers[0] != transfers[1])


def _prefetch_tiles(a: Accesses, index: Ints) -> None:
    config, size = a.config, wide_rows(a.config)
    tiles, blocks = config.prefetch_m_rows // config.mlen, config.mlen // size
    for kv, family in enumerate((Family.PREFETCH_M, Family.PREFETCH_M_KV)):
        of = index[_precision(a, index, Transfers.of(config).matrix) == kv]
        if len(of):
            of, tile = _parts(of, tiles)
            part = np.repeat(tile * blocks, blocks) + np.tile(np.arange(blocks), len(of))
            columns = _transfer_columns(a, np.repeat(of, blocks), part)
            entry = a.add(family, of, rows=size, each=blocks, **columns)
            a.write(entry[::blocks], of, a.tile(a.column(Record.RD, of)) + tile)


def _prefetch_rows(a: Accesses, index: Ints) -> None:
    for kv, family in enumerate((Family.PREFETCH_V, Family.PREFETCH_V_KV)):
        of = index[_precision(a, index, Transfers.of(a.config).vector) == kv]
        of, part = _each_part(a, of)
        if len(of):
            entry = a.add(family, of, **_transfer_columns(a, of, part))
            a.write(entry, of, a.resources.vram + a.column(Record.RD, of) + part)


def _each_part(a: Accesses, index: Ints) -> tuple[Ints, Ints]:
    parts = a.column(Record.PARTS, index)
    repeated = np.repeat(index, parts)
    return repeated, np.arange(len(repeated)) - np.repeat(np.cumsum(parts) - parts, parts)


def _store(a: Accesses, index: Ints) -> None:
    index, part = _each_part(a, index)
    argument = a.column(Record.ARGUMENT, index)
    entry = a.add(Family.STORE, index, rows=0, argument=argument, **_transfer_columns(a, index, part))
    a.read(entry, index, a.resources.vram + a.column(Record.RD, index) + part, Entry.D)


def _topk(a: Accesses, index: Ints) -> None:
    lanes, policy = a.config.vlen, a.column(Record.ARGUMENT, index)
    entry = a.add(Family.TOPK, index, rows=2 * TOPK_ENTRIES, listed=topk_rows(a.config), argument=policy)
    weight = a.resources.scalars(a.column(Record.RD, index), a.column(Record.RD_LANE, index))
    first, row = a.resources.int_sram + a.column(Record.RS2, index), a.resources.vram + a.column(Record.RS1, index)
    for number, (experts, count) in enumerate(TOPK_POLICIES):
        of = policy == number
        a.read_list(entry[of], index[of], row[of], -(-experts // lanes))
        for rank in range(count):
            a.write(entry[of], index[of], weight[of] + rank, rank)
            a.write(entry[of], index[of], first[of] + rank, TOPK_ENTRIES + rank)


_EXPANSIONS: dict[str, Callable[[Accesses, Ints], None]] = {
    name: lambda a, index, family=family: _lanewise(family, a, index)
    for name, family in {
        "add": Family.ADD,
        "multiply": Family.MULTIPLY,
        "select": Family.SELECT,
        "exp": Family.EXP,
        "reciprocal": Family.RECIPROCAL,
        "sqrt": Family.SQRT,
        "move": COPY,
        "v_shft_v": Family.SHIFT,
        "v_red_sum": Family.SUM,
        "v_red_sum_masked": Family.SUM_MASKED,
        "v_red_max": Family.MAX,
        "v_red_max_masked": Family.MAX_MASKED,
    }.items()
} | {
    "s_map_v_fp": _map,
    "m_bmm": _heads,
    "m_bmm_wo": _write_heads,
    "m_bmv": lambda a, index: _head_vectors(Family.BMV, a, index),
    "m_btmv": lambda a, index: _head_vectors(Family.BTMV, a, index),
    "m_bmv_wo": _write_vectors,
    "h_prefetch_m": _prefetch_tiles,
    "h_prefetch_v": _prefetch_rows,
    "h_store_v": _store,
    "v_topk": _topk,
}
#: Functions whose records are left to :mod:`.chains`.
CHAINED = ("m_mm", "m_tmm", "m_mm_wo", "m_mv", "m_tmv", "m_mv_wo")


def accesses(records: np.ndarray, resources: Resources) -> Accesses:
    """All operations but those of :data:`CHAINED`."""
    found = Accesses(records, resources)
    for name, index in found.of.items():
        if name not in CHAINED:
            _EXPANSIONS[name](found, index)
    return found
