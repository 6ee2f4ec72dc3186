"""From registers to a record: where a datapath instruction reads and writes, and whether it may."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.isa import Field
from plena_jax.machine import lanes
from plena_jax.machine.control import entry, lane, with_lanes
from plena_jax.machine.decode import Column, Slot, Special, column
from plena_jax.machine.faults import Fault
from plena_jax.machine.record import WIDTH, Record
from plena_jax.machine.semantics.registry import Stage, Target
from plena_jax.machine.transfer import add64, blocks_touched, element_address, scale_address

_FIELDS = (Field.RD, Field.RS1, Field.RS2)


def plan(
    ints: jax.Array, table: jax.Array, config: MachineConfig, vram_rows: int, hbm_bytes: int
) -> tuple[jax.Array, jax.Array]:
    """Resolve the datapath instruction at pc, if there is one.

    Args:
        ints, table: the integer state and the decoded program.
        config: the machine.
        vram_rows, hbm_bytes: what the state holds; touching more is a fault that ``run`` answers by growing it.

    Returns:
        ``(ints, record)``. With a datapath instruction that may run, the record says what to do and ``ints`` is ready for
        the control stage to go on behind it. Otherwise the record's stage is HALTED, and a fault is noted in ``ints``.
    """
    pc = ints[lanes.PC].astype(jnp.int32)
    of = lambda c: entry(table, pc, c)
    stage = ints[lanes.STAGE].astype(jnp.int32)
    is_datapath = (stage >= Stage.MATMUL) & (stage <= Stage.STORE)
    values, blocks, offsets, faults, tops = zip(*(_operand(ints, table, pc, f) for f in _FIELDS), strict=True)
    fault = faults[0]
    for more in faults[1:]:
        fault = jnp.where(fault == 0, more, fault)

    special, more_fault, vram_top, hbm_top, parts, blocks_read, blocks_written = _special(
        ints, table, pc, values, blocks, config, jnp.stack(tops).max(), hbm_bytes
    )
    fault = jnp.where(fault == 0, more_fault, fault)
    fault = jnp.where((fault == 0) & (vram_top > np.uint32(vram_rows)), int(Fault.VRAM_UNALLOCATED), fault)
    fault = jnp.where(is_datapath, fault, 0)
    good = is_datapath & (fault == 0)

    adds_to, drains = of(Column.ADDS_TO), of(Column.DRAINS)
    fresh = ints[lanes.FRESH]
    bit = lambda n: jnp.where(n > 0, jnp.uint32(1) << n.astype(jnp.uint32), jnp.uint32(0))
    is_fresh = (fresh & (bit(adds_to) | bit(drains))) != 0
    next_fresh = (fresh & ~bit(adds_to)) | bit(drains)
    mask = jnp.where(of(Column.MASKED) == 1, ints[lanes.MASK], jnp.uint32(0xFFFFFFFF))
    transfers = of(Column.SPECIAL) > Special.WRITE_OUT
    columns: dict[Record, Any] = {
        Record.STAGE: jnp.where(good, stage, int(Stage.HALTED)),
        Record.BRANCH: of(Column.BRANCH),
        Record.PARTS: parts,
        Record.TARGET: _target(of(Column.TARGET), blocks, config),
        Record.RD: blocks[0],
        Record.RS1: jnp.where(transfers, special[0], blocks[1]),
        Record.RS1_OFFSET: jnp.where(transfers, special[1], offsets[1]),
        Record.RS2: jnp.where(transfers, special[2], blocks[2]),
        Record.RS2_OFFSET: jnp.where(transfers, special[3], offsets[2]),
        Record.RD_OFFSET: offsets[0],
        Record.MASK: jnp.where(of(Column.SPECIAL) != 0, special[4], mask),
        Record.ARGUMENT: of(Column.ARGUMENT),
        Record.FRESH: is_fresh,
        Record.PC: pc,
        Record.HBM_TOP: hbm_top,
        Record.VRAM_TOP: vram_top,
    }
    record = jnp.stack([jnp.asarray(columns[r]).astype(jnp.uint32) for r in Record])
    assert record.shape == (WIDTH,)
    counted = [
        (jnp.where(good, lanes.FRESH, -1), next_fresh),
        (lanes.STAGE, jnp.where(good, int(Stage.CONTROL), jnp.where(fault != 0, int(Stage.FAULTED), stage))),
        (jnp.where(fault != 0, lanes.STATUS, -1), fault),
        (lanes.NEEDED, jnp.where(fault == Fault.HBM_UNALLOCATED, hbm_top, vram_top)),
    ]
    for low, high, blocks_moved in (
        (lanes.READ_LOW, lanes.READ_HIGH, blocks_read),
        (lanes.WRITTEN_LOW, lanes.WRITTEN_HIGH, blocks_written),
    ):
        total, carried = add64(ints[low], ints[high], jnp.where(good, blocks_moved, jnp.uint32(0)))
        counted += [(low, total), (high, carried)]
    return with_lanes(ints, counted), lax.bitcast_convert_type(record, jnp.int32)


def _operand(
    ints: jax.Array, table: jax.Array, pc: jax.Array, field: Field
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Value, block, offset, fault and one past the last VRAM row of an operand."""
    of = lambda slot: entry(table, pc, column(field, slot))
    u = lambda slot: of(slot).astype(jnp.uint32)
    number = of(Slot.FIELD)
    value = jnp.where(of(Slot.IS_GP) == 1, lane(ints, lanes.GP + number), number.astype(jnp.uint32)) + u(Slot.ADD)
    rd = lane(ints, lanes.GP + entry(table, pc, Column.RD))
    value = value + jnp.where(of(Slot.ADD_RD) == 1, rd, jnp.uint32(0))
    size = jnp.maximum(u(Slot.BLOCK), 1)
    block = value // size
    offset = value - block * size
    misaligned = (offset % jnp.maximum(u(Slot.OFFSET_UNIT), 1) != 0) | (offset >= jnp.maximum(u(Slot.OFFSET_LIMIT), 1))
    outside = (block > u(Slot.LAST)) | (of(Slot.NEVER) == 1)
    # Fields without an operand have no limits.
    used = of(Slot.BLOCK) > 0
    fault = jnp.where(misaligned, int(Fault.MISALIGNED), jnp.where(outside, int(Fault.OUT_OF_RANGE), 0))
    rows = u(Slot.VRAM_ROWS)
    top = jnp.where(rows > 0, block + rows, jnp.uint32(0))
    return value, block, offset, jnp.where(used, fault, 0), top


def _target(target: jax.Array, blocks: Any, config: MachineConfig) -> jax.Array:
    """First row written, counted from the region's first."""
    rows = {
        Target.VRAM_RD: blocks[0],
        Target.MRAM_RD: blocks[0] * np.uint32(config.mlen),
        Target.F_RD: blocks[0] // np.uint32(config.vlen),
        Target.SRAM_RS1: blocks[1] // np.uint32(config.vlen),
    }
    first = jnp.zeros_like(blocks[0])
    for kind, row in rows.items():
        first = jnp.where(target == kind, row, first)
    return first


def _special(
    ints: jax.Array,
    table: jax.Array,
    pc: jax.Array,
    values: Any,
    blocks: Any,
    config: MachineConfig,
    vram_top: jax.Array,
    hbm_bytes: int,
) -> Any:
    """What write-outs and transfers add: five record fields, fault, tops, parts, HBM blocks read and written."""
    of = lambda c: entry(table, pc, c)
    special, zero = of(Column.SPECIAL), jnp.uint32(0)
    fields = jnp.zeros(5, jnp.uint32)

    def nothing() -> Any:
        return fields, jnp.int32(0), vram_top, zero, of(Column.PARTS), zero, zero

    def write_out() -> Any:
        stride = jnp.where(of(Column.RS1) == 0, jnp.uint32(1), values[1])
        row = jnp.arange(config.blen, dtype=jnp.uint32)
        # Addresses are elements modulo 2**32, so that a large stride can step backwards.
        address = (blocks[0] + row * stride) * np.uint32(config.mlen)
        rows = address // np.uint32(config.mlen)
        outside = jnp.any(rows >= np.uint32(min(config.vector_sram_size, 2**32 - 1)))
        misaligned = jnp.any(address % np.uint32(config.mlen) != 0)
        fault = jnp.where(misaligned, int(Fault.MISALIGNED), jnp.where(outside, int(Fault.OUT_OF_RANGE), 0))
        parts = jnp.where(stride == 1, 1, config.blen)
        return fields.at[4].set(stride), fault, rows.max() + 1, zero, parts, zero, zero

    def transfer() -> Any:
        return _transfer(ints, table, pc, values, blocks, config, vram_top, hbm_bytes)

    kind = jnp.where(special == Special.NONE, 0, jnp.where(special == Special.WRITE_OUT, 1, 2))
    return lax.switch(kind, [nothing, write_out, transfer])


def _transfer(
    ints: jax.Array,
    table: jax.Array,
    pc: jax.Array,
    values: Any,
    blocks: Any,
    config: MachineConfig,
    vram_top: jax.Array,
    hbm_bytes: int,
) -> Any:
    of = lambda c: entry(table, pc, c)
    u = lambda c: of(c).astype(jnp.uint32)
    special, zero = of(Column.SPECIAL), jnp.uint32(0)
    register = of(Column.RS2)
    base = lane(ints, lanes.A_LOW + register), lane(ints, lanes.A_HIGH + register)
    elements = add64(*base, values[1])
    scales = add64(*add64(*base, ints[lanes.SCALE]), values[1] // jnp.maximum(u(Column.RATIO), 1))
    stride = jnp.where(of(Column.STRIDED) == 1, ints[lanes.STRIDE], u(Column.ROW_STEP))

    amounts = (config.prefetch_m_rows, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount)
    count = jnp.where(
        special == Special.PREFETCH_M, amounts[0], jnp.where(special == Special.PREFETCH_V, amounts[1], amounts[2])
    )
    row = jnp.arange(max(amounts), dtype=jnp.int32)
    wanted = row < count
    element = element_address(*elements, stride, row)
    ratio = jnp.maximum(of(Column.RATIO), 1).astype(jnp.float32)
    scale = scale_address(*scales, stride, row, ratio)
    element_bytes, scale_bytes = u(Column.ELEMENT_BYTES), u(Column.SCALE_BYTES)

    ends = [add64(*element, element_bytes), add64(*scale, scale_bytes)]
    relevant = [wanted, wanted & (scale_bytes > 0)]
    beyond, unallocated, top = jnp.array(False), jnp.array(False), zero
    capacity = config.hbm_size
    for (low, high), here in zip(ends, relevant, strict=True):
        over = (high > np.uint32(capacity >> 32)) | (
            (high == np.uint32(capacity >> 32)) & (low > np.uint32(capacity & 0xFFFFFFFF))
        )
        beyond = beyond | jnp.any(over & here)
        unallocated = unallocated | jnp.any(((high > 0) | (low > np.uint32(min(hbm_bytes, 2**32 - 1)))) & here)
        top = jnp.maximum(top, jnp.max(jnp.where(here, jnp.where(high > 0, np.uint32(0xFFFFFFFF), low), zero)))
    stores = special == Special.STORE
    fault = jnp.where(
        stores & beyond, int(Fault.HBM_RANGE), jnp.where(stores & unallocated, int(Fault.HBM_UNALLOCATED), 0)
    )
    touched = lambda low, size: jnp.where(size > 0, blocks_touched(low, size), zero)
    element_blocks = jnp.sum(jnp.where(wanted, touched(element[0], element_bytes), zero), dtype=jnp.uint32)
    # A prefetch reads one block of scales a row, a store all that it overlaps.
    stored = jnp.sum(jnp.where(wanted, touched(scale[0], scale_bytes), zero), dtype=jnp.uint32)
    fetched = jnp.where(scale_bytes > 0, count.astype(jnp.uint32), zero)
    moved = element_blocks + jnp.where(stores, stored, fetched)

    # Rows behind the end of VRAM are dropped.
    rows_left = np.uint32(min(config.vector_sram_size, 2**32 - 1)) - jnp.minimum(blocks[0], np.uint32(2**32 - 2))
    kept = jnp.minimum(count.astype(jnp.uint32), rows_left)
    prefetches_rows = special == Special.PREFETCH_V
    parts = jnp.where(prefetches_rows, kept.astype(jnp.int32), of(Column.PARTS))
    vram_top = jnp.where(prefetches_rows, blocks[0] + kept, vram_top)
    fields = jnp.stack([*elements, *scales, stride])
    written = jnp.where(stores, moved, zero)
    return fields, fault, vram_top, jnp.where(stores, top, zero), parts, moved, written
