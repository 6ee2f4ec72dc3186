"""The record of one datapath instruction: what the integer side hands to the float side.

Sixteen int32 (unsigned values as bit patterns). A resolved trace is an array of them; the architectural engine makes one at
a time. Addresses are resolved: VRAM rows, MRAM tiles and SRAM entries are plain numbers.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Record(enum.IntEnum):
    """Columns. ``RD``, ``RS1``, ``RS2`` hold the block that the operand addresses, the register's value, or its number."""

    STAGE = 0
    BRANCH = 1
    PARTS = 2
    TARGET = 3
    RD = 4
    RS1 = 5
    RS2 = 6
    RD_OFFSET = 7
    RS1_OFFSET = 8
    RS2_OFFSET = 9
    #: Active head slots, or the stride of a transfer or write-out.
    MASK = 10
    #: Order, policy or precision.
    ARGUMENT = 11
    #: 1 if the instruction's accumulator counts as zero.
    FRESH = 12
    PC = 13
    #: One past the last byte stored to HBM, all ones if beyond 32 bits.
    HBM_TOP = 14
    #: One past the last VRAM row touched.
    VRAM_TOP = 15


WIDTH = len(Record)


class Step(NamedTuple):
    """One part of one instruction, as scalars (int32; ``rs1``, ``rs2``, offsets and ``mask`` may be unsigned patterns)."""

    branch: jax.Array
    parts: jax.Array
    target: jax.Array
    rd: jax.Array
    rs1: jax.Array
    rs2: jax.Array
    rd_offset: jax.Array
    rs1_offset: jax.Array
    rs2_offset: jax.Array
    mask: jax.Array
    argument: jax.Array
    fresh: jax.Array
    part: jax.Array


def field(trace: jax.Array, index: jax.Array, column: Record) -> jax.Array:
    """One column of one record of ``trace`` [n, 16]."""
    return lax.dynamic_slice(trace, (index, jnp.int32(column)), (1, 1), allow_negative_indices=False)[0, 0]


def step(trace: jax.Array, index: jax.Array, part: jax.Array) -> Step:
    """The record at ``index`` of ``trace`` [n, 16] with its part."""
    row = lax.dynamic_slice(trace, (index, jnp.int32(0)), (1, WIDTH), allow_negative_indices=False)[0]
    return Step(**{name: row[Record[name.upper()]] for name in Step._fields if name != "part"}, part=part)
