"""Instruction-by-instruction traces: what was executed, and what each instruction wrote."""

from __future__ import annotations

import json

import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.machine.tracing import Executed, trace
from tests.random_programs import random_program
from tests.states import differences

Traced = tuple[list[Executed], MachineState]


def traced(text: str, config: MachineConfig, limit: int | None = None, **contents) -> Traced:
    return collect(trace(pj.assemble(text), MachineState.create(config, **contents), config, limit))


def collect(generator) -> Traced:
    executed = []
    while True:
        try:
            executed.append(next(generator))
        except StopIteration as end:
            return executed, end.value


def effects(executed: list[Executed]) -> list[list[tuple]]:
    return [[(e.target, e.values, e.count) for e in one.effects] for one in executed]


@pytest.mark.parametrize("seed", range(3))
def test_the_end_of_a_trace_is_the_end_of_a_run(seed: int, small: MachineConfig) -> None:
    job = random_program(small, seed)
    state = MachineState.from_images(small, job.images)
    executed, final = collect(trace(job.program, state, small))
    assert differences(final, pj.run(job.program, state, small, engine="architectural")) == {}
    assert [one.tick for one in executed] == list(range(final.instructions))


def test_a_trace_of_a_state_with_few_rows_grows_it(small: MachineConfig) -> None:
    """What is filled up while it runs is cut off afterwards: it must not count as allocated."""
    text = "S_ADDI_INT gp1, gp0, 40\nV_ADD_VV gp1, gp0, gp0"
    _, final = traced(text, small, vram=np.ones(8, np.float32), vram_rows=1)
    assert np.asarray(final.vram[5]).tolist() == [2.0] * 8
    start = MachineState.create(small, vram=np.ones(8, np.float32), vram_rows=1)
    assert differences(final, pj.run(pj.assemble(text), start, small)) == {}


def test_integers(small: MachineConfig) -> None:
    text = "S_ADDI_INT gp1, gp0, 5\nS_ADDI_INT gp1, gp0, 5\nC_SET_STRIDE_REG gp1\nC_SET_ADDR_REG a3, gp1, gp1\n"
    text += "S_ST_INT gp1, gp1, 2\nS_LD_INT gp2, gp0, 7\nC_LOOP_START gp3, 2\nC_LOOP_END gp3"
    executed, _ = traced(text, small)
    assert effects(executed) == [
        [("gp1", (5,), 1)],
        [("gp1", (5,), 1)],
        [("stride", (5,), 1)],
        [("a3", (5 << 32 | 5,), 1)],
        [("int_sram[7]", (5,), 1)],
        [("gp2", (5,), 1)],
        [("gp3", (2,), 1)],
        [("gp3", (1,), 1)],
        [("gp3", (0,), 1)],
    ]
    assert [one.pc for one in executed] == [0, 1, 2, 3, 4, 5, 6, 7, 7]


def test_rows_scalars_and_accumulators(small: MachineConfig) -> None:
    text = "V_ADD_VV gp1, gp0, gp0\nV_RED_SUM f2, gp0\nS_ST_FP f2, gp0, 9\nS_LD_FP f3, gp0, 9\nM_MM 0, gp0, gp0\n"
    text += "M_MM_WO gp1, gp0, 2\nS_ADD_FP f0, f2, f3"
    executed, _ = traced(text, small, vram=np.arange(1, 17, dtype=np.float32))
    row = tuple(2.0 * np.arange(1, 9))
    assert effects(executed) == [
        [("vram[0]", row, 1)],
        [("f2", (72.0,), 1)],
        [("fp_sram[9]", (72.0,), 1)],
        [("f3", (72.0,), 1)],
        [("m_accum", (0.0,) * 4, 4)],
        [("vram[0][2]", (0.0, 0.0), 2)],
        [],
    ]
    assert executed[0].instruction == "V_ADD_VV gp1, gp0, gp0"
    assert executed[0].unit == "vector"


def test_transfers_and_topk(small: MachineConfig) -> None:
    text = "S_ADDI_INT gp1, gp0, 256\nC_SET_SCALE_REG gp1\nH_STORE_V gp0, gp0, a0, 0, 0\n"
    text += "H_PREFETCH_V gp1, gp0, a0, 0, 0\nH_PREFETCH_M gp0, gp0, a0, 0, 0\n"
    text += "S_ADDI_INT gp2, gp0, 40\nV_TOPK gp1, gp0, gp2, 0"
    executed, final = traced(text, small, vram=np.arange(32, dtype=np.float32))
    found = effects(executed)
    assert found[2] == [("hbm[0x0]", (), 8)]
    assert found[3][0][::2] == ("vram[32]", 2)
    assert found[4][0][0] == "mram[0]"
    weights, indices = found[6]
    assert indices == ("int_sram[40]", (31, 30, 29, 28), 4)
    assert weights[0] == "fp_sram[256]"
    assert final.hbm_traffic[0] > 0


def test_the_limit_stops_with_its_status(small: MachineConfig) -> None:
    executed, final = traced("C_LOOP_START gp1, 1000\nC_LOOP_END gp1", small, 700)
    assert len(executed) == 700
    assert final.fault is pj.Fault.LIMIT


def test_a_fault_comes_after_what_was_executed(small: MachineConfig) -> None:
    executed = []
    program = pj.assemble("S_ADDI_INT gp1, gp0, 3\nS_ADDI_INT gp2, gp0, 8\nV_EXP_V gp1, gp2")
    with pytest.raises(pj.MachineFault, match="pc 2") as caught:
        for one in trace(program, MachineState.create(small), small):
            executed.append(one)
    assert len(executed) == 2
    assert caught.value.state.instructions == 2


def test_a_pc_outside_the_program_is_refused(small: MachineConfig) -> None:
    state = MachineState.create(small).replace(pc=np.int32(-1))
    with pytest.raises(pj.EngineError, match="pc -1; allowed: 0 to 1"):
        next(trace(pj.assemble("S_ADDI_INT gp1, gp0, 3"), state, small))


def test_memory_grows_while_tracing(small: MachineConfig) -> None:
    state = MachineState.create(small, vram_rows=8)
    executed, final = collect(trace(pj.assemble("S_ADDI_INT gp1, gp0, 320\nV_EXP_V gp1, gp0"), state, small))
    assert len(executed) == 2
    assert np.asarray(final.vram[40]).tolist() == [1.0] * 8


def test_text_and_json(small: MachineConfig) -> None:
    executed, _ = traced("V_RECI_V gp0, gp0\nH_STORE_V gp0, gp0, a0, 0, 0", small)
    assert executed[0].effects[0].describe() == "vram[0] = inf inf inf inf ..."
    assert executed[1].effects[0].describe() == "hbm[0x0] x 8 bytes"
    data = json.loads(json.dumps(executed[0].as_json(), allow_nan=False))
    assert data["effects"][0]["values"] == ["inf"] * 8
    assert data["instruction"] == "V_RECI_V gp0, gp0"
