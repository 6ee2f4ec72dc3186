"""Programs on small machines: run them on an engine, see what they wrote, check a fault in full.

Nothing here knows what an instruction does. Expected values stand in the tests, as literals or as a few lines of NumPy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax
from plena_jax import Fault, MachineConfig, MachineFault, MachineState, Program

ENGINES = ("architectural", "resolved")
F32 = np.float32
NAN = float("nan")
INF = float("inf")

#: VRAM of docs/machine.md section 11: lane c of row r is 10 r + c + 1.
RAMP = {r: [10 * r + c + 1 for c in range(8)] for r in range(16)}


# -- what a test is about ---------------------------------------------------------------------------------------------

#: Mnemonics in the programs that the running test has run, and of the instructions that faulted in it.
ran: set[str] = set()
faulted: set[str] = set()


def covers(*mnemonics: str) -> Callable[[Any], Any]:
    """Declare that a test checks what these instructions do; the ``claims`` fixture checks that it runs them."""

    def mark(test: Any) -> Any:
        test.covers = mnemonics
        return test

    return mark


def misuses(*mnemonics: str) -> Callable[[Any], Any]:
    """Declare that a test checks the faults of these instructions; the ``claims`` fixture checks that they fault."""

    def mark(test: Any) -> Any:
        test.misuses = mnemonics
        return test

    return mark


def claims(test: Any, kind: str) -> set[str]:
    """The mnemonics that a test declares; a parameter ``mnemonic`` stands for the values it takes."""
    declared = set(getattr(test, kind, ()))
    if "mnemonic" not in declared:
        return declared
    values: set[str] = set()
    for mark in getattr(test, "pytestmark", []):
        names = mark.args[0] if mark.name == "parametrize" else ()
        names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
        if "mnemonic" in names:
            for case in mark.args[1]:
                row = getattr(case, "values", case)
                values.add(row if isinstance(row, str) else row[names.index("mnemonic")])
    return values | declared - {"mnemonic"}


# -- numbers ----------------------------------------------------------------------------------------------------------


def bf16(text: str) -> np.ndarray:
    """float32 values of BF16 bit patterns in hexadecimal, "3F80 8000"."""
    return (np.array([int(word, 16) for word in text.split()], np.uint32) << 16).view(F32)


def hexes(values: Any) -> str:
    """BF16 bit patterns of float32 values, which must all be BF16 values."""
    bits = np.atleast_1d(np.asarray(values, F32)).reshape(-1).view(np.uint32)
    assert not (bits & 0xFFFF).any(), f"not BF16: {[hex(b) for b in bits.tolist()]}"
    return " ".join(f"{b >> 16:04X}" for b in bits.tolist())


def same(actual: Any, expected: Any) -> None:
    """Assert that two float arrays have the same shape and the same bits."""
    got, wanted = np.asarray(actual, F32), np.asarray(expected, F32)
    assert got.shape == wanted.shape, f"{got.shape} != {wanted.shape}"
    equal = np.atleast_1d(got).view(np.uint32) == np.atleast_1d(wanted).view(np.uint32)
    assert equal.all(), f"got\n{got}\ninstead of\n{wanted}\nbits {hex32(got)}\ninstead of {hex32(wanted)}"


def hex32(values: np.ndarray) -> str:
    """Bit patterns of float32 values."""
    return " ".join(f"{b:08X}" for b in np.atleast_1d(values).reshape(-1).view(np.uint32).tolist())


# -- states -----------------------------------------------------------------------------------------------------------


def _flat(contents: Any, width: int, dtype: Any) -> np.ndarray:
    """An array of rows (width > 1) or entries from ``{index: value}``, or from an array."""
    if not isinstance(contents, Mapping):
        return np.asarray(contents, dtype)
    size = max(contents, default=-1) + 1
    values = np.zeros((size, width), dtype)
    for index, value in contents.items():
        values[index] = np.asarray(value, dtype)
    return values if width > 1 else values[:, 0]


def image(contents: Mapping[int, Any] | bytes) -> bytes:
    """Bytes from ``{address: bytes or list of bytes}``."""
    if not isinstance(contents, Mapping):
        return bytes(contents)
    data = bytearray(max((a + len(bytes(b)) for a, b in contents.items()), default=0))
    for address, part in contents.items():
        data[address : address + len(bytes(part))] = bytes(part)
    return bytes(data)


_states: dict[Any, MachineState] = {}


def _created(config: MachineConfig, contents: dict[str, Any]) -> MachineState:
    """``MachineState.create``, once for the same contents: states are immutable, and many tests start alike."""
    key = config, *((name, np.asarray(value).shape, bytes(value)) for name, value in sorted(contents.items()))
    if key not in _states:
        _states[key] = MachineState.create(config, **contents)
    return _states[key]


#: Fields that every instruction advances.
_BOOKKEEPING = ("pc", "status", "ticks", "counts", "cycles", "hbm_blocks")


class Machine:
    """One engine of a machine. ``run`` remembers where it started, and ``written`` says what has changed since.

    Runs on the resolved engine are repeated on the architectural one, and the final states compared bit for bit.
    """

    def __init__(self, config: MachineConfig, engine: str) -> None:
        self.config, self.engine = config, engine
        self.before: MachineState | None = None

    def start(self, **contents: Any) -> MachineState:
        """A machine at reset with contents.

        ``vram``, ``fp_sram``, ``int_sram``, ``hbm``, ``gp``, ``f``, ``a`` and ``mram`` (by tile) take dictionaries
        from index to content, or arrays; every other field of the state takes its value.
        """
        config, create = self.config, {}
        if "vram" in contents:
            create["vram"] = _flat(contents.pop("vram"), config.vlen, F32)
        if "fp_sram" in contents:
            create["fp_sram"] = _flat(contents.pop("fp_sram"), 1, F32)
        if "int_sram" in contents:
            create["int_sram"] = _flat(contents.pop("int_sram"), 1, np.uint32)
        if "hbm" in contents:
            create["hbm"] = image(contents.pop("hbm"))
        state = _created(config, create)
        changes: dict[str, Any] = {}
        for name, value in contents.items():
            old = np.array(getattr(state, name))
            if isinstance(value, Mapping):
                for index, item in value.items():
                    old[index] = [item & 0xFFFFFFFF, item >> 32] if name == "a" else item
            else:
                old[...] = value
            changes[name] = jnp.asarray(old)
        return state.replace(**changes)

    def run(
        self,
        program: str | Program,
        state: MachineState | None = None,
        *,
        max_instructions: int | None = None,
        throw: bool = True,
        compare: bool = True,
        **contents: Any,
    ) -> MachineState:
        """The state after a program (assembly text), from ``state`` or from a machine with ``contents``."""
        program = plena_jax.assemble(program) if isinstance(program, str) else program
        state = self.start(**contents) if state is None else state
        self.before = state
        ran.update(mnemonics(program))
        results = []
        # The architectural engine defines the result that the resolved one must have.
        for engine in dict.fromkeys((self.engine, "architectural") if compare else (self.engine,)):
            try:
                final = plena_jax.run(
                    program, state, self.config, engine=engine, max_instructions=max_instructions, throw=throw
                )
                results.append((final, None))
            except MachineFault as fault:
                results.append((fault.state, fault))
        final, fault = results[0]
        if len(results) == 2:
            other, other_fault = results[1]
            assert differences(final, other) == [], "the engines do not agree"
            assert str(fault) == str(other_fault)
        if fault is not None:
            raise fault
        return final

    def written(self, state: MachineState) -> set[str]:
        """The places whose bits differ from where the last run started: "vram[3]", "gp[1]", "hbm[64]", "m_accum"."""
        assert self.before is not None
        return written(self.before, state)

    def fault(
        self,
        text: str,
        code: Fault,
        *,
        operand: str = "",
        value: int | None = None,
        limit: str = "",
        rule: str = "",
        pc: int | None = None,
        instruction: str | None = None,
        **contents: Any,
    ) -> MachineFault:
        """Run a program that must stop with this fault, by default at its last instruction; check all it says.

        Everything before the instruction must have been done, and nothing of the instruction.
        """
        program = plena_jax.assemble(text)
        pc = len(program) - 1 if pc is None else pc
        start = self.start(**contents)
        with pytest.raises(MachineFault) as caught:
            self.run(program, start)
        fault = caught.value
        if instruction is None:
            assert program.lines is not None
            instruction = text.splitlines()[program.lines[pc] - 1].split(";")[0].strip()
        faulted.add(instruction.split()[0])
        assert (fault.code, fault.pc, fault.instruction) == (code, pc, instruction)
        assert isinstance(fault.code, Fault)
        assert (fault.operand, fault.value, fault.limit) == (operand, value, limit)
        message = str(fault)
        assert message.startswith(f"pc {pc}: {instruction}: ")
        assert rule in message
        if operand:
            assert (
                f"(operand {operand} = {value})" in message if value is not None else f"(operand {operand})" in message
            )
        if limit:
            assert message.endswith(f"; allowed: {limit}")
        # What ran before is done, and nothing else: the same program, stopped in front of the instruction.
        executed = fault.state.instructions - start.instructions
        before = self.run(program, start, max_instructions=executed, compare=False)
        assert int(before.pc) == pc
        assert before.fault is Fault.LIMIT
        assert fault.state.fault is code
        assert differences(fault.state, before, leave_out=("status",)) == []
        if not any(name.startswith("C_LOOP") for name in mnemonics(program)):
            # And the instructions in front of it as a program of their own.
            alone = self.run(Program(program.words[:pc]), start, compare=False)
            assert differences(fault.state, alone, leave_out=("status",)) == []
        recorded = self.run(program, start, throw=False, compare=False)
        assert differences(recorded, fault.state) == []
        return fault


def mnemonics(program: Program) -> set[str]:
    """The instructions that stand in a program."""
    return {text.split("; ")[-1].split()[0] for text in program.disassemble()}


@cache
def _fields() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(MachineState))


def differences(a: MachineState, b: MachineState, leave_out: Iterable[str] = ()) -> list[str]:
    """Names of the fields whose bits differ."""
    found = []
    for name in _fields():
        pairs = zip(jax.tree.leaves(getattr(a, name)), jax.tree.leaves(getattr(b, name)), strict=True)
        for x, y in pairs:
            x, y = np.asarray(x), np.asarray(y)
            if name not in leave_out and (x.dtype != y.dtype or x.shape != y.shape or x.tobytes() != y.tobytes()):
                found.append(name)
    return found


def written(before: MachineState, after: MachineState) -> set[str]:
    """The places whose bits differ."""
    places = set()
    for name in differences(before, after, _BOOKKEEPING):
        if name == "loops":
            places.add(name)
            continue
        x, y = np.array(getattr(before, name)), np.array(getattr(after, name))
        if name not in ("vram", "mram", "fp_sram", "int_sram", "hbm", "gp", "f", "a"):
            places.add(name)
            continue
        differs = (x.view(np.uint8).reshape(len(x), -1) != y.view(np.uint8).reshape(len(y), -1)).any(axis=1)
        places.update(f"{name}[{index}]" for index in np.nonzero(differs)[0].tolist())
    return places


def at(name: str, *indices: int | range) -> set[str]:
    """``at("vram", 3, range(5, 7))``: the places "vram[3]", "vram[5]", "vram[6]"."""
    every = [i for item in indices for i in (item if isinstance(item, range) else [item])]
    return {f"{name}[{index}]" for index in every}


def row(state: MachineState, index: int) -> np.ndarray:
    """A VRAM row."""
    return np.asarray(state.vram[index])


# -- machines ---------------------------------------------------------------------------------------------------------

_compiled: set[MachineConfig] = set()


def compiled(config: MachineConfig, engine: str) -> Machine:
    """A machine for which everything has been compiled, so that no test waits for it."""
    machine = Machine(config, engine)
    if config not in _compiled:
        _compiled.add(config)
        machine.run("; nothing")
        ran.clear()
    return machine


def section_11(**changes: Any) -> MachineConfig:
    """The machine of docs/machine.md section 11 (the fixture ``small``) with changes."""
    fields: dict[str, Any] = {
        "mlen": 8,
        "vlen": 8,
        "blen": 2,
        "hlen": 4,
        "broadcast_amount": 2,
        "matrix_sram_size": 32,
        "vector_sram_size": 48,
        "hbm_m_prefetch_amount": 8,
        "hbm_v_prefetch_amount": 2,
        "hbm_v_writeback_amount": 1,
        "hbm_size": 1 << 16,
    }
    return MachineConfig(**(fields | changes))


def word(opcode: int, rd: int = 0, rs1: int = 0, rs2: int = 0, rs3: int = 0, funct1: int = 0) -> str:
    """A ``.word`` line from the fields of docs/machine.md section 3.1."""
    return f".word 0x{funct1 << 22 | rs3 << 18 | rs2 << 14 | rs1 << 10 | rd << 6 | opcode:08X}"
