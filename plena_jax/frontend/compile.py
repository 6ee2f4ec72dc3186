"""``compile``: from a function of arrays to a program, and ``explain``: what would become of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import Problem
from plena_jax.frontend.compiled import CompiledProgram, Signature
from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.hosted import HostedProgram, hosted
from plena_jax.frontend.lowering import Lowering, Vectors
from plena_jax.frontend.passes import fused
from plena_jax.frontend.tracing import check, traced
from plena_jax.lower.graph import Graph
from plena_jax.lower.lowered import lower


@dataclass(frozen=True)
class Options:
    """How functions are compiled.

    Attributes:
        config: the machine.
        vectors: where inputs of the vector unit are when the program starts: "hbm", rounded to the format of
            activations there, or "vram". Constants are in vector SRAM, operands of the matrix unit in HBM.
        disabled: names of fusion passes that are left out.
        spill: whether tensors that vector SRAM has no room for may go to HBM.
        host: whether what has no lowering may be done on the host, between pieces of the program.
    """

    config: MachineConfig
    vectors: Vectors = "hbm"
    disabled: tuple[str, ...] = ()
    spill: bool = True
    host: bool = False


def compile(
    function: Callable[..., Any],
    *example_args: Any,
    config: MachineConfig | None = None,
    static_argnums: int | Sequence[int] = (),
    vectors: Vectors = "hbm",
    disabled: Sequence[str] = (),
    spill: bool = True,
    host: bool = False,
) -> CompiledProgram | HostedProgram:
    """Compile a JAX function for arguments of these shapes.

    >>> import jax, jax.numpy as jnp, plena_jax
    >>> f = plena_jax.compile(lambda x, w: jax.nn.softmax(x @ w), jnp.ones((4, 64)), jnp.ones((64, 8)))
    >>> f(jnp.ones((4, 64)), jnp.eye(64, 8)).shape
    (4, 8)

    Args:
        function: of pytrees of arrays.
        example_args: arrays, or anything with their shape and dtype.
        config: the machine, by default the published one.
        static_argnums: positions of arguments that are constants of the program.
        vectors, disabled, spill, host: see :class:`Options`. Only with ``host`` the result may be a
            :class:`HostedProgram`.

    Raises:
        UnsupportedOperation: operations that have no lowering, all of them.
        CapacityError: what one operator needs does not fit the machine.
    """
    options = Options(config or MachineConfig(), vectors, tuple(disabled), spill, host)
    flat, arguments, signature = flattened(function, example_args, static_argnums)
    return compiled(flat, arguments, signature, options)


def flattened(
    function: Callable[..., Any], example_args: Sequence[Any], static_argnums: int | Sequence[int] = ()
) -> tuple[Callable[..., Any], list[Any], Signature]:
    """A function of flat arrays, their shapes, and the signature."""
    numbers = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    numbers = tuple(n % len(example_args) if example_args else n for n in numbers)
    static = {n: example_args[n] for n in numbers}
    moving = tuple(x for n, x in enumerate(example_args) if n not in static)
    paths, tree = jax.tree_util.tree_flatten_with_path(moving)
    positions = [n for n in range(len(example_args)) if n not in static]
    names = tuple(f"argument {positions[path[0].idx]}{jax.tree_util.keystr(path[1:])}" for path, _ in paths)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), _dtype(leaf)) for _, leaf in paths]

    def whole(*leaves: Any) -> Any:
        given = iter(jax.tree.unflatten(tree, leaves))
        return function(*(static[n] if n in static else next(given) for n in range(len(example_args))))

    results, result_tree = jax.tree.flatten(jax.eval_shape(whole, *shapes))
    signature = Signature(
        tree,
        tuple(s.shape for s in shapes),
        tuple(np.dtype(s.dtype) for s in shapes),
        names,
        result_tree,
        tuple(r.shape for r in results),
        tuple(np.dtype(r.dtype) for r in results),
        static,
    )
    return lambda *leaves: jax.tree.leaves(whole(*leaves)), shapes, signature


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def compiled(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    signature: Signature,
    options: Options,
    sources: dict[str, str] | None = None,
) -> CompiledProgram | HostedProgram:
    """The program of a function of flat arrays; see :func:`compile`."""
    graph, problems = traced(function, arguments, sources, options.host)
    if any(operation.name == "host" for operation in graph.operations):
        graph = fused(graph, options.disabled).ordered()
        return hosted(graph, problems, function, signature, options, _built)
    check(problems)
    return _built(fused(graph, options.disabled).ordered(), function, signature, options)


def _built(graph: TensorGraph, function: Callable[..., Any], signature: Signature, options: Options) -> CompiledProgram:
    """The program of a graph after fusion."""
    lowering = _lowering(graph, options)
    check(lowering.problems)
    found = lower(lowering.g, options.spill)
    names = dict(zip(lowering.g.outputs, lowering.g.names, strict=True))
    results = {
        base: (names[lowering.held[base].tensor], lowering.held[base])
        for view in graph.outputs
        for base in view.bases
        if base.constant is None
    }
    staged = tuple(lowering.staged.values())
    return CompiledProgram(found, graph, signature, function, staged, results, lowering.sections)


def _lowering(graph: TensorGraph, options: Options) -> Lowering:
    lowering = Lowering(graph, Graph(options.config), options.vectors)
    lowering.run()
    return lowering


# -- explain ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """What becomes of a function.

    Attributes:
        operations: for each operation its name, the shapes of its operands, the operators it becomes, and the user's
            line.
        problems: operations that have no lowering.
    """

    operations: tuple[tuple[str, str, str, str], ...]
    problems: tuple[Problem, ...]

    @property
    def supported(self) -> bool:
        """Whether ``compile`` takes the function."""
        return not self.problems

    def __str__(self) -> str:
        lines = [
            f"{n}({shapes}) -> {becomes}" + (f"  {source}" if source else "")
            for n, shapes, becomes, source in self.operations
        ]
        return "\n".join([*lines, *(f"not supported: {problem}" for problem in self.problems)])


def explain(
    function: Callable[..., Any],
    *example_args: Any,
    config: MachineConfig | None = None,
    static_argnums: int | Sequence[int] = (),
    vectors: Vectors = "hbm",
    disabled: Sequence[str] = (),
) -> Explanation:
    """What becomes of each operation of a function, and what is not supported; takes the arguments of ``compile``."""
    options = Options(config or MachineConfig(), vectors, tuple(disabled))
    flat, arguments, _ = flattened(function, example_args, static_argnums)
    return explained(flat, arguments, options)


def explained(
    function: Callable[..., Any], arguments: Sequence[Any], options: Options, sources: dict[str, str] | None = None
) -> Explanation:
    """What becomes of a function of flat arrays; see :func:`explain`."""
    graph, problems = traced(function, arguments, sources)
    if problems:
        rows = [_row(operation, "") for operation in graph.operations]
        return Explanation(tuple(rows), tuple(problems))
    graph = fused(graph, options.disabled).ordered()
    lowering = _lowering(graph, options)
    becomes: dict[Any, list[str]] = {operation: [] for operation in graph.operations}
    for node in lowering.g.nodes:
        if node.name in lowering.sections:
            becomes[lowering.sections[node.name]].append(node.operator.name)
    rows = [_row(operation, ", ".join(names) or "nothing") for operation, names in becomes.items()]
    return Explanation(tuple(rows), tuple(lowering.problems))


def _row(operation: Any, becomes: str) -> tuple[str, str, str, str]:
    shapes = ", ".join(str(list(view.shape)) for view in operation.inputs)
    return operation.name, shapes, becomes, operation.source
