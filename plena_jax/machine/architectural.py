"""The architectural engine: program counter, loops and registers live in the state, and every instruction is executed.

It is the definition of the machine, and runs anything. The integer side runs ahead of the float side by up to a log of
datapath instructions (see :mod:`plena_jax.machine.control`); a fault takes it back to the instruction at fault.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.machine import lanes
from plena_jax.machine.control import Stop, control_loop, put
from plena_jax.machine.datapath import Memories, execute, pack_memories, unpack_memories
from plena_jax.machine.decode import Table
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import Side
from plena_jax.machine.plan import plan
from plena_jax.machine.state import MachineState
from plena_jax.machine.transfer import add64


class _Carry(NamedTuple):
    core: jax.Array
    side: Side
    memories: Memories
    moved: jax.Array
    #: A fault found in the last log, and what it needs; the log is being run again up to it.
    fault: jax.Array
    needed: jax.Array


@partial(jax.jit, static_argnames=("config",))
def run_architectural(
    table: Table, state: MachineState, limit: jax.Array, config: MachineConfig
) -> tuple[MachineState, jax.Array]:
    """Run a decoded program from ``state.pc`` until it halts, faults, or has executed ``limit`` instructions.

    Args:
        table: the decoded program.
        state: where to start.
        limit: int32 [], instructions to execute at most; negative for no limit.
        config: the machine.

    Returns:
        The final state and, after an UNALLOCATED fault, how many VRAM rows or HBM bytes are needed.
    """
    vram_rows, hbm_bytes = state.vram.shape[0], state.hbm.shape[0]
    until = state.ticks + limit.astype(jnp.uint32)

    def body(c: _Carry) -> _Carry:
        core, side, log = control_loop(c.core, c.side, table, config, resolving=False)
        found = plan(log, core[lanes.LOGGED], table, config, vram_rows, hbm_bytes)
        again = found.fault != 0
        memories = execute(config, c.memories._replace(int_sram=side.int_sram), found.records, found.count * ~again)
        side = side._replace(int_sram=memories.int_sram)
        # A fault in the log: once more from where this turn began, up to the instruction at fault.
        registers = put(c.side.registers, (lanes.UNTIL, found.tick), (lanes.HAS_UNTIL, 1))
        pick = lambda first, second: jax.tree.map(lambda a, b: jnp.where(again, a, b), first, second)
        core, side = pick((c.core, c.side._replace(registers=registers)), (core, side))
        moved = jnp.stack([jnp.stack(add64(*a, *b)) for a, b in zip(c.moved, found.moved, strict=True)])
        # Arrived at the instruction at fault: say so.
        arrived = (c.fault != 0) & ~again
        status = jnp.where(arrived, c.fault, side.registers[lanes.STATUS].astype(jnp.int32))
        stop = jnp.where(again, Stop.RUNNING, side.registers[lanes.STOP].astype(jnp.int32))
        side = side._replace(registers=put(side.registers, (lanes.STATUS, status), (lanes.STOP, stop)))
        return _Carry(
            core,
            side,
            memories._replace(int_sram=side.int_sram),
            jnp.where(again, c.moved, moved),
            jnp.where(again, found.fault, c.fault),
            jnp.where(again, found.needed, c.needed),
        )

    def goes_on(c: _Carry) -> jax.Array:
        stop = c.side.registers[lanes.STOP]
        return (stop == Stop.RUNNING) | (stop == Stop.LOG)

    core, side = lanes.pack(state)
    limited = (lanes.UNTIL, until), (lanes.HAS_UNTIL, limit >= 0)
    side = side._replace(registers=put(side.registers, (lanes.STATUS, Fault.OK), *limited))
    zero = jnp.uint32(0)
    start = _Carry(core, side, pack_memories(config, state), state.hbm_blocks, jnp.int32(0), zero)
    end = lax.while_loop(goes_on, body, start)
    final = lanes.unpack(end.core, end.side, state).replace(hbm_blocks=end.moved)
    return unpack_memories(config, end.memories, final, end.core[lanes.FRESH]), end.needed
