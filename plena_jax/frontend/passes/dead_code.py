"""Results that nobody needs."""

from __future__ import annotations

from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.passes.registry import graph_pass


@graph_pass
def dead_code(graph: TensorGraph) -> TensorGraph:
    """Operations whose results nobody needs go."""
    return graph.without_dead_code()
