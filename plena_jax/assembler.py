"""Assembly text to machine words. Everything it knows of instructions comes from the instruction table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from plena_jax.errors import AssemblyError
from plena_jax.isa import BY_MNEMONIC, Field, Instruction, Kind, Operand
from plena_jax.isa.instruction import REGISTERS
from plena_jax.program import Program, shortened, split_lines

_CACHE_LINES = 1 << 17
_COMMENT = re.compile(r";|//")
_NO_WORD = -1
#: Digits that Python certainly converts.
_MOST_DIGITS = 640
#: Directive for a word that no instruction text produces (unassigned opcode, bits outside every field).
WORD = ".word"


def assemble(text: str, source: str = "<assembly>") -> Program:
    """Assemble PLENA assembly text.

    One instruction a line; ``;`` and ``//`` start comments; immediates are decimal or hexadecimal (``0x``);
    ``.word 0x...`` gives a word as it is. Operands are encoded in the fields that the machine reads.

    Raises:
        AssemblyError: naming line, column, operand and allowed range.
    """
    if not isinstance(text, str):
        raise AssemblyError(f"a program is a text, got {type(text).__name__}", line=1, column=1, source=source)
    words: list[int] = []
    lines: list[int] = []
    known: dict[str, int] = {}
    for number, line in enumerate(split_lines(text.removeprefix("\ufeff")), 1):
        word = known.get(line)
        if word is None:
            word = _Line(line, number, source).assemble()
            if len(known) >= _CACHE_LINES:
                known.clear()
            known[line] = word
        if word != _NO_WORD:
            words.append(word)
            lines.append(number)
    return Program(np.array(words, np.uint32), source, np.array(lines, np.int64))


def looks_like_assembly(text: str) -> bool:
    """Whether the first line with content is assembly rather than hexadecimal words."""
    for line in split_lines(text):
        body = _COMMENT.split(line, maxsplit=1)[0].strip()
        if body != line.strip() or body.startswith(WORD):
            return True
        if body:
            return not re.fullmatch(r"(0x)*[0-9A-Fa-f]+", body.split()[0])
    return False


class _Line:
    """One source line; all that is slow happens only when it has to complain."""

    #: Which of the operands in the text are those of the instruction.
    kept = range(8)

    def __init__(self, text: str, number: int, source: str) -> None:
        self.text, self.number, self.source = text, number, source

    def assemble(self) -> int:
        body = self.text
        if ";" in body or "//" in body:
            body = _COMMENT.split(body, maxsplit=1)[0]
        parts = body.split(None, 1)
        if not parts:
            return _NO_WORD
        mnemonic, tokens = parts[0], parts[1].split(",") if len(parts) == 2 else []
        encoder = _ENCODERS.get(mnemonic) or _ENCODERS.get(mnemonic.upper())
        if encoder is None:
            if mnemonic == WORD:
                return self.word(tokens)
            self.unknown(mnemonic)
        return encoder(self, tokens)

    def word(self, tokens: list[str]) -> int:
        if len(tokens) != 1:
            self.fail(f"{WORD} takes one word, got {len(tokens)} operands")
        return self.number_in(tokens[0].strip(), f"{WORD} value", 0xFFFFFFFF, 0)

    def register(self, token: str, entry: Instruction, index: int) -> int:
        """The number of a register operand that is not simply spelt out right."""
        operand = entry.operands[index]
        prefix = operand.kind.value
        name = f"operand {_name(operand)} of {entry.mnemonic}"
        allowed = f"{prefix}0..{prefix}{operand.most}"
        match = re.fullmatch(r"(gp|f|a)(\s*[+-]?[\d_]+)", token)
        number = _integer(match[2] if match else token)
        if match and number is not None:
            if match[1] != prefix:
                self.fail(f"{name}: {shortened(token)} is the wrong register class; allowed: {allowed}", index)
            if not 0 <= number <= operand.most:
                self.fail(f"{name}: there is no register {shortened(token)}; allowed: {allowed}", index)
            return number
        # The published assembler takes a plain number as first operand, and the documents one for "no stride".
        if number is not None and index == 0:
            return self.number_in(token, name, operand.most, index)
        if number is not None and number == operand.literal:
            return number
        literal = f" or {operand.literal}" if operand.literal is not None else ""
        self.fail(f"{name}: {shortened(token)!r} is not a register; allowed: {allowed}{literal}", index)

    def number_in(self, token: str, name: str, most: int, index: int) -> int:
        value = _integer(token)
        if value is None:
            self.fail(f"{name}: {shortened(token)!r} is not a number; allowed: 0..{most} (0..{most:#x})", index)
        if not 0 <= value <= most:
            self.fail(f"{name}: {shortened(token)} is out of range; allowed: 0..{most} (0..{most:#x})", index)
        return value

    def without_zeros(self, entry: Instruction, tokens: list[str]) -> list[str]:
        """The operands less those without a place in the word, which must be zeros.

        The published compiler writes such zeros, and its assembler drops them. That takes a number in third place for
        the immediate, whatever is in second place.
        """
        most = len(entry.operands)
        kept = range(most)
        if most == 2 and entry.operands[1].field in (Field.IMM18, Field.IMM22):
            kept = range(0, 4, 2)
        dropped = [token.strip().removeprefix("gp") for i, token in enumerate(tokens) if i not in kept]
        if len(tokens) > most and all(_integer(token) == 0 for token in dropped):
            self.kept = kept
            return [tokens[i] for i in kept]
        least = sum(o.default is None for o in entry.operands)
        expected = _operands(most) if least == most else f"{least} to {_operands(most)}"
        missing = f"; operand {_name(entry.operands[len(tokens)])} is missing" if len(tokens) < least else ""
        self.fail(f"{entry.mnemonic} takes {expected}, got {_operands(len(tokens))}{missing}: {entry.syntax}")

    def unknown(self, mnemonic: str) -> NoReturn:
        import difflib

        close = difflib.get_close_matches(mnemonic.upper(), BY_MNEMONIC, 1, 0.6)
        hint = f"; did you mean {close[0]}?" if close else " (plena isa lists all)"
        self.fail(f"there is no instruction {shortened(mnemonic)!r}{hint}")

    def fail(self, message: str, operand: int | None = None) -> NoReturn:
        """Complain about the mnemonic, or about the operand of that index."""
        column = len(self.text) - len(self.text.lstrip())
        if operand is not None:
            body = _COMMENT.split(self.text, maxsplit=1)[0]
            mnemonic, rest = body.split(None, 1)
            column = body.index(rest, column + len(mnemonic))
            tokens = rest.split(",")
            place = self.kept[operand]
            column += sum(len(token) + 1 for token in tokens[:place])
            column += len(tokens[place]) - len(tokens[place].lstrip())
        raise AssemblyError(message, line=self.number, column=column + 1, text=self.text.rstrip(), source=self.source)


def _integer(token: str) -> int | None:
    """The number that a token spells, if it spells one."""
    try:
        return int(token, 16) if token[:2] in ("0x", "0X") else int(token)
    except ValueError:
        # Python converts no more than 4300 digits; the first ones tell that there are too many.
        match = re.fullmatch(r"([+-]?)[0_]*(\d[\d_]*)", token)
        return None if match is None or len(token) <= _MOST_DIGITS else int(match[1] + match[2].replace("_", "")[:20])


def _operands(count: int) -> str:
    return f"{count or 'no'} operand{'' if count == 1 else 's'}"


def _name(operand: Operand) -> str:
    return operand.kind.value + operand.name


def _encoder(entry: Instruction) -> Callable[[_Line, list[str]], int]:
    """A function from operand tokens to the word of ``entry``."""
    most = len(entry.operands)
    least = sum(o.default is None for o in entry.operands)
    plan = []
    for operand in entry.operands:
        good: dict[str, int] = {}
        if operand.kind is not Kind.NUMBER:
            count = min(REGISTERS[operand.kind], operand.most + 1)
            good = {f"{operand.kind.value}{n}": n for n in range(count)}
        elif operand.name == "0":
            # A slot without a meaning: compilers put a register there as well.
            good = {f"gp{n}": n for n in range(operand.most + 1)}
        plan.append((good, operand.kind is not Kind.NUMBER, operand.field.shift, operand.most))

    def encode(line: _Line, tokens: list[str]) -> int:
        if not least <= len(tokens) <= most:
            tokens = line.without_zeros(entry, tokens)
        word = entry.opcode
        for index, (token, (good, is_register, shift, limit)) in enumerate(zip(tokens, plan, strict=False)):
            token = token.strip()
            value = good.get(token)
            if value is None:
                if is_register:
                    value = line.register(token, entry, index)
                else:
                    name = f"operand {_name(entry.operands[index])} of {entry.mnemonic}"
                    value = line.number_in(token, name, limit, index)
            word |= value << shift
        return word

    return encode


_ENCODERS = {mnemonic: _encoder(entry) for mnemonic, entry in BY_MNEMONIC.items()}
