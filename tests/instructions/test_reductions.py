"""V_RED_SUM and V_RED_MAX (docs/machine.md section 4.3)."""

from __future__ import annotations

import numpy as np
import pytest

from plena_jax import Fault

from .machine_helpers import INF, NAN, RAMP, Machine, bf16, covers, hexes, misuses, same, word

OUTSIDE = "up to 376 (1 of 48 rows from there)"


@covers("V_RED_SUM")
def test_v_red_sum_adds_to_the_register(machine: Machine) -> None:
    # 11 + ... + 18 = 116, + 0.5
    state = machine.run("V_RED_SUM f3, gp1", vram=RAMP, gp={1: 8}, f={3: 0.5})
    same(state.f[3], 116.5)
    assert machine.written(state) == {"f[3]"}


@covers("V_RED_MAX")
def test_v_red_max_compares_with_the_register(machine: Machine) -> None:
    state = machine.run("V_RED_MAX f3, gp1", vram=RAMP, gp={1: 8}, f={3: 17})
    same(state.f[3], 18)
    assert machine.written(state) == {"f[3]"}
    state = machine.run("V_RED_MAX f3, gp1", vram=RAMP, gp={1: 8}, f={3: 18.5})
    same(state.f[3], 18.5)
    state = machine.run("V_RED_MAX f7, gp1", vram={1: [-5, -3, -9, -4, -8, -7, -6, -2.5]}, gp={1: 8}, f={7: -100})
    same(state.f[7], -2.5)


@covers("V_RED_MAX")
@pytest.mark.parametrize("lane", range(8))
def test_v_red_max_looks_at_every_lane(machine: Machine, lane: int) -> None:
    x = [-1.0] * 8
    x[lane] = -0.5
    state = machine.run("V_RED_MAX f1, gp0", vram={0: x}, f={1: -INF})
    same(state.f[1], -0.5)


@covers("V_RED_SUM")
@pytest.mark.parametrize("lane", range(8))
def test_v_red_sum_looks_at_every_lane(machine: Machine, lane: int) -> None:
    x = [0.0] * 8
    x[lane] = 2.0**-133
    state = machine.run("V_RED_SUM f1, gp0", vram={0: x})
    assert hexes(state.f[1]) == "0001"


@covers("V_RED_SUM", "V_RED_MAX")
def test_reductions_of_the_last_row_into_the_last_register(machine: Machine) -> None:
    state = machine.run("V_RED_SUM f7, gp1\nV_RED_MAX f6, gp1", vram={47: RAMP[4]}, gp={1: 376})
    same(state.f[6:], [48, 356])


@covers("V_RED_SUM")
@pytest.mark.parametrize(
    "lanes, f, result",
    [
        ([1] + [0] * 7, 2.0**-8, "3F80"),  # one rounding at the end: a tie to even
        ([1, 2.0**-9] + [0] * 6, 2.0**-9, "3F80"),  # 1 + 2**-8 in float32 first
        ([1, 2.0**-9, 2.0**-20, 0, 0, 0, 0, 0], 2.0**-9, "3F81"),  # and a little more
        ([256] + [1] * 7, 0, "4384"),  # 263 lies halfway between 262 and 264: to the even 264
        ([bf16("7F7F")[0]] * 2 + [0] * 6, 0, "7F80"),
        ([INF] + [1] * 7, 0, "7F80"),
        ([INF, -INF] + [1] * 6, 0, "FFC0"),
        ([INF] + [1] * 7, -INF, "FFC0"),
        ([0] * 8, NAN, "7FC0"),
        ([-0.0] * 8, 0.0, "0000"),
        ([2.0**-133] * 8, 0, "0008"),
        ([2.0**-133, -(2.0**-133)] + [0] * 6, 2.0**-130, "0008"),
        ([2.0**-126] + [-(2.0**-133)] + [0] * 6, 0, "007F"),
    ],
)
def test_v_red_sum_bits(machine: Machine, lanes: list[float], f: float, result: str) -> None:
    state = machine.run("V_RED_SUM f1, gp0", vram={0: lanes}, f={1: f})
    assert hexes(state.f[1]) == result


@covers("V_RED_SUM")
def test_v_red_sum_with_a_nan_is_nan(machine: Machine) -> None:
    for lane in range(8):
        x = [1.0] * 8
        x[lane] = NAN
        state = machine.run("V_RED_SUM f1, gp0", vram={0: x})
        assert np.isnan(float(state.f[1]))


@covers("V_RED_MAX")
@pytest.mark.parametrize(
    "lanes, f, result",
    [
        ([NAN] + [5] * 7, 1, "3F80"),  # a row with a NaN leaves the register
        ([5] * 7 + [NAN], 1, "3F80"),
        ([5] * 4 + [NAN] + [INF] * 3, -INF, "FF80"),
        ([1, 2, 3, 4, 5, 6, 7, 2], NAN, "40E0"),  # a register of NaN is replaced
        ([INF] + [1] * 7, 1, "7F80"),
        ([1] * 8, INF, "7F80"),
        ([-INF] * 8, -1, "BF80"),
        ([-INF] * 8, -INF, "FF80"),
        ([-(2.0**-133)] * 8, -1, "8001"),  # subnormal numbers are not zero
        ([2.0**-133] + [0] * 7, 0, "0001"),
        ([2.0**-133, 2.0**-132] + [0] * 6, 0, "0002"),
        ([0] * 8, 2.0**-133, "0001"),
        ([0] * 8, -(2.0**-133), "0000"),
        ([-(2.0**-133)] * 8, -(2.0**-132), "8001"),
    ],
)
def test_v_red_max_bits(machine: Machine, lanes: list[float], f: float, result: str) -> None:
    state = machine.run("V_RED_MAX f1, gp0", vram={0: lanes}, f={1: f})
    assert hexes(state.f[1]) == result


@covers("V_RED_MAX")
def test_v_red_max_of_nothing_but_nan_leaves_nan(machine: Machine) -> None:
    state = machine.run("V_RED_MAX f1, gp0", vram={0: [NAN] * 8}, f={1: NAN})
    assert np.isnan(float(state.f[1]))


@covers("V_RED_SUM", "V_RED_MAX")
@pytest.mark.parametrize("gp1", [0, 8, 7, 384])
def test_reductions_into_f0_do_nothing_and_check_nothing(machine: Machine, gp1: int) -> None:
    state = machine.run("V_RED_SUM f0, gp1\nV_RED_MAX f0, gp1, 1", vram=RAMP, gp={1: gp1}, f={0: 2})
    assert machine.written(state) == set()
    assert state.latency_cycles == 0
    assert state.instructions == 2


@covers("V_RED_SUM")
@pytest.mark.parametrize(
    "mask, total",
    # Lanes 1 2 3 4 | 5 6 7 8: each active slot is replaced by four copies of its sum, 10 or 26.
    [(0, 36), (1, 4 * 10 + 26), (2, 10 + 4 * 26), (3, 4 * 36), (0xFFFFFFFC, 36), (0xFFFFFFFE, 114)],
)
def test_masked_v_red_sum(machine: Machine, mask: int, total: int) -> None:
    for flag in (1, 2, 15):
        state = machine.run(f"V_RED_SUM f1, gp0, {flag}", vram=RAMP, f={1: 64}, v_mask=mask)
        same(state.f[1], total + 64)
        assert machine.written(state) == {"f[1]"}
    # Without the flag V_MASK does not count.
    same(machine.run("V_RED_SUM f1, gp0", vram=RAMP, v_mask=mask).f[1], 36)


@covers("V_RED_MAX")
@pytest.mark.parametrize("mask", range(4))
def test_masked_v_red_max_is_the_plain_one(machine: Machine, mask: int) -> None:
    for lanes, most in (([9, 2, 3, 4, 5, 6, 7, 8], 9), ([1, 2, 3, 4, 5, 6, 7, 8], 8), ([-1] * 8, -0.5)):
        state = machine.run("V_RED_MAX f1, gp0, 1", vram={0: lanes}, f={1: -0.5}, v_mask=mask)
        same(state.f[1], most)
    # A NaN anywhere, in an active slot or not, leaves the register.
    for lane in (1, 6):
        x = [2.0] * 8
        x[lane] = NAN
        same(machine.run("V_RED_MAX f1, gp0, 1", vram={0: x}, f={1: -0.5}, v_mask=mask).f[1], -0.5)


@covers("V_RED_SUM", "V_RED_MAX")
def test_masked_reductions_keep_subnormal_numbers(machine: Machine) -> None:
    x = bf16("0001 0002 0000 0000 0010 0000 0000 0000")
    state = machine.run("V_RED_SUM f1, gp0, 1", vram={0: x}, v_mask=1)
    assert hexes(state.f[1]) == "001C"  # 4 * 3 + 16
    state = machine.run("V_RED_MAX f1, gp0, 1", vram={0: x}, v_mask=3)
    assert hexes(state.f[1]) == "0010"


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic", ["V_RED_SUM", "V_RED_MAX"])
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (4, Fault.MISALIGNED, "a multiple of 8"),
        (384, Fault.OUT_OF_RANGE, OUTSIDE),
        (0xFFFFFFF8, Fault.OUT_OF_RANGE, OUTSIDE),
    ],
)
def test_bad_rows_of_reductions(machine: Machine, mnemonic: str, gp1: int, code: Fault, limit: str) -> None:
    contents = {"vram": RAMP, "gp": {1: gp1}, "f": {2: 3}}
    machine.fault(f"{mnemonic} f2, gp1", code, operand="gp1", value=gp1, limit=limit, **contents)
    machine.fault(f"{mnemonic} f2, gp1, 1", code, operand="gp1", value=gp1, limit=limit, **contents)


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic, opcode", [("V_RED_SUM", 0x15), ("V_RED_MAX", 0x16)])
def test_reductions_into_registers_that_do_not_exist(machine: Machine, mnemonic: str, opcode: int) -> None:
    for number in (8, 15):
        machine.fault(
            word(opcode, rd=number, rs1=1),
            Fault.F_REGISTER,
            instruction=f"{mnemonic} f{number}, gp1",
            operand=f"f{number}",
            limit="f0 to f7",
            vram=RAMP,
        )
