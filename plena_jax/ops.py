"""Operators as functions of arrays: each call makes a program of one operator and runs it on the machine.

For exploration, and for code that is written in terms of the machine's operators:

>>> import numpy as np
>>> from plena_jax import ops
>>> y = ops.softmax(np.arange(8, dtype=np.float32).reshape(2, 4))
>>> print(np.asarray(y)[0].round(2))
[0.03 0.09 0.24 0.64]

Arrays are float32 matrices; vectors have one row. Programs are kept: a call with the shapes, attributes and machine of
an earlier one makes none. Calls can be traced and differentiated. ``dir(ops)`` and ``plena ops`` list all operators.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.graph import Graph
from plena_jax.lower.kernels.rope import rope_tables as rope_tables
from plena_jax.lower.lowered import Lowered, lower
from plena_jax.lower.operators import OPERATORS, Operator, find
from plena_jax.lower.tensors import OperatorError, Shape


def lowered(name: str, *arrays: Any, config: MachineConfig | None = None, **attributes: Any) -> Lowered:
    """The program that a call of an operator runs.

    Args:
        name: of the operator.
        arrays: or anything with a shape, None for what is left out.
        config: the machine, by default the published one.
        attributes: of the operator.

    Raises:
        OperatorError: arguments that the operator does not take.
    """
    operator = find(name)
    shapes, attributes = _bound(operator, arrays, attributes)
    return _lowered(name, tuple(shapes.items()), tuple(sorted(attributes.items())), config or MachineConfig())


def _bound(operator: Operator, arrays: Any, keywords: Any) -> tuple[dict[str, Shape], dict[str, Any]]:
    try:
        bound = operator.signature.bind(*arrays, **keywords)
    except TypeError as error:
        raise OperatorError(f"{operator.name}: {error}; its signature is {operator.usage}") from None
    shapes: dict[str, Shape] = {}
    for parameter in operator.tensors:
        value = bound.arguments.pop(parameter, None)
        if value is None:
            continue
        if len(jnp.shape(value)) != 2:
            raise OperatorError(f"{operator.name}: {parameter}: expected a matrix, got shape {jnp.shape(value)}")
        rows, columns = jnp.shape(value)
        shapes[parameter] = rows, columns
    return shapes, dict(bound.arguments)


@lru_cache(maxsize=256)
def _lowered(name: str, shapes: Any, attributes: Any, config: MachineConfig) -> Lowered:
    g, operator = Graph(config), find(name)
    tensors = {parameter: g.input(parameter, shape, *operator.usual(parameter)) for parameter, shape in shapes}
    g.output(g.apply(name, **tensors, **dict(attributes)))
    return lower(g)


def _call(name: str, *arrays: Any, config: MachineConfig | None = None, **keywords: Any) -> jax.Array:
    program = lowered(name, *arrays, config=config, **keywords)
    bound = find(name).signature.bind(*arrays, **keywords)
    inputs = {tensor.name: bound.arguments[tensor.name] for tensor in program.graph.inputs}
    (result,) = program(**inputs).values()
    return result


def __getattr__(name: str) -> Callable[..., jax.Array]:
    """The operator of a name as a function."""
    try:
        operator = find(name)
    except OperatorError as error:
        raise AttributeError(str(error)) from None

    def call(*arrays: Any, config: MachineConfig | None = None, **attributes: Any) -> jax.Array:
        return _call(name, *arrays, config=config, **attributes)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{operator.doc}\n\nSignature: {operator.usage}; ``config`` is the machine."
    return call


def __dir__() -> list[str]:
    find("linear")
    return [*OPERATORS, "lowered", "rope_tables"]
