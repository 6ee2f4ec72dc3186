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
from plena_jax.lower.operators import Operator, find, operators
from plena_jax.lower.tensors import OperatorError

#: Names and values, hashable.
Items = tuple[tuple[str, Any], ...]


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
    return _lowered(name, *_split(find(name), arrays, attributes)[:2], config or MachineConfig())


def _split(operator: Operator, arrays: Any, keywords: Any) -> tuple[Items, Items, dict[str, Any]]:
    """Shapes by tensor parameter, attributes by name, and the arrays themselves."""
    bound = operator.bound(arrays, keywords).arguments
    given = {name: bound.pop(name) for name in operator.tensors if bound.get(name) is not None}
    for name, value in given.items():
        if len(jnp.shape(value)) != 2:
            raise OperatorError(f"{operator.name}: {name}: expected a matrix, got shape {jnp.shape(value)}")
    attributes = {name: value for name, value in bound.items() if name not in operator.tensors}
    return tuple((n, jnp.shape(x)) for n, x in given.items()), tuple(sorted(attributes.items())), given


@lru_cache(maxsize=256)
def _lowered(name: str, shapes: Items, attributes: Items, config: MachineConfig) -> Lowered:
    return lower(Graph.single(name, dict(shapes), dict(attributes), config))


def __getattr__(name: str) -> Callable[..., jax.Array]:
    """The operator of a name as a function."""
    try:
        operator = find(name)
    except OperatorError as error:
        raise AttributeError(str(error)) from None

    def call(*arrays: Any, config: MachineConfig | None = None, **attributes: Any) -> jax.Array:
        shapes, numbers, given = _split(operator, arrays, attributes)
        (result,) = _lowered(name, shapes, numbers, config or MachineConfig())(**given).values()
        return result

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{operator.doc}\n\nSignature: {operator.usage}; ``config`` is the machine."
    return call


def __dir__() -> list[str]:
    return [*operators(), "lowered", "rope_tables"]
