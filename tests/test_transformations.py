"""Runs inside ``jit`` and ``vmap``: the same states as concrete runs, one by one."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import Fault, MachineConfig, MachineState
from plena_jax.machine.batching import CPU_LANES
from plena_jax.machine.state import INTEGER_FIELDS
from tests.random_programs import random_program
from tests.states import batch_of, differences, lane


@pytest.fixture(scope="module")
def job(small: MachineConfig):
    return random_program(small, 7)


@pytest.fixture(scope="module")
def state(job, small: MachineConfig) -> MachineState:
    return MachineState.from_images(small, job.images)


def images(count: int, state: MachineState) -> jax.Array:
    random = np.random.default_rng(count).normal(size=(count, *state.vram.shape))
    return jnp.asarray(random, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32)


def test_jit_over_memories_is_resolved_while_tracing(job, state: MachineState, small: MachineConfig) -> None:
    """The program is resolved in the middle of tracing, whether or not that has been done before."""
    other = random_program(small, 1234)
    begin = MachineState.from_images(small, other.images)
    run = jax.jit(lambda vram: pj.run(other.program, begin.replace(vram=vram), small, engine="resolved"))
    assert differences(pj.run(other.program, begin, small), run(begin.vram)) == {}


def test_jit_over_states_is_architectural(job, state: MachineState, small: MachineConfig) -> None:
    run = jax.jit(lambda s: pj.run(job.program, s, small))
    assert differences(pj.run(job.program, state, small), run(state)) == {}
    assert differences(run(run(state)), pj.run(job.program, pj.run(job.program, state, small), small)) == {}


def test_resolved_refuses_traced_registers(job, state: MachineState, small: MachineConfig) -> None:
    with pytest.raises(pj.EngineError, match="traced"):
        jax.jit(lambda s: pj.run(job.program, s, small, engine="resolved"))(state)


def test_a_concrete_state_inside_jit(job, state: MachineState, small: MachineConfig) -> None:
    for engine in ("resolved", "architectural"):
        inside = jax.jit(lambda x, e=engine: pj.run(job.program, state, small, engine=e).vram + x)(0.0)
        assert np.array_equal(inside, pj.run(job.program, state, small).vram, equal_nan=True)


def test_a_first_run_inside_jit_leaves_nothing_of_it_behind(small: MachineConfig) -> None:
    other = random_program(small, 4321)
    begin = MachineState.from_images(small, other.images)
    inside = jax.jit(lambda x: pj.run(other.program, begin, small, engine="resolved").vram + x)(0.0)
    assert np.array_equal(inside, pj.run(other.program, begin, small, engine="resolved").vram, equal_nan=True)


@pytest.mark.parametrize(
    "lanes", [3, *(pytest.param(lanes, marks=pytest.mark.exhaustive) for lanes in (1, CPU_LANES + 5))]
)
def test_vmap_over_images(lanes: int, job, state: MachineState, small: MachineConfig) -> None:
    batch = images(lanes, state)
    together = jax.vmap(lambda vram: pj.run(job.program, state.replace(vram=vram), small))(batch)
    for index in range(lanes):
        alone = pj.run(job.program, state.replace(vram=batch[index]), small)
        # What does not depend on the batch is not batched.
        kept = [f.name for f in dataclasses.fields(MachineState) if f.name in INTEGER_FIELDS]
        one = {name: getattr(together, name) for name in kept if name != "int_sram"}
        got = lane(together.replace(**dict.fromkeys(one, jnp.zeros(lanes))), index).replace(**one)
        assert differences(alone, got) == {}


def test_vmap_over_hbm_with_jit(job, state: MachineState, small: MachineConfig) -> None:
    random = np.random.default_rng(0)
    batch = jnp.asarray(random.integers(0, 0x60, (4, *state.hbm.shape)), jnp.uint8).at[:, 4096:].set(125)
    run = jax.jit(jax.vmap(lambda hbm: pj.run(job.program, state.replace(hbm=hbm), small).vram))
    for index, vram in enumerate(run(batch)):
        assert np.array_equal(vram, pj.run(job.program, state.replace(hbm=batch[index]), small).vram, equal_nan=True)


def test_vmap_over_whole_states(job, state: MachineState, small: MachineConfig) -> None:
    """Registers are batched too: machines that agree on them take their steps together."""
    states = [state.replace(vram=vram) for vram in images(3, state)]
    together = jax.vmap(lambda s: pj.run(job.program, s, small))(batch_of(states))
    for index, alone in enumerate(states):
        assert differences(pj.run(job.program, alone, small), lane(together, index)) == {}


def test_vmap_over_states_with_different_registers(small: MachineConfig) -> None:
    """Different registers lead to different paths: machines then run one after the other."""
    program = pj.assemble(
        "C_LOOP_START gp2, 3\nS_ADD_INT gp2, gp2, gp5\nV_ADD_VV gp1, gp3, gp4\nS_ADDI_INT gp1, gp1, 8\nC_LOOP_END gp2"
    )
    start = MachineState.create(small, vram=np.arange(64, dtype=np.float32))
    states = []
    for more, row in ((0, 40), (0, 48), (0, 200)):
        gp = start.gp.at[5].set(more).at[1].set(row).at[4].set(8)
        states.append(start.replace(gp=gp))
    together = jax.vmap(lambda s: pj.run(program, s, small))(batch_of(states))
    for index, alone in enumerate(states):
        assert differences(pj.run(program, alone, small), lane(together, index)) == {}


@pytest.mark.exhaustive
def test_vmap_of_machines_that_route_differently(small: MachineConfig) -> None:
    config = dataclasses.replace(small, vector_sram_size=64)
    program = pj.assemble("V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 0\nS_LD_INT gp3, gp0, 3")
    start = MachineState.create(config)
    batch = images(5, start)
    run = jax.vmap(lambda vram: pj.run(program, start.replace(vram=vram), config).gp)
    expected = [np.argsort(-np.asarray(vram).reshape(-1)[:32], kind="stable")[[0, 3]] for vram in batch]
    assert np.asarray(run(batch))[:, 2:4].tolist() == np.array(expected).tolist()


def test_a_fault_inside_jit_is_in_the_state(small: MachineConfig) -> None:
    program = pj.assemble("S_ADDI_INT gp2, gp0, 8\nV_ADD_VV gp0, gp2, gp1\nS_ADDI_INT gp3, gp0, 1")
    start = MachineState.create(small, vram=np.arange(16, dtype=np.float32))
    run = jax.jit(lambda s: pj.run(program, s, small))
    good = run(start)
    assert (good.fault, int(good.gp[3])) == (Fault.OK, 1)
    bad = run(start.replace(gp=start.gp.at[1].set(3)))
    assert (bad.fault, int(bad.pc), int(bad.gp[2]), int(bad.gp[3])) == (Fault.MISALIGNED, 1, 8, 0)
    assert np.array_equal(bad.vram, start.vram)


def test_a_fault_that_is_known_while_tracing_is_raised(small: MachineConfig) -> None:
    program = pj.assemble("S_ADDI_INT gp1, gp0, 3\nV_ADD_VV gp0, gp0, gp1")
    start = MachineState.create(small)
    with pytest.raises(pj.MachineFault, match="pc 1"):
        jax.jit(lambda vram: pj.run(program, start.replace(vram=vram), small).vram)(start.vram)
    quiet = jax.jit(lambda vram: pj.run(program, start.replace(vram=vram), small, throw=False).status)
    assert int(quiet(start.vram)) == Fault.MISALIGNED


def test_the_state_is_a_pytree(state: MachineState) -> None:
    doubled = jax.tree.map(lambda leaf: leaf, state)
    assert differences(state, doubled) == {}
    assert isinstance(doubled, MachineState)
