"""The architectural engine: program counter, loops and registers live in the state, and every instruction is executed.

It is the definition of the machine, and runs anything.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.machine import lanes
from plena_jax.machine.control import control_step, rare_step
from plena_jax.machine.datapath import cursor_at, pack_memories, sweep, unpack_memories
from plena_jax.machine.layout import Layout
from plena_jax.machine.plan import plan
from plena_jax.machine.semantics.registry import Stage
from plena_jax.machine.state import MachineState
from plena_jax.machine.view import View


@partial(jax.jit, static_argnames=("config", "limited"))
def run_architectural(
    table: jax.Array, state: MachineState, limit: jax.Array, config: MachineConfig, limited: bool
) -> tuple[MachineState, jax.Array]:
    """Run a decoded program from ``state.pc`` until it halts, faults, or has executed ``limit`` instructions.

    Returns the final state and, after an UNALLOCATED fault, how many VRAM rows or HBM bytes are needed.
    """
    layout = Layout(config, state.vram.shape[0])
    hbm_bytes = state.hbm.shape[0]

    def body(carry):  # type: ignore[no-untyped-def]
        ints, loops, memories = carry

        def load(entry: jax.Array) -> tuple[jax.Array, bool]:
            pattern = View(layout, *memories).sram(layout.int_sram, entry)[0]
            return lax.bitcast_convert_type(pattern, jnp.uint32), False

        ints, loops = control_loop(ints, loops, table, load, config)
        ints, record = plan(ints, table, config, layout.vram_rows, hbm_bytes)
        memories, _ = sweep(layout, memories, record[None], cursor_at(0), jnp.int32(1))
        return ints, loops, memories

    ints, loops = lanes.pack(state, int(Stage.RARE), limit if limited else None)
    carry = ints, loops, pack_memories(layout, state)
    ints, loops, memories = lax.while_loop(lambda c: c[0][lanes.STAGE] < int(Stage.HALTED), body, carry)
    state = unpack_memories(layout, memories, state, ints[lanes.FRESH])
    return lanes.unpack(ints, loops, state), ints[lanes.NEEDED]


def control_loop(ints, loops, table, load, config):  # type: ignore[no-untyped-def]
    """Run control instructions until a datapath instruction, a fault, or the end."""
    ints, loops = lax.while_loop(
        lambda c: c[0][lanes.STAGE] == int(Stage.CONTROL),
        lambda c: control_step(*c, table, load, config),
        (ints, loops),
    )
    return lax.while_loop(
        lambda c: c[0][lanes.STAGE] == int(Stage.RARE), lambda c: rare_step(*c, table, config), (ints, loops)
    )
