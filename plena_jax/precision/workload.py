"""A program with its operands and the result it should have: what a sweep runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
from jax.typing import ArrayLike

from plena_jax import hbm
from plena_jax.config import BF16, MachineConfig
from plena_jax.errors import EngineError, ImageError
from plena_jax.formats import FloatFormat
from plena_jax.machine.faults import Fault
from plena_jax.machine.record import Flag, Record
from plena_jax.machine.resolved import Trace
from plena_jax.machine.run import engine_for, run
from plena_jax.machine.semantics import SEMANTICS, Stage, branch_index
from plena_jax.machine.state import MachineState
from plena_jax.precision.places import HBM_PLACES, Place
from plena_jax.program import Program
from plena_jax.projection import Projection, random_projection

Role = Literal["weights", "activations", "kv"]
#: A function of the final state, a tensor of HBM, or rows of vector SRAM.
Output = Callable[[MachineState], jax.Array] | hbm.Tensor | slice

#: Names that losses of the initial contents of these memories, and of the output, go by.
VRAM, FP_SRAM, OUTPUT = "vram", "fp_sram", "output"


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor in HBM before the run.

    Attributes:
        tensor: where it lies; its format is the configuration's, which decides on addresses.
        contents: float32 [rows, columns], before any rounding.
        role: the place whose format it is staged in.

    Raises:
        ImageError: contents of another shape, an unknown role.
    """

    tensor: hbm.Tensor
    contents: np.ndarray = field(repr=False)
    role: Role

    def __post_init__(self) -> None:
        object.__setattr__(self, "contents", np.asarray(self.contents, np.float32))
        if self.contents.shape != self.tensor.shape:
            shape = self.contents.shape
            raise ImageError(f"tensor {self.tensor.name}: contents {shape}; its shape is {self.tensor.shape}")
        if self.role not in HBM_PLACES:
            raise ImageError(f"tensor {self.tensor.name}: role {self.role!r}; allowed: {', '.join(HBM_PLACES)}")


@dataclass(frozen=True, eq=False)
class Workload:
    """A program, what it works on, and the float32 result that it is measured against.

    Attributes:
        program: on the resolved engine: no address may depend on data.
        config: the machine. Its HBM formats decide where elements lie; no place rounds to them in a sweep.
        operands: tensors in HBM.
        output: picks the result from the final state: a function (jax, of the state), a tensor of HBM, or a slice of
            rows of vector SRAM.
        reference: what the result would be in float32; finite.
        vram, fp_sram: float contents at the start, rounded to the formats of their places.
        int_sram: integers at the start.
        output_place: the place whose range bounds the output; by default vector SRAM, of a tensor the activations.

    Raises:
        ImageError: tensors of one name, a reference that is not finite.
    """

    program: Program
    config: MachineConfig
    operands: tuple[Operand, ...]
    output: Output
    reference: np.ndarray = field(repr=False)
    vram: np.ndarray | None = field(default=None, repr=False)
    fp_sram: np.ndarray | None = field(default=None, repr=False)
    int_sram: ArrayLike | None = field(default=None, repr=False)
    output_place: Place | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "operands", tuple(self.operands))
        object.__setattr__(self, "reference", np.asarray(self.reference, np.float32))
        names = [operand.tensor.name for operand in self.operands] + [VRAM, FP_SRAM, OUTPUT]
        if len(set(names)) < len(names):
            raise ImageError(f"workload: tensors {', '.join(names[:-3])}; allowed: different names, not {names[-3:]}")
        if not np.isfinite(self.reference).all():
            raise ImageError("workload: the reference has infinite or NaN elements; allowed: finite ones")

    @classmethod
    def projection(cls, rows: int, k: int, n: int, config: MachineConfig, seed: int = 0) -> Workload:
        """Normal activations [rows, k] times weights [k, n], as ``plena demo`` multiplies them.

        Raises:
            ConfigError: a shape that the program cannot tile, a configuration with plain HBM formats.
        """
        job = random_projection(rows, k, n, config, seed)
        pairs = zip(job.tensors, (job.activations, job.weights), ("activations", "weights"), strict=True)
        operands = tuple(Operand(tensor, contents, role) for tensor, contents, role in pairs)  # type: ignore[arg-type]
        return cls(job.program, config, operands, _result_of(job), job.exact())

    # -- what running it takes ----------------------------------------------------------------------------------------

    @cached_property
    def machine(self) -> MachineConfig:
        """The configuration, with every place rounding what it stores."""
        intended = dataclasses.replace(self.config.intended, scalar_fp=True, matrix_sram_type=True)
        precision = self.config.precision
        if not isinstance(precision.scalar_fp, FloatFormat):
            precision = dataclasses.replace(precision, scalar_fp=BF16)
        return dataclasses.replace(self.config, intended=intended, precision=precision)

    @cached_property
    def trace(self) -> Trace:
        """The resolved program.

        Raises:
            EngineError: it cannot be resolved.
            MachineFault: it ends with a fault.
        """
        state = MachineState.create(self.machine, int_sram=self.int_sram)
        choice = engine_for(self.program, state, self.machine)
        if choice.trace is None:
            raise EngineError(f"precision: a sweep needs the resolved engine, but {choice.reason}")
        if choice.trace.status is not Fault.OK:
            run(self.program, state, self.machine)
        return choice.trace

    @cached_property
    def hbm_bytes(self) -> int:
        """Bytes of HBM up to the last tensor or store, in whole lines."""
        tensors = [operand.tensor for operand in self.operands]
        tensors += [self.output] if isinstance(self.output, hbm.Tensor) else []
        used = max([tensor.end for tensor in tensors] + [self.trace.hbm_bytes, 1])
        return -(-used // 64) * 64

    @cached_property
    def start(self) -> MachineState:
        """The machine before the run, its float memories still empty; no larger than the program needs."""
        given = 0 if self.vram is None else -(-np.size(self.vram) // self.config.vlen)
        read = (self.output.stop or 0) if isinstance(self.output, slice) else 0
        cells = np.zeros(hbm.place(self.machine, {}, self.hbm_bytes).shape, np.float32)
        return MachineState.create(
            self.machine,
            int_sram=self.int_sram,
            hbm=cells,
            # Code for blocks of MLEN rows is compiled even if the program has no use for it.
            vram_rows=max(self.trace.vram_rows, given, read, min(self.config.mlen, self.config.vector_sram_size)),
            hbm_bytes=self.hbm_bytes,
        )

    def unused(self, place: Place) -> str | None:
        """Why a format in a place would change nothing; None if the program uses the place."""
        records = self.trace.records
        flags, stage = records[:, Record.FLAGS], records[:, Record.STAGE]
        stored = records[stage == Stage.STORE, Record.ARGUMENT] != 0
        if place in HBM_PLACES:
            there = any(operand.role == place for operand in self.operands)
            there |= {"weights": False, "activations": bool(np.any(~stored)), "kv": bool(np.any(stored))}[place]
            return None if there else f"the workload has no tensor of role {place!r} and stores none"
        if place == "matrix_sram":
            return None if self._fetches_tiles else "the program fetches nothing into matrix SRAM"
        if place == "vector_sram":
            there = self.vram is not None or bool(np.any(flags & Flag.RD_VRAM))
            return None if there else "the program writes nothing to vector SRAM"
        there = self.fp_sram is not None or bool(np.any((flags & Flag.RD_SCALAR != 0) | (stage == Stage.TOPK)))
        return None if there else "the program writes no scalar"

    @property
    def _fetches_tiles(self) -> bool:
        (semantic,) = SEMANTICS["H_PREFETCH_M"]
        stage, branch = self.trace.records[:, Record.STAGE], self.trace.records[:, Record.BRANCH]
        return bool(np.any((stage == semantic.stage) & (branch == branch_index(semantic))))

    def picked(self, final: MachineState) -> Any:
        """The output of a final state.

        Raises:
            ImageError: not of the reference's shape.
        """
        if isinstance(self.output, hbm.Tensor):
            found = hbm.read(self.machine, final.hbm, self.output)
        elif isinstance(self.output, slice):
            found = final.vram[self.output]
        else:
            found = self.output(final)
        if found.shape != self.reference.shape:
            raise ImageError(f"workload: the output is {found.shape}, its reference {self.reference.shape}")
        return found

    @property
    def bound(self) -> Place:
        """The place whose range bounds the output."""
        return self.output_place or ("activations" if isinstance(self.output, hbm.Tensor) else "vector_sram")


def _result_of(job: Projection) -> Output:
    """:meth:`Projection.result` as a function of the state that jax can trace."""
    rows, k, n = job.shape
    size = job.config.mlen
    first = rows * (k // size)

    def result(final: MachineState) -> jax.Array:
        blocks = final.vram[first : first + rows * (n // size)].reshape(n // size, rows, size)
        return blocks.transpose(1, 0, 2).reshape(rows, n)

    return result
