"""Registers of a program under construction, and who has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from plena_jax.errors import PlenaError
from plena_jax.isa.instruction import REGISTERS, Kind


class BuildError(PlenaError):
    """A program that cannot be built: no register left, an operand out of range, a loop that is too long."""


class Register(int):
    """A register: its number, with what it is for."""

    #: The letter in assembly text.
    prefix = ""
    purpose: str

    def __new__(cls, number: int, purpose: str = "") -> Register:
        """Register ``number``; allocators make them."""
        register = super().__new__(cls, number)
        register.purpose = purpose
        return register

    def __repr__(self) -> str:
        return f"{self.prefix}{int(self)}" + (f" ({self.purpose})" if self.purpose else "")


class Gp(Register):
    """An integer register."""

    prefix = "gp"


class Fp(Register):
    """A scalar float register."""

    prefix = "f"


class Ar(Register):
    """An HBM address register."""

    prefix = "a"


AnyRegister = TypeVar("AnyRegister", Gp, Fp, Ar)

#: Classes by kind of operand, and the first register that is given out: gp0 and f0 stay zero.
CLASSES: dict[Kind, tuple[type[Register], int]] = {Kind.GP: (Gp, 1), Kind.F: (Fp, 1), Kind.A: (Ar, 0)}


class Registers:
    """The free registers of all classes; the lowest is given out first, so that equal kernels get equal words."""

    def __init__(self) -> None:
        self._free = {cls: list(range(REGISTERS[kind] - 1, first - 1, -1)) for kind, (cls, first) in CLASSES.items()}
        self._live: dict[type[Register], dict[int, Register]] = {cls: {} for cls in self._free}
        self._scopes: list[list[Register]] = [[]]

    def take(self, cls: type[AnyRegister], purpose: str) -> AnyRegister:
        """A register nobody has; it is given back at the end of the innermost scope.

        Raises:
            BuildError: there is none; names the purposes of all.
        """
        if not self._free[cls]:
            held = ", ".join(repr(r) for _, r in sorted(self._live[cls].items()))
            raise BuildError(f"no {cls.prefix} register left for {purpose or 'a value'}; in use: {held}")
        register = cls(self._free[cls].pop(), purpose)
        self._live[cls][int(register)] = register
        self._scopes[-1].append(register)
        return register

    def give(self, register: Register) -> None:
        """Give a register back before its scope ends.

        Raises:
            BuildError: nobody has it.
        """
        live = self._live.get(type(register), {})
        if live.get(int(register)) is not register:
            raise BuildError(f"{register!r} is not in use")
        del live[int(register)]
        free = self._free[type(register)]
        free.append(int(register))
        free.sort(reverse=True)

    def free(self, cls: type[Register]) -> int:
        """How many registers of a class are left."""
        return len(self._free[cls])

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Registers taken inside are given back at the end."""
        self._scopes.append([])
        try:
            yield
        finally:
            for register in self._scopes.pop():
                if self._live[type(register)].get(int(register)) is register:
                    self.give(register)
