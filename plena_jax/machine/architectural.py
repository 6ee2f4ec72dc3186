"""The architectural engine: program counter, loops and registers live in the state, and every instruction is executed.

It is the definition of the machine, and runs anything. The integer side runs ahead of the float side by up to a log of
datapath instructions (see :mod:`plena_jax.machine.control`); a fault takes it back to the instruction at fault.
Concrete runs alternate between the two from the host, with functions that the resolved engine has compiled already;
runs that are part of somebody's ``jit`` or ``vmap`` do so inside one loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from plena_jax.config import MachineConfig
from plena_jax.machine import lanes
from plena_jax.machine.ahead import Ahead, integers_of
from plena_jax.machine.compiled import CHUNK, Datapath, padded
from plena_jax.machine.control import Stop, control_loop, put
from plena_jax.machine.datapath import execute
from plena_jax.machine.decode import Column, Table
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import Side
from plena_jax.machine.memories import Memories, pack_memories, unpack_memories
from plena_jax.machine.plan import plan
from plena_jax.machine.semantics.registry import Stage
from plena_jax.machine.state import INTEGER_FIELDS, MachineState, allocated_hbm
from plena_jax.machine.transfer import add64
from plena_jax.program import Program

Result = tuple[MachineState, jax.Array]


def run_concrete(
    program: Program,
    state: MachineState,
    config: MachineConfig,
    limit: int | None = None,
    donate: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[MachineState, int]:
    """Run a program from ``state.pc`` until it halts, faults, or has executed ``limit`` instructions.

    Args:
        program, state, config: what to run, where to start.
        limit: instructions to execute at most.
        donate: the memories of ``state`` may be overwritten, which saves a copy.
        progress: called now and then with the number of instructions executed.

    Returns:
        The final state and, after an UNALLOCATED fault, how many VRAM rows or HBM bytes are needed.
    """
    begin = int(state.ticks)
    ahead = Ahead(program, config, integers_of(state), limit)
    datapath = Datapath(config, state, donate)
    for records in ahead.pieces(state.vram.shape[0], allocated_hbm(state.hbm, config)):
        if ahead.waits:
            datapath.int_sram = ahead.int_sram
        datapath.execute(padded(records, CHUNK + 1), len(records))
        if ahead.waits:
            ahead.int_sram = datapath.int_sram
        if progress is not None:
            datapath.wait()
            progress((ahead.tick - begin) & 0xFFFFFFFF)
    integers = {name: getattr(ahead.end(), name) for name in INTEGER_FIELDS}
    return datapath.finish(integers, ahead.fresh, ahead.unknown), ahead.needed


def run_traced(table: Table, state: MachineState, limit: jax.Array, config: MachineConfig) -> Result:
    """:func:`run_concrete` for traced states.

    Under ``vmap`` over states, lanes whose registers, loops and INT SRAM are the same share one integer machine; if
    they differ, or the program has V_TOPK, lanes run one after the other.

    Args:
        table: the decoded program.
        state: where to start.
        limit: int32 [], instructions to execute at most; negative for no limit.
        config: the machine.

    Returns:
        The final state and, after an UNALLOCATED fault, how many VRAM rows or HBM bytes are needed.
    """
    return _jitted(config)(table, state, limit)


class _Carry(NamedTuple):
    core: jax.Array
    side: Side
    memories: Memories
    moved: jax.Array
    #: A fault found in the last log, and what it needs; the log is being run again up to it.
    fault: jax.Array
    needed: jax.Array


def _run(table: Table, state: MachineState, limit: jax.Array, config: MachineConfig, topk: bool) -> Result:
    vram_rows, hbm_bytes = state.vram.shape[0], allocated_hbm(state.hbm, config)
    until = state.ticks + limit.astype(jnp.uint32)

    def body(c: _Carry) -> _Carry:
        core, side, log = control_loop(c.core, c.side, table, config)
        found = plan(log[:-1], core[lanes.LOGGED], table, config, vram_rows, hbm_bytes)
        again = found.fault != 0
        count = jnp.where(again, 0, found.count)
        memories = execute(config, c.memories._replace(int_sram=side.int_sram), found.records, count)
        if topk:
            side = side._replace(int_sram=memories.int_sram)
        # A fault in the log: once more from where this turn began, up to the instruction at fault.
        registers = put(c.side.registers, (lanes.UNTIL, found.tick), (lanes.HAS_UNTIL, 1))
        pick = lambda first, second: jax.tree.map(lambda a, b: jnp.where(again, a, b), first, second)
        core, side = pick((c.core, c.side._replace(registers=registers)), (core, side))
        # Arrived at the instruction at fault: say so.
        arrived = (c.fault != 0) & ~again
        status = jnp.where(arrived, c.fault, side.registers[lanes.STATUS].astype(jnp.int32))
        stop = jnp.where(again, Stop.RUNNING, side.registers[lanes.STOP].astype(jnp.int32))
        side = side._replace(registers=put(side.registers, (lanes.STATUS, status), (lanes.STOP, stop)))
        moved = jnp.stack([jnp.stack(add64(*a, *b)) for a, b in zip(c.moved, found.moved, strict=True)])
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
    # Behind the program everything halts; there is nothing to fetch in front of it.
    stop = (lanes.STOP, jnp.where(state.pc < 0, Stop.HALTED, Stop.RUNNING))
    side = side._replace(registers=put(side.registers, (lanes.STATUS, Fault.OK), stop, *limited))
    start = _Carry(core, side, pack_memories(config, state), state.hbm_blocks, jnp.int32(0), jnp.uint32(0))
    end = lax.while_loop(goes_on, body, start)
    final = lanes.unpack(end.core, end.side, state).replace(hbm_blocks=end.moved)
    return unpack_memories(config, end.memories, final, end.core[lanes.FRESH]), end.needed


@lru_cache(maxsize=32)
def _jitted(config: MachineConfig) -> Callable[[Table, MachineState, jax.Array], Result]:
    return jax.jit(_batchable(config))


def _batchable(config: MachineConfig) -> Callable[[Table, MachineState, jax.Array], Result]:
    run = custom_vmap(partial(_run, config=config, topk=True))

    @run.def_vmap
    def rule(axis_size: int, batched: Any, table: Table, state: MachineState, limit: jax.Array) -> tuple[Result, Any]:
        def one_after_the_other(state: MachineState) -> Result:
            def one(index: jax.Array) -> Result:
                pick = lambda value, is_batched: value[index] if is_batched else value
                return run(*jax.tree.map(pick, (table, state, limit), tuple(batched)))

            return lax.map(one, jnp.arange(axis_size))

        def together(state: MachineState) -> Result:
            return _together(table, state, limit, batched[1], axis_size, config)

        if any(jax.tree.leaves((batched[0], batched[2]))):
            result = one_after_the_other(state)
        else:
            same = ~jnp.any(table.templates[:, Column.STAGE] == Stage.TOPK)
            for name in INTEGER_FIELDS:
                fields = jax.tree.leaves(getattr(state, name)), jax.tree.leaves(getattr(batched[1], name))
                for value, is_batched in zip(*fields, strict=True):
                    same = same & (jnp.all(value == value[:1]) if is_batched else True)
            result = lax.cond(same, together, one_after_the_other, state)
        return result, jax.tree.map(lambda _: True, result)

    return run


def _together(
    table: Table, state: MachineState, limit: jax.Array, batched: MachineState, axis_size: int, config: MachineConfig
) -> Result:
    """All lanes with the integer machine of the first one."""
    axes: dict[str, Any] = {}
    first = state
    for item in dataclasses.fields(MachineState):
        value, flags = getattr(state, item.name), getattr(batched, item.name)
        if item.name in INTEGER_FIELDS:
            first = first.replace(**{item.name: jax.tree.map(lambda v, b: v[0] if b else v, value, flags)})
            axes[item.name] = jax.tree.map(lambda _: None, value)
        else:
            axes[item.name] = 0 if flags else None
    run = partial(_run, table, limit=limit, config=config, topk=False)
    mapped = jax.vmap(lambda s: run(s), in_axes=(MachineState(**axes),), axis_size=axis_size)
    return mapped(first)
