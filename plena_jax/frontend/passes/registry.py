"""The passes, by name."""

from __future__ import annotations

from collections.abc import Callable

from plena_jax.frontend.graph import TensorGraph

#: A graph to an equal one.
Pass = Callable[[TensorGraph], TensorGraph]
PASSES: dict[str, Pass] = {}


def graph_pass(function: Pass) -> Pass:
    """Declare a pass under the name of its function; the docstring's first line says what it does."""
    assert function.__name__ not in PASSES
    PASSES[function.__name__] = function
    return function
