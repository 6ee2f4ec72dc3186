"""The conformance vectors of docs/machine.md section 11, and the cost table of section 6.2."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import plena_jax
from plena_jax import MachineConfig, MachineState, Program

from .machine_helpers import F32, RAMP, Machine, compiled, hexes, row, same, section_11

# -- section 11 -------------------------------------------------------------------------------------------------------

PREFIX = "00100062 0000006C 00000028"


def _images() -> plena_jax.Images:
    hbm = bytearray(72)
    for r in range(8):
        hbm[8 * r + r] = 0x38
        hbm[8 * r + (r + 1) % 8] = 0x40
    hbm[64:72] = bytes([0x80] + [0x7F] * 7)
    vram = np.array([RAMP[r] for r in range(16)], F32).view(np.uint32) >> 16
    fp_sram = np.array([0, 1, -2, 0.5], "<f2")
    return plena_jax.Images(hbm=bytes(hbm), fp_sram=fp_sram.tobytes(), vram=vram.astype("<u2").tobytes())


def _words(text: str) -> Program:
    return Program.from_words([int(w, 16) for w in text.split()])


class Vector:
    """A row of the table, run; ``cycles`` leaves the prefix out."""

    def __init__(self, machine: Machine, words: str) -> None:
        start = MachineState.from_images(machine.config, _images())
        prefix = machine.run(_words(PREFIX), start)
        self.state = machine.run(_words(f"{PREFIX} {words}"), start)
        self.cycles = self.state.latency_cycles - prefix.latency_cycles
        # Row 20 and further were zero.
        self.changed = {
            r for r in range(48) if not np.array_equal(np.asarray(self.state.vram[r]), np.asarray(start.vram[r]))
        }

    def row(self, index: int, lanes: slice = slice(None)) -> list[float]:
        return row(self.state, index)[lanes].tolist()


def test_prefix_loads_tile_0(machine: Machine) -> None:
    state = Vector(machine, "").state
    tile = np.eye(8) + 2 * np.eye(8, k=1)
    tile[7, 0] = 2
    tile[0] *= 2
    same(state.mram[0], tile)
    assert int(state.gp[1]) == int(state.scale) == 64
    assert state.latency_cycles == 2


LANES_2_3, LANES_4_5 = slice(2, 4), slice(4, 6)


@pytest.mark.parametrize(
    "name, words, rows, cycles",
    [
        ("M_MM block 1", "000400A2 00000801 002800E2 000080C6", {20: [0, 0, 7, 10], 21: [0, 0, 37, 40]}, 11),
        (
            "M_TMM with the same offset",
            "000400A2 00008002 002800E2 000080C6",
            {20: [0, 0, 11, 14], 21: [0, 0, 41, 44]},
            11,
        ),
        ("M_MM block 0, stride 2", "00000001 002800E2 00008122 000010C6", {20: [18, 6], 22: [58, 56]}, 11),
        (
            "M_BMM",
            "00000003 002800E2 000000C5",
            {20: [0.5, 1.75, 2.75, 4.25, 3.5], 28: [1, 3, 3.5, 5, 4]},
            10,
        ),
        (
            "M_BTMM h=4",
            "000100A2 00000804 002800E2 000000C5",
            {20: [0, 0, 0, 0.5, 1.25, 2, 2.75, 1], 28: [0, 0, 0, 2.5, 4.25, 5, 5.75, 2]},
            11,
        ),
        (
            "M_BTMV",
            "0000000A 002800E2 000000CC",
            {20: [2.5, 2, 2.75, 1, 0, 0, 0, 0.5], 21: [8.5, 5, 5.75, 2, 0, 0, 0, 2.5]},
            3,
        ),
        ("M_MV", "000080A2 00000807 002800E2 000100CB", {20: [0, 0, 0, 0, 7, 10]}, 11),
        ("M_TMV", "00000008 002800E2 000100CB", {20: [0, 0, 0, 0, 10, 8]}, 10),
        ("V_SHFT_V by 3", "0000C0A2 002800E2 000080F2", {20: [0, 0, 0, 1, 2, 3, 4, 5]}, 3),
        (
            "V_ADD_VF masked",
            "000080A2 000000AE 0000C0DE 002800E2 0004C0CE",
            {20: [1, 2, 3, 4, 5.5, 6.5, 7.5, 8.5]},
            5,
        ),
        ("V_SUB_VF reverse", "0000C0DE 002800E2 0040C0D0", {20: [-0.5, -1.5, -2.5, -3.5, -4.5, -5.5, -6.5, -7.5]}, 3),
        ("S_MAP_V_FP", "002800E2 000040E0", {20: [1, -2, 0.5]}, 17),
    ],
)
def test_vector_into_vram(machine: Machine, name: str, words: str, rows: dict[int, list[float]], cycles: int) -> None:
    vector = Vector(machine, words)
    for index, lanes in rows.items():
        assert vector.row(index) == lanes + [0] * (8 - len(lanes))
    # The write-outs of whole heads write rows that these conditions do not mention.
    assert vector.changed >= set(rows)
    if "M_B" not in name:
        assert vector.changed == set(rows)
    assert vector.cycles == cycles


def test_vector_v_red_sum_plain_and_masked(machine: Machine) -> None:
    vector = Vector(machine, "000080A2 000000AE 00000055 0002805F 00040095 0002C09F")
    same(vector.state.fp_sram[10:12], [36, 114])
    assert vector.cycles == 20


def test_vector_v_topk(machine: Machine) -> None:
    vector = Vector(machine, "000800A2 000A00E2 0000C0B7")
    assert np.asarray(vector.state.int_sram[40:44]).tolist() == [31, 30, 29, 28]
    assert hexes(vector.state.fp_sram[32:36]) == "3F25 3E73 3DB2 3D03"
    assert vector.cycles == 130


def test_vector_loop(machine: Machine) -> None:
    vector = Vector(machine, "0000116F 0000D9A2 00000170 0001C1A7 00020167")
    assert np.asarray(vector.state.int_sram[7:9]).tolist() == [12, 0]
    assert vector.cycles == 11


def test_vector_h_store_v(machine: Machine) -> None:
    vector = Vector(machine, "010000A2 008000E2 000000EC 00020122 0000092A")
    assert np.asarray(vector.state.hbm[1024:1032]).tobytes().hex(" ") == "33 34 35 36 37 38 38 39"
    assert int(vector.state.hbm[640]) == 0x83
    # Without the time that the memory takes, which is not modelled: four cycles of the 41.
    assert vector.cycles == 4


def test_vector_h_prefetch_v_with_stride_16(machine: Machine) -> None:
    vector = Vector(machine, "000400A2 000000AD 002800E2 000400E9")
    assert vector.row(20) == [2, 4, 0, 0, 0, 0, 0, 0]
    assert vector.row(21) == [0, 0, 1, 2, 0, 0, 0, 0]
    assert vector.cycles == 3


# -- section 6.2 ------------------------------------------------------------------------------------------------------

#: Each instruction with its cycles under DC_EN 1 and 0 at the published latencies, MLEN 8.
COSTS = {
    "M_MM 0, gp0, gp0": (8, 8),
    "M_TMM 0, gp0, gp0": (8, 8),
    "M_BMM 0, gp0, gp0": (8, 8),
    "M_BTMM 0, gp0, gp0": (8, 8),
    "M_BTMV gp0, gp0, gp0": (1, 1),
    "M_MV 0, gp0, gp0": (8, 8),
    "M_TMV 0, gp0, gp0": (8, 8),
    "M_MM_WO gp0, 0, 0": (1, 1),
    "M_BMM_WO gp0, 0": (1, 1),
    "M_MV_WO gp0, 0": (1, 1),
    "M_BMV_WO gp0, 0": (1, 1),
    "V_ADD_VV gp0, gp0, gp0": (1, 2),
    "V_ADD_VF gp0, gp0, f1": (1, 2),
    "V_SUB_VV gp0, gp0, gp0": (1, 2),
    "V_SUB_VF gp0, gp0, f1": (1, 2),
    "V_MUL_VV gp0, gp0, gp0": (1, 5),
    "V_MUL_VF gp0, gp0, f1": (1, 5),
    "V_SHFT_V gp0, gp0, gp0": (1, 5),
    "V_EXP_V gp0, gp0": (1, 6),
    "V_RECI_V gp0, gp0": (2, 7),
    "V_MAX_VF gp0, gp0, f1": (4, 4),
    "V_MIN_VF gp0, gp0, f1": (4, 4),
    "V_RED_SUM f1, gp0": (8, 20),
    "V_RED_SUM f1, gp0, 1": (8, 20),
    "V_RED_SUM f0, gp0": (0, 0),
    "V_RED_MAX f1, gp0": (4, 4),
    "V_RED_MAX f0, gp0": (0, 0),
    "V_TOPK gp0, gp0, gp0": (128, 128),
    "V_TOPK gp0, gp0, gp0, 1": (512, 512),
    "S_ADD_FP f1, f1, f1": (1, 1),
    "S_SUB_FP f1, f1, f1": (1, 1),
    "S_MAX_FP f1, f1, f1": (1, 1),
    "S_MUL_FP f1, f1, f1": (1, 1),
    "S_EXP_FP f1, f1": (1, 2),
    "S_RECI_FP f1, f1": (1, 2),
    "S_SQRT_FP f1, f1": (1, 2),
    "S_ADD_FP f0, f1, f1": (0, 0),
    "S_SUB_FP f0, f1, f1": (0, 0),
    "S_MAX_FP f0, f1, f1": (0, 0),
    "S_MUL_FP f0, f1, f1": (0, 0),
    "S_EXP_FP f0, f1": (0, 0),
    "S_RECI_FP f0, f1": (0, 0),
    "S_SQRT_FP f0, f1": (0, 0),
    "S_LD_FP f1, gp0, 0": (1, 1),
    "S_LD_FP f0, gp0, 0": (1, 1),
    "S_ST_FP f1, gp0, 0": (1, 1),
    "S_ST_FP f0, gp0, 0": (1, 1),
    "S_MAP_V_FP gp0, gp0, 0": (16, 16),
    "S_ADD_INT gp1, gp1, gp1": (1, 1),
    "S_ADDI_INT gp1, gp1, 1": (1, 1),
    "S_SUB_INT gp1, gp1, gp1": (1, 1),
    "S_MUL_INT gp1, gp1, gp1": (1, 1),
    "S_LUI_INT gp1, 1": (1, 1),
    "S_LD_INT gp1, gp0, 0": (1, 1),
    "S_ST_INT gp1, gp0, 0": (1, 1),
    "H_PREFETCH_M gp0, gp0, a0, 0, 0": (0, 0),
    "H_PREFETCH_V gp0, gp0, a0, 0, 0": (0, 0),
    "H_STORE_V gp0, gp0, a0, 0, 0": (0, 0),
    "C_SET_ADDR_REG a1, gp0, gp0": (1, 1),
    "C_SET_SCALE_REG gp0": (1, 1),
    "C_SET_STRIDE_REG gp0": (1, 1),
    "C_SET_V_MASK_REG gp0": (1, 1),
    "C_LOOP_START gp1, 1": (1, 1),
    "C_LOOP_START gp1, 1\nC_LOOP_END gp1": (2, 2),
    "C_LOOP_START gp1, 5\nC_LOOP_END gp1": (6, 6),
    "C_LOOP_START gp1, 1\nC_BREAK": (2, 2),
}
#: Cycles with the latencies of the fixture ``odd``.
DISTINCT_COSTS = {
    "M_MM": 11,
    "M_TMM": 11,
    "M_BMM": 11,
    "M_BTMM": 11,
    "M_BTMV": 4,
    "M_MV": 8,
    "M_TMV": 8,
    "V_ADD_VV": 11,
    "V_ADD_VF": 11,
    "V_SUB_VV": 11,
    "V_SUB_VF": 11,
    "V_MUL_VV": 13,
    "V_MUL_VF": 13,
    "V_SHFT_V": 13,
    "V_EXP_V": 17,
    "V_RECI_V": 19,
    "V_MAX_VF": 23,
    "V_MIN_VF": 23,
    "V_RED_SUM": 29,
    "V_RED_MAX": 23,
    "V_TOPK": 32 * 23,
    "S_ADD_FP": 31,
    "S_SUB_FP": 31,
    "S_MAX_FP": 31,
    "S_MUL_FP": 31,
    "S_EXP_FP": 37,
    "S_RECI_FP": 43,
    "S_SQRT_FP": 41,
    "S_MAP_V_FP": 16,
    "S_ADD_INT": 47,
    "S_ADDI_INT": 47,
    "S_SUB_INT": 47,
    "S_MUL_INT": 47,
    "S_LUI_INT": 47,
    "S_LD_INT": 47,
    "S_ST_INT": 47,
    "H_PREFETCH_M": 0,
    "H_PREFETCH_V": 0,
    "H_STORE_V": 0,
}


@pytest.fixture(params=[1, 0], ids=["dc_en", "dc_dis"])
def dc(request: pytest.FixtureRequest, small: MachineConfig, engine: str) -> tuple[int, Machine]:
    config = small if request.param else section_11(dc_en=0)
    return request.param, compiled(config, engine)


@pytest.mark.parametrize("text", COSTS)
def test_fixed_costs(dc: tuple[int, Machine], text: str) -> None:
    enabled, machine = dc
    assert machine.run(text).latency_cycles == COSTS[text][1 - enabled]


@pytest.mark.parametrize("text", [t for t in COSTS if "f0" not in t and "\n" not in t and not t.endswith(", 1")])
def test_each_cost_comes_from_its_own_key(odd: Machine, text: str) -> None:
    cost = DISTINCT_COSTS.get(text.split()[0], 1)
    assert odd.run(text).latency_cycles == cost
    assert odd.run(f"{text}\n{text}").latency_cycles == 2 * cost


def test_the_cost_table_has_every_instruction() -> None:
    # M_BMV cannot be executed; tests/instructions/test_intended.py has its cost.
    named = {text.split()[0] for text in COSTS} | {"C_LOOP_END", "C_BREAK", "M_BMV"}
    assert named == {entry.mnemonic for entry in plena_jax.INSTRUCTIONS}


def test_published_latencies() -> None:
    expected: dict[str, Any] = {
        "systolic_processing_overhead": (0, 0),
        "vector_add_cycles": (1, 2),
        "vector_mul_cycles": (1, 5),
        "vector_exp_cycles": (1, 6),
        "vector_reci_cycles": (2, 7),
        "vector_max_cycles": (4, 4),
        "vector_sum_cycles": (8, 20),
        "scalar_fp_basic_cycles": (1, 1),
        "scalar_fp_exp_cycles": (1, 2),
        "scalar_fp_sqrt_cycles": (1, 2),
        "scalar_fp_reci_cycles": (1, 2),
        "scalar_int_basic_cycles": (1, 1),
        "vector_prefix_scan_cycles": (9, 9),
        "vector_shift_cycles": (1, 1),
        "scalar_fp_longest_operate_cycles": (4, 4),
        "vector_longest_operate_cycles": (10, 20),
        "vector_basic_cycles": (1, 2),
    }
    latency = MachineConfig().latency
    assert {name: getattr(latency, name) for name in expected} == expected


def test_cycles_are_added_up_over_a_program_and_over_runs(machine: Machine) -> None:
    text = """
        C_LOOP_START gp1, 100
        V_RED_SUM f1, gp0
        M_MM 0, gp0, gp0
        S_EXP_FP f0, f1
        C_LOOP_END gp1
        S_MAP_V_FP gp0, gp0, 0
    """
    once = machine.run(text)
    assert once.latency_cycles == 1 + 100 * (8 + 8 + 0 + 1) + 16
    part = machine.run(text, max_instructions=200)
    # 49 passes of four, and three instructions of the fiftieth.
    assert part.latency_cycles == 1 + 49 * 17 + 16
    assert machine.run(text, part).latency_cycles == once.latency_cycles
