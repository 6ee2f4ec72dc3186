"""Assembly text to words: the published assembler where it is right, the machine's fields where it is not."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_isa_table import BITS, EXPECTED, Row, encode

from plena_jax import AssemblyError, PlenaError, Program, assemble, disassemble
from plena_jax.assembler import looks_like_assembly


def words(text: str) -> list[int]:
    return assemble(text).words.tolist()


def word(line: str) -> int:
    (only,) = words(line)
    return only


def refused(line: str) -> AssemblyError:
    with pytest.raises(AssemblyError) as caught:
        assemble(line)
    return caught.value


# -- worked words -----------------------------------------------------------------------------------------------------

#: docs/machine.md 3.4 and section 11, hexadecimal word and text.
PUBLISHED_RIGHT = """
00010046 M_MM_WO gp1, gp0, 4
0000C84E V_ADD_VF gp1, gp2, f3
0004C84E V_ADD_VF gp1, gp2, f3, 1
0040C850 V_SUB_VF gp1, gp2, f3, 0, 1
0040C86A H_STORE_V gp1, gp2, a3, 0, 1
0000406B C_SET_ADDR_REG a1, gp0, gp1
0000212F C_LOOP_START gp4, 8
00001065 S_LUI_INT gp1, 4
00000034 C_BREAK
00100062 S_ADDI_INT gp1, gp0, 64
0000006C C_SET_SCALE_REG gp1
00000028 H_PREFETCH_M gp0, gp0, a0, 0, 0
000400A2 S_ADDI_INT gp2, gp0, 16
00000801 M_MM 0, gp2, gp0
002800E2 S_ADDI_INT gp3, gp0, 160
000080C6 M_MM_WO gp3, gp0, 2
00008002 M_TMM 0, gp0, gp2
00008122 S_ADDI_INT gp4, gp0, 2
000010C6 M_MM_WO gp3, gp4, 0
00000003 M_BMM 0, gp0, gp0
000000C5 M_BMM_WO gp3, 0
00000804 M_BTMM 0, gp2, gp0
0000000A M_BTMV gp0, gp0, gp0
000000CC M_BMV_WO gp3, 0
00000807 M_MV 0, gp2, gp0
00000008 M_TMV 0, gp0, gp0
000080F2 V_SHFT_V gp3, gp0, gp2
000000AE C_SET_V_MASK_REG gp2
0000C0DE S_LD_FP f3, gp0, 3
0004C0CE V_ADD_VF gp3, gp0, f3, 1
0040C0D0 V_SUB_VF gp3, gp0, f3, 0, 1
00000055 V_RED_SUM f1, gp0
0002805F S_ST_FP f1, gp0, 10
0002C09F S_ST_FP f2, gp0, 11
0000C0B7 V_TOPK gp2, gp0, gp3
0000116F C_LOOP_START gp5, 4
0000D9A2 S_ADDI_INT gp6, gp6, 3
00000170 C_LOOP_END gp5
0001C1A7 S_ST_INT gp6, gp0, 7
00020167 S_ST_INT gp5, gp0, 8
0000092A H_STORE_V gp4, gp2, a0, 0, 0
000000AD C_SET_STRIDE_REG gp2
000400E9 H_PREFETCH_V gp3, gp0, a0, 1, 0
000040E0 S_MAP_V_FP gp3, gp0, 1
"""

#: Where the published assembler is wrong: the word it gives (None: it crashes), that of the machine's fields, text.
PUBLISHED_WRONG = """
00010045 00100045 M_BMM_WO gp1, 64
0001004B 0010004B M_MV_WO gp1, 64
0001004C 0010004C M_BMV_WO gp1, 64
000010CB 000100CB M_MV_WO gp3, 4
000010CB 000100CB M_MV_WO gp3, gp0, 4
None     00010046 M_MM_WO gp1, 0, 4
00004853 00040853 V_EXP_V gp1, gp2, 1
00004854 00040854 V_RECI_V gp1, gp2, 1
00004856 00040856 V_RED_MAX f1, gp2, 1
00000855 00040855 V_RED_SUM f1, gp2, 1
00000095 00040095 V_RED_SUM f2, gp0, 1
00004853 00040853 V_EXP_V gp1, gp2, 1, 0
00000855 00040855 V_RED_SUM f1, gp2, 1, 0
None     00000853 V_EXP_V gp1, gp2
None     00000854 V_RECI_V gp1, gp2
None     00000856 V_RED_MAX f1, gp2
None     0000C850 V_SUB_VF gp1, gp2, f3
None     000400A2 S_ADDI_INT gp2, gp0, 0x10
"""


@pytest.mark.parametrize("line", PUBLISHED_RIGHT.strip().splitlines())
def test_words_that_the_published_assembler_gives_too(line: str):
    expected, text = line.split(" ", 1)
    assert published(text) == int(expected, 16)
    assert word(text) == int(expected, 16)


@pytest.mark.parametrize("line", PUBLISHED_WRONG.strip().splitlines())
def test_words_that_the_published_assembler_gets_wrong(line: str):
    its, ours, text = line.split(None, 2)
    assert published(text) == (None if its == "None" else int(its, 16))
    assert word(text) == int(ours, 16)


def test_large_constants():
    assert words("S_LUI_INT gp1, 4194303\nS_ADDI_INT gp1, gp1, 4095") == [0xFFFFFC65, 0x03FFC462]


# -- the published assembler, from its description in docs/machine.md 3.3 and 3.4 -------------------------------------

_FORMS = {
    "I18": "S_ADDI_INT M_MM_WO S_LD_FP S_ST_FP S_LD_INT S_ST_INT S_MAP_V_FP V_RED_MAX V_RECI_V V_EXP_V",
    "I22": "S_LUI_INT M_MV_WO M_BMM_WO M_BMV_WO C_LOOP_START",
    "R2": "S_RECI_FP S_EXP_FP S_SQRT_FP V_RED_SUM",
    "R0": "C_BREAK",
    "R1": "C_SET_SCALE_REG C_SET_STRIDE_REG C_SET_V_MASK_REG C_LOOP_END",
    "R5": "H_PREFETCH_M H_PREFETCH_V H_STORE_V V_SUB_VF",
    "RM": "V_ADD_VV V_ADD_VF V_MUL_VV V_SUB_VV V_MUL_VF V_MAX_VF V_MIN_VF V_TOPK",
}
_FORM_OF = {mnemonic: form for form, mnemonics in _FORMS.items() for mnemonic in mnemonics.split()}


def published(line: str) -> int | None:
    """The word that the published assembler writes for a line; None where it crashes or writes no 32-bit word."""
    mnemonic, *rest = re.split(r";|//", line)[0].split()
    operands = [token.strip() for token in " ".join(rest).split(",")] if rest else []
    rd = rs1 = rs2 = mask = funct1 = imm = None
    try:
        for place, token in enumerate(operands if len(operands) <= 6 else []):
            register = re.match("gp|f|a", token)
            if register and place < 3:
                value = int(token[register.end() :])
                rd, rs1, rs2 = (value if place == p else old for p, old in enumerate((rd, rs1, rs2)))
                continue
            try:
                number = int(token)
            except ValueError:
                number = None
            if place == 0:
                rd = number
            elif place == 1 or (place == 2 and number is not None):
                imm = number
            elif place == 3:
                mask = number
            elif place == 4:
                funct1 = number if number is not None else token
        op = EXPECTED[mnemonic].opcode
        form = _FORM_OF.get(mnemonic, "R3")
        if form == "RM" and mask is None:
            mask = 0
        value = {
            "I18": lambda: (imm << 14) + (rs1 << 10) + (rd << 6) + op,
            "I22": lambda: (imm << 10) + (rd << 6) + op,
            "R2": lambda: (rs1 << 10) + (rd << 6) + op,
            "R0": lambda: op,
            "R1": lambda: (rd << 6) + op,
            "R5": lambda: (funct1 << 22) + (mask << 18) + (rs2 << 14) + (rs1 << 10) + (rd << 6) + op,
            "RM": lambda: (mask << 18) + (rs2 << 14) + (rs1 << 10) + (rd << 6) + op,
            "R3": lambda: (rs2 << 14) + (rs1 << 10) + (rd << 6) + op,
        }[form]()
    except (TypeError, ValueError):
        return None
    return value if 0 <= value <= 0xFFFFFFFF else None


_RARELY = st.integers(0, 9).map(lambda n: n == 0)


@st.composite
def meant_lines(draw) -> tuple[str, int | None]:
    """A line, and the word that its author means (None: there is none)."""
    row = draw(st.sampled_from(list(EXPECTED.values())))
    given_operands = len(row.slots)
    while given_operands and row.slots[given_operands - 1].optional and draw(st.booleans()):
        given_operands -= 1
    tokens, values, possible = [], [], True
    for place, slot in enumerate(row.slots[:given_operands]):
        if draw(_RARELY):
            value = slot.most + draw(st.sampled_from([1, 2, 8, 1 << 18, 1 << 32]))
            possible = False
        elif slot.kind == "" and draw(_RARELY):
            value, possible = -draw(st.integers(1, 1 << 20)), False
        else:
            value = draw(st.sampled_from([0, slot.most]) | st.integers(0, slot.most))
        values.append(value)
        if slot.kind == "" and slot.name != "0":
            spellings = ["{}", "{:#x}", "{:#X}", "{:_}", "{:+}", "{:04}"]
        elif slot.name == "0":
            spellings = ["{}", "gp{}"]
        else:
            spellings = [*[slot.kind + "{}"] * 4, slot.kind + "{:02}", slot.kind + " {}", *["{}"] * (place == 0)]
        tokens.append(draw(st.sampled_from(spellings)).format(value))
    meant = encode(row, values) if possible else None
    tokens += ["0"] * draw(st.integers(0, 6 - len(tokens)) if draw(st.booleans()) else st.just(0))
    gap = draw(st.sampled_from([" ", "\t", "   "]))
    comma = draw(st.sampled_from([",", ", ", " , ", "\t,"]))
    line = draw(st.sampled_from(["", " ", "\t"])) + row.mnemonic + gap * bool(tokens) + comma.join(tokens)
    return line + draw(st.sampled_from(["", ";", " ; note, gp99", "// C_BREAK", " "])), meant


@settings(deadline=None, max_examples=1000)
@given(meant_lines())
def test_never_another_word_than_meant_and_whatever_the_published_assembler_gets_right(case: tuple[str, int | None]):
    line, meant = case
    try:
        ours = word(line)
    except AssemblyError:
        ours = None
    assert ours in (None, meant)
    if meant is not None and published(line) == meant:
        assert ours == meant


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_random_operands_land_in_the_fields_of_the_machine(row: Row):
    rng = np.random.default_rng(row.opcode)
    lines, expected = [], []
    for _ in range(64):
        values = [int(rng.integers(slot.most + 1)) for slot in row.slots]
        lines.append(f"{row.mnemonic} " + ", ".join(f"{s.kind}{v}" for s, v in zip(row.slots, values, strict=True)))
        expected.append(encode(row, values))
    assert words("\n".join(lines)) == expected


# -- forms that compilers write ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        # Zeros that have no place in the word; the published assembler drops them.
        ("C_LOOP_END gp4, 0", 0x00000130),
        ("V_EXP_V gp1, gp2, 0, 0", 0x00000853),
        ("V_RED_SUM f1, gp2, 0, 0", 0x00000855),
        ("S_RECI_FP f1, f2, 0", 0x0000085C),
        ("S_EXP_FP f1, f2, 0", 0x0000085B),
        ("S_SQRT_FP f1, f2, 0 ; eps", 0x0000085D),
        ("V_ADD_VV gp1, gp2, gp3, 0, 0", 0x0000C84D),
        ("S_ADDI_INT gp1, gp2, 3, 0", 0x0000C862),
        ("C_BREAK 0", 0x00000034),
        ("C_LOOP_END gp4, gp0", 0x00000130),
        ("M_MV_WO gp3, gp0, 0", 0x000000CB),
        ("M_BMM_WO gp3, 0, 0", 0x000000C5),
        ("C_LOOP_START gp4, 0, 8", 0x0000212F),
        # A register where the machine looks at nothing, gp0 where it insists on zero.
        ("M_MM gp5, gp1, gp2", 0x00008541),
        ("M_MV gp0, gp1, gp2", 0x00008407),
        ("M_BTMM gp0, gp1, gp2", 0x00008404),
        ("M_BMM gp0, gp1, gp2", 0x00008403),
        # A plain number as first operand names the register.
        ("S_ADDI_INT 5, gp1, 2", 0x00008562),
        ("V_RED_SUM 7, gp1", 0x000005D5),
        ("C_SET_ADDR_REG 15, gp1, gp2", 0x000087EB),
        # Register numbers are decimal numbers.
        ("S_ADD_INT gp05, gp007, gp0_9", 0x00025D61),
        ("S_ADD_FP f01, f+2, f 3", 0x0000C857),
    ],
)
def test_forms_of_the_published_compiler(line: str, expected: int):
    assert published(line) == expected
    assert word(line) == expected


@pytest.mark.parametrize(
    "line",
    [
        # A third operand of these is the immediate of the published assembler, which then means 0.
        "C_LOOP_START gp4, 8, 0",
        "S_LUI_INT gp1, 4, 0",
        "M_MV_WO gp1, 64, 0",
        # Anything but a plain zero would be dropped in silence.
        "S_RECI_FP f1, f2, 1",
        "S_RECI_FP f1, f2, f0",
        "C_LOOP_END gp4, 1",
        "V_EXP_V gp1, gp2, 0, 1",
        "V_ADD_VV gp1, gp2, gp3, 0, 1, 0",
        "C_BREAK gp1",
        "C_BREAK ,",
        "M_MV_WO gp1, gp2, 0",
        "S_ADD_INT gp1, gp2, gp3,",
    ],
)
def test_other_surplus_operands(line: str):
    assert "takes" in refused(line).message


# -- source text ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "S_ADDI_INT gp1, gp2, 3",
        "S_ADDI_INT gp1,gp2,3",
        "S_ADDI_INT gp1 , gp2 , 3;",
        "  S_ADDI_INT   gp1,  gp2,  3  ",
        "\tS_ADDI_INT\tgp1,\tgp2,\t3\t",
        "S_ADDI_INT gp1, gp2, 3;comment",
        "S_ADDI_INT gp1, gp2, 3//comment",
        "S_ADDI_INT gp1, gp2, 3 // one ; two",
        "S_ADDI_INT gp1, gp2, 3 ; one // two ;; three",
        "S_ADDI_INT gp1, gp2, 3 ; é \u4e2d \x00",
        "S_ADDI_INT gp1, gp2, +3",
        "S_ADDI_INT gp1, gp2, 0x3",
        "S_ADDI_INT gp1, gp2, 0X0003",
        "S_ADDI_INT gp1, gp2, 003",
        "S_ADDI_INT gp1, gp2, 0_3",
        "S_ADDI_INT gp1, gp2, 0x0_3",
        "s_addi_int gp1, gp2, 3",
    ],
)
def test_one_instruction_in_many_spellings(line: str):
    assert word(line) == 0x0000C862


@pytest.mark.parametrize(
    ("number", "value"),
    [("1_000", 1000), ("+12", 12), ("0x3FFFF", 262143), ("0X3ffff", 262143), ("0xaBcD", 0xABCD), ("-0", 0)],
)
def test_numbers(number: str, value: int):
    assert word(f"S_ADDI_INT gp0, gp0, {number}") == value << 14 | 0x22


@pytest.mark.parametrize("text", ["", "\n", "\n\n  \n\t\n", "; only", "// only", "//;\n;//\n", ";", "//", "\r\n\r\n"])
def test_nothing_to_assemble(text: str):
    program = assemble(text)
    assert len(program) == 0
    assert program.lines.tolist() == []


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_lines_kept(end: str):
    text = end.join(["; head", "C_BREAK", "", "  // note", "C_BREAK ; x", ".word 7", "C_BREAK"])
    program = assemble(text + end, "kernel.asm")
    assert program.words.tolist() == [0x34, 0x34, 7, 0x34]
    assert program.lines.tolist() == [2, 5, 6, 7]
    assert program.source == "kernel.asm"
    with pytest.raises(AssemblyError) as caught:
        assemble(text + end + "C_BRAKE")
    assert (caught.value.line, caught.value.column) == (8, 1)


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"])
def test_only_line_ends_end_a_comment(mark: str):
    # str.splitlines() would run what follows these, and count lines that no editor shows.
    assert words(f"C_BREAK ; then{mark}S_LUI_INT gp1, 1\nC_BREAK // {mark}C_BREAK") == [0x34, 0x34]
    assert refused(f"; {mark}{mark}\nC_BRAKE").line == 2


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (".word 0x00000031", 0x31),
        (".word 0xFFFFFFFF ; V_PS_V", 0xFFFFFFFF),
        ("\t.word\t0XdeadBEEF//x", 0xDEADBEEF),
        (".word 4294967295", 0xFFFFFFFF),
        (".word +1_0", 10),
        (".word 0", 0),
    ],
)
def test_word_directive(line: str, value: int):
    assert word(line) == value


def test_repeated_lines_are_the_same_words():
    lines = ["S_ADDI_INT gp1, gp1, 1", "V_ADD_VV gp1, gp2, gp3", "; note"] * 5
    program = assemble("\n".join(lines))
    assert program.words.tolist() == [0x4462, 0xC84D] * 5
    assert program.lines.tolist() == [n for n in range(1, 16) if n % 3]


def test_more_lines_than_are_remembered():
    count = (1 << 17) + 10
    program = assemble("\n".join(f"S_LUI_INT gp0, {n}" for n in range(count)) + "\nS_LUI_INT gp0, 0")
    assert np.array_equal(program.words, np.append(np.arange(count, dtype=np.uint32), 0) << 10 | 0x25)


@settings(deadline=None, max_examples=300)
@given(st.text(st.characters(codec="utf-8"), max_size=60) | st.text("SADDI_NTgpfa0123456789,;/ x-+.\n", max_size=60))
def test_any_text_is_assembled_or_refused_properly(text: str):
    try:
        assert assemble(text).words.dtype == np.uint32
    except AssemblyError as error:
        lines = re.split(r"\r\n|\r|\n", text)
        assert 1 <= error.line <= len(lines)
        assert 1 <= error.column <= len(lines[error.line - 1]) + 1


# -- errors -----------------------------------------------------------------------------------------------------------

#: The caret stands before the column that must be named; then what the message must hold.
REFUSED = [
    # what the published assembler silently corrupts
    ("S_ADDI_INT ^gp16, gp0, 1", "operand gpD of S_ADDI_INT", "gp16", "allowed: gp0..gp15"),
    ("S_ADDI_INT gp1, ^gp16, 1", "operand gpA of S_ADDI_INT", "gp16", "allowed: gp0..gp15"),
    ("  S_ADD_INT gp1,gp2,   ^gp31", "operand gpB of S_ADD_INT", "gp31", "allowed: gp0..gp15"),
    ("S_ADD_INT gp1, gp2, ^gp-1", "operand gpB of S_ADD_INT", "gp-1", "allowed: gp0..gp15"),
    ("S_ADDI_INT ^16, gp0, 1", "operand gpD of S_ADDI_INT", "16", "allowed: 0..15"),
    ("S_ADDI_INT ^-1, gp0, 1", "operand gpD of S_ADDI_INT", "-1", "allowed: 0..15"),
    ("M_BTMM ^16, gp0, gp3", "operand 0 of M_BTMM", "16", "allowed: 0..0"),
    ("M_BTMM ^1, gp0, gp3", "operand 0 of M_BTMM", "1", "allowed: 0..0"),
    ("M_BMM ^gp1, gp0, gp3", "operand 0 of M_BMM", "gp1", "allowed: 0..0"),
    ("M_MM ^16, gp1, gp2", "operand 0 of M_MM", "16", "allowed: 0..15"),
    ("M_MM ^gp16, gp1, gp2", "operand 0 of M_MM", "gp16", "allowed: 0..15"),
    ("S_ADDI_INT gp1, gp0, ^-1", "operand imm of S_ADDI_INT", "-1", "allowed: 0..262143 (0..0x3ffff)"),
    ("S_ADDI_INT gp1, gp0, ^262144", "operand imm of S_ADDI_INT", "262144", "allowed: 0..262143"),
    ("S_LUI_INT gp1, ^4194304", "operand imm of S_LUI_INT", "4194304", "allowed: 0..4194303 (0..0x3fffff)"),
    ("S_LUI_INT gp1, ^-4", "operand imm of S_LUI_INT", "-4", "allowed: 0..4194303"),
    ("C_LOOP_START gp4, ^0x400000", "operand imm of C_LOOP_START", "0x400000", "allowed: 0..4194303"),
    ("M_BMM_WO gp1, ^262144", "operand imm of M_BMM_WO", "262144", "allowed: 0..262143"),
    ("V_ADD_VF gp1, gp2, f3, ^16", "operand mask of V_ADD_VF", "16", "allowed: 0..15"),
    ("V_ADD_VF gp1, gp2, f3, ^gp1", "operand mask of V_ADD_VF", "gp1", "allowed: 0..15"),
    ("V_EXP_V gp1, gp2, ^16", "operand mask of V_EXP_V", "16", "allowed: 0..15"),
    ("V_RED_MAX f1, gp2, ^-1", "operand mask of V_RED_MAX", "-1", "allowed: 0..15"),
    ("V_SUB_VF gp1, gp2, f3, ^16, 0", "operand mask of V_SUB_VF", "16", "allowed: 0..15"),
    ("V_SUB_VF gp1, gp2, f3, 0, ^16", "operand order of V_SUB_VF", "16", "allowed: 0..15"),
    ("V_TOPK gp1, gp2, gp3, ^16", "operand policy of V_TOPK", "16", "allowed: 0..15"),
    ("H_STORE_V gp1, gp2, a3, ^16, 0", "operand rstride of H_STORE_V", "16", "allowed: 0..15"),
    ("H_STORE_V gp1, gp2, a3, 0, ^16", "operand precision of H_STORE_V", "16", "allowed: 0..15"),
    # register classes and registers that there are not
    ("S_ADD_FP ^gp1, f2, f3", "operand fD of S_ADD_FP", "gp1 is the wrong register class", "allowed: f0..f7"),
    ("S_ADD_FP f1, f2, ^a3", "operand fB of S_ADD_FP", "a3 is the wrong register class", "allowed: f0..f7"),
    ("S_ADD_FP f1, f2, ^f8", "operand fB of S_ADD_FP", "no register f8", "allowed: f0..f7"),
    ("V_ADD_VF gp1, gp2, ^f15", "operand fB of V_ADD_VF", "no register f15", "allowed: f0..f7"),
    ("V_ADD_VF gp1, gp2, ^gp3", "operand fB of V_ADD_VF", "gp3 is the wrong register class", "allowed: f0..f7"),
    ("V_ADD_VV gp1, ^f2, gp3", "operand gpA of V_ADD_VV", "f2 is the wrong register class", "allowed: gp0..gp15"),
    ("V_RED_SUM ^8, gp1", "operand fD of V_RED_SUM", "8 is out of range", "allowed: 0..7"),
    ("H_PREFETCH_M gp1, gp2, ^gp3, 0, 0", "operand aB of H_PREFETCH_M", "wrong register class", "allowed: a0..a15"),
    ("H_PREFETCH_V gp1, gp2, ^a16, 0, 0", "operand aB of H_PREFETCH_V", "no register a16", "allowed: a0..a15"),
    ("C_SET_ADDR_REG ^a16, gp0, gp1", "operand aD of C_SET_ADDR_REG", "no register a16", "allowed: a0..a15"),
    ("C_SET_ADDR_REG ^gp1, gp0, gp1", "operand aD of C_SET_ADDR_REG", "wrong register class", "allowed: a0..a15"),
    # what is no register
    ("S_ADD_INT gp1, ^2, gp3", "operand gpA of S_ADD_INT", "'2' is not a register", "allowed: gp0..gp15"),
    ("V_SHFT_V gp1, gp1, ^2", "operand gpN of V_SHFT_V", "'2' is not a register", "allowed: gp0..gp15"),
    ("M_MM_WO gp1, ^1, 4", "operand gpS of M_MM_WO", "'1' is not a register", "allowed: gp0..gp15 or 0"),
    ("M_MM_WO gp1, ^_, 4", "operand gpS of M_MM_WO", "'_' is not a register", "allowed: gp0..gp15 or 0"),
    ("M_MM_WO gp1, ^0x_, 4", "operand gpS of M_MM_WO", "'0x_' is not a register", "allowed: gp0..gp15 or 0"),
    ("S_ADD_INT ^gp, gp1, gp2", "operand gpD of S_ADD_INT", "'gp' is not a register", "allowed: gp0..gp15"),
    ("S_ADD_INT ^gp_, gp1, gp2", "operand gpD of S_ADD_INT", "'gp_' is not a register", "allowed: gp0..gp15"),
    ("S_ADD_INT ^GP1, gp1, gp2", "operand gpD of S_ADD_INT", "'GP1' is not a register", "allowed: gp0..gp15"),
    ("S_ADD_INT ^gpD, gp1, gp2", "operand gpD of S_ADD_INT", "'gpD' is not a register", "allowed: gp0..gp15"),
    ("S_ADD_INT gp1, gp2, ^gp3 gp4", "operand gpB of S_ADD_INT", "'gp3 gp4' is not", "allowed: gp0..gp15"),
    ("S_ADD_INT gp1, gp2, ^gp0x3", "operand gpB of S_ADD_INT", "'gp0x3' is not", "allowed: gp0..gp15"),
    # what is no number
    ("S_ADDI_INT gp1, gp2, ^gp3", "operand imm of S_ADDI_INT", "'gp3' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^1.5", "operand imm of S_ADDI_INT", "'1.5' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^1e3", "operand imm of S_ADDI_INT", "'1e3' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^0x", "operand imm of S_ADDI_INT", "'0x' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^0x1G", "operand imm of S_ADDI_INT", "'0x1G' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^0b11", "operand imm of S_ADDI_INT", "'0b11' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^12h", "operand imm of S_ADDI_INT", "'12h' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^1 2", "operand imm of S_ADDI_INT", "'1 2' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^1+2", "operand imm of S_ADDI_INT", "'1+2' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^6/2 ; half", "operand imm of S_ADDI_INT", "'6/2' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^-0x1", "operand imm of S_ADDI_INT", "'-0x1' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^0x-1", "operand imm of S_ADDI_INT", "'0x-1' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^1__0", "operand imm of S_ADDI_INT", "'1__0' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2, ^label", "operand imm of S_ADDI_INT", "'label' is not a number", "allowed: 0..262143"),
    # empty operands
    ("S_ADDI_INT ^, gp2, 3", "operand gpD of S_ADDI_INT", "'' is not a register", "allowed: gp0..gp15"),
    ("S_ADDI_INT gp1,^, 3", "operand gpA of S_ADDI_INT", "'' is not a register", "allowed: gp0..gp15"),
    ("S_ADDI_INT gp1, gp2,^", "operand imm of S_ADDI_INT", "'' is not a number", "allowed: 0..262143"),
    ("S_ADDI_INT gp1, gp2,  ^; 3", "operand imm of S_ADDI_INT", "'' is not a number", "allowed: 0..262143"),
    # the column is that of the operand at fault, not of an earlier one that looks like it
    ("S_ADD_FP f1, f1, ^f11 ; f11", "operand fB of S_ADD_FP", "no register f11", "allowed: f0..f7"),
    ("C_LOOP_START gp1, ^-1 // gp1, -1", "operand imm of C_LOOP_START", "-1", "allowed: 0..4194303"),
    ("V_ADD_VV gp1, gp1, gp1, ^gp1", "operand mask of V_ADD_VV", "'gp1'", "allowed: 0..15"),
    ("\tS_ADDI_INT\tgp1,\t^gp16,\t1", "operand gpA of S_ADDI_INT", "gp16", "allowed: gp0..gp15"),
    ("M_MV_WO gp3, gp0, ^262144", "operand imm of M_MV_WO", "262144", "allowed: 0..262143"),
    ("M_MV_WO ^f3, gp0, 0", "operand gpD of M_MV_WO", "f3", "allowed: gp0..gp15"),
    # .word
    (".word ^-1", ".word value", "-1 is out of range", "allowed: 0..4294967295 (0..0xffffffff)"),
    (".word ^0x100000000", ".word value", "0x100000000 is out of range", "allowed: 0..4294967295"),
    (".word ^gp1", ".word value", "'gp1' is not a number", "allowed: 0..4294967295"),
    ("  ^.word", ".word takes one word, got 0 operands"),
    ("^.word 1, 2", ".word takes one word, got 2 operands"),
    # how many operands
    ("^S_ADD_INT", "S_ADD_INT takes 3 operands, got no operands; operand gpD is missing: S_ADD_INT gpD, gpA, gpB"),
    (" ^S_ADD_INT gp1, gp2", "takes 3 operands, got 2 operands; operand gpB is missing: S_ADD_INT gpD, gpA, gpB"),
    ("^S_ADD_INT gp1, gp2, gp3, gp4", "takes 3 operands, got 4 operands: S_ADD_INT gpD, gpA, gpB"),
    ("^C_SET_SCALE_REG", "takes 1 operand, got no operands; operand gpS is missing: C_SET_SCALE_REG gpS"),
    ("^C_SET_SCALE_REG gp1, gp2", "takes 1 operand, got 2 operands: C_SET_SCALE_REG gpS"),
    ("^C_BREAK gp1", "C_BREAK takes no operands, got 1 operand: C_BREAK"),
    ("^V_ADD_VV gp1, gp2", "takes 3 to 4 operands, got 2 operands; operand gpB is missing"),
    (
        "^V_SUB_VF gp1, gp2, f3, 0, 1, 2",
        "takes 3 to 5 operands, got 6 operands: V_SUB_VF gpD, gpA, fB[, mask][, order]",
    ),
    ("^H_STORE_V gp1, gp2, a3", "takes 5 operands, got 3 operands; operand rstride is missing"),
    ("^S_ADD_INT gp1 gp2 gp3", "takes 3 operands, got 1 operand; operand gpA is missing"),
    # no such instruction
    ("^S_ADI_INT gp1, gp0, 1", "no instruction 'S_ADI_INT'; did you mean S_ADDI_INT?"),
    ("\t^v_add_vw gp1, gp2, gp3", "no instruction 'v_add_vw'; did you mean V_ADD_VV?"),
    ("^V_SHIFT_V gp1, gp2, gp3", "no instruction 'V_SHIFT_V'; did you mean V_SHFT_V?"),
    ("^frobnicate gp1", "no instruction 'frobnicate' (plena isa lists all)"),
    ("^loop:", "no instruction 'loop:'"),
    ("^V_PS_V gp1, gp2, gp0", "no instruction 'V_PS_V'"),
    ("^INVALID_OPCODE", "no instruction 'INVALID_OPCODE'"),
    ("^S_ADD_INT, gp1, gp2, gp3", "no instruction 'S_ADD_INT,'; did you mean S_ADD_INT?"),
    ("^0x00000001", "no instruction '0x00000001'"),
    ("^# comment", "no instruction '#'"),
    ("^.WORD 1", "no instruction '.WORD'"),
    ("^gp1", "no instruction 'gp1'"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[case[0].strip() for case in REFUSED])
def test_refused(case: tuple[str, ...]):
    marked, *fragments = case
    column = marked.index("^") + 1
    line = marked.replace("^", "")
    with pytest.raises(AssemblyError) as caught:
        assemble(f"; head\nC_BREAK\n{line}\nC_BREAK 1\n", "kernel.asm")
    error = caught.value
    assert (error.line, error.column, error.source, error.text) == (3, column, "kernel.asm", line.rstrip())
    for fragment in fragments:
        assert fragment in error.message
    head, shown, caret = str(error).split("\n")
    assert head == f"kernel.asm:3:{column}: {error.message}"
    assert shown == "    " + line.rstrip()
    assert (caret.index("^"), caret.strip()) == (4 + column - 1, "^")
    assert isinstance(error, PlenaError) and isinstance(error, ValueError)


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_every_operand_at_its_limit_and_one_beyond(row: Row):
    most = [slot.most for slot in row.slots]
    spelt = lambda values: [f"{slot.kind}{value}" for slot, value in zip(row.slots, values, strict=True)]
    assert word(f"{row.mnemonic} {', '.join(spelt(most))}") == encode(row, most)
    for place, slot in enumerate(row.slots):
        tokens = spelt(most)
        for beyond in (slot.most + 1, -1):
            tokens[place] = f"{slot.kind}{beyond}"
            line = f"{row.mnemonic} {', '.join(tokens)}"
            error = refused(line)
            assert error.column == len(row.mnemonic) + 2 + sum(len(token) + 2 for token in tokens[:place])
            assert f"operand {slot.name} of {row.mnemonic}: " in error.message
            assert error.message.split("allowed: ")[1].split(" ")[0] == f"{slot.kind}0..{slot.kind}{slot.most}"
        for kind in {"gp", "f", "a"} - {slot.kind}:
            tokens[place] = f"{kind}1"
            if slot.name == "0" and kind == "gp" and slot.most:
                assert word(f"{row.mnemonic} {', '.join(tokens)}") == encode(row, [1, *most[1:]])
            else:
                assert refused(f"{row.mnemonic} {', '.join(tokens)}").column > len(row.mnemonic)


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_every_number_of_operands(row: Row):
    least = sum(not slot.optional for slot in row.slots)
    values = [min(slot.most, 1) for slot in row.slots]
    tokens = [f"{slot.kind}{value}" for slot, value in zip(row.slots, values, strict=True)] + ["1"]
    for count in range(len(tokens) + 1):
        line = f"{row.mnemonic} {', '.join(tokens[:count])}"
        if least <= count <= len(row.slots):
            assert word(line) == encode(row, values[:count])
        else:
            error = refused(line)
            assert error.column == 1
            assert error.message.endswith(f": {row.syntax}")
            assert ("is missing" in error.message) == (count < least)


def test_the_first_mistake_is_the_one_reported():
    assert refused("C_BREAK\nS_LUI_INT gp16, -1\nfoo").line == 2
    assert "gpD" in refused("S_LUI_INT gp16, -1").message


def test_a_mistake_in_a_remembered_line_names_its_own_line():
    assert refused("C_BREAK\nC_BREAK\nC_BRAKE\nC_BRAKE").line == 3


# -- telling assembly from words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "assembly"),
    [
        ("", False),
        ("\n \n", False),
        ("0x00000022\n", False),
        ("DEADBEEF", False),
        ("0x0x12", False),
        ("\n\n  22 23", False),
        ("; note\n0x00000022", True),
        ("// note", True),
        ("C_BREAK", True),
        ("\n\nC_BREAK", True),
        (".word 0x22", True),
        ("0x22 ; note", True),
        ("add", False),
    ],
)
def test_looks_like_assembly(text: str, assembly: bool):
    assert looks_like_assembly(text) is assembly


# -- speed ------------------------------------------------------------------------------------------------------------


def varied_words(count: int) -> np.ndarray:
    """Different words of instructions with random operands, in random order."""
    rng = np.random.default_rng(0)
    found = [np.zeros(0, np.int64)]
    for row in EXPECTED.values():
        chosen = np.full(count // 20, row.opcode)
        for slot in row.slots:
            chosen |= rng.integers(slot.most + 1, size=len(chosen)) << BITS[slot.field][0]
        found.append(np.unique(chosen))
    return rng.permutation(np.concatenate(found).astype(np.uint32))[:count]


@pytest.mark.slow
def test_a_million_instructions_in_less_than_ten_seconds():
    given_words = varied_words(1_000_000)
    assert len(given_words) == len(np.unique(given_words)) == 1_000_000
    start = time.perf_counter()
    texts = disassemble(given_words)
    disassembled = time.perf_counter() - start
    assert len(set(texts)) == 1_000_000
    assert {text.split()[0] for text in texts} == EXPECTED.keys()
    text = "\n".join(texts)
    start = time.perf_counter()
    program = assemble(text)
    assembled = time.perf_counter() - start
    mem = program.to_mem()
    start = time.perf_counter()
    again = Program.from_mem(mem)
    read = time.perf_counter() - start
    print(f"\n1,000,000 different instructions: disassembled {disassembled:.2f} s, assembled {assembled:.2f} s", end="")
    print(f", .mem read {read:.2f} s")
    assert np.array_equal(program.words, given_words)
    assert again == program
    assert max(disassembled, assembled, read) < 10


# -- odd texts --------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_ignored(tmp_path):
    text = "S_ADDI_INT gp1, gp0, 5\nV_EXP_V gp1, gp2"
    (tmp_path / "a.asm").write_text(text, encoding="utf-8-sig")
    assert assemble("\ufeff" + text) == assemble(text) == Program.load(tmp_path / "a.asm")


@pytest.mark.parametrize("value", [None, b"S_ADDI_INT gp1, gp0, 5", 5, ["S_ADDI_INT gp1, gp0, 5"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(AssemblyError, match=f"a program is a text, got {type(value).__name__}$"):
        assemble(value)


@pytest.mark.parametrize("digits", ["9" * 5000, "1" + "0" * 5000, "-" + "7" * 9000, "0x" + "F" * 6000, "9" * 100])
@pytest.mark.parametrize("line", ["S_ADDI_INT gp1, gp0, {}", ".word {}", "S_ADDI_INT gp{}, gp0, 1"])
def test_huge_numbers_are_out_of_range_and_shown_shortened(line: str, digits: str):
    with pytest.raises(AssemblyError) as caught:
        assemble(line.format(digits))
    if "gp{}" not in line:
        assert f"{digits[:12]}...{digits[-4:]} ({len(digits)} characters) is out of range" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_leading_zeros_do_not_make_a_number_huge():
    assert assemble(f"S_ADDI_INT gp1, gp0, {'0' * 5000}5") == assemble("S_ADDI_INT gp1, gp0, 5")


def test_a_caret_in_a_long_line_stands_under_the_operand():
    with pytest.raises(AssemblyError) as caught:
        assemble(" " * 500 + "S_ADDI_INT gp1, gp0, x ; " + "z" * 500)
    *_, shown, mark = str(caught.value).split("\n")
    assert shown[mark.index("^")] == "x"
    assert caught.value.column == 522
