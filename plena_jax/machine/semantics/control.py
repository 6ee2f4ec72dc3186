"""Semantics of integer and control instructions (isa.md sections 4.5 and 4.7): integers only, never the datapath.

A function gets the operands of its instruction and returns an :class:`Effect`: at most two registers, the next pc, and at
most one entry of the loop stack. All of them are evaluated in every control step and one effect is picked, so they must stay
cheap and free of side conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plena_jax.isa import BY_MNEMONIC
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import A_HIGH, A_LOW, GP, MASK, SCALE, STRIDE
from plena_jax.machine.state import LOOPS_PER_REGISTER

Int = jax.Array | int


class Operands(NamedTuple):
    """What a control instruction may look at; uint32 unless said otherwise.

    Attributes:
        rd, pc: int32, the rd field and the instruction's index.
        d, x, y: gp registers rd, rs1, rs2.
        imm: immediate.
        loaded: INT SRAM entry at ``x + imm``.
        tick: instructions executed before this one.
        depth: int32, open loops of register rd.
        start_pc, started, iteration: of the innermost of them.
    """

    rd: jax.Array
    pc: jax.Array
    d: jax.Array
    x: jax.Array
    y: jax.Array
    imm: jax.Array
    loaded: jax.Array
    tick: jax.Array
    depth: jax.Array
    start_pc: jax.Array
    started: jax.Array
    iteration: jax.Array


class Effect(NamedTuple):
    """What a control instruction does.

    Attributes:
        lane, value: register lane and its new value; lane -1 for none.
        high_lane, high_value: a second register.
        next_pc: -1 for the next instruction.
        deeper: change of the loop depth of register rd.
        slot: entry of register rd's loops that is written, -1 for none, with its four fields.
        fault: a :class:`Fault`, nothing is done if not 0.
    """

    lane: Int = -1
    value: Int = 0
    high_lane: Int = -1
    high_value: Int = 0
    next_pc: Int = -1
    deeper: Int = 0
    slot: Int = -1
    start_pc: Int = 0
    started: Int = 0
    tick: Int = 0
    iteration: Int = 0
    fault: Int = 0


CONTROL: dict[str, Callable[[Operands], Effect]] = {}


def control(mnemonic: str) -> Callable[[Callable[[Operands], Effect]], Callable[[Operands], Effect]]:
    """Register the function that executes ``mnemonic``."""
    if mnemonic not in BY_MNEMONIC:
        raise ValueError(f"{mnemonic} is not in the instruction table")

    def register(function: Callable[[Operands], Effect]) -> Callable[[Operands], Effect]:
        CONTROL[mnemonic] = function
        return function

    return register


def no_effect(o: Operands) -> Effect:
    """Go on with the next instruction: f0 as destination, and everything the datapath has executed already."""
    return Effect()


def _gp(o: Operands, value: jax.Array) -> Effect:
    return Effect(lane=GP + o.rd, value=value)


@control("S_ADD_INT")
def s_add_int(o: Operands) -> Effect:
    """A + B modulo 2**32."""
    return _gp(o, o.x + o.y)


@control("S_ADDI_INT")
def s_addi_int(o: Operands) -> Effect:
    """A + imm modulo 2**32."""
    return _gp(o, o.x + o.imm)


@control("S_SUB_INT")
def s_sub_int(o: Operands) -> Effect:
    """A - B modulo 2**32."""
    return _gp(o, o.x - o.y)


@control("S_MUL_INT")
def s_mul_int(o: Operands) -> Effect:
    """A * B modulo 2**32."""
    return _gp(o, o.x * o.y)


@control("S_LUI_INT")
def s_lui_int(o: Operands) -> Effect:
    """Imm << 12 modulo 2**32."""
    return _gp(o, o.imm << 12)


@control("S_LD_INT")
def s_ld_int(o: Operands) -> Effect:
    """INT SRAM entry."""
    return _gp(o, o.loaded)


@control("C_SET_ADDR_REG")
def c_set_addr_reg(o: Operands) -> Effect:
    """High and low word of an HBM address register."""
    return Effect(lane=A_LOW + o.rd, value=o.y, high_lane=A_HIGH + o.rd, high_value=o.x)


@control("C_SET_SCALE_REG")
def c_set_scale_reg(o: Operands) -> Effect:
    """Distance from elements to scales."""
    return Effect(lane=SCALE, value=o.d)


@control("C_SET_STRIDE_REG")
def c_set_stride_reg(o: Operands) -> Effect:
    """Bytes between rows."""
    return Effect(lane=STRIDE, value=o.d)


@control("C_SET_V_MASK_REG")
def c_set_v_mask_reg(o: Operands) -> Effect:
    """Active head slots."""
    return Effect(lane=MASK, value=o.d)


@control("C_LOOP_START")
def c_loop_start(o: Operands) -> Effect:
    """Open a loop; the body runs at least once."""
    return Effect(
        lane=GP + o.rd,
        value=o.imm,
        deeper=1,
        slot=o.depth,
        start_pc=o.pc,
        started=o.tick,
        tick=o.tick,
        fault=jnp.where(o.depth >= LOOPS_PER_REGISTER, int(Fault.LOOP_DEPTH), 0),
    )


@control("C_LOOP_END")
def c_loop_end(o: Operands) -> Effect:
    """Back to the body while the live register is above 1; else close the innermost loop of the register."""
    again = o.d > 1
    return Effect(
        lane=GP + o.rd,
        value=jnp.where(again, o.d - 1, jnp.uint32(0)),
        next_pc=jnp.where(again, o.start_pc + 1, -1),
        deeper=jnp.where(again, 0, -1),
        slot=jnp.where(again, o.depth - 1, -1),
        start_pc=o.start_pc,
        started=o.started,
        tick=o.tick,
        iteration=o.iteration + 1,
        fault=jnp.where(o.depth == 0, int(Fault.LOOP_UNMATCHED), 0),
    )
