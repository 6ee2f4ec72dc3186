"""The integer machine: program counter, registers, loops, and the resolution of datapath operands.

Both engines run it. The architectural engine executes each datapath instruction where it occurs; resolving a program runs
only this and writes the records down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine import lanes
from plena_jax.machine.decode import NO_OPERATION, OPERATIONS, Column
from plena_jax.machine.faults import Fault
from plena_jax.machine.semantics.control import CONTROL, Effect, Operands, no_effect
from plena_jax.machine.semantics.registry import Stage
from plena_jax.machine.state import LOOPS_PER_REGISTER

#: Reads an INT SRAM entry (int32 index, in range): uint32 value, and whether it is unknown before the datapath has run.
LoadInt = Callable[[jax.Array], tuple[jax.Array, jax.Array | bool]]
_IOTA = np.arange(lanes.SIZE, dtype=np.int32)


def entry(table: jax.Array, pc: jax.Array, index: int) -> jax.Array:
    """int32: one column of one decoded instruction."""
    return lax.dynamic_slice(table, (pc, jnp.int32(index)), (1, 1), allow_negative_indices=False)[0, 0]


def lane(ints: jax.Array, index: jax.Array) -> jax.Array:
    """uint32: a register by number."""
    return lax.dynamic_index_in_dim(ints, index, keepdims=False, allow_negative_indices=False)


def with_lanes(ints: jax.Array, writes: list[tuple[Any, Any]]) -> jax.Array:
    """``ints`` with some lanes replaced; a lane of -1 writes nothing. Later writes win."""
    for index, value in writes:
        ints = jnp.where(_IOTA == index, jnp.asarray(value).astype(jnp.uint32), ints)
    return ints


def _go_on(
    ints: jax.Array, table: jax.Array, next_pc: jax.Array, deadline: jax.Array
) -> list[tuple[jax.Array | int, jax.Array]]:
    """The writes that end every instruction: counters, the next pc, and the stage of what is there.

    That stage is RARE if the loop guard or the limit has to be looked at first.
    """
    pc, tick = ints[lanes.PC].astype(jnp.int32), ints[lanes.TICKS] + 1
    unit = entry(table, pc, Column.UNIT)
    count, cycles = lane(ints, lanes.COUNT_LOW + unit), ints[lanes.CYCLES_LOW]
    more_cycles = cycles + entry(table, pc, Column.CYCLES).astype(jnp.uint32)
    count_carries, cycles_carry = count == np.uint32(0xFFFFFFFF), more_cycles < cycles
    stage = entry(table, next_pc, Column.STAGE)
    due = ((tick - deadline).astype(jnp.int32) > 0) & (stage != Stage.HALTED)
    return [
        (lanes.COUNT_LOW + unit, count + 1),
        (jnp.where(count_carries, lanes.COUNT_HIGH + unit, -1), lane(ints, lanes.COUNT_HIGH + unit) + 1),
        (lanes.CYCLES_LOW, more_cycles),
        (jnp.where(cycles_carry, lanes.CYCLES_HIGH, -1), ints[lanes.CYCLES_HIGH] + 1),
        (lanes.TICKS, tick),
        (lanes.PC, next_pc),
        (lanes.STAGE, jnp.where(due, int(Stage.RARE), stage)),
        (lanes.DEADLINE, deadline),
    ]


def control_step(
    ints: jax.Array, loops: jax.Array, table: jax.Array, load: LoadInt, config: MachineConfig
) -> tuple[jax.Array, jax.Array]:
    """Execute one instruction of the control stage and fetch the next one."""
    pc = ints[lanes.PC].astype(jnp.int32)
    column_of = lambda c: entry(table, pc, c)
    rd, operation, imm = column_of(Column.RD), column_of(Column.OPERATION), column_of(Column.IMM).astype(jnp.uint32)
    x = lane(ints, lanes.GP + column_of(Column.RS1))
    depth = lane(ints, lanes.DEPTH + rd).astype(jnp.int32)
    top = rd * LOOPS_PER_REGISTER + jnp.maximum(depth - 1, 0)
    innermost = lax.dynamic_slice(loops, (top, jnp.int32(0)), (1, 4), allow_negative_indices=False)[0]
    address = x + imm
    loads = operation == OPERATIONS.index("S_LD_INT")
    loaded, unknown = load(jnp.minimum(address, np.uint32(SRAM_ENTRIES - 1)).astype(jnp.int32))
    tick = ints[lanes.TICKS]
    operands = Operands(
        rd=rd,
        pc=pc,
        d=lane(ints, lanes.GP + rd),
        x=x,
        y=lane(ints, lanes.GP + column_of(Column.RS2)),
        imm=imm,
        loaded=loaded,
        tick=tick,
        depth=depth,
        start_pc=innermost[lanes.START_PC].astype(jnp.int32),
        started=innermost[lanes.STARTED],
        iteration=innermost[lanes.ITERATION],
    )
    effect = _pick(operation, operands)
    fault = jnp.where(loads & (address >= SRAM_ENTRIES), int(Fault.OUT_OF_RANGE), effect.fault)
    fault = jnp.where((fault == 0) & loads & unknown, int(Fault.DATA_DEPENDENT), fault)

    next_pc = jnp.where(effect.next_pc < 0, pc + 1, effect.next_pc)
    # A new loop may bring the next look at the guard forward.
    left = (ints[lanes.DEADLINE] - tick).astype(jnp.int32)
    left = jnp.where(effect.deeper > 0, jnp.minimum(left, np.int32(config.max_loop_instructions)), left)
    after = with_lanes(
        ints,
        [
            *_go_on(ints, table, next_pc, tick + left.astype(jnp.uint32)),
            (jnp.where(effect.deeper != 0, lanes.DEPTH + rd, -1), depth + effect.deeper),
            (effect.lane, effect.value),
            (effect.high_lane, effect.high_value),
        ],
    )
    stopped = with_lanes(ints, [(lanes.STATUS, fault), (lanes.STAGE, int(Stage.FAULTED))])
    slot = jnp.where((effect.slot < 0) | (fault != 0), lanes.NO_LOOP, rd * LOOPS_PER_REGISTER + effect.slot)
    fields = (effect.start_pc, effect.started, effect.tick, effect.iteration)
    written = jnp.stack([jnp.asarray(f).astype(jnp.uint32) for f in fields])[None]
    loops = lax.dynamic_update_slice(loops, written, (slot, jnp.int32(0)), allow_negative_indices=False)
    return jnp.where(fault != 0, stopped, after), loops


def _pick(operation: jax.Array, operands: Operands) -> Effect:
    """The effect of one of all operations."""
    effects = [CONTROL[name](operands) for name in OPERATIONS] + [no_effect(operands)]
    assert len(effects) == NO_OPERATION + 1
    fields = []
    for name in Effect._fields:
        values = [getattr(e, name) for e in effects]
        signed = name in ("lane", "high_lane", "next_pc", "deeper", "slot", "fault")
        cast = lambda v, t=jnp.int32 if signed else jnp.uint32: jnp.asarray(v).astype(t)
        default = Effect._field_defaults[name]
        picked = cast(default)
        for index, value in enumerate(values):
            if not (isinstance(value, int) and value == default):
                picked = jnp.where(operation == index, cast(value), picked)
        fields.append(picked)
    return Effect(*fields)


# -- now and then -----------------------------------------------------------------------------------------------------


def rare_step(ints: jax.Array, loops: jax.Array, table: jax.Array, config: MachineConfig) -> tuple[jax.Array, jax.Array]:
    """Look at the loop guard and the limit, then execute C_BREAK or let the instruction go to its stage."""
    pc, tick = ints[lanes.PC].astype(jnp.int32), ints[lanes.TICKS]
    stage = entry(table, pc, Column.STAGE)
    depth = ints[lanes.DEPTH : lanes.SCALE].astype(jnp.int32)
    is_open = jnp.arange(LOOPS_PER_REGISTER) < depth[:, None]
    entries = loops[: lanes.NO_LOOP].reshape(16, LOOPS_PER_REGISTER, 4)
    age = jnp.where(is_open, (tick - entries[..., lanes.TICK]).astype(jnp.int32), 0)
    oldest = jnp.max(age)
    limit = config.max_loop_instructions
    left = limit - oldest
    until_stop = (ints[lanes.LIMIT] - tick).astype(jnp.int32)
    limited = ints[lanes.LIMITED] == 1
    left = jnp.where(limited, jnp.minimum(left, until_stop - 1), left)
    fault = jnp.where(oldest > limit, int(Fault.LOOP_GUARD), 0)
    # The limit is no fault of the program: it comes first, so that the same run without it faults at the same place.
    fault = jnp.where(limited & (until_stop <= 0), int(Fault.LIMIT), fault)
    fault = jnp.where(stage == Stage.HALTED, 0, fault)
    faulted = stage == Stage.FAULTED
    fault = jnp.where((fault == 0) & faulted, entry(table, pc, Column.FAULT), fault)
    checked = with_lanes(ints, [(lanes.DEADLINE, tick + left.astype(jnp.uint32)), (lanes.STAGE, stage)])

    broken, break_fault = _break(checked, loops, table, is_open, config)
    is_break = (stage == Stage.RARE) & (fault == 0)
    fault = jnp.where(is_break, break_fault, fault)
    after = jnp.where(is_break, broken, checked)
    stopped = with_lanes(ints, [(lanes.STATUS, fault), (lanes.STAGE, int(Stage.FAULTED))])
    return jnp.where(fault != 0, stopped, after), loops


def _break(
    ints: jax.Array, loops: jax.Array, table: jax.Array, is_open: jax.Array, config: MachineConfig
) -> tuple[jax.Array, jax.Array]:
    """C_BREAK: drop the innermost loop, whatever its register."""
    pc, tick = ints[lanes.PC].astype(jnp.int32), ints[lanes.TICKS]
    started = loops[: lanes.NO_LOOP, lanes.STARTED].reshape(16, LOOPS_PER_REGISTER)
    age = jnp.where(is_open, (tick - started).astype(jnp.int32), np.int32(2**31 - 1))
    register = jnp.argmin(jnp.min(age, axis=1)).astype(jnp.int32)
    fault = jnp.where(jnp.any(is_open), 0, int(Fault.LOOP_UNMATCHED))
    next_pc = pc + 1
    if config.intended.c_break:
        # The decoder has put the pc behind the enclosing C_LOOP_END into the word's unused field.
        behind = entry(table, pc, Column.IMM)
        meant = (behind > 0) & (entry(table, jnp.maximum(behind - 1, 0), Column.RD) == register)
        fault = jnp.where((fault == 0) & ~meant, int(Fault.BREAK_UNMATCHED), fault)
        next_pc = jnp.where(meant, behind, next_pc)
    writes = [
        *_go_on(ints, table, next_pc, ints[lanes.DEADLINE]),
        (lanes.GP + register, 0),
        (lanes.DEPTH + register, lane(ints, lanes.DEPTH + register) - 1),
    ]
    return with_lanes(ints, writes), fault
