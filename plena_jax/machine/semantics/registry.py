"""Which function executes an instruction, and how it takes part in a step.

A semantic function is pure and works on values: it reads what it needs through a :class:`~plena_jax.machine.memory.View`
and returns what is to be written. Where that goes follows from the declaration, not from the function. The stages differ
in what they write:

========  ======================================================  ===================================================
stage     a function returns                                      it is written to
========  ======================================================  ===================================================
ROW       float32 [VLEN]                                          one row of ``cells``
WIDE      float32 [rows, VLEN]                                    so many consecutive rows
MATMUL    float32 [BLEN, BLEN]                                    m_accum
WRITE     float32 [BLEN, BLEN] (old block in, new block out)      BLEN lanes of BLEN rows of ``cells``
TOPK      weights float32 [8], indices uint32 [8], count          FP SRAM and INT SRAM
STORE     element bytes uint8, scale bytes uint8                  HBM
========  ======================================================  ===================================================

An instruction that writes more than its stage's unit takes several parts; ``s.part`` counts them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plena_jax.config import MachineConfig
from plena_jax.isa import BY_MNEMONIC


class Stage(enum.IntEnum):
    """What the machine does next. CONTROL instructions touch integers only; HALTED and FAULTED end the run."""

    CONTROL = 0
    RARE = 1
    MATMUL = 2
    WRITE = 3
    ROW = 4
    WIDE = 5
    TOPK = 6
    STORE = 7
    HALTED = 8
    FAULTED = 9


class Target(enum.IntEnum):
    """The row that a ROW or WIDE instruction writes first, counted from its region's first row."""

    FIXED = 0
    VRAM_RD = 1
    MRAM_RD = 2
    F_RD = 3
    SRAM_RS1 = 4


class Accumulator(enum.IntEnum):
    """The matrix accumulators; an instruction adds to one or drains it."""

    NONE = 0
    M = 1
    V = 2
    HV = 3
    HM = 4


def _one(config: MachineConfig) -> int:
    return 1


@dataclass(frozen=True)
class Semantic:
    """A semantic function and its declaration.

    Attributes:
        function: ``(view, step) -> what its stage writes``.
        stage: where it runs.
        parts: writes of one stage unit that the instruction takes.
        target: row it writes first, counted from ``region``, an attribute of Layout.
        adds_to, drains: accumulators it adds to, or writes out and clears.
    """

    function: Callable[..., Any]
    stage: Stage
    parts: Callable[[MachineConfig], int] = _one
    target: Target = Target.FIXED
    region: str = "vram"
    adds_to: Accumulator = Accumulator.NONE
    drains: Accumulator = Accumulator.NONE


SEMANTICS: dict[str, Semantic] = {}


def semantic(mnemonic: str, stage: Stage, **declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the function that executes ``mnemonic``; keyword arguments are those of :class:`Semantic`."""
    if mnemonic not in BY_MNEMONIC:
        raise ValueError(f"{mnemonic} is not in the instruction table")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if mnemonic in SEMANTICS:
            raise ValueError(f"{mnemonic} has a semantic function already")
        SEMANTICS[mnemonic] = Semantic(function, stage, **declaration)
        return function

    return register


def branches(stage: Stage) -> list[Callable[..., Any]]:
    """The functions of a stage, in the order of :func:`branch_index`."""
    return [s.function for s in SEMANTICS.values() if s.stage is stage]


def branch_index(mnemonic: str) -> int:
    """Position of an instruction among the functions of its stage."""
    stage = SEMANTICS[mnemonic].stage
    return [name for name, s in SEMANTICS.items() if s.stage is stage].index(mnemonic)
