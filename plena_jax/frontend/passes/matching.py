"""What all passes match with: a sweep over a graph, operations seen through views, and rows of reductions.

Element-wise operations commute with every movement, so an operand of one that is seen through a view is a view of the
operand. Nothing here asks how an axis was moved or repeated: positions are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.operations import find
from plena_jax.frontend.views import Positions, Value, View

#: Sweeps until nothing matches any more; far more than any graph has needed.
MOST_SWEEPS = 50


class Sweep:
    """Writes the operations of a graph anew, in order; rules replace results by views.

    Attributes:
        made: the operations so far, by result.
        replaced: views that stand for results that are no longer computed.
        users: the results of operations that see a value; None stands for outputs.
        operation: the one that rules look at; its operands are those of the new graph.
    """

    def __init__(self, graph: TensorGraph) -> None:
        self.graph = graph
        self.made: dict[Value, Operation] = {}
        self.replaced: dict[Value, View] = {}
        self.users: dict[Value, set[Value | None]] = {}
        self.operation: Operation
        for operation in graph.operations:
            for base in (base for view in operation.inputs for base in view.bases):
                self.users.setdefault(base, set()).add(operation.output)
        for base in (base for view in graph.outputs for base in view.bases):
            self.users.setdefault(base, set()).add(None)

    def run(self, rules: Sequence[Rule]) -> TensorGraph | None:
        """The new graph, or None if no rule had anything to change."""
        for old in self.graph.operations:
            inputs = tuple(view.through(self.replaced) for view in old.inputs)
            self.operation = Operation(old.name, inputs, old.attributes, old.output, old.source)
            found = next((view for rule in rules if (view := rule(self, self.operation)) is not None), None)
            if found is None:
                self.made[old.output] = self.operation
            else:
                self.replace(old.output, found)
        if not self.replaced:
            return None
        return self.graph.rewritten(list(self.made.values()), self.replaced).without_dead_code()

    def replace(self, value: Value, view: View) -> None:
        """From here on a view stands for a value."""
        assert view.shape == value.shape, (view.shape, value.shape)
        self.replaced[value] = view
        for base in view.bases:
            self.users[base] = self.users.get(base, set()) | self.users.get(value, set())

    def add(
        self, name: str, *inputs: View, shape: Sequence[int] | None = None, dtype: Any = np.float32, **attributes: Any
    ) -> View:
        """Add an operation; element-wise ones have the shape of their first operand."""
        output = self.graph.value(name, inputs[0].shape if shape is None else shape, dtype)
        self.made[output] = Operation(name, tuple(inputs), attributes, output, self.operation.source)
        return View.of(output)

    def number(self, number: float, shape: Sequence[int]) -> View:
        """A known number everywhere."""
        return self.array(np.float32(number)).broadcast(shape)

    def array(self, array: Any) -> View:
        """A known array."""
        array = np.asarray(array)
        name = self.graph.value("constant", array.shape, array.dtype).name
        return View.of(Value(name, array.shape, array.dtype, array))

    def producer(self, view: View, *kinds: str) -> Operation | None:
        """The operation of one of the kinds whose results alone a view sees."""
        if len(view.bases) != 1:
            return None
        operation = self.made.get(view.bases[0])
        if operation is None or operation.name not in kinds or view.index.min(initial=0) < 0:
            return None
        return operation

    def peel(self, view: View, *kinds: str) -> tuple[Operation, list[View]] | None:
        """An element-wise operation of one of the kinds, and its operands as the view sees them."""
        operation = self.producer(view, *kinds)
        return None if operation is None else (operation, [pulled(operand, view) for operand in operation.inputs])

    def hidden(self, region: Collection[Operation], *others: Operation) -> bool:
        """Whether nobody but the operation that is looked at, the region and others see results of the region."""
        inside = {operation.output for operation in (*region, *others, self.operation)}
        return all(self.users.get(operation.output, {None}) <= inside for operation in region)


#: What a result becomes, or None.
Rule = Callable[[Sweep, Operation], View | None]


def swept(graph: TensorGraph, *rules: Rule) -> TensorGraph:
    """The graph in which no rule has anything to change any more."""
    graph = graph.without_dead_code()
    for _ in range(MOST_SWEEPS):
        changed = Sweep(graph).run(rules)
        if changed is None:
            break
        graph = changed
    return graph


def is_elementwise(operation: Operation) -> bool:
    """Whether each element depends on the elements at its place only."""
    return find(operation.name).elementwise


def pulled(operand: View, view: View) -> View:
    """What a view of an element-wise result sees of an operand."""
    if view.is_whole:
        return operand.reshape(*view.shape)
    if operand.scalar is not None:
        return operand.moved(lambda index: np.broadcast_to(index.reshape(-1)[:1], view.size).reshape(view.shape))
    return operand.moved(lambda index: index.reshape(-1)[view.index])


def alike(a: View, b: View) -> bool:
    """Whether two views see the same elements, or known numbers that are equal."""
    if a.same(b):
        return True
    if a.shape != b.shape:
        return False
    if a.scalar is not None or b.scalar is not None:
        return a.scalar == b.scalar and a.dtype == b.dtype
    if a.constant is None or b.constant is None:
        return False
    return a.dtype == b.dtype and bool(np.array_equal(a.constant, b.constant))


def close(a: float, b: float) -> bool:
    """Numbers that differ by rounding of float32 only."""
    return abs(a - b) <= 2e-6 * max(abs(a), abs(b))


def with_number(operands: Sequence[View]) -> tuple[View, float] | None:
    """The operand of a commutative operation that is not a known number, and the number."""
    for one, other in (operands, operands[::-1]):
        if other.scalar is not None:
            return one, other.scalar
    return None


# -- rows of reductions -----------------------------------------------------------------------------------------------


def rows_of(reduction: Operation) -> View:
    """The operand of a reduction, [rows, n]: what makes each of its results."""
    axes = reduction.attributes["axes"]
    view = reduction.inputs[0]
    kept = [axis for axis in range(view.index.ndim) if axis not in axes]
    return view.transpose([*kept, *axes]).reshape(max(reduction.output.size, 1), -1)


def places(x: View, row: Positions, rows: View) -> Positions | None:
    """For each element of x, which belongs to a row, where that row of ``rows`` [count, n] has it.

    Returns:
        Positions in the flattened ``rows``, of the shape of x; None if an element is not in its row.
    """
    if x.bases != rows.bases:
        return None
    n = rows.shape[1]
    if x.size == rows.size and np.array_equal(x.index.reshape(-1), rows.index.reshape(-1)):
        straight = np.arange(x.size, dtype=np.int32).reshape(x.shape)
        if np.array_equal(straight // n, row):
            return straight
    span = int(max(x.index.max(initial=0), rows.index.max(initial=0))) + 2
    keys = (rows.index.astype(np.int64) + 1 + np.arange(rows.shape[0])[:, None] * span).reshape(-1)
    wanted = x.index.astype(np.int64) + 1 + row.astype(np.int64) * span
    order = np.argsort(keys, kind="stable")
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
    return at.astype(np.int32) if np.array_equal(keys[at], wanted) else None


def is_repeated(view: View) -> bool:
    """Whether all elements along the last axis are the same."""
    return bool((view.index == view.index[..., :1]).all())


def columns(view: View, column: Positions, n: int, rows: int) -> View | None:
    """The n numbers of a view in which each element depends on its column only.

    With a single row any view is such: then the numbers must be an array of one axis.
    """
    flat, at = view.index.reshape(-1), column.reshape(-1)
    found = np.full(n, -1, np.int32)
    found[at] = flat
    if not np.array_equal(found[at], flat):
        return None
    if rows == 1 and any(base.constant is None and len(base.shape) > 1 for base in view.bases):
        return None
    return view.moved(lambda _: found)


def seen_in(result: View, index: Positions) -> View:
    """The view of a new result in which an old one is found."""
    return result.moved(lambda _: index.astype(np.int32, copy=False))
