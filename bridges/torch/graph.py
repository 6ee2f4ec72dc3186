"""Graphs of steps, and their evaluation in JAX: nothing here knows torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from plena_jax.errors import Problem, UnsupportedOperation

from .registry import rules


@dataclass(frozen=True)
class Reference:
    """The result of a step, or one of its results; or an argument of the graph."""

    name: str
    index: int | None = None


@dataclass(frozen=True)
class Value:
    """Name, shape and data type of a tensor, as JAX has it: floats are float32, integers at most int32.

    Attributes:
        constant: of an input that is no tensor: the value it had in the example, which it must keep.
        exact: False where the model has a wider data type, float64 or complex.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None
    constant: Any = None
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Step:
    """One call of an operator.

    Attributes:
        name: unique in the graph.
        operation: the ATen operator.
        arguments: by position, with :class:`Reference` for tensors.
        keywords: by name.
        results: one for each; one if ``several`` is False.
        several: whether the operator gives a tuple.
        scope: under which JAX traces it: path of the module and name of the step.
        source: ``file:line  code`` in the user's program.
    """

    name: str
    operation: str
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    results: tuple[Value, ...]
    several: bool
    scope: str
    source: str

    def problem(self, reason: str, operands: tuple[Value, ...] = ()) -> Problem:
        """Why this step is not supported."""
        results = ", ".join(map(str, self.results))
        shapes = f"{', '.join(map(str, operands))} -> {results}" if operands else results
        return Problem(self.operation, reason, shapes, self.source)


@dataclass(frozen=True)
class Folded:
    """A value that no input or weight changes.

    Attributes:
        make: the array, or the arrays of an operator with several results.
        depends: constants of the module that it was made of.
    """

    make: Callable[[], Any]
    depends: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Graph:
    """Steps in order.

    Attributes:
        steps: all of them, the folded ones too.
        folded: results that are known, by the name of their step or argument.
        outputs: references, or values that are no tensors.
    """

    steps: tuple[Step, ...]
    folded: Mapping[str, Folded]
    outputs: tuple[Any, ...]
    _used: Mapping[str, frozenset[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        used: dict[str, set[int]] = {}
        for tree in (*((s.arguments, dict(s.keywords)) for s in self.steps), self.outputs):
            for reference in references(tree):
                used.setdefault(reference.name, set()).add(reference.index or 0)
        object.__setattr__(self, "_used", {name: frozenset(indices) for name, indices in used.items()})

    def constant(self, reference: Reference) -> Any:
        """A folded value as a NumPy array."""
        value = self.folded[reference.name].make()
        return value if reference.index is None else value[reference.index]

    def evaluate(self, arguments: Mapping[str, Any], changed: frozenset[str] = frozenset()) -> list[Any]:
        """The outputs, for arrays by the name of their argument.

        Args:
            arguments: all that are not folded, and those that are changed.
            changed: constants that are not what they were; what was folded of them is evaluated anew.
        """
        values = dict(arguments)

        def look_up(reference: Reference) -> Any:
            if reference.name not in values:
                return self.constant(reference)
            value = values[reference.name]
            return value if reference.index is None else value[reference.index]

        for step in self.steps:
            if step.name in self.folded and not self.folded[step.name].depends & changed:
                continue
            with jax.named_scope(step.scope):
                values[step.name] = self.call(step, replaced(step.arguments, look_up), replaced(step.keywords, look_up))
        return [replaced(output, look_up) for output in self.outputs]

    def call(self, step: Step, arguments: Any, keywords: Any) -> Any:
        """The results of a step that are used, in the shapes and data types that the graph says.

        Raises:
            UnsupportedOperation: there is no rule.
        """
        rule = rules().get(step.operation)
        if rule is None:
            raise UnsupportedOperation([step.problem("there is no rule for it")])
        found = rule(*arguments, **keywords)
        if not step.several:
            return _as_said(step, 0, found)
        used = self._used.get(step.name, frozenset())
        return [_as_said(step, i, found[i]) if i in used else None for i in range(len(step.results))]


def _as_said(step: Step, index: int, value: Any) -> Any:
    """A result, made if it is not made yet, with the data type of the graph."""
    value = value() if callable(value) else value
    wanted = step.results[index]
    shape = np.shape(value)
    if shape != wanted.shape:
        raise AssertionError(f"{step.operation} at {step.source}: the rule gives shape {shape}, torch {wanted.shape}")
    if not hasattr(value, "astype"):
        value = np.asarray(value)
    return value if value.dtype == wanted.dtype else value.astype(wanted.dtype)


def references(tree: Any) -> list[Reference]:
    """All references in nested tuples, lists and dicts."""
    found: list[Reference] = []
    replaced(tree, found.append)
    return found


def replaced(tree: Any, look_up: Callable[[Reference], Any]) -> Any:
    """The same with values for references."""
    if isinstance(tree, Reference):
        return look_up(tree)
    if isinstance(tree, Mapping):
        return {key: replaced(value, look_up) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(replaced(value, look_up) for value in tree)
    if isinstance(tree, list):
        return [replaced(value, look_up) for value in tree]
    return tree
