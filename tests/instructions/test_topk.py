"""V_TOPK (docs/machine.md section 4.3): the top experts of a row of logits, and their softmax weights."""

from __future__ import annotations

import numpy as np
import pytest

import plena_jax
from plena_jax import EngineError, Fault

from .machine_helpers import INF, NAN, RAMP, Machine, at, bf16, covers, hexes, misuses, same

#: Logits far below the others: their weights are 0.
LOW = -300.0
GP = {1: 100, 2: 0, 3: 200}
TEXT = "V_TOPK gp1, gp2, gp3"


def _logits(values: dict[int, float], experts: int = 32, fill: float = LOW) -> np.ndarray:
    logits = np.full(experts, fill, np.float32)
    for index, value in values.items():
        logits[index] = value
    return logits.reshape(-1, 8)


def _found(state: plena_jax.MachineState, k: int = 4) -> tuple[list[int], str]:
    return np.asarray(state.int_sram[200 : 200 + k]).tolist(), hexes(state.fp_sram[100 : 100 + k])


@covers("V_TOPK")
def test_policy_0_takes_4_of_32(machine: Machine) -> None:
    # Logits 1 .. 8, 11 .. 18, 21 .. 28, 31 .. 38: weights exp(-r) / (1 + e**-1 + e**-2 + e**-3).
    state = machine.run(TEXT, vram=RAMP, gp=GP, int_sram=[7] * 300, fp_sram=[9] * 300)
    assert _found(state) == ([31, 30, 29, 28], "3F25 3E73 3DB2 3D03")
    assert machine.written(state) == at("int_sram", range(200, 204)) | at("fp_sram", range(100, 104))


@covers("V_TOPK")
def test_equal_logits_share_equally_and_the_lower_index_goes_first(machine: Machine) -> None:
    state = machine.run(TEXT, vram=_logits({30: 5, 3: 5, 17: 5, 8: 5, 9: 4, 0: 4}), gp=GP)
    # exp(4 - 5) does not get into the sum: k = 4.
    assert _found(state) == ([3, 8, 17, 30], "3E80 3E80 3E80 3E80")
    state = machine.run(TEXT, vram=_logits({}, fill=-2), gp=GP)
    assert _found(state) == ([0, 1, 2, 3], "3E80 3E80 3E80 3E80")


@covers("V_TOPK")
def test_rank_order_is_descending_wherever_logits_stand(machine: Machine) -> None:
    state = machine.run(TEXT, vram=_logits({20: 1, 0: 3, 31: 2, 7: 4}, fill=LOW), gp=GP)
    # 1, e**-1, e**-2, e**-3 over 1.55307
    assert _found(state) == ([7, 0, 31, 20], "3F25 3E73 3DB2 3D03")


@covers("V_TOPK")
def test_weights_far_below_the_first_vanish(machine: Machine) -> None:
    state = machine.run(TEXT, vram=_logits({5: 10}), gp=GP)
    assert _found(state) == ([5, 0, 1, 2], "3F80 0000 0000 0000")
    # exp(-88) = 6.0546e-39, a subnormal number: not clamped as V_EXP_V does, and not flushed.
    state = machine.run(TEXT, vram=_logits({5: 0, 6: -88, 7: -90}), gp=GP)
    # 6.0546e-39 = 65.93 * 2**-133; exp(-90) = 8.194e-40 = 8.92 * 2**-133
    assert _found(state) == ([5, 6, 7, 0], "3F80 0042 0009 0000")


@covers("V_TOPK")
def test_nan_counts_as_minus_infinity(machine: Machine) -> None:
    state = machine.run(TEXT, vram=_logits({4: NAN, 5: 1, 6: 1}, fill=-INF), gp=GP)
    # NaN and -inf tie: the lowest indices come next, with weight exp(-inf) = 0.
    assert _found(state) == ([5, 6, 0, 1], "3F00 3F00 0000 0000")
    state = machine.run(TEXT, vram=_logits({4: NAN, 0: NAN, 9: -INF, 5: 2, 6: 2, 7: 2, 8: 2}, fill=-5), gp=GP)
    assert _found(state) == ([5, 6, 7, 8], "3E80 3E80 3E80 3E80")


@covers("V_TOPK")
@pytest.mark.parametrize(
    "logits, fill, indices",
    [
        ({}, -INF, [0, 1, 2, 3]),  # nothing but -inf
        ({}, NAN, [0, 1, 2, 3]),
        ({3: INF}, 0.0, [3, 0, 1, 2]),  # inf - inf is NaN
        ({9: INF, 8: INF}, -INF, [8, 9, 0, 1]),
    ],
)
def test_without_a_finite_positive_sum_all_weights_are_zero(
    machine: Machine, logits: dict[int, float], fill: float, indices: list[int]
) -> None:
    state = machine.run(TEXT, vram=_logits(logits, fill=fill), gp=GP, fp_sram=[9] * 300)
    assert _found(state) == (indices, "0000 0000 0000 0000")


@covers("V_TOPK")
def test_positive_zero_ranks_above_negative_zero(machine: Machine) -> None:
    state = machine.run(TEXT, vram=_logits({2: -0.0, 9: -0.0, 20: 0.0, 30: 0.0}), gp=GP)
    assert _found(state) == ([20, 30, 2, 9], "3E80 3E80 3E80 3E80")


@covers("V_TOPK")
def test_subnormal_logits_are_ranked(machine: Machine) -> None:
    tiny = 2.0**-133
    state = machine.run(TEXT, vram=_logits({1: -tiny, 2: tiny, 3: 2 * tiny, 4: 0, 5: -2 * tiny}), gp=GP)
    assert _found(state) == ([3, 2, 4, 1], "3E80 3E80 3E80 3E80")


@covers("V_TOPK")
def test_policy_1_takes_8_of_128(machine: Machine) -> None:
    top = {127: 9, 0: 9, 64: 9, 31: 9, 32: 9, 100: 9, 50: 9, 77: 9}
    gp = GP | {2: 8 * 32}
    vram = {32 + r: lanes for r, lanes in enumerate(_logits(top, 128))}
    state = machine.run(f"{TEXT}, 1", vram=vram, gp=gp, int_sram=[7] * 300, fp_sram=[9] * 300)
    assert _found(state, 8) == ([0, 31, 32, 50, 64, 77, 100, 127], " ".join(["3E00"] * 8))
    # Expert 0 is entry 0 of the second list: 7 before, 0 now; each entry is written.
    assert machine.written(state) == at("int_sram", range(200, 208)) | at("fp_sram", range(100, 108))


@covers("V_TOPK")
def test_policy_0_does_not_look_behind_its_32_logits(machine: Machine) -> None:
    vram = np.full((48, 8), 99, np.float32)
    vram[8:12] = _logits({6: 1, 7: 1, 8: 1, 9: 1})
    state = machine.run(TEXT, vram=vram, gp=GP | {2: 64})
    assert _found(state) == ([6, 7, 8, 9], "3E80 3E80 3E80 3E80")


@covers("V_TOPK")
@pytest.mark.parametrize("policy, row", [(0, 44), (1, 32), (0, 0), (1, 0)])
def test_first_and_last_addresses(machine: Machine, policy: int, row: int) -> None:
    experts, k = ((32, 4), (128, 8))[policy]
    vram = {row + r: lanes for r, lanes in enumerate(_logits({experts - 1: 3}, experts))}
    gp = {1: 1024 - k, 2: 8 * row, 3: 1024 - k}
    state = machine.run(f"{TEXT}, {policy}", vram=vram, gp=gp)
    same(state.fp_sram[1024 - k :], [1] + [0] * (k - 1))
    assert np.asarray(state.int_sram[1024 - k :]).tolist() == [experts - 1, *range(k - 1)]
    state = machine.run(f"{TEXT}, {policy}", vram=vram, gp={1: 0, 2: 8 * row, 3: 0})
    same(state.fp_sram[: k + 1], [1] + [0] * k)
    assert np.asarray(state.int_sram[: k + 1]).tolist() == [experts - 1, *range(k - 1), 0]


@covers("V_TOPK")
def test_all_registers_may_be_the_same(machine: Machine) -> None:
    state = machine.run("V_TOPK gp1, gp1, gp1", vram=_logits({10: 1, 11: 1, 12: 1, 13: 1}))
    same(state.fp_sram[:4], [0.25] * 4)
    assert np.asarray(state.int_sram[:4]).tolist() == [10, 11, 12, 13]


@covers("V_TOPK")
def test_a_row_wider_than_the_logits_is_used_in_part(wide: Machine) -> None:
    # Rows of 64 lanes: policy 0 takes half of the last row of VRAM, policy 1 the last two.
    vram = np.full((128, 64), LOW, np.float32)
    vram[127, :32] = np.arange(32) % 8 == 5
    vram[127, 32:] = 50
    state = wide.run(TEXT, vram=vram, gp=GP | {2: 127 * 64})
    assert _found(state) == ([5, 13, 21, 29], "3E80 3E80 3E80 3E80")
    state = wide.run(f"{TEXT}, 1", vram=vram, gp=GP | {2: 126 * 64})
    assert _found(state, 8) == (list(range(96, 104)), " ".join(["3E00"] * 8))


@covers("V_TOPK", "S_LD_INT", "S_LD_FP")
def test_what_it_writes_can_be_loaded(machine: Machine) -> None:
    text = f"{TEXT}\nS_LD_INT gp4, gp3, 1\nS_LD_FP f1, gp1, 1\nS_MUL_INT gp5, gp4, gp4"
    contents = {"vram": _logits({7: 1, 9: 1}), "gp": GP}
    if machine.engine == "resolved":
        # Where it goes on depends on data, so it cannot be resolved; "auto" then takes the other engine.
        program, start = plena_jax.assemble(text), machine.start(**contents)
        with pytest.raises(EngineError, match="S_LD_INT loads an index that V_TOPK computed"):
            plena_jax.run(program, start, machine.config, engine="resolved")
        assert plena_jax.engine_for(program, start, machine.config).name == "architectural"
        machine.engine = "auto"
    state = machine.run(text, **contents)
    assert np.asarray(state.gp)[4:6].tolist() == [9, 81]
    same(state.f[1], 0.5)


@covers("V_TOPK", "S_LD_INT", "S_ST_INT")
def test_entries_that_it_did_not_write_or_that_were_overwritten_are_known(machine: Machine) -> None:
    text = f"{TEXT}\nS_LD_INT gp4, gp3, 4\nS_ST_INT gp2, gp3, 1\nS_LD_INT gp5, gp3, 1"
    contents = {"vram": _logits({7: 1, 9: 1}), "gp": GP, "int_sram": {204: 55}}
    state = machine.run(text, **contents)
    assert np.asarray(state.gp)[4:6].tolist() == [55, 0]
    # The other entries still hold what V_TOPK has found.
    assert np.asarray(state.int_sram[200:205]).tolist() == [7, 0, 0, 1, 55]


@covers("V_TOPK")
def test_twice_into_the_same_entries(machine: Machine) -> None:
    text = f"{TEXT}\nS_ADDI_INT gp2, gp2, 32\nS_ADDI_INT gp3, gp3, 2\n{TEXT}"
    vram = np.concatenate([_logits({7: 1, 9: 1}), _logits({30: 2, 31: 2, 1: 2, 3: 2})])
    state = machine.run(text, vram=vram, gp=GP)
    assert np.asarray(state.int_sram[200:206]).tolist() == [7, 9, 1, 3, 30, 31]
    same(state.fp_sram[100:104], [0.25] * 4)


@misuses("V_TOPK")
@pytest.mark.parametrize(
    "which, value, policy, code, limit",
    [
        (1, 1021, 0, Fault.OUT_OF_RANGE, "up to 1020 (4 of 1024 entries from there)"),
        (1, 1017, 1, Fault.OUT_OF_RANGE, "up to 1016 (8 of 1024 entries from there)"),
        (1, 0xFFFFFFFF, 0, Fault.OUT_OF_RANGE, "up to 1020 (4 of 1024 entries from there)"),
        (2, 4, 0, Fault.MISALIGNED, "a multiple of 8"),
        (2, 45 * 8, 0, Fault.OUT_OF_RANGE, "up to 352 (4 of 48 rows from there)"),
        (2, 33 * 8, 1, Fault.OUT_OF_RANGE, "up to 256 (16 of 48 rows from there)"),
        (3, 1021, 0, Fault.OUT_OF_RANGE, "up to 1020 (4 of 1024 entries from there)"),
        (3, 1017, 1, Fault.OUT_OF_RANGE, "up to 1016 (8 of 1024 entries from there)"),
    ],
)
def test_bad_addresses(machine: Machine, which: int, value: int, policy: int, code: Fault, limit: str) -> None:
    text = f"{TEXT}, 1" if policy else TEXT
    contents = {"vram": RAMP, "fp_sram": [9] * 300, "int_sram": [7] * 300, "gp": GP | {which: value}}
    machine.fault(text, code, operand=f"gp{which}", value=value, limit=limit, **contents)


@misuses("V_TOPK")
@pytest.mark.parametrize("policy", [2, 3, 8, 15])
def test_unknown_policies(machine: Machine, policy: int) -> None:
    machine.fault(
        f"{TEXT}, {policy}",
        Fault.TOPK_POLICY,
        operand="policy",
        value=policy,
        limit="0: 4 of 32, 1: 8 of 128",
        rule="unknown policy",
        vram=RAMP,
        gp=GP,
    )
    # Even where addresses are wrong too.
    machine.fault(
        f"{TEXT}, {policy}",
        Fault.TOPK_POLICY,
        operand="policy",
        value=policy,
        limit="0: 4 of 32, 1: 8 of 128",
        gp={1: 5000, 2: 3, 3: 5000},
    )


@covers("V_TOPK")
def test_logits_are_read_as_stored(machine: Machine) -> None:
    # 1 + 2**-9 and 1 are the same BF16 number, so that the lower index goes first.
    state = machine.run(TEXT, vram=_logits({4: 1, 9: 1 + 2.0**-9, 20: bf16("3F81")[0]}), gp=GP)
    assert _found(state)[0][:3] == [20, 4, 9]
