"""Random functions of arrays, as lists of steps that JAX and PyTorch both can take."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Shape = tuple[int, ...]
SIZES = (1, 2, 3, 5, 8, 17)
UNARY = ("tanh", "sigmoid", "relu", "abs", "negative", "square")
BINARY = ("add", "subtract", "multiply", "maximum", "minimum", "greater")


@dataclass(frozen=True)
class Step:
    """One step: its name, the numbers of its operands, and what else it takes."""

    name: str
    operands: tuple[int, ...]
    extra: Any = None


@dataclass
class RandomFunction:
    """Arguments first, then the results of steps; the last ones are returned."""

    shapes: list[Shape]
    arguments: int
    steps: list[Step] = field(default_factory=list)

    def __call__(self, xp: Any, *arguments: Any) -> list[Any]:
        """With the operations of ``xp``."""
        values = list(arguments)
        for step in self.steps:
            values.append(getattr(xp, step.name)(*(values[n] for n in step.operands), *(step.extra or ())))
        return values[-3:]


class Numpyish:
    """Steps for a module with the functions of NumPy."""

    def __init__(self, jnp: Any, softmax: Any) -> None:
        self.jnp, self.softmax_ = jnp, softmax

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jnp, name)

    def sigmoid(self, x: Any) -> Any:
        return 1 / (1 + self.jnp.exp(-x))

    def relu(self, x: Any) -> Any:
        return self.jnp.maximum(x, 0.0)

    def greater(self, x: Any, y: Any) -> Any:
        return self.jnp.where(x > y, x, 0.5 * y)

    def softmax(self, x: Any, axis: int) -> Any:
        return self.softmax_(x, axis)

    def total(self, x: Any, axis: int) -> Any:
        return x.sum(axis)

    def mean(self, x: Any, axis: int) -> Any:
        return x.mean(axis, keepdims=True)

    def most(self, x: Any, axis: int) -> Any:
        return x.max(axis)

    def reshaped(self, x: Any, *shape: int) -> Any:
        return x.reshape(shape)

    def permuted(self, x: Any, *axes: int) -> Any:
        return self.jnp.transpose(x, axes)

    def sliced(self, x: Any, axis: int, start: int, stop: int) -> Any:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def joined(self, x: Any, y: Any, axis: int) -> Any:
        return self.jnp.concatenate([x, y], axis)


class Torchish:
    """The same steps for PyTorch."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.torch, name)

    def greater(self, x: Any, y: Any) -> Any:
        return self.torch.where(x > y, x, 0.5 * y)

    def softmax(self, x: Any, axis: int) -> Any:
        return self.torch.softmax(x, axis)

    def total(self, x: Any, axis: int) -> Any:
        return x.sum(axis)

    def mean(self, x: Any, axis: int) -> Any:
        return x.mean(axis, keepdim=True)

    def most(self, x: Any, axis: int) -> Any:
        return x.amax(axis)

    def reshaped(self, x: Any, *shape: int) -> Any:
        return x.reshape(shape)

    def permuted(self, x: Any, *axes: int) -> Any:
        return x.permute(axes)

    def sliced(self, x: Any, axis: int, start: int, stop: int) -> Any:
        return x[(slice(None),) * axis + (slice(start, stop),)]

    def joined(self, x: Any, y: Any, axis: int) -> Any:
        return self.torch.cat([x, y], axis)


def random_function(seed: int, steps: int = 12) -> RandomFunction:
    """A function of two to four arrays of rank one to four."""
    random = np.random.default_rng(seed)
    pick = lambda items: items[int(random.integers(len(items)))]
    count = int(random.integers(2, 5))
    shapes: list[Shape] = [tuple(pick(SIZES) for _ in range(int(random.integers(1, 4)))) for _ in range(count)]
    made = RandomFunction(shapes, count)
    while len(made.steps) < steps:
        found = _step(random, pick, made.shapes)
        if found is not None and int(np.prod(found[1])) <= 600:
            made.steps.append(found[0])
            made.shapes.append(found[1])
    return made


def _step(random: Any, pick: Any, shapes: list[Shape]) -> tuple[Step, Shape] | None:
    number = int(random.integers(len(shapes)))
    shape = shapes[number]
    axis = int(random.integers(len(shape))) if shape else 0
    kind = pick(["unary", "binary", "binary", "matmul", "matmul", "move", "move", "reduce"])
    if kind == "unary":
        return Step(pick(UNARY), (number,)), shape
    if kind == "binary":
        others = [n for n, other in enumerate(shapes) if _broadcast(shape, other) is not None]
        other = pick(others)
        both = _broadcast(shape, shapes[other])
        assert both is not None
        return Step(pick(BINARY), (number, other)), both
    if kind == "matmul":
        others = [n for n, o in enumerate(shapes) if len(o) == 2 and len(shape) >= 2 and o[0] == shape[-1]]
        if not others:
            return None
        other = pick(others)
        return Step("matmul", (number, other)), (*shape[:-1], shapes[other][1])
    if not shape:
        return None
    return _move(random, pick, shapes, number, axis) if kind == "move" else _reduction(pick, shape, number, axis)


def _broadcast(a: Shape, b: Shape) -> Shape | None:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def _reduction(pick: Any, shape: Shape, number: int, axis: int) -> tuple[Step, Shape]:
    name = pick(["total", "mean", "most", "softmax"])
    kept = tuple(size for n, size in enumerate(shape) if n != axis)
    results = {"softmax": shape, "mean": (*shape[:axis], 1, *shape[axis + 1 :]), "total": kept, "most": kept}
    return Step(name, (number,), (axis,)), results[name]


def _move(random: Any, pick: Any, shapes: list[Shape], number: int, axis: int) -> tuple[Step, Shape] | None:
    shape = shapes[number]
    name = pick(["reshaped", "permuted", "sliced", "joined"])
    if name == "reshaped":
        size = int(np.prod(shape))
        first = pick([n for n in range(1, size + 1) if size % n == 0])
        target = pick([(first, size // first), (size,), (1, first, size // first)])
        return Step(name, (number,), target), target
    if name == "permuted":
        axes = tuple(int(n) for n in random.permutation(len(shape)))
        return Step(name, (number,), axes), tuple(shape[n] for n in axes)
    if name == "sliced":
        start = int(random.integers(shape[axis]))
        stop = int(random.integers(start, shape[axis])) + 1
        return Step(name, (number,), (axis, start, stop)), (*shape[:axis], stop - start, *shape[axis + 1 :])
    rest = lambda s: (*s[:axis], *s[axis + 1 :])
    other = pick([n for n, o in enumerate(shapes) if len(o) == len(shape) and rest(o) == rest(shape)])
    joined = shape[axis] + shapes[other][axis]
    return Step(name, (number, other), (axis,)), (*shape[:axis], joined, *shape[axis + 1 :])


def arguments(function: RandomFunction, seed: int) -> list[np.ndarray]:
    """Normal numbers."""
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in function.shapes[: function.arguments]]
