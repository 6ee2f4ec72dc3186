"""The resolved engine: integer registers, loops and addresses are worked out once, and only datapath instructions run.

In almost every program nothing integer depends on data. Its *trace*, the list of datapath instructions with plain row
numbers, then depends on the program and the start registers alone; it is made once and kept.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.machine import lanes
from plena_jax.machine.control import Stop, control_loop, put
from plena_jax.machine.datapath import Memories, execute, pack_memories, unpack_memories
from plena_jax.machine.decode import Table, decode
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import Side
from plena_jax.machine.plan import Plan, plan
from plena_jax.machine.record import WIDTH
from plena_jax.machine.state import INTEGER_FIELDS, LoopStack, MachineState
from plena_jax.machine.transfer import add64
from plena_jax.program import Program

#: Records that one compiled call runs.
CHUNK = 16384
#: Longest trace that is made: 64 bytes a record.
MAX_RECORDS = 1 << 24
#: Records that the cache keeps in all.
_CACHED_RECORDS = 1 << 25


@dataclass(frozen=True, eq=False)
class Trace:
    """A program resolved from given start registers.

    Attributes:
        program, config: what was resolved.
        records: int32 [n, 16], one row per datapath instruction (columns: :class:`~plena_jax.machine.record.Record`).
        vram_rows: VRAM rows that it touches.
        hbm_bytes: bytes of HBM up to the last one stored.
        status: why the program ends.
        end: integer side of the machine at the end; ticks, counts and cycles from zero.
        unknown: bool [1024], INT SRAM entries that V_TOPK has written last.
        fresh: bit mask of the accumulators that end up drained.
    """

    program: Program
    config: MachineConfig
    records: np.ndarray
    vram_rows: int
    hbm_bytes: int
    status: Fault
    end: MachineState
    unknown: np.ndarray
    fresh: int

    def __len__(self) -> int:
        return len(self.records)

    @property
    def instructions(self) -> int:
        """Instructions executed, control instructions included."""
        return self.end.instructions

    @cached_property
    def chunks(self) -> list[tuple[jax.Array, int]]:
        """The records on the device, in pieces of one shape, each with the number that counts."""
        pieces = [self.records[i : i + CHUNK] for i in range(0, max(len(self), 1), CHUNK)]
        return [(jnp.asarray(_padded(piece, CHUNK + 1)), len(piece)) for piece in pieces]


def _padded(records: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([records, np.zeros((rows - len(records), WIDTH), np.int32)])


# -- resolving --------------------------------------------------------------------------------------------------------


class Unresolvable(Exception):
    """The trace of a program does depend on data, or is too long."""


class _Advanced(NamedTuple):
    core: jax.Array
    side: Side
    plan: Plan


@partial(jax.jit, static_argnames=("config",))
def _advance(table: Table, core: jax.Array, side: Side, config: MachineConfig) -> _Advanced:
    core, side, log = control_loop(core, side, table, config, resolving=True)
    everything = 2**32 - 1
    return _Advanced(core, side, plan(log, core[lanes.LOGGED], table, config, everything, everything))


@jax.jit
def _pack(state: MachineState) -> tuple[jax.Array, Side]:
    return lanes.pack(state)


_traces: OrderedDict[bytes, Trace] = OrderedDict()


def resolve(
    program: Program,
    config: MachineConfig,
    state: MachineState,
    max_instructions: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trace:
    """The trace of a program on a machine with the integer registers and INT SRAM of ``state``; made once and kept.

    Args:
        program, config: what to resolve.
        state: only its integers matter, and they must be concrete.
        max_instructions: stop there.
        progress: called now and then with the number of instructions resolved.

    Raises:
        Unresolvable: V_TOPK decides where the program goes, or the trace is longer than ``MAX_RECORDS``.
    """
    start = _from_zero(jax.device_get(state.replace(**dict.fromkeys(_FLOAT_FIELDS, np.float32(0)))))
    key = _key(program, config, start, max_instructions)
    if key in _traces:
        _traces.move_to_end(key)
        return _traces[key]
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu):
        trace = _resolve(program, config, start, max_instructions, progress)
    _traces[key] = trace
    while len(_traces) > 1 and sum(len(t) for t in _traces.values()) > _CACHED_RECORDS:
        _traces.popitem(last=False)
    return trace


_FLOAT_FIELDS = ("vram", "mram", "fp_sram", "hbm", "f", "bmm_scale", "m_accum", "hm_accum", "hv_accum", "v_accum")


def _key(program: Program, config: MachineConfig, start: MachineState, limit: int | None) -> bytes:
    digest = hashlib.sha256(program.digest.encode())
    digest.update(repr((config, limit)).encode())
    for name in INTEGER_FIELDS:
        for leaf in jax.tree.leaves(getattr(start, name)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()


def _shifted(loops: LoopStack, ticks: np.uint32 | jax.Array) -> LoopStack:
    """Open loops with every time they hold moved by ``ticks``; NumPy in, NumPy out."""
    xp = jnp if isinstance(ticks, jax.Array) else np
    is_open = np.arange(loops.tick.shape[1]) < loops.depth[:, None]
    tick, order = (xp.where(is_open, times + ticks, np.uint32(0)) for times in (loops.tick, loops.order))
    return LoopStack(depth=loops.depth, start_pc=loops.start_pc, tick=tick, order=order)


def _from_zero(state: MachineState) -> MachineState:
    """The same start with ticks and counters at zero."""
    with np.errstate(over="ignore"):
        loops = _shifted(state.loops, np.uint32(0) - np.uint32(state.ticks))
    zero = {name: np.zeros_like(getattr(state, name)) for name in ("counts", "cycles", "hbm_blocks", "ticks", "status")}
    return state.replace(loops=loops, **zero)


def _resolve(
    program: Program,
    config: MachineConfig,
    start: MachineState,
    limit: int | None,
    progress: Callable[[int], None] | None,
) -> Trace:
    table = jax.tree.map(jnp.asarray, decode(program, config))
    core, side = _pack(start)
    if limit is not None:
        side = _until(side, np.uint32(limit))
    pieces: list[np.ndarray] = []
    blocks = np.zeros((2, 2), np.uint64)
    vram_rows = hbm_bytes = count = 0
    pending = Fault.OK
    while True:
        new = _advance(table, core, side, config)
        found, stop, status, tick = jax.device_get(
            (new.plan, new.side.registers[lanes.STOP], new.side.registers[lanes.STATUS], new.core[lanes.TICKS])
        )
        if found.fault:
            # Once more, up to the instruction at fault.
            pending, side = Fault(int(found.fault)), _until(side, found.tick)
            continue
        core, side = new.core, new.side
        pieces.append(found.records[: int(found.count)])
        count += int(found.count)
        vram_rows, hbm_bytes = max(vram_rows, int(found.vram_top)), max(hbm_bytes, int(found.hbm_top))
        blocks += found.moved.astype(np.uint64)
        if count > MAX_RECORDS:
            raise Unresolvable(f"its trace has more than {MAX_RECORDS} datapath instructions")
        if progress is not None:
            progress(int(tick))
        if stop != Stop.LOG:
            break
    status = pending or Fault(int(status))
    if status is Fault.DATA_DEPENDENT:
        raise Unresolvable("S_LD_INT loads an index that V_TOPK computed")
    side = side._replace(registers=put(side.registers, (lanes.STATUS, status)))
    end, unknown = jax.device_get((lanes.unpack(core, side, start), side.unknown))
    total = blocks[:, 0] + (blocks[:, 1] << np.uint64(32))
    halves = np.stack([total & np.uint64(0xFFFFFFFF), total >> np.uint64(32)], axis=1).astype(np.uint32)
    end = end.replace(hbm_blocks=halves)
    fresh = int(core[lanes.FRESH])
    return Trace(program, config, np.concatenate(pieces), vram_rows, hbm_bytes, status, end, unknown, fresh)


def _until(side: Side, tick: np.ndarray | np.uint32) -> Side:
    return side._replace(registers=put(side.registers, (lanes.UNTIL, tick), (lanes.HAS_UNTIL, 1)))


# -- running ----------------------------------------------------------------------------------------------------------


def run_trace(
    trace: Trace, state: MachineState, donate: bool = False, progress: Callable[[int], None] | None = None
) -> MachineState:
    """Run a trace on the memories of ``state``, whose integers must be those that it was resolved for.

    Works on concrete states, in pieces of one compiled shape, and on traced ones (``jit``, ``vmap``).

    Args:
        trace: what to run.
        state: with at least ``trace.vram_rows`` and ``trace.hbm_bytes`` allocated.
        donate: the memories of ``state`` may be overwritten, which saves a copy.
        progress: called with the number of records run.
    """
    config = trace.config
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        records = jnp.asarray(_padded(trace.records, len(trace) + 1))
        memories = execute(config, pack_memories(config, state), records, jnp.int32(len(trace)))
        return _finish(memories, state, trace.end, trace.unknown, np.uint32(trace.fresh), config)
    memories = _pack_memories(config, state)
    if not donate:
        kept = {name: jnp.copy(getattr(memories, name)) for name in ("vram", "m_accum", "hbm", "int_sram")}
        memories = memories._replace(**kept)
    done = 0
    for records, count in trace.chunks:
        memories = _execute(config, memories, records, jnp.int32(count))
        done += count
        if progress is not None:
            jax.block_until_ready(memories.m_accum)
            progress(done)
    return _finish(memories, state, trace.end, trace.unknown, np.uint32(trace.fresh), config)


_pack_memories = jax.jit(pack_memories, static_argnames="config")
_execute = jax.jit(execute, static_argnames="config", donate_argnames="memories")


@partial(jax.jit, static_argnames="config")
def _finish(
    memories: Memories,
    state: MachineState,
    end: MachineState,
    unknown: jax.Array,
    fresh: jax.Array,
    config: MachineConfig,
) -> MachineState:
    wide = lambda a, b: jnp.stack(add64(a[..., 0], a[..., 1], b[..., 0], b[..., 1]), axis=-1)
    same = {name: jnp.asarray(getattr(end, name)) for name in ("gp", "a", "scale", "stride", "v_mask", "pc", "status")}
    final = state.replace(
        **same,
        ticks=state.ticks + end.ticks,
        loops=_shifted(end.loops, state.ticks),
        int_sram=jnp.where(unknown, memories.int_sram, end.int_sram),
        counts=wide(state.counts, end.counts),
        cycles=wide(state.cycles, end.cycles),
        hbm_blocks=wide(state.hbm_blocks, end.hbm_blocks),
    )
    return unpack_memories(config, memories, final, fresh)
