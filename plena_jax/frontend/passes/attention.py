from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.passes.registry import graph_pass


@graph_pass
def attention(graph: TensorGraph) -> TensorGraph:
    """Nothing yet."""
    return graph
