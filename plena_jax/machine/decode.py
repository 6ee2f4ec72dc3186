"""Programs to tables: what an instruction is, apart from the registers it names.

A decoded program is its words and, for each, the number of a *template*: a row of everything that words of one kind
have in common. There are few templates, so a program of a million words is decoded by array operations.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import NamedTuple

import jax
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.disassembler import describe_word
from plena_jax.errors import ProgramError
from plena_jax.isa import BY_MNEMONIC, BY_OPCODE, TOPK_POLICIES, Field, Instruction, Kind, Operand, Space
from plena_jax.isa.instruction import OPCODE_BITS, OPCODE_MASK, REGISTERS
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import UNITS
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Flag
from plena_jax.machine.semantics import Stage, branch_index, semantic_of
from plena_jax.machine.semantics.control import ALU, SLOW
from plena_jax.machine.transfer import Transfer, Transfers
from plena_jax.program import Program


class Slot(enum.IntEnum):
    """Columns of one of the three operands rd, rs1, rs2."""

    #: 1 if the field names a gp register, else its number counts.
    IS_GP = 0
    #: 1 if the word's 18-bit immediate is added, or the value of gp[rd].
    ADD_IMM = 1
    ADD_RD = 2
    #: Elements per block (1: the value is the block), and the offsets allowed within one.
    BLOCK = 3
    OFFSET_UNIT = 4
    OFFSET_LIMIT = 5
    #: Last block at which the operand may start; NEVER is 1 if there is none.
    LAST = 6
    NEVER = 7
    #: Blocks touched, if they are VRAM rows; else 0.
    VRAM_ROWS = 8
    #: The row is BASE plus the value divided by VLEN if IN_ROWS, else the value is kept as it is.
    BASE = 9
    IN_ROWS = 10


_SLOTS = (Field.RD, Field.RS1, Field.RS2)


class Class(enum.IntEnum):
    """How the control loop executes an instruction."""

    SLOW = 0
    FAST = 1
    #: C_LOOP_END is fast while its loop goes on.
    LOOP_END = 2


class Column(enum.IntEnum):
    """Columns of a template; those of the three operands follow, in the order of ``_SLOTS``."""

    CLASS = 0
    STAGE = 1
    FAULT = 2
    OPERATION = 3
    #: Lane of ``core`` that gets the result: this one, or gp[rd] if DEST_RD.
    DEST = 4
    DEST_RD = 5
    IMM_SHIFT = 6
    CYCLES = 7
    UNIT = 8
    LOGS = 9
    #: Bit masks of the accumulators that it adds to, or drains.
    ADDS_TO = 10
    DRAINS = 11
    BRANCH = 12
    PARTS = 13
    FLAGS = 14
    MASKED = 15
    ARGUMENT = 16
    SPECIAL = 17
    ROW_STEP = 18
    STRIDED = 19
    RATIO = 20
    ELEMENT_BYTES = 21
    SCALE_BYTES = 22
    #: pc behind the enclosing C_LOOP_END, for C_BREAK as it is meant.
    BREAK_TO = 23
    #: 1 if rs1 is the destination and rd the source.
    STORES = 24
    OPERANDS = 25


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

#: What the control loop executes itself; one number more stands for nothing.
OPERATIONS = (*ALU, *SLOW)


class Table(NamedTuple):
    """A decoded program, padded so that few different shapes occur.

    Attributes:
        words: uint32 [n, 2], each word with its template number. What lies behind the end halts.
        templates: int32 [m, columns].
    """

    words: jax.Array | np.ndarray
    templates: jax.Array | np.ndarray


def padded_length(words: int) -> int:
    """Rows of a decoded program: few different sizes, so that compiled code is shared."""
    return max(256, 1 << words.bit_length())


@lru_cache(maxsize=64)
def decode(program: Program, config: MachineConfig) -> Table:
    """The table of a program.

    Raises:
        ProgramError: a word that the machine refuses to load, executed or not (M_BMM or M_BTMM with rd other than 0).
    """
    words = program.words
    _refuse(program)
    keys = _template_keys(words)
    targets = _break_targets(words) if config.intended.c_break else np.zeros(len(words), np.int64)
    unique, first, index = np.unique(np.stack([keys, targets]), axis=1, return_index=True, return_inverse=True)
    templates = np.zeros((max(256, 1 << (len(first) + 1).bit_length()), WIDTH), np.int64)
    templates[0, Column.STAGE] = Stage.HALTED
    for row, word, target in zip(templates[1:], words[first].tolist(), unique[1].tolist(), strict=False):
        _decode_template(row, word, config)
        row[Column.BREAK_TO] = target
    table = np.zeros((padded_length(len(words)), 2), np.uint32)
    table[: len(words), 0] = words
    table[: len(words), 1] = index.reshape(-1) + 1
    return Table(table, templates.astype(np.uint32).view(np.int32))


def _refuse(program: Program) -> None:
    zero_rd = [i.opcode for i in BY_OPCODE.values() if any(o.field is Field.RD and o.limit == 0 for o in i.operands)]
    bad = np.isin(program.words & OPCODE_MASK, zero_rd) & (program.words >> Field.RD.shift & Field.RD.limit != 0)
    if bad.any():
        pc = int(np.argmax(bad))
        word = int(program.words[pc])
        raise ProgramError(
            f"{program.source}: pc {pc}: word 0x{word:08X} ({describe_word(word)}): the rd field must be 0"
        )


def _template_keys(words: np.ndarray) -> np.ndarray:
    """int64 [n]: equal for words that differ in register numbers and immediates only."""
    masks = np.zeros((1 << OPCODE_BITS, 4), np.uint32)
    for entry in BY_OPCODE.values():
        fields = {o.field: o for o in entry.operands}
        kept = [f.limit << f.shift for f in (Field.RS3, Field.FUNCT1) if f in fields]
        f_bits = [8 << o.field.shift for o in entry.operands if o.kind is Kind.F]
        masks[entry.opcode, 0] = sum(kept) | sum(f_bits) | OPCODE_MASK
        masks[entry.opcode, 1] = (Field.RD.limit << Field.RD.shift) if entry.ignores_rd_0 else 0
        # A literal in a register slot, and immediates of zero, mean something else.
        special = [o.field for o in entry.operands if o.literal is not None]
        if entry.mnemonic == "C_LOOP_START":
            special = [Field.IMM22]
        masks[entry.opcode, 2] = (special[0].limit << special[0].shift) if special else 0
    opcode = words & OPCODE_MASK
    mask = masks[opcode]
    assigned = mask[:, 0] != 0
    key = (words & mask[:, 0]).astype(np.int64)
    key |= ((words & mask[:, 1]) == 0).astype(np.int64) << 40
    key |= ((words & mask[:, 2]) == 0).astype(np.int64) << 41
    return np.where(assigned, key, np.int64(1) << 42)


def _break_targets(words: np.ndarray) -> np.ndarray:
    """For every C_BREAK the pc behind the C_LOOP_END that closes the loop it stands in, else 0."""
    opcodes = words & OPCODE_MASK
    start, end, leave = (BY_MNEMONIC[name].opcode for name in ("C_LOOP_START", "C_LOOP_END", "C_BREAK"))
    depth = np.cumsum(opcodes == start) - np.cumsum(opcodes == end)
    ends = np.nonzero(opcodes == end)[0]
    targets = np.zeros(len(words), np.int64)
    for pc in np.nonzero(opcodes == leave)[0]:
        closing = ends[(ends > pc) & (depth[ends] < depth[pc])]
        targets[pc] = closing[0] + 1 if len(closing) else 0
    return targets


def _decode_template(row: np.ndarray, word: int, config: MachineConfig) -> None:
    entry = BY_OPCODE.get(word & OPCODE_MASK)
    value = lambda f: word >> f.shift & f.limit
    row[Column.OPERATION] = len(OPERATIONS)
    row[Column.DEST] = -1
    if entry is None:
        row[[Column.STAGE, Column.FAULT]] = Stage.FAULTED, Fault.INVALID_OPCODE
        return
    row[Column.UNIT] = UNITS.index(entry.unit)
    if entry.ignores_rd_0 and value(Field.RD) == 0:
        row[Column.CLASS] = Class.FAST
        return
    row[Column.CYCLES] = entry.cycles(config, value(Field.RS3))
    immediate = next((o.field for o in entry.operands if o.field in (Field.IMM18, Field.IMM22)), None)
    row[Column.IMM_SHIFT] = immediate.shift if immediate else Field.IMM18.shift
    for operand in entry.operands:
        if operand.field in _SLOTS:
            _decode_operand(row, operand, word, config)
    fault = _static_fault(entry, word, config)
    if entry.mnemonic in OPERATIONS:
        row[Column.OPERATION] = OPERATIONS.index(entry.mnemonic)
    if fault:
        row[[Column.STAGE, Column.FAULT]] = Stage.FAULTED, fault
    elif entry.mnemonic in ALU:
        alu = ALU[entry.mnemonic]
        row[Column.CLASS] = Class.FAST
        row[Column.DEST], row[Column.DEST_RD] = (0, 1) if alu.lane is None else (alu.lane, 0)
    elif entry.mnemonic in SLOW:
        if entry.mnemonic == "C_LOOP_END":
            row[Column.CLASS] = Class.LOOP_END
    else:
        _decode_datapath(row, entry, word, config)


def _static_fault(entry: Instruction, word: int, config: MachineConfig) -> Fault:
    """What is wrong with an instruction whatever the registers hold."""
    value = lambda f: word >> f.shift & f.limit
    name = entry.mnemonic
    if any(o.kind is Kind.F and value(o.field) >= REGISTERS[Kind.F] for o in entry.operands):
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
    field, address, layout = operand.field, operand.address, Layout(config)
    put = lambda slot, value: row.__setitem__(column(field, slot), value)
    put(Slot.IS_GP, operand.kind is Kind.GP)
    put(Slot.BLOCK, 1)
    put(Slot.OFFSET_UNIT, 1)
    put(Slot.OFFSET_LIMIT, 1)
    put(Slot.LAST, 0xFFFFFFFF)
    if operand.kind is Kind.F:
        put(Slot.IN_ROWS, 1)
        put(Slot.BASE, layout.f)
        row[Column.FLAGS] |= _scalar(field)
    if address is None:
        return
    put(Slot.ADD_RD, operand.plus is Field.RD)
    put(Slot.ADD_IMM, operand.plus is Field.IMM18)
    count = address.count(config, word >> Field.RS3.shift & Field.RS3.limit)
    last = address.capacity(config) - count
    put(Slot.BLOCK, address.block(config))
    put(Slot.OFFSET_UNIT, address.unit(config))
    put(Slot.OFFSET_LIMIT, address.limit(config))
    put(Slot.LAST, min(max(last, 0), 0xFFFFFFFF))
    put(Slot.NEVER, last < 0)
    put(Slot.IN_ROWS, address.space is not Space.INT_SRAM)
    if address.space is Space.VRAM:
        put(Slot.VRAM_ROWS, count)
        row[Column.FLAGS] |= {Field.RD: Flag.RD_VRAM, Field.RS1: Flag.RS1_VRAM, Field.RS2: Flag.RS2_VRAM}[field]
    elif address.space is Space.FP_SRAM:
        put(Slot.BASE, layout.fp_sram)
        row[Column.FLAGS] |= _scalar(field)
    elif address.space is Space.MRAM:
        put(Slot.BASE, layout.mram)


def _scalar(field: Field) -> Flag:
    return {Field.RD: Flag.RD_SCALAR, Field.RS1: Flag.RS1_SCALAR, Field.RS2: Flag.RS2_SCALAR}[field]


def _decode_datapath(row: np.ndarray, entry: Instruction, word: int, config: MachineConfig) -> None:
    value = lambda f: word >> f.shift & f.limit
    names = {o.name: value(o.field) for o in entry.operands}
    semantic = semantic_of(entry.mnemonic, names)
    row[Column.CLASS] = Class.SLOW if entry.mnemonic == "V_TOPK" else Class.FAST
    row[Column.LOGS] = 1
    row[Column.STAGE] = semantic.stage
    row[Column.BRANCH] = branch_index(semantic)
    row[Column.PARTS] = semantic.parts(config)
    row[Column.ADDS_TO] = 1 << semantic.adds_to if semantic.adds_to else 0
    row[Column.DRAINS] = 1 << semantic.drains if semantic.drains else 0
    row[Column.STORES] = entry.mnemonic == "S_ST_FP"
    row[Column.MASKED] = names.get("mask", 0) != 0
    row[Column.ARGUMENT] = semantic.argument(names)
    row[Column.SPECIAL] = _SPECIALS.get(entry.mnemonic, Special.NONE)
    if row[Column.SPECIAL] == Special.WRITE_OUT:
        row[Column.STRIDED] = value(Field.RS1) != 0
    elif row[Column.SPECIAL]:
        transfer = _transfer(entry.mnemonic, value(Field.FUNCT1), config)
        row[Column.ROW_STEP] = transfer.row_step
        row[Column.STRIDED] = value(Field.RS3) == 1
        row[Column.RATIO] = transfer.ratio
        row[Column.ELEMENT_BYTES], row[Column.SCALE_BYTES] = transfer.element_bytes, transfer.scale_bytes
