"""Runs and derivatives of programs on one machine, compiled once for everything that it can execute."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import plena_jax as pj
from plena_jax import Intended, MachineConfig, MachineState, Program
from plena_jax.formats import named
from plena_jax.machine.adjoint import Floats
from plena_jax.machine.compiled import padded
from plena_jax.machine.differentiate import Segments, run_segments
from plena_jax.machine.journal import Plan, with_slots
from plena_jax.machine.memories import Memories, pack_memories
from plena_jax.machine.semantics import Stage, branches


def wide(config: MachineConfig) -> MachineConfig:
    """The machine with float32 everywhere: nothing rounds, and functions are smooth."""
    names = [f.name for f in dataclasses.fields(config.precision)]
    precision = dataclasses.replace(config.precision, **dict.fromkeys(names, named("float32")))
    intended = Intended(plain_formats=True, scalar_fp=True, m_bmv=True)
    return dataclasses.replace(config, precision=precision, intended=intended)


class Differentiator:
    """Derivatives of programs of up to ``records`` datapath instructions; HBM shows its values."""

    def __init__(self, config: MachineConfig, records: int = 1023, clipped: bool = False) -> None:
        self.config, self.records = config, records
        stages = (Stage.MATMUL, Stage.WRITE, Stage.ROW, Stage.WIDE, Stage.TOPK, Stage.STORE)
        used = frozenset((int(stage), i) for stage in stages for i in range(len(branches(stage))))
        self.plan = Plan(config, clipped=clipped, used=used, entries=(512, 2048, 256, 64, 256))
        self._run = jax.jit(self._floats)
        self._push = jax.jit(lambda x, d, *rest: jax.jvp(lambda x: self._floats(x, *rest), (x,), (d,))[1])
        self._pull = jax.jit(lambda x, bar, *rest: jax.vjp(lambda x: self._floats(x, *rest), x)[1](bar)[0])

    def _floats(self, x: Floats, memories: Memories, segments: Segments) -> Floats:
        start = memories._replace(vram=x.vram, cells=x.cells, m_accum=x.m_accum, hbm=x.hbm)
        end = run_segments(self.plan, start, None, segments)
        return Floats(end.vram, end.cells, end.m_accum, end.hbm)

    def load(self, program: Program, state: MachineState) -> tuple[Floats, tuple[Memories, Segments]]:
        """What can be differentiated, and the rest."""
        trace = pj.resolve(program, self.config, state)
        assert trace.status == 0 and len(trace) <= self.records
        records, entries = with_slots(trace.records)
        assert all(n <= most for n, most in zip(entries, self.plan.entries, strict=True)), entries
        segments = Segments(jnp.asarray(padded(records, self.records + 1))[None], jnp.asarray([len(trace)], jnp.int32))
        memories = pack_memories(self.config, state)
        return Floats(memories.vram, memories.cells, memories.m_accum, memories.hbm), (memories, segments)

    def run(self, x: Floats, rest: Any) -> Floats:
        """The memories at the end."""
        return self._run(x, *rest)

    def push(self, x: Floats, direction: Floats, rest: Any) -> Floats:
        """Forward mode."""
        return self._push(x, direction, *rest)

    def pull(self, x: Floats, bar: Floats, rest: Any) -> Floats:
        """Reverse mode."""
        return self._pull(x, bar, *rest)


def random_like(x: Floats, random: np.random.Generator) -> Floats:
    """Normal random numbers."""
    return jax.tree.map(lambda a: jnp.asarray(random.standard_normal(a.shape), jnp.float32), x)


def dot(a: Any, b: Any) -> float:
    """Inner product, added in float64."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(np.sum(np.asarray(x, np.float64) * np.asarray(y, np.float64)) for x, y in pairs))


def size(a: Any) -> float:
    """Root of the sum of squares."""
    return float(np.sqrt(dot(a, a)))
