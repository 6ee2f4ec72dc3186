"""From tensor graphs to operators on matrices: where each value lies, and in which order of elements.

A value of any rank lies in a matrix. Its elements may be in any order there: an operation takes the order in which its
operands come for free, so that most movements cost nothing. What an operation needs in another order is moved by
``rearrange``; what comes from inputs and constants only is put in order when it is staged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import Problem
from plena_jax.frontend.declare import declares
from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.views import ZERO, Positions, Value, View, merged
from plena_jax.lower.graph import Graph
from plena_jax.lower.rearrangement import Source
from plena_jax.lower.tensors import OperatorError, Place, Role, Shape, Tensor

#: A finite number that stands for infinity: no product with zero is NaN, and vector SRAM holds it.
LARGE = 3.3e38


@dataclass(frozen=True, eq=False)
class Held:
    """Where a value lies.

    Attributes:
        tensor: the matrix.
        order: [rows, columns] of the matrix: which element of the flattened value is there; None: one after the other.
    """

    tensor: Tensor
    order: Positions | None = None

    def at(self, size: int) -> Positions | None:
        """The position in the flattened matrix of each element of the value; None: its own."""
        if self.order is None:
            return None
        found = np.empty(size, np.int32)
        found[self.order.reshape(-1)] = np.arange(size, dtype=np.int32)
        return found


@dataclass(frozen=True, eq=False)
class Staged:
    """An input of the machine's graph, made of inputs and constants of the function.

    Attributes:
        tensor: the input.
        view: its elements, [rows, columns].
    """

    tensor: Tensor
    view: View


#: A rule: the lowering and an operation; where the result is.
Rule = Callable[["Lowering", Operation], Held]
RULES: dict[str, Rule] = {}


def lowers(*names: str) -> Callable[[Rule], Rule]:
    """Declare how kinds of operations are lowered."""
    return declares(RULES, *names)


Vectors = Literal["hbm", "vram"]


@dataclass
class Lowering:
    """Writes the machine's graph.

    Attributes:
        source: the tensor graph.
        g: the machine's graph.
        vectors: where inputs of the vector unit are when the program starts.
        held: where values are.
        staged: inputs of the machine's graph.
        problems: operations that the machine's operators do not take.
        sections: for each operator of the machine's graph, the operation and its place in the user's source.
    """

    source: TensorGraph
    g: Graph
    vectors: Vectors = "hbm"
    held: dict[Value, Held] = field(default_factory=dict)
    staged: dict[str, Staged] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    sections: dict[str, Operation] = field(default_factory=dict)
    _moved: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self.g.config

    def run(self) -> None:
        """All operations, then the outputs."""
        import_module("plena_jax.frontend.rules")
        for operation in self.source.operations:
            before = len(self.g.nodes)
            try:
                self.held[operation.output] = RULES[operation.name](self, operation)
            except OperatorError as error:
                shapes = ", ".join(str(list(view.shape)) for view in operation.inputs)
                self.problems.append(Problem(operation.name, str(error), shapes, operation.source))
                self.held[operation.output] = self.stage(self._zeros(operation.output), "vram")
            self.sections.update((node.name, operation) for node in self.g.nodes[before:])
        for value in dict.fromkeys(base for view in self.source.outputs for base in view.bases):
            if value.constant is None:
                self.g.output(self.place(value).tensor)

    def _zeros(self, value: Value) -> View:
        rows = int(np.prod(value.shape[:-1], dtype=int)) if value.shape else 1
        known = Value(value.name, (rows, value.size // rows), value.dtype, np.zeros((rows, value.size // rows)))
        return View.of(known)

    # -- values -------------------------------------------------------------------------------------------------------

    def place(self, value: Value) -> Held:
        """Where a value is; inputs and constants are fetched to vector SRAM as they are."""
        if value not in self.held:
            self.held[value] = Held(self.fetched(View.of(value).reshape(*canonical(value.shape))))
        return self.held[value]

    def is_given(self, view: View) -> bool:
        """Whether all elements are of inputs and constants."""
        return all(base.constant is not None or base in self.source.inputs for base in view.bases)

    def stage(self, view: View, place: Place, role: Role | None = None) -> Held:
        """An input of the machine's graph for elements [rows, columns] of inputs and constants."""
        key = "staged", *_key(view), place, role
        if key not in self._moved:
            name = self._name(view)
            tensor = self.g.input(name, (view.shape[0], view.shape[1]), place, role)
            self.staged[name] = Staged(tensor, view)
            self._moved[key] = tensor
        return Held(self._moved[key])

    def _name(self, view: View) -> str:
        name = "_".join(dict.fromkeys(base.name.split(".")[0] for base in view.bases[:3]))
        taken = sum(other.rpartition("_")[0] == name or other == name for other in self.staged)
        return f"{name}_{taken}"

    def fetched(self, view: View) -> Tensor:
        """Elements [rows, columns] of inputs and constants in vector SRAM. Constants are there from the start."""
        if self.vectors == "vram" or view.constant is not None:
            return self.stage(view, "vram").tensor
        key = "fetched", *_key(view)
        if key not in self._moved:
            self._moved[key] = self.g.load(self.stage(view, "hbm", "activations").tensor)
        return self._moved[key]

    # -- operands -----------------------------------------------------------------------------------------------------

    def is_free(self, view: View) -> bool:
        """Whether elements [rows, columns] are in vector SRAM, or come there, in that order."""
        if self.is_given(view):
            return True
        return len(view.bases) == 1 and self._block(view) is not None

    def vram(self, view: View) -> Tensor:
        """Elements [rows, columns] in vector SRAM."""
        if self.is_given(view):
            return self.fetched(view)
        if len(view.bases) == 1:
            found = self._block(view)
            if found is not None:
                return found
        key = "moved", *_key(view)
        if key not in self._moved:
            self._moved[key] = self._rearranged(view)
        return self._moved[key]

    def either(self, view: View) -> Tensor:
        """Elements [rows, columns] in vector SRAM or, if they come from there, in HBM."""
        if self.vectors == "hbm" and self.is_given(view) and view.constant is None:
            return self.stage(view, "hbm", "activations").tensor
        return self.vram(view)

    def _block(self, view: View) -> Tensor | None:
        """The tensor, or a view of it, if elements of one value are a rectangle of its matrix."""
        held = self.place(view.base)
        (rows, columns), index = held.tensor.shape, self._in_matrix(view, held)
        if index is None or not view.size:
            return None
        height, width = index.shape
        first = int(index[0, 0])
        if first < 0:
            return None
        row, column = divmod(first, columns)
        if column % self.config.mlen or (column + width) not in (columns, *range(0, columns, self.config.mlen)):
            return None
        if row + height > rows or column + width > columns:
            return None
        expected = first + np.arange(height, dtype=np.int32)[:, None] * columns + np.arange(width, dtype=np.int32)
        if not np.array_equal(index, expected):
            return None
        if (height, width) == (rows, columns):
            return held.tensor
        return held.tensor.rows(row, row + height).columns(column, column + width)

    def _in_matrix(self, view: View, held: Held) -> Positions:
        """Positions in the flattened matrix of the view's only base."""
        at = held.at(view.base.size)
        return view.index if at is None else np.where(view.index >= 0, at[np.maximum(view.index, 0)], ZERO)

    def _rearranged(self, view: View) -> Tensor:
        """Movements: of each base into what those before have made."""
        starts = np.cumsum([0, *(base.size for base in view.bases)])
        result: Tensor | None = None
        for base, start in zip(view.bases, starts, strict=False):
            own = (view.index >= start) & (view.index < start + base.size)
            part = View((base,), np.where(own, view.index - start, ZERO).astype(np.int32), view.dtype)
            if len(view.bases) > 1 and self.is_given(part):
                # In the right places from the start.
                piece = self.fetched(part)
                result = piece if result is None else self.g.add(result, piece)
                continue
            held = self.place(base)
            source = Source(self._in_matrix(part, held))
            result = (
                self.g.rearrange(held.tensor, source=source)
                if result is None
                else self.g.rearrange(held.tensor, result, source=source)
            )
        assert result is not None
        return result

    def matrix_unit(self, view: View, role: Role = "weights") -> Tensor:
        """Elements [rows, columns] in HBM for the matrix unit: staged, or stored as "kv" if they are computed."""
        if self.is_given(view):
            return self.stage(view, "hbm", role).tensor
        key = "stored", *_key(view)
        if key not in self._moved:
            cached = self._cached(view)
            self._moved[key] = self.g.store(self.vram(view), role="kv") if cached is None else cached
        return self._moved[key]

    def _cached(self, view: View) -> Tensor | None:
        """Rows of an input of which some, one behind the other, are replaced by computed ones: updated in place."""
        starts = np.cumsum([0, *(base.size for base in view.bases)])
        given = np.zeros(view.shape, bool)
        for base, start in zip(view.bases, starts, strict=False):
            if base.constant is not None or base in self.source.inputs:
                given |= (view.index >= start) & (view.index < start + base.size)
        fresh = np.flatnonzero(~given.all(axis=1) & (view.index[:, 0] >= 0))
        if not given.any() or not len(fresh) or given[fresh].any() or len(fresh) != fresh[-1] - fresh[0] + 1:
            return None
        old = merged(view.bases, np.where(given, view.index, ZERO), view.dtype)
        new = merged(view.bases, view.index[fresh[0] : fresh[-1] + 1], view.dtype)
        return self.g.update(self.stage(old, "hbm", "kv").tensor, self.vram(new), row=int(fresh[0]))

    # -- results ------------------------------------------------------------------------------------------------------

    def orders(self, operation: Operation) -> list[Positions]:
        """Orders of elements for the result of an element-wise operation: as its operands come, or one by one."""
        size, found = operation.output.size, []
        for view in operation.inputs:
            order = self.own_order(view)
            if order is not None:
                found.append(order)
        found.append(np.arange(size, dtype=np.int32).reshape(canonical(operation.output.shape)))
        return found

    def own_order(self, view: View) -> Positions | None:
        """[rows, columns] of the matrix that holds all elements of a view, once each: which of them is there."""
        if len(view.bases) != 1 or self.is_given(view) or not view.is_permutation:
            return None
        held, one_by_one = self.place(view.base), np.arange(view.size, dtype=np.int32)
        back = np.empty(view.size, np.int32)
        back[view.index.reshape(-1)] = one_by_one
        return back[one_by_one.reshape(held.tensor.shape) if held.order is None else held.order]

    def in_order(self, view: View, order: Positions) -> View:
        """The elements of an operand in the order of a result."""
        return View(view.bases, view.index.reshape(-1)[order], view.dtype)

    def holding(self, tensor: Tensor, order: Positions) -> Held:
        """A result in an order."""
        plain = np.array_equal(order.reshape(-1), np.arange(order.size))
        return Held(tensor, None if plain else order)


def canonical(shape: Sequence[int]) -> Shape:
    """The matrix of an array: columns are the last axis."""
    columns = shape[-1] if shape else 1
    return int(np.prod(shape[:-1], dtype=int)) if shape else 1, columns


def _key(view: View) -> tuple[Any, ...]:
    index = view.index
    plain = view.is_whole
    return view.bases, view.shape, plain or np.ascontiguousarray(index).tobytes()


def without_infinity(view: View) -> View:
    """Constants whose infinities are large numbers."""
    known = view.constant
    if known is None or not np.isinf(known).any():
        return view
    return View.of(Value("constant", view.shape, view.dtype, np.clip(known, -LARGE, LARGE)))
