"""A program: machine words, where they came from, and the ``.mem`` text form."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from plena_jax.errors import ProgramError
from plena_jax.files import write_atomically


@dataclass(frozen=True, eq=False)
class Program:
    """An immutable sequence of 32-bit machine words.

    Two programs are equal, and hash alike, when their words are.

    Attributes:
        words: uint32 [n], read-only.
        source: name of the file or text the words came from, for messages.
        lines: int [n] line of each word in that source (1-based), or None.
    """

    words: np.ndarray
    source: str = field(default="<words>")
    lines: np.ndarray | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        words = np.array(self.words, dtype=np.uint32)
        words.setflags(write=False)
        object.__setattr__(self, "words", words)

    @classmethod
    def from_words(cls, words: ArrayLike, source: str = "<words>") -> Program:
        """A program from integers.

        Raises:
            ProgramError: not a one-dimensional sequence of integers from 0 to 2**32 - 1.
        """
        values = np.asarray(words)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ProgramError(
                f"{source}: a program is a one-dimensional sequence of integers, got {values.dtype} {values.shape}"
            )
        bad = (values < 0) | (values > 0xFFFFFFFF)
        if values.size and bad.any():
            first = int(np.argmax(bad))
            raise ProgramError(f"{source}: word {first} is {values[first]}; allowed: 0 to 0xFFFFFFFF")
        return cls(values.astype(np.uint32), source)

    @classmethod
    def from_mem(cls, text: str, source: str = "<mem>") -> Program:
        """A program from ``.mem`` text: whitespace-separated hexadecimal words, each with an optional ``0x``.

        Raises:
            ProgramError: a token that is not a hexadecimal number of at most 32 bits; names its line and column.
        """
        tokens = text.split()
        try:
            values = [int(token.removeprefix("0x"), 16) for token in tokens]
            # int() takes signs, underscores and 0X, which are no part of the format.
            clean = text.isascii() and not any(mark in text for mark in "+-_X")
        except ValueError:
            clean, values = False, []
        if not clean or max(values, default=0) > 0xFFFFFFFF:
            raise ProgramError(_bad_token(text, source))
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
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ProgramError(f"{path}: neither hexadecimal words nor assembly text: {error}") from None
        return assemble(text, str(path)) if looks_like_assembly(text) else cls.from_mem(text, str(path))

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

    def __len__(self) -> int:
        return len(self.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def _bad_token(text: str, source: str) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        column = 0
        for token in line.split():
            column = line.index(token, column)
            digits = token.removeprefix("0x")
            if not digits or any(c not in "0123456789abcdefABCDEF" for c in digits):
                return (
                    f"{source}:{number}:{column + 1}: {token!r} is not a hexadecimal word (digits, optionally after 0x)"
                )
            if int(digits, 16) > 0xFFFFFFFF:
                return f"{source}:{number}:{column + 1}: {token!r} is wider than 32 bits"
            column += len(token)
    return f"{source}: not a list of hexadecimal words"
