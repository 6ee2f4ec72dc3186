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

    def at(self, index: jax.Array) -> _Log:
        """The log of one of its rows."""
        one = object.__new__(_Log)
        slice_of = lambda a: lax.dynamic_slice_in_dim(a, index, 1, allow_negative_indices=False)
        one.log, one.word, one.rows = slice_of(self.log), slice_of(self.word), slice_of(self.rows)
        return one


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
    records, fault, vram_top = _records(entries, operands, fault, vram_top, config)
    fault = jnp.where((fault == 0) & (vram_top > np.uint32(vram_rows)), int(Fault.VRAM_UNALLOCATED), fault)
    fault = jnp.where(present, fault, 0)
    moves = present & (entries.column(Column.SPECIAL) > Special.WRITE_OUT)
    first = _first(fault != 0)
    records, moved, hbm_top, stop, stop_fault, stop_top = _transfers(
        entries, operands, records, moves, jnp.minimum(first, logged.astype(jnp.int32)), config, hbm_bytes
    )
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
    log: _Log, operands: dict[Field, _Operand], fault: jax.Array, vram_top: jax.Array, config: MachineConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Records, faults and tops of everything but what transfers add."""
    rd, rs1, rs2 = operands.values()
    stores = log.column(Column.STORES) == 1
    swapped = lambda a, b: (jnp.where(stores, b, a), jnp.where(stores, a, b))
    rd_row, rs1_row = swapped(rd.row, rs1.row)
    rd_lane, rs1_lane = swapped(rd.lane, rs1.lane)
    special = log.column(Column.SPECIAL)
    writes_out = special == Special.WRITE_OUT
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
        Record.RS1: rs1_row,
        Record.RS1_LANE: rs1_lane,
        Record.RS2: rs2.row,
        Record.RS2_LANE: rs2.lane,
        Record.MASK: jnp.where(writes_out, stride, mask),
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


def _transfers(
    log: _Log,
    operands: dict[Field, _Operand],
    records: jax.Array,
    moves: jax.Array,
    end: jax.Array,
    config: MachineConfig,
    hbm_bytes: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Complete the records of H_* instructions before ``end``, one after the other.

    Returns:
        ``(records, moved, hbm_top, stop, fault, top)``: the index of a store that may not be, or their number, its fault, and the
        bytes of HBM that it needs.
    """
    offsets = operands[Field.RS1].value
    following, size = _following(moves), records.shape[0]

    def body(carry: Any) -> Any:
        index, records, moved, top, stop, fault, needed = carry
        one = _transfer(log.at(index), lax.dynamic_slice_in_dim(offsets, index, 1), config, hbm_bytes)
        old = lax.dynamic_slice(records, (index, 0), (1, WIDTH), allow_negative_indices=False)
        new = _put_columns(old, one.fields)
        records = lax.dynamic_update_slice(records, new, (index, jnp.int32(0)), allow_negative_indices=False)
        bad = one.fault != 0
        moved = jnp.where(bad, moved, jnp.stack([jnp.stack(add64(*m, b)) for m, b in zip(moved, one.blocks, strict=True)]))
        top = jnp.where(bad, top, jnp.maximum(top, one.top))
        stop, fault = jnp.where(bad, index, stop), jnp.where(bad, one.fault, fault)
        needed = jnp.where(bad, one.top, needed)
        return following(index), records, moved, top, stop, fault, needed

    zero = jnp.uint32(0)
    start = (following(jnp.int32(-1)), records, jnp.zeros((2, 2), jnp.uint32), zero, jnp.int32(size), jnp.int32(0), zero)
    _, *result = lax.while_loop(lambda c: (c[0] < end) & (c[4] == size), body, start)
    return tuple(result)  # type: ignore[return-value]


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
    fields: dict[Record, jax.Array]
    fault: jax.Array
    blocks: tuple[jax.Array, jax.Array]
    top: jax.Array


def _put_columns(record: jax.Array, fields: dict[Record, jax.Array]) -> jax.Array:
    for name, value in fields.items():
        signed = lax.bitcast_convert_type(value.reshape(1, 1), jnp.int32)
        record = jnp.where(np.arange(WIDTH) == int(name), signed, record)
    return record


def _transfer(log: _Log, offset: jax.Array, config: MachineConfig, hbm_bytes: int) -> _Transferred:
    special, zero = log.column(Column.SPECIAL), jnp.uint32(0)
    base = log["a_low"], log["a_high"]
    ratio = jnp.maximum(log.unsigned(Column.RATIO), 1)
    elements = add64(*base, offset)
    scales = add64(*add64(*base, log["scale"]), offset // ratio)
    stride = jnp.where(log.column(Column.STRIDED) == 1, log["stride"], log.unsigned(Column.ROW_STEP))

    amounts = (config.prefetch_m_rows, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount)
    is_m, is_v = special == Special.PREFETCH_M, special == Special.PREFETCH_V
    count = jnp.where(is_m, amounts[0], jnp.where(is_v, amounts[1], amounts[2]))
    row = jnp.arange(max(amounts), dtype=jnp.int32)
    wanted = row < count
    element = element_address(*elements, stride, row)
    scale = scale_address(*scales, stride, row, ratio)
    element_bytes, scale_bytes = log.unsigned(Column.ELEMENT_BYTES), log.unsigned(Column.SCALE_BYTES)

    beyond, unallocated, top = jnp.array(False), jnp.array(False), zero
    capacity_low, capacity_high = np.uint32(config.hbm_size & 0xFFFFFFFF), np.uint32(config.hbm_size >> 32)
    ends = ((add64(*element, element_bytes), wanted), (add64(*scale, scale_bytes), wanted & (scale_bytes > 0)))
    for (low, high), here in ends:
        over = (high > capacity_high) | ((high == capacity_high) & (low > capacity_low))
        beyond = beyond | jnp.any(over & here)
        unallocated = unallocated | jnp.any(((high > 0) | (low > np.uint32(min(hbm_bytes, 2**32 - 1)))) & here)
        top = jnp.maximum(top, jnp.max(jnp.where(here, jnp.where(high > 0, _MOST, low), zero)))
    stores = special[0] == Special.STORE
    fault = jnp.where(beyond, int(Fault.HBM_RANGE), jnp.where(unallocated, int(Fault.HBM_UNALLOCATED), 0))

    touched = lambda low, size: jnp.where(wanted & (size > 0), blocks_touched(low, size), zero)
    element_blocks = jnp.sum(touched(element[0], element_bytes), dtype=jnp.uint32)
    # A prefetch reads one block of scales a row, a store all that it overlaps.
    stored = jnp.sum(touched(scale[0], scale_bytes), dtype=jnp.uint32)
    fetched = jnp.where(scale_bytes[0] > 0, count[0].astype(jnp.uint32), zero)
    moved = element_blocks + jnp.where(stores, stored, fetched)
    fields = {
        Record.RS1: elements[0],
        Record.RS1_LANE: elements[1],
        Record.RS2: scales[0],
        Record.RS2_LANE: scales[1],
        Record.MASK: stride,
    }
    blocks = (moved, jnp.where(stores, moved, zero))
    return _Transferred(fields, jnp.where(stores, fault, 0), blocks, jnp.where(stores, top, zero))
