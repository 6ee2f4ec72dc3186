"""The scalar FP unit (docs/machine.md section 4.4): eight BF16 registers, 1024 BF16 entries of FP SRAM."""

from __future__ import annotations

import numpy as np
import pytest

from plena_jax import Fault

from .machine_helpers import F32, INF, NAN, RAMP, Machine, bf16, covers, hexes, misuses, row, same, word

BINARY = {"S_ADD_FP": 0x17, "S_SUB_FP": 0x18, "S_MAX_FP": 0x19, "S_MUL_FP": 0x1A}
UNARY = {"S_EXP_FP": 0x1B, "S_RECI_FP": 0x1C, "S_SQRT_FP": 0x1D}


def _lines(mnemonic: str) -> tuple[str, str]:
    """``f3 = f1 op f2`` and ``f1 = f1 op f1``."""
    if mnemonic in BINARY:
        return f"{mnemonic} f3, f1, f2", f"{mnemonic} f1, f1, f1"
    return f"{mnemonic} f3, f1", f"{mnemonic} f1, f1"


# -- arithmetic -------------------------------------------------------------------------------------------------------


@covers("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, a, b, result",
    [
        ("S_ADD_FP", 3, -0.5, 2.5),
        ("S_SUB_FP", 3, -0.5, 3.5),
        ("S_MUL_FP", 3, -0.5, -1.5),
        ("S_MAX_FP", 3, -0.5, 3),
        ("S_MAX_FP", -0.5, 3, 3),
        ("S_EXP_FP", 0, 9, 1),
        ("S_RECI_FP", -4, 9, -0.25),
        ("S_SQRT_FP", 2.25, 9, 1.5),
    ],
)
def test_value(machine: Machine, mnemonic: str, a: float, b: float, result: float) -> None:
    state = machine.run(_lines(mnemonic)[0], f={1: a, 2: b, 3: 77, 7: 5})
    same(state.f[3], result)
    assert machine.written(state) == {"f[3]"}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", [*BINARY, *UNARY])
def test_destination_may_be_the_source(machine: Machine, mnemonic: str) -> None:
    state = machine.run(_lines(mnemonic)[1], f={1: 4})
    expected = {
        "S_ADD_FP": 8,
        "S_SUB_FP": 0,
        "S_MAX_FP": 4,
        "S_MUL_FP": 16,
        "S_EXP_FP": bf16("425A")[0],  # e**4 = 54.598
        "S_RECI_FP": 0.25,
        "S_SQRT_FP": 2,
    }
    same(state.f[1], expected[mnemonic])


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", [*BINARY, *UNARY])
def test_f0_is_a_source_like_any_other_and_f7_the_last(machine: Machine, mnemonic: str) -> None:
    sources = "f0, f0" if mnemonic in BINARY else "f0"
    state = machine.run(f"{mnemonic} f7, {sources}", f={0: 0.25})
    expected = {
        "S_ADD_FP": 0.5,
        "S_SUB_FP": 0,
        "S_MAX_FP": 0.25,
        "S_MUL_FP": 0.0625,
        "S_EXP_FP": bf16("3FA4")[0],  # 1.2840
        "S_RECI_FP": 4,
        "S_SQRT_FP": 0.5,
    }
    same(state.f[7], expected[mnemonic])


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", [*BINARY, *UNARY])
def test_into_f0_nothing_happens_at_no_cost(machine: Machine, mnemonic: str) -> None:
    opcode = (BINARY | UNARY)[mnemonic]
    state = machine.run(word(opcode, rd=0, rs1=1, rs2=2), f={0: 5, 1: 2, 2: 3})
    assert machine.written(state) == set()
    assert (state.latency_cycles, state.instructions) == (0, 1)
    # Not even operands are looked at: f9 and f15 do not exist.
    state = machine.run(word(opcode, rd=0, rs1=9, rs2=15), f={0: 5})
    assert machine.written(state) == set()


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic", [*BINARY, *UNARY])
def test_there_are_eight_f_registers(machine: Machine, mnemonic: str) -> None:
    opcode = (BINARY | UNARY)[mnemonic]
    cases = [(8, 1, 2, "f8"), (15, 9, 2, "f15"), (1, 9, 2, "f9")] + [(1, 2, 10, "f10")] * (mnemonic in BINARY)
    for rd, rs1, rs2, named in cases:
        text = f"{mnemonic} f{rd}, f{rs1}" + (f", f{rs2}" if mnemonic in BINARY else "")
        machine.fault(
            word(opcode, rd=rd, rs1=rs1, rs2=rs2 if mnemonic in BINARY else 0),
            Fault.F_REGISTER,
            instruction=text,
            operand=named,
            limit="f0 to f7",
            rule="the machine has eight f registers",
            f={1: 2, 2: 3},
        )


def _binary(machine: Machine, mnemonic: str, a: str, b: str) -> str:
    return hexes(machine.run(_lines(mnemonic)[0], f={1: bf16(a)[0], 2: bf16(b)[0]}).f[3])


@covers("S_ADD_FP", "S_SUB_FP")
@pytest.mark.parametrize(
    "a, b, total, difference",
    [
        ("3F80", "3B80", "3F80", "3F7F"),  # 1 +- 2**-8: below 1 the step is half as large
        ("3F81", "3B80", "3F82", "3F80"),  # 1.0117, a tie; 1.0039, a tie
        ("7F7F", "7B00", "7F80", "7F7E"),
        ("7F80", "7F80", "7F80", "FFC0"),
        ("7F80", "FF80", "FFC0", "7F80"),
        ("7F81", "3F80", "7FC1", "7FC1"),
        ("3F80", "FF84", "FFC4", "FFC4"),
        ("0000", "8000", "0000", "0000"),
        ("8000", "0000", "0000", "8000"),
        ("8000", "8000", "8000", "0000"),
        ("0001", "0001", "0002", "0000"),
        ("0080", "0001", "0081", "007F"),
        ("8001", "0080", "007F", "8081"),
    ],
)
def test_s_add_fp_and_s_sub_fp_bits(machine: Machine, a: str, b: str, total: str, difference: str) -> None:
    assert _binary(machine, "S_ADD_FP", a, b) == total
    assert _binary(machine, "S_SUB_FP", a, b) == difference


@covers("S_MUL_FP")
@pytest.mark.parametrize(
    "a, b, result",
    [
        ("3FC0", "3F81", "3FC2"),  # 1.51171875, a tie
        ("3FC0", "3F83", "3FC4"),  # 1.53515625, a tie
        ("7F7F", "C000", "FF80"),
        ("7F80", "8000", "FFC0"),
        ("7F82", "0000", "7FC2"),
        ("8000", "3F80", "8000"),
        ("0080", "3F00", "0040"),
        ("0003", "3F00", "0002"),
        ("0001", "BF00", "8000"),
        ("0001", "7F00", "3C80"),  # 2**-133 * 2**127
    ],
)
def test_s_mul_fp_bits(machine: Machine, a: str, b: str, result: str) -> None:
    assert _binary(machine, "S_MUL_FP", a, b) == result


@covers("S_MAX_FP")
@pytest.mark.parametrize(
    "a, b, result",
    [
        ("7FC1", "7F80", "7FC1"),  # a NaN in the first place stays
        ("7F81", "3F80", "7FC1"),  # and is made quiet
        ("3F80", "7FC1", "3F80"),  # in the second it is ignored
        ("0000", "8000", "0000"),  # ties keep the first
        ("8000", "0000", "8000"),
        ("FF80", "FF7F", "FF7F"),
        ("7F80", "7F7F", "7F80"),
        ("0000", "0001", "0001"),
        ("8001", "8002", "8001"),
        ("8002", "8001", "8001"),
        ("8001", "8000", "8000"),
        ("0001", "0000", "0001"),
    ],
)
def test_s_max_fp_bits(machine: Machine, a: str, b: str, result: str) -> None:
    assert _binary(machine, "S_MAX_FP", a, b) == result


def _unary(machine: Machine, mnemonic: str, cases: str) -> None:
    for case in cases.split(", "):
        a, result = case.split()
        assert hexes(machine.run(f"{mnemonic} f3, f1", f={1: bf16(a)[0]}).f[3]) == result, case


@covers("S_EXP_FP")
def test_s_exp_fp_bits(machine: Machine) -> None:
    # 1, -1, 10, -10; 88 and beyond; -88 and beyond; NaN; zeros; subnormal operands and results
    _unary(machine, "S_EXP_FP", "3F80 402E, BF80 3EBC, 4120 46AC, C120 383E")
    _unary(machine, "S_EXP_FP", "42B0 7EF9, 42B1 7EF9, 7F80 7EF9, C2B0 0042, C2B1 0042, FF80 0042")
    _unary(machine, "S_EXP_FP", "7FC1 7FC1, FF81 FFC1, 0000 3F80, 8000 3F80, 0001 3F80, C2AE 00B3, C2AF 006D")


@covers("S_RECI_FP")
def test_s_reci_fp_bits(machine: Machine) -> None:
    _unary(machine, "S_RECI_FP", "0000 7F80, 8000 FF80, 7F80 0000, FF80 8000, 7FC2 7FC2, FF82 FFC2")
    _unary(machine, "S_RECI_FP", "4040 3EAB, C0E0 BE12, 0001 7F80, 0040 7F00, 8020 FF80, 7F00 0040, FE80 8080")


@covers("S_SQRT_FP")
def test_s_sqrt_fp_bits(machine: Machine) -> None:
    # 2, 3, 0.5; zeros keep their sign; negative numbers have no root; 2**-133 has 2**-66.5, 2**-132 has 2**-66
    _unary(machine, "S_SQRT_FP", "4000 3FB5, 4040 3FDE, 3F00 3F35, 0000 0000, 8000 8000, 7F80 7F80")
    _unary(machine, "S_SQRT_FP", "BF80 FFC0, FF80 FFC0, 8001 FFC0, 7FC3 7FC3, FF83 FFC3")
    _unary(machine, "S_SQRT_FP", "0001 1E35, 0002 1E80, 0080 2000, 7F7F 5F7F")


@covers("S_SQRT_FP")
def test_s_sqrt_fp_on_many_numbers(machine: Machine) -> None:
    for codes in (range(0x3F80, 0x4000), range(0x4000, 0x4080)):
        x = bf16(" ".join(f"{code:04X}" for code in codes))
        text = "\n".join(f"S_LD_FP f1, gp0, {i}\nS_SQRT_FP f1, f1\nS_ST_FP f1, gp0, {i}" for i in range(128))
        bits = np.sqrt(x).view(np.uint32)
        expected = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        same(machine.run(text, fp_sram=x).fp_sram[:128], expected.astype(np.uint32).view(F32))


# -- FP SRAM ----------------------------------------------------------------------------------------------------------


@covers("S_LD_FP")
def test_s_ld_fp(machine: Machine) -> None:
    state = machine.run("S_LD_FP f7, gp1, 5", fp_sram={9: 1.5, 14: -2.5}, gp={1: 9}, f={7: 1})
    same(state.f[7], -2.5)
    assert machine.written(state) == {"f[7]"}


@covers("S_LD_FP")
def test_s_ld_fp_writes_f0_too(machine: Machine) -> None:
    state = machine.run("S_LD_FP f0, gp0, 3\nS_ADD_FP f1, f0, f0", fp_sram={3: 3})
    same(state.f[:2], [3, 6])
    assert machine.written(state) == {"f[0]", "f[1]"}


@covers("S_ST_FP")
def test_s_st_fp(machine: Machine) -> None:
    state = machine.run("S_ST_FP f7, gp1, 5", fp_sram={14: 3}, gp={1: 9}, f={7: -2.5})
    same(state.fp_sram[14], -2.5)
    assert machine.written(state) == {"fp_sram[14]"}
    state = machine.run("S_ST_FP f0, gp0, 0", f={0: 6})
    same(state.fp_sram[0], 6)


@covers("S_LD_FP", "S_ST_FP")
@pytest.mark.parametrize("gp1, imm, entry", [(0, 0, 0), (1023, 0, 1023), (0, 1023, 1023), (0xFFFFFFFF, 2, 1)])
def test_addresses_of_s_ld_fp_and_s_st_fp(machine: Machine, gp1: int, imm: int, entry: int) -> None:
    contents = {"fp_sram": {entry: 3}, "gp": {1: gp1}, "f": {2: 7}}
    same(machine.run(f"S_LD_FP f1, gp1, {imm}", **contents).f[1], 3)
    state = machine.run(f"S_ST_FP f2, gp1, {imm}", **contents)
    assert machine.written(state) == {f"fp_sram[{entry}]"}
    same(state.fp_sram[entry], 7)


@covers("S_LD_FP", "S_ST_FP")
def test_loads_and_stores_move_every_bit(machine: Machine) -> None:
    x = "0001 8001 8000 7F80 FF80 7FC1 FFFF 007F"
    loads = "\n".join(f"S_LD_FP f{i}, gp0, {i}" for i in range(8))
    stores = "\n".join(f"S_ST_FP f{i}, gp0, {20 + i}" for i in range(8))
    state = machine.run(f"{loads}\n{stores}", fp_sram=bf16(x))
    assert hexes(state.f) == x
    assert hexes(state.fp_sram[20:28]) == x


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic, opcode", [("S_LD_FP", 0x1E), ("S_ST_FP", 0x1F)])
def test_bad_operands_of_s_ld_fp_and_s_st_fp(machine: Machine, mnemonic: str, opcode: int) -> None:
    for register in (0, 3):
        for gp1, imm in ((1024, 0), (1, 1023), (0x80000000, 0), (0, 262143), (0xFFFFFFFF, 1025)):
            machine.fault(
                f"{mnemonic} f{register}, gp1, {imm}",
                Fault.OUT_OF_RANGE,
                operand="gp1 + imm",
                value=(gp1 + imm) % 2**32,
                limit="up to 1023 (1 of 1024 entries from there)",
                rule="FP SRAM address out of range",
                fp_sram=[2] * 8,
                f={3: 5},
                gp={1: gp1},
            )
    machine.fault(
        word(opcode, rd=8, rs1=1),
        Fault.F_REGISTER,
        instruction=f"{mnemonic} f8, gp1, 0",
        operand="f8",
        limit="f0 to f7",
    )


# -- S_MAP_V_FP -------------------------------------------------------------------------------------------------------


@covers("S_MAP_V_FP")
@pytest.mark.parametrize("first", [0, 1, 5, 7, 8, 509, 1016])
def test_s_map_v_fp_copies_a_window_to_a_row(machine: Machine, first: int) -> None:
    entries = np.arange(1024) % 256
    gp = {1: 376, 2: first // 2}
    state = machine.run(f"S_MAP_V_FP gp1, gp2, {first - first // 2}", vram=RAMP, fp_sram=entries.astype(F32), gp=gp)
    same(row(state, 47), entries[first : first + 8])
    assert machine.written(state) == {"vram[47]"}


@covers("S_MAP_V_FP")
def test_s_map_v_fp_moves_every_bit_and_its_address_wraps(machine: Machine) -> None:
    x = "0001 8001 8000 7F80 FF80 7FC1 FFFF 007F"
    state = machine.run("S_MAP_V_FP gp1, gp2, 4", fp_sram=bf16(f"0000 {x}"), gp={1: 8, 2: 0xFFFFFFFD})
    assert hexes(row(state, 1)) == x
    state = machine.run("S_MAP_V_FP gp1, gp1, 0", fp_sram=[*range(16)], gp={1: 8})
    same(row(state, 1), range(8, 16))


@misuses("S_MAP_V_FP")
@pytest.mark.parametrize(
    "gp, code, operand, value, limit",
    [
        ({1: 8, 2: 1015}, Fault.OUT_OF_RANGE, "gp2 + imm", 1017, "up to 1016 (8 of 1024 entries from there)"),
        ({1: 8, 2: 1022}, Fault.OUT_OF_RANGE, "gp2 + imm", 1024, "up to 1016 (8 of 1024 entries from there)"),
        (
            {1: 8, 2: 0xFFFFFFF0},
            Fault.OUT_OF_RANGE,
            "gp2 + imm",
            0xFFFFFFF2,
            "up to 1016 (8 of 1024 entries from there)",
        ),
        ({1: 9, 2: 0}, Fault.MISALIGNED, "gp1", 9, "a multiple of 8"),
        ({1: 384, 2: 0}, Fault.OUT_OF_RANGE, "gp1", 384, "up to 376 (1 of 48 rows from there)"),
    ],
)
def test_bad_addresses_of_s_map_v_fp(
    machine: Machine, gp: dict[int, int], code: Fault, operand: str, value: int, limit: str
) -> None:
    contents = {"vram": RAMP, "fp_sram": [*range(16)], "gp": gp}
    machine.fault("S_MAP_V_FP gp1, gp2, 2", code, operand=operand, value=value, limit=limit, **contents)


@covers("S_LD_FP", "S_ADD_FP", "S_ST_FP", "S_MUL_FP")
def test_a_chain_of_operations_rounds_at_each(machine: Machine) -> None:
    # ((1 + 2**-8) + 2**-8): each addition alone rounds to 1. 3 * (1 + 2**-7) = 3.0234375 rounds to 3.03125.
    text = """
        S_LD_FP f1, gp0, 0
        S_LD_FP f2, gp0, 1
        S_ADD_FP f1, f1, f2
        S_ADD_FP f1, f1, f2
        S_ST_FP f1, gp0, 4
        S_LD_FP f3, gp0, 2
        S_LD_FP f4, gp0, 3
        S_MUL_FP f3, f3, f4
        S_ST_FP f3, gp0, 5
    """
    state = machine.run(text, fp_sram=[1, 2.0**-8, 3, 1 + 2.0**-7])
    same(state.fp_sram[4:6], [1, 3.03125])


@covers("S_ADD_FP")
def test_infinity_and_nan_pass_through_registers(machine: Machine) -> None:
    state = machine.run("S_ADD_FP f3, f1, f2\nS_SUB_FP f4, f3, f3\nS_MAX_FP f5, f2, f4", f={1: INF, 2: 1})
    same(state.f[3], INF)
    assert np.isnan(np.asarray(state.f)[4])
    same(state.f[5], 1)
    assert np.isnan(float(machine.run("S_ADD_FP f3, f1, f2", f={1: NAN, 2: INF}).f[3]))
