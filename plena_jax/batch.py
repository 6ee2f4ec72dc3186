"""Many machines at once: sharded over devices and hosts, in chunks that fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plena_jax.config import Formats, MachineConfig
from plena_jax.errors import EngineError
from plena_jax.machine.batching import CPU_LANES
from plena_jax.machine.differentiate import Segments, run_segments
from plena_jax.machine.explain import explain
from plena_jax.machine.faults import Fault
from plena_jax.machine.fused.differentiate import Pieces, run_pieces
from plena_jax.machine.fused.engine import pieces_of
from plena_jax.machine.fused.tables import Plan as FusedPlan
from plena_jax.machine.journal import Plan
from plena_jax.machine.memories import pack_memories, unpack_memories
from plena_jax.machine.resolved import Trace, Unresolvable, integers_after, resolve
from plena_jax.machine.run import check_precision
from plena_jax.machine.segments import together
from plena_jax.machine.state import FLOAT_FIELDS, INTEGER_FIELDS, MachineState, allocate, integer_leaves
from plena_jax.program import Program
from plena_jax.sharding import memory_of, row_of, spread

#: Share of a device's memory that a chunk may take, with what XLA needs beside arguments and results.
_SHARE = 0.4


def run_batch(
    program: Program | Sequence[Program],
    states: MachineState | Sequence[MachineState],
    config: MachineConfig | Sequence[MachineConfig] | None = None,
    *,
    mesh: Mesh | None = None,
    chunk: int | None = None,
    precision: Formats | None = None,
    throw: bool = True,
    progress: bool | Callable[[int], None] = False,
    engine: Literal["resolved", "fused"] = "resolved",
    strict: bool = False,
) -> MachineState:
    """Run many machines; each ends as a run by itself on the same engine does, bit for bit.

    Args:
        program: one for all machines, or one for each. Machines with the same program, registers and loops run side by
            side; others one after the other on their device.
        states: one for each machine, or a state whose leaves have a lane axis in front. Leaves without one are shared
            by all (weights in HBM); they stay shared in the result unless the program writes them.
        config: the machine, the same for all.
        mesh: of one axis, over which lanes are spread; devices of several hosts after ``jax.distributed.initialize``,
            each of which calls this with the whole batch. By default the default device runs all.
        chunk: lanes that run in one call, a multiple of the mesh's devices; by default all, or as many as fit memory.
            Results of several chunks are NumPy arrays.
        precision: as for :func:`run`; leaves with an axis in front differ from lane to lane.
        throw: raise the fault of the first machine that has one.
        progress: show a progress bar, or call this with the number of machines done after each chunk.
        engine, strict: as for :func:`run`; on the fused engine all machines have one program, registers and loops.

    Returns:
        The final states, with a lane axis; :func:`lane` takes one out.

    Raises:
        EngineError: lanes, programs or configurations that do not go together, a mesh that does not divide the batch,
            or a program that depends on data (``vmap`` of :func:`run` takes that one).
        MachineFault: as for :func:`run`.
    """
    config = _one_config(config)
    batch = _Batch.of(program, states, config, precision, engine, strict)
    chunk = batch.chunk(mesh, chunk, progress is not False)
    pieces, done = [], 0
    with _reporting(progress, batch.lanes) as report:
        for start in range(0, batch.lanes, chunk):
            count = min(chunk, batch.lanes - start)
            pieces.append(batch.run(start, count, chunk, mesh, keep=chunk < batch.lanes))
            done += count
            report(done)
    memories = pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *a: np.concatenate(a), *pieces)
    final = batch.finish(memories)
    if throw:
        batch.raise_faults(final)
    return final


def lane(states: MachineState, index: int, config: MachineConfig) -> MachineState:
    """One state of a batch, shared leaves included.

    Raises:
        EngineError: it is on another host.
    """
    return jax.tree.map(lambda leaf, own: row_of(leaf, index) if own else leaf, states, _has_lanes(states, config))


# -- what belongs together --------------------------------------------------------------------------------------------


def _one_config(config: MachineConfig | Sequence[MachineConfig] | None) -> MachineConfig:
    if config is None or isinstance(config, MachineConfig):
        return config or MachineConfig()
    names = [f.name for f in dataclasses.fields(MachineConfig)]
    different = [name for name in names if any(getattr(c, name) != getattr(config[0], name) for c in config)]
    if different:
        raise EngineError(
            f"batch: machines of one batch have one configuration; these differ in {', '.join(different)}"
        )
    return config[0]


def _has_lanes(states: MachineState, config: MachineConfig) -> Any:
    """For each leaf whether it has a lane axis."""
    single = jax.eval_shape(lambda: MachineState.create(config, vram_rows=1))

    def extra(leaf: Any, one: Any) -> bool:
        axes = np.ndim(leaf) - one.ndim
        if axes not in (0, 1):
            raise EngineError(f"batch: a leaf of shape {np.shape(leaf)}; allowed: {one.ndim} axes, and a lane axis")
        return axes == 1

    return jax.tree.map(extra, states, single)


def _stacked(states: Sequence[MachineState]) -> MachineState:
    if not states:
        raise EngineError("batch: no machines; allowed: 1 or more")
    shapes = {jax.tree.structure(s): [np.shape(leaf) for leaf in jax.tree.leaves(s)] for s in states}
    if any([np.shape(leaf) for leaf in jax.tree.leaves(s)] != next(iter(shapes.values())) for s in states):
        raise EngineError("batch: states of different sizes do not stack; allocate the same VRAM and HBM for all")
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)


def _lanes_of(leaves: list[Any], flags: list[bool], programs: int | None) -> int:
    sizes = {np.shape(leaf)[0] for leaf, has_lanes in zip(leaves, flags, strict=True) if has_lanes}
    sizes |= set() if programs is None else {programs}
    if len(sizes) != 1:
        what = f"lane axes of {', '.join(map(str, sorted(sizes)))}" if sizes else "no leaf with a lane axis"
        raise EngineError(f"batch: {what} (programs counted); allowed: one number of machines")
    return int(sizes.pop())


class _Compile(NamedTuple):
    """What a call is compiled for, besides shapes. Hashable."""

    plan: Plan | FusedPlan
    structure: Any
    flags: tuple[bool, ...]
    many: bool
    mesh: Mesh | None


@dataclass(frozen=True, eq=False)
class _Batch:
    """A batch that can run.

    Attributes:
        config: the machine.
        states: with enough allocated.
        lanes: machines.
        traces, which: the different traces, and the number of each lane's.
        plan, table: the traces as the engine takes them, with a leading axis; one segment each.
        leaves, flags, structure: what is passed, float fields and formats, and which leaves have a lane axis.
    """

    config: MachineConfig
    states: MachineState
    lanes: int
    traces: list[Trace]
    which: np.ndarray
    plan: Plan | FusedPlan
    table: Segments | Pieces
    leaves: list[Any]
    flags: list[bool]
    structure: Any

    @classmethod
    def of(
        cls,
        program: Program | Sequence[Program],
        states: MachineState | Sequence[MachineState],
        config: MachineConfig,
        precision: Formats | None,
        engine: str,
        strict: bool,
    ) -> _Batch:
        """Everything that is known before running."""
        states = states if isinstance(states, MachineState) else _stacked(states)
        has_lanes = _has_lanes(states, config)
        if precision is not None:
            check_precision(precision, states)
        formats = jax.tree.map(lambda leaf: np.ndim(leaf) == 1, precision)
        programs = [program] if isinstance(program, Program) else list(program)
        flags = jax.tree.leaves((has_lanes, formats))
        lanes = _lanes_of(
            jax.tree.leaves((states, precision)), flags, None if isinstance(program, Program) else len(programs)
        )
        traces, which = _traces(programs, states, has_lanes, config, lanes)
        states = _allocated(states, config, traces)
        plan, table = _prepared(traces, config, states, engine, strict)
        data = {name: getattr(states, name) for name in FLOAT_FIELDS}, precision
        flags = jax.tree.leaves(({name: getattr(has_lanes, name) for name in FLOAT_FIELDS}, formats))
        leaves, structure = jax.tree.flatten(data)
        return cls(config, states, lanes, traces, which, plan, table, leaves, flags, structure)

    def chunk(self, mesh: Mesh | None, asked: int | None, reports: bool) -> int:
        """Lanes of one call."""
        devices = 1 if mesh is None else mesh.size
        if mesh is not None and len(mesh.axis_names) != 1:
            raise EngineError(f"batch: a mesh of axes {mesh.axis_names}; allowed: one axis")
        if self.lanes % devices:
            raise EngineError(f"batch: {devices} devices of the mesh do not divide {self.lanes} machines")
        if asked is not None:
            if asked < 1 or asked % devices:
                raise EngineError(f"batch: chunk {asked}; allowed: a positive multiple of the {devices} devices")
            return min(asked, self.lanes)
        lanes = zip(self.leaves, self.flags, strict=True)
        each = sum(leaf.size * leaf.dtype.itemsize // self.lanes for leaf, is_lane in lanes if is_lane)
        # Arguments, results, and what runs.
        fits = int(_SHARE * memory_of(mesh) / max(3 * each, 1)) * devices
        # A report is worth a call of its own, but no smaller ones than run together.
        wanted = max(-(-self.lanes // 20), CPU_LANES) if reports else self.lanes
        most = max(min(fits, -(-wanted // devices) * devices), devices)
        return min(most, self.lanes)

    def run(self, start: int, count: int, size: int, mesh: Mesh | None, keep: bool) -> dict[str, Any]:
        """Float fields and INT SRAM after lanes ``start`` to ``start + count``, in a call of ``size`` lanes."""
        # The last chunk has its last lane several times, so that all have one shape.
        index = np.minimum(start + np.arange(size), self.lanes - 1)
        whole = size == self.lanes
        put = partial(spread, mesh=mesh)
        batched = [
            put(leaf if whole else np.asarray(leaf)[index], True)
            for leaf, has_lanes in zip(self.leaves, self.flags, strict=True)
            if has_lanes
        ]
        shared = [put(leaf, False) for leaf, has_lanes in zip(self.leaves, self.flags, strict=True) if not has_lanes]
        what = _Compile(self.plan, self.structure, tuple(self.flags), len(self.traces) > 1, mesh)
        fresh = np.array([t.fresh for t in self.traces], np.uint32)
        table = jax.tree.map(lambda leaf: put(leaf, False), (self.table, fresh))
        result = _compiled(what)(batched, put(self.which[index], True), shared, table)
        return {name: np.asarray(leaf)[:count] for name, leaf in result.items()} if keep else result

    def finish(self, floats: dict[str, Any]) -> MachineState:
        """The final states."""
        integers = [integers_after(t, _integers_of_lane(self.states, i, self.config)) for t, i in self._ends()]
        of = self.which if len(self.traces) > 1 or len(integers) > 1 else np.zeros(self.lanes, int)
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves])[of], *integers)
        unknown = np.stack([t.unknown for t in self.traces])[self.which]
        found = floats.pop("int_sram")
        if unknown.any():
            stacked["int_sram"] = np.where(unknown, np.asarray(found), stacked["int_sram"])
        return self.states.replace(**floats, **stacked)

    def _ends(self) -> list[tuple[Trace, int]]:
        """Each trace with the first lane that runs it."""
        return [(trace, int(np.argmax(self.which == i))) for i, trace in enumerate(self.traces)]

    def raise_faults(self, final: MachineState) -> None:
        """Raise the fault of the first machine that has one."""
        bad = [i for i, trace in enumerate(self.traces) if trace.status not in (Fault.OK, Fault.LIMIT)]
        if bad:
            index = int(np.argmax(np.isin(self.which, bad)))
            error = explain(self.traces[self.which[index]].program, lane(final, index, self.config), self.config)
            error.add_note(f"machine {index} of the batch")
            raise error


def _prepared(
    traces: list[Trace], config: MachineConfig, states: MachineState, engine: str, strict: bool
) -> tuple[Plan | FusedPlan, Segments | Pieces]:
    """The traces as an engine takes them."""
    if engine == "resolved":
        return together([t.records for t in traces], config)
    if engine != "fused":
        raise EngineError(f"batch: engine {engine!r}; allowed: 'resolved', 'fused'")
    if len(traces) > 1:
        raise EngineError(f"batch: {len(traces)} different traces; engine 'fused' runs one, engine='resolved' many")
    return pieces_of(traces[0], jax.ShapeDtypeStruct(states.hbm.shape[-1:], states.hbm.dtype), strict)


def _traces(
    programs: list[Program], states: MachineState, has_lanes: MachineState, config: MachineConfig, lanes: int
) -> tuple[list[Trace], np.ndarray]:
    """The different traces of a batch, and which one each lane runs."""
    fields = zip(integer_leaves(states), integer_leaves(has_lanes), strict=True)
    starts = [np.asarray(field).reshape(lanes, -1) for field, has in fields if has]
    distinct = {program: i for i, program in enumerate(dict.fromkeys(programs))}
    number = [distinct[p] for p in programs] * (lanes if len(programs) == 1 else 1)
    keys = np.concatenate([np.array(number, np.uint32)[:, None], *(s.astype(np.uint32) for s in starts)], axis=1)
    _, first, which = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    try:
        traces = [
            resolve(programs[i if len(programs) > 1 else 0], config, _integers_of_lane(states, i, config))
            for i in first.tolist()
        ]
    except Unresolvable as error:
        raise EngineError(f"batch: {error}; jax.vmap of plena_jax.run takes such a program") from None
    return traces, which.reshape(-1)


def _integers_of_lane(states: MachineState, index: int, config: MachineConfig) -> MachineState:
    """A state with the integers of one lane, concrete, and no memories worth the name."""
    flags = _has_lanes(states, config)
    pick = lambda leaf, has_lanes: np.asarray(leaf)[index] if has_lanes else np.asarray(leaf)
    new = {name: jax.tree.map(pick, getattr(states, name), getattr(flags, name)) for name in INTEGER_FIELDS}
    return MachineState.create(config, vram_rows=1).replace(**new)


def _allocated(states: MachineState, config: MachineConfig, traces: list[Trace]) -> MachineState:
    """States with the VRAM and HBM that the traces need."""
    single = jax.eval_shape(lambda: MachineState.create(config, vram_rows=1))
    shape = lambda leaf, one: jax.ShapeDtypeStruct(np.shape(leaf)[-one.ndim :] if one.ndim else (), leaf.dtype)
    needed = jax.eval_shape(
        lambda s: allocate(s, config, max(t.vram_rows for t in traces), max(t.hbm_bytes for t in traces)),
        single.replace(vram=shape(states.vram, single.vram), hbm=shape(states.hbm, single.hbm)),
    )
    pad = lambda leaf, axis, size: jnp.pad(
        leaf, [(0, size - leaf.shape[axis] if a - np.ndim(leaf) == axis else 0) for a in range(np.ndim(leaf))]
    )
    if needed.vram.shape[0] > states.vram.shape[-2]:
        states = states.replace(vram=pad(states.vram, -2, needed.vram.shape[0]))
    if needed.hbm.shape[0] > states.hbm.shape[-1]:
        states = states.replace(hbm=pad(states.hbm, -1, needed.hbm.shape[0]))
    return states


# -- running ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _compiled(what: _Compile) -> Callable[..., dict[str, Any]]:
    run = partial(_run_lanes, what)
    if what.mesh is not None:
        (axis,) = what.mesh.axis_names
        lanes, all_of_it = PartitionSpec(axis), PartitionSpec()
        run = jax.shard_map(
            run,
            mesh=what.mesh,
            in_specs=(lanes, lanes, all_of_it, all_of_it),
            out_specs=lanes,
            check_vma=False,
        )
    return jax.jit(run)


def _run_lanes(
    what: _Compile, batched: list[Any], which: jax.Array, shared: list[Any], table: tuple[Segments | Pieces, jax.Array]
) -> dict[str, Any]:
    """The lanes of one device."""
    config, (segments, fresh) = what.plan.config, table
    is_stored = what.plan.stores

    def one(lane: tuple[list[Any], jax.Array]) -> dict[str, Any]:
        batched, which = lane
        own, common = iter(batched), iter(shared)
        leaves = [next(own) if flag else next(common) for flag in what.flags]
        floats, precision = jax.tree.unflatten(what.structure, leaves)
        state = MachineState.create(config, vram_rows=1).replace(**floats)
        number, memories = which if what.many else 0, pack_memories(config, state)
        if isinstance(what.plan, FusedPlan):
            memories = run_pieces(what.plan, memories, precision, segments)
        else:
            assert isinstance(segments, Segments)
            mine = Segments(segments.records[number][None], segments.ends[number][None])
            memories = run_segments(what.plan, memories, precision, mine)
        final = unpack_memories(config, memories, state, fresh[number])
        # Shared memory that is not written stays shared.
        names = [n for n in (*FLOAT_FIELDS, "int_sram") if n != "hbm" or is_stored]
        return {name: getattr(final, name) for name in names}

    return lax.map(one, (batched, which)) if what.many else jax.vmap(one)((batched, which))


@contextmanager
def _reporting(progress: bool | Callable[[int], None], lanes: int) -> Iterator[Callable[[int], None]]:
    if progress is False:
        yield lambda done: None
    elif progress is True:
        with Progress(TextColumn("machines"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
            task = bar.add_task("run", total=lanes)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield progress
