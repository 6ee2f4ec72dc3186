"""A graph: operators on tensors, in the order in which they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from plena_jax.config import MachineConfig
from plena_jax.lower.operators import Operator, find
from plena_jax.lower.tensors import SCALARS, OperatorError, Place, Role, Shape, Tensor


@dataclass(frozen=True, eq=False)
class Node:
    """One use of an operator.

    Attributes:
        name: unique in its graph; the section of its instructions.
        operator: what is computed.
        inputs: tensors in the order of the operator's signature; None where one is left out.
        attributes: all keyword arguments.
        output: the result.
    """

    name: str
    operator: Operator
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]
    output: Tensor


class Graph:
    """Operators on matrices, in order.

    >>> from plena_jax import MachineConfig
    >>> g = Graph(MachineConfig())
    >>> x = g.input("x", (4, 128))
    >>> w = g.input("w", (128, 64), place="hbm", role="weights")
    >>> y = g.output(g.softmax(g.linear(x, w)))
    >>> y.shape
    (4, 64)

    Every operator of the registry is a method. Names are made unique; a tensor is written once, by one operator.

    Attributes:
        config: the machine.
        nodes, inputs, outputs: in order.
        names: of the outputs.
    """

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.nodes: list[Node] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.names: list[str] = []
        self._names: set[str] = set()
        self._tensors: set[Tensor] = set()
        #: How many numbers of a name have been tried.
        self._numbers: Counter[str] = Counter()
        self._scopes: list[str] = []

    @classmethod
    def single(
        cls, name: str, shapes: Mapping[str, Shape], attributes: Mapping[str, Any], config: MachineConfig
    ) -> Graph:
        """One operator on inputs of these shapes, by parameter, each where it usually is; its result is the output.

        Raises:
            OperatorError: see :meth:`input` and :meth:`apply`.
        """
        g, operator = cls(config), find(name)
        tensors = {
            parameter: g.input(parameter, shape, *operator.usual(parameter)) for parameter, shape in shapes.items()
        }
        g.output(g.apply(name, **tensors, **attributes))
        return g

    def input(self, name: str, shape: Shape, place: Place = "vram", role: Role | None = None) -> Tensor:
        """A tensor that is there before the program starts.

        Args:
            name: unique.
            shape: rows and columns.
            place: the memory.
            role: of one in HBM, by default "activations".

        Raises:
            OperatorError: a name that is taken, a shape that is not two positive sizes, a role outside HBM, several
                rows in FP SRAM or INT SRAM.
        """
        if name in self._names:
            raise OperatorError(f"input {name}: the graph has a tensor of that name")
        if (
            not isinstance(shape, tuple)
            or len(shape) != 2
            or any(not isinstance(size, int) or size < 1 for size in shape)
        ):
            raise OperatorError(f"input {name}: shape {shape}; expected two positive sizes")
        if place in SCALARS and shape[0] != 1:
            raise OperatorError(f"input {name}: {shape[0]} rows in {place}; expected one")
        if role is not None and place != "hbm":
            raise OperatorError(f"input {name}: role {role} in {place}; only tensors in hbm have one")
        self._names.add(name)
        tensor = Tensor(name, (shape[0], shape[1]), place, role or ("activations" if place == "hbm" else None))
        self.inputs.append(tensor)
        self._tensors.add(tensor)
        return tensor

    def output(self, tensor: Tensor) -> Tensor:
        """Keep a tensor until the end, and return it.

        Raises:
            OperatorError: it is not of this graph.
        """
        self._own("output", tensor)
        if tensor not in self.outputs:
            self.outputs.append(tensor)
            self.names.append(tensor.name)
        return tensor

    def rewritten(self, nodes: list[Node], outputs: list[Tensor]) -> Graph:
        """A graph of other nodes that gives outputs of the same names."""
        graph = Graph(self.config)
        graph.nodes, graph.inputs, graph.outputs, graph.names = nodes, list(self.inputs), outputs, list(self.names)
        graph._names, graph._numbers = set(self._names), Counter(self._numbers)
        graph._tensors = {*self.inputs, *(node.output for node in nodes)}
        return graph

    def apply(self, name: str, *arguments: Any, **keywords: Any) -> Tensor:
        """Use the operator ``name``.

        Raises:
            OperatorError: see :meth:`Operator.bind`, and what the operator itself expects.
        """
        operator = find(name)
        tensors, attributes = operator.bind(arguments, keywords)
        for parameter, tensor in zip(operator.tensors, tensors, strict=True):
            if tensor is not None:
                self._own(name, tensor)
                self._check_view(f"{name}: {parameter}", tensor)
        if operator.expand is not None:
            with self.scope(name):
                return operator.expand(self, *tensors, **attributes)
        shape = operator.shape(self.config, *tensors, **attributes)
        place, role = operator.result(self.config, *tensors, **attributes)
        unique = self.unique("/".join([*self._scopes, name]))
        node = Node(unique, operator, tuple(tensors), attributes, Tensor(unique, shape, place, role))
        self.nodes.append(node)
        self._tensors.add(node.output)
        return node.output

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside begin with ``name`` and a slash."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            find(name)
        except OperatorError as error:
            raise AttributeError(str(error)) from None
        return partial(self.apply, name)

    def _own(self, name: str, tensor: Tensor) -> None:
        if tensor.root not in self._tensors:
            raise OperatorError(f"{name}: tensor {tensor.name} is not of this graph")

    def _check_view(self, what: str, tensor: Tensor) -> None:
        """Columns of a view are whole blocks: what is behind them must be zero."""
        first, stop, lanes = tensor.start[1], tensor.start[1] + tensor.shape[1], self.config.mlen
        if tensor.place not in SCALARS and (first % lanes or (stop % lanes and stop != tensor.root.shape[1])):
            raise OperatorError(
                f"{what} ({tensor.name}): expected columns from a multiple of {lanes} to one or to the end, got "
                f"{first} to {stop}"
            )

    def unique(self, name: str) -> str:
        """A name that no tensor has yet, and that none gets later."""
        unique = name
        while unique in self._names:
            self._numbers[name] += 1
            unique = f"{name}_{self._numbers[name]}"
        self._names.add(unique)
        return unique
