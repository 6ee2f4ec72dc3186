"""Faults in words: from the state of a machine that stopped to an exception that says what was wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.disassembler import describe_word
from plena_jax.errors import MachineFault
from plena_jax.isa import BY_OPCODE, TOPK_POLICIES, Field, Instruction, Kind, Operand, Space
from plena_jax.isa.instruction import OPCODE_MASK, REGISTERS
from plena_jax.machine.faults import Fault
from plena_jax.machine.state import LOOPS_PER_REGISTER, MachineState, allocated_hbm
from plena_jax.machine.transfer import Transfers
from plena_jax.program import Program


class _Why(NamedTuple):
    rule: str
    operand: str = ""
    value: int | None = None
    limit: str = ""


def explain(program: Program, state: MachineState, config: MachineConfig) -> MachineFault:
    """The exception for a state whose status is a fault."""
    pc, code = int(state.pc), Fault(int(state.status))
    word = int(program.words[pc])
    entry = BY_OPCODE.get(word & OPCODE_MASK)
    why = _Why(f"opcode 0x{word & OPCODE_MASK:02X} is not assigned", limit="an assigned opcode (see `plena isa`)")
    if entry is not None and code is not Fault.INVALID_OPCODE:
        why = _why(code, entry, word, state, config)
    text = describe_word(word) if entry is not None else f".word 0x{word:08X}"
    return MachineFault(code=code, pc=pc, instruction=text, section=program.section(pc), state=state, **why._asdict())


def _why(code: Fault, entry: Instruction, word: int, state: MachineState, config: MachineConfig) -> _Why:
    field = lambda f: word >> f.shift & f.limit
    gp = np.asarray(state.gp)
    if code in (Fault.MISALIGNED, Fault.OUT_OF_RANGE):
        return _address(code, entry, word, state, config)
    if code is Fault.F_REGISTER:
        bad = next(o for o in entry.operands if o.kind is Kind.F and field(o.field) >= REGISTERS[Kind.F])
        return _Why("the machine has eight f registers", f"f{field(bad.field)}", None, "f0 to f7")
    if code is Fault.TOPK_POLICY:
        policies = ", ".join(f"{i}: {k} of {n}" for i, (n, k) in enumerate(TOPK_POLICIES))
        return _Why("unknown policy", "policy", field(Field.RS3), policies)
    if code is Fault.HEADS:
        sizes = f"HLEN {config.hlen}, BROADCAST_AMOUNT {config.broadcast_amount}, MLEN {config.mlen}"
        return _Why(f"head slots do not fill a row ({sizes})", limit="HLEN x BROADCAST_AMOUNT = MLEN and HLEN > 1")
    if code is Fault.M_BMV:
        return _Why("M_BMV does not work in the hardware model", limit="MachineConfig(intended=Intended(m_bmv=True))")
    if code is Fault.FORMAT:
        transfers = Transfers.of(config)
        pair = transfers.matrix if entry.mnemonic == "H_PREFETCH_M" else transfers.vector
        return _Why(pair[field(Field.FUNCT1) != 0].problem, "precision", field(Field.FUNCT1))
    if code is Fault.LOOP_ZERO:
        return _Why("a loop runs at least once", "imm", 0, f"1 to {Field.IMM22.limit}")
    register = f"gp{field(Field.RD)}"
    if code is Fault.LOOP_UNMATCHED:
        what = "no loop is open" if entry.mnemonic == "C_BREAK" else f"no open loop uses {register}"
        return _Why(what, "" if entry.mnemonic == "C_BREAK" else register)
    if code is Fault.BREAK_UNMATCHED:
        return _Why("the innermost open loop is not the one that the C_LOOP_END behind this instruction closes")
    if code is Fault.LOOP_DEPTH:
        return _Why("too many loops are open on one register", register, None, f"{LOOPS_PER_REGISTER} on each register")
    if code is Fault.LOOP_GUARD:
        limit = f"{config.max_loop_instructions} (MAX_LOOP_INSTRUCTIONS)"
        return _Why("an iteration of an open loop has executed too many instructions", limit=limit)
    if code is Fault.HBM_RANGE:
        return _Why(
            "stores beyond the end of HBM",
            _name(entry, Field.RS1, word),
            int(gp[field(Field.RS1)]),
            f"{config.hbm_size} bytes (HBM_SIZE)",
        )
    if code in (Fault.VRAM_UNALLOCATED, Fault.HBM_UNALLOCATED):
        rows, size = state.vram.shape[0], allocated_hbm(state.hbm, config)
        memory = f"VRAM ({rows} rows)" if code is Fault.VRAM_UNALLOCATED else f"HBM ({size} bytes)"
        return _Why(
            f"needs more than the state has allocated of {memory}", limit="MachineState.grown, or run outside jit"
        )
    return _Why(f"stopped: {code.name}")


def _name(entry: Instruction, field: Field, word: int) -> str:
    operand = entry.operand(field)
    number = word >> field.shift & field.limit
    return f"{operand.kind.value}{number}" if operand is not None else ""


def _operand_name(operand: Operand, entry: Instruction, word: int) -> str:
    added = {Field.IMM18: " + imm", Field.RD: f" + gp{word >> Field.RD.shift & Field.RD.limit}", None: ""}
    return _name(entry, operand.field, word) + added[operand.plus]


def _address(code: Fault, entry: Instruction, word: int, state: MachineState, config: MachineConfig) -> _Why:
    """Which operand's address is wrong, in the order in which the machine looks."""
    for field in (Field.RD, Field.RS1, Field.RS2):
        operand = entry.operand(field)
        if operand is None or operand.address is None:
            continue
        value = _value(operand, word, state)
        address, size = operand.address, operand.address.block(config)
        block, offset = divmod(value, size)
        name = _operand_name(operand, entry, word)
        if offset % address.unit(config) or offset >= address.limit(config):
            return _Why(f"misaligned {address.space.value} address", name, value, _alignment(operand, config))
        count = address.count(config, word >> Field.RS3.shift & Field.RS3.limit)
        if block + count > address.capacity(config):
            return _Why(f"{address.space.value} address out of range", name, value, _range(operand, count, config))
    # Only M_MM_WO has addresses that depend on more than one operand; without a stride register it is the first.
    strided = word >> Field.RS1.shift & Field.RS1.limit
    field = Field.RS1 if strided else Field.RD
    operand = entry.operand(field)
    assert operand is not None
    what = "strided row" if strided else f"row of {config.blen}"
    rule = f"a {what} is misaligned" if code is Fault.MISALIGNED else f"a {what} is out of range of VRAM"
    limit = f"{config.vector_sram_size} rows (VECTOR_SRAM_SIZE)"
    return _Why(rule, _operand_name(operand, entry, word), _value(operand, word, state), limit)


def _value(operand: Operand, word: int, state: MachineState) -> int:
    gp = np.asarray(state.gp).astype(np.uint64)
    value = int(gp[word >> operand.field.shift & operand.field.limit])
    if operand.plus is Field.RD:
        value += int(gp[word >> Field.RD.shift & Field.RD.limit])
    elif operand.plus is not None:
        value += word >> operand.plus.shift & operand.plus.limit
    return value & 0xFFFFFFFF


def _alignment(operand: Operand, config: MachineConfig) -> str:
    address = operand.address
    assert address is not None
    if address.limit(config) == 1:
        return f"a multiple of {address.block(config)}"
    unit, limit = address.unit(config), address.limit(config)
    return f"{address.rule} (multiples of {unit} below {limit} in a block of {address.block(config)})"


def _range(operand: Operand, count: int, config: MachineConfig) -> str:
    address = operand.address
    assert address is not None
    capacity, size = address.capacity(config), address.block(config)
    unit = {Space.VRAM: "rows", Space.MRAM: "tiles"}.get(address.space, "entries")
    if count > capacity:
        return f"nothing: it takes {count} {unit}, and there are {capacity}"
    last = (capacity - count) * size + max(address.limit(config) - 1, 0)
    return f"up to {last} ({count} of {capacity} {unit} from there)"
