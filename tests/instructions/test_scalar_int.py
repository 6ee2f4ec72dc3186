"""The scalar INT unit (docs/machine.md section 4.5): sixteen 32-bit registers, 1024 entries of INT SRAM."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from plena_jax import Fault

from .machine_helpers import Machine, covers, misuses

M32 = 0xFFFFFFFF
NUMBERS = (0, 1, 3, 0x7FFFFFFF, 0x80000000, 0x12345678, 0xFFFFFFFE, 0xFFFFFFFF)
THREE: dict[str, Callable[[int, int], int]] = {
    "S_ADD_INT": lambda a, b: a + b,
    "S_SUB_INT": lambda a, b: a - b,
    "S_MUL_INT": lambda a, b: a * b,
}


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", THREE)
def test_three_registers_modulo_2_to_the_32(machine: Machine, mnemonic: str) -> None:
    for a in NUMBERS:
        for b in NUMBERS:
            state = machine.run(f"{mnemonic} gp15, gp1, gp2", gp={1: a, 2: b, 15: 0xDEAD})
            # Python integers have no limit.
            assert int(state.gp[15]) == THREE[mnemonic](a, b) % 2**32, (a, b)
            assert machine.written(state) == {"gp[15]"}


@covers("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, a, b, result",
    [
        ("S_ADD_INT", 0xFFFFFFFF, 1, 0),
        ("S_ADD_INT", 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFE),
        ("S_SUB_INT", 0, 1, 0xFFFFFFFF),
        ("S_SUB_INT", 5, 0xFFFFFFFF, 6),
        ("S_MUL_INT", 0x10000, 0x10000, 0),
        ("S_MUL_INT", 0xFFFFFFFF, 0xFFFFFFFF, 1),
        ("S_MUL_INT", 0x10001, 0xFFFF, 0xFFFFFFFF),
    ],
)
def test_wrap_around(machine: Machine, mnemonic: str, a: int, b: int, result: int) -> None:
    assert int(machine.run(f"{mnemonic} gp3, gp1, gp2", gp={1: a, 2: b}).gp[3]) == result


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", THREE)
def test_destination_may_be_a_source(machine: Machine, mnemonic: str) -> None:
    op = THREE[mnemonic]
    assert int(machine.run(f"{mnemonic} gp1, gp1, gp2", gp={1: 30, 2: 7}).gp[1]) == op(30, 7)
    assert int(machine.run(f"{mnemonic} gp2, gp1, gp2", gp={1: 30, 2: 7}).gp[2]) == op(30, 7)
    assert int(machine.run(f"{mnemonic} gp1, gp1, gp1", gp={1: 30}).gp[1]) == op(30, 30)


@covers("S_ADDI_INT")
@pytest.mark.parametrize(
    "a, imm, result",
    [
        (0, 0, 0),
        (5, 262143, 262148),  # the immediate is not sign-extended
        (0xFFFFFFFF, 1, 0),
        (0xFFFFFFFF, 262143, 262142),
        (0x80000000, 131072, 0x80020000),
    ],
)
def test_s_addi_int(machine: Machine, a: int, imm: int, result: int) -> None:
    state = machine.run(f"S_ADDI_INT gp2, gp1, {imm}", gp={1: a, 2: 0xDEAD})
    assert int(state.gp[2]) == result
    assert machine.written(state) == {"gp[2]"}
    assert int(machine.run(f"S_ADDI_INT gp1, gp1, {imm}", gp={1: a}).gp[1]) == result


@covers("S_LUI_INT")
@pytest.mark.parametrize(
    "imm, result",
    [(0, 0), (1, 4096), (0xFFFFF, 0xFFFFF000), (0x100000, 0), (0x200001, 4096), (0x3FFFFF, 0xFFFFF000)],
)
def test_s_lui_int_loses_the_top_two_bits(machine: Machine, imm: int, result: int) -> None:
    state = machine.run(f"S_LUI_INT gp9, {imm}", gp={9: 0xDEAD})
    assert int(state.gp[9]) == result
    assert machine.written(state) == {"gp[9]"}


@covers("S_LUI_INT", "S_ADDI_INT")
def test_a_constant_of_32_bits_takes_two_instructions(machine: Machine) -> None:
    state = machine.run(f"S_LUI_INT gp1, {0x89ABCDEF >> 12}\nS_ADDI_INT gp1, gp1, {0x89ABCDEF & 0xFFF}")
    assert int(state.gp[1]) == 0x89ABCDEF


@covers("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, text, value",
    [
        ("S_ADD_INT", "S_ADD_INT gp0, gp1, gp2", 11),
        ("S_SUB_INT", "S_SUB_INT gp0, gp1, gp2", 5),
        ("S_MUL_INT", "S_MUL_INT gp0, gp1, gp2", 24),
        ("S_ADDI_INT", "S_ADDI_INT gp0, gp0, 7", 7),
        ("S_LUI_INT", "S_LUI_INT gp0, 1", 4096),
        ("S_LD_INT", "S_LD_INT gp0, gp1, 0", 99),
    ],
)
def test_gp0_is_an_ordinary_register(machine: Machine, mnemonic: str, text: str, value: int) -> None:
    state = machine.run(f"{text}\nS_ADD_INT gp4, gp0, gp0", gp={1: 8, 2: 3}, int_sram={8: 99})
    assert np.asarray(state.gp)[[0, 4]].tolist() == [value, 2 * value]


@covers("S_LD_INT")
def test_s_ld_int(machine: Machine) -> None:
    state = machine.run("S_LD_INT gp2, gp1, 5", int_sram={9: 1, 14: 0xFFFFFFF0}, gp={1: 9, 2: 3})
    assert int(state.gp[2]) == 0xFFFFFFF0
    assert machine.written(state) == {"gp[2]"}
    state = machine.run("S_LD_INT gp1, gp1, 5", int_sram={14: 77}, gp={1: 9})
    assert int(state.gp[1]) == 77


@covers("S_ST_INT")
def test_s_st_int(machine: Machine) -> None:
    state = machine.run("S_ST_INT gp2, gp1, 5", int_sram={14: 1}, gp={1: 9, 2: 0xFFFFFFF0})
    assert int(state.int_sram[14]) == 0xFFFFFFF0
    assert machine.written(state) == {"int_sram[14]"}
    # Data and address may be the same register.
    state = machine.run("S_ST_INT gp1, gp1, 5", gp={1: 9})
    assert int(state.int_sram[14]) == 9
    # gp0 is stored as it is.
    state = machine.run("S_ST_INT gp0, gp1, 0", gp={0: 6, 1: 3})
    assert int(state.int_sram[3]) == 6


@covers("S_LD_INT", "S_ST_INT")
@pytest.mark.parametrize(
    "gp1, imm, entry", [(0, 0, 0), (1023, 0, 1023), (0, 1023, 1023), (0xFFFFFFFF, 2, 1), (0xFFFC0001, 262143, 0)]
)
def test_addresses(machine: Machine, gp1: int, imm: int, entry: int) -> None:
    contents = {"int_sram": {entry: 55}, "gp": {1: gp1, 2: 66}}
    assert int(machine.run(f"S_LD_INT gp3, gp1, {imm}", **contents).gp[3]) == 55
    state = machine.run(f"S_ST_INT gp2, gp1, {imm}", **contents)
    assert machine.written(state) == {f"int_sram[{entry}]"}
    assert int(state.int_sram[entry]) == 66


@covers("S_LD_INT", "S_ST_INT")
def test_a_load_sees_the_stores_before_it(machine: Machine) -> None:
    text = "S_ST_INT gp1, gp0, 4\nS_LD_INT gp2, gp0, 4\nS_ST_INT gp3, gp0, 4\nS_LD_INT gp4, gp0, 4"
    state = machine.run(text, gp={1: 10, 3: 30}, int_sram={4: 1})
    assert np.asarray(state.gp)[[2, 4]].tolist() == [10, 30]


@covers("S_LD_INT")
def test_pointers_are_followed(machine: Machine) -> None:
    text = "\n".join(["S_LD_INT gp1, gp1, 0"] * 4)
    assert int(machine.run(text, int_sram={0: 7, 7: 1023, 1023: 3, 3: 500}).gp[1]) == 500


@misuses("mnemonic")
@pytest.mark.parametrize("mnemonic", ["S_LD_INT", "S_ST_INT"])
@pytest.mark.parametrize("gp1, imm", [(1024, 0), (1, 1023), (0x80000000, 0), (0, 262143), (M32, 0), (M32, 1025)])
def test_bad_addresses(machine: Machine, mnemonic: str, gp1: int, imm: int) -> None:
    machine.fault(
        f"{mnemonic} gp2, gp1, {imm}",
        Fault.OUT_OF_RANGE,
        operand="gp1 + imm",
        value=(gp1 + imm) % 2**32,
        limit="up to 1023 (1 of 1024 entries from there)",
        rule="INT SRAM address out of range",
        int_sram=[3] * 1024,
        gp={1: gp1, 2: 5},
    )


@misuses("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, text",
    [
        ("S_ADD_INT", "S_ADD_INT gp2, gp3, gp3"),
        ("S_SUB_INT", "S_SUB_INT gp2, gp0, gp3"),
        ("S_MUL_INT", "S_MUL_INT gp2, gp3, gp3"),
        ("S_ADDI_INT", "S_ADDI_INT gp2, gp3, 5"),
        ("S_LUI_INT", "S_LUI_INT gp2, 5"),
    ],
)
def test_no_operand_of_integer_arithmetic_is_bad_but_the_loop_guard_stops_it(
    plain: Machine, mnemonic: str, text: str
) -> None:
    # Four instructions may run in an iteration of an open loop; this is the fifth.
    plain.fault(
        f"C_LOOP_START gp1, 2\nS_ADDI_INT gp4, gp4, 1\n{text}\n{text}\n{text}\n{text}",
        Fault.LOOP_GUARD,
        limit="4 (MAX_LOOP_INSTRUCTIONS)",
        rule="an iteration of an open loop has executed too many instructions",
        gp={3: 3},
    )


@covers("S_ADD_INT", "S_SUB_INT")
def test_every_register_can_be_named(machine: Machine) -> None:
    text = "\n".join(f"S_ADDI_INT gp{i}, gp{(i + 15) % 16}, {i}" for i in range(1, 16))
    state = machine.run(f"{text}\nS_ADD_INT gp0, gp15, gp14\nS_SUB_INT gp14, gp13, gp12")
    assert np.asarray(state.gp).tolist() == [225, *[i * (i + 1) // 2 for i in range(1, 14)], 13, 120]
