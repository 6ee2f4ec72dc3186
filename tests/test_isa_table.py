"""The instruction table against the opcode table of docs/machine.md 3.2, written out a second time."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from plena_jax.isa import BY_MNEMONIC, BY_OPCODE, INSTRUCTIONS, TOPK_POLICIES, Field, Kind, Unit

#: Lowest bit and width of each field (docs/machine.md 3.1).
BITS = {
    "rd": (6, 4),
    "rs1": (10, 4),
    "rs2": (14, 4),
    "rs3": (18, 4),
    "funct1": (22, 4),
    "imm18": (14, 18),
    "imm22": (10, 22),
}

# Opcode, unit, fields in the order of the text | text. Optional operands in brackets; a bare 0 is a plain zero.
_TABLE = """
01 matrix      rd rs1 rs2            | M_MM 0, gpM, gpV
02 matrix      rd rs1 rs2            | M_TMM 0, gpV, gpM
03 matrix      rd rs1 rs2            | M_BMM 0, gpM, gpV
04 matrix      rd rs1 rs2            | M_BTMM 0, gpM, gpV
05 matrix      rd imm18              | M_BMM_WO gpD, imm
06 matrix      rd rs1 imm18          | M_MM_WO gpD, gpS, imm
07 matrix      rd rs1 rs2            | M_MV 0, gpM, gpV
08 matrix      rd rs1 rs2            | M_TMV 0, gpM, gpV
09 matrix      rd rs1 rs2            | M_BMV gpO, gpM, gpV
0A matrix      rd rs1 rs2            | M_BTMV gpO, gpM, gpV
0B matrix      rd imm18              | M_MV_WO gpD, imm
0C matrix      rd imm18              | M_BMV_WO gpD, imm
0D vector      rd rs1 rs2 rs3        | V_ADD_VV gpD, gpA, gpB[, mask]
0E vector      rd rs1 rs2 rs3        | V_ADD_VF gpD, gpA, fB[, mask]
0F vector      rd rs1 rs2 rs3        | V_SUB_VV gpD, gpA, gpB[, mask]
10 vector      rd rs1 rs2 rs3 funct1 | V_SUB_VF gpD, gpA, fB[, mask][, order]
11 vector      rd rs1 rs2 rs3        | V_MUL_VV gpD, gpA, gpB[, mask]
12 vector      rd rs1 rs2 rs3        | V_MUL_VF gpD, gpA, fB[, mask]
13 vector      rd rs1 rs3            | V_EXP_V gpD, gpA[, mask]
14 vector      rd rs1 rs3            | V_RECI_V gpD, gpA[, mask]
15 vector      rd rs1 rs3            | V_RED_SUM fD, gpA[, mask]
16 vector      rd rs1 rs3            | V_RED_MAX fD, gpA[, mask]
17 scalar_fp   rd rs1 rs2            | S_ADD_FP fD, fA, fB
18 scalar_fp   rd rs1 rs2            | S_SUB_FP fD, fA, fB
19 scalar_fp   rd rs1 rs2            | S_MAX_FP fD, fA, fB
1A scalar_fp   rd rs1 rs2            | S_MUL_FP fD, fA, fB
1B scalar_fp   rd rs1                | S_EXP_FP fD, fA
1C scalar_fp   rd rs1                | S_RECI_FP fD, fA
1D scalar_fp   rd rs1                | S_SQRT_FP fD, fA
1E scalar_fp   rd rs1 imm18          | S_LD_FP fD, gpA, imm
1F scalar_fp   rd rs1 imm18          | S_ST_FP fS, gpA, imm
20 scalar_fp   rd rs1 imm18          | S_MAP_V_FP gpD, gpA, imm
21 scalar_int  rd rs1 rs2            | S_ADD_INT gpD, gpA, gpB
22 scalar_int  rd rs1 imm18          | S_ADDI_INT gpD, gpA, imm
23 scalar_int  rd rs1 rs2            | S_SUB_INT gpD, gpA, gpB
24 scalar_int  rd rs1 rs2            | S_MUL_INT gpD, gpA, gpB
25 scalar_int  rd imm22              | S_LUI_INT gpD, imm
26 scalar_int  rd rs1 imm18          | S_LD_INT gpD, gpA, imm
27 scalar_int  rd rs1 imm18          | S_ST_INT gpS, gpA, imm
28 memory      rd rs1 rs2 rs3 funct1 | H_PREFETCH_M gpD, gpO, aB, rstride, precision
29 memory      rd rs1 rs2 rs3 funct1 | H_PREFETCH_V gpD, gpO, aB, rstride, precision
2A memory      rd rs1 rs2 rs3 funct1 | H_STORE_V gpD, gpO, aB, rstride, precision
2B control     rd rs1 rs2            | C_SET_ADDR_REG aD, gpHi, gpLo
2C control     rd                    | C_SET_SCALE_REG gpS
2D control     rd                    | C_SET_STRIDE_REG gpS
2E control     rd                    | C_SET_V_MASK_REG gpS
2F control     rd imm22              | C_LOOP_START gpL, imm
30 control     rd                    | C_LOOP_END gpL
32 vector      rd rs1 rs2            | V_SHFT_V gpD, gpA, gpN
34 control                           | C_BREAK
35 vector      rd rs1 rs2 rs3        | V_MAX_VF gpD, gpA, fB[, mask]
36 vector      rd rs1 rs2 rs3        | V_MIN_VF gpD, gpA, fB[, mask]
37 vector      rd rs1 rs2 rs3        | V_TOPK gpW, gpL, gpI[, policy]
"""

UNASSIGNED = {0x00, 0x31, 0x33, *range(0x38, 0x40)}


class Slot(NamedTuple):
    """An operand: its name in the text, register class ("" for a number), field, largest value, whether optional."""

    name: str
    kind: str
    field: str
    most: int
    optional: bool


class Row(NamedTuple):
    """A line of the table above."""

    mnemonic: str
    opcode: int
    unit: str
    slots: tuple[Slot, ...]
    syntax: str


def _row(line: str) -> Row:
    left, syntax = (part.strip() for part in line.split("|"))
    opcode, unit, *fields = left.split()
    mnemonic, *operands = re.findall(r"[\w]+|\[, \w+\]", syntax)
    slots = []
    for field, text in zip(fields, operands, strict=True):
        name = text.strip("[], ")
        kind = match[1] if (match := re.match(r"(gp|f|a)[A-Z]", name)) else ""
        most = {"gp": 15, "f": 7, "a": 15, "": (1 << BITS[field][1]) - 1}[kind]
        # The machine refuses M_BMM and M_BTMM with anything in rd; elsewhere it does not look.
        if name == "0" and mnemonic in ("M_BMM", "M_BTMM"):
            most = 0
        slots.append(Slot(name, kind, field, most, text.startswith("[")))
    return Row(mnemonic, int(opcode, 16), unit, tuple(slots), syntax)


EXPECTED = {row.mnemonic: row for row in map(_row, _TABLE.strip().splitlines())}


def encode(row: Row, values: list[int] | tuple[int, ...]) -> int:
    """The word with these operands, by the fields of the machine; optional ones that are left out are 0."""
    word = row.opcode
    for slot, value in zip(row.slots, values, strict=False):
        word |= value << BITS[slot.field][0]
    return word


def test_exactly_these_instructions():
    assert len(INSTRUCTIONS) == 53
    assert [(i.mnemonic, i.opcode) for i in sorted(INSTRUCTIONS, key=lambda i: i.opcode)] == [
        (row.mnemonic, row.opcode) for row in EXPECTED.values()
    ]


def test_unassigned_opcodes():
    assert set(range(64)) - set(BY_OPCODE) == UNASSIGNED
    assert not {"INVALID_OPCODE", "V_PS_V", "C_HADAMARD_TRANSFORM", "V_SHIFT_V", "S_MV_FP"} & set(BY_MNEMONIC)


def test_both_indexes_hold_the_same_entries():
    assert list(BY_MNEMONIC.values()) == list(BY_OPCODE.values()) == list(INSTRUCTIONS)
    assert all(BY_MNEMONIC[i.mnemonic] is i and BY_OPCODE[i.opcode] is i for i in INSTRUCTIONS)


def test_fields():
    assert {f.name.lower(): (f.shift, f.limit) for f in Field} == {
        name: (shift, (1 << width) - 1) for name, (shift, width) in BITS.items()
    }


def test_units():
    assert {unit.name.lower() for unit in Unit} == {row.unit for row in EXPECTED.values()}


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_entry(row: Row):
    entry = BY_MNEMONIC[row.mnemonic]
    assert entry.opcode == row.opcode
    assert entry.unit is Unit[row.unit.upper()]
    assert entry.syntax == row.syntax
    assert [o.field.name.lower() for o in entry.operands] == [slot.field for slot in row.slots]
    assert [o.kind for o in entry.operands] == [Kind(slot.kind) for slot in row.slots]
    assert [o.kind.value + o.name for o in entry.operands] == [slot.name for slot in row.slots]
    assert [o.default for o in entry.operands] == [0 if slot.optional else None for slot in row.slots]
    assert [o.most for o in entry.operands] == [slot.most for slot in row.slots]
    assert entry.doc


@pytest.mark.parametrize("row", EXPECTED.values(), ids=EXPECTED)
def test_bits_of_an_entry(row: Row):
    entry = BY_MNEMONIC[row.mnemonic]
    used = [0x3F] + [((1 << width) - 1) << shift for shift, width in (BITS[slot.field] for slot in row.slots)]
    assert entry.mask == sum(used), "fields overlap, or the mask is wrong"
    for field in Field:
        operand = entry.operand(field)
        assert (operand.field if operand else None) == (
            field if field.name.lower() in [slot.field for slot in row.slots] else None
        )


def test_only_the_stride_register_of_m_mm_wo_takes_a_number_too():
    literals = {(i.mnemonic, o.name): o.literal for i in INSTRUCTIONS for o in i.operands if o.literal is not None}
    assert literals == {("M_MM_WO", "S"): 0}


def test_what_destination_f0_makes_a_no_op():
    # docs/machine.md 1.1: arithmetic and reductions; S_LD_FP does write f0.
    assert {i.mnemonic for i in INSTRUCTIONS if i.ignores_rd_0} == {
        *("V_RED_SUM", "V_RED_MAX"),
        *("S_ADD_FP", "S_SUB_FP", "S_MAX_FP", "S_MUL_FP", "S_EXP_FP", "S_RECI_FP", "S_SQRT_FP"),
    }


def test_topk_policies():
    assert TOPK_POLICIES == ((32, 4), (128, 8))
