"""Which function executes an instruction, and how it takes part in a step.

A semantic function is pure and works on values: it reads what it needs through a :class:`~plena_jax.machine.view.View`
and returns what is to be written. Where that goes follows from the declaration and the instruction's operands, not from
the function. The stages differ in what they write:

========  ======================================================  ===================================================
stage     a function returns                                      it is written to
========  ======================================================  ===================================================
MATMUL    (x, w): float32 [BLEN, MLEN] and [MLEN, BLEN]           m_accum += x @ w
WRITE     float32 [BLEN, BLEN] (old block in, new block out)      BLEN lanes of BLEN rows of vector SRAM
ROW       float32 [VLEN]                                          one row of vector SRAM or of ``cells``
WIDE      float32 [rows, VLEN]                                    so many consecutive rows of either
TOPK      weights float32 [8], indices uint32 [8], count          FP SRAM and INT SRAM
STORE     element bytes uint8, scale bytes uint8                  HBM
========  ======================================================  ===================================================

An instruction that writes more than its stage's unit takes several parts; ``step.part`` counts them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plena_jax.config import MachineConfig
from plena_jax.isa import BY_MNEMONIC


class Stage(enum.IntEnum):
    """Where an instruction runs. CONTROL instructions touch integers only; HALTED and FAULTED end the run."""

    CONTROL = 0
    MATMUL = 1
    WRITE = 2
    ROW = 3
    WIDE = 4
    TOPK = 5
    STORE = 6
    HALTED = 7
    FAULTED = 8


class Accumulator(enum.IntEnum):
    """The matrix accumulators; an instruction adds to one or drains it."""

    NONE = 0
    M = 1
    V = 2
    HV = 3
    HM = 4


def _one(config: MachineConfig) -> int:
    return 1


def _always(fields: dict[str, int]) -> bool:
    return True


def _no_argument(fields: dict[str, int]) -> int:
    return 0


@dataclass(frozen=True)
class Semantic:
    """A semantic function and its declaration.

    Attributes:
        function: ``(view, step) -> what its stage writes``.
        stage: where it runs.
        when: from the word's other fields by name, whether this is what executes it.
        parts: writes of one stage unit that the instruction takes.
        region: attribute of Layout: the rows of ``cells`` that a ROW or WIDE instruction writes; empty if rd says
            where.
        argument: from the word's other fields by name, a number for ``step.argument``.
        adds_to, drains: accumulators it adds to, or writes out and clears.
    """

    function: Callable[..., Any]
    stage: Stage
    when: Callable[[dict[str, int]], bool] = _always
    parts: Callable[[MachineConfig], int] = _one
    region: str = ""
    argument: Callable[[dict[str, int]], int] = _no_argument
    adds_to: Accumulator = Accumulator.NONE
    drains: Accumulator = Accumulator.NONE


#: The declarations for each mnemonic; the first whose ``when`` holds is meant.
SEMANTICS: dict[str, list[Semantic]] = {}


def semantic(*mnemonics: str, stage: Stage, **declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function that executes ``mnemonics``; keyword arguments are those of :class:`Semantic`.

    Instructions that share a function share a branch of their stage's switch.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for mnemonic in mnemonics:
            if mnemonic not in BY_MNEMONIC:
                raise ValueError(f"{mnemonic} is not in the instruction table")
            if any(known.when is _always for known in SEMANTICS.get(mnemonic, [])):
                raise ValueError(f"{mnemonic} has a semantic function already")
            SEMANTICS.setdefault(mnemonic, []).append(Semantic(function, stage, **declaration))
        return function

    return register


def semantic_of(mnemonic: str, fields: dict[str, int]) -> Semantic:
    """What executes an instruction whose operands are ``fields`` by name."""
    return next(s for s in SEMANTICS[mnemonic] if s.when(fields))


def branches(stage: Stage) -> list[Semantic]:
    """One declaration for each different function of a stage, in the order of :func:`branch_index`."""
    unique = {s.function: s for every in reversed(SEMANTICS.values()) for s in reversed(every) if s.stage is stage}
    return list(reversed(unique.values()))


def branch_index(semantic: Semantic) -> int:
    """Position of a declaration's function among those of its stage."""
    return [s.function for s in branches(semantic.stage)].index(semantic.function)
