"""Programs to tables: everything about an instruction that does not depend on registers, one int32 row per word."""

from __future__ import annotations

import enum
from functools import lru_cache

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.disassembler import describe_word
from plena_jax.errors import ProgramError
from plena_jax.isa import BY_MNEMONIC, BY_OPCODE, TOPK_POLICIES, Field, Instruction, Kind, Operand, Space
from plena_jax.isa.instruction import OPCODE_MASK
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import UNITS
from plena_jax.machine.semantics import CONTROL, SEMANTICS, Stage, branch_index
from plena_jax.machine.transfer import Transfer, Transfers
from plena_jax.program import Program


class Slot(enum.IntEnum):
    """Columns of one of the three operands rd, rs1, rs2."""

    #: Register number of the value, or the number itself.
    FIELD = 0
    #: 1 if FIELD names a gp register.
    IS_GP = 1
    #: Added to the value.
    ADD = 2
    #: 1 if gp[rd] is added too.
    ADD_RD = 3
    #: Elements per block (1: the value is the block), and the offsets allowed within one.
    BLOCK = 4
    OFFSET_UNIT = 5
    OFFSET_LIMIT = 6
    #: Last block at which the operand may start; NEVER is 1 if there is none.
    LAST = 7
    NEVER = 8
    #: Blocks touched, if they are VRAM rows; else 0.
    VRAM_ROWS = 9


_SLOTS = (Field.RD, Field.RS1, Field.RS2)


class Column(enum.IntEnum):
    """Columns of a decoded program; those of the three operands follow, in the order of ``_SLOTS``."""

    STAGE = 0
    FAULT = 1
    BRANCH = 2
    OPERATION = 3
    RD = 4
    RS1 = 5
    RS2 = 6
    IMM = 7
    CYCLES = 8
    UNIT = 9
    PARTS = 10
    TARGET = 11
    MASKED = 12
    ARGUMENT = 13
    ADDS_TO = 14
    DRAINS = 15
    SPECIAL = 16
    ROW_STEP = 17
    STRIDED = 18
    RATIO = 19
    ELEMENT_BYTES = 20
    SCALE_BYTES = 21
    OPERANDS = 22


WIDTH = Column.OPERANDS + len(_SLOTS) * len(Slot)


def column(field: Field, slot: Slot) -> int:
    """Index of an operand's column."""
    return Column.OPERANDS + _SLOTS.index(field) * len(Slot) + slot


class Special(enum.IntEnum):
    """Instructions whose addresses need more than a base and a count."""

    NONE = 0
    WRITE_OUT = 1
    PREFETCH_M = 2
    PREFETCH_V = 3
    STORE = 4


_SPECIALS = {
    "M_MM_WO": Special.WRITE_OUT,
    "H_PREFETCH_M": Special.PREFETCH_M,
    "H_PREFETCH_V": Special.PREFETCH_V,
    "H_STORE_V": Special.STORE,
}

#: Operations of the control stage; the last one does nothing.
OPERATIONS = tuple(CONTROL)
NO_OPERATION = len(OPERATIONS)


def padded_length(words: int) -> int:
    """Rows of a decoded program: few different sizes, so that compiled code is shared."""
    return max(256, 1 << words.bit_length())


@lru_cache(maxsize=64)
def decode(program: Program, config: MachineConfig) -> np.ndarray:
    """int32 [padded, columns] table of a program; rows past its end halt.

    Raises:
        ProgramError: a word that the machine refuses to load, executed or not (M_BMM or M_BTMM with rd other than 0).
    """
    unique, index = np.unique(program.words, return_inverse=True)
    rows = np.zeros((len(unique), WIDTH), np.int64)
    for row, word in zip(rows, unique.tolist(), strict=True):
        _decode_word(row, word, config)
    table = np.zeros((padded_length(len(program)), WIDTH), np.int64)
    table[:, Column.STAGE] = Stage.HALTED
    table[: len(program)] = rows[index]
    refused = np.nonzero(table[:, Column.FAULT] < 0)[0]
    if len(refused):
        pc = int(refused[0])
        word = int(program.words[pc])
        raise ProgramError(
            f"{program.source}: pc {pc}: word 0x{word:08X} ({describe_word(word)}): the rd field must be 0"
        )
    if config.intended.c_break:
        _find_loop_ends(table, program)
    decoded = table.astype(np.uint32).view(np.int32)
    decoded.setflags(write=False)
    return decoded


def _find_loop_ends(table: np.ndarray, program: Program) -> None:
    """Give every C_BREAK the pc behind the C_LOOP_END that closes the loop it stands in (0 if there is none)."""
    opcodes = program.words & OPCODE_MASK
    start, end, leave = (BY_MNEMONIC[name].opcode for name in ("C_LOOP_START", "C_LOOP_END", "C_BREAK"))
    depth = np.cumsum(opcodes == start) - np.cumsum(opcodes == end)
    ends = np.nonzero(opcodes == end)[0]
    for pc in np.nonzero(opcodes == leave)[0]:
        closing = ends[(ends > pc) & (depth[ends] < depth[pc])]
        table[pc, Column.IMM] = closing[0] + 1 if len(closing) else 0


def _decode_word(row: np.ndarray, word: int, config: MachineConfig) -> None:
    entry = BY_OPCODE.get(word & OPCODE_MASK)
    value = lambda f: word >> f.shift & f.limit
    if entry is None:
        row[[Column.STAGE, Column.FAULT]] = Stage.FAULTED, Fault.INVALID_OPCODE
        return
    row[Column.RD], row[Column.RS1], row[Column.RS2] = (value(f) for f in _SLOTS)
    row[Column.UNIT] = UNITS.index(entry.unit)
    row[Column.OPERATION] = NO_OPERATION
    if any(o.limit == 0 and o.field is Field.RD and value(o.field) for o in entry.operands):
        row[Column.FAULT] = -1  # refused at load
        return
    if entry.ignores_rd_0 and value(Field.RD) == 0:
        row[Column.STAGE] = Stage.CONTROL
        return
    row[Column.CYCLES] = entry.cycles(config, value(Field.RS3))
    immediate = next((o.field for o in entry.operands if o.field in (Field.IMM18, Field.IMM22)), None)
    row[Column.IMM] = value(immediate) if immediate else 0
    fault = _static_fault(entry, word, config)
    if fault:
        row[[Column.STAGE, Column.FAULT]] = Stage.FAULTED, fault
    for operand in entry.operands:
        if operand.field in _SLOTS:
            _decode_operand(row, operand, word, config)
    if entry.mnemonic in CONTROL:
        row[Column.OPERATION] = OPERATIONS.index(entry.mnemonic)
    elif entry.mnemonic == "C_BREAK":
        row[Column.STAGE] = Stage.RARE
    elif not fault:
        _decode_datapath(row, entry, word, config)


def _static_fault(entry: Instruction, word: int, config: MachineConfig) -> Fault:
    """What is wrong with an instruction whatever the registers hold."""
    value = lambda f: word >> f.shift & f.limit
    name = entry.mnemonic
    if any(o.kind is Kind.F and value(o.field) > o.most for o in entry.operands):
        return Fault.F_REGISTER
    if name == "V_TOPK" and value(Field.RS3) >= len(TOPK_POLICIES):
        return Fault.TOPK_POLICY
    if name == "M_BMV" and not config.intended.m_bmv:
        return Fault.M_BMV
    if name in ("M_BMM", "M_BTMM", "M_BMV", "M_BTMV") and not config.heads_match:
        return Fault.HEADS
    if name == "C_LOOP_START" and value(Field.IMM22) == 0:
        return Fault.LOOP_ZERO
    if name in _SPECIALS and name != "M_MM_WO" and _transfer(name, value(Field.FUNCT1), config).problem:
        return Fault.FORMAT
    return Fault.OK


def _transfer(name: str, precision: int, config: MachineConfig) -> Transfer:
    transfers = Transfers.of(config)
    return (transfers.matrix if name == "H_PREFETCH_M" else transfers.vector)[precision != 0]


def _decode_operand(row: np.ndarray, operand: Operand, word: int, config: MachineConfig) -> None:
    field, address = operand.field, operand.address
    number = word >> field.shift & field.limit
    put = lambda slot, value: row.__setitem__(column(field, slot), value)
    put(Slot.FIELD, number)
    put(Slot.IS_GP, operand.kind is Kind.GP)
    put(Slot.BLOCK, 1)
    put(Slot.OFFSET_UNIT, 1)
    put(Slot.OFFSET_LIMIT, 1)
    put(Slot.LAST, 0xFFFFFFFF)
    if operand.plus is Field.RD:
        put(Slot.ADD_RD, 1)
    elif operand.plus is not None:
        put(Slot.ADD, word >> operand.plus.shift & operand.plus.limit)
    if address is None:
        return
    count = address.count(config, word >> Field.RS3.shift & Field.RS3.limit)
    last = address.capacity(config) - count
    put(Slot.BLOCK, address.block(config))
    put(Slot.OFFSET_UNIT, address.unit(config))
    put(Slot.OFFSET_LIMIT, address.limit(config))
    put(Slot.LAST, min(max(last, 0), 0xFFFFFFFF))
    put(Slot.NEVER, last < 0)
    put(Slot.VRAM_ROWS, count if address.space is Space.VRAM else 0)


def _decode_datapath(row: np.ndarray, entry: Instruction, word: int, config: MachineConfig) -> None:
    semantic = SEMANTICS[entry.mnemonic]
    value = lambda f: word >> f.shift & f.limit
    row[Column.STAGE] = semantic.stage
    row[Column.BRANCH] = branch_index(entry.mnemonic)
    row[Column.PARTS] = semantic.parts(config)
    row[Column.TARGET] = semantic.target
    row[Column.ADDS_TO], row[Column.DRAINS] = semantic.adds_to, semantic.drains
    names = {o.name: value(o.field) for o in entry.operands}
    row[Column.MASKED] = names.get("mask", 0) != 0
    row[Column.ARGUMENT] = {
        "V_SUB_VF": names.get("order", 0) != 0,
        "V_TOPK": names.get("policy", 0),
        "V_RED_SUM": names.get("mask", 0) != 0,
        "V_RED_MAX": names.get("mask", 0) != 0,
    }.get(entry.mnemonic, names.get("precision", 0) != 0)
    row[Column.SPECIAL] = _SPECIALS.get(entry.mnemonic, Special.NONE)
    if row[Column.SPECIAL] > Special.WRITE_OUT:
        transfer = _transfer(entry.mnemonic, value(Field.FUNCT1), config)
        row[Column.ROW_STEP] = transfer.row_step
        row[Column.STRIDED] = value(Field.RS3) == 1
        row[Column.RATIO] = transfer.ratio
        row[Column.ELEMENT_BYTES], row[Column.SCALE_BYTES] = transfer.element_bytes, transfer.scale_bytes
