"""The integer side of a running machine as a few packed arrays.

``core`` (uint32 [64]) is what every instruction may change: one fused kernel updates all of it. ``Side`` holds what only a
few instructions change, and is written by the slow step alone (see :mod:`plena_jax.machine.control`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.isa import Unit
from plena_jax.machine.state import LOOPS_PER_REGISTER, LoopStack, MachineState

UNITS = tuple(Unit)
REGISTERS = 16

# -- core -------------------------------------------------------------------------------------------------------------

GP = 0
#: Of the innermost open loop of each register: pc of its C_LOOP_START (NO_LOOP if none is open), and the tick at which its
#: current iteration began.
START, SINCE = 16, 32
NO_LOOP = 0xFFFFFFFF
SCALE, STRIDE, MASK, PC, TICKS = 48, 49, 50, 51, 52
#: Bit n: accumulator n counts as zero, whatever it holds.
FRESH = 53
#: Datapath instructions written to the log.
LOGGED = 54
#: The tick after which the slow step must look at the loop guard and the instruction limit again.
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

    registers: jax.Array
    stack: jax.Array
    int_sram: jax.Array
    unknown: jax.Array


def pack(state: MachineState) -> tuple[jax.Array, Side]:
    """``(core, side)`` of a state that is about to run."""
    u = lambda *values: jnp.stack([jnp.asarray(v).astype(jnp.uint32) for v in values])
    loops = state.loops
    stack = jnp.stack([loops.start_pc.astype(jnp.uint32), loops.order, loops.tick], axis=-1)
    innermost = jnp.take_along_axis(stack, jnp.maximum(loops.depth - 1, 0)[:, None, None], axis=1)[:, 0]
    is_open = loops.depth > 0
    start = jnp.where(is_open, innermost[:, STACK_START], jnp.uint32(NO_LOOP))
    since = jnp.where(is_open, innermost[:, STACK_SINCE], jnp.uint32(0))
    scalars = u(state.scale, state.stride, state.v_mask, state.pc, state.ticks, 0, 0, state.ticks - jnp.uint32(1))
    core = jnp.concatenate([state.gp, start, since, scalars, state.cycles, state.counts[:, 0]])
    registers = jnp.concatenate([state.a[:, 0], state.a[:, 1], loops.depth.astype(jnp.uint32), jnp.zeros(8, jnp.uint32)])
    return core, Side(registers, stack, state.int_sram, jnp.zeros(state.int_sram.shape, bool))


def unpack(core: jax.Array, side: Side, state: MachineState) -> MachineState:
    """``state`` with its integer side taken from the packed form; counts are carried over their 32-bit limit."""
    depth = side.registers[DEPTH : DEPTH + REGISTERS].astype(jnp.int32)
    level = np.arange(LOOPS_PER_REGISTER)
    since = jnp.where(level == depth[:, None] - 1, core[SINCE : SINCE + REGISTERS, None], side.stack[..., STACK_SINCE])
    is_open = level < depth[:, None]
    kept = lambda values: jnp.where(is_open, values, jnp.uint32(0))
    counts = core[COUNTS:]
    carried = (counts < state.counts[:, 0]).astype(jnp.uint32)
    return state.replace(
        gp=core[GP : GP + REGISTERS],
        a=jnp.stack([side.registers[A_LOW:A_HIGH], side.registers[A_HIGH:DEPTH]], axis=1),
        scale=core[SCALE],
        stride=core[STRIDE],
        v_mask=core[MASK],
        pc=core[PC].astype(jnp.int32),
        status=side.registers[STATUS].astype(jnp.int32),
        ticks=core[TICKS],
        counts=jnp.stack([counts, state.counts[:, 1] + carried], axis=1),
        cycles=core[CYCLES_LOW : CYCLES_HIGH + 1],
        int_sram=side.int_sram,
        loops=LoopStack(
            depth=depth,
            start_pc=kept(side.stack[..., STACK_START]).astype(jnp.int32),
            order=kept(side.stack[..., STACK_ORDER]),
            tick=kept(since),
        ),
    )
