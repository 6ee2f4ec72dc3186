"""Runs on the fused engine: schedules made once for a trace, and compiled code shared between them."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.bits import Array
from plena_jax.config import Formats, MachineConfig
from plena_jax.errors import EngineError
from plena_jax.machine.ahead import integers_of
from plena_jax.machine.fused.differentiate import Pieces, run_pieces
from plena_jax.machine.fused.execute import reads_tiles, run_values
from plena_jax.machine.fused.families import OF_SCALARS, Family, sizes
from plena_jax.machine.fused.schedule import Schedule, schedule
from plena_jax.machine.fused.tables import MATRIX, Bucket, Plan, Tables
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import Memories, needs_care, pack_memories, unpack_memories
from plena_jax.machine.record import Record
from plena_jax.machine.resolved import Trace, integers_after
from plena_jax.machine.semantics import Accumulator, Stage, branches
from plena_jax.machine.state import FLOAT_FIELDS, MachineState, allocated_hbm, integer_leaves
from plena_jax.sharding import memory_of

#: Records that are scheduled together: more take more memory, a row of VLEN for each.
PIECE = 1 << 18
#: Bytes of tables for a record, and values that it makes, at most as a rule.
_BYTES_EACH, _VALUES_EACH = 128, 2
#: Datapath instructions that take as long as a wide step.
_RECORDS_A_STEP = 32


@dataclass(frozen=True, eq=False)
class Fused:
    """A trace as the fused engine runs it.

    Attributes:
        trace: what was fused.
        schedules: of its pieces.
    """

    trace: Trace
    schedules: tuple[Schedule, ...]

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """What occurs in any piece."""
        return tuple(sorted(set().union(*(s.buckets for s in self.schedules))))

    def tables(self, plan: Plan) -> list[Tables]:
        """The tables on the device, for the branches of a plan."""
        with _lock:
            if plan not in self._placed:
                # Kept beyond the ``jit`` that may be around the first run.
                with jax.ensure_compile_time_eval():
                    self._placed[plan] = [jax.device_put(_numbered(s, plan.buckets)) for s in self.schedules]
            return self._placed[plan]

    def integers(self, state: MachineState) -> dict[str, Any]:
        """The integer fields after a run from ``state``; those of the state seen last are kept."""
        leaves = integer_leaves(state)
        held = self._ends.get("last")
        if held is None or any(a is not b for a, b in zip(held[0], leaves, strict=True)):
            held = leaves, jax.device_put(integers_after(self.trace, integers_of(state)))
            # NumPy arrays could be changed.
            if not any(isinstance(leaf, np.ndarray) for leaf in leaves):
                self._ends["last"] = held
        return held[1]

    def end(self, int_sram: Any) -> _End:
        """What is known of the end of a run."""
        fresh, unknown = self._known
        return _End(fresh, int_sram, unknown)

    @cached_property
    def _known(self) -> tuple[Any, Any]:
        """Drained accumulators and unknown entries of INT SRAM, on the device."""
        found: tuple[Any, Any] = jax.device_put((np.uint32(self.trace.fresh), self.trace.unknown))
        return found

    @cached_property
    def _ends(self) -> dict[str, tuple[list[Any], dict[str, Any]]]:
        return {}

    @cached_property
    def _placed(self) -> dict[Plan, list[Tables]]:
        return {}


def _numbered(schedule: Schedule, buckets: tuple[Bucket, ...]) -> Tables:
    """The tables with the numbers of ``buckets``."""
    steps = schedule.tables.steps.copy()
    numbers = np.array([buckets.index(bucket) for bucket in schedule.buckets] or [0], np.int32)
    used = slice(0, schedule.steps)
    steps[used, 0] = numbers[steps[used, 0]]
    return schedule.tables._replace(steps=steps)


_fused: weakref.WeakKeyDictionary[Trace, dict[bool, Fused]] = weakref.WeakKeyDictionary()
_seen: weakref.WeakKeyDictionary[Trace, tuple[list[str], list[Any], bool]] = weakref.WeakKeyDictionary()
_FIELDS = {
    Accumulator.M: "m_accum",
    Accumulator.V: "v_accum",
    Accumulator.HV: "hv_accum",
    Accumulator.HM: "hm_accum",
}
_plans: dict[tuple[Any, ...], list[Plan]] = {}
_lock = threading.RLock()


def fuse(trace: Trace, cleared: bool = False) -> Fused:
    """The schedules of a trace; made once and kept as long as the trace.

    Args:
        trace: what to fuse.
        cleared: all accumulators are zero at the start, so that the first sums in them are products like others.
    """
    with _lock:
        made = _fused.setdefault(trace, {})
        if cleared not in made:
            _check_size(trace)
            records = _cleared(trace.records) if cleared else trace.records
            count = max(-(-len(trace) // PIECE), 1)
            # In a thread of its own, because the caller may be tracing and this is not part of its computation.
            with ThreadPoolExecutor(1) as pool:
                one = partial(schedule, config=trace.config, vram_rows=trace.vram_rows)
                made[cleared] = Fused(trace, tuple(pool.map(one, np.array_split(records, count))))
        return made[cleared]


def bytes_of(trace: Trace) -> int:
    """What a trace takes on this engine, roughly: its tables, and the values of a piece."""
    return len(trace) * _BYTES_EACH + min(len(trace), PIECE) * 4 * trace.config.vlen * _VALUES_EACH


def fits(trace: Trace) -> bool:
    """Whether that is at most half of the memory there is."""
    return bytes_of(trace) <= memory_of(None) // 2


def pays(trace: Trace) -> bool:
    """Whether a run is faster here than one instruction after the other: not if most wait for others."""
    return fits(trace) and sum(s.steps for s in fuse(trace, cleared=True).schedules) * _RECORDS_A_STEP <= len(trace)


def _check_size(trace: Trace) -> None:
    """Refuse a trace that does not fit.

    Raises:
        EngineError: says how large it is, and what to do.
    """
    if not fits(trace):
        needed, held = bytes_of(trace) / 2**30, memory_of(None) / 2**30
        raise EngineError(
            f"fused: a trace of {len(trace):,} datapath instructions takes about {needed:.1f} GiB, more than half of "
            f"the {held:.1f} GiB there are; run it in segments (max_instructions=n, from state to state), or with "
            "engine='resolved'"
        )


@cache
def _touching() -> dict[tuple[int, int], Accumulator]:
    """The accumulator that records of a stage and branch add to or drain."""
    functions = [(int(stage), i, b) for stage in Stage for i, b in enumerate(branches(stage))]
    return {(stage, i): b.adds_to or b.drains for stage, i, b in functions if b.adds_to or b.drains}


def _starts(records: np.ndarray) -> dict[Accumulator, int]:
    """For each accumulator that a trace finds as it was, the first record that touches it."""
    found: dict[Accumulator, int] = {}
    for (stage, branch), accumulator in _touching().items():
        mine = (records[:, Record.STAGE] == stage) & (records[:, Record.BRANCH] == branch)
        if mine.any():
            found[accumulator] = min(int(np.argmax(mine)), found.get(accumulator, len(records)))
    return {name: index for name, index in found.items() if records[index, Record.FRESH] == 0}


def _cleared(records: np.ndarray) -> np.ndarray:
    """Records for a start from cleared accumulators."""
    records = records.copy()
    records[list(_starts(records).values()), Record.FRESH] = 1
    return records


def _is_cleared(trace: Trace, state: MachineState) -> bool:
    """Whether the accumulators that a trace finds as they were are zero; that of the state seen last is kept."""
    with _lock:
        if trace not in _seen:
            _seen[trace] = [_FIELDS[name] for name in _starts(trace.records)], [], True
        fields, held, cleared = _seen[trace]
    leaves = [getattr(state, name) for name in fields]
    if len(held) == len(leaves) and all(a is b for a, b in zip(held, leaves, strict=True)):
        return cleared
    cleared = not any(np.asarray(leaf).view(np.uint32).any() for leaf in leaves)
    with _lock:
        if not any(isinstance(leaf, np.ndarray) for leaf in leaves):
            _seen[trace] = fields, leaves, cleared
    return cleared


def plan_for(fused: Fused, hbm: Array, strict: bool, clipped: bool = False) -> Plan:
    """A plan with all branches that a trace needs on such an HBM: one that is there, if that will do."""
    config, buckets = fused.trace.config, fused.buckets
    inside = max((s.read_to for s in fused.schedules), default=0) <= allocated_hbm(hbm, config)
    with _lock:
        plans = _plans.setdefault((config, strict, clipped, inside), [])
        for plan in plans:
            if set(buckets) <= set(plan.buckets):
                return plan
        plans.append(Plan(config, _common(buckets, config), strict, clipped, inside))
        return plans[-1]


#: What most programs take, without the matrix unit and with it.
_COMMON_VECTOR = frozenset(
    {
        *(Family.ADD, Family.MULTIPLY, Family.SELECT, Family.EXP, Family.RECIPROCAL, Family.SQRT),
        *(Family.SUM, Family.MAX, Family.MAP, Family.PREFETCH_V, *OF_SCALARS.values()),
    }
)
_COMMON = _COMMON_VECTOR | {Family.ASSEMBLE, Family.PRODUCT, Family.PREFETCH_M}


def _common(buckets: tuple[Bucket, ...], config: MachineConfig) -> tuple[Bucket, ...]:
    """Few different sets with these buckets in them, so that compiled code is shared: common ones, or all."""
    families = {Family(family) for family, _ in buckets}
    stores = families & {Family.STORE}
    every = frozenset(Family) - {Family.STORE}
    sets = (_COMMON_VECTOR, every - MATRIX, _COMMON, every)
    # Code for stores has a price even if it does not run: HBM is copied.
    return all_buckets(config, next(found for found in sets if families <= found | stores) | stores)


def all_buckets(config: MachineConfig, families: Collection[Family] = tuple(Family)) -> tuple[Bucket, ...]:
    """All buckets of some families."""
    return tuple((int(family), size) for family in sorted(families) for size in sorted(set(sizes(family, config))))


# -- concrete states --------------------------------------------------------------------------------------------------


class _End(NamedTuple):
    """What is known of the end of a run: drained accumulators, INT SRAM, and which entries V_TOPK has written."""

    fresh: Any
    int_sram: Any
    unknown: Any


def _run(
    plan: Plan,
    floats: dict[str, jax.Array],
    kept: dict[str, jax.Array],
    int_sram: jax.Array,
    tables: list[Tables],
    scratch: list[jax.Array],
    end: _End,
) -> tuple[dict[str, jax.Array], list[jax.Array]]:
    """Float fields and INT SRAM after all pieces, but those that are ``kept``; and the scratch memory."""
    state = MachineState.create(plan.config, vram_rows=1, hbm_bytes=0).replace(**floats, **kept, int_sram=int_sram)
    memories, tiles = packed(plan, state, tables)
    used = []
    for table, values in zip(tables, scratch, strict=True):
        memories, values, tiles = run_values(plan, memories, None, table, values, tiles)
        used.append(values)
    final = unpacked(plan, memories, tiles, state, end.fresh)
    result = {name: getattr(final, name) for name in floats}
    return result | {"int_sram": jnp.where(end.unknown, memories.int_sram, end.int_sram)}, used


def packed(plan: Plan, state: MachineState, tables: list[Tables]) -> tuple[Memories, jax.Array | None]:
    """The memories of a state, and tiles; without the matrix unit only what else can take part."""
    memories, layout = pack_memories(plan.config, state), Layout(plan.config)
    if not plan.has_matrix:
        cells = memories.cells[layout.fp_sram : layout.hv_accum]
        return memories._replace(cells=cells, careful=jnp.bool_(False)), None
    # A look at all of matrix SRAM is only worth it if something there is read.
    reads = jnp.any(jnp.stack([reads_tiles(table) for table in tables]))
    careful = lax.cond(reads, lambda: needs_care(plan.config, state), lambda: jnp.bool_(False))
    tiles = memories.cells[: layout.fp_sram]
    return memories._replace(cells=memories.cells[layout.fp_sram :], careful=careful), tiles


def unpacked(plan: Plan, memories: Memories, tiles: jax.Array | None, state: MachineState, fresh: Any) -> MachineState:
    """The state that memories stand for, see :func:`packed`."""
    layout = Layout(plan.config)
    none = lambda rows: jnp.zeros((rows, plan.config.vlen), jnp.float32)
    behind = none(layout.rows - layout.fp_sram - memories.cells.shape[0])
    cells = [none(layout.fp_sram) if tiles is None else tiles, memories.cells, behind]
    return unpack_memories(plan.config, memories._replace(cells=jnp.concatenate(cells)), state, fresh)


_run_copies = jax.jit(_run, static_argnums=0, donate_argnames="scratch")
_run_donating = jax.jit(_run, static_argnums=0, donate_argnames=("floats", "scratch"))
#: Memory for values, by shape: it need not be cleared.
_scratch: dict[tuple[int, int], jax.Array] = {}


def _floats(state: MachineState, plan: Plan) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Fields that a run may change, and those that it does not."""
    fields = {name: getattr(state, name) for name in FLOAT_FIELDS}
    kept = {name: fields.pop(name) for name in plan.unchanged}
    return fields, kept


def _borrowed(tables: list[Tables], config: MachineConfig) -> list[jax.Array]:
    found = []
    for table in tables:
        shape = table.entries.shape[0], config.vlen
        with _lock:
            held = _scratch.pop(shape, None)
        found.append(jnp.zeros(shape, jnp.float32) if held is None else held)
    return found


def compile_fused(trace: Trace, state: MachineState, strict: bool) -> None:
    """Schedule a trace and compile what a run from ``state`` needs: run nothing on it."""
    fused = fuse(trace, _is_cleared(trace, state))
    plan = plan_for(fused, state.hbm, strict)
    nothing = lambda table: table._replace(length=np.int32(0), bounds=np.zeros_like(table.bounds))
    tables = [nothing(table) for table in fused.tables(plan)]
    end = fused.end(state.int_sram)
    for run in (_run_copies, _run_donating):
        floats, kept = _floats(jax.tree.map(jnp.copy, state), plan)
        jax.block_until_ready(run(plan, floats, kept, state.int_sram, tables, _borrowed(tables, plan.config), end))


def pieces_of(trace: Trace, hbm: Any, strict: bool, clipped: bool = False) -> tuple[Plan, Pieces]:
    """A trace as :func:`run_pieces` takes it, for an HBM of that shape and type."""
    fused = fuse(trace)
    plan = dataclasses.replace(plan_for(fused, hbm, strict, clipped), whole=True)
    return plan, tuple(fused.tables(plan))


def run_fused_traced(
    trace: Trace,
    state: MachineState,
    precision: Formats | None = None,
    strict: bool = False,
    clipped: bool = False,
) -> MachineState:
    """Run a trace on a state that may be traced (``jit``, ``vmap``, derivatives), or with other formats.

    Args:
        trace, state, precision: as for :func:`~plena_jax.machine.resolved.run_trace`.
        strict: products add up in the machine's order.
        clipped: roundings have derivative 0 where they saturate.
    """
    plan, pieces = pieces_of(trace, state.hbm, strict, clipped)
    memories = run_pieces(plan, pack_memories(plan.config, state), precision, pieces)
    final = unpack_memories(plan.config, memories, state, jnp.uint32(trace.fresh))
    final = final.replace(**integers_after(trace, integers_of(state)))
    return final.replace(int_sram=jnp.where(trace.unknown, memories.int_sram, trace.end.int_sram))


def run_fused(trace: Trace, state: MachineState, donate: bool = False, strict: bool = False) -> MachineState:
    """Run a trace on the memories of a concrete ``state``; see :func:`~plena_jax.machine.resolved.run_trace`.

    Args:
        trace, state, donate: as there.
        strict: products add up in the machine's order.
    """
    fused = fuse(trace, _is_cleared(trace, state))
    plan = plan_for(fused, state.hbm, strict)
    tables, integers = fused.tables(plan), fused.integers(state)
    floats, kept = _floats(state, plan)
    end = fused.end(integers["int_sram"])
    run = _run_donating if donate else _run_copies
    results, scratch = run(plan, floats, kept, state.int_sram, tables, _borrowed(tables, plan.config), end)
    with _lock:
        _scratch.update({values.shape: values for values in scratch})
    return state.replace(**(integers | results))
