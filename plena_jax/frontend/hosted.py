"""Functions that the machine can only do in part: pieces of programs, and what is done on the host between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.errors import Problem
from plena_jax.frontend.compiled import CompiledProgram, Signature
from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.views import Value, View

if TYPE_CHECKING:
    from plena_jax.frontend.compile import Options


class HostWarning(UserWarning):
    """A compiled function does a part of its work on the host."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Operations that run one after the other in one place.

    Attributes:
        graph: from values that are there to values that later pieces need.
        program: of the machine; None for what the host does.
    """

    graph: TensorGraph
    program: CompiledProgram | None


@dataclass(frozen=True, eq=False)
class HostedProgram:
    """A function as programs of the machine, with operations on the host between them.

    Called like a :class:`CompiledProgram`. What crosses from one to the other is float32, or integers.

    Attributes:
        pieces: in the order in which they run.
        host_operations: what the host does, and why.
        signature: what it takes and gives.
        graph: all operations.
        function: the original: flat arrays to flat arrays.
    """

    pieces: tuple[Piece, ...]
    host_operations: tuple[Problem, ...]
    signature: Signature
    graph: TensorGraph
    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns, from runs on the machine and operations on the host."""
        return self._evaluated(arguments, lambda program, given: program(*given))

    def reference(self, *arguments: Any) -> Any:
        """The results with every rounding of the machine, without the machine."""
        return self._evaluated(arguments, lambda program, given: program.reference(*given))

    def original(self, *arguments: Any) -> Any:
        """The results of the function itself, in float32."""
        return jax.tree.unflatten(self.signature.results, list(self.function(*self.signature.flat(arguments))))

    def _evaluated(self, arguments: Sequence[Any], run: Callable[[CompiledProgram, list[Any]], Any]) -> Any:
        values: dict[Value, Any] = dict(zip(self.graph.inputs, self.signature.flat(arguments), strict=True))
        for piece in self.pieces:
            given = [values[value] for value in piece.graph.inputs]
            found = piece.graph.evaluate(given) if piece.program is None else run(piece.program, given)
            values.update(zip((view.base for view in piece.graph.outputs), found, strict=True))
        results = []
        for view, shape, dtype in zip(
            self.graph.outputs, self.signature.result_shapes, self.signature.result_dtypes, strict=True
        ):
            parts = [jnp.asarray(b.constant if b.constant is not None else values[b]) for b in view.bases]
            results.append(view.evaluate(parts, jnp).reshape(shape).astype(dtype))
        return jax.tree.unflatten(self.signature.results, results)


def hosted(
    graph: TensorGraph,
    problems: Sequence[Problem],
    function: Callable[..., Any],
    signature: Signature,
    options: Options,
    build: Callable[[TensorGraph, Callable[..., Any], Signature, Options], CompiledProgram],
) -> HostedProgram:
    """Cut a graph into pieces, and compile those of the machine.

    Args:
        graph: after fusion.
        problems: what the host does.
        function, signature, options: of the whole.
        build: compiles one piece.
    """
    pieces = []
    for piece in _pieces(graph):
        is_host = piece.operations[0].name == "host"
        pieces.append(Piece(piece, None if is_host else build(piece, *_as_function(piece), options)))
    names = ", ".join(dict.fromkeys(problem.operation for problem in problems))
    warnings.warn(f"on the host, not on the machine: {names}", HostWarning, stacklevel=4)
    return HostedProgram(tuple(pieces), tuple(problems), signature, graph, function)


def _pieces(graph: TensorGraph) -> list[TensorGraph]:
    """Operations of one place whose operands come from earlier pieces, as graphs of their own."""
    depths: dict[Value, int] = {}
    groups: dict[int, list[Operation]] = {}
    for operation in graph.operations:
        on_host = operation.name == "host"
        depth = int(on_host)
        for base in (base for view in operation.inputs for base in view.bases if base in depths):
            # Even depths are the machine's, odd ones the host's.
            depth = max(depth, depths[base] + (depths[base] % 2 != on_host))
        depths[operation.output] = depth
        groups.setdefault(depth, []).append(operation)
    return [_piece(graph, groups[depth]) for depth in sorted(groups)]


def _piece(graph: TensorGraph, operations: list[Operation]) -> TensorGraph:
    inside = {operation.output for operation in operations}
    bases = (base for operation in operations for view in operation.inputs for base in view.bases)
    inputs = [base for base in dict.fromkeys(bases) if base not in inside and base.constant is None]
    seen = {base for view in graph.outputs for base in view.bases}
    for operation in graph.operations:
        if operation.output not in inside:
            seen |= {base for view in operation.inputs for base in view.bases}
    outputs = [View.of(operation.output) for operation in operations if operation.output in seen]
    return TensorGraph(inputs, operations, outputs)


def _as_function(piece: TensorGraph) -> tuple[Callable[..., Any], Signature]:
    shape = lambda values: tuple(value.shape for value in values)
    dtype = lambda values: tuple(np.dtype(value.dtype) for value in values)
    results = [view.base for view in piece.outputs]
    signature = Signature(
        jax.tree.structure(tuple(range(len(piece.inputs)))),
        shape(piece.inputs),
        dtype(piece.inputs),
        tuple(value.name for value in piece.inputs),
        jax.tree.structure(list(range(len(results)))),
        shape(results),
        dtype(results),
    )
    return (lambda *arrays: piece.evaluate(arrays)), signature
