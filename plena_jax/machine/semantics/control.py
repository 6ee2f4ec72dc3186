"""Semantics of integer and control instructions (docs/machine.md 4.5 and 4.7): integers only, never the datapath.

Functions come in two kinds. An :data:`ALU` function returns the new value of one register; all of them are evaluated in
every fast step of the control loop and one value is picked, so they must be cheap. A :data:`SLOW` function returns an
:class:`Effect`; the instructions among them are few in a program's run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.isa import BY_MNEMONIC, SRAM_ENTRIES
from plena_jax.machine.faults import Fault
from plena_jax.machine.lanes import MASK, SCALE, STRIDE
from plena_jax.machine.state import LOOPS_PER_REGISTER

Int = jax.Array | int


class Operands(NamedTuple):
    """uint32: gp registers rd, rs1, rs2, and the immediate."""

    d: jax.Array
    x: jax.Array
    y: jax.Array
    imm: jax.Array


class Alu(NamedTuple):
    """An ALU function and where its result goes: gp[rd], or a fixed lane of ``core``."""

    function: Callable[[Operands], jax.Array]
    lane: int | None


ALU: dict[str, Alu] = {}


def alu(
    mnemonic: str, lane: int | None = None
) -> Callable[[Callable[[Operands], jax.Array]], Callable[..., jax.Array]]:
    """Register the function that computes what ``mnemonic`` writes."""
    _check(mnemonic)

    def register(function: Callable[[Operands], jax.Array]) -> Callable[[Operands], jax.Array]:
        ALU[mnemonic] = Alu(function, lane)
        return function

    return register


def _check(mnemonic: str) -> None:
    if mnemonic not in BY_MNEMONIC:
        raise ValueError(f"{mnemonic} is not in the instruction table")


@alu("S_ADD_INT")
def s_add_int(o: Operands) -> jax.Array:
    """A + B modulo 2**32."""
    return o.x + o.y


@alu("S_ADDI_INT")
def s_addi_int(o: Operands) -> jax.Array:
    """A + imm modulo 2**32."""
    return o.x + o.imm


@alu("S_SUB_INT")
def s_sub_int(o: Operands) -> jax.Array:
    """A - B modulo 2**32."""
    return o.x - o.y


@alu("S_MUL_INT")
def s_mul_int(o: Operands) -> jax.Array:
    """A * B modulo 2**32."""
    return o.x * o.y


@alu("S_LUI_INT")
def s_lui_int(o: Operands) -> jax.Array:
    """Imm << 12 modulo 2**32."""
    return o.imm << 12


@alu("C_SET_SCALE_REG", SCALE)
def c_set_scale_reg(o: Operands) -> jax.Array:
    """Distance from elements to scales."""
    return o.d


@alu("C_SET_STRIDE_REG", STRIDE)
def c_set_stride_reg(o: Operands) -> jax.Array:
    """Bytes between rows."""
    return o.d


@alu("C_SET_V_MASK_REG", MASK)
def c_set_v_mask_reg(o: Operands) -> jax.Array:
    """Active head slots."""
    return o.d


# -- slow -------------------------------------------------------------------------------------------------------------


class Machine(NamedTuple):
    """What a slow instruction may look at.

    Attributes:
        config: the machine.
        operands: registers and immediate.
        rd: int32, the field.
        pc: int32.
        depth: int32, open loops of register rd.
        innermost: int32, the register of the innermost open loop, -1 if none is open.
        break_to: int32, pc behind the enclosing C_LOOP_END, 0 if unknown.
        break_register: int32, the register of that C_LOOP_END.
        loaded: INT SRAM entry at ``x + imm`` (the last entry if that is out of range).
        unknown: bool, whether V_TOPK wrote that entry while the program is resolved without data.
    """

    config: MachineConfig
    operands: Operands
    rd: jax.Array
    pc: jax.Array
    depth: jax.Array
    innermost: jax.Array
    break_to: jax.Array
    break_register: jax.Array
    loaded: jax.Array
    unknown: jax.Array


class Effect(NamedTuple):
    """What a slow instruction does. Registers and entries are -1 for none.

    Attributes:
        gp, value: a gp register and its new value.
        push: register on which a loop opens here.
        pop: register whose innermost loop closes.
        a, low, high: an HBM address register.
        entry, stored: an INT SRAM entry.
        next_pc: -1 for the next instruction.
        fault: a :class:`Fault`; nothing is done if not 0.
    """

    gp: Int = -1
    value: Int = 0
    push: Int = -1
    pop: Int = -1
    a: Int = -1
    low: Int = 0
    high: Int = 0
    entry: Int = -1
    stored: Int = 0
    next_pc: Int = -1
    fault: Int = 0


#: Fields of an effect that hold uint32; the others hold int32.
UNSIGNED = ("value", "low", "high", "stored")
SLOW: dict[str, Callable[[Machine], Effect]] = {}


def slow(mnemonic: str) -> Callable[[Callable[[Machine], Effect]], Callable[[Machine], Effect]]:
    """Register the function that executes ``mnemonic``."""
    _check(mnemonic)

    def register(function: Callable[[Machine], Effect]) -> Callable[[Machine], Effect]:
        SLOW[mnemonic] = function
        return function

    return register


@slow("C_LOOP_START")
def c_loop_start(m: Machine) -> Effect:
    """Open a loop; the body runs at least once."""
    fault = jnp.where(m.depth >= LOOPS_PER_REGISTER, int(Fault.LOOP_DEPTH), 0)
    return Effect(gp=m.rd, value=m.operands.imm, push=m.rd, fault=fault)


@slow("C_LOOP_END")
def c_loop_end(m: Machine) -> Effect:
    """The last pass of a loop: close it. (While the live register is above 1 the fast step jumps back.)"""
    return Effect(gp=m.rd, value=0, pop=m.rd, fault=jnp.where(m.depth == 0, int(Fault.LOOP_UNMATCHED), 0))


@slow("C_BREAK")
def c_break(m: Machine) -> Effect:
    """Drop the innermost loop, whatever its register, and go on with the next instruction.

    As it is meant: go on behind the C_LOOP_END that closes that loop.
    """
    fault = jnp.where(m.innermost < 0, int(Fault.LOOP_UNMATCHED), 0)
    next_pc: Int = -1
    if m.config.intended.c_break:
        meant = (m.break_to > 0) & (m.break_register == m.innermost)
        fault = jnp.where((fault == 0) & ~meant, int(Fault.BREAK_UNMATCHED), fault)
        next_pc = m.break_to
    return Effect(gp=m.innermost, value=0, pop=m.innermost, next_pc=next_pc, fault=fault)


@slow("C_SET_ADDR_REG")
def c_set_addr_reg(m: Machine) -> Effect:
    """High and low word of an HBM address register."""
    return Effect(a=m.rd, low=m.operands.y, high=m.operands.x)


def _outside(address: jax.Array) -> jax.Array:
    return jnp.where(address >= SRAM_ENTRIES, int(Fault.OUT_OF_RANGE), 0)


@slow("S_LD_INT")
def s_ld_int(m: Machine) -> Effect:
    """INT SRAM entry to gp register."""
    fault = _outside(m.operands.x + m.operands.imm)
    fault = jnp.where((fault == 0) & m.unknown, int(Fault.DATA_DEPENDENT), fault)
    return Effect(gp=m.rd, value=m.loaded, fault=fault)


@slow("S_ST_INT")
def s_st_int(m: Machine) -> Effect:
    """Gp register to INT SRAM entry."""
    address = m.operands.x + m.operands.imm
    return Effect(entry=address.astype(jnp.int32), stored=m.operands.d, fault=_outside(address))
