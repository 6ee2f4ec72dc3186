"""The resolved engine: integer registers, loops and addresses are worked out once, and only datapath instructions run.

In almost every program nothing integer depends on data. Its *trace*, the list of datapath instructions with plain row
numbers, then depends on the program and the start registers alone; it is made once and kept.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import Formats, MachineConfig
from plena_jax.machine.ahead import Ahead, add_wide, integers_of
from plena_jax.machine.compiled import CHUNK, Datapath, padded
from plena_jax.machine.differentiate import run_segments
from plena_jax.machine.faults import Fault
from plena_jax.machine.memories import pack_memories, unpack_memories
from plena_jax.machine.record import WIDTH
from plena_jax.machine.segments import Gradient, cut
from plena_jax.machine.state import INTEGER_FIELDS, LoopStack, MachineState, integer_leaves
from plena_jax.program import Program

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
        pieces = [self.records[i : i + CHUNK] for i in range(0, len(self), CHUNK)]
        # Kept beyond the ``jit`` that may be around the first run.
        with jax.ensure_compile_time_eval():
            return [(jax.device_put(padded(piece, CHUNK + 1)), len(piece)) for piece in pieces]


# -- resolving --------------------------------------------------------------------------------------------------------


class Unresolvable(Exception):
    """The trace of a program does depend on data, or is too long."""


_traces: OrderedDict[bytes, Trace] = OrderedDict()
_lock = threading.Lock()


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
    leaves = integer_leaves(state)
    asked = (program, config, max_instructions, *leaves)
    with _lock:
        # Most often the same objects are asked for as the last time.
        if len(_last) == len(asked) + 1 and all(a is b for a, b in zip(_last, asked, strict=False)):
            return _last[-1]
    trace = _resolved(program, config, state, max_instructions, progress)
    # NumPy arrays could be changed.
    if not any(isinstance(leaf, np.ndarray) for leaf in leaves):
        with _lock:
            _last[:] = [*asked, trace]
    return trace


#: What was asked for last, and the trace.
_last: list[Any] = []


def _resolved(
    program: Program,
    config: MachineConfig,
    state: MachineState,
    max_instructions: int | None,
    progress: Callable[[int], None] | None,
) -> Trace:
    start = _from_zero(integers_of(state))
    key = _key(program, config, start, max_instructions)
    with _lock:
        if key in _traces:
            _traces.move_to_end(key)
            return _traces[key]
    # In a thread of its own, because the caller may be tracing and this is not part of its computation.
    with ThreadPoolExecutor(1) as pool:
        trace = pool.submit(_resolve, program, config, start, max_instructions, progress).result()
    with _lock:
        _traces[key] = trace
        while len(_traces) > 1 and sum(len(t) for t in _traces.values()) > _CACHED_RECORDS:
            _traces.popitem(last=False)
    return trace


def _key(program: Program, config: MachineConfig, start: MachineState, limit: int | None) -> bytes:
    digest = hashlib.sha256(program.digest.encode())
    digest.update(repr((config, limit)).encode())
    for name in INTEGER_FIELDS:
        for leaf in jax.tree.leaves(getattr(start, name)):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()


def _shifted(loops: LoopStack, ticks: np.uint32) -> LoopStack:
    """Open loops with every time they hold moved by ``ticks``."""
    is_open = np.arange(loops.tick.shape[1]) < loops.depth[:, None]
    tick, order = (np.where(is_open, times + ticks, np.uint32(0)) for times in (loops.tick, loops.order))
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
    ahead = Ahead(program, config, start, limit, resolving=True)
    pieces = [np.zeros((0, WIDTH), np.int32)]
    count = 0
    for records in ahead.pieces():
        pieces.append(records)
        count += len(records)
        if count > MAX_RECORDS:
            raise Unresolvable(f"its trace has more than {MAX_RECORDS} datapath instructions")
        if progress is not None:
            progress(ahead.tick)
    if ahead.status is Fault.DATA_DEPENDENT:
        raise Unresolvable("S_LD_INT loads an index that V_TOPK computed")
    return Trace(
        program=program,
        config=config,
        records=np.concatenate(pieces),
        vram_rows=ahead.vram_rows,
        hbm_bytes=ahead.hbm_bytes,
        status=ahead.status,
        end=ahead.end(),
        unknown=ahead.unknown,
        fresh=ahead.fresh,
    )


# -- running ----------------------------------------------------------------------------------------------------------


def run_trace(
    trace: Trace,
    state: MachineState,
    donate: bool = False,
    progress: Callable[[int], None] | None = None,
    precision: Formats | None = None,
    gradient: Gradient | None = None,
) -> MachineState:
    """Run a trace on the memories of ``state``, whose integers must be those that it was resolved for.

    Works on concrete states, in pieces of one compiled shape, and on traced ones (``jit``, ``vmap``).

    Args:
        trace: what to run.
        state: with at least ``trace.vram_rows`` and ``trace.hbm_bytes`` allocated.
        donate: the memories of ``state`` may be overwritten, which saves a copy.
        progress: called with the number of records run.
        precision: formats that replace those of the configuration.
        gradient: how to differentiate.
    """
    config, integers = trace.config, integers_after(trace, integers_of(state))
    if precision is not None or any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        plan, segments = cut(trace.records, state, config, gradient or Gradient(), trace.program)
        memories = run_segments(plan, pack_memories(config, state), precision, segments)
        final = unpack_memories(config, memories, state, jnp.uint32(trace.fresh)).replace(**integers)
        return final.replace(int_sram=jnp.where(trace.unknown, memories.int_sram, trace.end.int_sram))
    datapath = Datapath(config, state, donate)
    done = 0
    for records, count in trace.chunks:
        datapath.execute(records, count)
        done += count
        if progress is not None:
            datapath.wait()
            progress(done)
    return datapath.finish(integers, trace.fresh, trace.unknown)


def integers_after(trace: Trace, start: MachineState) -> dict[str, Any]:
    """The integer fields after a run from ``start``; INT SRAM without what V_TOPK has written."""
    end = trace.end
    with np.errstate(over="ignore"):
        ticks = np.uint32(start.ticks)
        later = {"ticks": ticks + np.uint32(end.ticks), "loops": _shifted(end.loops, ticks)}
    sums = {name: add_wide(getattr(start, name), getattr(end, name)) for name in ("counts", "cycles", "hbm_blocks")}
    same = {name: getattr(end, name) for name in INTEGER_FIELDS}
    return same | sums | later
