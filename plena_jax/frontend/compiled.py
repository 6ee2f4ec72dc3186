"""A compiled function: called like the original, it runs on the emulated machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import PlenaError
from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.lowering import Held, Staged
from plena_jax.frontend.views import Value, View
from plena_jax.lower import maps
from plena_jax.lower.lowered import Cost, Lowered
from plena_jax.machine.state import MachineState
from plena_jax.program import Program

if TYPE_CHECKING:
    from plena_jax.frontend.profile import Profile
    from plena_jax.frontend.report import Report


class ArgumentError(PlenaError, TypeError):
    """Arguments of a call that a compiled function was not made for: names what is expected, and what was given."""


@dataclass(frozen=True)
class Signature:
    """What a compiled function takes and gives.

    Attributes:
        arguments: structure of the arguments, static ones left out.
        shapes, dtypes: of the flat arguments.
        names: of the flat arguments, as paths.
        results: structure of the results.
        result_shapes, result_dtypes: of the flat results.
        static: positions and values of static arguments.
    """

    arguments: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]
    names: tuple[str, ...]
    results: Any
    result_shapes: tuple[tuple[int, ...], ...]
    result_dtypes: tuple[np.dtype[Any], ...]
    static: dict[int, Any] = field(default_factory=dict)

    def flat(self, arguments: Sequence[Any]) -> list[Any]:
        """The arrays of a call.

        Raises:
            ArgumentError: they are not as those that the function was compiled for.
        """
        for position, value in self.static.items():
            if position >= len(arguments) or not _equal(arguments[position], value):
                got = arguments[position] if position < len(arguments) else "nothing"
                raise ArgumentError(f"static argument {position}: compiled for {value!r}, got {got!r}")
        moving = tuple(x for position, x in enumerate(arguments) if position not in self.static)
        leaves, tree = jax.tree.flatten(moving)
        if tree != self.arguments:
            raise ArgumentError(f"arguments: expected {self.arguments}, got {tree}")
        for name, leaf, shape in zip(self.names, leaves, self.shapes, strict=True):
            if jnp.shape(leaf) != shape:
                raise ArgumentError(f"{name}: expected shape {shape}, got {jnp.shape(leaf)}")
        return leaves


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(np.all(a == b))
    except (TypeError, ValueError):
        return a is b


@dataclass(frozen=True, eq=False)
class CompiledProgram:
    """A function as a program of the machine.

    Called with arrays of the shapes that it was compiled for, it runs them and returns what the function returns; in
    ``jit``, ``grad`` and ``vmap`` too. Integers and booleans have no gradient.

    Attributes:
        lowered: the program, its memories, and the operators it is made of.
        graph: the operations after fusion.
        signature: what it takes and gives.
        function: the original: flat arrays to flat arrays.
        staged: how inputs of the machine are made of arguments and constants.
        results: how results are made of outputs of the machine: by value its name and order of elements.
        sections: the operation that each section of the program is a part of.
    """

    lowered: Lowered
    graph: TensorGraph
    signature: Signature
    function: Callable[..., Any]
    staged: tuple[Staged, ...]
    results: dict[Value, tuple[str, Held]]
    sections: dict[str, Operation]
    _kept: dict[str, tuple[list[Any], np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self.lowered.config

    @property
    def program(self) -> Program:
        """The instructions."""
        return self.lowered.program

    # -- runs ---------------------------------------------------------------------------------------------------------

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns, from a run on the machine.

        Raises:
            ArgumentError: other shapes or structures than it was compiled for.
        """
        return self._results(self.lowered(**self.inputs(*arguments)))

    def inputs(self, *arguments: Any) -> dict[str, Any]:
        """The machine's inputs for these arguments: float32 [rows, columns] by name. Known ones are made once."""
        flat = self.signature.flat(arguments)
        given = dict(zip(self.graph.inputs, flat, strict=True))
        return {staged.tensor.name: self._made(staged, given) for staged in self.staged}

    def _made(self, staged: Staged, given: dict[Value, Any]) -> Any:
        name = staged.tensor.name
        parts = [base.constant if base.constant is not None else given[base] for base in staged.view.bases]
        dtype = np.int32 if staged.tensor.place == "int_sram" else np.float32
        if any(isinstance(part, jax.core.Tracer) for part in parts):
            return staged.view.evaluate([jnp.asarray(part) for part in parts], jnp).astype(dtype)
        known = [_numpy(part) for part in parts]
        kept = self._kept.get(name)
        if kept is None or not all(a is b or np.array_equal(a, b) for a, b in zip(kept[0], known, strict=True)):
            pairs = zip(known, staged.view.bases, strict=True)
            copies = [part if part is base.constant else part.copy() for part, base in pairs]
            self._kept[name] = kept = copies, staged.view.evaluate(known).astype(dtype)
            # So that what memories hold is made once too.
            kept[1].setflags(write=False)
        return kept[1]

    def _results(self, found: dict[str, Any]) -> Any:
        values = {value: _in_order(found[name], held, value) for value, (name, held) in self.results.items()}
        flat = []
        for view, shape, dtype in zip(
            self.graph.outputs, self.signature.result_shapes, self.signature.result_dtypes, strict=True
        ):
            parts = [jnp.asarray(b.constant) if b.constant is not None else values[b] for b in view.bases]
            seen = View(view.bases, view.index, np.dtype(np.float32)).evaluate(parts, jnp).reshape(shape)
            flat.append(seen if dtype.kind == "f" else jnp.round(seen).astype(dtype))
        return jax.tree.unflatten(self.signature.results, flat)

    def run(self, *arguments: Any) -> MachineState:
        """The machine after a run."""
        return self.lowered.run(**self.inputs(*arguments))

    def reference(self, *arguments: Any) -> Any:
        """The results with every rounding of the machine, in its order, without the machine."""
        return self._results(self.lowered.rounded(**self.inputs(*arguments)))

    def exact(self, *arguments: Any) -> Any:
        """The results of the same operators in float32: what lowering alone changes."""
        return self._results(self.lowered.exact(**self.inputs(*arguments)))

    def original(self, *arguments: Any) -> Any:
        """The results of the function itself, in float32."""
        return jax.tree.unflatten(self.signature.results, list(self.function(*self.signature.flat(arguments))))

    def check(self, *arguments: Any) -> Report:
        """How far the machine's results are from the reference and from the original, section by section."""
        from plena_jax.frontend.report import check

        return check(self, arguments)

    # -- the program --------------------------------------------------------------------------------------------------

    def asm(self, sections: bool = False) -> str:
        """Assembly text; with ``sections`` a comment before each, with the user's line."""
        lines = self.program.disassemble()
        if not sections:
            return "\n".join(lines)
        starts = {section.start: section.name for section in reversed(self.program.sections)}
        text = []
        for pc, line in enumerate(lines):
            if pc in starts:
                operation = self.sections.get(starts[pc])
                text.append(f"; {starts[pc]}" + (f"  {operation.source}" if operation and operation.source else ""))
            text.append(line)
        return "\n".join(text)

    @cached_property
    def cost(self) -> Cost:
        """Instructions, modelled cycles and bytes of a run."""
        return self.lowered.cost()

    def profile(self) -> Profile:
        """Instructions and modelled cycles by section."""
        from plena_jax.frontend.profile import profile

        return profile(self)

    def memory_map(self, plot: str | os.PathLike[str] | None = None) -> Any:
        """Where tensors are, and when: a table, and a picture in the file ``plot``."""
        if plot is not None:
            maps.plot(self.lowered.graph, self.lowered.plan, plot)
        return maps.table(self.lowered.graph, self.lowered.plan)

    def save(self, folder: str | os.PathLike[str], *arguments: Any) -> None:
        """Write program, memory images and a manifest: what ``plena run`` and the Rust emulator take."""
        from plena_jax.frontend.files import save

        save(self, folder, arguments)


def _numpy(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else np.asarray(x)


def _in_order(matrix: Any, held: Held, value: Value) -> Any:
    """The elements of a value in their order, from its matrix."""
    at = held.at(value.size)
    flat = matrix.reshape(-1)
    return (flat if at is None else flat[at]).reshape(value.shape)
