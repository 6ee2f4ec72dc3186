"""A program: machine words, where they came from, and the ``.mem`` text form."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from numpy.typing import ArrayLike

from plena_jax.errors import ProgramError
from plena_jax.files import write_atomically

#: A token of ``.mem`` text: the digits of a word, or no group at all.
_TOKEN = re.compile(r"(?:0x)*([0-9A-Fa-f]+)(?!\S)|\S+")
#: Characters of a token that are shown.
_MOST_SHOWN = 40


def split_lines(text: str) -> list[str]:
    """The lines of a text as files have them: form feeds and the separators of Unicode do not end one."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def shortened(token: str) -> str:
    """A token for a message; of a long one its ends."""
    return token if len(token) <= _MOST_SHOWN else f"{token[:12]}...{token[-4:]} ({len(token)} characters)"


@dataclass(frozen=True)
class Section:
    """Words of a program that belong together.

    Attributes:
        name: of nested sections the names of all, with slashes.
        start, stop: the words are ``[start, stop)``.
    """

    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Program:
    """An immutable sequence of 32-bit machine words.

    Two programs are equal, and hash alike, when their words are.

    Raises:
        ProgramError: the words are not a one-dimensional sequence of integers from 0 to 2**32 - 1, or are traced; there
            is not a line for each, or a section is not inside.

    Attributes:
        words: uint32 [n], read-only.
        source: name of the file or text the words came from, for messages.
        lines: int [n] line of each word in that source (1-based), or None.
        sections: named parts, as a program builder makes them.
    """

    words: np.ndarray
    source: str = field(default="<words>")
    lines: np.ndarray | None = field(default=None, repr=False)
    sections: tuple[Section, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", _frozen(_checked(self.words, self.source), np.uint32))
        if self.lines is not None:
            lines = _array(self.lines, self.source)
            if lines.shape != self.words.shape or (lines.size and lines.dtype.kind not in "iu"):
                raise ProgramError(
                    f"{self.source}: lines are {lines.dtype} {lines.shape}; allowed: an integer for each of "
                    f"{len(self.words)} words"
                )
            object.__setattr__(self, "lines", _frozen(lines, np.int64))
        for section in self.sections:
            if not 0 <= section.start < section.stop <= len(self.words):
                raise ProgramError(f"{self.source}: {section}; allowed: words of {len(self.words)}")

    @classmethod
    def from_words(cls, words: ArrayLike, source: str = "<words>") -> Program:
        """A program from integers.

        Raises:
            ProgramError: not a one-dimensional sequence of integers from 0 to 2**32 - 1.
        """
        return cls(_array(words, source), source)

    @classmethod
    def from_mem(cls, text: str, source: str = "<mem>") -> Program:
        """A program from ``.mem`` text: whitespace-separated hexadecimal words, each with an optional ``0x``.

        As in the hardware model, further ``0x`` are ignored.

        Raises:
            ProgramError: a token that is not a hexadecimal number of at most 32 bits; names its line and column.
        """
        values = []
        for token in _TOKEN.finditer(text):
            digits = token[1]
            if digits is None or len(digits.lstrip("0")) > 8:
                before = split_lines(text[: token.start()])
                what = "is wider than 32 bits" if digits else "is not a hexadecimal word (digits, optionally after 0x)"
                raise ProgramError(f"{source}:{len(before)}:{len(before[-1]) + 1}: {shortened(token[0])!r} {what}")
            values.append(int(digits, 16))
        return cls(np.array(values, np.uint32), source)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Program:
        """Read a program: ``.mem`` hexadecimal words or assembly text, told apart by content.

        Raises:
            ProgramError, AssemblyError: see :meth:`from_mem` and :func:`plena_jax.assemble`.
            OSError: the file cannot be read.
        """
        from plena_jax.assembler import assemble, looks_like_assembly

        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ProgramError(f"{path}: neither hexadecimal words nor assembly text: {error}") from None
        return assemble(text, str(path)) if looks_like_assembly(text) else cls.from_mem(text, str(path))

    def section(self, pc: int) -> str:
        """The name of the innermost section that a word is in, or nothing."""
        around = [s for s in self.sections if s.start <= pc < s.stop]
        return min(around, key=lambda s: s.stop - s.start).name if around else ""

    def to_mem(self) -> str:
        """The ``.mem`` text: one ``0x`` and eight upper-case digits a line."""
        return "".join(f"0x{word:08X}\n" for word in self.words.tolist())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``.mem`` text to ``path``."""
        write_atomically(path, self.to_mem().encode())

    def disassemble(self) -> list[str]:
        """Assembly text of each word; see :func:`plena_jax.disassemble`."""
        from plena_jax.disassembler import disassemble

        return disassemble(self.words)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the words: equal programs have equal digests."""
        return hashlib.sha256(self.words.tobytes()).hexdigest()

    def __reduce__(self) -> tuple[type[Program], tuple[object, ...]]:
        # Arrays come out of copies and pickles writable.
        return type(self), (self.words, self.source, self.lines, self.sections)

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _frozen(values: ArrayLike, dtype: type) -> np.ndarray:
    array: np.ndarray = np.array(values, dtype)
    array.setflags(write=False)
    return array


def _array(values: ArrayLike, source: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except jax.errors.TracerArrayConversionError:
        raise ProgramError(
            f"{source}: a program cannot be traced: close over it, or make it a static argument of jit"
        ) from None
    except ValueError as error:
        raise ProgramError(f"{source}: not a sequence of integers: {error}") from None


def _checked(words: ArrayLike, source: str) -> np.ndarray:
    values = _array(words, source)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise ProgramError(
            f"{source}: a program is a one-dimensional sequence of integers, got {values.dtype} {values.shape}"
        )
    if values.size and (bad := (values < 0) | (values > 0xFFFFFFFF)).any():
        first = int(np.argmax(bad))
        raise ProgramError(f"{source}: word {first} is {values[first]}; allowed: 0 to 0xFFFFFFFF")
    return values
