"""Derivatives of a run: one rule for reverse and forward mode.

The tangents of a run are a linear function of those of its start. That function is a primitive of its own, whose
transpose is the in-place adjoint; executed forwards it is the plain derivative of the loops. So ``jax.grad``,
``jax.vjp``, ``jax.jvp``, ``jax.jacfwd`` and ``vmap`` of them all work, and second derivatives are refused.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from plena_jax.config import Formats
from plena_jax.disassembler import describe_word
from plena_jax.errors import EngineError, GradientError
from plena_jax.machine.adjoint import Adjoint, Floats
from plena_jax.machine.batching import in_groups, map_lanes
from plena_jax.machine.datapath import Sweep, execute
from plena_jax.machine.journal import Journal, JournalledSweep, Plan
from plena_jax.machine.memories import Memories
from plena_jax.machine.record import Record
from plena_jax.program import Program


class Segments(NamedTuple):
    """The records of a run, in pieces whose start is kept for the way back.

    Attributes:
        records: int32 [segments, n, 16], places in the journal filled in.
        ends: int32 [segments], records of each that count; fewer than n.
    """

    records: jax.Array
    ends: jax.Array


def split(memories: Memories) -> Floats:
    """The memories that have derivatives."""
    hbm = memories.hbm if memories.hbm.dtype == jnp.float32 else jnp.zeros(1, jnp.float32)
    return Floats(memories.vram, memories.cells, memories.m_accum, hbm)


def joined(floats: Floats, memories: Memories) -> Memories:
    """``memories`` with those that have derivatives taken from ``floats``."""
    hbm = floats.hbm if memories.hbm.dtype == jnp.float32 else memories.hbm
    return memories._replace(vram=floats.vram, cells=floats.cells, m_accum=floats.m_accum, hbm=hbm)


# -- what has no derivative -------------------------------------------------------------------------------------------


_ONLY_FIRST = "only first ones; grad of grad, hessian and the like do not go through a machine run"


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def refuse(reason: str, floats: Any) -> Any:
    """``floats``, which cannot be differentiated.

    Args:
        reason: for the error, an :class:`EngineError`.
        floats: a pytree of arrays.
    """
    return floats


@refuse.defjvp
def _refuse_jvp(reason: str, primals: Any, tangents: Any) -> Any:
    raise EngineError(f"derivatives: {reason}")


# -- running ----------------------------------------------------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def run_segments(plan: Plan, memories: Memories, precision: Formats | None, segments: Segments) -> Memories:
    """The memories after all segments; differentiable with respect to float memories.

    Args:
        plan: what it is compiled for.
        memories: at the start.
        precision: formats that replace those of the configuration; not differentiable.
        segments: what to run.
    """
    return _run(plan, memories, precision, segments)


@partial(jax.jit, static_argnums=0)
def _run(plan: Plan, memories: Memories, precision: Formats | None, segments: Segments) -> Memories:
    run = lambda memories, records, end: execute(
        plan.config, memories, records, end, precision, plan.clipped, plan.used
    )
    if len(segments.ends) == 1:
        return run(memories, segments.records[0], segments.ends[0])
    return lax.scan(lambda memories, segment: (run(memories, *segment), None), memories, segments)[0]


class _Residuals(NamedTuple):
    """What the derivative needs of a run.

    Attributes:
        starts: memories at the start of each segment [segments, ...]; of a single segment unstacked, as ``end`` is.
        end: memories at the end of a single segment, None of several.
        journal: of a single segment, None of several.
        precision, segments: what was run.
    """

    starts: Memories
    end: Memories | None
    journal: Journal | None
    precision: Formats | None
    segments: Segments


@partial(jax.jit, static_argnums=0)
def _run_keeping(
    plan: Plan, memories: Memories, precision: Formats | None, segments: Segments
) -> tuple[Memories, _Residuals]:
    if len(segments.ends) == 1:
        end, journal = _journalled(plan, memories, precision, segments.records[0], segments.ends[0])
        return end, _Residuals(memories, end, journal, precision, segments)

    def one(memories: Memories, segment: Segments) -> tuple[Memories, Memories]:
        # Memory that nothing writes is kept once.
        kept = memories if plan.stores else memories._replace(hbm=memories.hbm[:1])
        return execute(plan.config, memories, *segment, precision, plan.clipped, plan.used), kept

    end, starts = lax.scan(one, memories, segments)
    if not plan.stores:
        starts = starts._replace(hbm=memories.hbm)
    return end, _Residuals(starts, None, None, precision, segments)


def _journalled(
    plan: Plan, memories: Memories, precision: Formats | None, records: jax.Array, end: jax.Array
) -> tuple[Memories, Journal]:
    def run(data: tuple[Memories, Formats | None], records: jax.Array, end: jax.Array) -> tuple[Memories, Journal]:
        memories, precision = data
        final, journal = JournalledSweep(plan, records, end, precision).run_with_journal(memories)
        return (final if plan.stores else final._replace(hbm=final.hbm[:1])), journal

    final, journal = in_groups(run, (memories, precision), (records, end))
    return (final if plan.stores else final._replace(hbm=memories.hbm)), journal


@run_segments.defjvp
def _jvp(plan: Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Memories, Memories]:
    memories, precision, segments = primals
    memories = differentiated(memories, plan.stores)
    end, residuals = _run_keeping(plan, memories, precision, segments)
    return with_tangents(_StepRule(plan), residuals, end, tangents[0])


def differentiated(memories: Memories, stores: bool) -> Memories:
    """The same memories, at the start of a run that is differentiated once.

    Raises:
        EngineError: the program stores bytes.
    """
    _check(stores, memories)
    return joined(refuse(_ONLY_FIRST, split(memories)), memories)


def with_tangents(rule: Rule, residuals: Any, end: Memories, tangents: Memories) -> tuple[Memories, Memories]:
    """The memories at the end of a run, and their tangents from those at the start."""
    tangent = _linear(rule, residuals, split(tangents._replace(hbm=_float_tangent(tangents.hbm))))
    integer: Any = lambda a: np.zeros(a.shape, jax.dtypes.float0)
    others = end._replace(hbm=integer(end.hbm), int_sram=integer(end.int_sram), careful=integer(end.careful))
    if end.hbm.dtype == jnp.float32:
        others = others._replace(hbm=tangent.hbm)
    return end, others._replace(vram=tangent.vram, cells=tangent.cells, m_accum=tangent.m_accum)


def _float_tangent(tangent: Any) -> Any:
    return jnp.zeros(1, jnp.uint8) if tangent.dtype == jax.dtypes.float0 else tangent


def _check(stores: bool, memories: Memories) -> None:
    if stores and memories.hbm.dtype != jnp.float32:
        raise EngineError(
            "derivatives: the program stores to HBM (H_STORE_V), whose bytes have none; start it from the values face "
            "(MachineState.create(hbm=<float32 array>), see plena_jax.hbm)"
        )


# -- the linear part --------------------------------------------------------------------------------------------------


class Rule(Protocol):
    """How an engine differentiates: what a run's derivative is compiled for, besides shapes. Hashable.

    Residuals are a pytree with an attribute ``segments``, what has been run.
    """

    @property
    def debug(self) -> Program | None:
        """The program, where a derivative that is not finite is an error."""

    def push(self, residuals: Any, tangents: Floats) -> Floats:
        """Forward mode."""

    def pull(self, residuals: Any, bar: Floats) -> tuple[Floats, jax.Array]:
        """Reverse mode; and what a debug run has found, see :class:`_Linear`."""


@dataclass(frozen=True)
class _StepRule:
    """One record after the other."""

    plan: Plan

    @property
    def debug(self) -> Program | None:
        """See :class:`Rule`."""
        return self.plan.debug

    def push(self, residuals: _Residuals, tangents: Floats) -> Floats:
        """See :class:`Rule`."""
        return _push(self.plan, residuals, tangents)

    def pull(self, residuals: _Residuals, bar: Floats) -> tuple[Floats, jax.Array]:
        """See :class:`Rule`."""
        return _pull(self.plan, residuals, bar)


@dataclass(frozen=True)
class _Linear:
    """Tangents at the start to tangents at the end, or, transposed, cotangents at the end to those at the start.

    Attributes:
        rule: of the engine.
        structure: of the residuals.
        transposed: which of the two.
        batched: for each ``vmap`` around it, the outermost first, which leaves of the residuals have a lane axis.

    Called with the leaves of residuals and floats it returns the floats, and int32 [3] what a debug run has found:
    index, pc and tick of the record whose derivative is not finite, the first of them -1 if there is none.
    """

    rule: Rule
    structure: Any
    transposed: bool = False
    batched: tuple[tuple[bool, ...], ...] = ()

    def __call__(self, *leaves: jax.Array) -> list[jax.Array]:
        count = self.structure.num_leaves
        if self.batched:
            inner = dataclasses.replace(self, batched=self.batched[1:])
            flags = [*self.batched[0], *([True] * (len(leaves) - count))]
            residuals = jax.tree.unflatten(self.structure, flags[:count])
            sequential = any(jax.tree.leaves(residuals.segments))
            return map_lanes(lambda lane: inner(*lane), list(leaves), flags, sequential)
        residuals, floats = jax.tree.unflatten(self.structure, leaves[:count]), Floats(*leaves[count:])
        if not self.transposed:
            return [*self.rule.push(residuals, floats), jnp.asarray(NOTHING)]
        bar, found = self.rule.pull(residuals, floats)
        return [*bar, found]


def _push(plan: Plan, r: _Residuals, tangents: Floats) -> Floats:
    """Forward mode, by the plain derivative of the loops."""
    start = r.starts if r.end is not None else jax.tree.map(lambda a: a[0], r.starts)
    if r.end is None and not plan.stores:
        start = start._replace(hbm=r.starts.hbm)

    def run(floats: Floats) -> Floats:
        memories = joined(floats, start)
        for index in range(len(r.segments.ends)):
            records, end = r.segments.records[index], r.segments.ends[index]
            memories = Sweep(plan.config, records, end, r.precision, plan.clipped, plan.used).run_all(memories)
        return split(memories)

    return jax.jvp(run, (split(start),), (tangents,))[1]


#: That no derivative has become infinite or NaN.
NOTHING = np.full(3, -1, np.int32)


def _pull(plan: Plan, r: _Residuals, bar: Floats) -> tuple[Floats, jax.Array]:
    """Reverse mode."""
    if r.end is not None:
        assert r.journal is not None
        adjoint = Adjoint(plan, r.segments.records[0], r.segments.ends[0], r.precision, r.journal)
        return _run_back(adjoint, r.end, bar)

    def one(bar: Floats, piece: tuple[Memories, Segments]) -> tuple[Floats, jax.Array]:
        start, segment = piece
        start = start if plan.stores else start._replace(hbm=r.starts.hbm)
        end, journal = JournalledSweep(plan, *segment, r.precision).run_with_journal(start)
        return _run_back(Adjoint(plan, *segment, r.precision, journal), end, bar)

    starts = (
        r.starts if plan.stores else r.starts._replace(hbm=jnp.zeros((len(r.segments.ends), 1), r.starts.hbm.dtype))
    )
    start_bar, found = lax.scan(one, bar, (starts, r.segments), reverse=True)
    return start_bar, _first(found)


def _first(found: jax.Array) -> jax.Array:
    """int32 [3]: of several findings [..., 3] one that is."""
    rows = found.reshape(-1, 3)
    return rows[jnp.argmax(rows[:, 0])]


def _run_back(adjoint: Adjoint, end: Memories, bar: Floats) -> tuple[Floats, jax.Array]:
    if adjoint.plan.debug is None:
        return adjoint.run_back(end, bar), jnp.asarray(NOTHING)
    index = adjoint.first_not_finite(end, bar)
    record = adjoint.trace[jnp.maximum(index, 0)]
    return adjoint.run_back(end, bar), jnp.stack([index, record[Record.PC], record[Record.TICK]])


def _report(program: Program, found: Any) -> None:
    index, pc, tick = np.asarray(found).tolist()
    if index >= 0:
        raise GradientError(pc, describe_word(int(program.words[pc])), tick & 0xFFFFFFFF)


_primitive = Primitive("plena_linear")
_primitive.multiple_results = True


def _linear(rule: Rule, residuals: Any, tangents: Floats) -> Floats:
    leaves, structure = jax.tree.flatten(residuals)
    return Floats(*_primitive.bind(*leaves, *tangents, linear=_Linear(rule, structure)))


_jitted = jax.jit(lambda linear, *leaves: linear(*leaves), static_argnums=0)


def _impl(*leaves: jax.Array, linear: _Linear) -> list[jax.Array]:
    *floats, found = _jitted(linear, *leaves)
    if linear.rule.debug is not None:
        _report(linear.rule.debug, _first(found))
    return floats


def _inside(*leaves: jax.Array, linear: _Linear) -> list[jax.Array]:
    """The same as part of a larger computation."""
    *floats, found = linear(*leaves)
    if linear.rule.debug is not None:
        jax.debug.callback(partial(_report, linear.rule.debug), _first(found))
    return floats


def _abstract(*avals: Any, linear: _Linear) -> list[Any]:
    # Tangents and cotangents look alike.
    return list(avals[linear.structure.num_leaves :])


def _linear_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, linear: _Linear) -> tuple[Any, Any]:
    count = linear.structure.num_leaves
    if any(type(t) is not ad.Zero and getattr(t, "dtype", None) != jax.dtypes.float0 for t in tangents[:count]):
        raise EngineError(f"derivatives: {_ONLY_FIRST}")
    moved = [ad.instantiate_zeros(t) for t in tangents[count:]]
    out = _primitive.bind(*primals, linear=linear)
    return out, _primitive.bind(*primals[:count], *moved, linear=linear)


def _linear_transpose(cotangents: Any, *leaves: Any, linear: _Linear) -> list[Any]:
    count = linear.structure.num_leaves
    bars = [ad.instantiate_zeros(c) for c in cotangents]
    back = dataclasses.replace(linear, transposed=not linear.transposed)
    return [None] * count + _primitive.bind(*leaves[:count], *bars, linear=back)


def _linear_batch(leaves: Any, axes: Any, *, linear: _Linear) -> tuple[list[Any], list[int]]:
    count = linear.structure.num_leaves
    size = next(leaf.shape[axis] for leaf, axis in zip(leaves, axes, strict=True) if axis is not None)
    moved = [leaf if axis is None else jnp.moveaxis(leaf, axis, 0) for leaf, axis in zip(leaves, axes, strict=True)]
    tangents = [
        jnp.broadcast_to(leaf, (size, *leaf.shape)) if axis is None else leaf
        for leaf, axis in zip(moved[count:], axes[count:], strict=True)
    ]
    flags = tuple(axis is not None for axis in axes[:count])
    out = _primitive.bind(
        *moved[:count], *tangents, linear=dataclasses.replace(linear, batched=(flags, *linear.batched))
    )
    return out, [0] * len(out)


_primitive.def_impl(_impl)
_primitive.def_abstract_eval(_abstract)
ad.primitive_jvps[_primitive] = _linear_jvp
ad.primitive_transposes[_primitive] = _linear_transpose
batching.primitive_batchers[_primitive] = _linear_batch
mlir.register_lowering(_primitive, mlir.lower_fun(_inside, multiple_results=True))
