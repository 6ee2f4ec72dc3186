"""What callers of ``run`` rely on: growth, donation, progress, arguments, errors."""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import Fault, MachineConfig, MachineState
from plena_jax.machine import compiled, resolved
from tests.random_programs import random_program
from tests.states import bits, differences

ENGINES = ["architectural", "resolved"]


@pytest.fixture(scope="module")
def large(small: MachineConfig) -> MachineConfig:
    return dataclasses.replace(small, vector_sram_size=1 << 19, hbm_size=1 << 33)


def test_defaults_are_a_machine_at_reset() -> None:
    final = pj.run(pj.assemble("S_ADDI_INT gp1, gp0, 42"))
    assert int(final.gp[1]) == 42
    assert final.vram.shape == (1 << 20 >> 6, 64)


def test_programs_are_accepted_as_words(small: MachineConfig) -> None:
    program = pj.assemble("S_ADDI_INT gp1, gp0, 42")
    for words in (program.words, program.words.tolist(), jax.numpy.asarray(program.words)):
        assert int(pj.run(words, config=small).gp[1]) == 42


@pytest.mark.parametrize("engine", ENGINES)
def test_vram_grows_on_demand(engine: str, large: MachineConfig) -> None:
    state = MachineState.create(large, vram=np.arange(8, dtype=np.float32), vram_rows=16)
    last = (1 << 19) - 1
    text = f"S_LUI_INT gp1, {last * 8 >> 12}\nS_ADDI_INT gp1, gp1, {last * 8 & 4095}\nV_ADD_VV gp1, gp0, gp0"
    final = pj.run(pj.assemble(text), state, large, engine=engine)
    assert final.vram.shape[0] == 1 << 19
    assert np.asarray(final.vram[last]).tolist() == (2 * np.arange(8)).tolist()
    assert final.instructions == 3
    assert state.vram.shape[0] == 16


@pytest.mark.parametrize("engine", ENGINES)
def test_hbm_grows_with_stores_and_reads_zero_beyond(engine: str, large: MachineConfig) -> None:
    state = MachineState.create(large, vram=np.ones(16, np.float32), hbm_bytes=64)
    text = "S_LUI_INT gp1, 64\nC_SET_SCALE_REG gp1\nH_STORE_V gp0, gp1, a0, 0, 0\n"
    text += "S_ADDI_INT gp2, gp0, 16\nH_PREFETCH_V gp2, gp1, a0, 0, 0\n"
    text += "S_LUI_INT gp3, 500000\nH_PREFETCH_V gp0, gp3, a0, 0, 0"
    final = pj.run(pj.assemble(text), state, large, engine=engine)
    assert final.hbm.shape[0] >= (1 << 18) + 8
    assert np.asarray(final.vram[2]).tolist() == [1.0] * 8
    assert np.asarray(final.vram[0]).tolist() == [0.0] * 8


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("address", [(1 << 31) - 64, 1 << 31, (1 << 32) - 8, 1 << 32, (1 << 33) - 16])
def test_more_hbm_than_a_state_can_hold_is_an_error(address: int, engine: str, large: MachineConfig) -> None:
    """Below and above what 32 bits can count."""
    text = f"S_ADDI_INT gp1, gp0, {address >> 32}\nS_LUI_INT gp2, {(address >> 12) & 0xFFFFF}\n"
    text += f"S_ADDI_INT gp2, gp2, {address & 0xFFF}\nC_SET_ADDR_REG a1, gp1, gp2\nH_STORE_V gp0, gp0, a1, 0, 0"
    with pytest.raises(pj.EngineError, match="stores beyond the 2147483584 bytes that a state can hold"):
        pj.run(pj.assemble(text), MachineState.create(large, hbm_bytes=64), large, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_inside_jit_nothing_grows(engine: str, large: MachineConfig) -> None:
    state = MachineState.create(large, vram_rows=16)
    program = pj.assemble("S_ADDI_INT gp1, gp0, 800\nV_ADD_VV gp1, gp0, gp0")
    run = jax.jit(lambda s: pj.run(program, s, large))
    final = run(state)
    assert (final.fault, int(final.pc)) == (Fault.VRAM_UNALLOCATED, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_start_state_is_kept_unless_donated(engine: str, small: MachineConfig) -> None:
    job = random_program(small, 2)
    state = MachineState.from_images(small, job.images)
    copy = jax.tree.map(lambda leaf: np.array(leaf), state)
    final = pj.run(job.program, state, small, engine=engine)
    assert differences(state, copy) == {}
    assert differences(final, pj.run(job.program, state, small, engine=engine, donate=True)) == {}


@pytest.mark.parametrize("engine", ENGINES)
def test_progress_counts_up_to_the_end(engine: str, small: MachineConfig) -> None:
    program = pj.assemble("C_LOOP_START gp1, 9000\nV_ADD_VV gp0, gp0, gp0\nC_LOOP_END gp1")
    seen: list[int] = []
    final = pj.run(program, MachineState.create(small), small, engine=engine, progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) >= 2
    assert abs(seen[-1] - final.instructions) <= 2


@pytest.mark.parametrize("engine", ENGINES)
def test_max_instructions_stops_with_limit(engine: str, small: MachineConfig) -> None:
    program = pj.assemble("C_LOOP_START gp1, 100\nS_ADDI_INT gp2, gp2, 1\nC_LOOP_END gp1")
    final = pj.run(program, MachineState.create(small), small, engine=engine, max_instructions=50)
    assert (final.fault, final.instructions) == (Fault.LIMIT, 50)
    assert len(final.loops.entries()) == 1
    for wrong in (-1, 2**31, 1.5, "3", True):
        with pytest.raises(pj.EngineError, match="max_instructions"):
            pj.run(program, MachineState.create(small), small, max_instructions=wrong)


_NOTHING = "S_ADDI_INT gp1, gp0, 1"


def test_a_state_of_another_machine_is_refused(small: MachineConfig) -> None:
    with pytest.raises(pj.EngineError, match=r"another machine \(or is a batch: use vmap\)"):
        pj.run(pj.assemble(_NOTHING), MachineState.create(MachineConfig()), small)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vram", np.zeros((4, 7), np.float32), r"float32\[4, 7\], .* needs float32\[1 to 48 \(VECTOR_SRAM_SIZE\), 8\]"),
        ("vram", np.zeros((49, 8), np.float32), r"float32\[49, 8\], .* needs float32\[1 to 48 "),
        ("vram", np.zeros((0, 8), np.float32), r"float32\[0, 8\], .* needs float32\[1 to 48 "),
        ("vram", np.zeros((48, 8), np.float16), r"float16\[48, 8\], "),
        ("vram", np.zeros((2, 48, 8), np.float32), r"float32\[2, 48, 8\], .* is a batch"),
        ("mram", np.zeros((3, 8, 8), np.float32), r"float32\[3, 8, 8\], .* float32\[4, 8, 8\]"),
        ("fp_sram", np.zeros(1023, np.float32), r"float32\[1023\], .* float32\[1024\]"),
        ("int_sram", np.zeros(1024, np.int32), r"int32\[1024\], .* uint32\[1024\]"),
        ("hbm", np.zeros(128, np.int8), r"int8\[128\], .* uint8 or float32"),
        ("hbm", np.zeros((2, 64), np.uint8), r"uint8\[2, 64\], "),
        ("hbm", np.zeros((1 << 16) + 64, np.uint8), r"uint8\[65600\], .* at most 65536 bytes \(HBM_SIZE\)"),
        ("hbm", np.zeros((1 << 16) + 64, np.float32), r"float32\[65600\], .* at most 65536 bytes \(HBM_SIZE\)"),
        ("gp", np.zeros(15, np.uint32), r"uint32\[15\], .* uint32\[16\]"),
        ("f", np.zeros(16, np.float32), r"float32\[16\], .* float32\[8\]"),
        ("m_accum", np.zeros((4, 4), np.float32), r"float32\[4, 4\], .* float32\[2, 2\]"),
        ("hm_accum", np.zeros((4, 8, 8), np.float32), r"float32\[4, 8, 8\], .* float32\[2, 8, 8\]"),
        ("hv_accum", np.zeros((4, 8), np.float32), r"float32\[4, 8\], .* float32\[2, 8\]"),
        ("v_accum", np.zeros(4, np.float32), r"float32\[4\], .* float32\[2\]"),
        ("pc", 0, r"0 \(int\), .* int32\[\]"),
        ("ticks", np.zeros(2, np.uint32), r"uint32\[2\], .* uint32\[\].* batch"),
    ],
)
def test_a_field_of_another_machine_is_named(field: str, value: object, message: str, small: MachineConfig) -> None:
    state = MachineState.create(small).replace(**{field: value})
    for engine in ENGINES:
        with pytest.raises(pj.EngineError, match=f"^{field}: the state has {message}"):
            pj.run(pj.assemble(_NOTHING), state, small, engine=engine)


def test_loops_of_another_machine_are_named(small: MachineConfig) -> None:
    state = MachineState.create(small)
    state = state.replace(loops=dataclasses.replace(state.loops, start_pc=np.zeros((16, 4), np.int32)))
    with pytest.raises(pj.EngineError, match=r"^loops.start_pc: the state has int32\[16, 4\], .* int32\[16, 8\]"):
        pj.run(pj.assemble(_NOTHING), state, small)


def test_states_of_numpy_arrays_and_traced_ones_are_accepted(small: MachineConfig) -> None:
    """Final states have NumPy arrays; inside ``vmap`` a batch has the shapes of one machine."""
    program = pj.assemble(_NOTHING)
    once = pj.run(program, jax.tree.map(np.asarray, MachineState.create(small)), small)
    batch = jax.tree.map(lambda leaf: np.stack([leaf] * 2), once)
    assert jax.vmap(lambda s: pj.run(program, s, small))(batch).ticks.tolist() == [1, 1]


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize("pc", [-(2**31), -1, 3, 10_000, 2**31 - 1])
def test_a_pc_outside_the_program_is_refused(pc: int, engine: str, small: MachineConfig) -> None:
    program = pj.assemble("V_ADD_VV gp0, gp0, gp0\nS_ADDI_INT gp1, gp1, 1")
    state = MachineState.create(small).replace(pc=jax.numpy.int32(pc))
    for function in (pj.run, pj.prepare, pj.engine_for):
        with pytest.raises(pj.EngineError, match=f"pc {pc}; allowed: 0 to 2, the end of the program"):
            function(program, state, small, engine=engine)
    # Where it is not known, there is nothing to run either.
    assert differences(_traced(program, small)(state), state) == {}


@cache
def _traced(program: pj.Program, config: MachineConfig) -> Callable[[MachineState], MachineState]:
    """A run in a trace, compiled once."""
    return jax.jit(lambda state: pj.run(program, state, config))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pc_at_the_end_of_the_program_is_the_end(engine: str, small: MachineConfig) -> None:
    program = pj.assemble("V_ADD_VV gp0, gp0, gp0\nS_ADDI_INT gp1, gp1, 1")
    state = MachineState.create(small).replace(pc=jax.numpy.int32(2))
    assert differences(pj.run(program, state, small, engine=engine), state) == {}


def test_an_unknown_engine_is_refused(small: MachineConfig) -> None:
    with pytest.raises(pj.EngineError, match="allowed: 'auto', 'architectural', 'resolved', 'fused'"):
        pj.run(pj.assemble("S_ADDI_INT gp1, gp0, 1"), config=small, engine="fast")  # type: ignore[arg-type]


def test_an_empty_program_is_done(small: MachineConfig) -> None:
    for engine in ENGINES:
        final = pj.run(pj.assemble("; nothing"), MachineState.create(small), small, engine=engine)
        assert (final.fault, final.instructions) == (Fault.OK, 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_far_into_a_long_run_leaves_what_came_before(engine: str, small: MachineConfig) -> None:
    """The integer machine is thousands of instructions ahead when the fault is found."""
    text = "C_LOOP_START gp1, 20000\nV_ADD_VF gp0, gp0, f1\nC_LOOP_END gp1\nS_ADDI_INT gp2, gp0, 4\nV_EXP_V gp2, gp0\n"
    text += "C_LOOP_START gp1, 5\nV_ADD_VF gp0, gp0, f1\nC_LOOP_END gp1"
    start = MachineState.create(small)
    start = start.replace(f=start.f.at[1].set(1.0))
    with pytest.raises(pj.MachineFault) as caught:
        pj.run(pj.assemble(text), start, small, engine=engine)
    fault = caught.value
    assert (fault.code, fault.pc, fault.operand, fault.value) == (Fault.MISALIGNED, 4, "gp2", 4)
    assert fault.instruction == "V_EXP_V gp2, gp0"
    assert "a multiple of 8" in str(fault)
    assert fault.state is not None
    assert fault.state.instructions == 40002
    # 1.0 is added until BF16 has no room for it.
    assert np.asarray(fault.state.vram[0]).tolist() == [256.0] * 8
    assert int(fault.state.gp[1]) == 0


def test_prepare_says_which_engine(small: MachineConfig) -> None:
    job = random_program(small, 9)
    state = MachineState.from_images(small, job.images)
    before = jax.tree.map(lambda leaf: np.array(leaf), state)
    assert pj.prepare(job.program, state, small).name == "resolved"
    assert pj.prepare(job.program, state, small, engine="architectural").name == "architectural"
    assert differences(state, before) == {}


def test_threads_compile_the_same_once_and_few_compilations_are_kept(
    small: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []

    def lower(config: MachineConfig, *_: object) -> SimpleNamespace:
        begun.append(config.vector_sram_size)
        time.sleep(0.05)
        return SimpleNamespace(compile=lambda: None)

    monkeypatch.setattr(compiled, "_execute", SimpleNamespace(lower=lower))
    monkeypatch.setattr(compiled, "_compilations", OrderedDict())
    monkeypatch.setattr(compiled, "_KEPT", 3)
    state = MachineState.create(small)
    configs = [dataclasses.replace(small, vector_sram_size=48 + size) for size in range(5)]
    with ThreadPoolExecutor(8) as pool:
        for config in configs:
            list(pool.map(compiled.compile_ahead, [config] * 8, [state] * 8))
    assert begun == [48, 49, 50, 51, 52]
    assert [key[0] for key in compiled._compilations] == configs[2:]


def test_the_traces_kept_are_touched_by_one_thread_at_a_time(
    small: MachineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(name: str):
        def method(self, *arguments, **more):
            assert resolved._lock.locked()
            touched.append(name)
            return getattr(OrderedDict, name)(self, *arguments, **more)

        return method

    touched: list[str] = []
    names = ("__contains__", "__getitem__", "__setitem__", "__len__", "values", "move_to_end", "popitem")
    monkeypatch.setattr(resolved, "_traces", type("Guarded", (OrderedDict,), {n: guarded(n) for n in names})())
    monkeypatch.setattr(resolved, "_CACHED_RECORDS", 1)
    state = MachineState.create(small)
    for text in ("V_EXP_V gp0, gp0", "V_RECI_V gp0, gp0\nV_EXP_V gp0, gp0", "V_RECI_V gp0, gp0\nV_EXP_V gp0, gp0"):
        pj.resolve(pj.assemble(text), small, state)
    assert set(touched) == set(names)


# -- small vector SRAM ------------------------------------------------------------------------------------------------

#: What fits five rows: lane-wise, a product, its write-out, a transfer both ways.
_FIVE_ROWS = """
S_ADDI_INT gp1, gp0, 8
S_ADDI_INT gp2, gp0, 24
S_ADDI_INT gp3, gp0, 32
H_PREFETCH_M gp0, gp0, a0, 0, 0
V_ADD_VV gp3, gp1, gp1
M_MM 0, gp0, gp2
M_MM_WO gp2, gp0, 0
H_STORE_V gp3, gp0, a0, 0, 0
H_PREFETCH_V gp0, gp0, a0, 0, 0
"""


@pytest.fixture(scope="module")
def memories(small: MachineConfig) -> dict[str, object]:
    random = np.random.default_rng(1)
    return {"vram": random.normal(size=(5, 8)).astype(np.float32), "hbm": random.integers(0x60, 0x70, 512, np.uint8)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("engine", ENGINES)
def test_a_machine_with_fewer_rows_than_a_batched_product_reads(
    engine: str, small: MachineConfig, memories: dict[str, object]
) -> None:
    program = pj.assemble(_FIVE_ROWS)
    tiny = dataclasses.replace(small, vector_sram_size=5)
    state = MachineState.create(tiny, **memories)
    final = pj.run(program, state, tiny, engine=engine)
    assert final.vram.shape == (5, 8)
    expected = pj.run(program, MachineState.create(small, **memories, vram_rows=5), small, engine=engine)
    assert np.abs(np.asarray(final.vram[3])).sum() > 0
    assert differences(final, expected) == {}
    assert differences(final, jax.jit(lambda s: pj.run(program, s, tiny))(state)) == {}
    run = lambda vram: pj.run(program, state.replace(vram=vram), tiny).vram
    assert np.array_equal(bits(jax.vmap(run)(state.vram[None])[0]), bits(final.vram))
    with pytest.raises(pj.MachineFault, match="nothing: it takes 8 rows, and there are 5"):
        pj.run(pj.assemble("M_BTMM 0, gp0, gp0"), state, tiny, engine=engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_state_with_few_rows_grows_to_what_is_needed(
    engine: str, small: MachineConfig, memories: dict[str, object]
) -> None:
    program = pj.assemble(_FIVE_ROWS + "M_BTMM 0, gp0, gp0\nS_ADDI_INT gp1, gp0, 128\nM_BMM_WO gp1, 0")
    whole = pj.run(program, MachineState.create(small, **memories), small, engine=engine)
    final = pj.run(program, MachineState.create(small, **memories, vram_rows=5), small, engine=engine)
    assert final.vram.shape[0] == 48
    assert differences(final, whole) == {}
