"""A graph made into a program, with everything that it takes to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax import hbm
from plena_jax.bits import Array, array_module
from plena_jax.config import MachineConfig
from plena_jax.errors import EngineError
from plena_jax.isa.instruction import SRAM_ENTRIES
from plena_jax.lower.builder import ProgramBuilder
from plena_jax.lower.graph import Graph
from plena_jax.lower.kernel import Constants, Kernel
from plena_jax.lower.memory import Plan, plan
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.spill import plan_with_spills
from plena_jax.lower.tensors import CapacityError, Entries, OperatorError, Rows, Tensor
from plena_jax.machine import rounding
from plena_jax.machine.run import engine_for, run
from plena_jax.machine.state import MachineState, hbm_allocation, vram_allocation
from plena_jax.machine.transfer import vram_format
from plena_jax.program import Program


@dataclass(frozen=True)
class Cost:
    """What a run of a program takes.

    Attributes:
        instructions: executed.
        cycles: modelled, without HBM transfer times.
        by_unit: instructions by functional unit.
        read, written: bytes of HBM, in blocks of 64.
    """

    instructions: int
    cycles: int
    by_unit: dict[str, int]
    read: int
    written: int


@dataclass(frozen=True, eq=False)
class Lowered:
    """A program and its memories.

    Attributes:
        graph: what was lowered.
        plan: where tensors are.
        program: the instructions, a section for each node.
        constants: matrices that kernels need in HBM, with where they are.
        fp_constants: what FP SRAM holds at the start, by entry.
    """

    graph: Graph
    plan: Plan
    program: Program
    constants: Constants
    fp_constants: dict[int, float]
    _kept: dict[str, tuple[np.ndarray, Array]] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self.graph.config

    @cached_property
    def vram_rows(self) -> int:
        """Rows of vector SRAM to allocate: few different numbers, so that compiled code is shared."""
        return vram_allocation(self.config, max((a.stop for a in self.plan.vram), default=1))

    @property
    def _outputs(self) -> list[tuple[str, Tensor]]:
        return list(zip(self.graph.names, self.graph.outputs, strict=True))

    def start(self, **inputs: Any) -> MachineState:
        """The machine before the run, on the values face of HBM; can be traced.

        Args:
            inputs: float32 [rows, columns] of each input of the graph, by name; integers for INT SRAM.

        Raises:
            OperatorError: an input that is missing, unknown or of another shape; integers that are known, and beyond
                what an operator takes.
        """
        arrays = self._checked(inputs)
        config, cells = self.config, {}
        for matrix, contents in self.constants.found.values():
            cells[matrix.tensor] = _padded(contents, matrix.tensor.shape)
        rows: list[tuple[int, Array]] = []
        fp_sram = np.zeros(SRAM_ENTRIES, np.float32)
        fp_sram[list(self.fp_constants)] = list(self.fp_constants.values())
        entries: list[tuple[int, Array]] = []
        integers: list[tuple[int, Array]] = []
        for tensor in self.graph.inputs:
            if tensor.place == "hbm":
                where = self.plan.matrices[tensor.name].tensor
                store = lambda x, where=where: hbm.stored(_padded(x, where.shape), where.format)
                cells[where] = self._once(tensor.name, arrays[tensor.name], store)
            elif tensor.place == "fp_sram":
                values = rounding.scalar(jnp.asarray(arrays[tensor.name][0]), config, None, False)
                entries.append((self.plan.entries[tensor.name].first, values))
            elif tensor.place == "int_sram":
                integers.append((self.plan.entries[tensor.name].first, arrays[tensor.name][0].astype(np.uint32)))
            else:
                place = self.plan.rows[tensor.name]
                rows.append((place.at() // place.lanes, _in_blocks(self._in_vram(arrays[tensor.name]), place)))
        size = hbm_allocation(config, self.constants.end)
        # Registers must be known where memories are traced: programs are resolved with them.
        with jax.ensure_compile_time_eval():
            state = MachineState.create(config, fp_sram=fp_sram, vram_rows=self.vram_rows, hbm_bytes=size)
        scalars = state.fp_sram
        for first, values in entries:
            scalars = scalars.at[first : first + values.size].set(values)
        numbers = state.int_sram
        for first, values in integers:
            numbers = numbers.at[first : first + values.size].set(values)
        xp: Any = jnp if any(isinstance(x, jax.Array) for x in arrays.values()) else np
        vram = xp.zeros((self.vram_rows, config.mlen), np.float32)
        for first, values in rows:
            if xp is np:
                vram[first : first + len(values)] = values
            else:
                vram = vram.at[first : first + len(values)].set(values)
        return state.replace(
            vram=jnp.asarray(vram), hbm=hbm.place(config, cells, size), fp_sram=scalars, int_sram=numbers
        )

    def _once(self, name: str, x: Array, make: Callable[[Array], Array]) -> Array:
        """What is made of an input; of arrays that nobody can write to once."""
        if not isinstance(x, np.ndarray) or x.flags.writeable:
            return make(x)
        kept = self._kept.get(name)
        if kept is None or kept[0] is not x:
            self._kept[name] = kept = x, make(x)
        return kept[1]

    def _in_vram(self, x: Array) -> Array:
        """As vector SRAM holds it."""
        if isinstance(x, jax.Array):
            return rounding.vector(x, self.config, None, False)
        return hbm.stored(x, vram_format(self.config))

    def read(self, final: MachineState) -> dict[str, jax.Array]:
        """The outputs of the graph in a final state, by name: float32 [rows, columns]."""
        return {name: self.value(final, tensor) for name, tensor in self._outputs}

    def value(self, final: MachineState, tensor: Tensor) -> jax.Array:
        """A tensor, or a view of one, in a final state; of one that is no output whatever is there by then."""
        where = self.plan.located(tensor)
        if isinstance(where, Entries):
            if tensor.place == "int_sram":
                return final.int_sram[None, where.first : where.first + where.shape[1]].astype(jnp.int32)
            return final.fp_sram[None, where.first : where.first + where.shape[1]]
        if not isinstance(where, Rows):
            matrix = hbm.read(self.config, _eager(final.hbm), where.tensor)
            (row, column), (rows, columns) = where.start, where.shape
            return jnp.asarray(matrix[row : row + rows, column : column + columns])
        lanes, rows, vram = where.lanes, where.shape[0], _eager(final.vram)
        blocks = [vram[where.at(i) // lanes : where.at(i) // lanes + rows] for i in range(where.blocks)]
        xp = array_module(vram)
        return jnp.asarray(xp.concatenate(blocks, axis=1)[:, : where.shape[1]])

    def run(self, **inputs: Any) -> MachineState:
        """The final state of the machine; can be traced and differentiated."""
        final: MachineState = run(self.program, self.start(**inputs), self.config)
        return final

    def __call__(self, **inputs: Any) -> dict[str, jax.Array]:
        """The outputs of the graph, by name; can be traced and differentiated."""
        return self.read(self.run(**inputs))

    def cost(self) -> Cost:
        """What a run takes, without running it.

        Raises:
            EngineError: addresses depend on data.
        """
        with jax.ensure_compile_time_eval():
            state = MachineState.create(self.config, vram_rows=self.vram_rows)
        choice = engine_for(self.program, state, self.config)
        if choice.trace is None:
            raise EngineError(f"cost: {choice.reason}: only a run knows")
        end = choice.trace.end
        return Cost(end.instructions, end.latency_cycles, end.instructions_by_unit, *end.hbm_traffic)

    def rounded(self, **inputs: Any) -> dict[str, jax.Array]:
        """The outputs with every rounding of the machine, in its order, from the operators' references."""
        r = Rounded(self.config)
        values = self.rounded_inputs(inputs)
        return self._evaluated(values, lambda node, *arrays: node.operator.rounded(r, *arrays, **node.attributes))

    def rounded_inputs(self, inputs: Mapping[str, Any]) -> dict[Tensor, jax.Array]:
        """The inputs as their memories hold them."""
        r, arrays = Rounded(self.config), self._checked(inputs)
        values: dict[Tensor, jax.Array] = {}
        for tensor in self.graph.inputs:
            x = jnp.asarray(arrays[tensor.name])
            if tensor.place == "hbm":
                assert tensor.role is not None
                values[tensor] = r.staged(x, tensor.role)
            elif tensor.place == "fp_sram":
                values[tensor] = r.scalar(x)
            elif tensor.place == "int_sram":
                values[tensor] = x
            else:
                values[tensor] = r.vector(x)
        return values

    def exact(self, **inputs: Any) -> dict[str, jax.Array]:
        """The outputs in float32, from the operators' own formulas."""
        arrays = self._checked(inputs)
        values = {tensor: arrays[tensor.name] for tensor in self.graph.inputs}
        return self._evaluated(values, lambda node, *arrays: node.operator.reference(*arrays, **node.attributes))

    def intermediate(self, **inputs: Any) -> tuple[dict[Tensor, jax.Array], dict[Tensor, jax.Array]]:
        """Inputs and the result of every operator, as :meth:`rounded` and as :meth:`exact` have them."""
        r, arrays = Rounded(self.config), self._checked(inputs)
        rounded = self._all(
            self.rounded_inputs(inputs), lambda node, *arrays: node.operator.rounded(r, *arrays, **node.attributes)
        )
        exact = self._all(
            {tensor: arrays[tensor.name] for tensor in self.graph.inputs},
            lambda node, *arrays: node.operator.reference(*arrays, **node.attributes),
        )
        return rounded, exact

    def _all(self, values: dict[Tensor, jax.Array], evaluate: Any) -> dict[Tensor, jax.Array]:
        values = dict(values)
        for node in self.graph.nodes:
            arrays = [None if tensor is None else _viewed(values, tensor) for tensor in node.inputs]
            values[node.output] = evaluate(node, *arrays)
        return values

    def _evaluated(self, values: dict[Tensor, jax.Array], evaluate: Any) -> dict[str, jax.Array]:
        values = self._all(values, evaluate)
        return {name: _viewed(values, tensor) for name, tensor in self._outputs}

    def _checked(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        names = [tensor.name for tensor in self.graph.inputs]
        if sorted(inputs) != sorted(names):
            raise OperatorError(f"inputs {', '.join(sorted(inputs)) or 'none'}; expected {', '.join(names) or 'none'}")
        for tensor in self.graph.inputs:
            if jnp.shape(inputs[tensor.name]) != tensor.shape:
                raise OperatorError(
                    f"input {tensor.name}: expected {tensor.shape}, got {jnp.shape(inputs[tensor.name])}"
                )
        # Known numbers stay in NumPy: every operation of jax on a new shape would be compiled.
        xp: Any = jnp if any(isinstance(x, jax.core.Tracer) for x in inputs.values()) else np
        integers = self._checked_integers(inputs)
        return {name: xp.asarray(inputs[name], np.int32 if name in integers else np.float32) for name in names}

    def _checked_integers(self, inputs: Mapping[str, Any]) -> set[str]:
        """The names of inputs in INT SRAM; those that are known are integers that all operators take."""
        bounds = {t: 1 << 31 for t in self.graph.inputs if t.place == "int_sram"}
        for node in self.graph.nodes if bounds else ():
            found = node.operator.bounds(self.config, *node.inputs, **node.attributes)
            for parameter, tensor in zip(node.operator.tensors, node.inputs, strict=True):
                if tensor is not None and parameter in found and tensor.root in bounds:
                    bounds[tensor.root] = min(bounds[tensor.root], found[parameter])
        for tensor, bound in bounds.items():
            if isinstance(inputs[tensor.name], jax.core.Tracer):
                continue
            numbers = np.asarray(inputs[tensor.name])
            wrong = numbers[(numbers != np.floor(numbers)) | (numbers < 0) | (numbers >= bound)]
            if wrong.size:
                raise OperatorError(f"input {tensor.name}: expected integers from 0 to {bound - 1}, got {wrong[0]}")
        return {tensor.name for tensor in bounds}


def lower(graph: Graph, spill: bool = True) -> Lowered:
    """Plan the memories of a graph and emit its program.

    Args:
        graph: at least one operator.
        spill: whether tensors that vector SRAM has no room for may go to HBM and come back, rounded to a format there.

    Raises:
        CapacityError: it does not fit the machine.
        BuildError, OperatorError: a kernel cannot be emitted.
    """
    if not graph.nodes:
        raise OperatorError("a graph without operators; expected at least one")
    graph, where = plan_with_spills(graph) if spill else (graph, plan(graph))
    b = ProgramBuilder(graph.config, "<graph>")
    constants = Constants(graph.config, where.hbm_bytes)
    for node in graph.nodes:
        first, entry = where.workspace[node.name]
        kernel = Kernel(b, constants, first * graph.config.mlen, entry)
        located = [None if tensor is None else where.located(tensor) for tensor in node.inputs]
        with b.section(node.name), b.scope():
            node.operator.emit(kernel, where.located(node.output), *located, **node.attributes)
    _check_fp_sram(b, where)
    if constants.end > graph.config.hbm_size:
        raise CapacityError(f"HBM: constants end at byte {constants.end:,}; there are {graph.config.hbm_size:,}", "HBM")
    return Lowered(graph, where, b.program(), constants, b.constants)


def _check_fp_sram(b: ProgramBuilder, where: Plan) -> None:
    lowest = min(where.fp_sram, key=lambda a: a.start, default=None)
    if lowest is not None and lowest.start < len(b.constants):
        raise CapacityError(
            f"FP SRAM: {lowest.name} needs {lowest.size} entries beside {len(b.constants)} constants; there are "
            f"{SRAM_ENTRIES}",
            "FP SRAM",
        )


def _viewed(values: dict[Tensor, jax.Array], tensor: Tensor) -> jax.Array:
    (row, column), (rows, columns) = tensor.start, tensor.shape
    return values[tensor.root][row : row + rows, column : column + columns]


def _padded(x: Array, shape: tuple[int, int]) -> Array:
    return array_module(x).pad(x, [(0, size - there) for size, there in zip(shape, x.shape, strict=True)])


def _eager(x: jax.Array) -> Array:
    """In NumPy what is known."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def _in_blocks(x: Array, where: Rows) -> Array:
    """[rows, columns] as VRAM rows, zeros behind rows and columns."""
    rows, lanes = where.pitch // where.lanes, where.lanes
    padded = _padded(x, (rows, where.blocks * lanes))
    return padded.reshape(rows, where.blocks, lanes).transpose(1, 0, 2).reshape(-1, lanes)


__all__ = ["Lowered", "lower"]
