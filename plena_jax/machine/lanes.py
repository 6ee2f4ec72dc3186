"""The integer side of a running machine as a few packed arrays.

``core`` (uint32 [64]) is what every instruction may change: one fused kernel updates all of it. ``Side`` holds what
only a few instructions change, and is written by the slow step alone (see :mod:`plena_jax.machine.control`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plena_jax.bits import Array, array_module
from plena_jax.isa import Unit
from plena_jax.machine.state import LOOPS_PER_REGISTER, LoopStack, MachineState

UNITS = tuple(Unit)
REGISTERS = 16

# -- core -------------------------------------------------------------------------------------------------------------

GP = 0
#: Of the innermost open loop of each register: pc of its C_LOOP_START (NO_LOOP if none is open), and the tick at which
#: its current iteration began.
START, SINCE = 16, 32
NO_LOOP = 0xFFFFFFFF
SCALE, STRIDE, MASK, PC, TICKS = 48, 49, 50, 51, 52
#: Bit n: accumulator n counts as zero, whatever it holds.
FRESH = 53
#: Datapath instructions written to the log.
LOGGED = 54
#: The tick after which the slow step must look at the loop guard and the instruction limit again; every call of the
#: control loop makes its own.
DEADLINE = 55
CYCLES_LOW, CYCLES_HIGH = 56, 57
#: Instructions by unit, modulo 2**32.
COUNTS = 58
CORE = COUNTS + len(UNITS)
assert CORE == 64

# -- side.registers ---------------------------------------------------------------------------------------------------

A_LOW, A_HIGH, DEPTH = 0, 16, 32
STATUS = 48
#: Why the control loop has stopped, a :class:`Stop`.
STOP = 49
#: The tick at which to stop, and whether there is one.
UNTIL, HAS_UNTIL = 50, 51
#: 1 while the log holds a V_TOPK: what it writes to INT SRAM is not known yet.
PENDING = 52
#: 1 where the program is resolved without running it: go past V_TOPK, and stop with DATA_DEPENDENT where something that
#: it wrote is loaded.
RESOLVING = 53
SIDE = 56

#: Columns of the loop stack.
STACK_START, STACK_ORDER, STACK_SINCE = range(3)


class Side(NamedTuple):
    """What only the slow step writes.

    Attributes:
        registers: uint32 [56].
        stack: uint32 [16, 8, 3], the open loops of each register; SINCE of the innermost one is in ``core``.
        int_sram: uint32 [1024].
        unknown: bool [1024], entries that V_TOPK has written while a program is resolved without running it.
    """

    registers: Array
    stack: Array
    int_sram: Array
    unknown: Array


def pack(state: MachineState) -> tuple[Array, Side]:
    """``(core, side)`` of a state that is about to run; NumPy arrays in, NumPy arrays out."""
    xp = array_module(state.gp)
    unsigned = lambda *values: xp.stack([xp.asarray(v).astype(np.uint32) for v in values])
    loops = state.loops
    stack = xp.stack([loops.start_pc.astype(np.uint32), loops.order, loops.tick], axis=-1)
    innermost = xp.take_along_axis(stack, xp.maximum(loops.depth - 1, 0)[:, None, None], axis=1)[:, 0]
    is_open = loops.depth > 0
    start = xp.where(is_open, innermost[:, STACK_START], np.uint32(NO_LOOP))
    since = xp.where(is_open, innermost[:, STACK_SINCE], np.uint32(0))
    scalars = unsigned(state.scale, state.stride, state.v_mask, state.pc, state.ticks, 0, 0, 0)
    core = xp.concatenate([state.gp, start, since, scalars, state.cycles, state.counts[:, 0]])
    a, depth = state.a, loops.depth.astype(np.uint32)
    registers = xp.concatenate([a[:, 0], a[:, 1], depth, np.zeros(SIDE - STATUS, np.uint32)])
    return core, Side(registers, stack, state.int_sram, xp.zeros(state.int_sram.shape, bool))


def unpack(core: Array, side: Side, state: MachineState) -> MachineState:
    """``state`` with its integer side taken from the packed form; counts are carried over their 32-bit limit."""
    xp = array_module(core)
    depth = side.registers[DEPTH : DEPTH + REGISTERS].astype(np.int32)
    level = np.arange(LOOPS_PER_REGISTER)[None]
    since = xp.where(level == depth[:, None] - 1, core[SINCE : SINCE + REGISTERS, None], side.stack[..., STACK_SINCE])
    is_open = level < depth[:, None]
    kept = lambda values: xp.where(is_open, values, np.uint32(0))
    counts = core[COUNTS:]
    carried = (counts < state.counts[:, 0]).astype(np.uint32)
    return state.replace(
        gp=core[GP : GP + REGISTERS],
        a=xp.stack([side.registers[A_LOW:A_HIGH], side.registers[A_HIGH:DEPTH]], axis=1),
        scale=core[SCALE],
        stride=core[STRIDE],
        v_mask=core[MASK],
        pc=core[PC].astype(np.int32),
        status=side.registers[STATUS].astype(np.int32),
        ticks=core[TICKS],
        counts=xp.stack([counts, state.counts[:, 1] + carried], axis=1),
        cycles=core[CYCLES_LOW : CYCLES_HIGH + 1],
        int_sram=side.int_sram,
        loops=LoopStack(
            depth=depth,
            start_pc=kept(side.stack[..., STACK_START]).astype(np.int32),
            order=kept(side.stack[..., STACK_ORDER]),
            tick=kept(since),
        ),
    )
