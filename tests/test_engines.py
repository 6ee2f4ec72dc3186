"""Engines against each other and against the NumPy interpreter, on random programs: every bit of the state."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.machine.architectural import run_traced
from plena_jax.machine.decode import decode
from tests.numpy_machine import OrderedNumpyMachine
from tests.random_programs import RandomProgram, random_program
from tests.states import differences

SEEDS = range(40)


@pytest.fixture(scope="module")
def wide() -> MachineConfig:
    return MachineConfig(
        mlen=32,
        vlen=32,
        blen=4,
        hlen=8,
        matrix_sram_size=64,
        vector_sram_size=200,
        hbm_m_prefetch_amount=32,
        hbm_v_prefetch_amount=2,
        hbm_v_writeback_amount=1,
        hbm_size=1 << 16,
    )


def start(job: RandomProgram, config: MachineConfig) -> MachineState:
    return MachineState.from_images(config, job.images)


def run_numpy(job: RandomProgram, config: MachineConfig) -> OrderedNumpyMachine:
    images = [
        np.frombuffer(job.images.hbm, np.uint8),
        np.frombuffer(job.images.fp_sram, np.float16),
        None,
        np.frombuffer(job.images.vram, np.uint16),
    ]
    return OrderedNumpyMachine(config.to_toml(), job.program.words, *images).run()


def against_numpy(state: MachineState, machine: OrderedNumpyMachine) -> dict[str, int]:
    """Words that differ, any two NaN being equal (which operand's payload a NaN has is up to the compiler of NumPy)."""
    floats = {
        "vram": machine.vram,
        "mram": machine.mram,
        "fp_sram": machine.fp,
        "f": machine.f,
        "m_accum": machine.acc,
        "hm_accum": machine.hm,
        "hv_accum": machine.hv,
        "v_accum": machine.v_acc,
    }
    found = {}
    for name, expected in floats.items():
        got = np.asarray(getattr(state, name)).reshape(-1)[: expected.size]
        other = np.ascontiguousarray(expected, np.float32).reshape(-1)
        differs = (got.view(np.uint32) != other.view(np.uint32)) & ~(np.isnan(got) & np.isnan(other))
        found[name] = int(differs.sum())
    integers = {"int_sram": machine.ints, "gp": np.array(machine.gp, np.uint32), "hbm": machine.hbm}
    for name, expected in integers.items():
        got = np.asarray(getattr(state, name))
        size = min(len(got), len(expected))
        found[name] = int(np.sum(got[:size] != expected[:size]))
    found["instructions"] = state.instructions - machine.executed
    return {name: count for name, count in found.items() if count}


@pytest.mark.parametrize("seed", SEEDS)
def test_engines_and_numpy_agree(seed: int, small: MachineConfig) -> None:
    job = random_program(small, seed, extremes=0.05 if seed % 2 else 0.0)
    state = start(job, small)
    architectural = pj.run(job.program, state, small, engine="architectural")
    resolved = pj.run(job.program, state, small, engine="resolved")
    assert differences(architectural, resolved) == {}
    assert against_numpy(resolved, run_numpy(job, small)) == {}


@pytest.mark.parametrize("seed", range(12))
def test_engines_and_numpy_agree_on_a_wider_machine(seed: int, wide: MachineConfig) -> None:
    job = random_program(wide, seed, size=60)
    state = start(job, wide)
    architectural = pj.run(job.program, state, wide, engine="architectural")
    resolved = pj.run(job.program, state, wide, engine="resolved")
    assert differences(architectural, resolved) == {}
    assert against_numpy(resolved, run_numpy(job, wide)) == {}


@pytest.mark.exhaustive
def test_hundreds_of_random_programs(small: MachineConfig, wide: MachineConfig) -> None:
    bad = []
    for config, seeds, extremes in ((small, range(1000, 1600), 0.1), (wide, range(1000, 1200), 0.02)):
        for seed in seeds:
            job = random_program(config, seed, extremes=extremes)
            state = start(job, config)
            finals = [pj.run(job.program, state, config, engine=e) for e in ("architectural", "resolved")]
            if differences(*finals) or against_numpy(finals[0], run_numpy(job, config)):
                bad.append((config.mlen, seed))
    assert bad == []


def test_a_changed_program_is_noticed(small: MachineConfig) -> None:
    """Negative control: the comparisons above see one wrong instruction, unless its result is overwritten later."""
    add, subtract = (pj.assemble(f"{name} gp0, gp0, gp0").words[0] for name in ("V_ADD_VV", "V_SUB_VV"))
    noticed = []
    for seed in range(12):
        job = random_program(small, seed)
        words = job.program.words.copy()
        at = np.nonzero(words & 63 == add)[0]
        words[at] ^= add ^ subtract
        other = pj.run(words, start(job, small), small)
        seen = "vram" in differences(pj.run(job.program, start(job, small), small), other)
        assert seen == ("vram" in against_numpy(other, run_numpy(job, small)))
        noticed.append(seen)
    assert sum(noticed) >= 8


@pytest.mark.parametrize("seed", range(4))
def test_one_loop_inside_jit_is_the_same(seed: int, small: MachineConfig) -> None:
    """Traced states run on the architectural engine in one loop; the host drives concrete ones."""
    job = random_program(small, seed)
    state = start(job, small)
    table = jax.tree.map(jnp.asarray, decode(job.program, small))
    inside, _ = jax.jit(run_traced, static_argnames="config")(table, state, jnp.int32(-1), small)
    assert differences(pj.run(job.program, state, small, engine="architectural"), inside) == {}


@pytest.mark.parametrize("engine", ["architectural", "resolved"])
def test_a_run_in_pieces_is_one_run(engine: str, small: MachineConfig) -> None:
    job = random_program(small, 5)
    whole = pj.run(job.program, start(job, small), small, engine=engine)
    state = start(job, small)
    for count in (0, 1, 7, 60, 1000, 10**6):
        state = pj.run(job.program, state, small, engine=engine, max_instructions=count)
    assert differences(whole, state) == {}


def test_loading_what_topk_computed_takes_the_architectural_engine(small: MachineConfig) -> None:
    config = dataclasses.replace(small, vector_sram_size=64)
    program = pj.assemble("V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 1\nS_ADDI_INT gp3, gp2, 5")
    state = MachineState.create(config, vram=np.arange(32, dtype=np.float32))
    choice = pj.engine_for(program, state, config)
    assert choice.name == "architectural"
    assert "S_LD_INT" in choice.reason
    final = pj.run(program, state, config)
    assert np.asarray(final.int_sram)[:4].tolist() == [31, 30, 29, 28]
    assert np.asarray(final.gp)[2:4].tolist() == [30, 35]
    with pytest.raises(pj.EngineError, match="S_LD_INT"):
        pj.run(program, state, config, engine="resolved")


def test_storing_over_what_topk_computed_is_resolved(small: MachineConfig) -> None:
    """An entry that S_ST_INT sets again is known again."""
    config = dataclasses.replace(small, vector_sram_size=64)
    text = "V_TOPK gp1, gp1, gp1, 0\nS_ADDI_INT gp2, gp0, 7\nS_ST_INT gp2, gp0, 1\nS_LD_INT gp3, gp0, 1\n"
    program, state = pj.assemble(text), MachineState.create(config, vram=np.arange(32, dtype=np.float32))
    assert pj.engine_for(program, state, config).name == "resolved"
    finals = [pj.run(program, state, config, engine=engine) for engine in ("architectural", "resolved")]
    assert differences(*finals) == {}
    assert np.asarray(finals[0].int_sram)[:4].tolist() == [31, 7, 29, 28]


def test_auto_takes_the_resolved_engine_and_says_so(small: MachineConfig) -> None:
    job = random_program(small, 1)
    choice = pj.engine_for(job.program, start(job, small), small)
    assert choice.name == "resolved"
    assert choice.trace is not None
    assert len(choice.trace) < choice.trace.instructions


def test_a_second_program_of_a_configuration_compiles_nothing(small: MachineConfig) -> None:
    first, second = (random_program(small, seed) for seed in (20, 21))
    for engine in ("architectural", "resolved"):
        pj.run(first.program, start(first, small), small, engine=engine)
    state = start(second, small)
    compiled: list[str] = []
    listener = lambda name, duration, **more: compiled.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for engine in ("architectural", "resolved"):
            pj.run(second.program, state, small, engine=engine)
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    assert compiled == []
