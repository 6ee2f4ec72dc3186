"""A tensor graph: operations on arrays of any rank, in order, whatever front end they come from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from plena_jax.frontend.operations import find
from plena_jax.frontend.views import Value, View


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        name: of the kind, see :mod:`plena_jax.frontend.operations`.
        inputs: views of values; those of element-wise operations have the shape of the result.
        attributes: anything else that it needs.
        output: the result.
        source: where the user wrote it, or "".
    """

    name: str
    inputs: tuple[View, ...]
    attributes: dict[str, Any]
    output: Value
    source: str = ""


@dataclass
class TensorGraph:
    """Operations in order, from inputs to outputs.

    Attributes:
        inputs: values that a call gives.
        operations: in the order in which they run.
        outputs: views of values; what a call returns.
    """

    inputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: list[View] = field(default_factory=list)
    _numbers: Counter[str] = field(default_factory=Counter, repr=False)

    def value(self, name: str, shape: Sequence[int], dtype: Any = np.float32) -> Value:
        """A new value with a name that no other has."""
        number = self._numbers[name]
        self._numbers[name] += 1
        return Value(f"{name}.{number}" if number else name, tuple(shape), np.dtype(dtype))

    def add(
        self,
        name: str,
        inputs: Sequence[View],
        shape: Sequence[int],
        attributes: Mapping[str, Any] | None = None,
        dtype: Any = np.float32,
        source: str = "",
    ) -> View:
        """Add an operation; a view of its result."""
        output = self.value(name, shape, dtype)
        self.operations.append(Operation(name, tuple(inputs), dict(attributes or {}), output, source))
        return View.of(output)

    # -- questions ----------------------------------------------------------------------------------------------------

    def producers(self) -> dict[Value, Operation]:
        """The operation of each value that is computed."""
        return {operation.output: operation for operation in self.operations}

    def uses(self) -> Counter[Value]:
        """How many operations and outputs see each value."""
        counts: Counter[Value] = Counter()
        for views in (*(operation.inputs for operation in self.operations), self.outputs):
            for base in dict.fromkeys(base for view in views for base in view.bases):
                counts[base] += 1
        return counts

    def views(self) -> Iterator[View]:
        """All operands and outputs."""
        for operation in self.operations:
            yield from operation.inputs
        yield from self.outputs

    def evaluate(self, arrays: Sequence[Any]) -> list[Any]:
        """The outputs in float32, from arrays of the inputs; can be traced."""
        values: dict[Value, Any] = {value: jnp.asarray(x) for value, x in zip(self.inputs, arrays, strict=True)}

        def seen(view: View) -> Any:
            parts = [jnp.asarray(base.constant) if base.constant is not None else values[base] for base in view.bases]
            return view.evaluate(parts, jnp)

        for operation in self.operations:
            operands = [seen(view) for view in operation.inputs]
            values[operation.output] = find(operation.name).evaluate(*operands, **operation.attributes)
        return [seen(view) for view in self.outputs]

    # -- changes ------------------------------------------------------------------------------------------------------

    def rewritten(self, operations: Sequence[Operation], replaced: Mapping[Value, View]) -> TensorGraph:
        """The graph of other operations, in which views stand for values that are no longer computed."""
        inner = dict(replaced)
        graph = TensorGraph(list(self.inputs), _numbers=self._numbers)
        for operation in operations:
            inputs = tuple(view.through(inner) for view in operation.inputs)
            graph.operations.append(
                Operation(operation.name, inputs, operation.attributes, operation.output, operation.source)
            )
        graph.outputs = [view.through(inner) for view in self.outputs]
        return graph

    def without_dead_code(self) -> TensorGraph:
        """The graph without operations whose results nobody needs."""
        needed = {base for view in self.outputs for base in view.bases}
        kept = []
        for operation in reversed(self.operations):
            if operation.output in needed:
                kept.append(operation)
                needed |= {base for view in operation.inputs for base in view.bases}
        return self.rewritten(kept[::-1], {})

    def ordered(self) -> TensorGraph:
        """The graph in an order that only depends on what is computed: operands first, from the first output on."""
        producers, order = self.producers(), dict[Value, Operation]()
        waiting = [base for view in reversed(self.outputs) for base in reversed(view.bases)]
        while waiting:
            value = waiting[-1]
            operation = producers.get(value)
            if operation is None or value in order:
                waiting.pop()
                continue
            missing = [b for view in operation.inputs for b in view.bases if b in producers and b not in order]
            if missing:
                waiting += reversed(missing)
            else:
                order[value] = operation
        return self.rewritten(list(order.values()), {})

    # -- text ---------------------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        """Canonical text: values are numbered in the order in which they are made."""
        names: dict[Value, str] = {}
        named = lambda value: names.setdefault(value, f"%{len(names)}")
        lines = [f"input {named(value)}: {value.dtype.name}{list(value.shape)}" for value in self.inputs]
        for operation in self.operations:
            operands = ", ".join(_text(view, named) for view in operation.inputs)
            extra = "".join(f", {key}={_short(item)}" for key, item in sorted(operation.attributes.items()))
            lines.append(
                f"{named(operation.output)}: {list(operation.output.shape)} = {operation.name}({operands}{extra})"
            )
        lines += [f"output {_text(view, named)}" for view in self.outputs]
        return "\n".join(lines)


def _short(item: Any) -> str:
    if isinstance(item, np.ndarray):
        return f"array{list(item.shape)}#{_digest(item)}"
    return str(item)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:8]


def _text(view: View, named: Callable[[Value], str]) -> str:
    if view.scalar is not None:
        return f"{view.scalar:g}"
    bases = "+".join(
        f"const{list(base.shape)}#{_digest(base.constant)}" if base.constant is not None else named(base)
        for base in view.bases
    )
    return bases + (f"{list(view.shape)}" if view.is_whole else f"{list(view.shape)}@{_digest(view.index)}")
