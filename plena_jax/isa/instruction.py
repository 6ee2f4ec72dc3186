"""The vocabulary of the instruction table: fields of a word, operands, what an operand addresses, an instruction."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from plena_jax.config import MachineConfig

Size = Callable[[MachineConfig], int]
#: A size that may depend on the word's rs3 field too (the policy of V_TOPK).
Count = Callable[[MachineConfig, int], int]


class Field(enum.Enum):
    """A bit field of the 32-bit instruction word: ``(lowest bit, width)``."""

    RD = (6, 4)
    RS1 = (10, 4)
    RS2 = (14, 4)
    RS3 = (18, 4)
    FUNCT1 = (22, 4)
    IMM18 = (14, 18)
    IMM22 = (10, 22)

    @property
    def shift(self) -> int:
        """Position of the lowest bit."""
        return self.value[0]

    @property
    def limit(self) -> int:
        """Largest value the field holds."""
        return (1 << self.value[1]) - 1


OPCODE_BITS = 6
OPCODE_MASK = (1 << OPCODE_BITS) - 1


class Kind(enum.Enum):
    """What the text of an operand is."""

    GP = "gp"
    F = "f"
    A = "a"
    NUMBER = ""


#: Registers per class. A field holds 0..15, but the machine has only eight f registers.
REGISTERS = {Kind.GP: 16, Kind.F: 8, Kind.A: 16}


class Unit(enum.Enum):
    """The functional unit that executes an instruction."""

    MATRIX = "matrix"
    VECTOR = "vector"
    SCALAR_FP = "scalar fp"
    SCALAR_INT = "scalar int"
    MEMORY = "memory"
    CONTROL = "control"


class Space(enum.Enum):
    """An addressed memory; addresses count elements."""

    VRAM = "VRAM"
    MRAM = "MRAM"
    FP_SRAM = "FP SRAM"
    INT_SRAM = "INT SRAM"


@dataclass(frozen=True)
class Address:
    """What the value of an operand addresses, and which values are good.

    An address is split into ``block * size + offset``, where a block is a VRAM row, an MRAM tile or one SRAM entry. The
    offset must be a multiple of ``unit`` and below ``limit``; ``count`` blocks starting there must exist.

    Attributes:
        space: the memory.
        count: consecutive blocks touched.
        unit, limit: of the offset within a block; the defaults demand an aligned address.
        rule: the rule on the offset in words.
    """

    space: Space
    count: Count = lambda c, rs3: 1
    unit: Size = lambda c: 1
    limit: Size = lambda c: 1
    rule: str = ""

    def block(self, config: MachineConfig) -> int:
        """Elements of one block."""
        return {Space.VRAM: config.vlen, Space.MRAM: config.mlen**2}.get(self.space, 1)

    def capacity(self, config: MachineConfig) -> int:
        """Blocks of the memory."""
        return {Space.VRAM: config.vector_sram_size, Space.MRAM: config.tiles}.get(self.space, SRAM_ENTRIES)


#: Entries of FP SRAM and of INT SRAM, fixed in the hardware model.
SRAM_ENTRIES = 1024


@dataclass(frozen=True)
class Operand:
    """One operand in assembly text.

    Attributes:
        name: as the reference prints it.
        field: where it sits in the word.
        kind: register class, or a plain number.
        default: value if the text leaves it out (only trailing operands have one).
        limit: largest number allowed, the field's limit if None.
        address: what the register's value (plus ``plus``) addresses.
        plus: a second field that is added: an immediate, or RD for the value of gp[rd].
        literal: a register slot that also takes this plain number (and means that register number by it).
    """

    name: str
    field: Field
    kind: Kind
    default: int | None = None
    limit: int | None = None
    address: Address | None = None
    plus: Field | None = None
    literal: int | None = None

    @property
    def most(self) -> int:
        """Largest value assembly text may give."""
        return min(self.field.limit if self.limit is None else self.limit, REGISTERS.get(self.kind, 1 << 22) - 1)


@dataclass(frozen=True)
class Instruction:
    """One entry of the instruction table.

    Attributes:
        mnemonic, opcode: name and code.
        unit: functional unit.
        operands: in the order of assembly text.
        cycles: cost.
        doc: one line.
        ignores_rd_0: with destination f0 the instruction is a complete no-op of 0 cycles.
    """

    mnemonic: str
    opcode: int
    unit: Unit
    operands: tuple[Operand, ...]
    cycles: Count
    doc: str
    ignores_rd_0: bool = False

    @property
    def syntax(self) -> str:
        """Assembly syntax, optional operands in brackets."""
        text = self.mnemonic
        for index, operand in enumerate(self.operands):
            name = operand.kind.value + operand.name if operand.kind is not Kind.NUMBER else operand.name
            text += f"[, {name}]" if operand.default is not None else f"{',' if index else ''} {name}"
        return text

    @property
    def mask(self) -> int:
        """The bits of a word that this instruction uses."""
        mask = OPCODE_MASK
        for operand in self.operands:
            mask |= operand.field.limit << operand.field.shift
        return mask

    def operand(self, field: Field) -> Operand | None:
        """The operand in ``field``, if there is one."""
        return next((o for o in self.operands if o.field is field), None)
