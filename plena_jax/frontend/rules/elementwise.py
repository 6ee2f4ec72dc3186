"""Element by element: the result takes the order of elements in which most operands come for free."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from plena_jax.frontend.graph import Operation
from plena_jax.frontend.lowering import Held, Lowering, lowers, without_infinity
from plena_jax.frontend.views import Positions, View
from plena_jax.lower.tensors import Tensor

#: Kinds that are operators of one operand, by name.
_UNARY = {
    "abs": "abs",
    "erf": "erf",
    "exp": "exp",
    "expm1": "expm1",
    "gelu": "gelu",
    "log": "log",
    "log1p": "log1p",
    "reciprocal": "reciprocal",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "sign": "sign",
    "silu": "silu",
    "softplus": "softplus",
    "sqrt": "sqrt",
    "square": "square",
    "tanh": "tanh",
    "clamp": "clamp",
}


def _cost(lowering: Lowering, view: View, order: Positions) -> int:
    """Elements to move for an operand in an order."""
    arranged = lowering.in_order(view, order)
    if lowering.is_free(arranged) or lowering.is_free(_shrunk(arranged, True, True)):
        return 0
    return _shrunk(arranged, True, True).size


def _chosen(lowering: Lowering, operation: Operation) -> Positions:
    orders = lowering.orders(operation)
    costs = [sum(_cost(lowering, view, order) for view in operation.inputs) for order in orders]
    return orders[costs.index(min(costs))]


def _shrunk(view: View, rows: bool, columns: bool) -> View:
    """One row, or column, of a view that repeats it."""
    index = view.index
    if rows and index.shape[0] > 1 and (index == index[:1]).all():
        index = index[:1]
    if columns and index.shape[1] > 1 and (index == index[:, :1]).all():
        index = index[:, :1]
    return View(view.bases, index, view.dtype)


def _unary(name: str, lowering: Lowering, operation: Operation) -> Held:
    order = _chosen(lowering, operation)
    x = lowering.vram(lowering.in_order(without_infinity(operation.inputs[0]), order))
    return lowering.holding(lowering.g.apply(name, x, **operation.attributes), order)


for _kind, _operator in _UNARY.items():
    lowers(_kind)(partial(_unary, _operator))


def _in_turn(*steps: tuple[str, dict[str, float]]) -> Callable[[Lowering, Operation], Held]:
    def rule(lowering: Lowering, operation: Operation) -> Held:
        order = _chosen(lowering, operation)
        x = lowering.vram(lowering.in_order(without_infinity(operation.inputs[0]), order))
        for name, attributes in steps:
            x = lowering.g.apply(name, x, **attributes)
        return lowering.holding(x, order)

    return rule


lowers("neg")(_in_turn(("scale", {"factor": -1.0})))
lowers("not")(_in_turn(("subtract_from", {"number": 1.0})))
lowers("rsqrt")(_in_turn(("sqrt", {}), ("reciprocal", {})))

# -- two operands -----------------------------------------------------------------------------------------------------

#: Operators for a known second operand: name and attributes.
_WITH_NUMBER: dict[str, Callable[[float], tuple[str, dict[str, Any]]]] = {
    "add": lambda c: ("add_number", {"number": c}),
    "sub": lambda c: ("add_number", {"number": -c}),
    "mul": lambda c: ("scale", {"factor": c}),
    "div": lambda c: ("scale", {"factor": 1 / c}),
    "maximum": lambda c: ("clamp", {"low": c}),
    "minimum": lambda c: ("clamp", {"high": c}),
}


def operands(lowering: Lowering, views: list[View], order: Positions) -> list[Tensor]:
    """Operands in an order, as one row, column or number where they repeat it, but one that is whole."""
    arranged = [lowering.in_order(without_infinity(view), order) for view in views]
    shrunk = [_shrunk(view, True, True) for view in arranged]
    shape = np.broadcast_shapes(*(view.shape for view in shrunk))
    if shape != order.shape:
        # The largest one is written out along what all of them repeat.
        largest = max(range(len(shrunk)), key=lambda i: shrunk[i].size)
        rows, columns = shape[0] == order.shape[0], shape[1] == order.shape[1]
        shrunk[largest] = _shrunk(arranged[largest], rows, columns)
    return [lowering.vram(view) for view in shrunk]


def _binary(kind: str, lowering: Lowering, operation: Operation) -> Held:
    order, (x, y) = _chosen(lowering, operation), operation.inputs
    number, other = y.scalar, x.scalar
    finite = lambda c: c is not None and np.isfinite(c)
    if kind in _WITH_NUMBER and finite(number) and not (kind == "div" and number == 0):
        assert number is not None
        name, attributes = _WITH_NUMBER[kind](number)
        found = lowering.g.apply(name, lowering.vram(lowering.in_order(x, order)), **attributes)
    elif kind == "sub" and finite(other):
        found = lowering.g.subtract_from(lowering.vram(lowering.in_order(y, order)), number=other)
    else:
        found = lowering.g.apply(kind, *operands(lowering, [x, y], order))
    return lowering.holding(found, order)


for _kind in ("add", "sub", "mul", "div", "maximum", "minimum", "greater", "equal"):
    lowers(_kind)(partial(_binary, _kind))


@lowers("select")
def select(lowering: Lowering, operation: Operation) -> Held:
    """Both cases are computed."""
    order = _chosen(lowering, operation)
    found = lowering.g.select(*operands(lowering, list(operation.inputs), order))
    return lowering.holding(found, order)
