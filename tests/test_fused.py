"""The fused engine against the resolved one: every bit of the state, on programs that reuse places a lot."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.conformance import Case
from plena_jax.machine.fused import engine
from plena_jax.machine.fused.execute import Plan
from tests.random_programs import RandomProgram, random_program
from tests.states import differences


@pytest.fixture(scope="module")
def machine(small: MachineConfig) -> MachineConfig:
    """One compilation serves all tests here: its plans have every branch."""
    every = engine.all_buckets(small)
    for strict in (False, True):
        for inside in (False, True):
            plan = Plan(small, every, strict, clipped=False, inside=False)
            engine._plans[(small, strict, False, inside)] = [plan]
    return small


def start(job: RandomProgram, config: MachineConfig) -> MachineState:
    return MachineState.from_images(config, job.images)


def both(job: RandomProgram, config: MachineConfig) -> dict[str, int]:
    """Words that differ between the engines."""
    state = start(job, config)
    finals = [pj.run(job.program, state, config, engine=e, strict=True) for e in ("resolved", "fused")]
    return differences(*finals)


@pytest.mark.parametrize("seed", range(24))
def test_random_programs_end_alike(seed: int, machine: MachineConfig) -> None:
    assert both(random_program(machine, seed, extremes=0.05 if seed % 2 else 0.0), machine) == {}


def test_random_programs_do_fuse(machine: MachineConfig) -> None:
    job = random_program(machine, 3, size=120)
    trace = pj.resolve(job.program, machine, start(job, machine))
    found = engine.fuse(trace).schedules[0]
    assert found.steps < len(trace)
    assert both(job, machine) == {}


@pytest.mark.exhaustive
def test_hundreds_of_random_programs(machine: MachineConfig) -> None:
    bad = []
    for seed in range(2000, 2600):
        job = random_program(machine, seed, size=20 + seed % 100, extremes=0.1 * (seed % 3))
        if both(job, machine):
            bad.append(seed)
    assert bad == []


@pytest.mark.exhaustive
def test_recorded_programs_end_alike(conformance: Path) -> None:
    bad = {}
    for path in sorted(conformance.glob("*/*.npz")):
        case = Case.load(path)
        state = case.state()
        if pj.engine_for(case.program, state, case.config).trace is None:
            continue
        run = lambda name, case=case, state=state: pj.run(
            case.program, state, case.config, engine=name, strict=True, throw=False
        )
        found = differences(run("resolved"), run("fused"))
        if found:
            bad[case.name] = found
        jax.clear_caches()
    assert bad == {}


def test_a_fault_is_that_of_the_other_engines(machine: MachineConfig) -> None:
    program = pj.assemble("V_ADD_VV gp0, gp0, gp0\nS_ADDI_INT gp1, gp0, 4\nV_ADD_VV gp0, gp1, gp0")
    # The shapes of the other tests, which are compiled.
    state, faults = start(random_program(machine, 0), machine), []
    for name in ("resolved", "fused"):
        with pytest.raises(pj.MachineFault) as caught:
            pj.run(program, state, machine, engine=name, strict=True)
        faults.append(caught.value)
    assert str(faults[0]) == str(faults[1])
    assert differences(faults[0].state, faults[1].state) == {}


def test_what_depends_on_data_is_refused(machine: MachineConfig) -> None:
    program = pj.assemble("V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 1")
    with pytest.raises(pj.EngineError, match=r"'fused'.*S_LD_INT"):
        pj.run(program, MachineState.create(machine), machine, engine="fused")
