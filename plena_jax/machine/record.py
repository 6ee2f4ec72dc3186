"""The record of one datapath instruction: what the integer side hands to the float side.

Sixteen int32 (unsigned values as bit patterns). A resolved trace is an array of them. Addresses are resolved: rows of
vector SRAM, or rows of ``cells`` (see :mod:`plena_jax.machine.layout`), and lanes in them.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Record(enum.IntEnum):
    """Columns."""

    STAGE = 0
    #: Position of the instruction's function among those of its stage.
    BRANCH = 1
    PARTS = 2
    #: A :class:`Flag` for each property that holds.
    FLAGS = 3
    RD = 4
    RD_LANE = 5
    RS1 = 6
    RS1_LANE = 7
    RS2 = 8
    RS2_LANE = 9
    #: Active head slots, or the stride of a transfer or write-out.
    MASK = 10
    #: Order, policy or precision.
    ARGUMENT = 11
    #: 1 if the instruction's accumulator counts as zero.
    FRESH = 12
    PC = 13
    #: Instructions executed before this one, modulo 2**32.
    TICK = 14
    #: Parts of the same stage before this record, where a journal is kept.
    SLOT = 15


WIDTH = 16


class Flag(enum.IntFlag):
    """Properties of the operands; an operand that is neither in vector SRAM nor a lane is a whole row of ``cells``."""

    RD_VRAM = 1
    RS1_VRAM = 2
    RS2_VRAM = 4
    #: One lane, broadcast where a row is wanted: f registers and SRAM entries.
    RS1_SCALAR = 8
    RS2_SCALAR = 16
    RD_SCALAR = 32


class Step(NamedTuple):
    """One part of one instruction, as int32 scalars; operands and ``mask`` may be uint32 patterns."""

    branch: jax.Array
    parts: jax.Array
    flags: jax.Array
    rd: jax.Array
    rd_lane: jax.Array
    rs1: jax.Array
    rs1_lane: jax.Array
    rs2: jax.Array
    rs2_lane: jax.Array
    mask: jax.Array
    argument: jax.Array
    fresh: jax.Array
    slot: jax.Array
    part: jax.Array

    def has(self, flag: Flag) -> jax.Array:
        """bool []: whether a property holds."""
        return (self.flags & int(flag)) != 0


def field(trace: jax.Array, index: jax.Array, column: Record) -> jax.Array:
    """One column of one record of ``trace`` [n, 16]."""
    return lax.dynamic_slice(trace, (index, jnp.int32(column)), (1, 1), allow_negative_indices=False)[0, 0]


def step(trace: jax.Array, index: jax.Array, part: jax.Array) -> Step:
    """The record at ``index`` of ``trace`` [n, 16] with its part."""
    row = lax.dynamic_slice(trace, (index, jnp.int32(0)), (1, WIDTH), allow_negative_indices=False)[0]
    column = lambda name: lax.index_in_dim(row, Record[name.upper()], keepdims=False)
    return Step(**{name: column(name) for name in Step._fields if name != "part"}, part=part)
