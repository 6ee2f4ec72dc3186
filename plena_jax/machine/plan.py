"""From a log to records: where datapath instructions read and write, and whether they may. Works on a whole log at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.isa import Field
from plena_jax.machine.control import LOG_COLUMNS
from plena_jax.machine.decode import Column, Slot, Special, Table, column
from plena_jax.machine.faults import Fault
from plena_jax.machine.record import WIDTH, Record
from plena_jax.machine.semantics.registry import Stage
from plena_jax.machine.transfer import add64, blocks_touched, element_address, scale_address

_FIELDS = {Field.RD: "d", Field.RS1: "x", Field.RS2: "y"}
_MOST = np.uint32(0xFFFFFFFF)


class Plan(NamedTuple):
    """What a log amounts to.

    Attributes:
        records: int32 [rows, 16]; those from ``count`` on are not to be run.
        count: int32 [], records before the first fault.
        fault: int32 [], a :class:`Fault`, 0 if there is none.
        needed: uint32 [], VRAM rows or HBM bytes that an UNALLOCATED fault is about.
        tick: uint32 [], of the faulting instruction.
        vram_top: uint32 [], one past the last VRAM row touched.
        hbm_top: uint32 [], one past the last byte stored to HBM.
        moved: uint32 [2, 2], 64-byte blocks read and written, low and high word.
    """

    records: jax.Array
    count: jax.Array
    fault: jax.Array
    needed: jax.Array
    tick: jax.Array
    vram_top: jax.Array
    hbm_top: jax.Array
    moved: jax.Array


class _Log:
    """The columns of a log and of the templates of its instructions, as arrays over its rows."""

    def __init__(self, log: jax.Array, table: Table) -> None:
        self.log = log
        pc = log[:, LOG_COLUMNS.index("pc")].astype(jnp.int32)
        words = table.words.at[pc].get(mode="promise_in_bounds")
        self.word = words[:, 0]
        self.rows = table.templates.at[words[:, 1].astype(jnp.int32)].get(mode="promise_in_bounds")

    def __getitem__(self, name: str) -> jax.Array:
        return self.log[:, LOG_COLUMNS.index(name)]

    def column(self, index: int) -> jax.Array:
        """int32 [n]."""
        return self.rows[:, index]

    def unsigned(self, index: int) -> jax.Array:
        """uint32 [n]."""
        return self.rows[:, index].astype(jnp.uint32)


class _Operand(NamedTuple):
    value: jax.Array
    block: jax.Array
    row: jax.Array
    lane: jax.Array
    fault: jax.Array
    vram_top: jax.Array


def plan(
    log: jax.Array, logged: jax.Array, table: Table, config: MachineConfig, vram_rows: int, hbm_bytes: int
) -> Plan:
    """Turn a log into records.

    Args:
        log: uint32 [rows + 1, columns], of which ``logged`` rows count.
        table: the decoded program.
        config: the machine.
        vram_rows, hbm_bytes: what the state holds; touching more is a fault that ``run`` answers by growing it.
    """
    size = log.shape[0] - 1
    entries = _Log(log[:size], table)
    present = jnp.arange(size) < logged.astype(jnp.int32)
    operands = {f: _operand(entries, f, config) for f in _FIELDS}
    fault = jnp.zeros(size, jnp.int32)
    for operand in operands.values():
        fault = jnp.where(fault == 0, operand.fault, fault)
    vram_top = jnp.stack([o.vram_top for o in operands.values()]).max(axis=0)
    transfers = _addresses(entries, operands)
    records, fault, vram_top = _records(entries, operands, transfers, fault, vram_top, config)
    fault = jnp.where((fault == 0) & (vram_top > np.uint32(vram_rows)), int(Fault.VRAM_UNALLOCATED), fault)
    fault = jnp.where(present, fault, 0)
    moves = present & (entries.column(Column.SPECIAL) > Special.WRITE_OUT)
    first = _first(fault != 0)
    end = jnp.minimum(first, logged.astype(jnp.int32))
    moved, hbm_top, stop, stop_fault, stop_top = _account(transfers, moves, end, config, hbm_bytes)
    count = jnp.minimum(jnp.minimum(first, stop), logged.astype(jnp.int32))
    at = jnp.minimum(first, size - 1)
    stopped = stop < size
    none = first == size
    fault_here = jnp.where(stopped, stop_fault, jnp.where(none, 0, fault[at]))
    needed = jnp.where(stopped, stop_top, vram_top[at])
    executed = jnp.arange(size) < count
    return Plan(
        records=records,
        count=count,
        fault=fault_here,
        needed=needed,
        tick=entries["tick"][jnp.minimum(count, size - 1)],
        vram_top=jnp.max(jnp.where(executed, vram_top, np.uint32(0))),
        hbm_top=hbm_top,
        moved=moved,
    )


def _first(holds: jax.Array) -> jax.Array:
    """int32 []: index of the first True, or the number of elements."""
    size = holds.shape[0]
    return jnp.min(jnp.where(holds, jnp.arange(size, dtype=jnp.int32), size))


def _operand(log: _Log, field: Field, config: MachineConfig) -> _Operand:
    flag = lambda slot: log.column(column(field, slot)) == 1
    u = lambda slot: log.unsigned(column(field, slot))
    zero = np.uint32(0)
    number = (log.word >> field.shift) & field.limit
    immediate = jnp.where(flag(Slot.ADD_IMM), log.word >> Field.IMM18.shift, zero)
    value = jnp.where(flag(Slot.IS_GP), log[_FIELDS[field]], number)
    value = value + immediate + jnp.where(flag(Slot.ADD_RD), log["d"], zero)
    # A field without an operand has zeros everywhere, and no limits.
    size = jnp.maximum(u(Slot.BLOCK), 1)
    block = value // size
    offset = value - block * size
    misaligned = (offset % jnp.maximum(u(Slot.OFFSET_UNIT), 1) != 0) | (offset >= jnp.maximum(u(Slot.OFFSET_LIMIT), 1))
    outside = (block > u(Slot.LAST)) | flag(Slot.NEVER)
    fault = jnp.where(misaligned, int(Fault.MISALIGNED), jnp.where(outside, int(Fault.OUT_OF_RANGE), 0))
    rows = u(Slot.VRAM_ROWS)
    row = value // np.uint32(config.vlen)
    in_rows = flag(Slot.IN_ROWS)
    return _Operand(
        value=value,
        block=block,
        row=jnp.where(in_rows, row + u(Slot.BASE), value),
        lane=jnp.where(in_rows, value - row * np.uint32(config.vlen), zero),
        fault=jnp.where(u(Slot.BLOCK) > 0, fault, 0),
        vram_top=jnp.where(rows > 0, block + rows, zero),
    )


def _records(
    log: _Log,
    operands: dict[Field, _Operand],
    transfers: dict[str, jax.Array],
    fault: jax.Array,
    vram_top: jax.Array,
    config: MachineConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Records, faults and VRAM tops; stores that leave HBM are found by :func:`_account`."""
    rd, rs1, rs2 = operands.values()
    stores = log.column(Column.STORES) == 1
    swapped = lambda a, b: (jnp.where(stores, b, a), jnp.where(stores, a, b))
    rd_row, rs1_row = swapped(rd.row, rs1.row)
    rd_lane, rs1_lane = swapped(rd.lane, rs1.lane)
    special = log.column(Column.SPECIAL)
    writes_out, moves = special == Special.WRITE_OUT, special > Special.WRITE_OUT
    stride = jnp.where(log.column(Column.STRIDED) == 1, rs1.value, np.uint32(1))
    rows, misaligned, outside = _written_rows(rd, stride, config)
    bad = jnp.where(misaligned, int(Fault.MISALIGNED), jnp.where(outside, int(Fault.OUT_OF_RANGE), 0))
    fault = jnp.where(writes_out & (fault == 0), bad, fault)
    vram_top = jnp.where(writes_out, rows, vram_top)
    parts = jnp.where(writes_out, jnp.where(stride == 1, 1, config.blen), log.column(Column.PARTS))
    # Prefetched rows behind the end of VRAM are dropped.
    capacity = np.uint32(min(config.vector_sram_size, 2**32 - 1))
    kept = jnp.minimum(np.uint32(config.hbm_v_prefetch_amount), capacity - jnp.minimum(rd.block, capacity))
    prefetches = special == Special.PREFETCH_V
    parts = jnp.where(prefetches, kept.astype(jnp.int32), parts)
    vram_top = jnp.where(prefetches, rd.block + kept, vram_top)
    mask = jnp.where(log.column(Column.MASKED) == 1, log["mask"], _MOST)
    touched = log.unsigned(Column.ADDS_TO) | log.unsigned(Column.DRAINS)
    columns: dict[Record, Any] = {
        Record.STAGE: log.column(Column.STAGE),
        Record.BRANCH: log.column(Column.BRANCH),
        Record.PARTS: parts,
        Record.FLAGS: log.column(Column.FLAGS),
        Record.RD: rd_row,
        Record.RD_LANE: rd_lane,
        Record.RS1: jnp.where(moves, transfers["element_low"], rs1_row),
        Record.RS1_LANE: jnp.where(moves, transfers["element_high"], rs1_lane),
        Record.RS2: jnp.where(moves, transfers["scale_low"], rs2.row),
        Record.RS2_LANE: jnp.where(moves, transfers["scale_high"], rs2.lane),
        Record.MASK: jnp.where(moves, transfers["stride"], jnp.where(writes_out, stride, mask)),
        Record.ARGUMENT: log.column(Column.ARGUMENT),
        Record.FRESH: (log["fresh"] & touched) != 0,
        Record.PC: log["pc"],
        Record.TICK: log["tick"],
    }
    stacked = [jnp.asarray(columns[r]).astype(jnp.uint32) for r in Record]
    stacked += [jnp.zeros_like(stacked[0])] * (WIDTH - len(stacked))
    records = lax.bitcast_convert_type(jnp.stack(stacked, axis=1), jnp.int32)
    return records, fault, vram_top


def _written_rows(rd: _Operand, stride: jax.Array, config: MachineConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One past the highest row that M_MM_WO writes, and what is wrong with its rows.

    Addresses count elements modulo 2**32, so that a large stride can step backwards.
    """
    row = jnp.arange(config.blen, dtype=jnp.uint32)[:, None]
    address = (rd.block + row * stride) * np.uint32(config.mlen)
    rows = address // np.uint32(config.mlen)
    outside = jnp.any(rows >= np.uint32(min(config.vector_sram_size, 2**32 - 1)), axis=0)
    return rows.max(axis=0) + 1, jnp.any(address % np.uint32(config.mlen) != 0, axis=0), outside


# -- transfers --------------------------------------------------------------------------------------------------------


def _addresses(log: _Log, operands: dict[Field, _Operand]) -> dict[str, jax.Array]:
    """uint32 [n] each: where the first rows of H_* instructions are in HBM, and what moves for each row."""
    offset = operands[Field.RS1].value
    base = log["a_low"], log["a_high"]
    ratio = jnp.maximum(log.unsigned(Column.RATIO), 1)
    element_low, element_high = add64(*base, offset)
    scale_low, scale_high = add64(*add64(*base, log["scale"]), offset // ratio)
    return {
        "element_low": element_low,
        "element_high": element_high,
        "scale_low": scale_low,
        "scale_high": scale_high,
        "stride": jnp.where(log.column(Column.STRIDED) == 1, log["stride"], log.unsigned(Column.ROW_STEP)),
        "ratio": ratio,
        "element_bytes": log.unsigned(Column.ELEMENT_BYTES),
        "scale_bytes": log.unsigned(Column.SCALE_BYTES),
        "special": log.unsigned(Column.SPECIAL),
    }


class _Account(NamedTuple):
    index: jax.Array
    moved: jax.Array
    top: jax.Array
    stop: jax.Array
    fault: jax.Array
    needed: jax.Array


def _account(
    transfers: dict[str, jax.Array], moves: jax.Array, end: jax.Array, config: MachineConfig, hbm_bytes: int
) -> tuple[jax.Array, ...]:
    """Go through the H_* instructions before ``end``: blocks moved, and stores that leave HBM.

    Returns:
        ``(moved, hbm_top, stop, fault, needed)``: the index of a store that may not be, or the number of rows, its fault, and
        the bytes of HBM that it needs.
    """
    following, size = _following(moves), moves.shape[0]
    table = jnp.stack(list(transfers.values()), axis=1)

    def body(carry: _Account) -> _Account:
        row = lax.dynamic_index_in_dim(table, carry.index, keepdims=False, allow_negative_indices=False)
        one = _transfer(dict(zip(transfers, row, strict=True)), config, hbm_bytes)
        bad = one.fault != 0
        low, high = add64(carry.moved[:, 0], carry.moved[:, 1], one.blocks)
        return _Account(
            following(carry.index),
            jnp.where(bad, carry.moved, jnp.stack([low, high], axis=1)),
            jnp.where(bad, carry.top, jnp.maximum(carry.top, one.top)),
            jnp.where(bad, carry.index, carry.stop),
            one.fault,
            jnp.where(bad, one.top, carry.needed),
        )

    zero = jnp.uint32(0)
    none = jnp.zeros((2, 2), jnp.uint32)
    start = _Account(following(jnp.int32(-1)), none, zero, jnp.int32(size), jnp.int32(0), zero)
    _, *result = lax.while_loop(lambda c: (c.index < end) & (c.stop == size), body, start)
    return tuple(result)


def _following(holds: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """A function from an index to the next larger one at which ``holds``, or their number. It looks at one block and one summary."""
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
    fault: jax.Array
    #: uint32 [2]: blocks read and written.
    blocks: jax.Array
    top: jax.Array


def _transfer(of: dict[str, jax.Array], config: MachineConfig, hbm_bytes: int) -> _Transferred:
    special, zero = of["special"], jnp.uint32(0)
    stores = special == Special.STORE
    amounts = (config.prefetch_m_rows, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount)
    count = jnp.where(
        special == Special.PREFETCH_M, amounts[0], jnp.where(special == Special.PREFETCH_V, amounts[1], amounts[2])
    )
    row = jnp.arange(max(amounts), dtype=jnp.int32)
    wanted = row < count
    element = element_address(of["element_low"], of["element_high"], of["stride"], row)
    scale = scale_address(of["scale_low"], of["scale_high"], of["stride"], row, of["ratio"])

    beyond, unallocated, top = jnp.zeros(row.shape, bool), jnp.zeros(row.shape, bool), jnp.zeros(row.shape, jnp.uint32)
    capacity_low, capacity_high = np.uint32(config.hbm_size & 0xFFFFFFFF), np.uint32(config.hbm_size >> 32)
    ends = ((element, of["element_bytes"]), (scale, of["scale_bytes"]))
    for address, size in ends:
        low, high = add64(*address, size)
        here = wanted & (size > 0)
        over = (high > capacity_high) | ((high == capacity_high) & (low > capacity_low))
        beyond = beyond | (over & here)
        unallocated = unallocated | (((high > 0) | (low > np.uint32(min(hbm_bytes, 2**32 - 1)))) & here)
        top = jnp.maximum(top, jnp.where(here, jnp.where(high > 0, _MOST, low), zero))
    worst = jnp.max(jnp.where(beyond, 2, jnp.where(unallocated, 1, 0)))
    fault = jnp.where(worst == 2, int(Fault.HBM_RANGE), jnp.where(worst == 1, int(Fault.HBM_UNALLOCATED), 0))

    touched = lambda low, size: jnp.where(wanted & (size > 0), blocks_touched(low, size), zero)
    # A prefetch reads one block of scales a row, a store all that it overlaps.
    scale_blocks = touched(scale[0], of["scale_bytes"])
    scale_blocks = jnp.where(stores, scale_blocks, jnp.minimum(scale_blocks, 1))
    moved = jnp.sum(touched(element[0], of["element_bytes"]) + scale_blocks, dtype=jnp.uint32)
    blocks = jnp.stack([moved, jnp.where(stores, moved, zero)])
    return _Transferred(jnp.where(stores, fault, 0), blocks, jnp.where(stores, jnp.max(top), zero))
