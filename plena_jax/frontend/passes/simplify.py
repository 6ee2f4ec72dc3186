"""One spelling for what can be written in several ways."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Rule, Sweep, alike, is_elementwise, pulled, swept, with_number
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View

_COMMUTATIVE = {"add", "mul", "maximum", "minimum", "equal"}


@graph_pass
def simplify(graph: TensorGraph) -> TensorGraph:
    """What is computed twice is computed once, and algebra has one spelling."""
    return swept(graph, *_RULES, _Common())


class _Common:
    """Common subexpressions: the operations that were seen, by all but positions."""

    def __init__(self) -> None:
        self.seen: dict[tuple[object, ...], list[Operation]] = {}
        self.sweep: Sweep | None = None

    def __call__(self, sweep: Sweep, operation: Operation) -> View | None:
        """An earlier operation of the same operands."""
        if self.sweep is not sweep:
            self.seen, self.sweep = {}, sweep
        known = lambda view: view.scalar is not None or all(base.constant is not None for base in view.bases)
        bases = [None if known(view) else view.bases for view in operation.inputs]
        order: tuple[object, ...] = tuple(bases)
        if operation.name in _COMMUTATIVE:
            order = (frozenset(bases),)
        key = (
            operation.name,
            operation.output.shape,
            operation.output.dtype,
            order,
            repr(sorted(operation.attributes.items())),
        )
        for other in self.seen.setdefault(key, []):
            if _same_operands(operation, other):
                return View.of(other.output)
        self.seen[key].append(operation)
        return None


def _same_operands(a: Operation, b: Operation) -> bool:
    orders = [b.inputs, b.inputs[::-1]] if a.name in _COMMUTATIVE else [b.inputs]
    return any(all(alike(x, y) for x, y in zip(a.inputs, order, strict=True)) for order in orders)


# -- shapes -----------------------------------------------------------------------------------------------------------


def _small(sweep: Sweep, operation: Operation) -> View | None:
    """Elements that are all the same along an axis are computed once; axes of size one go."""
    if not is_elementwise(operation):
        return None
    shape = operation.output.shape
    first = lambda view, axis: view.index.take([0], axis)
    repeated = [
        size > 1 and all((view.index == first(view, axis)).all() for view in operation.inputs)
        for axis, size in enumerate(shape)
    ]
    if not any(repeated) and 1 not in shape:
        return None
    one = tuple(slice(0, 1) if is_repeated else slice(None) for is_repeated in repeated)
    kept = [size for size, is_repeated in zip(shape, repeated, strict=True) if size > 1 and not is_repeated]
    inputs = [view.moved(lambda index: index[one].reshape(kept)) for view in operation.inputs]
    found = sweep.add(operation.name, *inputs, shape=kept, dtype=operation.output.dtype, **operation.attributes)
    ones = [1 if is_repeated else size for size, is_repeated in zip(shape, repeated, strict=True)]
    return found.reshape(*ones).broadcast(shape)


def _squeezed(sweep: Sweep, operation: Operation) -> View | None:
    """Reductions of arrays without axes of size one."""
    if operation.name not in ("reduce_sum", "reduce_max", "reduce_min"):
        return None
    (view,), axes = operation.inputs, operation.attributes["axes"]
    kept = [axis for axis, size in enumerate(view.shape) if size > 1 or axis in axes]
    if len(kept) == len(view.shape):
        return None
    shape = [view.shape[axis] for axis in kept]
    moved = tuple(kept.index(axis) for axis in axes)
    out = [size for axis, size in enumerate(shape) if axis not in moved]
    found = sweep.add(operation.name, view.reshape(*shape), shape=out, dtype=operation.output.dtype, axes=moved)
    return found.reshape(*operation.output.shape)


# -- algebra ----------------------------------------------------------------------------------------------------------


def _signs(sweep: Sweep, operation: Operation) -> View | None:
    """Negation of sums, and what it cancels with."""
    name, inputs = operation.name, operation.inputs
    if name in ("neg", "not") and (inner := sweep.peel(inputs[0], name)):
        return inner[1][0]
    if name == "neg" and (inner := sweep.peel(inputs[0], "sub")) and sweep.hidden([inner[0]]):
        return sweep.add("sub", inner[1][1], inner[1][0])
    if name in ("square", "abs") and (inner := sweep.peel(inputs[0], "neg", "abs")):
        return sweep.add(name, *inner[1])
    if name == "mul" and inputs[1].scalar == -1.0:
        return sweep.add("neg", inputs[0])
    if name not in ("add", "sub"):
        return None
    if inner := sweep.peel(inputs[1], "neg"):
        return sweep.add("sub" if name == "add" else "add", inputs[0], *inner[1])
    if name == "add" and (inner := sweep.peel(inputs[0], "neg")):
        return sweep.add("sub", inputs[1], *inner[1])
    return None


def _products(sweep: Sweep, operation: Operation) -> View | None:
    """Known numbers of products meet; a number times itself is a square."""
    name, inputs = operation.name, operation.inputs
    is_product = name == "neg" and (inner := sweep.peel(inputs[0], "mul")) and sweep.hidden([inner[0]])
    if is_product and inner and (known := with_number(inner[1])):
        return sweep.add("mul", known[0], sweep.number(-known[1], known[0].shape))
    if name != "mul":
        return None
    if inputs[0].same(inputs[1]):
        return sweep.add("square", inputs[0])
    known = with_number(inputs)
    if known is None:
        return None
    x, number = known
    if number == 1.0:
        return x
    if inner := sweep.peel(x, "neg"):
        return sweep.add("mul", *inner[1], sweep.number(-number, x.shape))
    if (inner := sweep.peel(x, "mul")) and (before := with_number(inner[1])):
        product = float(np.float32(before[1] * number))
        if math.isfinite(product) and (product != 0 or number == 0):
            return before[0] if product == 1.0 else sweep.add("mul", before[0], sweep.number(product, x.shape))
    return None


def _roots(sweep: Sweep, operation: Operation) -> View | None:
    """Division by a root is a product with ``rsqrt``."""
    name, inputs = operation.name, operation.inputs
    if name == "div":
        if inputs[0].scalar == 1.0:
            return sweep.add("reciprocal", inputs[1])
        if inner := sweep.peel(inputs[1], "sqrt"):
            return sweep.add("mul", inputs[0], _computed(sweep, "rsqrt", inner[0], inputs[1]))
        if inner := sweep.peel(inputs[1], "rsqrt"):
            return sweep.add("mul", inputs[0], _computed(sweep, "sqrt", inner[0], inputs[1]))
        if inner := sweep.peel(inputs[1], "reciprocal"):
            return sweep.add("mul", inputs[0], *inner[1])
    if name == "reciprocal" and (inner := sweep.peel(inputs[0], "sqrt", "rsqrt", "reciprocal")):
        other = {"sqrt": "rsqrt", "rsqrt": "sqrt", "reciprocal": None}[inner[0].name]
        return inner[1][0] if other is None else sweep.add(other, *inner[1])
    if name == "sqrt" and (inner := sweep.peel(inputs[0], "reciprocal")):
        return sweep.add("rsqrt", *inner[1])
    return None


def _computed(sweep: Sweep, kind: str, inner: Operation, view: View) -> View:
    """A function of what another operation sees, where that is small, moved as a view of its result."""
    return pulled(sweep.add(kind, *inner.inputs), view)


def _magnitudes(sweep: Sweep, operation: Operation) -> View | None:
    """The magnitude of what is never negative."""
    if operation.name == "abs" and _is_positive(sweep, operation.inputs[0]):
        return operation.inputs[0]
    return None


def _is_positive(sweep: Sweep, view: View) -> bool:
    """Whether no element can be below zero."""
    if sweep.producer(view, "exp", "square", "abs", "sqrt", "sigmoid", "relu"):
        return True
    total = sweep.producer(view, "reduce_sum")
    return total is not None and _is_positive(sweep, total.inputs[0])


def _choices(sweep: Sweep, operation: Operation) -> View | None:
    """Choices and bounds that change nothing."""
    name, inputs = operation.name, operation.inputs
    if name == "select":
        mask, x, y = inputs
        if mask.scalar is not None:
            return x if mask.scalar else y
        if alike(x, y):
            return x
        if inner := sweep.peel(mask, "not"):
            return sweep.add("select", *inner[1], y, x, dtype=operation.output.dtype)
    for kind, bound in ("maximum", -math.inf), ("minimum", math.inf), ("add", 0.0):
        if name == kind and (known := with_number(inputs)) and known[1] == bound:
            return known[0]
    if name in ("sub", "div") and inputs[1].scalar == (0.0 if name == "sub" else 1.0):
        return inputs[0]
    if name in ("maximum", "minimum") and inputs[0].same(inputs[1]):
        return inputs[0]
    return None


_RULES: Sequence[Rule] = (_signs, _products, _roots, _magnitudes, _choices, _small, _squeezed)
