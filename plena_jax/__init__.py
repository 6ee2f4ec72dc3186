"""plena_jax: a differentiable functional emulator of the PLENA accelerator in JAX.

>>> import plena_jax
>>> program = plena_jax.assemble("S_ADDI_INT gp1, gp0, 42")
>>> int(plena_jax.run(program).gp[1])
42
"""

from plena_jax import formats, hbm
from plena_jax.assembler import assemble
from plena_jax.batch import lane, run_batch
from plena_jax.config import Formats, Intended, Latency, MachineConfig
from plena_jax.disassembler import disassemble
from plena_jax.errors import (
    AssemblyError,
    ConfigError,
    EngineError,
    FormatError,
    GradientError,
    ImageError,
    MachineFault,
    PlenaError,
    Problem,
    ProgramError,
    UnsupportedOperation,
)
from plena_jax.frontend import ArgumentError, CompiledProgram, Explanation, Report, compile, explain, load
from plena_jax.isa import INSTRUCTIONS
from plena_jax.machine.faults import Fault
from plena_jax.machine.fused.report import FusionReport, fusion
from plena_jax.machine.images import Images
from plena_jax.machine.resolved import Trace, resolve
from plena_jax.machine.run import EngineChoice, engine_for, prepare, run
from plena_jax.machine.segments import Gradient
from plena_jax.machine.state import LoopStack, MachineState
from plena_jax.program import Program

__version__ = "0.1.0"

__all__ = [
    "INSTRUCTIONS",
    "ArgumentError",
    "AssemblyError",
    "CompiledProgram",
    "ConfigError",
    "EngineChoice",
    "EngineError",
    "Explanation",
    "Fault",
    "FormatError",
    "Formats",
    "FusionReport",
    "Gradient",
    "GradientError",
    "ImageError",
    "Images",
    "Intended",
    "Latency",
    "LoopStack",
    "MachineConfig",
    "MachineFault",
    "MachineState",
    "PlenaError",
    "Problem",
    "Program",
    "ProgramError",
    "Report",
    "Trace",
    "UnsupportedOperation",
    "assemble",
    "compile",
    "disassemble",
    "engine_for",
    "explain",
    "formats",
    "fusion",
    "hbm",
    "lane",
    "load",
    "prepare",
    "resolve",
    "run",
    "run_batch",
]
