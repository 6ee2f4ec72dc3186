"""Derivatives, ``vmap``, formats as arguments and batches on the fused engine, against the resolved one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import EngineError, Gradient, MachineConfig, MachineState
from plena_jax.formats import Quantizer, named
from plena_jax.machine.adjoint import Floats
from plena_jax.machine.fused.differentiate import run_pieces
from plena_jax.machine.fused.engine import all_buckets, fuse
from plena_jax.machine.fused.tables import Plan
from plena_jax.machine.memories import pack_memories
from tests.gradients.differentiator import Differentiator
from tests.random_programs import random_program
from tests.states import differences

TEXT = """
S_ADDI_INT gp1, gp0, 8
S_ADDI_INT gp2, gp0, 16
C_LOOP_START gp5, 3
V_MUL_VF gp1, gp1, f1, 0
V_ADD_VV gp2, gp1, gp2, 0
V_EXP_V gp1, gp2, 0
V_RECI_V gp1, gp1, 0
V_RED_SUM f2, gp1
S_MUL_FP f1, f1, f2
C_LOOP_END gp5
H_STORE_V gp1, gp0, a0, 0, 0
H_PREFETCH_V gp2, gp0, a0, 0, 0
V_MUL_VV gp1, gp1, gp2, 0
"""
PROGRAM = pj.assemble(TEXT)
ENGINES = ("resolved", "fused")


@pytest.fixture(scope="module")
def state(small: MachineConfig) -> MachineState:
    vram = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)
    start = MachineState.create(small, vram=vram, hbm=np.zeros(256, np.float32))
    return start.replace(f=start.f.at[1].set(0.5))


def value(vram: jax.Array, state: MachineState, config: MachineConfig, engine: str) -> jax.Array:
    end = pj.run(PROGRAM, state.replace(vram=vram), config, engine=engine)  # type: ignore[arg-type]
    return jnp.sum(jnp.sin(jnp.arange(end.vram.size, dtype=jnp.float32)) * end.vram.reshape(-1)) + end.f[1]


@pytest.mark.exhaustive
def test_gradients_are_those_of_the_resolved_engine(small: MachineConfig, state: MachineState) -> None:
    run = lambda e: jax.jit(jax.value_and_grad(lambda v: value(v, state, small, e)))(state.vram)
    (wanted, there), (found, here) = (run(engine) for engine in ENGINES)
    assert wanted == found
    assert np.linalg.norm(there - here) <= 1e-5 * np.linalg.norm(there)
    assert np.linalg.norm(there) > 0.1


@pytest.mark.exhaustive
def test_gradients_of_several_machines(small: MachineConfig, state: MachineState) -> None:
    lanes = jnp.stack([state.vram, state.vram * 0.5])
    run = lambda e: jax.jit(jax.vmap(jax.value_and_grad(lambda v: value(v, state, small, e))))(lanes)
    (wanted, there), (found, here) = (run(engine) for engine in ENGINES)
    assert np.array_equal(wanted, found)
    assert np.linalg.norm(there - here) <= 1e-5 * np.linalg.norm(there)
    assert np.linalg.norm(there[0] - there[1]) > 0.1


@pytest.mark.exhaustive
def test_forward_mode(small: MachineConfig, state: MachineState) -> None:
    moved = jnp.ones_like(state.vram)
    both = [jax.jvp(lambda v, e=e: value(v, state, small, e), (state.vram,), (moved,)) for e in ENGINES]
    assert both[0][0] == both[1][0]
    assert np.allclose(both[0][1], both[1][1], rtol=1e-5)


def test_a_debug_run_needs_single_steps(small: MachineConfig, state: MachineState) -> None:
    with pytest.raises(EngineError, match="resolved"):
        pj.run(PROGRAM, state, small, engine="fused", gradient=Gradient(debug=True))


@pytest.mark.exhaustive
def test_formats_as_arguments(small: MachineConfig, state: MachineState) -> None:
    formats = [Quantizer.of(named(name)) for name in ("bfloat16", "float16", "e5m4")]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *formats)

    def run(engine: str) -> jax.Array:
        def one(fmt: Quantizer) -> jax.Array:
            precision = dataclasses.replace(small.precision, vector_sram_type=fmt)
            return pj.run(PROGRAM, state, small, engine=engine, precision=precision).vram  # type: ignore[arg-type]

        return jax.jit(jax.vmap(one))(stacked)

    wanted, found = (np.asarray(run(engine)) for engine in ENGINES)
    assert np.array_equal(wanted, found)
    assert not np.array_equal(found[0], found[2])


@pytest.mark.exhaustive
def test_batches(small: MachineConfig, state: MachineState) -> None:
    states = [state.replace(vram=state.vram * (i + 1)) for i in range(3)]
    wanted, found = (pj.run_batch(PROGRAM, states, small, engine=engine) for engine in ENGINES)  # type: ignore[arg-type]
    assert differences(wanted, found) == {}
    other = pj.assemble("V_ADD_VV gp1, gp2, gp3")
    with pytest.raises(EngineError, match="2 different traces"):
        pj.run_batch([PROGRAM, PROGRAM, other], states, small, engine="fused")
    with pytest.raises(EngineError, match="allowed: 'resolved', 'fused'"):
        pj.run_batch(PROGRAM, states, small, engine="architectural")  # type: ignore[arg-type]


@pytest.mark.exhaustive
def test_random_programs_in_reverse(small: MachineConfig) -> None:
    """Cotangents of every memory, against those of the resolved engine."""
    config = dataclasses.replace(small, intended=dataclasses.replace(small.intended, m_bmv=True))
    steps = Differentiator(config)
    plan = Plan(config, all_buckets(config), whole=True)

    @jax.jit
    def pull(x: Floats, bar: Floats, memories: object, tables: object) -> Floats:
        def run(x: Floats) -> Floats:
            start = memories._replace(vram=x.vram, cells=x.cells, m_accum=x.m_accum, hbm=x.hbm)  # type: ignore[attr-defined]
            end = run_pieces(plan, start, None, tables)  # type: ignore[arg-type]
            return Floats(end.vram, end.cells, end.m_accum, end.hbm)

        return jax.vjp(run, x)[1](bar)[0]

    compared = 0
    for seed in range(12):
        job = random_program(config, seed, tame=True, topk=False)
        random = np.random.default_rng(seed)
        cells = random.standard_normal(1 << 16).astype(np.float32)
        state = MachineState.create(config, vram=random.standard_normal((48, 8)).astype(np.float32), hbm=cells)
        trace = pj.resolve(job.program, config, state)
        if trace.status or len(trace) > steps.records:
            continue
        x, rest = steps.load(job.program, state)
        bar = Floats(*(jnp.asarray(random.standard_normal(leaf.shape), jnp.float32) for leaf in x))
        wanted = steps.pull(x, bar, rest)
        found = pull(x, bar, pack_memories(config, state), tuple(fuse(trace).tables(plan)))
        for name, a, b in zip(Floats._fields, wanted, found, strict=True):
            assert np.linalg.norm(a - b) <= 1e-4 * max(np.linalg.norm(a), 1.0), (seed, name)
        compared += 1
    assert compared >= 6
