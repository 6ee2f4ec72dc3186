"""The integer side of a running machine: every register in one uint32 vector, the loop stack in a second array."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from plena_jax.isa import Unit
from plena_jax.machine.faults import Fault
from plena_jax.machine.state import LOOPS_PER_REGISTER, LoopStack, MachineState

UNITS = tuple(Unit)

GP = 0
A_LOW = 16
A_HIGH = 32
DEPTH = 48
SCALE, STRIDE, MASK, PC, TICKS = 64, 65, 66, 67, 68
#: The tick after which the loop guard and the instruction limit must be looked at again.
DEADLINE = 69
STATUS, STAGE = 70, 71
#: Bit n: accumulator n counts as zero, whatever its cells hold.
FRESH = 72
#: The tick at which to stop, and whether there is one.
LIMIT, LIMITED = 73, 74
COUNT_LOW = 76
COUNT_HIGH = COUNT_LOW + len(UNITS)
CYCLES_LOW, CYCLES_HIGH = 88, 89
READ_LOW, READ_HIGH, WRITTEN_LOW, WRITTEN_HIGH = 90, 91, 92, 93
#: VRAM rows or HBM bytes that the state would have to hold, after an UNALLOCATED fault.
NEEDED = 94
SIZE = 96
assert COUNT_HIGH + len(UNITS) <= CYCLES_LOW

#: Rows of the loop array: 16 registers x 8 levels, and one that nothing reads.
LOOP_ROWS = 16 * LOOPS_PER_REGISTER + 1
NO_LOOP = LOOP_ROWS - 1
#: Columns of the loop array.
START_PC, STARTED, TICK, ITERATION = range(4)


def pack(state: MachineState, stage: int, limit: int | None) -> tuple[jax.Array, jax.Array]:
    """The uint32 vector [96] and the loop array [129, 4] of a state that is about to run from ``stage``."""
    u = lambda *values: jnp.stack([jnp.asarray(v).astype(jnp.uint32) for v in values])
    # Ticks wrap: the limit counts from where the state is.
    stop = state.ticks + jnp.uint32(limit or 0)
    zero = 0
    ints = jnp.concatenate(
        [
            state.gp,
            state.a[:, 0],
            state.a[:, 1],
            state.loops.depth.astype(jnp.uint32),
            u(state.scale, state.stride, state.v_mask, state.pc, state.ticks),
            u(zero, Fault.OK, stage, zero, stop, limit is not None, zero),
            state.counts[:, 0],
            state.counts[:, 1],
            u(state.cycles[0], state.cycles[1]),
            state.hbm_blocks.reshape(-1),
            u(zero, zero),
        ]
    )
    loops = state.loops
    columns = (loops.start_pc.astype(jnp.uint32), loops.order, loops.tick, loops.iteration)
    table = jnp.stack([c.reshape(-1) for c in columns], axis=1)
    return ints, jnp.concatenate([table, jnp.zeros((1, 4), jnp.uint32)])


def unpack(ints: jax.Array, loops: jax.Array, state: MachineState) -> MachineState:
    """``state`` with its integer side taken from the packed form."""
    table = loops[:NO_LOOP].reshape(16, LOOPS_PER_REGISTER, 4)
    return state.replace(
        gp=ints[GP:A_LOW],
        a=jnp.stack([ints[A_LOW:A_HIGH], ints[A_HIGH:DEPTH]], axis=1),
        scale=ints[SCALE],
        stride=ints[STRIDE],
        v_mask=ints[MASK],
        pc=ints[PC].astype(jnp.int32),
        status=ints[STATUS].astype(jnp.int32),
        ticks=ints[TICKS],
        counts=jnp.stack([ints[COUNT_LOW:COUNT_HIGH], ints[COUNT_HIGH : COUNT_HIGH + len(UNITS)]], axis=1),
        cycles=ints[CYCLES_LOW : CYCLES_HIGH + 1],
        hbm_blocks=ints[READ_LOW : WRITTEN_HIGH + 1].reshape(2, 2),
        loops=LoopStack(
            depth=ints[DEPTH:SCALE].astype(jnp.int32),
            start_pc=table[..., START_PC].astype(jnp.int32),
            order=table[..., STARTED],
            tick=table[..., TICK],
            iteration=table[..., ITERATION],
        ),
    )
