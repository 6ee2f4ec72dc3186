"""Executed instructions one by one, with what each of them changed: for people and for tools, not for speed."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.disassembler import describe_word
from plena_jax.isa import BY_OPCODE, TOPK_POLICIES, Field
from plena_jax.isa.instruction import OPCODE_MASK
from plena_jax.machine import lanes
from plena_jax.machine.control import Stop, control_loop, put
from plena_jax.machine.datapath import execute
from plena_jax.machine.decode import Table, decode
from plena_jax.machine.explain import explain
from plena_jax.machine.faults import GROWABLE, Fault
from plena_jax.machine.lanes import Side
from plena_jax.machine.layout import Layout
from plena_jax.machine.memories import Memories, pack_memories, unpack_memories
from plena_jax.machine.plan import plan
from plena_jax.machine.record import Flag, Record
from plena_jax.machine.run import check_pc
from plena_jax.machine.semantics import Stage, branches
from plena_jax.machine.semantics.control import ALU
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.state import MachineState, allocated_hbm, grow
from plena_jax.machine.transfer import Transfers, add64
from plena_jax.machine.view import block_of
from plena_jax.program import Program

#: Instructions in one compiled call.
_STEPS = 256
_LOG_ROWS = 64
#: Values of an effect that its line of text shows.
_SHOWN = 4


@dataclass(frozen=True)
class Effect:
    """One thing that an instruction wrote.

    Attributes:
        target: where, as "gp3", "vram[20]" (a row), "vram[20][8]" (from a lane on), "f1", "fp_sram[5]", "m_accum",
            "mram[2]" (a tile) or "hbm[0x400]".
        values: what is there now: the first element, row or block.
        count: elements of one register or SRAM, rows, or bytes written in all.
    """

    target: str
    values: tuple[int | float, ...]
    count: int

    def describe(self) -> str:
        """One line of text; of many values the first."""
        shown = " ".join(f"{value:.6g}" if isinstance(value, float) else str(value) for value in self.values[:_SHOWN])
        more = " ..." if len(self.values) > _SHOWN else ""
        times = f" x {self.count}" if self.count > max(len(self.values), 1) or not self.values else ""
        return f"{self.target} = {shown}{more}{times}" if self.values else f"{self.target}{times} bytes"


@dataclass(frozen=True)
class Executed:
    """One executed instruction.

    Attributes:
        tick: instructions executed before it.
        pc: its index in the program.
        instruction: disassembly.
        unit: functional unit.
        effects: what it wrote.
        section: the innermost section of the program that it is in, or nothing.
    """

    tick: int
    pc: int
    instruction: str
    unit: str
    effects: tuple[Effect, ...]
    section: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain data; numbers that JSON does not have ("nan", "inf", "-inf") as text."""
        data = asdict(self)
        for effect in data["effects"]:
            effect["values"] = [v if isinstance(v, int) or math.isfinite(v) else str(v) for v in effect["values"]]
        return data


class _Carry(NamedTuple):
    core: jax.Array
    side: Side
    memories: Memories
    #: Instructions that may still be executed.
    left: jax.Array
    #: HBM blocks read and written, as in the state.
    moved: jax.Array


class _Seen(NamedTuple):
    #: Whether an instruction was executed.
    executed: jax.Array
    core: jax.Array
    registers: jax.Array
    record: jax.Array
    logged: jax.Array
    #: The first row written, in ``cells`` or vector SRAM.
    row: jax.Array
    m_accum: jax.Array
    int_entries: jax.Array
    fault: jax.Array
    needed: jax.Array


@partial(jax.jit, static_argnames=("config", "vram_rows", "hbm_bytes"))
def _steps(table: Table, carry: _Carry, config: MachineConfig, vram_rows: int, hbm_bytes: int) -> tuple[_Carry, _Seen]:
    layout = Layout(config)

    def step(carry: _Carry, _: None) -> tuple[_Carry, _Seen]:
        until = (
            (lanes.UNTIL, carry.core[lanes.TICKS] + jnp.minimum(carry.left, 1)),
            (lanes.HAS_UNTIL, 1),
            (lanes.STATUS, 0),
        )
        side = carry.side._replace(registers=put(carry.side.registers, *until))
        core, side, log = control_loop(carry.core, side, table, config, rows=_LOG_ROWS)
        found = plan(log[:-1], core[lanes.LOGGED], table, config, vram_rows, hbm_bytes)
        bad = found.fault != 0
        memories = carry.memories._replace(int_sram=side.int_sram)
        memories = execute(config, memories, found.records, found.count)
        side = side._replace(int_sram=memories.int_sram)
        status = side.registers[lanes.STATUS].astype(jnp.int32)
        status = jnp.where(bad, found.fault, jnp.where(status == Fault.LIMIT, 0, status))
        core, side = jax.tree.map(lambda old, new: jnp.where(bad, old, new), (carry.core, carry.side), (core, side))
        record = found.records[0]
        row, in_vram = _first_row(record, config, layout)
        pick = lambda memory, here: block_of(memory, jnp.where(here, row, 0), 1)[0]
        seen = _Seen(
            executed=core[lanes.TICKS] != carry.core[lanes.TICKS],
            core=core,
            registers=side.registers,
            record=record,
            logged=found.count > 0,
            row=jnp.where(in_vram, pick(memories.vram, in_vram), pick(memories.cells, ~in_vram)),
            m_accum=memories.m_accum.reshape(-1),
            int_entries=_int_entries(side.int_sram, core, carry.core, table),
            fault=jnp.where(side.registers[lanes.STOP] == Stop.HALTED, -1, status),
            needed=found.needed,
        )
        # Once stopped, nothing moves.
        left = carry.left - seen.executed.astype(jnp.uint32)
        moved = jnp.stack(add64(carry.moved[:, 0], carry.moved[:, 1], *found.moved.T), axis=1)
        return _Carry(core, side, memories, left, moved), seen

    return lax.scan(step, carry, None, length=_STEPS)


def _first_row(record: jax.Array, config: MachineConfig, layout: Layout) -> tuple[jax.Array, jax.Array]:
    """The first row that an instruction wrote, and whether it is in vector SRAM."""
    regions = np.full((len(Stage), 64), -1, np.int32)
    for stage in Stage:
        for index, branch in enumerate(branches(stage)):
            if branch.region:
                regions[stage, index] = getattr(layout, branch.region)
    region = jnp.asarray(regions)[record[Record.STAGE], record[Record.BRANCH]]
    in_vram = ((record[Record.FLAGS] & int(Flag.RD_VRAM)) != 0) & (record[Record.STAGE] != Stage.STORE)
    return jnp.where(region < 0, record[Record.RD], region), in_vram


def _int_entries(int_sram: jax.Array, core: jax.Array, before: jax.Array, table: Table) -> jax.Array:
    """INT SRAM from the entry on that V_TOPK addresses with gp[rs2]."""
    word = table.words[before[lanes.PC].astype(jnp.int32), 0]
    number = ((word >> Field.RS2.shift) & Field.RS2.limit).astype(jnp.int32)
    start = jnp.minimum(before[lanes.GP + number], np.uint32(int_sram.shape[0] - 8)).astype(jnp.int32)
    return lax.dynamic_slice_in_dim(int_sram, start, 8)


def trace(
    program: Program, state: MachineState, config: MachineConfig, max_instructions: int | None = None
) -> Generator[Executed, None, MachineState]:
    """Execute a program instruction by instruction; yields each, and returns the final state.

    Raises:
        MachineFault: after the instructions before it have been yielded.
        EngineError: the state's pc is outside the program.
    """
    check_pc(program, state)
    table = jax.tree.map(jnp.asarray, decode(program, config))
    left = 2**31 - 1 if max_instructions is None else max_instructions
    while True:
        core, side = jax.jit(lanes.pack)(state)
        memories = jax.jit(pack_memories, static_argnums=0)(config, state)
        carry = _Carry(core, side, memories, jnp.uint32(left), state.hbm_blocks)
        before = jax.device_get((core, side.registers))
        fault = 0
        while not fault and left:
            carry, seen = _steps(table, carry, config, state.vram.shape[0], allocated_hbm(state.hbm, config))
            seen = jax.device_get(seen)
            for index in range(_STEPS):
                one = jax.tree.map(lambda leaf, i=index: leaf[i], seen)
                if one.executed:
                    yield _executed(program, before, one, config)
                    left -= 1
                before, fault = (one.core, one.registers), int(one.fault)
                if fault or not left:
                    break
        status = Fault.OK if fault < 0 else Fault(fault) if fault else Fault.LIMIT
        state = lanes.unpack(carry.core, carry.side, state)
        state = state.replace(status=jnp.int32(status), hbm_blocks=carry.moved)
        state = unpack_memories(config, carry.memories, state, carry.core[lanes.FRESH])
        if status in GROWABLE:
            state = grow(state, config, int(one.needed))
        elif fault > 0:
            raise explain(program, state, config)
        else:
            return state


def _executed(program: Program, before: tuple[np.ndarray, np.ndarray], seen: _Seen, config: MachineConfig) -> Executed:
    core = before[0]
    pc = int(core[lanes.PC])
    word = int(program.words[pc])
    entry = BY_OPCODE[word & OPCODE_MASK]
    rd = word >> Field.RD.shift & Field.RD.limit
    effects = _integer_effects(before, seen, entry.mnemonic, rd)
    if seen.logged:
        effects += _float_effects(entry.mnemonic, seen, config)
    elif entry.mnemonic == "S_ST_INT":
        base = int(core[word >> Field.RS1.shift & Field.RS1.limit]) + (word >> Field.IMM18.shift)
        effects.append(Effect(f"int_sram[{base & 0xFFFFFFFF}]", (int(core[rd]),), 1))
    tick, text, unit = int(core[lanes.TICKS]), describe_word(word), entry.unit.value
    return Executed(tick, pc, text, unit, tuple(effects), program.section(pc))


_NAMED = {lanes.SCALE: "scale", lanes.STRIDE: "stride", lanes.MASK: "v_mask"}


def _integer_effects(before: tuple[np.ndarray, np.ndarray], seen: _Seen, mnemonic: str, rd: int) -> list[Effect]:
    """Registers that changed, and those that were written with what they held."""
    effects = []
    alu = ALU.get(mnemonic)
    written = {lanes.GP + rd} if mnemonic in _WRITES_GP else set()
    if alu is not None:
        written = {lanes.GP + rd if alu.lane is None else alu.lane}
    for lane in sorted(written | set(np.nonzero(before[0] != seen.core)[0].tolist())):
        name = f"gp{lane}" if lane < lanes.START else _NAMED.get(lane)
        if name is not None:
            effects.append(Effect(name, (int(seen.core[lane]),), 1))
    if mnemonic == "C_SET_ADDR_REG":
        value = int(seen.registers[lanes.A_LOW + rd]) | int(seen.registers[lanes.A_HIGH + rd]) << 32
        effects.append(Effect(f"a{rd}", (value,), 1))
    return effects


#: Slow instructions that write gp[rd].
_WRITES_GP = ("S_LD_INT", "C_LOOP_START", "C_LOOP_END")


def _float_effects(mnemonic: str, seen: _Seen, config: MachineConfig) -> list[Effect]:
    r = {column: int(seen.record[column]) for column in Record}
    row, lane, stage = r[Record.RD], r[Record.RD_LANE], r[Record.STAGE]
    layout, flags = Layout(config), Flag(r[Record.FLAGS])
    values = tuple(seen.row.tolist())
    if stage == Stage.MATMUL:
        return [Effect("m_accum", tuple(seen.m_accum.tolist()), seen.m_accum.size)]
    if stage == Stage.WRITE or mnemonic == "M_MV_WO":
        rows = config.blen if stage == Stage.WRITE else 1
        return [Effect(f"vram[{row}][{lane}]", values[lane : lane + config.blen], rows)]
    if stage == Stage.STORE:
        address = (r[Record.RS1] & 0xFFFFFFFF) | (r[Record.RS1_LANE] & 0xFFFFFFFF) << 32
        size = Transfers.of(config).vector[r[Record.ARGUMENT]].element_bytes
        return [Effect(f"hbm[0x{address:X}]", (), r[Record.PARTS] * size)]
    if stage == Stage.TOPK:
        _, count = TOPK_POLICIES[r[Record.ARGUMENT]]
        entry = (row - layout.fp_sram) * config.vlen + lane
        indices = tuple(int(i) for i in seen.int_entries[:count])
        weights = Effect(f"fp_sram[{entry}]", values[lane : lane + count], count)
        return [weights, Effect(f"int_sram[{r[Record.RS2] & 0xFFFFFFFF}]", indices, count)]
    parts = r[Record.PARTS] * (wide_rows(config) if stage == Stage.WIDE else 1)
    if Flag.RD_VRAM in flags:
        return [Effect(f"vram[{row}]", values, parts)]
    if Flag.RD_SCALAR in flags:
        in_sram = row < layout.f
        entry = (row - (layout.fp_sram if in_sram else layout.f)) * config.vlen + lane
        return [Effect(f"fp_sram[{entry}]" if in_sram else f"f{entry}", (values[lane],), 1)]
    if mnemonic == "H_PREFETCH_M":
        return [Effect(f"mram[{row // config.mlen}]", values, parts)]
    region = branches(Stage(stage))[r[Record.BRANCH]].region
    return [Effect(region, values[: config.blen] if region == "v_accum" else values, parts)]
