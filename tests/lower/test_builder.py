"""The program builder against the assembler and against the machine."""

from __future__ import annotations

import ast
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plena_jax as pj
from plena_jax.isa.instruction import Kind
from plena_jax.isa.table import INSTRUCTIONS
from plena_jax.lower import Ar, BuildError, Fp, Gp, ProgramBuilder, generate
from plena_jax.program import Section

CONFIG = pj.MachineConfig()
CLASSES = {Kind.GP: Gp, Kind.F: Fp, Kind.A: Ar}


def builder(**changes: int) -> ProgramBuilder:
    return ProgramBuilder(pj.MachineConfig(**changes))


def registers_after(b: ProgramBuilder) -> np.ndarray:
    """The integer registers that a program leaves."""
    state = pj.MachineState.create(b.config, vram_rows=1)
    return np.asarray(pj.run(b.program(), state, b.config, engine="architectural").gp)


def test_the_methods_are_those_of_the_table() -> None:
    written = ast.dump(ast.parse(generate.TARGET.read_text()))
    assert written == ast.dump(ast.parse(generate.text())), "python -m plena_jax.lower.generate && ruff format"


@settings(max_examples=20)
@given(st.data())
@pytest.mark.parametrize("entry", INSTRUCTIONS, ids=lambda entry: entry.mnemonic)
def test_words_are_those_of_the_assembler(entry: object, data: st.DataObject) -> None:
    texts, arguments = [], []
    for operand in entry.operands:  # type: ignore[attr-defined]
        value = data.draw(st.integers(0, operand.most))
        texts.append(f"{operand.kind.value}{value}")
        if generate.parameter(operand) is None:
            texts[-1] = "0"
        else:
            arguments.append(CLASSES[operand.kind](value) if operand.kind in CLASSES else value)
    b = builder()
    getattr(b, entry.mnemonic.lower())(*arguments)  # type: ignore[attr-defined]
    assert b.program() == pj.assemble(f"{entry.mnemonic} {', '.join(texts)}")  # type: ignore[attr-defined]


def test_operands_of_another_kind_are_refused() -> None:
    b = builder()
    with pytest.raises(
        BuildError, match=r"V_ADD_VF rd=gp1, rs1=gp1, rs2=gp1, mask=0; allowed: rd: Gp, rs1: Gp, rs2: Fp"
    ):
        b.v_add_vf(Gp(1), Gp(1), Gp(1))  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=r"S_ADDI_INT rd=gp1, rs1=gp0 \(zero\), imm=262144"):
        b.s_addi_int(Gp(1), b.zero, 1 << 18)
    with pytest.raises(BuildError, match="imm=-1"):
        b.s_addi_int(Gp(1), b.zero, -1)
    with pytest.raises(BuildError, match="mask=16"):
        b.v_exp_v(Gp(1), Gp(1), 16)
    assert len(b) == 0


def test_every_method_checks_every_operand() -> None:
    for entry in INSTRUCTIONS:
        method = getattr(builder(), entry.mnemonic.lower())
        names = list(inspect.signature(method).parameters)
        good = {
            generate.parameter(o): CLASSES[o.kind](0) if o.kind in CLASSES else 0
            for o in entry.operands
            if generate.parameter(o)
        }
        method(**good)
        for name in names:
            with pytest.raises(BuildError, match=entry.mnemonic):
                method(**good | {name: -1})


EDGES = [0, 1, (1 << 18) - 1, 1 << 18, (1 << 19) - 2, (1 << 19) - 1, 2048**2, 2048 * 8192, 2**31, 2**32 - 1]


@pytest.mark.parametrize("value", [*EDGES, -1, -4096])
def test_numbers_of_any_size(value: int) -> None:
    b = builder()
    set_there = b.gp(value)
    added, from_there = b.gp(5), b.gp()
    b.add(added, added, value)
    b.add(from_there, added, -value)
    found = registers_after(b)
    assert found[set_there] == value % 2**32
    assert found[added] == (value + 5) % 2**32
    assert found[from_there] == 5
    assert found[0] == 0


def test_sums_need_few_instructions() -> None:
    b = builder()
    r = b.gp()
    b.add(r, r, 0)
    assert len(b) == 0
    b.add(r, r, (1 << 18) - 1)
    assert len(b) == 1


@pytest.mark.parametrize("byte", [0, 4096, 2**32 - 1, 2**32, 2**40 + 12345, 2**64 - 1])
def test_addresses_of_hbm(byte: int) -> None:
    b = builder()
    register = b.address(byte)
    state = pj.MachineState.create(b.config, vram_rows=1)
    a = np.asarray(pj.run(b.program(), state, b.config).a)
    low, high = (int(half) for half in a[register])
    assert low | high << 32 == byte
    assert b.free(Gp) == 15, "the halves are free again"


def test_an_address_that_does_not_exist() -> None:
    with pytest.raises(BuildError, match=r"HBM address -1 for weights; allowed: 0 to 2\*\*64 - 1"):
        builder().address(-1, "weights")


# -- loops ------------------------------------------------------------------------------------------------------------


def counting(b: ProgramBuilder, counts: list[int], unroll: int = 1) -> Gp:
    """Nested loops whose innermost body counts."""
    total = b.gp(0, "total")

    def nest(counts: list[int]) -> None:
        if not counts:
            b.s_addi_int(total, total, 1)
            return
        with b.loop(counts[0], unroll=unroll):
            nest(counts[1:])
            if len(counts) > 1:
                with b.section(f"after {len(counts)}"):
                    b.s_addi_int(total, total, 1000)

    nest(counts)
    return total


def counted(counts: list[int]) -> int:
    return 1 if not counts else counts[0] * (counted(counts[1:]) + 1000 * (len(counts) > 1))


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), max_size=4), st.sampled_from([3, 5, 9, 20, 100, 100_000]), st.integers(1, 5))
def test_loops_run_their_bodies(counts: list[int], guard: int, unroll: int) -> None:
    b = builder(max_loop_instructions=guard)
    total = counting(b, counts, unroll)
    state = pj.MachineState.create(b.config, vram_rows=1)
    final = pj.run(b.program(), state, b.config, engine="architectural")
    assert final.gp[total] == counted(counts)
    assert final.instructions == b.instructions


def test_a_body_beyond_the_guard_is_repeated_with_its_sections() -> None:
    b = builder(max_loop_instructions=4)
    total = b.gp(0)
    with b.section("all"), b.loop(2), b.section("outer"), b.loop(3), b.section("inner"):
        b.s_addi_int(total, total, 1)
        b.s_addi_int(total, total, 1)
    program = b.program()
    texts = [line.split()[0] for line in program.disassemble()]
    assert texts.count("C_LOOP_START") == 2, "the outer loop is gone, twice its body is there"
    inner = [section for section in program.sections if section.name == "all/outer/inner"]
    assert len(inner) == 2
    for section in inner:
        assert texts[section.start : section.stop] == ["S_ADDI_INT"] * 2
    assert Section("all", 1, len(program)) in program.sections
    assert registers_after(b)[total] == 12


def test_short_bodies_are_repeated_where_that_is_asked_for() -> None:
    def words(count: int, unroll: int) -> list[str]:
        b = builder()
        total = b.gp(0)
        with b.loop(count, (total, 3), unroll=unroll):
            b.s_addi_int(total, total, 1)
        assert registers_after(b)[total] == 4 * count
        return [line.split()[0] for line in b.program().disassemble()]

    assert words(12, 1).count("S_ADDI_INT") == 3
    assert words(12, 4).count("S_ADDI_INT") == 9
    assert words(12, 5).count("S_ADDI_INT") == 9, "four is the largest divisor of 12"
    assert words(7, 4).count("S_ADDI_INT") == 3
    assert "C_LOOP_START" not in words(3, 4)


def test_steps_and_index_of_a_loop() -> None:
    b = builder()
    pointer, back, last = b.gp(100), b.gp(1000), b.gp()
    with b.loop(5, (pointer, 64), (back, -3), index=True) as index:
        assert index is not None
        b.s_addi_int(last, index, 0)
    found = registers_after(b)
    assert (found[pointer], found[back], found[last]) == (420, 985, 4)


@pytest.mark.parametrize("count", [0, -1, 1 << 22])
def test_loops_that_cannot_be(count: int) -> None:
    with pytest.raises(BuildError, match=f"loop of {count}; allowed: 1 to 4194303"), builder().loop(count):
        pass


# -- registers, constants, sections -----------------------------------------------------------------------------------


def test_registers_are_given_out_and_taken_back() -> None:
    b = builder()
    with b.scope():
        taken = [b.gp(purpose=f"value {i}") for i in range(15)]
        assert len({int(r) for r in taken}) == 15 and 0 not in map(int, taken)
        with pytest.raises(BuildError, match=r"no gp register left for the last straw; in use: gp1 \(value 0\), gp2"):
            b.gp(purpose="the last straw")
        b.release(taken[3])
        again = b.gp()
        assert again == taken[3]
        with pytest.raises(BuildError, match="is not in use"):
            b.release(taken[3])
    assert b.free(Gp) == 15 and b.free(Fp) == 7 and b.free(Ar) == 16
    with pytest.raises(BuildError, match="no f register left"):
        for _ in range(8):
            b.fp()


def test_scopes_end_with_errors_too() -> None:
    b = builder()
    with pytest.raises(RuntimeError), b.scope():
        b.gp(3)
        raise RuntimeError
    assert b.free(Gp) == 15


def test_constants_are_shared_entries_of_fp_sram() -> None:
    b = builder()
    one, again, half = b.fp(1.0), b.fp(1.0), b.fp(0.5)
    assert b.constants == {0: 1.0, 1: 0.5}
    sram = np.zeros(1024, np.float32)
    for entry, value in b.constants.items():
        sram[entry] = value
    state = pj.MachineState.create(b.config, vram_rows=1, fp_sram=sram)
    f = np.asarray(pj.run(b.program(), state, b.config).f)
    assert [f[one], f[again], f[half]] == [1.0, 1.0, 0.5]


def test_sections_have_the_names_of_those_around() -> None:
    b = builder()
    with b.section("layer"):
        b.gp(1)
        with b.section("softmax"):
            b.gp(2)
        with b.section("nothing"):
            pass
    assert b.program().sections == (Section("layer/softmax", 1, 2), Section("layer", 0, 2))


def test_a_section_outside_a_program_is_refused() -> None:
    with pytest.raises(pj.ProgramError, match="allowed: words of 2"):
        pj.Program(np.zeros(2, np.uint32), sections=(Section("x", 0, 3),))
