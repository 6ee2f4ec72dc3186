"""The program builder: instructions, registers, loops, large numbers, sections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.isa.instruction import SRAM_ENTRIES, Field
from plena_jax.lower.instructions import Instructions
from plena_jax.lower.registers import Ar, BuildError, Fp, Gp, Register, Registers
from plena_jax.program import Program, Section

_IMM18 = Field.IMM18.limit
_IMM22 = Field.IMM22.limit
_WORD = 1 << 32
#: Words of a loop's body up to which it is repeated.
_UNROLLED_WORDS = 64


class ProgramBuilder(Instructions):
    """Builds a program, instruction by instruction.

    One method for each instruction (``b.v_add_vv(rd, rs1, rs2)``), and what every program needs besides:

    >>> from plena_jax import MachineConfig
    >>> b = ProgramBuilder(MachineConfig())
    >>> with b.section("double"):
    ...     row = b.gp(0, "row")
    ...     with b.loop(4, (row, 64)):
    ...         b.v_add_vv(row, row, row)
    >>> print(*b.program().disassemble(), sep="\\n")
    S_ADDI_INT gp1, gp0, 0
    C_LOOP_START gp2, 4
    V_ADD_VV gp1, gp1, gp1
    S_ADDI_INT gp1, gp1, 64
    C_LOOP_END gp2

    gp0 and f0 are zero in every program that is built; the machine starts so, and nothing writes them.

    Attributes:
        config: the machine that the program is for.
        zero, fp_zero: gp0 and f0.
        instructions: how many instructions the words so far execute.
        loops: how many loops have begun and ended so far, together.
    """

    def __init__(self, config: MachineConfig, source: str = "<built>") -> None:
        self.config = config
        self.source = source
        self.zero, self.fp_zero = Gp(0, "zero"), Fp(0, "zero")
        self._words: list[int] = []
        self.emit = self._words.append
        self._registers = Registers()
        self._repeated = 0
        self.loops = 0
        self._sections: list[Section] = []
        self._prefix: tuple[str, ...] = ()
        self._constants: dict[float, int] = {}

    def __len__(self) -> int:
        return len(self._words)

    @property
    def instructions(self) -> int:
        """How many instructions the words so far execute."""
        return len(self._words) + self._repeated

    def program(self) -> Program:
        """The program so far."""
        return Program(np.array(self._words, np.uint32), self.source, sections=tuple(self._sections))

    def refuse(self, mnemonic: str, **operands: object) -> NoReturn:
        """Raise the error about operands that do not fit."""
        shown = ", ".join(f"{name}={value!r}" for name, value in operands.items())
        method = getattr(Instructions, mnemonic.lower())
        kinds = {name: kind for name, kind in method.__annotations__.items() if name != "return"}
        allowed = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
        raise BuildError(
            f"{mnemonic} {shown}; allowed: {allowed}, numbers from 0 to the limit of their field "
            f"({_IMM18} for imm, {_IMM22} of S_LUI_INT and C_LOOP_START, 15 for others)"
        )

    # -- registers ----------------------------------------------------------------------------------------------------

    def gp(self, value: int | None = None, purpose: str = "") -> Gp:
        """An integer register until the scope ends, set to ``value`` if that is given.

        Raises:
            BuildError: no register is left.
        """
        register = self._registers.take(Gp, purpose)
        if value is not None:
            self.set(register, value)
        return register

    def fp(self, constant: float | None = None, purpose: str = "") -> Fp:
        """A float register until the scope ends, loaded with a constant of FP SRAM if that is given.

        Raises:
            BuildError: no register, or no entry of FP SRAM, is left.
        """
        register = self._registers.take(Fp, purpose)
        if constant is not None:
            self.s_ld_fp(register, self.zero, self.constant(constant))
        return register

    def address(self, byte: int, purpose: str = "") -> Ar:
        """An HBM address register until the scope ends, set to a byte address.

        Raises:
            BuildError: no register is left, or an address beyond 64 bits.
        """
        if not 0 <= byte < 1 << 64:
            raise BuildError(f"HBM address {byte} for {purpose or 'a register'}; allowed: 0 to 2**64 - 1")
        register = self._registers.take(Ar, purpose)
        self.set_address(register, byte)
        return register

    def set_address(self, register: Ar, byte: int) -> None:
        """Set an HBM address register."""
        with self.scope():
            low = self.gp(byte % _WORD, "low half of an address") if byte % _WORD else self.zero
            high = self.gp(byte // _WORD, "high half of an address") if byte >= _WORD else self.zero
            self.c_set_addr_reg(register, high, low)

    def release(self, *registers: Register) -> None:
        """Give registers back before their scope ends.

        Raises:
            BuildError: one is not in use.
        """
        for register in registers:
            self._registers.give(register)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Registers taken inside are free again at the end."""
        with self._registers.scope():
            yield

    def free(self, kind: type[Register]) -> int:
        """How many registers of a class nobody has."""
        return self._registers.free(kind)

    # -- numbers ------------------------------------------------------------------------------------------------------

    def set(self, register: Gp, value: int) -> None:
        """``register = value`` modulo 2**32, in one or two instructions."""
        value %= _WORD
        if value <= _IMM18:
            self.s_addi_int(register, self.zero, value)
            return
        self.s_lui_int(register, value >> 12)
        if value & 0xFFF:
            self.s_addi_int(register, register, value & 0xFFF)

    def add(self, register: Gp, source: Gp, amount: int) -> None:
        """``register = source + amount``, modulo 2**32; nothing if that changes nothing.

        Amounts that are negative or beyond twice the largest immediate take another register for a moment.
        """
        if amount == 0 and register == source:
            return
        if 0 <= amount <= 2 * _IMM18:
            self.s_addi_int(register, source, min(amount, _IMM18))
            if amount > _IMM18:
                self.s_addi_int(register, register, amount - _IMM18)
            return
        with self.scope():
            other = self.gp(abs(amount), "a large number")
            (self.s_add_int if amount > 0 else self.s_sub_int)(register, source, other)

    def constant(self, value: float) -> int:
        """The entry of FP SRAM that holds a constant; the same for equal values.

        Raises:
            BuildError: FP SRAM is full.
        """
        key = float(value)
        if key not in self._constants:
            if len(self._constants) >= SRAM_ENTRIES:
                raise BuildError(f"no FP SRAM entry left for the constant {value}; all {SRAM_ENTRIES} are in use")
            self._constants[key] = len(self._constants)
        return self._constants[key]

    @property
    def constants(self) -> dict[int, float]:
        """What FP SRAM must hold before the program starts, by entry."""
        return {entry: value for value, entry in self._constants.items()}

    # -- structure ----------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, count: int, *steps: tuple[Gp, int], index: bool = False, unroll: int = 1) -> Iterator[Gp | None]:
        """Execute the body ``count`` times, as a loop of the machine.

        A body that is longer than the machine's loop guard allows is repeated in the program instead; a body that
        executes once is no loop.

        Args:
            count: at least 1.
            steps: registers with what is added to each after every execution, the last included.
            index: give a register that counts from 0, else None.
            unroll: repeat a short body without loops in it up to so many times in each turn.

        Raises:
            BuildError: a count that is not positive or too large, or no register left.
        """
        if not 1 <= count <= _IMM22:
            raise BuildError(f"loop of {count}; allowed: 1 to {_IMM22}")
        with self.scope():
            number = self.gp(0, "index of a loop") if index else None
            counter = self.gp(purpose="counter of a loop") if count > 1 else None
            start, before, sections = len(self._words), self.instructions, len(self._sections)
            self.loops += 1
            inside = self.loops
            if counter is not None:
                self.c_loop_start(counter, count)
            yield number
            for register, amount in (*steps, *([(number, 1)] if number is not None else [])):
                self.add(register, register, amount)
            straight = self.loops == inside and len(self._sections) == sections
            self.loops += 1
            if counter is not None:
                self._close(counter, start, count, self.instructions - before - 1, unroll if straight else 1)

    def _close(self, counter: Gp, start: int, count: int, each: int, unroll: int) -> None:
        """End the loop that starts at word ``start`` and has executed ``each`` instructions in its body."""
        guard = self.config.max_loop_instructions
        body = self._words[start + 1 :]
        times = self._times(count, unroll, len(body))
        if times > 1 and times * len(body) + 1 <= guard:
            del self._words[start:]
            if times == count:
                self._words += body * times
                return
            self.c_loop_start(counter, count // times)
            self._words += body * times
            each *= times
            count //= times
        if each + 1 <= guard:
            self.c_loop_end(counter)
            self._repeated += (count - 1) * (each + 1)
        else:
            self._unroll(start, count, each)

    @staticmethod
    def _times(count: int, most: int, words: int) -> int:
        """How often a body of so many words is repeated in a turn: a divisor of the count."""
        limit = min(most, _UNROLLED_WORDS // max(words, 1))
        return max((n for n in range(1, limit + 1) if count % n == 0), default=1)

    def _unroll(self, start: int, count: int, each: int) -> None:
        """Replace the open loop that starts at word ``start`` by copies of its body."""
        body = self._words[start + 1 :]
        # In place: emit is bound to this list.
        self._words[start:] = body * count
        inside = [section for section in self._sections if section.start > start]
        self._sections[len(self._sections) - len(inside) :] = [
            Section(s.name, s.start - 1 + copy * len(body), s.stop - 1 + copy * len(body))
            for copy in range(count)
            for s in inside
        ]
        self._repeated += (count - 1) * (each - len(body))

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Name the instructions of the body; sections inside sections have both names, with a slash."""
        before, self._prefix = self._prefix, (*self._prefix, name)
        start = len(self._words)
        try:
            yield
        finally:
            if len(self._words) > start:
                self._sections.append(Section("/".join(self._prefix), start, len(self._words)))
            self._prefix = before
