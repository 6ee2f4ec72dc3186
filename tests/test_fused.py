"""The fused engine against the resolved one: every bit of the state, on programs that reuse places a lot."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.conformance import Case
from plena_jax.lower import Graph, Lowered, lower
from plena_jax.machine.dots import adds_in_order
from plena_jax.machine.fused import copies as copying
from plena_jax.machine.fused import engine
from plena_jax.machine.fused import schedule as scheduling
from plena_jax.machine.fused.execute import WideSteps, run_values
from plena_jax.machine.fused.families import Family
from plena_jax.machine.fused.resources import Resources
from plena_jax.machine.fused.tables import Plan
from plena_jax.machine.fused.versions import Edges, Versions, versions
from plena_jax.machine.memories import pack_memories
from plena_jax.machine.run import FUSED_RECORDS
from tests.aliasing_programs import aliasing_program
from tests.random_programs import RandomProgram, random_program
from tests.states import differences
from tests.test_canary import copies, loop_bodies

Mutation = Callable[[Versions, Resources], Versions]


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


@pytest.mark.parametrize("seed", range(16))
def test_programs_that_reuse_everything_end_alike(seed: int, machine: MachineConfig) -> None:
    assert both(aliasing_program(machine, seed), machine) == {}


# -- what the analysis must not forget --------------------------------------------------------------------------------


def _node_resources(v: Versions) -> np.ndarray:
    """The place that each node writes, -1 for those that write none by themselves."""
    found = np.full(len(v.family), -1)
    there = v.node >= 0
    found[v.node[there]] = v.resource[there]
    return found


def _without_edges(of: Callable[[Versions, np.ndarray, Resources], np.ndarray]) -> Mutation:
    """Versions that forget what needs the nodes that ``of`` picks."""

    def mutate(v: Versions, resources: Resources) -> Versions:
        dropped = of(v, _node_resources(v), resources)[v.edges.source] & (v.family[v.edges.source] >= 0)
        return dataclasses.replace(v, edges=Edges(*(column[~dropped] for column in v.edges)))

    return mutate


def _moved_reads(step: int) -> Mutation:
    """Reads that see the version before theirs, or the one after."""

    def mutate(v: Versions, resources: Resources) -> Versions:
        other = np.clip(v.reads + step, 0, len(v.node) - 1)
        good = (v.resource[other] == v.resource[v.reads]) & (v.node[other] >= 0)
        return dataclasses.replace(v, reads=np.where(good, other, v.reads))

    return mutate


def _first_write(v: Versions, resources: Resources) -> Versions:
    """Places that end with what they were given first."""
    other = np.maximum(v.final - 1, 0)
    good = (v.resource[other] == v.resource[v.final]) & ~v.is_initial[other]
    return dataclasses.replace(v, final=np.where(good, other, v.final))


_SUMS = (Family.PRODUCT, Family.PRODUCT_TRANSPOSED, Family.MM, Family.TMM, Family.MV, Family.TMV, Family.BMM)
MUTATIONS: dict[str, Mutation] = {
    "RAW": _moved_reads(-1),
    "WAR": _moved_reads(1),
    "WAW": _first_write,
    "rows": _without_edges(lambda v, place, r: (place >= r.vram) & (place < r.tile)),
    "tiles": _without_edges(lambda v, place, r: (place >= r.tile) & (place < r.scalar)),
    "FP registers and FP SRAM": _without_edges(lambda v, place, r: (place >= r.scalar) & (place < r.m_accum)),
    "accumulators": _without_edges(lambda v, place, r: np.isin(v.family, _SUMS)),
}


@pytest.mark.parametrize("kind", [*MUTATIONS, "HBM"])
def test_no_dependence_can_be_forgotten(kind: str, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "HBM":
        none = Edges(np.zeros(0, np.int64), np.zeros(0, np.int64))
        monkeypatch.setattr(scheduling, "hbm_edges", lambda a: (none, 0))
    else:
        change = lambda a, c: MUTATIONS[kind](versions(a, c), a.resources)
        monkeypatch.setattr(scheduling, "versions", change)
    # Traces of other tests have their schedules.
    monkeypatch.setattr(engine, "_fused", weakref.WeakKeyDictionary())
    assert any(both(aliasing_program(machine, seed), machine) for seed in range(16))


def test_without_the_matrix_unit(machine: MachineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that copy none of its memories: rows, f registers and FP SRAM, each read and written."""
    text = """
    S_ADDI_INT gp1, gp0, 8
    V_RED_SUM f1, gp1
    S_LD_FP f2, gp0, 3
    S_MUL_FP f3, f1, f2
    S_ST_FP f3, gp0, 9
    V_MUL_VF gp1, gp1, f3
    V_RED_MAX f4, gp1
    S_MAP_V_FP gp0, gp0, 2
    """
    monkeypatch.setattr(engine, "_plans", {})
    state = start(random_program(machine, 0), machine)
    program = pj.assemble(text)
    finals = [pj.run(program, state, machine, engine=e) for e in ("resolved", "fused")]
    (plan,) = next(iter(engine._plans.values()))
    assert not plan.has_matrix
    assert differences(*finals) == {}
    assert {"vram", "f", "fp_sram"} <= set(differences(state, finals[1]))


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
def test_random_programs_of_large_tiles() -> None:
    """Tiles whose products the backend takes."""
    config = MachineConfig(matrix_sram_size=256, vector_sram_size=320, hbm_size=1 << 20)
    bad = []
    for seed in range(100):
        jobs = (
            random_program(config, seed, size=20 + seed % 100, extremes=0.1 * (seed % 3)),
            aliasing_program(config, seed),
        )
        for name, job in zip(("random", "aliasing"), jobs, strict=True):
            if both(job, config):
                bad.append((name, seed))
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


def test_a_trace_that_does_not_fit_is_refused(machine: MachineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "memory_of", lambda mesh: 1 << 12)
    monkeypatch.setattr(engine, "_fused", weakref.WeakKeyDictionary())
    job = random_program(machine, 3)
    with pytest.raises(pj.EngineError, match=r"datapath instructions takes about .* segments"):
        pj.run(job.program, start(job, machine), machine, engine="fused")


def test_the_report_counts_what_runs(machine: MachineConfig) -> None:
    """256 additions of rows that do not depend on each other, and a chain of sums that does."""
    text = "S_ADDI_INT gp2, gp0, 16\nC_LOOP_START gp5, 16\nV_ADD_VV gp2, gp0, gp0\nS_ADDI_INT gp2, gp2, 8\n"
    text += "V_RED_SUM f1, gp0\nC_LOOP_END gp5"
    program = pj.assemble(text)
    report = pj.fusion(pj.resolve(program, machine, MachineState.create(machine)))
    found = {family.name: family for family in report.families}
    assert (found["ADD"].operations, found["ADD"].largest, found["ADD"].steps) == (16, 16, 1)
    assert (found["SUM"].operations, found["SUM"].largest, found["SUM"].few, found["SUM"].steps) == (16, 1, 16, 16)
    assert report.levels == 16
    assert report.by_mnemonic == {"V_ADD_VV": 16, "V_RED_SUM": 16}
    assert "no more of them are independent" in str(report)


def test_values_are_not_copied_inside_the_loop(machine: MachineConfig) -> None:
    job = random_program(machine, 3)
    state = start(job, machine)
    fused = engine.fuse(pj.resolve(job.program, machine, state))
    families = (Family.ADD, Family.PRODUCT, Family.ASSEMBLE, Family.PREFETCH_M, Family.STORE)
    plan = Plan(machine, engine.all_buckets(machine, families), whole=True)
    tables, slots = fused.schedules[0].tables, fused.schedules[0].tables.entries.shape[0]
    values = np.zeros((slots, machine.vlen), np.float32)
    run = jax.jit(run_values, static_argnums=0, donate_argnums=(1, 4))
    lowered = run.lower(plan, pack_memories(machine, state), None, tables, values)
    bodies = loop_bodies(lowered.compile().as_text())
    assert len(bodies) > 20
    assert copies(bodies, (slots, machine.vlen), "f32") == []
    assert copies(bodies, state.hbm.shape, "u8") == []


def test_auto_takes_it_for_long_traces_of_independent_instructions(machine: MachineConfig) -> None:
    """Only where it pays: a chain of as many additions runs on the resolved engine."""
    loop = "C_LOOP_START gp5, 8192\n{}\nC_LOOP_END gp5"
    names = []
    for rows in ("\n".join(["V_ADD_VV gp1, gp0, gp0"] * 4), "\n".join(["V_ADD_VV gp0, gp0, gp0"] * 4)):
        program = pj.assemble("S_ADDI_INT gp1, gp0, 8\n" + loop.format(rows))
        choice = pj.engine_for(program, MachineState.create(machine), machine)
        assert choice.trace is not None
        assert len(choice.trace) == FUSED_RECORDS
        names.append(choice.name)
    assert names == ["fused", "resolved"]


def test_what_depends_on_data_is_refused(machine: MachineConfig) -> None:
    program = pj.assemble("V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 1")
    with pytest.raises(pj.EngineError, match=r"'fused'.*S_LD_INT"):
        pj.run(program, MachineState.create(machine), machine, engine="fused")


# -- values that are there already, and products of values of HBM -----------------------------------------------------


def test_moves_and_equal_operations_of_scalars_take_no_steps(machine: MachineConfig) -> None:
    """Each row has its constant fetched and its sum cleared."""
    text = """
    S_ADDI_INT gp1, gp0, 0
    C_LOOP_START gp5, 4
    S_LD_FP f1, gp0, 3
    S_ADD_FP f2, f0, f0
    S_SUB_FP f3, f0, f1
    V_RED_SUM f2, gp1
    V_MUL_VF gp1, gp1, f1
    V_ADD_VF gp1, gp1, f2
    V_ADD_VF gp1, gp1, f3
    S_ST_FP f2, gp0, 9
    S_ADDI_INT gp1, gp1, 8
    C_LOOP_END gp5
    """
    program, state = pj.assemble(text), start(random_program(machine, 0), machine)
    trace = pj.resolve(program, machine, state)
    found = {family.name: family.operations for family in pj.fusion(trace).families}
    assert found == {"ADD": 8, "MULTIPLY": 4, "SUM": 4, "ADD_SCALARS": 2}
    finals = [pj.run(program, state, machine, engine=e) for e in ("resolved", "fused")]
    assert differences(*finals) == {}
    assert {"f", "fp_sram", "vram"} <= set(differences(state, finals[1]))


@pytest.mark.parametrize("forgotten", ["argument", "operand"])
def test_different_operations_of_scalars_are_not_the_same(
    forgotten: str, machine: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes them different is looked at: without it the engines differ."""
    text = "S_ADD_FP f1, f2, f3\nS_SUB_FP f4, f2, f3\nS_SUB_FP f5, f2, f6"
    job = random_program(machine, 0)
    state = start(job, machine).replace(f=np.arange(1, 9, dtype=np.float32))
    program = pj.assemble(text)

    def differ() -> bool:
        monkeypatch.setattr(engine, "_fused", weakref.WeakKeyDictionary())
        return differences(*(pj.run(program, state, machine, engine=e) for e in ("resolved", "fused"))) != {}

    assert not differ()
    lexsort = np.lexsort
    column = {"argument": 1, "operand": 3}[forgotten]

    def blind(keys: Any) -> np.ndarray:
        if isinstance(keys, np.ndarray):
            keys[column] = 0
        return lexsort(keys)

    monkeypatch.setattr(copying.np, "lexsort", blind)
    assert differ()


@pytest.fixture(scope="module")
def projection() -> Lowered:
    """64 rows by a tile of 64x64, with values of HBM."""
    g = Graph(MachineConfig())
    x = g.load(g.input("x", (64, 64), "hbm", "activations"))
    g.output(g.linear(x, g.input("w", (64, 64), "hbm", "weights")))
    return lower(g)


@pytest.mark.parametrize("length", [0, pytest.param(16, marks=pytest.mark.exhaustive), 20])
def test_significands_of_values_of_hbm_are_looked_at(length: int, projection: Lowered) -> None:
    """Products of long ones are not exact: they take the sums that round them."""
    random = np.random.default_rng(length)
    state = projection.start(**{name: random.normal(size=(64, 64)) for name in ("x", "w")})
    state = state.replace(hbm=state.hbm * np.float32(1 + (2.0**-length if length else 0)), vram=state.vram[:4096])
    finals = [pj.run(projection.program, state, projection.config, engine=e) for e in ("resolved", "fused")]
    assert differences(*finals) == {}
    assert "vram" in differences(state, finals[1])


# With the options of .ci/run's first step a product is rounded before it is added, and nothing differs.
@pytest.mark.slow
@pytest.mark.parametrize("looks", [True, False])
def test_sums_of_long_products_would_be_others(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config, random = MachineConfig(), np.random.default_rng(0)
    if not adds_in_order(8, 64, 64):
        pytest.skip("this backend adds up in another order")
    vram = random.integers(-255, 256, (64, 64)).astype(np.float32)
    state = MachineState.create(config, vram=vram, hbm=np.zeros(64, np.float32))
    state = state.replace(mram=random.normal(size=state.mram.shape).astype(np.float32))
    program = pj.assemble("M_MM 0, gp0, gp0")
    if not looks:
        monkeypatch.setattr(WideSteps, "is_long", lambda self, tile: jnp.zeros(tile.shape, bool))
    monkeypatch.setattr(engine, "_run_copies", jax.jit(engine._run, static_argnums=0, donate_argnames="scratch"))
    finals = [pj.run(program, state, config, engine=e) for e in ("resolved", "fused")]
    assert ("m_accum" in differences(*finals)) is not looks
