"""The integer machine: program counter, registers and loops; it logs what the datapath has to do.

No integer depends on the datapath, except that V_TOPK writes INT SRAM. So the control loop runs ahead: it executes
integer and control instructions, and for each datapath instruction notes the registers that its operands name;
:mod:`plena_jax.machine.plan` turns a whole log into records at once. Both engines run this.

The loop has a fast step for the instructions that programs consist of, three kernels in all, and a slow step for
everything else: loops that open or close, INT SRAM, the loop guard, limits and faults.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES, Field
from plena_jax.machine import lanes
from plena_jax.machine.decode import OPERATIONS, Class, Column, Table
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import Side
from plena_jax.machine.semantics.control import ALU, SLOW, UNSIGNED, Effect, Machine, Operands
from plena_jax.machine.semantics.registry import Stage
from plena_jax.machine.semantics.vector import topk_window
from plena_jax.machine.state import LOOPS_PER_REGISTER

#: Rows of the log: datapath instructions that the control loop may be ahead.
LOG_ROWS = 8192
LOG_COLUMNS = ("pc", "tick", "d", "x", "y", "mask", "stride", "scale", "a_low", "a_high", "fresh", "unused")
_IOTA = np.arange(lanes.CORE, dtype=np.int32)
_NONE = np.uint32(lanes.NO_LOOP)


class Stop:
    """Why the control loop has stopped (in ``side.registers[STOP]``)."""

    RUNNING, LOG, HALTED, FAULTED = range(4)


class Word(NamedTuple):
    """The instruction at pc: its word, and its template's columns by name."""

    table: Table
    pc: jax.Array
    word: jax.Array
    template: jax.Array

    @classmethod
    def at(cls, table: Table, pc: jax.Array) -> Word:
        """Fetch."""
        entry = lambda c: lax.dynamic_slice(table.words, (pc, jnp.int32(c)), (1, 1), allow_negative_indices=False)[0, 0]
        return cls(table, pc, entry(0), entry(1).astype(jnp.int32))

    def column(self, column: int) -> jax.Array:
        """int32: a column of the template."""
        start = (self.template, jnp.int32(column))
        return lax.dynamic_slice(self.table.templates, start, (1, 1), allow_negative_indices=False)[0, 0]

    def register(self, field: Field) -> jax.Array:
        """int32: a register field."""
        return ((self.word >> field.shift) & field.limit).astype(jnp.int32)

    def immediate(self) -> jax.Array:
        """uint32: the immediate; both kinds reach up to the highest bit."""
        return self.word >> self.column(Column.IMM_SHIFT).astype(jnp.uint32)


def lane(values: jax.Array, index: jax.Array) -> jax.Array:
    """One element of a vector."""
    return lax.dynamic_index_in_dim(values, index, keepdims=False, allow_negative_indices=False)


def put(values: jax.Array, *writes: tuple[Any, Any]) -> jax.Array:
    """``values`` with some elements replaced; index -1 writes nothing. Later writes win."""
    index = np.arange(values.shape[0], dtype=np.int32)
    for at, value in writes:
        values = jnp.where(index == at, jnp.asarray(value).astype(values.dtype), values)
    return values


def _rows(log: jax.Array) -> int:
    """Rows that count; the last one is for what logs nothing when the log is full."""
    return log.shape[0] - 1


def _is_fast(core: jax.Array, log: jax.Array, table: Table) -> jax.Array:
    word = Word.at(table, core[lanes.PC].astype(jnp.int32))
    rd, kind = word.register(Field.RD), word.column(Column.CLASS)
    again = (lane(core, lanes.GP + rd) > 1) & (lane(core, lanes.START + rd) != _NONE)
    due = (core[lanes.DEADLINE] - core[lanes.TICKS]).astype(jnp.int32) < 0
    fast = (kind == Class.FAST) | ((kind == Class.LOOP_END) & again)
    return fast & ~due & (core[lanes.LOGGED] < _rows(log))


def _operands(core: jax.Array, word: Word) -> Operands:
    read = lambda field: lane(core, lanes.GP + word.register(field))
    return Operands(read(Field.RD), read(Field.RS1), read(Field.RS2), word.immediate())


def _advance(core: jax.Array, word: Word, next_pc: jax.Array) -> list[tuple[Any, Any]]:
    """The writes that end every instruction: counters, accumulators that become fresh, the next pc."""
    cycles = core[lanes.CYCLES_LOW]
    more = cycles + word.column(Column.CYCLES).astype(jnp.uint32)
    count = lanes.COUNTS + word.column(Column.UNIT)
    fresh = core[lanes.FRESH] & ~word.column(Column.ADDS_TO).astype(jnp.uint32)
    return [
        (lanes.PC, next_pc),
        (lanes.TICKS, core[lanes.TICKS] + 1),
        (lanes.LOGGED, core[lanes.LOGGED] + word.column(Column.LOGS).astype(jnp.uint32)),
        (lanes.FRESH, fresh | word.column(Column.DRAINS).astype(jnp.uint32)),
        (lanes.CYCLES_LOW, more),
        (lanes.CYCLES_HIGH, core[lanes.CYCLES_HIGH] + (more < cycles).astype(jnp.uint32)),
        (count, lane(core, count) + 1),
    ]


def _log_row(core: jax.Array, side: Side, word: Word, operands: Operands) -> jax.Array:
    register = word.register(Field.RS2)
    values = (
        word.pc,
        core[lanes.TICKS],
        operands.d,
        operands.x,
        operands.y,
        core[lanes.MASK],
        core[lanes.STRIDE],
        core[lanes.SCALE],
        lane(side.registers, lanes.A_LOW + register),
        lane(side.registers, lanes.A_HIGH + register),
        core[lanes.FRESH],
        jnp.uint32(0),
    )
    return put(jnp.zeros(len(LOG_COLUMNS), jnp.uint32), *enumerate(values))


def _write_log(log: jax.Array, core: jax.Array, row: jax.Array) -> jax.Array:
    """The log with ``row`` at its end; what logs nothing leaves a row there that the next one overwrites."""
    start = (core[lanes.LOGGED].astype(jnp.int32), jnp.int32(0))
    return lax.dynamic_update_slice(log, row[None], start, allow_negative_indices=False)


def _fast_step(core: jax.Array, log: jax.Array, side: Side, table: Table) -> tuple[jax.Array, jax.Array]:
    word = Word.at(table, core[lanes.PC].astype(jnp.int32))
    operands, operation = _operands(core, word), word.column(Column.OPERATION)
    rd, is_end = word.register(Field.RD), word.column(Column.CLASS) == Class.LOOP_END
    value = jnp.uint32(0)
    for index, entry in enumerate(ALU.values()):
        value = jnp.where(operation == index, entry.function(operands), value)
    dest = jnp.where(word.column(Column.DEST_RD) == 1, lanes.GP + rd, word.column(Column.DEST))
    jump = lane(core, lanes.START + rd).astype(jnp.int32)
    after = put(
        core,
        (jnp.where(is_end, lanes.GP + rd, dest), jnp.where(is_end, operands.d - 1, value)),
        (jnp.where(is_end, lanes.SINCE + rd, -1), core[lanes.TICKS]),
        *_advance(core, word, jnp.where(is_end, jump, word.pc) + 1),
    )
    return after, _write_log(log, core, _log_row(core, side, word, operands))


# -- now and then -----------------------------------------------------------------------------------------------------


def _pick(operation: jax.Array, machine: Machine) -> Effect:
    """The effect of one of the slow instructions."""
    effects = [(OPERATIONS.index(name), function(machine)) for name, function in SLOW.items()]
    fields = []
    for name, default in Effect._field_defaults.items():
        dtype = jnp.uint32 if name in UNSIGNED else jnp.int32
        cast = lambda v, t=dtype: jnp.asarray(v).astype(t)
        picked = cast(default)
        for index, effect in effects:
            value = getattr(effect, name)
            if not (isinstance(value, int) and value == default):
                picked = jnp.where(operation == index, cast(value), picked)
        fields.append(picked)
    return Effect(*fields)


class _Loops(NamedTuple):
    depth: jax.Array
    #: uint32 [16, 8]: when each loop's current iteration began.
    since: jax.Array
    is_open: jax.Array
    innermost: jax.Array


def _loops(core: jax.Array, side: Side) -> _Loops:
    depth = side.registers[lanes.DEPTH : lanes.DEPTH + lanes.REGISTERS].astype(jnp.int32)
    level = np.arange(LOOPS_PER_REGISTER)[None]
    is_open = level < depth[:, None]
    live = core[lanes.SINCE : lanes.SINCE + lanes.REGISTERS, None]
    since = jnp.where(level == depth[:, None] - 1, live, side.stack[..., lanes.STACK_SINCE])
    age = (core[lanes.TICKS] - side.stack[..., lanes.STACK_ORDER]).astype(jnp.int32)
    age = jnp.min(jnp.where(is_open, age, np.int32(2**31 - 1)), axis=1)
    innermost = jnp.where(jnp.any(is_open), jnp.argmin(age).astype(jnp.int32), -1)
    return _Loops(depth, since, is_open, innermost)


def _checks(core: jax.Array, side: Side, word: Word, loops: _Loops, config: MachineConfig) -> tuple[Any, Any, Any]:
    """Fault before the instruction is looked at, whether the run ends without one, and ticks until the next check."""
    tick, r = core[lanes.TICKS], side.registers
    oldest = jnp.max(jnp.where(loops.is_open, (tick - loops.since).astype(jnp.int32), 0))
    limit = config.max_loop_instructions
    stage = word.column(Column.STAGE)
    halted = stage == Stage.HALTED
    until = (r[lanes.UNTIL] - tick).astype(jnp.int32)
    has_until = r[lanes.HAS_UNTIL] == 1
    # The caller's limit comes first, so that the same run without it faults at the same place.
    fault = jnp.where(stage == Stage.FAULTED, word.column(Column.FAULT), 0)
    fault = jnp.where(oldest > limit, int(Fault.LOOP_GUARD), fault)
    fault = jnp.where(has_until & (until <= 0), int(Fault.LIMIT), fault)
    left = jnp.where(has_until, jnp.minimum(limit - oldest, until - 1), limit - oldest)
    return jnp.where(halted, 0, fault), halted, left


def _slow_step(
    core: jax.Array, log: jax.Array, side: Side, table: Table, config: MachineConfig
) -> tuple[jax.Array, jax.Array, Side]:
    """Execute the instruction at pc if it is a slow one, or stop; in any case say when to look again."""
    word = Word.at(table, core[lanes.PC].astype(jnp.int32))
    loops, operands = _loops(core, side), _operands(core, word)
    fault, halted, left = _checks(core, side, word, loops, config)
    core = put(core, (lanes.DEADLINE, core[lanes.TICKS] + left.astype(jnp.uint32)))
    operation, rd = word.column(Column.OPERATION), word.register(Field.RD)
    is_topk = (word.column(Column.CLASS) == Class.SLOW) & (word.column(Column.LOGS) == 1)
    address = jnp.minimum(operands.x + operands.imm, np.uint32(SRAM_ENTRIES - 1)).astype(jnp.int32)
    break_to = word.column(Column.BREAK_TO)
    machine = Machine(
        config=config,
        operands=operands,
        rd=rd,
        pc=word.pc,
        depth=lane(loops.depth, rd),
        innermost=loops.innermost,
        break_to=break_to,
        break_register=Word.at(table, jnp.maximum(break_to - 1, 0)).register(Field.RD),
        loaded=lane(side.int_sram, address),
        unknown=lane(side.unknown, address),
    )
    effect = _pick(operation, machine)
    uses_int_sram = (operation == OPERATIONS.index("S_LD_INT")) | (operation == OPERATIONS.index("S_ST_INT"))
    resolving = side.registers[lanes.RESOLVING] == 1
    waits = (side.registers[lanes.PENDING] == 1) & (uses_int_sram | is_topk) & ~resolving
    full = (core[lanes.LOGGED] >= _rows(log)) | waits
    executes = ~halted & (fault == 0) & ~full & ((operation >= len(ALU)) & (operation < len(OPERATIONS)) | is_topk)
    # What is left of fast instructions came here only because a check was due.
    executes = executes & ~_is_fast(core, log, table)
    fault = jnp.where(executes, effect.fault, fault)
    executes = executes & (fault == 0)
    reason = jnp.where(full, Stop.LOG, Stop.RUNNING)
    reason = jnp.where(fault != 0, Stop.FAULTED, jnp.where(halted, Stop.HALTED, reason))
    new_log = _write_log(log, core, _log_row(core, side, word, operands))
    new_core, new_side = _apply(effect, core, side, word, loops, is_topk, operands)
    kept = jax.tree.map(lambda new, old: jnp.where(executes, new, old), (new_core, new_side), (core, side))
    registers = put(kept[1].registers, (lanes.STATUS, fault), (lanes.STOP, reason))
    return kept[0], new_log, kept[1]._replace(registers=registers)


def _apply(
    effect: Effect,
    core: jax.Array,
    side: Side,
    word: Word,
    loops: _Loops,
    is_topk: jax.Array,
    operands: Operands,
) -> tuple[jax.Array, Side]:
    tick, next_pc = core[lanes.TICKS], jnp.where(effect.next_pc < 0, word.pc + 1, effect.next_pc)
    register = jnp.maximum(jnp.maximum(effect.push, effect.pop), 0)
    pushes, pops = jnp.asarray(effect.push) >= 0, jnp.asarray(effect.pop) >= 0
    depth = lane(loops.depth, register)
    new_depth = depth + pushes.astype(jnp.int32) - pops.astype(jnp.int32)
    outer = lane(side.stack, register)
    below = lane(outer, jnp.maximum(new_depth - 1, 0))
    below = jnp.where(new_depth > 0, below, jnp.array([lanes.NO_LOOP, 0, 0], jnp.uint32))
    start = jnp.where(pushes, word.pc.astype(jnp.uint32), below[lanes.STACK_START])
    since = jnp.where(pushes, tick, below[lanes.STACK_SINCE])
    changes = pushes | pops
    core = put(
        core,
        (jnp.where(effect.gp < 0, -1, lanes.GP + effect.gp), effect.value),
        (jnp.where(changes, lanes.START + register, -1), start),
        (jnp.where(changes, lanes.SINCE + register, -1), since),
        *_advance(core, word, next_pc),
    )
    # A loop that opens within one of the same register puts that one's running count away.
    registers = np.arange(lanes.REGISTERS)[:, None]
    level = np.arange(LOOPS_PER_REGISTER)[None]
    stack = side.stack.at[..., lanes.STACK_SINCE].set(loops.since)
    opened = pushes & (registers == register) & (level == depth)
    stack = jnp.where(opened[..., None], jnp.stack([word.pc.astype(jnp.uint32), tick, tick]), stack)
    a = jnp.where(effect.a < 0, -1, effect.a)
    return core, Side(
        registers=put(
            side.registers,
            (jnp.where(changes, lanes.DEPTH + register, -1), new_depth),
            (jnp.where(a < 0, -1, lanes.A_LOW + a), effect.low),
            (jnp.where(a < 0, -1, lanes.A_HIGH + a), effect.high),
            (jnp.where(is_topk, lanes.PENDING, -1), 1),
        ),
        stack=stack,
        int_sram=put(side.int_sram, (effect.entry, effect.stored)),
        unknown=_mark(side, effect, word, is_topk, operands),
    )


def _mark(side: Side, effect: Effect, word: Word, is_topk: jax.Array, operands: Operands) -> jax.Array:
    """Entries unknown after this instruction when resolving: those of V_TOPK, less one that S_ST_INT sets."""
    is_topk = is_topk & (side.registers[lanes.RESOLVING] == 1)
    entry = jnp.arange(SRAM_ENTRIES, dtype=jnp.uint32)
    written = topk_window(word.column(Column.ARGUMENT), entry - operands.y)
    return (side.unknown | (is_topk & written)) & (entry.astype(jnp.int32) != effect.entry)


# -- the loop ---------------------------------------------------------------------------------------------------------


def control_loop(
    core: jax.Array, side: Side, table: Table, config: MachineConfig, rows: int = LOG_ROWS
) -> tuple[jax.Array, Side, jax.Array]:
    """Run until the program ends or faults, or the log is full.

    Args:
        core, side: the integer state.
        table: the decoded program.
        config: the machine.
        rows: datapath instructions that the log holds, a multiple of 64.

    Returns:
        ``(core, side, log)``; ``side.registers[STOP]`` says why it stopped, and ``core[LOGGED]`` rows of the log count.
    """
    log = jnp.zeros((rows + 1, len(LOG_COLUMNS)), jnp.uint32)
    # What the deadline was made of may have changed since: the first step looks at everything.
    core = put(core, (lanes.LOGGED, 0), (lanes.DEADLINE, core[lanes.TICKS] - 1))
    side = side._replace(registers=put(side.registers, (lanes.STOP, Stop.RUNNING), (lanes.PENDING, 0)))

    def body(carry: Any) -> Any:
        core, log, side = carry
        core, log = lax.while_loop(
            lambda c: _is_fast(c[0], c[1], table), lambda c: _fast_step(*c, side, table), (core, log)
        )
        return _slow_step(core, log, side, table, config)

    core, log, side = lax.while_loop(lambda c: c[2].registers[lanes.STOP] == Stop.RUNNING, body, (core, log, side))
    return core, side, log
