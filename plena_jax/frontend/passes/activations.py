"""Activation functions, found by what they compute.

A region of element-wise operations in which everything follows from one view is a function of one number. It is
evaluated in float64 on fixed points and compared with the functions of a table, so that it does not matter how a
function was written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Sweep, alike, is_elementwise, pulled, swept
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View

#: Operations that a region may have.
MOST = 32


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    if approximate == "sigmoid":
        return x * _sigmoid(1.702 * x)
    if approximate == "tanh":
        return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * _erfc(-x / math.sqrt(2))


#: Element-wise kinds in float64.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "clamp": lambda x, low, high: np.clip(x, low, high),
    "div": np.divide,
    "equal": lambda x, y: (x == y).astype(np.float64),
    "erf": _erf,
    "exp": np.exp,
    "expm1": np.expm1,
    "gelu": _gelu,
    "greater": lambda x, y: (x > y).astype(np.float64),
    "log": np.log,
    "log1p": np.log1p,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "not": lambda x: 1 - x,
    "reciprocal": lambda x: 1 / x,
    "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select": lambda mask, x, y: np.where(mask != 0, x, y),
    "sigmoid": _sigmoid,
    "sign": np.sign,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
}


@dataclass(frozen=True)
class Activation:
    """A kind that regions may become."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


#: The simplest first.
TABLE = (
    Activation("neg"),
    Activation("abs"),
    Activation("square"),
    Activation("relu"),
    Activation("sigmoid"),
    Activation("silu"),
    Activation("gelu", {"approximate": "none"}),
    Activation("gelu", {"approximate": "tanh"}),
    Activation("gelu", {"approximate": "sigmoid"}),
    Activation("tanh"),
    Activation("softplus"),
)

#: Where the functions are compared: the usual range, points in between, and both ends.
POINTS = np.concatenate(
    [
        np.linspace(-8, 8, 33),
        np.random.default_rng(0).normal(size=40) * 3,
        np.array([1e-3, -1e-3, 20.0, -20.0, 60.0, -60.0, 85.0, -85.0, 1e4, -1e4]),
    ]
)
#: Beyond it the exponential of float32 overflows: a region may give NaN there where the function does not.
OVERFLOWS = 86.0
with np.errstate(all="ignore"):
    _EXPECTED = [FUNCTIONS[a.name](POINTS, **a.attributes) for a in TABLE]


@graph_pass
def activations(graph: TensorGraph) -> TensorGraph:
    """Regions of one number to one number become relu, sigmoid, tanh, silu, gelu, softplus, square, abs or neg."""
    return swept(graph, _activation)


def _activation(sweep: Sweep, operation: Operation) -> View | None:
    if not is_elementwise(operation) or operation.name == "equal":
        return None
    best: View | None = None
    for region in regions(sweep, operation):
        if len(region.nodes) < 3 and operation.name not in ("mul", "maximum"):
            continue
        found = recognised(region)
        if found is not None and found.name == operation.name and len(region.operations) == 1:
            continue
        if found is not None and sweep.hidden([o for o in region.operations if o is not operation]):
            # The last is the largest.
            best = region.leaf
            kind = found
    return None if best is None else sweep.add(kind.name, best, **kind.attributes)


# -- regions ----------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """A view in a region: known, seen from outside, or computed from other nodes."""

    view: View
    operation: Operation | None = None
    operands: list[int] = field(default_factory=list)


@dataclass
class Region:
    """Everything between an operation, which is node 0, and the only view from which it follows."""

    nodes: list[Node]
    leaf: View
    operations: list[Operation]


def regions(sweep: Sweep, last: Operation) -> Iterator[Region]:
    """Regions that end with an operation, the smallest first."""
    order = {value: number for number, value in enumerate(sweep.made)}
    nodes = [Node(View.of(last.output), last)]
    nodes[0].operands = [_node(nodes, view) for view in last.inputs]
    while len(nodes) <= MOST:
        frontier = [node for node in nodes if node.operation is None and node.view.scalar is None]
        if not frontier:
            return
        if len(frontier) == 1:
            operations = list({id(o): o for node in nodes if (o := node.operation)}.values())
            yield Region(nodes, frontier[0].view, operations)
        age = lambda node: max(order.get(base, -1) for base in node.view.bases)
        latest = max(frontier, key=age)
        operation = sweep.producer(latest.view, *FUNCTIONS)
        if operation is None:
            # Nothing that is older follows from it.
            return
        latest.operation = operation
        latest.operands = [_node(nodes, pulled(operand, latest.view)) for operand in operation.inputs]


def _node(nodes: list[Node], view: View) -> int:
    for number, node in enumerate(nodes):
        if alike(node.view, view):
            return number
    nodes.append(Node(view))
    return len(nodes) - 1


def recognised(region: Region) -> Activation | None:
    """The activation that a region computes."""
    values: dict[int, Any] = {}

    def value(number: int) -> Any:
        if number not in values:
            node = region.nodes[number]
            if node.operation is not None:
                attributes = node.operation.attributes
                values[number] = FUNCTIONS[node.operation.name](*map(value, node.operands), **attributes)
            else:
                values[number] = POINTS if node.view.scalar is None else np.full(POINTS.shape, node.view.scalar)
        return values[number]

    with np.errstate(all="ignore"):
        found = value(0)
        compared = ~(np.isnan(found) & (np.abs(POINTS) > OVERFLOWS))
        for activation, expected in zip(TABLE, _EXPECTED, strict=True):
            error = np.abs(found - expected)[compared]
            if (error <= 2e-6 * np.abs(expected[compared]) + 1e-8).all():
                return activation
    return None
