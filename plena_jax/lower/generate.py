"""Writes ``instructions.py`` from the instruction table: ``python -m plena_jax.lower.generate``."""

from __future__ import annotations

from pathlib import Path

from plena_jax.isa.instruction import Field, Instruction, Kind, Operand
from plena_jax.isa.table import INSTRUCTIONS

TARGET = Path(__file__).with_name("instructions.py")
HEADER = '''"""A typed method for each instruction. Made by ``python -m plena_jax.lower.generate``; do not edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from plena_jax.lower.registers import Ar, Fp, Gp


class Instructions:
    """Emits instructions; arguments are in the order of assembly text, register fields by their names."""

    #: Appends a word.
    emit: Callable[[int], None]

    def refuse(self, mnemonic: str, **operands: object) -> NoReturn:
        """Raise the error about operands that do not fit."""
        raise NotImplementedError
'''
_CLASS = {Kind.GP: "Gp", Kind.F: "Fp", Kind.A: "Ar"}


def parameter(operand: Operand) -> str | None:
    """The name of an operand's parameter; None of one that is always 0."""
    if operand.kind is Kind.NUMBER and operand.field is Field.RD:
        return None
    if operand.kind is not Kind.NUMBER:
        return operand.field.name.lower()
    return operand.name


def method(entry: Instruction) -> str:
    """The text of a method."""
    arguments, checks, word, legend = [], [], f"0x{entry.opcode:02X}", []
    for operand in entry.operands:
        name = parameter(operand)
        if name is None:
            continue
        if operand.kind is Kind.NUMBER:
            arguments.append(f"{name}: int" + ("" if operand.default is None else f" = {operand.default}"))
            checks.append(f"0 <= {name} <= {operand.most}")
        else:
            arguments.append(f"{name}: {_CLASS[operand.kind]}")
            checks.append(f"{name}.__class__ is {_CLASS[operand.kind]}")
            legend.append(f"{operand.name} is {name}")
        word += f" | {name} << {operand.field.shift}"
    names = [argument.split(":")[0] for argument in arguments]
    doc = f"``{entry.doc}``" if "=" in entry.doc.split(";")[0] else entry.doc[0].upper() + entry.doc[1:]
    lines = [f"    def {entry.mnemonic.lower()}({', '.join(['self', *arguments])}) -> None:"]
    lines += (
        [f'        """{doc}.\n\n        {", ".join(legend)}.\n        """'] if legend else [f'        """{doc}."""']
    )
    if checks:
        refuse = f'self.refuse("{entry.mnemonic}", {", ".join(f"{n}={n}" for n in names)})'
        wrong = f"not ({' and '.join(checks)})" if len(checks) > 1 else checks[0].replace(" is ", " is not ")
        lines += [f"        if {wrong}:", f"            {refuse}"]
    lines.append(f"        self.emit({word})")
    return "\n".join(lines)


def text() -> str:
    """The text of the module, before formatting."""
    return HEADER + "\n" + "\n\n".join(method(entry) for entry in INSTRUCTIONS) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
