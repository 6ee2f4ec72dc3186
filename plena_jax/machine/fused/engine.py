"""Runs on the fused engine: schedules made once for a trace, and compiled code shared between them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.machine.ahead import integers_of
from plena_jax.machine.compiled import finished, packed
from plena_jax.machine.fused.execute import Bucket, Plan, Tables, execute
from plena_jax.machine.fused.schedule import Schedule, schedule
from plena_jax.machine.resolved import Trace, integers_after
from plena_jax.machine.state import MachineState

#: Records that are scheduled together: more take more memory, a row of VLEN for each.
PIECE = 1 << 18

_execute = jax.jit(execute, static_argnums=0, donate_argnums=1)


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


_fused: weakref.WeakKeyDictionary[Trace, Fused] = weakref.WeakKeyDictionary()
_plans: dict[tuple[MachineConfig, bool, bool], list[Plan]] = {}
_lock = threading.RLock()


def fuse(trace: Trace) -> Fused:
    """The schedules of a trace; made once and kept as long as the trace."""
    with _lock:
        if trace not in _fused:
            pieces = [trace.records[i : i + PIECE] for i in range(0, len(trace), PIECE)]
            made = tuple(schedule(piece, trace.config, trace.vram_rows) for piece in pieces)
            _fused[trace] = Fused(trace, made)
        return _fused[trace]


def plan_for(fused: Fused, strict: bool, clipped: bool = False) -> Plan:
    """A plan with all branches that a trace needs: one that is there, if that will do."""
    config, buckets = fused.trace.config, fused.buckets
    with _lock:
        plans = _plans.setdefault((config, strict, clipped), [])
        for plan in plans:
            if set(buckets) <= set(plan.buckets):
                return plan
        plans.append(Plan(config, buckets, strict, clipped))
        return plans[-1]


def run_fused(
    trace: Trace,
    state: MachineState,
    donate: bool = False,
    progress: Callable[[int], None] | None = None,
    strict: bool = False,
) -> MachineState:
    """Run a trace on the memories of a concrete ``state``; see :func:`~plena_jax.machine.resolved.run_trace`.

    Args:
        trace, state, donate, progress: as there.
        strict: products add up in the machine's order.
    """
    integers: dict[str, Any] = integers_after(trace, integers_of(state))
    fused = fuse(trace)
    plan = plan_for(fused, strict)
    memories, done = packed(trace.config, state, donate), 0
    for tables in fused.tables(plan):
        memories = _execute(plan, memories, None, tables)
        done = min(done + PIECE, len(trace))
        if progress is not None:
            jax.block_until_ready(memories.m_accum)
            progress(done)
    return finished(trace.config, memories, state, integers, trace.fresh, trace.unknown)
