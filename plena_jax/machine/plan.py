"""From a log to records: where datapath instructions read and write, and whether they may; a whole log at once.

The same code works on NumPy arrays, where the host drives a run, and on traced ones, where a run is part of somebody's
``jit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import Array, array_module
from plena_jax.config import MachineConfig
from plena_jax.isa import Field
from plena_jax.machine.control import LOG_COLUMNS
from plena_jax.machine.decode import Column, Slot, Special, Table, column
from plena_jax.machine.faults import Fault
from plena_jax.machine.record import Record
from plena_jax.machine.transfer import add64, blocks_touched, element_address, scale_address

_FIELDS = {Field.RD: "d", Field.RS1: "x", Field.RS2: "y"}
_MOST = np.uint32(0xFFFFFFFF)
#: What a state holds in which nothing is unallocated.
EVERYTHING = 2**32 - 1


class Plan(NamedTuple):
    """What a log amounts to.

    Attributes:
        records: int32 [rows, 16]; those from ``count`` on are not to be run.
        count: int32 [], records before the first fault.
        fault: int32 [], a :class:`Fault`, 0 if there is none.
        needed: uint32 [], VRAM rows or HBM bytes that an UNALLOCATED fault is about, 2**32 - 1 for so many or more.
        tick: uint32 [], of the faulting instruction.
        vram_top: uint32 [], one past the last VRAM row touched.
        hbm_top: uint32 [], one past the last byte stored to HBM, 2**32 - 1 for that or more.
        moved: uint32 [2, 2], 64-byte blocks read and written, low and high word.
    """

    records: Array
    count: Array
    fault: Array
    needed: Array
    tick: Array
    vram_top: Array
    hbm_top: Array
    moved: Array


class _Log:
    """The columns of a log and of the templates of its instructions, as arrays over its rows."""

    def __init__(self, log: Array, table: Table) -> None:
        self.log = log
        self.xp = array_module(log)
        words = _take(table.words, self["pc"].astype(np.int32))
        self.word = words[0]
        self.columns = _take(table.templates, words[1].astype(np.int32))

    def __getitem__(self, name: str) -> Array:
        return self.log[:, LOG_COLUMNS.index(name)]

    def column(self, index: int) -> Array:
        """int32 [n]."""
        return self.columns[index]

    def unsigned(self, index: int) -> Array:
        """uint32 [n]."""
        return self.columns[index].astype(np.uint32)


def _take(table: Array, rows: Array) -> Array:
    """[columns, n]: some rows of a table; in NumPy each column in one piece, which is what it needs to be fast."""
    if isinstance(table, np.ndarray):
        return np.take(np.ascontiguousarray(table.T), rows, axis=1)
    return table.at[rows].get(mode="promise_in_bounds").T


class _Operand(NamedTuple):
    value: Array
    block: Array
    row: Array
    lane: Array
    fault: Array
    vram_top: Array


def plan(log: Array, logged: Array, table: Table, config: MachineConfig, vram_rows: int, hbm_bytes: int) -> Plan:
    """Turn a log into records.

    Args:
        log: uint32 [rows, columns] with at least one row, of which ``logged`` count.
        logged: uint32 [].
        table: the decoded program; of the same kind of arrays as the log.
        config: the machine.
        vram_rows, hbm_bytes: what the state holds, or ``EVERYTHING``; touching more is a fault that ``run`` answers by
            growing it.
    """
    entries, size, logged = _Log(log, table), log.shape[0], logged.astype(np.int32)
    xp = entries.xp
    index = xp.arange(size, dtype=np.int32)
    operands = {f: _operand(entries, f, config) for f in _FIELDS}
    fault = xp.zeros(size, np.int32)
    for operand in operands.values():
        fault = xp.where(fault == 0, operand.fault, fault)
    vram_top = xp.stack([o.vram_top for o in operands.values()]).max(axis=0)
    transfers = _addresses(entries, operands)
    records, fault, vram_top = _records(entries, operands, transfers, fault, vram_top, config)
    fault = xp.where((fault == 0) & (vram_top > np.uint32(vram_rows)), int(Fault.VRAM_UNALLOCATED), fault)
    fault = xp.where(index < logged, fault, 0)
    first = xp.min(xp.where(fault != 0, index, size))
    moves = (index < xp.minimum(first, logged)) & (entries.column(Column.SPECIAL) > Special.WRITE_OUT)
    moved, hbm_top, stop, stop_fault, stop_top = _account(transfers, moves, config, hbm_bytes)
    count = xp.minimum(xp.minimum(first, stop), logged)
    at = xp.minimum(first, size - 1)
    return Plan(
        records=records,
        count=count,
        fault=xp.where(stop < size, stop_fault, xp.where(first < size, fault[at], 0)),
        needed=xp.where(stop < size, stop_top, vram_top[at]),
        tick=entries["tick"][xp.minimum(count, size - 1)],
        vram_top=xp.max(xp.where(index < count, vram_top, np.uint32(0))),
        hbm_top=hbm_top,
        moved=moved,
    )


def _operand(log: _Log, field: Field, config: MachineConfig) -> _Operand:
    xp = log.xp
    flag = lambda slot: log.column(column(field, slot)) == 1
    u = lambda slot: log.unsigned(column(field, slot))
    zero = np.uint32(0)
    number = (log.word >> field.shift) & field.limit
    immediate = xp.where(flag(Slot.ADD_IMM), log.word >> Field.IMM18.shift, zero)
    value = xp.where(flag(Slot.IS_GP), log[_FIELDS[field]], number)
    value = value + immediate + xp.where(flag(Slot.ADD_RD), log["d"], zero)
    # A field without an operand has zeros everywhere, and no limits.
    size = xp.maximum(u(Slot.BLOCK), 1)
    block = value // size
    offset = value - block * size
    misaligned = (offset % xp.maximum(u(Slot.OFFSET_UNIT), 1) != 0) | (offset >= xp.maximum(u(Slot.OFFSET_LIMIT), 1))
    outside = (block > u(Slot.LAST)) | flag(Slot.NEVER)
    fault = xp.where(misaligned, int(Fault.MISALIGNED), xp.where(outside, int(Fault.OUT_OF_RANGE), 0))
    rows = u(Slot.VRAM_ROWS)
    row = value // np.uint32(config.vlen)
    in_rows = flag(Slot.IN_ROWS)
    return _Operand(
        value=value,
        block=block,
        row=xp.where(in_rows, row + u(Slot.BASE), value),
        lane=xp.where(in_rows, value - row * np.uint32(config.vlen), zero),
        fault=xp.where(u(Slot.BLOCK) > 0, fault, 0),
        vram_top=xp.where(rows > 0, block + rows, zero),
    )


def _records(
    log: _Log,
    operands: dict[Field, _Operand],
    transfers: dict[str, Array],
    fault: Array,
    vram_top: Array,
    config: MachineConfig,
) -> tuple[Array, Array, Array]:
    """Records, faults and VRAM tops; stores that leave HBM are found by :func:`_account`."""
    xp = log.xp
    rd, rs1, rs2 = operands.values()
    stores = log.column(Column.STORES) == 1
    swapped = lambda a, b: (xp.where(stores, b, a), xp.where(stores, a, b))
    rd_row, rs1_row = swapped(rd.row, rs1.row)
    rd_lane, rs1_lane = swapped(rd.lane, rs1.lane)
    special = log.column(Column.SPECIAL)
    writes_out, moves = special == Special.WRITE_OUT, special > Special.WRITE_OUT
    stride = xp.where(log.column(Column.STRIDED) == 1, rs1.value, np.uint32(1))
    rows, misaligned, outside = _written_rows(rd, stride, config)
    bad = xp.where(misaligned, int(Fault.MISALIGNED), xp.where(outside, int(Fault.OUT_OF_RANGE), 0))
    fault = xp.where(writes_out & (fault == 0), bad, fault)
    vram_top = xp.where(writes_out, rows, vram_top)
    parts = xp.where(writes_out, xp.where(stride == 1, 1, config.blen), log.column(Column.PARTS))
    # Prefetched rows behind the end of VRAM are dropped.
    capacity = np.uint32(min(config.vector_sram_size, 2**32 - 1))
    kept = xp.minimum(np.uint32(config.hbm_v_prefetch_amount), capacity - xp.minimum(rd.block, capacity))
    prefetches = special == Special.PREFETCH_V
    parts = xp.where(prefetches, kept.astype(np.int32), parts)
    vram_top = xp.where(prefetches, rd.block + kept, vram_top)
    mask = xp.where(log.column(Column.MASKED) == 1, log["mask"], _MOST)
    touched = log.unsigned(Column.ADDS_TO) | log.unsigned(Column.DRAINS)
    columns: dict[Record, Any] = {
        Record.STAGE: log.column(Column.STAGE),
        Record.BRANCH: log.column(Column.BRANCH),
        Record.PARTS: parts,
        Record.FLAGS: log.column(Column.FLAGS),
        Record.RD: rd_row,
        Record.RD_LANE: rd_lane,
        Record.RS1: xp.where(moves, transfers["element_low"], rs1_row),
        Record.RS1_LANE: xp.where(moves, transfers["element_high"], rs1_lane),
        Record.RS2: xp.where(moves, transfers["scale_low"], rs2.row),
        Record.RS2_LANE: xp.where(moves, transfers["scale_high"], rs2.lane),
        Record.MASK: xp.where(moves, transfers["stride"], xp.where(writes_out, stride, mask)),
        Record.ARGUMENT: log.column(Column.ARGUMENT),
        Record.FRESH: (log["fresh"] & touched) != 0,
        Record.PC: log["pc"],
        Record.TICK: log["tick"],
        Record.SLOT: xp.zeros_like(rd_row),
    }
    stacked = [columns[r].astype(np.uint32) for r in Record]
    return xp.stack(stacked, axis=1).view(np.int32), fault, vram_top


def _written_rows(rd: _Operand, stride: Array, config: MachineConfig) -> tuple[Array, Array, Array]:
    """One past the highest row that M_MM_WO writes, and what is wrong with its rows.

    Addresses count elements modulo 2**32, so that a large stride can step backwards.
    """
    row = np.arange(config.blen, dtype=np.uint32)[:, None]
    address = (rd.block[None] + row * stride[None]) * np.uint32(config.mlen)
    rows = address // np.uint32(config.mlen)
    outside = (rows >= np.uint32(min(config.vector_sram_size, 2**32 - 1))).any(axis=0)
    return rows.max(axis=0) + 1, (address % np.uint32(config.mlen) != 0).any(axis=0), outside


# -- transfers --------------------------------------------------------------------------------------------------------


def _addresses(log: _Log, operands: dict[Field, _Operand]) -> dict[str, Array]:
    """uint32 [n] each: where the first rows of H_* instructions are in HBM, and what moves for each row."""
    offset = operands[Field.RS1].value
    base = log["a_low"], log["a_high"]
    ratio = log.xp.maximum(log.unsigned(Column.RATIO), 1)
    element_low, element_high = add64(*base, offset)
    scale_low, scale_high = add64(*add64(*base, log["scale"]), offset // ratio)
    return {
        "element_low": element_low,
        "element_high": element_high,
        "scale_low": scale_low,
        "scale_high": scale_high,
        "stride": log.xp.where(log.column(Column.STRIDED) == 1, log["stride"], log.unsigned(Column.ROW_STEP)),
        "ratio": ratio,
        "element_bytes": log.unsigned(Column.ELEMENT_BYTES),
        "scale_bytes": log.unsigned(Column.SCALE_BYTES),
        "special": log.unsigned(Column.SPECIAL),
    }


class _Account(NamedTuple):
    """What H_* instructions move: blocks read and written [2, 2], and one past the last byte stored.

    ``stop`` is the index of a store that may not be, or the length of the log; then its fault, and the bytes it needs.
    """

    moved: Array
    top: Array
    stop: Array
    fault: Array
    needed: Array


#: Transfers that are accounted for at once.
_AT_ONCE = 1024


def _account(transfers: dict[str, Array], moves: Array, config: MachineConfig, hbm_bytes: int) -> _Account:
    """Go through the H_* instructions, which are where ``moves``."""
    if not isinstance(moves, np.ndarray):
        return _account_traced(transfers, moves, config, hbm_bytes)
    size, top, blocks = len(moves), np.uint32(0), np.zeros(2, np.uint64)
    indices = np.nonzero(moves)[0]
    stop, fault, needed = size, np.int32(0), np.uint32(0)
    for start in range(0, len(indices), _AT_ONCE):
        chunk = indices[start : start + _AT_ONCE]
        many = _transfer({name: values[chunk] for name, values in transfers.items()}, config, hbm_bytes)
        bad = np.nonzero(many.fault)[0]
        good = slice(0, bad[0] if len(bad) else len(chunk))
        blocks += many.blocks[good].sum(axis=0, dtype=np.uint64)
        top = np.maximum(top, many.top[good].max(initial=0))
        if len(bad):
            stop, fault, needed = chunk[bad[0]], many.fault[bad[0]], many.top[bad[0]]
            break
    moved = np.stack([blocks & np.uint64(0xFFFFFFFF), blocks >> np.uint64(32)], axis=1).astype(np.uint32)
    return _Account(moved, top, np.int32(stop), fault, needed)


def _account_traced(
    transfers: dict[str, jax.Array], moves: jax.Array, config: MachineConfig, hbm_bytes: int
) -> _Account:
    following, size = _following(moves), moves.shape[0]
    table = jnp.stack(list(transfers.values()), axis=1)

    def body(carry: tuple[jax.Array, _Account]) -> tuple[jax.Array, _Account]:
        index, so_far = carry
        row = lax.dynamic_index_in_dim(table, index, keepdims=False, allow_negative_indices=False)
        one = _transfer(dict(zip(transfers, row, strict=True)), config, hbm_bytes)
        bad = one.fault != 0
        moved = jnp.stack(add64(so_far.moved[:, 0], so_far.moved[:, 1], one.blocks), axis=1)
        return following(index), _Account(
            jnp.where(bad, so_far.moved, moved),
            jnp.where(bad, so_far.top, jnp.maximum(so_far.top, one.top)),
            jnp.where(bad, index, so_far.stop),
            one.fault,
            jnp.where(bad, one.top, so_far.needed),
        )

    zero = jnp.uint32(0)
    start = _Account(jnp.zeros((2, 2), jnp.uint32), zero, jnp.int32(size), jnp.int32(0), zero)
    goes_on = lambda c: (c[0] < size) & (c[1].stop == size)
    return lax.while_loop(goes_on, body, (following(jnp.int32(-1)), start))[1]


def _following(holds: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function from an index to the next larger one at which ``holds``, or the length if there is none."""
    size = 64
    blocks = holds.reshape(-1, size)
    some = jnp.any(blocks, axis=1)

    def first(flags: jax.Array, after: jax.Array) -> jax.Array:
        index = jnp.arange(flags.shape[0], dtype=jnp.int32)
        return jnp.min(jnp.where(flags & (index > after), index, flags.shape[0]))

    def find(index: jax.Array) -> jax.Array:
        at = index + 1
        block = jnp.minimum(at // size, blocks.shape[0] - 1)
        here = first(blocks[block], at - block * size - 1)
        other = first(some, block)
        there = first(blocks[jnp.minimum(other, blocks.shape[0] - 1)], jnp.int32(-1))
        found = jnp.where(here < size, block * size + here, other * size + there)
        return jnp.where((here == size) & (other == blocks.shape[0]), holds.shape[0], found)

    return find


class _Transferred(NamedTuple):
    """int32 [...] faults, uint32 [..., 2] blocks read and written, uint32 [...] one past the last byte stored."""

    fault: Array
    blocks: Array
    top: Array


def _transfer(of: dict[str, Array], config: MachineConfig, hbm_bytes: int) -> _Transferred:
    """Account for H_* instructions; each array in ``of`` has the same shape, which may be that of a scalar."""
    xp, zero = array_module(of["special"]), np.uint32(0)
    of = {name: values[..., None] for name, values in of.items()}
    special, stores = of["special"], of["special"] == Special.STORE
    amounts = (config.prefetch_m_rows, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount)
    count = xp.where(
        special == Special.PREFETCH_M, amounts[0], xp.where(special == Special.PREFETCH_V, amounts[1], amounts[2])
    )
    row = xp.arange(max(amounts), dtype=np.int32)
    wanted = row < count
    element = element_address(of["element_low"], of["element_high"], of["stride"], row)
    scale = scale_address(of["scale_low"], of["scale_high"], of["stride"], row, of["ratio"])

    beyond, unallocated, top = wanted & False, wanted & False, xp.zeros(wanted.shape, np.uint32)
    capacity_low, capacity_high = np.uint32(config.hbm_size & 0xFFFFFFFF), np.uint32(config.hbm_size >> 32)
    ends = ((element, of["element_bytes"]), (scale, of["scale_bytes"]))
    for address, size in ends:
        low, high = add64(*address, size)
        here = wanted & (size > 0)
        # A row that starts in front of the last address there is may end behind it, at a small one.
        over = (high > capacity_high) | ((high == capacity_high) & (low > capacity_low)) | (high < address[1])
        beyond = beyond | (over & here)
        unheld = (high > 0) | (low > np.uint32(hbm_bytes))
        unallocated = unallocated | (unheld & here & (hbm_bytes < EVERYTHING))
        top = xp.maximum(top, xp.where(here, xp.where(high > 0, _MOST, low), zero))
    fault = xp.where(unallocated.any(axis=-1), int(Fault.HBM_UNALLOCATED), 0)
    fault = xp.where(beyond.any(axis=-1), int(Fault.HBM_RANGE), fault).astype(np.int32)

    touched = lambda low, size: xp.where(wanted & (size > 0), blocks_touched(low, size), zero)
    # A prefetch reads one block of scales a row, a store all that it overlaps.
    scale_blocks = touched(scale[0], of["scale_bytes"])
    scale_blocks = xp.where(stores, scale_blocks, xp.minimum(scale_blocks, 1))
    moved = xp.sum(touched(element[0], of["element_bytes"]) + scale_blocks, axis=-1, dtype=np.uint32)
    is_store = stores[..., 0]
    blocks = xp.stack([moved, xp.where(is_store, moved, zero)], axis=-1)
    return _Transferred(xp.where(is_store, fault, 0), blocks, xp.where(is_store, xp.max(top, axis=-1), zero))
