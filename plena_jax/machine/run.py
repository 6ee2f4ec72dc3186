"""Running programs: the one entry point, and the choice of the engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike

from plena_jax.config import Formats, MachineConfig
from plena_jax.errors import EngineError
from plena_jax.formats import FloatFormat, Quantizer
from plena_jax.machine.ahead import compile_control
from plena_jax.machine.architectural import run_concrete, run_traced
from plena_jax.machine.check import check_state
from plena_jax.machine.compiled import compile_ahead, compile_all
from plena_jax.machine.decode import decode
from plena_jax.machine.differentiate import refuse
from plena_jax.machine.explain import explain
from plena_jax.machine.faults import GROWABLE, Fault
from plena_jax.machine.fused.engine import compile_fused, pays, run_fused, run_fused_traced
from plena_jax.machine.resolved import Trace, Unresolvable, resolve, run_trace
from plena_jax.machine.segments import Gradient
from plena_jax.machine.state import (
    FLOAT_FIELDS,
    MachineState,
    allocate,
    grow,
    integer_leaves,
)
from plena_jax.program import Program

Engine = Literal["auto", "architectural", "resolved", "fused"]
#: Datapath instructions from which "auto" takes the fused engine, if it is faster: its code takes longer to compile.
FUSED_RECORDS = 1 << 15
#: Called with the number of instructions executed so far.
Progress = Callable[[int], None]


class EngineChoice(NamedTuple):
    """The engine that ``run`` takes, and why.

    Attributes:
        name: "architectural", "resolved" or "fused".
        reason: in words.
        trace: the resolved trace, but for the architectural engine.
    """

    name: str
    reason: str
    trace: Trace | None = None


def engine_for(
    program: Program | ArrayLike,
    state: MachineState,
    config: MachineConfig,
    engine: Engine = "auto",
    max_instructions: int | None = None,
    progress: Progress | None = None,
) -> EngineChoice:
    """Which engine :func:`run` takes for a program on a state.

    Where no address depends on data that is the resolved engine, or, for a long trace on a concrete state, the fused
    one; else the architectural one. Takes the arguments of :func:`run`; ``progress`` is called with the number of
    instructions resolved.

    Raises:
        EngineError: "resolved" or "fused" was asked for and cannot be, or the state's pc is outside the program; the
            message says why.
        ProgramError: the machine refuses to load the program.
    """
    if engine not in get_args(Engine):
        raise EngineError(f"engine {engine!r}; allowed: {', '.join(map(repr, get_args(Engine)))}")
    program = _program(program)
    check_pc(program, state)
    if engine == "architectural":
        return EngineChoice("architectural", "asked for")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in integer_leaves(state)):
        why = "registers and loops of the state are traced, so that addresses are not known"
    else:
        try:
            trace = resolve(program, config, state, max_instructions, progress)
            static = "no address, register or loop depends on data"
            if engine == "fused":
                return EngineChoice("fused", f"asked for, and {static}", trace)
            concrete = lambda: not (_is_tracing() or _is_traced(state))
            if engine == "auto" and len(trace) >= FUSED_RECORDS and concrete() and pays(trace):
                return EngineChoice("fused", f"{static}, and there are {len(trace)} datapath instructions", trace)
            return EngineChoice("resolved", static, trace)
        except Unresolvable as error:
            why = str(error)
    if engine in ("resolved", "fused"):
        raise EngineError(f"engine {engine!r}: {why}; engine 'architectural' runs anything")
    return EngineChoice("architectural", why)


def prepare(
    program: Program | ArrayLike,
    state: MachineState,
    config: MachineConfig,
    *,
    engine: Engine = "auto",
    max_instructions: int | None = None,
    progress: Progress | None = None,
) -> EngineChoice:
    """Do what :func:`run` does once before it can run: choose the engine, resolve the program, compile.

    Takes the arguments of :func:`run`, for concrete states; ``progress`` is called with the number of instructions
    resolved. Returns the engine that was chosen. Nothing depends on this but the time of the first run: that compiles
    nothing then, unless the architectural engine has to grow the state.
    """
    program = _program(program)
    _check(state, config, max_instructions)
    if engine != "fused" and not _is_tracing():
        compile_ahead(config, state)
    choice = engine_for(program, state, config, engine, max_instructions, progress)
    if choice.trace is not None:
        state = allocate(state, config, choice.trace.vram_rows, choice.trace.hbm_bytes)
    else:
        compile_control(program, config, state)
    if choice.name == "fused":
        assert choice.trace is not None
        compile_fused(choice.trace, state, engine == "auto")
    else:
        compile_all(config, state)
    return choice


def run(
    program: Program | ArrayLike,
    state: MachineState | None = None,
    config: MachineConfig | None = None,
    *,
    engine: Engine = "auto",
    max_instructions: int | None = None,
    throw: bool = True,
    donate: bool = False,
    progress: Progress | None = None,
    precision: Formats | None = None,
    gradient: Gradient | None = None,
    strict: bool | None = None,
) -> MachineState:
    """Run a program from ``state.pc`` until it ends, and return the final state.

    Works inside ``jit`` and ``vmap``; there a fault is only recorded in ``state.status`` (see :class:`Fault`), and on
    the architectural engine memories do not grow. All engines end in the same state, bit for bit (but see ``strict``).
    On the resolved engine a run can be differentiated with respect to VRAM, matrix and FP SRAM, f registers,
    accumulators and the values face of HBM.

    Args:
        program: a :class:`Program`, or its machine words.
        state: where to start; a machine at reset by default.
        config: the machine, the published transactional profile by default.
        engine: "resolved" works out registers, loops and addresses once and keeps them; "architectural" executes every
            instruction and runs anything; "fused" resolves too, and runs what is independent together, as dense array
            work; "auto" takes one that can (:func:`engine_for` tells).
        max_instructions: stop with status ``Fault.LIMIT`` after so many; running on from there is the same as one long
            run.
        throw: raise a fault as an exception.
        donate: the memories of ``state`` may be overwritten; it cannot be used again. Saves a copy of VRAM and HBM.
        progress: called now and then with the number of instructions executed.
        precision: formats that replace those of ``config`` wherever a value is rounded, traced or not, so that ``vmap``
            sweeps them. HBM must show its values face, and lies where the formats of ``config`` put it. Resolved engine
            only.
        gradient: how the run is differentiated.
        strict: on the fused engine, products of the matrix unit add up in the machine's order, at some cost where the
            backend's matrix product does not (GPUs, tiles of 16 and 32). Else as that does: now and then a rounded
            result is the next number. By default only where "auto" takes that engine.

    Raises:
        MachineFault: an instruction could not be executed. ``fault.state`` is the machine before it.
        ProgramError: the machine refuses to load the program.
        EngineError: the engine asked for cannot run it, or the state is not one of this machine and program.
    """
    config = MachineConfig() if config is None else config
    state = MachineState.create(config) if state is None else state
    program = _program(program)
    _check(state, config, max_instructions)
    if precision is not None:
        check_precision(precision, state)
    elif engine != "fused" and not _is_tracing() and not _is_traced(state):
        compile_ahead(config, state)
    choice = engine_for(program, state, config, engine, max_instructions)
    if choice.name == "fused":
        assert choice.trace is not None
        in_order = engine == "auto" if strict is None else strict
        final = _run_fused(choice.trace, state, donate, progress, precision, gradient, in_order)
    elif choice.trace is not None:
        final = _run_resolved(choice.trace, state, donate, progress, precision, gradient)
    elif precision is not None:
        raise EngineError(f"precision: needs the resolved engine, but {choice.reason}")
    else:
        final = _run_architectural(program, state, config, max_instructions, donate, progress)
    concrete = not isinstance(final.status, jax.core.Tracer)
    if throw and concrete and np.ndim(final.status) == 0 and final.fault not in (Fault.OK, Fault.LIMIT):
        raise explain(program, final, config)
    return final


def _program(program: Program | ArrayLike) -> Program:
    return program if isinstance(program, Program) else Program.from_words(program)


def _check(state: MachineState, config: MachineConfig, max_instructions: int | None) -> None:
    check_state(state, config)
    if max_instructions is not None and not (_is_integer(max_instructions) and 0 <= max_instructions < 2**31):
        raise EngineError(f"max_instructions {max_instructions!r}; allowed: an integer from 0 to 2**31 - 1")


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_precision(precision: Formats, state: MachineState) -> None:
    """Refuse formats that a machine cannot take as arguments."""
    if not state.has_values:
        raise EngineError(
            "precision: bytes of HBM have the configuration's formats; start from the values face "
            "(MachineState.create(hbm=<float32 array>), see plena_jax.hbm)"
        )
    for place in ("vector_sram_type", "scalar_fp"):
        fmt = getattr(precision, place)
        if not isinstance(fmt, (FloatFormat, Quantizer)):
            raise EngineError(f"precision: {place} is {type(fmt).__name__}; this place can hold a float format only")


def check_pc(program: Program, state: MachineState) -> None:
    """Raise EngineError for a known pc from which there is nothing to run; at the end of the program a run is over."""
    if not isinstance(state.pc, jax.core.Tracer) and not 0 <= int(state.pc) <= len(program):
        raise EngineError(f"the state has pc {int(state.pc)}; allowed: 0 to {len(program)}, the end of the program")


def _run_resolved(
    trace: Trace,
    state: MachineState,
    donate: bool,
    progress: Progress | None,
    precision: Formats | None,
    gradient: Gradient | None,
) -> MachineState:
    grown = allocate(state, trace.config, trace.vram_rows, trace.hbm_bytes)
    ratio = trace.instructions / max(len(trace), 1)
    report = None if progress is None else lambda done: progress(int(done * ratio))
    return run_trace(trace, grown, donate, report, precision, gradient)


def _run_fused(
    trace: Trace,
    state: MachineState,
    donate: bool,
    progress: Progress | None,
    precision: Formats | None,
    gradient: Gradient | None,
    strict: bool,
) -> MachineState:
    grown = allocate(state, trace.config, trace.vram_rows, trace.hbm_bytes)
    if gradient is not None and gradient.debug:
        raise EngineError("Gradient: debug=True looks at one step after the other: engine='resolved' does that")
    if precision is not None or _is_tracing() or _is_traced(state):
        clipped = gradient is not None and gradient.rounding == "clipped"
        return run_fused_traced(trace, grown, precision, strict, clipped)
    final = run_fused(trace, grown, donate, strict)
    if progress is not None:
        progress(trace.instructions)
    return final


def _run_architectural(
    program: Program,
    state: MachineState,
    config: MachineConfig,
    limit: int | None,
    donate: bool,
    progress: Progress | None,
) -> MachineState:
    if _is_tracing() or _is_traced(state):
        table = jax.tree.map(jnp.asarray, decode(program, config))
        floats = refuse(
            "they need the resolved engine: the program must not depend on data, and registers, loops and INT SRAM of "
            "the state must not be traced (pass memories as arguments and put them in with MachineState.replace)",
            {name: getattr(state, name) for name in FLOAT_FIELDS},
        )
        state = state.replace(**floats)
        return run_traced(table, state, jnp.int32(-1 if limit is None else limit), config)[0]
    begin, done = state.instructions, 0
    while True:
        report = None if progress is None else lambda more, so_far=done: progress(so_far + more)
        left = None if limit is None else limit - done
        state, needed = run_concrete(program, state, config, left, donate, report)
        if state.fault not in GROWABLE:
            return state
        done = state.instructions - begin
        state, donate = grow(state, config, needed), True


def _is_traced(state: MachineState) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state))


def _is_tracing() -> bool:
    """Whether we are inside ``jit``: there even the operations on concrete values are traced."""
    # Asking an operation takes as long as a short program. What says nothing to us, but that we are where we have been
    # before, is enough most of the time.
    where = _trace_state()
    if where is not None and where == _eager.get("state"):
        return False
    tracing = isinstance(lax.add(np.int32(0), np.int32(0)), jax.core.Tracer)
    if not tracing:
        _eager["state"] = where
    return tracing


#: What operations are done in, when it was last found out that they are done at once.
_eager: dict[str, Any] = {}
_trace_state: Callable[[], Any] = getattr(jax.extend.core, "get_opaque_trace_state", lambda: None)
