"""Passes over tensor graphs: patterns become operations that the machine has better programs for.

Each changes no result beyond rounding, and each may be turned off.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import import_module

from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.passes.registry import PASSES

#: In the order in which they run: each makes what later ones look for.
ORDER = ("simplify", "activations", "norms", "softmax", "rope", "attention", "linear", "dead_code")

for _name in ORDER:
    import_module(f"{__name__}.{_name}")


def passes() -> dict[str, str]:
    """What each pass does, in the order in which they run."""
    return {name: (PASSES[name].__doc__ or "").strip().splitlines()[0] for name in ORDER}


def fused(graph: TensorGraph, disabled: Collection[str] = ()) -> TensorGraph:
    """The graph after all passes but those in ``disabled``.

    Raises:
        ValueError: there is no pass of a name in ``disabled``.
    """
    unknown = sorted(set(disabled) - set(ORDER))
    if unknown:
        raise ValueError(f"no pass is called {', '.join(unknown)}; there are {', '.join(ORDER)}")
    for name in ORDER:
        if name not in disabled:
            graph = PASSES[name](graph)
    return graph
