"""Machine words to assembly text that assembles to the same words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from plena_jax.isa import BY_OPCODE, Instruction
from plena_jax.isa.instruction import OPCODE_MASK
from plena_jax.program import Program


def disassemble(words: ArrayLike) -> list[str]:
    """Assembly text of each word, in order; :func:`plena_jax.assemble` gives the words back exactly.

    A word that no instruction text produces (unassigned opcode, a register that does not exist, bits outside the fields
    of its instruction) becomes ``.word`` with what the machine sees in it as a comment.

    Raises:
        ProgramError: see :meth:`Program.from_words`.
    """
    unique, index = np.unique(Program.from_words(words).words, return_inverse=True)
    texts = [disassemble_word(word) for word in unique.tolist()]
    return [texts[i] for i in index.tolist()]


def disassemble_word(word: int) -> str:
    """Assembly text of one word, see :func:`disassemble`."""
    write = _WRITERS.get(word & OPCODE_MASK)
    return write(word) if write else f".word 0x{word:08X}  ; unassigned opcode 0x{word & OPCODE_MASK:02X}"


def describe_word(word: int) -> str:
    """What the machine sees in a word, for messages: the instruction even where ``.word`` is needed to write it."""
    text = disassemble_word(word)
    return text.split("; ", 1)[1] if text.startswith(".word") else text


def _writer(entry: Instruction) -> Callable[[int], str]:
    plan = [(o.kind.value, o.field.shift, o.field.limit, o.most, o.default) for o in entry.operands]
    mask = entry.mask

    def write(word: int) -> str:
        texts = []
        pending: list[str] = []
        plain = not word & ~mask
        for prefix, shift, limit, most, default in plan:
            value = word >> shift & limit
            plain = plain and value <= most
            pending.append(f"{prefix}{value}")
            # Trailing operands that have their default stay unwritten.
            if value != default:
                texts += pending
                pending = []
        text = f"{entry.mnemonic} {', '.join(texts)}" if texts else entry.mnemonic
        return text if plain else f".word 0x{word:08X}  ; {text}"

    return write


_WRITERS = {opcode: _writer(entry) for opcode, entry in BY_OPCODE.items()}
