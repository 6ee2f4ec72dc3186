"""From jaxprs to tensor graphs: the walk. What single primitives become is in :mod:`plena_jax.frontend.primitives`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from plena_jax.errors import Problem, UnsupportedOperation
from plena_jax.frontend.declare import declares
from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.operations import find
from plena_jax.frontend.views import Value, View

#: What a variable of a jaxpr holds: a known array, or a view of values of the graph.
Entry = np.ndarray | View

#: Turns of a loop that are written one after the other.
MOST_TURNS = 100_000


@dataclass(frozen=True)
class Call:
    """One equation of a jaxpr.

    Attributes:
        primitive: that it applies.
        params: its parameters.
        shapes, dtypes: of the results.
        source: where the user wrote it.
    """

    primitive: Any
    params: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the only result."""
        (shape,) = self.shapes
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the only result."""
        (dtype,) = self.dtypes
        return dtype


#: A rule: the walk, the equation and its operands; the result, or several.
Rule = Callable[..., "Entry | Sequence[Entry]"]
RULES: dict[str, Rule] = {}


def primitive(*names: str) -> Callable[[Rule], Rule]:
    """Declare what primitives become."""
    return declares(RULES, *names)


class Unsupported(Exception):
    """Raised by a rule: why this use of a primitive has no lowering."""


@dataclass
class Walk:
    """Walks jaxprs and writes a graph.

    Attributes:
        graph: what is written.
        problems: all that cannot be lowered.
        sources: lines of the user's program by named scope, for front ends that know better than the jaxpr.
        host: what cannot be lowered becomes operations "host".
    """

    graph: TensorGraph = field(default_factory=TensorGraph)
    problems: list[Problem] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    host: bool = False
    source: str = ""
    _constants: dict[tuple[Any, ...], Value] = field(default_factory=dict)

    # -- for rules ----------------------------------------------------------------------------------------------------

    def view(self, entry: Entry) -> View:
        """An operand as a view."""
        if isinstance(entry, View):
            return entry
        array = np.asarray(entry)
        key = array.shape, array.dtype.str, array.tobytes()
        if key not in self._constants:
            value = self.graph.value("constant", array.shape, array.dtype)
            self._constants[key] = Value(value.name, value.shape, value.dtype, array)
        return View.of(self._constants[key])

    def known(self, entry: Entry) -> np.ndarray | None:
        """The array, if an operand is known."""
        return entry.constant if isinstance(entry, View) else entry

    def add(
        self, name: str, *operands: Entry, shape: Sequence[int], dtype: Any = np.float32, **attributes: Any
    ) -> View:
        """Add an operation."""
        return self.graph.add(name, [self.view(o) for o in operands], shape, attributes, dtype, self.source)

    def elementwise(self, name: str, *operands: Entry, dtype: Any = np.float32, **attributes: Any) -> View:
        """Add an element-wise operation on operands that are repeated to one shape."""
        views = [self.view(operand) for operand in operands]
        shape = np.broadcast_shapes(*(view.shape for view in views))
        if all(view.constant is not None for view in views):
            found = find(name).evaluate(*(view.constant for view in views), **attributes)
            return self.view(np.broadcast_to(np.asarray(found, dtype), shape))
        if name in _COMMUTATIVE and views[0].constant is not None:
            # What is known comes last.
            views.reverse()
        views = [view.broadcast(shape) for view in views]
        if name in _NEUTRAL and views[1].scalar == _NEUTRAL[name]:
            return views[0]
        return self.add(name, *views, shape=shape, dtype=dtype, **attributes)

    # -- the walk -----------------------------------------------------------------------------------------------------

    def run(self, jaxpr: Any, consts: Sequence[Any], operands: Sequence[Entry]) -> list[Entry]:
        """The results of a jaxpr."""
        held: dict[Any, Entry] = {}
        held.update(zip(jaxpr.constvars, (np.asarray(c) for c in consts), strict=True))
        held.update(zip(jaxpr.invars, operands, strict=True))
        read = lambda atom: np.asarray(atom.val) if isinstance(atom, core.Literal) else held[atom]
        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            held.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: list[Entry]) -> Sequence[Entry]:
        avals = [variable.aval for variable in equation.outvars]
        call = Call(
            equation.primitive,
            equation.params,
            tuple(tuple(aval.shape) for aval in avals),
            tuple(np.dtype(aval.dtype) if not _is_key(aval) else np.dtype(object) for aval in avals),
            self._source(equation),
        )
        outer, self.source = self.source, call.source
        try:
            return self._results(call, operands, equation)
        except Unsupported as error:
            self._problem(call, operands, str(error))
            if self.host and not any(d.kind in "cO" or d.itemsize == 8 for d in call.dtypes):
                return [self._on_host(call, operands, number) for number in range(len(call.shapes))]
            return [
                View.of(self.graph.value("unsupported", s, d)) for s, d in zip(call.shapes, call.dtypes, strict=True)
            ]
        finally:
            self.source = outer

    def _results(self, call: Call, operands: list[Entry], equation: Any) -> Sequence[Entry]:
        name = call.primitive.name
        inner = _inner(call.params)
        if name not in RULES and inner is not None:
            jaxpr, consts = inner
            return self.run(jaxpr, consts, operands)
        if all(isinstance(operand, np.ndarray) for operand in operands) and name not in _CONTROL:
            return _folded(equation, operands)
        wrong = [d for d in call.dtypes if d.kind in "cO" or d.itemsize == 8]
        if wrong:
            raise Unsupported(f"numbers of type {wrong[0].name}; the machine has floats of at most 32 bits")
        if name not in RULES:
            raise Unsupported("the machine has no instructions for it, and there is no lowering")
        found = RULES[name](self, call, *operands)
        return [found] if isinstance(found, np.ndarray | View) else found

    def _on_host(self, call: Call, operands: list[Entry], number: int) -> View:
        """One result of an equation that is not for the machine."""
        dtypes = [operand.dtype for operand in operands]

        def function(*arrays: Any) -> Any:
            given = [jnp.asarray(x).astype(dtype) for x, dtype in zip(arrays, dtypes, strict=True)]
            found = call.primitive.bind(*given, **call.params)
            return found[number] if call.primitive.multiple_results else found

        shape, dtype = call.shapes[number], call.dtypes[number]
        return self.graph.add(
            "host", [self.view(o) for o in operands], shape, {"function": function}, dtype, call.source
        )

    def _problem(self, call: Call, operands: list[Entry], reason: str) -> None:
        shapes = ", ".join(f"{operand.dtype.name}{list(operand.shape)}" for operand in operands)
        problem = Problem(call.primitive.name, reason, shapes, call.source)
        if problem not in self.problems:
            self.problems.append(problem)

    def _source(self, equation: Any) -> str:
        info = equation.source_info
        for scope in reversed(str(info.name_stack).split("/")):
            if scope in self.sources:
                return self.sources[scope]
        return _line(info) or self.source


_COMMUTATIVE = {"add", "mul", "maximum", "minimum", "equal"}
#: Second operands that change nothing.
_NEUTRAL = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0, "maximum": -math.inf, "minimum": math.inf}
#: Primitives that are looked into even if all is known.
_CONTROL = {"while", "scan", "cond"}


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.extended)


def _inner(params: dict[str, Any]) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr that a primitive calls, and its constants."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = params.get(name)
        if isinstance(found, core.ClosedJaxpr):
            return found.jaxpr, found.consts
        if isinstance(found, core.Jaxpr):
            return found, ()
    return None


def _folded(equation: Any, operands: list[Entry]) -> list[Entry]:
    """The results of an equation whose operands are known."""
    with jax.ensure_compile_time_eval():
        found = equation.primitive.bind(*operands, **equation.params)
    return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]


def _line(info: Any) -> str:
    # There is no public function for it.
    try:
        from jax._src import source_info_util

        frame = source_info_util.user_frame(info.traceback)
        return "" if frame is None else f"{frame.file_name}:{frame.start_line}"
    except (ImportError, AttributeError, TypeError):
        return ""


def traced(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    sources: dict[str, str] | None = None,
    host: bool = False,
) -> tuple[TensorGraph, list[Problem]]:
    """The graph of a function of flat arrays, and what cannot be lowered.

    Args:
        function: arrays to a list of arrays.
        arguments: arrays, or their shapes and types.
        sources: lines of the user's program by named scope.
        host: what cannot be lowered becomes operations "host"; it is among the problems all the same.
    """
    import_module("plena_jax.frontend.primitives")
    closed = jax.make_jaxpr(function)(*arguments)
    walk = Walk(sources=sources or {}, host=host)
    for number, variable in enumerate(closed.jaxpr.invars):
        aval: Any = variable.aval
        value = walk.graph.value(f"input.{number}", aval.shape, aval.dtype)
        walk.graph.inputs.append(value)
        if _is_key(aval) or value.dtype.kind == "c" or (value.dtype.itemsize == 8):
            walk.problems.append(Problem("argument", "the machine has floats of at most 32 bits", str(aval), ""))
    results = walk.run(closed.jaxpr, closed.consts, [View.of(value) for value in walk.graph.inputs])
    walk.graph.outputs = [walk.view(entry) for entry in results]
    return walk.graph.without_dead_code(), walk.problems


def check(problems: list[Problem]) -> None:
    """All problems at once.

    Raises:
        UnsupportedOperation: there are any.
    """
    if problems:
        raise UnsupportedOperation(problems)
