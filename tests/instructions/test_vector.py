"""Lane-wise vector instructions (docs/machine.md section 4.3): rows of 8 lanes in two head slots of 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plena_jax import Fault

from .machine_helpers import F32, INF, RAMP, Machine, bf16, covers, hexes, misuses, row, same, word

VV = ("V_ADD_VV", "V_SUB_VV", "V_MUL_VV")
VF = ("V_ADD_VF", "V_SUB_VF", "V_MUL_VF", "V_MAX_VF", "V_MIN_VF")
V = ("V_EXP_V", "V_RECI_V")
OPCODES = {
    "V_ADD_VV": 0x0D,
    "V_ADD_VF": 0x0E,
    "V_SUB_VV": 0x0F,
    "V_SUB_VF": 0x10,
    "V_MUL_VV": 0x11,
    "V_MUL_VF": 0x12,
    "V_EXP_V": 0x13,
    "V_RECI_V": 0x14,
    "V_MAX_VF": 0x35,
    "V_MIN_VF": 0x36,
}

#: One float32 operation each; arguments are exact small numbers, so BF16 rounding does nothing.
VALUE: dict[str, Callable[[Any, Any], Any]] = {
    "V_ADD_VV": lambda a, b: a + b,
    "V_SUB_VV": lambda a, b: a - b,
    "V_MUL_VV": lambda a, b: a * b,
    "V_ADD_VF": lambda a, b: a + b,
    "V_SUB_VF": lambda a, b: a - b,
    "V_MUL_VF": lambda a, b: a * b,
    "V_MAX_VF": np.maximum,
    "V_MIN_VF": np.minimum,
}
A = np.array([3, -5, 7, 0, -2, 1.5, 8, -0.25], F32)
B = np.array([2, 4, -1, 6, -3, 0.5, -8, 0.25], F32)
#: Powers of two, whose exponentials and reciprocals are easy.
P = np.array([1, 2, 4, -8, 0.5, -0.25, 64, 1], F32)
RECIPROCAL = np.array([1, 0.5, 0.25, -0.125, 2, -4, 2.0**-6, 1], F32)

ROW = "a multiple of 8"
OUTSIDE = "up to 376 (1 of 48 rows from there)"


def line(mnemonic: str, d: str, a: str, b: str, mask: str = "") -> str:
    """Text with the second source in gp or f as the instruction has it, if it has one."""
    source = {"VV": f", gp{b}", "VF": f", f{b}"}.get(mnemonic[-2:], "")
    return f"{mnemonic} gp{d}, gp{a}{source}{mask and f', {mask}'}"


# -- what all have in common ------------------------------------------------------------------------------------------


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV)
def test_row_with_row(machine: Machine, mnemonic: str) -> None:
    vram = RAMP | {1: A, 2: B}
    state = machine.run(line(mnemonic, "1", "2", "3"), vram=vram, gp={1: 160, 2: 8, 3: 16})
    same(row(state, 20), VALUE[mnemonic](A, B))
    assert machine.written(state) == {"vram[20]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VF)
@pytest.mark.parametrize("f", [2.0, -0.75])
def test_row_with_scalar(machine: Machine, mnemonic: str, f: float) -> None:
    state = machine.run(line(mnemonic, "1", "2", "7"), vram=RAMP | {1: A}, gp={1: 160, 2: 8}, f={7: f, 1: 9, 2: 9})
    same(row(state, 20), VALUE[mnemonic](A, F32(f)))
    assert machine.written(state) == {"vram[20]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VF)
def test_f0_is_read_like_any_other_register(machine: Machine, mnemonic: str) -> None:
    state = machine.run(line(mnemonic, "1", "2", "0"), vram=RAMP | {1: A}, gp={1: 160, 2: 8}, f={0: 3})
    same(row(state, 20), VALUE[mnemonic](A, F32(3)))


@covers("V_RECI_V")
def test_reciprocal(machine: Machine) -> None:
    state = machine.run("V_RECI_V gp1, gp2", vram=RAMP | {1: P}, gp={1: 160, 2: 8})
    same(row(state, 20), RECIPROCAL)
    assert machine.written(state) == {"vram[20]"}


@covers("V_EXP_V")
def test_exponential(machine: Machine) -> None:
    # e**x for 0, 1, -1, 2, ln 2 = 0.69315 (BF16 0.6914), 10, -10, 0.5, rounded to BF16 by hand.
    x = [0, 1, -1, 2, 0.69140625, 10, -10, 0.5]
    state = machine.run("V_EXP_V gp1, gp2", vram=RAMP | {1: x}, gp={1: 160, 2: 8})
    # 1, 2.718, 0.3679, 7.389, 1.9965, 22026, 4.54e-5, 1.6487
    assert hexes(row(state, 20)) == "3F80 402E 3EBC 40EC 4000 46AC 383E 3FD3"
    assert machine.written(state) == {"vram[20]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV + VF + V)
def test_first_and_last_row(machine: Machine, mnemonic: str) -> None:
    x = P if mnemonic in V else A
    if mnemonic == "V_EXP_V":
        x = np.zeros(8, F32)
    for source, destination in ((0, 47), (47, 0)):
        gp = {1: 8 * destination, 2: 8 * source, 3: 8 * source}
        state = machine.run(line(mnemonic, "1", "2", "3"), vram={source: x, destination: RAMP[9]}, gp=gp, f={3: 2})
        second = x if mnemonic in VV else F32(2)
        expected = {"V_EXP_V": np.ones(8), "V_RECI_V": RECIPROCAL}.get(mnemonic)
        same(row(state, destination), VALUE[mnemonic](x, second) if expected is None else expected)
        assert machine.written(state) == {f"vram[{destination}]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV)
def test_destination_may_be_a_source(machine: Machine, mnemonic: str) -> None:
    contents = {"vram": {1: A, 2: B}, "gp": {1: 8, 2: 16}}
    same(row(machine.run(f"{mnemonic} gp1, gp1, gp2", **contents), 1), VALUE[mnemonic](A, B))
    same(row(machine.run(f"{mnemonic} gp2, gp1, gp2", **contents), 2), VALUE[mnemonic](A, B))
    same(row(machine.run(f"{mnemonic} gp1, gp1, gp1", **contents), 1), VALUE[mnemonic](A, A))
    # Different registers, same row.
    contents["gp"] = {1: 8, 2: 16, 3: 8}
    same(row(machine.run(f"{mnemonic} gp3, gp1, gp2", **contents), 1), VALUE[mnemonic](A, B))


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VF + V)
def test_destination_may_be_the_source(machine: Machine, mnemonic: str) -> None:
    x = np.zeros(8, F32) if mnemonic == "V_EXP_V" else P
    state = machine.run(line(mnemonic, "1", "1", "3"), vram={1: x}, gp={1: 8}, f={3: 2})
    expected = {"V_EXP_V": np.ones(8), "V_RECI_V": RECIPROCAL}.get(mnemonic)
    same(row(state, 1), VALUE[mnemonic](x, F32(2)) if expected is None else expected)
    assert machine.written(state) == {"vram[1]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV + VF + V)
@pytest.mark.parametrize("mask, active", [(0, ""), (1, "0"), (2, "1"), (3, "01"), (0xFFFFFFFC, ""), (0xFFFFFFFE, "1")])
def test_inactive_head_slots_take_the_lanes_of_rs1(machine: Machine, mnemonic: str, mask: int, active: str) -> None:
    x = np.array([0, -0.0, 0, 0, 0, 0, -0.0, 0], F32) if mnemonic == "V_EXP_V" else P
    contents = {"vram": {1: x, 2: B, 20: [99] * 8}, "gp": {1: 160, 2: 8, 3: 16}, "f": {3: 3}, "v_mask": mask}
    state = machine.run(line(mnemonic, "1", "2", "3", "1"), **contents)
    whole = row(machine.run(line(mnemonic, "1", "2", "3"), **contents), 20)
    expected = x.copy()
    for slot in active:
        lanes = slice(4 * int(slot), 4 * int(slot) + 4)
        expected[lanes] = whole[lanes]
    same(row(state, 20), expected)


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV + VF + V)
def test_the_mask_field_is_a_flag_and_not_a_register(machine: Machine, mnemonic: str) -> None:
    # gp2, gp5 and gp15 hold all ones; only V_MASK counts.
    vram = {1: [0] * 4 + [1] * 4} if mnemonic == "V_EXP_V" else {1: P, 2: B}
    contents = {"vram": vram, "gp": {1: 160, 2: 8, 3: 16, 5: 0xFFFFFFFF, 15: 0xFFFFFFFF}, "f": {3: 3}, "v_mask": 1}
    first = machine.run(line(mnemonic, "1", "2", "3", "1"), **contents)
    for flag in (2, 5, 8, 15):
        same(machine.run(line(mnemonic, "1", "2", "3", str(flag)), **contents).vram, first.vram)
    assert not np.array_equal(first.vram, machine.run(line(mnemonic, "1", "2", "3"), **contents).vram)


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic", VV + VF + V)
@pytest.mark.parametrize(
    "which, value, code",
    [
        (1, 1, Fault.MISALIGNED),
        (1, 48 * 8, Fault.OUT_OF_RANGE),
        (2, 12, Fault.MISALIGNED),
        (2, 0xFFFFFFF8, Fault.OUT_OF_RANGE),
        (3, 0xFFFFFFFF, Fault.MISALIGNED),
        (3, 0x80000000, Fault.OUT_OF_RANGE),
    ],
)
def test_bad_rows(machine: Machine, mnemonic: str, which: int, value: int, code: Fault) -> None:
    if which == 3 and mnemonic not in VV:
        which = 2
    misaligned = code is Fault.MISALIGNED
    machine.fault(
        line(mnemonic, "1", "2", "3", "1"),
        code,
        operand=f"gp{which}",
        value=value,
        limit=ROW if misaligned else OUTSIDE,
        rule="misaligned VRAM address" if misaligned else "VRAM address out of range",
        vram=RAMP,
        gp={1: 8, 2: 16, 3: 24} | {which: value},
        f={3: 2},
    )


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic", VF)
@pytest.mark.parametrize("number", [8, 15])
def test_there_are_eight_f_registers(machine: Machine, mnemonic: str, number: int) -> None:
    machine.fault(
        word(OPCODES[mnemonic], rd=1, rs1=2, rs2=number),
        Fault.F_REGISTER,
        instruction=f"{mnemonic} gp1, gp2, f{number}",
        operand=f"f{number}",
        limit="f0 to f7",
        vram=RAMP,
        gp={1: 8, 2: 16},
    )


# -- single operations, bit by bit ------------------------------------------------------------------------------------


def _bits(machine: Machine, text: str, a: str, b: str) -> str:
    """BF16 patterns of ``text`` on lanes ``a`` and ``b``, in as many rows as it takes."""
    x, y = bf16(a), bf16(b)
    vram = {0: np.pad(x, (0, 8 - len(x))), 1: np.pad(y, (0, 8 - len(y)))}
    state = machine.run(text, vram=vram, gp={1: 0, 2: 8, 3: 16})
    return hexes(row(state, 2)[: len(x)])


@covers("V_ADD_VV")
@pytest.mark.parametrize(
    "a, b, result",
    [
        ("3F80", "3B80", "3F80"),  # 1 + 2**-8 is halfway: to the even 1
        ("3F81", "3B80", "3F82"),  # ... and to the even 1 + 2**-6
        ("3F80", "3B81", "3F81"),  # just above halfway
        ("BF81", "BB80", "BF82"),
        ("7F7F", "7B00", "7F80"),  # largest + half a unit: to infinity
        ("7F7F", "7AFF", "7F7F"),  # less than half a unit
        ("7F7F", "7F7F", "7F80"),
        ("7F80", "FF80", "FFC0"),  # inf - inf: the default NaN
        ("7F80", "7F7F", "7F80"),
        ("7F81", "3F80", "7FC1"),  # a NaN operand made quiet
        ("3F80", "FFC3", "FFC3"),
        ("7FC1", "7FC2", "7FC1"),  # of two the first
        ("0000", "8000", "0000"),
        ("8000", "8000", "8000"),
        ("3F80", "BF80", "0000"),
        ("0001", "0001", "0002"),  # subnormal numbers
        ("0001", "8001", "0000"),
        ("8001", "0000", "8001"),
        ("007F", "0001", "0080"),  # into the normal range
        ("0080", "8001", "007F"),  # and out of it
        ("0080", "807F", "0001"),
        ("3F80", "0001", "3F80"),
    ],
)
def test_v_add_vv_bits(machine: Machine, a: str, b: str, result: str) -> None:
    assert _bits(machine, "V_ADD_VV gp3, gp1, gp2", a, b) == result


@covers("V_SUB_VV", "V_SUB_VF")
@pytest.mark.parametrize(
    "a, b, result, reverse",
    [
        ("4040", "3F80", "4000", "C000"),  # 3 - 1
        ("3F80", "3F80", "0000", "8000"),  # the reverse is -(a - f), which is -0 here
        ("0000", "0000", "0000", "8000"),
        ("8000", "0000", "8000", "0000"),
        ("0000", "8000", "0000", "8000"),
        ("8000", "8000", "0000", "8000"),
        ("7F80", "7F80", "FFC0", "7FC0"),  # inf - inf
        ("7F80", "FF80", "7F80", "FF80"),
        ("3F80", "7F80", "FF80", "7F80"),
        ("0003", "0001", "0002", "8002"),
        ("0001", "0080", "807F", "007F"),
        ("FF7F", "7F7F", "FF80", "7F80"),
        ("3F81", "BB80", "3F82", "BF82"),
    ],
)
def test_v_sub_bits(machine: Machine, a: str, b: str, result: str, reverse: str) -> None:
    assert _bits(machine, "V_SUB_VV gp3, gp1, gp2", a, b) == result
    contents = {"vram": {1: np.full(8, bf16(a)[0])}, "gp": {2: 8, 3: 16}, "f": {5: bf16(b)[0]}}
    assert hexes(row(machine.run("V_SUB_VF gp3, gp2, f5", **contents), 2)) == " ".join([result] * 8)
    got = hexes(row(machine.run("V_SUB_VF gp3, gp2, f5, 0, 1", **contents), 2))
    if reverse == "7FC0":  # a NaN of either sign
        assert {w[1:] for w in got.split()} == {"FC0"}
    else:
        assert got == " ".join([reverse] * 8)


@covers("V_SUB_VF")
@pytest.mark.parametrize("order", [1, 2, 15])
def test_v_sub_vf_with_any_other_order_is_f_minus_a(machine: Machine, order: int) -> None:
    contents = {"vram": {1: A}, "gp": {1: 160, 2: 8}, "f": {3: 2.5}, "v_mask": 2}
    state = machine.run(f"V_SUB_VF gp1, gp2, f3, 0, {order}", **contents)
    same(row(state, 20), [-0.5, 7.5, -4.5, 2.5, 4.5, 1, -5.5, 2.75])
    # Inactive lanes are a, neither a - f nor -a.
    state = machine.run(f"V_SUB_VF gp1, gp2, f3, 1, {order}", **contents)
    same(row(state, 20), [3, -5, 7, 0, 4.5, 1, -5.5, 2.75])
    state = machine.run("V_SUB_VF gp1, gp2, f3, 0, 0", **contents)
    same(row(state, 20), [0.5, -7.5, 4.5, -2.5, -4.5, -1, 5.5, -2.75])


@covers("V_MUL_VV", "V_MUL_VF")
@pytest.mark.parametrize(
    "a, b, result",
    [
        ("3F81", "3F81", "3F82"),  # (1 + 2**-7)**2 = 1 + 2**-6 + 2**-14
        ("3F83", "3F83", "3F86"),  # 1.0234375**2 = 1.04742: 1.046875 is nearer than 1.0546875
        ("3FFF", "3FFF", "407E"),  # 1.9921875**2 = 3.96881
        ("3FC0", "3F81", "3FC2"),  # 1.5 * 1.0078125 = 1.51171875, halfway between 3FC1 and 3FC2
        ("3FC0", "3F83", "3FC4"),  # 1.53515625, halfway between 3FC4 and 3FC5
        ("7F7F", "4000", "7F80"),
        ("FF7F", "4000", "FF80"),
        ("7F80", "0000", "FFC0"),  # inf * 0
        ("8000", "FF80", "FFC0"),
        ("FF80", "BF80", "7F80"),
        ("7FC5", "0000", "7FC5"),
        ("BF80", "0000", "8000"),
        ("8000", "8000", "0000"),
        ("0080", "3F00", "0040"),  # 2**-126 / 2
        ("0001", "3F00", "0000"),  # half the smallest number: to the even 0
        ("8001", "3F00", "8000"),
        ("0003", "3F00", "0002"),  # one and a half of it: to the even 2
        ("0001", "3F01", "0001"),  # a little more than half
        ("0001", "0001", "0000"),
        ("0001", "7F7F", "3CFF"),  # 2**-133 * 1.9921875 * 2**127
        ("2000", "1F80", "0040"),  # 2**-63 * 2**-64 = 2**-127
        ("1F81", "1F81", "0021"),  # 32.502 * 2**-133
        ("2080", "2000", "0100"),
    ],
)
def test_v_mul_bits(machine: Machine, a: str, b: str, result: str) -> None:
    assert _bits(machine, "V_MUL_VV gp3, gp1, gp2", a, b) == result
    contents = {"vram": {1: np.full(8, bf16(a)[0])}, "gp": {2: 8, 3: 16}, "f": {5: bf16(b)[0]}}
    assert hexes(row(machine.run("V_MUL_VF gp3, gp2, f5", **contents), 2)) == " ".join([result] * 8)


@covers("V_ADD_VF")
def test_v_add_vf_bits(machine: Machine) -> None:
    a = "3F80 3F81 BB80 0000 8000 7F80 FF80 7F81"
    contents = {"vram": {1: bf16(a)}, "gp": {2: 8, 3: 16}}
    state = machine.run("V_ADD_VF gp3, gp2, f1", f={1: 2.0**-8}, **contents)
    assert hexes(row(state, 2)) == "3F80 3F82 0000 3B80 3B80 7F80 FF80 7FC1"
    state = machine.run("V_ADD_VF gp3, gp2, f1", f={1: -0.0}, **contents)
    assert hexes(row(state, 2)) == "3F80 3F81 BB80 0000 8000 7F80 FF80 7FC1"
    state = machine.run("V_ADD_VF gp3, gp2, f1", f={1: INF}, **contents)
    assert hexes(row(state, 2)) == "7F80 7F80 7F80 7F80 7F80 7F80 FFC0 7FC1"
    state = machine.run("V_ADD_VF gp3, gp2, f1", f={1: bf16("0001")[0]}, **contents)
    assert hexes(row(state, 2)) == "3F80 3F81 BB80 0001 0001 7F80 FF80 7FC1"


@covers("V_MAX_VF", "V_MIN_VF")
@pytest.mark.parametrize(
    "f, largest, smallest",
    [
        ("3F80", "3F80 3F80 3F80 4000 3F80 7F80 3F80", "BF80 0000 8000 3F80 3F80 3F80 FF80"),
        # Zeros tie, and ties keep a.
        ("0000", "0000 0000 8000 4000 3F80 7F80 0000", "BF80 0000 8000 0000 0000 0000 FF80"),
        ("8000", "8000 0000 8000 4000 3F80 7F80 8000", "BF80 0000 8000 8000 8000 8000 FF80"),
        ("7F80", "7F80 7F80 7F80 7F80 7F80 7F80 7F80", "BF80 0000 8000 4000 3F80 7F80 FF80"),
        ("FF80", "BF80 0000 8000 4000 3F80 7F80 FF80", "FF80 FF80 FF80 FF80 FF80 FF80 FF80"),
        # Subnormal numbers are not zero.
        ("0001", "0001 0001 0001 4000 3F80 7F80 0001", "BF80 0000 8000 0001 0001 0001 FF80"),
        ("8001", "8001 0000 8000 4000 3F80 7F80 8001", "BF80 8001 8001 8001 8001 8001 FF80"),
    ],
)
def test_v_max_vf_and_v_min_vf_bits(machine: Machine, f: str, largest: str, smallest: str) -> None:
    a = "BF80 0000 8000 4000 3F80 7F80 FF80 7FC9"
    contents = {"vram": {1: bf16(a)}, "gp": {2: 8, 3: 16}, "f": {1: bf16(f)[0]}}
    # A lane of NaN stays as it is.
    assert hexes(row(machine.run("V_MAX_VF gp3, gp2, f1", **contents), 2)) == f"{largest} 7FC9"
    assert hexes(row(machine.run("V_MIN_VF gp3, gp2, f1", **contents), 2)) == f"{smallest} 7FC9"


@covers("V_MAX_VF", "V_MIN_VF")
def test_v_max_vf_and_v_min_vf_with_a_scalar_of_nan_give_nan(machine: Machine) -> None:
    contents = {"vram": {1: bf16("BF80 0000 8000 4000 3F80 7F80 FF80 7FC9")}, "gp": {2: 8, 3: 16}}
    for text in ("V_MAX_VF gp3, gp2, f1", "V_MIN_VF gp3, gp2, f1"):
        for nan in ("7FC0", "FFC3"):
            assert np.isnan(row(machine.run(text, f={1: bf16(nan)[0]}, **contents), 2)).all()
            # In slots that are not active lanes stay.
            masked = machine.run(f"{text}, 1", f={1: bf16(nan)[0]}, v_mask=2, **contents)
            assert hexes(row(masked, 2)[:4]) == "BF80 0000 8000 4000"
            assert np.isnan(row(masked, 2)[4:]).all()


@covers("V_MAX_VF", "V_MIN_VF")
def test_v_max_vf_and_v_min_vf_compare_subnormal_numbers(machine: Machine) -> None:
    contents = {"vram": {1: bf16("0001 0002 0003 8001 8002 8003 0000 8000")}, "gp": {2: 8, 3: 16}}
    state = machine.run("V_MAX_VF gp3, gp2, f1", f={1: bf16("0002")[0]}, **contents)
    assert hexes(row(state, 2)) == "0002 0002 0003 0002 0002 0002 0002 0002"
    state = machine.run("V_MIN_VF gp3, gp2, f1", f={1: bf16("8002")[0]}, **contents)
    assert hexes(row(state, 2)) == "8002 8002 8002 8002 8002 8003 8002 8002"


@covers("V_EXP_V")
def test_v_exp_v_saturates_keeps_nan_and_reaches_subnormal_numbers(machine: Machine) -> None:
    x = "42B0 42B1 7F80 C2B0 C2B1 FF80 7FC4 8000"  # 88, above, inf, -88, below, -inf, NaN, -0
    state = machine.run("V_EXP_V gp3, gp2", vram={1: bf16(x)}, gp={2: 8, 3: 16})
    assert hexes(row(state, 2)) == "7EF9 7EF9 7EF9 0042 0042 0042 7FC4 3F80"
    # -87 = C2AE: 1.6458e-38 is normal; -87.5 = C2AF: 9.982e-39 = 108.7 * 2**-133 is not.
    state = machine.run("V_EXP_V gp3, gp2", vram={1: bf16("C2AE C2AF 0001 8001 0080 3B00 BB00 42AF")}, gp={2: 8, 3: 16})
    # exp(2**-9) = 1.00195: to 1. exp(-2**-9) = 0.99805, halfway but for 1.9e-6 above 0.998046875 = 3F7F + 1/2 unit.
    assert hexes(row(state, 2)) == "00B3 006D 3F80 3F80 3F80 3F80 3F80 7E97"


@covers("V_EXP_V")
def test_v_exp_v_against_double_precision_on_256_inputs(machine: Machine) -> None:
    # All 128 fractions of [16, 32) and of [-2, -1): the exact value is never near halfway between two BF16 numbers.
    x = bf16(" ".join(f"{code:04X}" for code in [*range(0x4180, 0x4200), *range(0xBF80, 0xC000)])).reshape(32, 8)
    text = "\n".join("V_EXP_V gp1, gp1\nS_ADDI_INT gp1, gp1, 8" for _ in range(32))
    exact = np.exp(x.astype(np.float64))
    bits = exact.astype(F32).view(np.uint32)
    expected = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    same(machine.run(text, vram=x).vram[:32], expected.astype(np.uint32).view(F32))


@covers("V_RECI_V")
def test_v_reci_v_bits(machine: Machine) -> None:
    x = "0000 8000 7F80 FF80 7FC4 4040 C0E0 7F81"  # +-0, +-inf, NaN, 3, -7, a signalling NaN
    state = machine.run("V_RECI_V gp3, gp2", vram={1: bf16(x)}, gp={2: 8, 3: 16})
    assert hexes(row(state, 2)) == "7F80 FF80 0000 8000 7FC4 3EAB BE12 7FC1"
    # Subnormal operands: 2**-133 and 2**-128 overflow or not; and results: 1 / 2**127, 1 / largest.
    x = "0001 8001 0020 0040 7F00 FE80 7F7F 0080"
    state = machine.run("V_RECI_V gp3, gp2", vram={1: bf16(x)}, gp={2: 8, 3: 16})
    # 2**133, -2**133, 2**128: infinite; 2**127; 2**-127 = 0040; -2**-126; 1.0039 * 2**-128 = 32.1 units; 2**126
    assert hexes(row(state, 2)) == "7F80 FF80 7F80 7F00 0040 8080 0020 7E80"


@covers("V_RECI_V")
def test_v_reci_v_on_every_significand(machine: Machine) -> None:
    x = bf16(" ".join(f"{code:04X}" for code in range(0x3F80, 0x4000))).reshape(16, 8)
    text = "\n".join("V_RECI_V gp1, gp1\nS_ADDI_INT gp1, gp1, 8" for _ in range(16))
    bits = (F32(1) / x).view(np.uint32)
    expected = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    same(machine.run(text, vram=x).vram[:16], expected.astype(np.uint32).view(F32))


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", VV + VF + ("V_RECI_V",))
def test_inactive_lanes_pass_every_bit_through(machine: Machine, mnemonic: str) -> None:
    x = "7F81 FFFF 8000 0001 7F80 FF80 8001 7FC7"
    contents = {"vram": {1: bf16(x), 2: B}, "gp": {1: 160, 2: 8, 3: 16}, "f": {3: 1}, "v_mask": 0}
    assert hexes(row(machine.run(line(mnemonic, "1", "2", "3", "1"), **contents), 20)) == x


@covers("V_EXP_V")
def test_inactive_lanes_of_v_exp_v_are_clamped_and_nothing_else(machine: Machine) -> None:
    contents = {"gp": {2: 8, 3: 16}, "v_mask": 0}
    x = "7FC1 FFC3 8000 0000 7F80 FF80 42B1 C2B1"
    state = machine.run("V_EXP_V gp3, gp2, 1", vram={1: bf16(x)}, **contents)
    assert hexes(row(state, 2)) == "7FC1 FFC3 8000 0000 42B0 C2B0 42B0 C2B0"
    x = "42B0 C2B0 42AF C2AF 3F80 BF81 0080 8080"
    assert hexes(row(machine.run("V_EXP_V gp3, gp2, 1", vram={1: bf16(x)}, **contents), 2)) == x


@covers("V_EXP_V")
def test_subnormal_inactive_lanes_of_v_exp_v_are_not_flushed(machine: Machine) -> None:
    x = "0001 8001 007F 807F 0040 8040 0002 8002"
    state = machine.run("V_EXP_V gp3, gp2, 1", vram={1: bf16(x)}, gp={2: 8, 3: 16}, v_mask=0)
    assert hexes(row(state, 2)) == x


# -- V_SHFT_V ---------------------------------------------------------------------------------------------------------


@covers("V_SHFT_V")
@pytest.mark.parametrize("n", [0, 1, 3, 7, 8, 9, 31, 32, 0x80000000, 0xFFFFFFFF])
def test_v_shft_v_moves_to_higher_lanes(machine: Machine, n: int) -> None:
    state = machine.run("V_SHFT_V gp1, gp2, gp3", vram=RAMP | {20: [99] * 8}, gp={1: 160, 2: 8, 3: n})
    shown = min(n, 8)
    same(row(state, 20), [0] * shown + list(range(11, 19 - shown)))
    assert machine.written(state) == {"vram[20]"}


@covers("V_SHFT_V")
def test_v_shft_v_keeps_bits_fills_with_positive_zero_and_has_no_mask(machine: Machine) -> None:
    vram = {1: bf16("8000 7F81 FFFF 0001 8001 FF80 7F80 7FC7"), 2: bf16("8000 8000 8000 8000 8000 8000 8000 8000")}
    state = machine.run("V_SHFT_V gp1, gp1, gp2", vram=vram, gp={1: 8, 2: 2}, v_mask=0)
    assert hexes(row(state, 1)) == "0000 0000 8000 7F81 FFFF 0001 8001 FF80"
    # Bits of the mask field are nobody's here.
    state = machine.run(word(0x32, rd=1, rs1=1, rs2=2, rs3=1), vram=vram, gp={1: 8, 2: 2}, v_mask=0)
    assert hexes(row(state, 1)) == "0000 0000 8000 7F81 FFFF 0001 8001 FF80"


@covers("V_SHFT_V")
def test_v_shft_v_registers_may_be_the_same(machine: Machine) -> None:
    # gp1 is 0: row 0, and no shift.
    state = machine.run("V_SHFT_V gp1, gp1, gp1", vram=RAMP)
    same(row(state, 0), RAMP[0])
    # gp2 is 8: row 1, and a shift by 8.
    state = machine.run("V_SHFT_V gp1, gp2, gp2", vram=RAMP, gp={1: 376, 2: 8})
    same(row(state, 47), [0] * 8)
    state = machine.run("V_SHFT_V gp1, gp2, gp3", vram={47: RAMP[3]}, gp={1: 0, 2: 376, 3: 1})
    same(row(state, 0), [0, *RAMP[3][:7]])


@misuses("V_SHFT_V")
@pytest.mark.parametrize(
    "which, value, code, limit",
    [
        (1, 4, Fault.MISALIGNED, ROW),
        (1, 384, Fault.OUT_OF_RANGE, OUTSIDE),
        (2, 1, Fault.MISALIGNED, ROW),
        (2, 384, Fault.OUT_OF_RANGE, OUTSIDE),
    ],
)
def test_bad_rows_of_v_shft_v(machine: Machine, which: int, value: int, code: Fault, limit: str) -> None:
    gp = {1: 160, 2: 8, 3: 1} | {which: value}
    machine.fault("V_SHFT_V gp1, gp2, gp3", code, operand=f"gp{which}", value=value, limit=limit, vram=RAMP, gp=gp)
