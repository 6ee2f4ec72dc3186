"""Control instructions, loops, limits, and what is no instruction at all (docs/machine.md 3.1, 4.7 and 6.5)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax
from plena_jax import Fault, MachineFault, MachineState

from .machine_helpers import RAMP, Machine, covers, differences, misuses, row, same, word

GUARD = {
    "limit": "4 (MAX_LOOP_INSTRUCTIONS)",
    "rule": "an iteration of an open loop has executed too many instructions",
}


def gp(state: MachineState, *registers: int) -> list[int]:
    return [int(state.gp[r]) for r in registers]


def registers_of_loops(state: MachineState) -> list[int]:
    return [entry["register"] for entry in state.loops.entries()]


# -- C_SET_* ----------------------------------------------------------------------------------------------------------


@covers("C_SET_ADDR_REG")
@pytest.mark.parametrize("register", [0, 1, 8, 15])
def test_c_set_addr_reg_has_rs1_above_rs2(machine: Machine, register: int) -> None:
    state = machine.run(
        f"C_SET_ADDR_REG a{register}, gp1, gp2", gp={1: 0x12345678, 2: 0x9ABCDEF0}, a={register: 5 << 40}
    )
    low, high = np.asarray(state.a[register]).tolist()
    assert (low, high) == (0x9ABCDEF0, 0x12345678)
    assert machine.written(state) == {f"a[{register}]"}


@covers("C_SET_ADDR_REG")
def test_c_set_addr_reg_from_one_register_and_from_gp0(machine: Machine) -> None:
    state = machine.run("C_SET_ADDR_REG a3, gp1, gp1\nC_SET_ADDR_REG a4, gp0, gp1", gp={0: 7, 1: 9})
    assert np.asarray(state.a[3:5]).tolist() == [[9, 9], [9, 7]]


@covers("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, field", [("C_SET_SCALE_REG", "scale"), ("C_SET_STRIDE_REG", "stride"), ("C_SET_V_MASK_REG", "v_mask")]
)
def test_c_set_registers(machine: Machine, mnemonic: str, field: str) -> None:
    for value in (0, 2, 0x80000000, 0xFFFFFFFF):
        state = machine.run(f"{mnemonic} gp15", gp={15: value, 1: 77}, **{field: 5})
        assert int(getattr(state, field)) == value
        assert machine.written(state) == {field}
    state = machine.run(f"{mnemonic} gp0", gp={0: 6})
    assert int(getattr(state, field)) == 6


@covers("C_SET_SCALE_REG", "C_SET_STRIDE_REG", "C_SET_V_MASK_REG", "H_PREFETCH_V", "V_ADD_VF")
def test_registers_count_from_the_next_instruction_on(machine: Machine) -> None:
    text = """
        H_PREFETCH_V gp1, gp0, a0, 1, 0     ; stride 1, scale 0
        C_SET_SCALE_REG gp2
        H_PREFETCH_V gp3, gp0, a0, 1, 0     ; stride 1, scale at 64
        C_SET_STRIDE_REG gp4
        H_PREFETCH_V gp5, gp0, a0, 1, 0     ; stride 16
        V_ADD_VF gp6, gp3, f1, 1            ; mask 0
        C_SET_V_MASK_REG gp7
        V_ADD_VF gp8, gp3, f1, 1            ; mask 2
    """
    hbm = {0: bytes([0x40] * 24), 64: bytes([0x7F, 0x80, 0x81])}
    registers = {1: 160, 2: 64, 3: 176, 4: 16, 5: 192, 6: 208, 7: 2, 8: 216}
    state = machine.run(text, hbm=hbm, gp=registers, f={1: 1})
    # Scale code 40 is 2**-63.
    expected = [[2 * 2.0**-63] * 8] * 2 + [[2] * 8] * 2 + [[2] * 8, [8] * 8]
    same(state.vram[20:26], expected)
    same(state.vram[26:28], [[2] * 8, [2] * 4 + [3] * 4])


@misuses("mnemonic")
@pytest.mark.parametrize(
    "mnemonic, text",
    [
        ("C_SET_ADDR_REG", "C_SET_ADDR_REG a1, gp3, gp3"),
        ("C_SET_SCALE_REG", "C_SET_SCALE_REG gp3"),
        ("C_SET_STRIDE_REG", "C_SET_STRIDE_REG gp3"),
        ("C_SET_V_MASK_REG", "C_SET_V_MASK_REG gp3"),
    ],
)
def test_no_operand_of_c_set_is_bad_but_the_loop_guard_stops_it(plain: Machine, mnemonic: str, text: str) -> None:
    five = "\n".join([f"{mnemonic} {'a2, gp0, gp0' if 'ADDR' in mnemonic else 'gp0'}"] * 4)
    plain.fault(f"C_LOOP_START gp1, 9\n{five}\n{text}", Fault.LOOP_GUARD, gp={3: 33}, **GUARD)


# -- loops ------------------------------------------------------------------------------------------------------------


@covers("C_LOOP_START", "C_LOOP_END")
@pytest.mark.parametrize("count", [1, 2, 3, 10, 1000])
def test_a_loop_runs_exactly_so_many_times(machine: Machine, count: int) -> None:
    text = f"C_LOOP_START gp1, {count}\nS_ADDI_INT gp2, gp2, 3\nC_LOOP_END gp1\nS_ADDI_INT gp3, gp3, 1"
    state = machine.run(text, gp={1: 99})
    assert gp(state, 1, 2, 3) == [0, 3 * count, 1]
    assert state.loops.entries() == []
    assert int(state.pc) == 4
    assert state.instructions == state.latency_cycles == 2 + 2 * count
    assert state.instructions_by_unit["control"] == 1 + count


@covers("C_LOOP_START", "C_LOOP_END")
def test_the_loop_register_counts_down_to_1_and_is_0_after(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 5\nS_ST_INT gp1, gp2, 0\nS_ADDI_INT gp2, gp2, 1\nC_LOOP_END gp1\nS_ST_INT gp1, gp2, 0"
    state = machine.run(text, int_sram=[9] * 8)
    assert np.asarray(state.int_sram[:7]).tolist() == [5, 4, 3, 2, 1, 0, 9]


@covers("C_LOOP_START", "C_LOOP_END")
@pytest.mark.parametrize(
    "body, passes",
    [
        ("S_SUB_INT gp1, gp1, gp4", 5),  # one less each time: 10, 8, 6, 4, 2
        ("S_ADDI_INT gp1, gp5, 0", 1),  # to 0
        ("S_ADDI_INT gp1, gp4, 0", 1),  # to 1
        ("S_LD_INT gp1, gp6, 0", 4),  # 3, 2, 2, 0 from memory
        ("S_ADD_INT gp1, gp1, gp5", 10),
    ],
)
def test_the_live_register_decides(machine: Machine, body: str, passes: int) -> None:
    text = f"C_LOOP_START gp1, 10\n{body}\nS_ADDI_INT gp6, gp6, 1\nC_LOOP_END gp1"
    state = machine.run(text, gp={4: 1}, int_sram=[3, 2, 2, 0])
    assert gp(state, 1, 6) == [0, passes]
    assert state.loops.entries() == []


@covers("C_LOOP_START", "C_LOOP_END")
def test_the_body_may_prolong_its_loop(machine: Machine) -> None:
    # While gp6 counts 1, 2, 3 the table adds 1, so that the counter stands still.
    text = """
        C_LOOP_START gp1, 2
        S_LD_INT gp5, gp6, 0
        S_ADD_INT gp1, gp1, gp5
        S_ADDI_INT gp6, gp6, 1
        C_LOOP_END gp1
    """
    state = machine.run(text, int_sram=[1, 1, 1])
    # 2+1, 2+1, 2+1, 2, 1
    assert gp(state, 1, 6) == [0, 5]


@covers("C_LOOP_START", "C_LOOP_END")
def test_nested_loops_multiply(machine: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        S_ADDI_INT gp4, gp4, 1
        C_LOOP_START gp2, 4
        C_LOOP_START gp3, 5
        S_ADDI_INT gp5, gp5, 1
        C_LOOP_END gp3
        C_LOOP_END gp2
        S_ADDI_INT gp6, gp6, 1
        C_LOOP_END gp1
    """
    state = machine.run(text)
    assert gp(state, 1, 2, 3, 4, 5, 6) == [0, 0, 0, 3, 60, 3]
    assert state.instructions == 1 + 3 * (1 + 1 + 4 * (1 + 5 * 2 + 1) + 2)


@covers("C_LOOP_START", "C_LOOP_END")
def test_loops_one_after_the_other_may_share_a_register(machine: Machine) -> None:
    text = "\n".join(f"C_LOOP_START gp1, {n}\nS_ADDI_INT gp2, gp2, 1\nC_LOOP_END gp1" for n in (2, 1, 4))
    assert gp(machine.run(text), 1, 2) == [0, 7]


@covers("C_LOOP_START", "C_LOOP_END")
def test_nesting_on_one_register_shares_the_counter(machine: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        S_ADDI_INT gp2, gp2, 1
        C_LOOP_START gp1, 2
        S_ADDI_INT gp3, gp3, 1
        C_LOOP_END gp1
        C_LOOP_END gp1
    """
    # The inner loop leaves 0, so that the outer one ends after its first pass.
    state = machine.run(text)
    assert gp(state, 1, 2, 3) == [0, 1, 2]
    assert state.loops.entries() == []


@covers("C_LOOP_START", "C_LOOP_END")
def test_nesting_on_one_register_can_be_mended_by_setting_it(machine: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        S_ADDI_INT gp2, gp1, 0
        C_LOOP_START gp1, 2
        S_ADDI_INT gp3, gp3, 1
        C_LOOP_END gp1
        S_ADDI_INT gp1, gp2, 0
        C_LOOP_END gp1
    """
    assert gp(machine.run(text), 1, 3) == [0, 6]


@covers("C_LOOP_START", "C_LOOP_END")
def test_a_loop_may_count_in_gp0(machine: Machine) -> None:
    state = machine.run("C_LOOP_START gp0, 4\nS_ADD_INT gp2, gp2, gp0\nC_LOOP_END gp0")
    assert gp(state, 0, 2) == [0, 10]


@covers("C_LOOP_START", "C_LOOP_END")
def test_the_largest_count(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 4194303\nS_ADDI_INT gp2, gp1, 0\nS_ADDI_INT gp1, gp0, 3\nC_LOOP_END gp1"
    # The counter is 4194303, then 2, which the body sets to 3 each time: stop after a few passes.
    state = machine.run(text, max_instructions=7)
    assert gp(state, 1, 2) == [2, 2]


@covers("C_LOOP_START")
def test_loops_may_stay_open(machine: Machine) -> None:
    state = machine.run("C_LOOP_START gp5, 3\nC_LOOP_START gp2, 4\nS_ADDI_INT gp1, gp1, 1")
    assert state.fault is Fault.OK
    assert gp(state, 1, 2, 5) == [1, 4, 3]
    assert [(e["register"], e["start_pc"]) for e in state.loops.entries()] == [(5, 0), (2, 1)]


@covers("C_LOOP_START", "C_LOOP_END")
def test_c_loop_end_finds_its_register_below_others_which_stay(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 1\nC_LOOP_START gp2, 3\nC_LOOP_START gp3, 3\nC_LOOP_END gp1\nS_ADDI_INT gp4, gp4, 1"
    state = machine.run(text)
    assert registers_of_loops(state) == [2, 3]
    assert gp(state, 1, 2, 3, 4) == [0, 3, 3, 1]


@covers("C_LOOP_START", "C_LOOP_END")
def test_c_loop_end_of_an_outer_loop_opens_the_inner_one_again(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 3\nC_LOOP_START gp2, 5\nC_LOOP_END gp1"
    state = machine.run(text)
    # The stack grows with each pass.
    assert registers_of_loops(state) == [2, 2, 2]
    assert gp(state, 1, 2) == [0, 5]


@covers("C_LOOP_END")
def test_a_loop_left_open_can_be_closed_by_a_later_program(machine: Machine) -> None:
    state = machine.run("C_LOOP_START gp1, 2\nS_ADDI_INT gp2, gp2, 1")
    state = machine.run(
        "S_ADDI_INT gp3, gp3, 1\nS_ADDI_INT gp4, gp4, 1\nC_LOOP_END gp1", state.replace(pc=jnp.int32(0))
    )
    # It jumps behind the place of its C_LOOP_START, which was 0: to 1.
    assert gp(state, 1, 2, 3, 4) == [0, 1, 1, 2]


@covers("C_LOOP_START", "C_LOOP_END", "M_MM", "V_ADD_VF", "S_ADD_FP")
def test_datapath_in_nested_loops(machine: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        C_LOOP_START gp2, 4
        M_MM 0, gp4, gp0
        V_ADD_VF gp3, gp3, f1
        C_LOOP_END gp2
        S_ADD_FP f2, f2, f1
        S_ADDI_INT gp3, gp3, 8
        C_LOOP_END gp1
        M_MM_WO gp5, 0, 0
    """
    tile = np.eye(8)
    state = machine.run(text, vram={0: [2] + [1] * 7, 1: [3] * 8}, mram={0: tile}, gp={3: 160, 5: 376 - 8}, f={1: 1})
    same(state.vram[20:24, 0], [4, 4, 4, 0])
    same(state.f[2], 3)
    same(state.vram[46:48, :2], [[24, 12], [36, 36]])


@covers("C_LOOP_START", "C_LOOP_END", "M_MM", "V_RED_SUM")
def test_more_datapath_instructions_than_a_log_holds(machine: Machine) -> None:
    # 30,000 of them, in one loop of 10,000 passes.
    text = """
        C_LOOP_START gp1, 10000
        M_MM 0, gp0, gp0
        V_RED_SUM f1, gp2
        V_SUB_VV gp2, gp3, gp2
        C_LOOP_END gp1
    """
    vram = {0: [1] * 8, 1: [2] * 8, 2: [1, 0, 0, 0, 0, 0, 0, 0], 3: [1, 0, 0, 0, 0, 0, 0, 0]}
    state = machine.run(text, vram=vram, mram={0: np.eye(8)}, gp={2: 16, 3: 24})
    same(state.m_accum, [[10000, 10000], [20000, 20000]])
    # Row 2 is 1, 0, 1, 0, ...: BF16 counts as far as 256.
    same(state.f[1], 256)
    assert state.instructions == 40001


@misuses("C_LOOP_START")
def test_a_loop_of_0_passes(machine: Machine) -> None:
    rule = "a loop runs at least once"
    for register in (0, 3):
        text = f"S_ADDI_INT gp3, gp3, 1\nC_LOOP_START gp{register}, 0"
        machine.fault(text, Fault.LOOP_ZERO, operand="imm", value=0, limit="1 to 4194303", rule=rule)


@misuses("C_LOOP_END")
def test_c_loop_end_without_a_loop(machine: Machine) -> None:
    rule = "no open loop uses gp3"
    machine.fault("C_LOOP_END gp3", Fault.LOOP_UNMATCHED, operand="gp3", rule=rule, gp={3: 5})
    machine.fault("C_LOOP_START gp2, 3\nC_LOOP_END gp3", Fault.LOOP_UNMATCHED, operand="gp3", rule=rule, gp={3: 5})
    text = "C_LOOP_START gp3, 2\nS_ADDI_INT gp4, gp4, 1\nC_LOOP_END gp3\nC_LOOP_END gp3"
    machine.fault(text, Fault.LOOP_UNMATCHED, operand="gp3", rule=rule)


@misuses("C_LOOP_START")
def test_nine_loops_on_one_register(machine: Machine) -> None:
    eight = "\n".join(["C_LOOP_START gp1, 2"] * 8)
    state = machine.run(eight)
    assert registers_of_loops(state) == [1] * 8
    rule = "too many loops are open on one register"
    machine.fault(
        f"{eight}\nC_LOOP_START gp1, 7", Fault.LOOP_DEPTH, operand="gp1", limit="8 on each register", rule=rule
    )
    # Other registers have theirs.
    state = machine.run(f"{eight}\nC_LOOP_START gp2, 7")
    assert registers_of_loops(state) == [1] * 8 + [2]


# -- the guard --------------------------------------------------------------------------------------------------------


def _body(instructions: int) -> str:
    return "\n".join(["S_ADDI_INT gp2, gp2, 1"] * instructions)


@covers("C_LOOP_START", "C_LOOP_END")
def test_an_iteration_may_have_exactly_as_many_instructions_as_the_limit(plain: Machine) -> None:
    # The limit is 4: three and C_LOOP_END, as often as one likes.
    state = plain.run(f"C_LOOP_START gp1, 50\n{_body(3)}\nC_LOOP_END gp1")
    assert gp(state, 1, 2) == [0, 150]
    # Outside loops there is none.
    state = plain.run(f"{_body(20)}\nC_LOOP_START gp1, 5\n{_body(3)}\nC_LOOP_END gp1\n{_body(20)}")
    assert gp(state, 1, 2) == [0, 55]


@misuses("C_LOOP_END")
def test_one_instruction_more_than_the_limit(plain: Machine) -> None:
    plain.fault(f"C_LOOP_START gp1, 50\n{_body(4)}\nC_LOOP_END gp1", Fault.LOOP_GUARD, **GUARD)
    plain.fault(f"C_LOOP_START gp1, 1\n{_body(4)}\nC_LOOP_END gp1", Fault.LOOP_GUARD, **GUARD)


@misuses("C_LOOP_END")
def test_instructions_of_inner_loops_count(plain: Machine) -> None:
    text = "C_LOOP_START gp1, 2\nC_LOOP_START gp2, {}\nS_ADDI_INT gp3, gp3, 1\nC_LOOP_END gp2\nC_LOOP_END gp1"
    assert gp(plain.run(text.format(1)), 1, 3) == [0, 2]
    # C_LOOP_START, S_ADDI_INT, C_LOOP_END, S_ADDI_INT: the second C_LOOP_END of the inner loop is the fifth.
    fault = plain.fault(text.format(2), Fault.LOOP_GUARD, pc=3, **GUARD)
    assert int(fault.state.ticks) == 5
    # A short inner loop may go round for ever as long as it is the only one: its own count starts again each time.
    assert gp(plain.run("C_LOOP_START gp2, 1000\nS_ADDI_INT gp3, gp3, 1\nC_LOOP_END gp2"), 3) == [1000]


@misuses("V_ADD_VV", "C_LOOP_START", "C_BREAK", "S_ST_INT", "H_STORE_V", "M_MM_WO", "V_TOPK")
def test_the_guard_stops_any_instruction(plain: Machine) -> None:
    for line in (
        "V_ADD_VV gp4, gp4, gp4",
        "C_LOOP_START gp5, 3",
        "C_BREAK",
        "S_ST_INT gp4, gp0, 0",
        "H_STORE_V gp4, gp0, a0, 0, 0",
        "M_MM_WO gp4, gp0, 0",
        "V_TOPK gp0, gp0, gp0",
    ):
        contents = {"vram": RAMP, "m_accum": [[1, 2], [3, 4]], "gp": {4: 8}}
        plain.fault(f"C_LOOP_START gp1, 2\n{_body(4)}\n{line}", Fault.LOOP_GUARD, **GUARD, **contents)


@misuses("V_ADD_VV")
def test_the_guard_looks_before_anything_else_does(plain: Machine) -> None:
    # Misaligned, of zero passes, no instruction: what stops them is the guard.
    plain.fault(f"C_LOOP_START gp1, 2\n{_body(4)}\nV_ADD_VV gp2, gp2, gp2", Fault.LOOP_GUARD, **GUARD)
    plain.fault(f"C_LOOP_START gp1, 2\n{_body(4)}\nC_LOOP_START gp1, 0", Fault.LOOP_GUARD, **GUARD)
    with pytest.raises(MachineFault) as caught:
        plain.run(f"C_LOOP_START gp1, 2\n{_body(4)}\n.word 0x3F")
    assert (caught.value.code, caught.value.pc) == (Fault.LOOP_GUARD, 5)


@covers("C_LOOP_START", "C_BREAK")
def test_the_guard_counts_while_a_loop_is_open_and_no_longer(plain: Machine) -> None:
    # The end of the program is no instruction.
    state = plain.run(f"C_LOOP_START gp1, 2\n{_body(4)}")
    assert gp(state, 2) == [4]
    state = plain.run(f"C_LOOP_START gp1, 1\n{_body(3)}\nC_LOOP_END gp1\n{_body(9)}")
    assert gp(state, 2) == [12]
    state = plain.run(f"C_LOOP_START gp1, 9\n{_body(2)}\nC_BREAK\n{_body(9)}")
    assert gp(state, 2) == [11]


@misuses("S_ADDI_INT")
def test_a_loop_left_open_above_a_closed_one_goes_on_counting(plain: Machine) -> None:
    text = "C_LOOP_START gp1, 1\nC_LOOP_START gp3, 5\nC_LOOP_END gp1\n"
    assert gp(plain.run(text + _body(3)), 2) == [3]
    plain.fault(text + _body(4), Fault.LOOP_GUARD, **GUARD)


@misuses("S_ADDI_INT")
def test_the_guard_counts_across_runs(plain: Machine) -> None:
    program = f"C_LOOP_START gp1, 2\n{_body(9)}"
    state = plain.run(program, max_instructions=3)
    with pytest.raises(MachineFault) as caught:
        plain.run(program, state)
    assert (caught.value.code, caught.value.pc) == (Fault.LOOP_GUARD, 5)
    plain.fault(f"C_LOOP_START gp1, 2\n{_body(5)}", Fault.LOOP_GUARD, **GUARD)


# -- C_BREAK ----------------------------------------------------------------------------------------------------------


@covers("C_BREAK")
def test_c_break_drops_the_innermost_loop_and_goes_on_with_the_next_instruction(machine: Machine) -> None:
    text = "C_LOOP_START gp2, 3\nC_LOOP_START gp1, 4\nS_ADDI_INT gp3, gp3, 1\nC_BREAK\nS_ADDI_INT gp4, gp4, 1"
    state = machine.run(text)
    assert registers_of_loops(state) == [2]
    assert gp(state, 1, 2, 3, 4) == [0, 3, 1, 1]


@covers("C_BREAK")
def test_c_break_takes_the_loop_opened_last_whatever_its_register(machine: Machine) -> None:
    for first, second in ((1, 9), (9, 1)):
        state = machine.run(f"C_LOOP_START gp{first}, 3\nC_LOOP_START gp{second}, 3\nC_BREAK")
        assert registers_of_loops(state) == [first]
        assert gp(state, first, second) == [3, 0]
    # After a loop of a lower register has come and gone.
    state = machine.run(
        "C_LOOP_START gp9, 3\nC_LOOP_START gp1, 1\nC_LOOP_END gp1\nC_LOOP_START gp5, 3\nC_BREAK\nC_BREAK"
    )
    assert registers_of_loops(state) == []
    assert gp(state, 1, 5, 9) == [0, 0, 0]


@misuses("C_LOOP_END")
def test_the_end_of_a_loop_that_c_break_dropped_is_unmatched(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 3\nS_ADDI_INT gp2, gp2, 1\nC_BREAK\nC_LOOP_END gp1"
    machine.fault(text, Fault.LOOP_UNMATCHED, operand="gp1", rule="no open loop uses gp1")


@covers("C_BREAK")
def test_after_c_break_an_outer_loop_of_the_same_register_ends_instead(machine: Machine) -> None:
    text = "C_LOOP_START gp1, 3\nC_LOOP_START gp1, 3\nS_ADDI_INT gp2, gp2, 1\nC_BREAK\nC_LOOP_END gp1"
    state = machine.run(text)
    assert registers_of_loops(state) == []
    assert gp(state, 1, 2) == [0, 1]


@misuses("C_BREAK")
def test_c_break_without_a_loop(machine: Machine) -> None:
    machine.fault("C_BREAK", Fault.LOOP_UNMATCHED, rule="no loop is open", gp={0: 4})
    machine.fault("C_LOOP_START gp1, 1\nC_LOOP_END gp1\nC_BREAK", Fault.LOOP_UNMATCHED, rule="no loop is open")


# -- limits and running on --------------------------------------------------------------------------------------------

MIXED = """
    C_SET_V_MASK_REG gp5
    C_LOOP_START gp1, 3
    V_ADD_VF gp3, gp3, f1, 1
    C_LOOP_START gp2, 2
    M_MM 0, gp4, gp0
    S_ADD_FP f1, f1, f2
    C_LOOP_END gp2
    S_ST_INT gp1, gp1, 4
    H_STORE_V gp3, gp3, a0, 0, 0
    C_LOOP_END gp1
    M_MM_WO gp6, 0, 0
    V_RED_SUM f3, gp3
    H_PREFETCH_M gp4, gp0, a0, 0, 0
"""
MIXED_CONTENTS = {
    "vram": RAMP,
    "mram": {0: np.arange(64).reshape(8, 8)},
    "gp": {3: 24, 5: 2, 6: 160},
    "f": {1: 1, 2: 0.5},
    "scale": 512,
}
MIXED_LENGTH = 2 + 3 * (2 + 2 * 3 + 3) + 3


@pytest.fixture(scope="module")
def whole(small: Any) -> MachineState:
    return Machine(small, "architectural").run(MIXED, **MIXED_CONTENTS)


@pytest.mark.parametrize("most", range(MIXED_LENGTH + 2))
def test_a_run_that_stops_at_a_limit_and_runs_on_is_one_run(machine: Machine, whole: MachineState, most: int) -> None:
    part = machine.run(MIXED, max_instructions=most, **MIXED_CONTENTS)
    assert part.fault is (Fault.LIMIT if most < MIXED_LENGTH else Fault.OK)
    assert part.instructions == int(part.ticks) == min(most, MIXED_LENGTH)
    assert differences(machine.run(MIXED, part), whole) == []


def test_one_instruction_at_a_time_is_one_run(machine: Machine, whole: MachineState) -> None:
    state = machine.start(**MIXED_CONTENTS)
    for executed in range(MIXED_LENGTH):
        assert (state.instructions, state.fault) == (executed, Fault.LIMIT if executed else Fault.OK)
        state = machine.run(MIXED, state, max_instructions=1)
    # The last one ends the program.
    assert state.fault is Fault.OK
    assert differences(state, whole) == []
    assert differences(machine.run(MIXED, state, max_instructions=1), whole) == []


def test_engines_can_take_turns(small: Any, whole: MachineState) -> None:
    machines = [Machine(small, "resolved"), Machine(small, "architectural")]
    state = machines[0].start(**MIXED_CONTENTS)
    for turn in range(8):
        state = machines[turn % 2].run(MIXED, state, max_instructions=6)
    assert differences(state, whole) == []


def test_a_limit_of_0_does_nothing(machine: Machine) -> None:
    state = machine.run("S_ADDI_INT gp1, gp1, 1", max_instructions=0)
    assert state.fault is Fault.LIMIT
    assert machine.written(state) == set()
    assert (int(state.pc), state.instructions) == (0, 0)


def test_a_limit_in_front_of_a_fault_and_behind_it(machine: Machine) -> None:
    program = "S_ADDI_INT gp1, gp1, 4\nV_ADD_VV gp1, gp1, gp1"
    assert machine.run(program, max_instructions=1).fault is Fault.LIMIT
    for most in (2, 3, 100):
        with pytest.raises(MachineFault) as caught:
            machine.run(program, max_instructions=most)
        assert (caught.value.code, caught.value.pc) == (Fault.MISALIGNED, 1)


def test_a_state_that_faulted_faults_again_and_runs_on_once_it_is_mended(machine: Machine) -> None:
    program = "S_ADDI_INT gp1, gp1, 4\nV_ADD_VV gp1, gp1, gp1\nS_ADDI_INT gp2, gp2, 1"
    with pytest.raises(MachineFault) as caught:
        machine.run(program, vram=RAMP)
    with pytest.raises(MachineFault) as again:
        machine.run(program, caught.value.state)
    assert str(again.value) == str(caught.value)
    assert differences(again.value.state, caught.value.state) == []
    mended = caught.value.state.replace(gp=caught.value.state.gp.at[1].set(8))
    state = machine.run(program, mended)
    assert state.fault is Fault.OK
    same(row(state, 1), [22, 24, 26, 28, 30, 32, 34, 36])
    assert (gp(state, 2), state.instructions) == ([1], 3)


def test_a_run_begins_at_pc(machine: Machine) -> None:
    program = "S_ADDI_INT gp1, gp1, 1\nS_ADDI_INT gp2, gp2, 1\nS_ADDI_INT gp3, gp3, 1"
    for pc in range(4):
        state = machine.run(program, machine.start(pc=pc))
        assert gp(state, 1, 2, 3) == [int(i >= pc) for i in range(3)]
        assert (int(state.pc), state.instructions) == (3, 3 - pc)


@pytest.mark.parametrize("ticks", [0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFF8, 0x80000000])
def test_the_instruction_counter_may_wrap(machine: Machine, whole: MachineState, ticks: int) -> None:
    start = machine.start(**MIXED_CONTENTS, ticks=ticks)
    state = machine.run(MIXED, start)
    assert int(state.ticks) == (ticks + MIXED_LENGTH) % 2**32
    assert differences(state, whole, leave_out=("ticks",)) == []
    part = machine.run(MIXED, start, max_instructions=9)
    assert part.fault is Fault.LIMIT
    assert differences(machine.run(MIXED, part), state) == []


@misuses("C_LOOP_END")
def test_the_guard_counts_on_when_the_instruction_counter_wraps(plain: Machine) -> None:
    for ticks in (0xFFFFFFFD, 0x7FFFFFFE):
        state = plain.run(f"C_LOOP_START gp1, 50\n{_body(3)}\nC_LOOP_END gp1", ticks=ticks)
        assert gp(state, 1, 2) == [0, 150]
        plain.fault(f"C_LOOP_START gp1, 50\n{_body(4)}\nC_LOOP_END gp1", Fault.LOOP_GUARD, ticks=ticks, **GUARD)


def test_counters_have_64_bits(machine: Machine) -> None:
    most = 0xFFFFFFFF
    contents = {"cycles": [most, 0], "counts": {0: [most, 0], 3: [most, 5]}, "hbm_blocks": {0: [most, 0], 1: [most, 7]}}
    text = "M_MM 0, gp0, gp0\nS_ADDI_INT gp1, gp1, 1\nH_STORE_V gp0, gp0, a0, 0, 0"
    state = machine.run(text, **contents)
    assert state.latency_cycles == 2**32 - 1 + 9
    assert state.instructions_by_unit["matrix"] == 2**32
    assert state.instructions_by_unit["scalar int"] == 6 * 2**32
    assert state.hbm_traffic == (64 * (2**32 + 1), 64 * (8 * 2**32 + 1))


def test_an_empty_program_ends_at_once(machine: Machine) -> None:
    state = machine.run("; nothing")
    assert state.fault is Fault.OK
    assert machine.written(state) == set()
    assert state.instructions == 0


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [0x00, 0x31, 0x33, *range(0x38, 0x40)])
def test_unassigned_opcodes_fault_when_they_are_executed(machine: Machine, opcode: int) -> None:
    for fields in (0, 0x03FFFFC0, 0xFFFFFFC0):
        text = f"S_ADDI_INT gp1, gp1, 1\n.word 0x{fields | opcode:08X}\nS_ADDI_INT gp1, gp1, 1"
        machine.fault(
            text,
            Fault.INVALID_OPCODE,
            pc=1,
            instruction=f".word 0x{fields | opcode:08X}",
            limit="an assigned opcode (see `plena isa`)",
            rule=f"opcode 0x{opcode:02X} is not assigned",
        )
        # Not executed, it does no harm.
        state = machine.run(text, max_instructions=1)
        assert (state.fault, gp(state, 1)) == (Fault.LIMIT, [1])


@covers("S_ADD_INT", "S_LUI_INT", "V_ADD_VV", "C_SET_SCALE_REG", "V_SHFT_V", "S_EXP_FP", "C_BREAK", "C_LOOP_END")
def test_bits_of_no_field_are_ignored(machine: Machine) -> None:
    contents = {"vram": RAMP, "gp": {1: 160, 2: 8, 3: 16, 4: 3}, "f": {1: 1, 2: 2}}
    for plain_word, junk in (
        (word(0x21, rd=5, rs1=2, rs2=3), 0xFFFC0000),
        (word(0x0D, rd=1, rs1=2, rs2=3), 0xFFC00000),
        (word(0x2C, rd=2), 0xFFFFFC00),
        (word(0x32, rd=1, rs1=2, rs2=4), 0xFFFC0000),
        (word(0x1B, rd=1, rs1=2), 0xFFFFC000),
    ):
        number = int(plain_word.split()[1], 16)
        clean = machine.run(plain_word, **contents)
        assert machine.written(clean)
        dirty = machine.run(f".word 0x{number | junk:08X}", **contents)
        assert differences(clean, dirty) == []
    # 32 bits are all that S_LUI_INT has; C_BREAK has no operand at all.
    assert gp(machine.run(word(0x25, rd=1) + "\n.word 0xFFFFFC65"), 1) == [0xFFFFF000]
    state = machine.run(f"C_LOOP_START gp1, 2\n.word 0x{0xFFFFFFC0 | 0x34:08X}")
    assert registers_of_loops(state) == []
    state = machine.run(f"C_LOOP_START gp1, 1\n.word 0x{0xFFFFFC00 | 1 << 6 | 0x30:08X}")
    assert registers_of_loops(state) == []


def test_a_refused_word_stops_the_program_before_it_begins(machine: Machine) -> None:
    for opcode in (0x03, 0x04):
        for rd in (1, 15):
            program = plena_jax.assemble(f"S_ADDI_INT gp1, gp1, 1\n{word(opcode, rd=rd)}")
            with pytest.raises(plena_jax.ProgramError, match="the rd field must be 0"):
                machine.run(program, max_instructions=1)
