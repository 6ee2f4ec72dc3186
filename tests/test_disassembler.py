"""Words to text: the text says what the machine sees, and assembling it gives exactly the words back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_isa_table import BITS, EXPECTED, UNASSIGNED, Row, encode

from plena_jax import Program, ProgramError, assemble, disassemble
from plena_jax.disassembler import describe_word, disassemble_word

#: Words, hexadecimal, and their text.
_TEXTS = """
00010046 M_MM_WO gp1, gp0, 4
00100045 M_BMM_WO gp1, 64
00010045 M_BMM_WO gp1, 4
0010004B M_MV_WO gp1, 64
00040853 V_EXP_V gp1, gp2, 1
00000853 V_EXP_V gp1, gp2
00040856 V_RED_MAX f1, gp2, 1
00040855 V_RED_SUM f1, gp2, 1
0004C84E V_ADD_VF gp1, gp2, f3, 1
0000C84E V_ADD_VF gp1, gp2, f3
0000C850 V_SUB_VF gp1, gp2, f3
0004C850 V_SUB_VF gp1, gp2, f3, 1
0040C850 V_SUB_VF gp1, gp2, f3, 0, 1
0040C86A H_STORE_V gp1, gp2, a3, 0, 1
0000C868 H_PREFETCH_M gp1, gp2, a3, 0, 0
0000406B C_SET_ADDR_REG a1, gp0, gp1
0000212F C_LOOP_START gp4, 8
00000130 C_LOOP_END gp4
00001065 S_LUI_INT gp1, 4
FFFFFFE5 S_LUI_INT gp15, 4194303
FFFFFFE2 S_ADDI_INT gp15, gp15, 262143
00000034 C_BREAK
00000001 M_MM 0, gp0, gp0
000003C1 M_MM 15, gp0, gp0
00000804 M_BTMM 0, gp2, gp0
0000C0B7 V_TOPK gp2, gp0, gp3
003CC0B7 V_TOPK gp2, gp0, gp3, 15
000080F2 V_SHFT_V gp3, gp0, gp2
0002805F S_ST_FP f1, gp0, 10
00000000 .word 0x00000000  ; unassigned opcode 0x00
DEADBEF1 .word 0xDEADBEF1  ; unassigned opcode 0x31
00000033 .word 0x00000033  ; unassigned opcode 0x33
FFFFFFFF .word 0xFFFFFFFF  ; unassigned opcode 0x3F
00000074 .word 0x00000074  ; C_BREAK
80000034 .word 0x80000034  ; C_BREAK
0004080D .word 0x0404080D  ; V_ADD_VV gp0, gp2, gp0, 1
00000044 .word 0x00000044  ; M_BTMM 1, gp0, gp0
000003C3 .word 0x000003C3  ; M_BMM 15, gp0, gp0
00002057 .word 0x00002057  ; S_ADD_FP f1, f8, f0
000003DE .word 0x000003DE  ; S_LD_FP f15, gp0, 0
00004853 .word 0x00004853  ; V_EXP_V gp1, gp2
00000530 .word 0x00000530  ; C_LOOP_END gp4
"""


@pytest.mark.parametrize("line", _TEXTS.strip().splitlines())
def test_texts(line: str):
    word, text = line.split(" ", 1)
    value = int(text.split()[1], 16) if text.startswith(".word") else int(word, 16)
    assert disassemble([value]) == [text]
    assert assemble(text).words.tolist() == [value]


def test_every_opcode_comes_back_whatever_the_other_bits():
    rng = np.random.default_rng(0)
    opcodes = np.repeat(np.arange(64, dtype=np.uint32), 400)
    words = rng.integers(1 << 26, size=len(opcodes)).astype(np.uint32) << 6 | opcodes
    # Junk in unused bits makes most of these .word: as many have theirs cleared.
    for row in EXPECTED.values():
        used = 0x3F | sum(((1 << width) - 1) << shift for shift, width in (BITS[slot.field] for slot in row.slots))
        words[row.opcode * 400 : row.opcode * 400 + 200] &= np.uint32(used)
    texts = disassemble(words)
    assert np.array_equal(assemble("\n".join(texts)).words, words)
    assert Program.from_words(words).disassemble() == texts
    for word, text in zip(words.tolist(), texts, strict=True):
        if word & 63 in UNASSIGNED:
            assert text == f".word 0x{word:08X}  ; unassigned opcode 0x{word & 63:02X}"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=50))
def test_words_to_text_to_words(words: list[int]):
    texts = disassemble(words)
    assert len(texts) == len(words)
    program = assemble("\n".join(texts))
    assert program.words.tolist() == words
    assert program.disassemble() == texts


@st.composite
def _operands(draw) -> tuple[Row, list[int]]:
    row = draw(st.sampled_from(list(EXPECTED.values())))
    return row, [draw(st.sampled_from([0, slot.most]) | st.integers(0, slot.most)) for slot in row.slots]


_SPACE = st.sampled_from([" ", "  ", "\t", " \t "])
_GAP = st.sampled_from(["", " ", "\t"])
_END = st.sampled_from(["", ";", " ; note", "// S_ADD_INT gp1", "\t//;", "  ", ";;gp16, -1"])
_BLANK = st.sampled_from(["", "", "\n", "; note\n", "  // C_BREAK\n", "\t\n"])


@st.composite
def _source(draw) -> tuple[list[int], str]:
    words, text = [], ""
    for row, values in draw(st.lists(_operands(), max_size=8)):
        words.append(encode(row, values))
        shown = list(zip(row.slots, values, strict=True))
        while shown and shown[-1][0].optional and shown[-1][1] == 0 and draw(st.booleans()):
            shown.pop()
        operands = ""
        for slot, value in shown:
            number = (
                draw(st.sampled_from(["{}", "{:#x}", "{:#X}", "{:#010x}"])) if slot.kind == "" else slot.kind + "{}"
            )
            operands += ("," if operands else "") + draw(_GAP) + number.format(value) + draw(_GAP)
        gap = draw(_SPACE) if operands else ""
        text += (
            draw(_BLANK)
            + draw(_GAP)
            + row.mnemonic
            + gap
            + operands
            + draw(_END)
            + draw(st.sampled_from(["\n", "\r\n"]))
        )
    return words, text


@settings(deadline=None, max_examples=400)
@given(_source())
def test_text_to_words_to_text_to_words(case: tuple[list[int], str]):
    expected, text = case
    program = assemble(text)
    assert program.words.tolist() == expected
    texts = program.disassemble()
    assert not any(line.startswith(".word") for line in texts)
    assert assemble("\n".join(texts)) == program
    assert Program.from_mem(program.to_mem()) == program


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_the_text_names_every_operand(row: Row):
    most = [slot.most for slot in row.slots]
    expected = f"{row.mnemonic} " + ", ".join(f"{slot.kind}{slot.most}" for slot in row.slots)
    assert disassemble_word(encode(row, most)) == expected.strip()
    # Only optional operands are left out, and those only where nothing follows them.
    zeros = [f"{slot.kind}0" for slot in row.slots if not slot.optional]
    assert disassemble_word(row.opcode) == f"{row.mnemonic} {', '.join(zeros)}".strip()


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_bits_that_no_text_gives_need_the_word_itself(row: Row):
    used = [bit for slot in row.slots for shift, width in [BITS[slot.field]] for bit in range(shift, shift + width)]
    for bit in sorted(set(range(6, 32)) - set(used)):
        word = row.opcode | 1 << bit
        assert disassemble_word(word) == f".word 0x{word:08X}  ; {disassemble_word(row.opcode)}"
    for slot in row.slots:
        shift, width = BITS[slot.field]
        if slot.most < (1 << width) - 1:
            word = row.opcode | (slot.most + 1) << shift
            assert disassemble_word(word).startswith(f".word 0x{word:08X}  ; {row.mnemonic} ")
            assert f"{slot.kind}{slot.most + 1}" in disassemble_word(word)


def test_what_the_machine_sees():
    assert describe_word(0x0040C850) == "V_SUB_VF gp1, gp2, f3, 0, 1"
    assert describe_word(0x00000044) == "M_BTMM 1, gp0, gp0"
    assert describe_word(0x00002057) == "S_ADD_FP f1, f8, f0"
    assert describe_word(0xFFFFFFFF) == "unassigned opcode 0x3F"


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.uint64, np.int32, np.uint8])
def test_integers_of_any_type(dtype: type):
    assert disassemble(np.array([0x34, 0x34, 0x21], dtype)) == ["C_BREAK", "C_BREAK", "S_ADD_INT gp0, gp0, gp0"]


def test_no_words():
    assert disassemble([]) == []
    assert disassemble(np.zeros(0, np.uint32)) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([-1], "word 0 is -1"),
        ([0, 1 << 32], "word 1 is 4294967296"),
        (np.array([0x34, -1]), "word 1 is -1"),
        (np.array([1 << 40]), "word 0 is 1099511627776"),
        ([52.5], "float64"),
        ([[0x34]], "(1, 1)"),
        (0x34, "()"),
        (["C_BREAK"], "<U7"),
    ],
)
def test_words_that_are_none(words: object, message: str):
    with pytest.raises(ProgramError) as caught:
        disassemble(words)
    assert message in str(caught.value)


def test_programs_of_the_published_compiler(conformance: Path):
    paths = sorted(conformance.rglob("*.npz"))
    assert len(paths) >= 135
    for path in paths:
        with np.load(path) as case:
            words = case["program"]
        texts = disassemble(words)
        program = assemble("\n".join(texts), path.stem)
        assert np.array_equal(program.words, words), path.stem
        assert program == Program.from_words(words)
        # Only the masks that the published assembler puts where nothing reads them have no text.
        odd = {text.split("; ")[1].split()[0] for text in texts if text.startswith(".word")}
        assert odd <= ({"V_EXP_V", "V_RECI_V"} if path.stem == "micro_vector_masks" else set()), path.stem
