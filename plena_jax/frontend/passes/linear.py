"""Products with a bias."""

from __future__ import annotations

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Sweep, columns, seen_in, swept
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View


@graph_pass
def linear(graph: TensorGraph) -> TensorGraph:
    """A product plus numbers that depend on the column (or the row) only becomes a product with a bias."""
    return swept(graph, _biased)


def _biased(sweep: Sweep, operation: Operation) -> View | None:
    if operation.name != "add":
        return None
    for product, bias in (operation.inputs, operation.inputs[::-1]):
        dot = sweep.producer(product, "dot")
        if dot is None or len(dot.inputs) != 2 or not sweep.hidden([dot]):
            continue
        x, y = dot.inputs
        _, m, n = dot.output.shape
        found = columns(bias, product.index % n, n, dot.output.size // n)
        if found is not None:
            result = sweep.add("dot", x, y, found, shape=dot.output.shape, rows=dot.attributes["rows"])
            return seen_in(result, product.index)
        # W @ x + b[:, None] is x.T @ W.T + b, transposed.
        found = columns(bias, product.index // n % m, m, dot.output.size // m)
        if found is not None:
            result = sweep.add("dot", y, x, found, shape=(x.shape[0], n, m), rows=(n,))
            turned = result.transpose((0, 2, 1)).index.reshape(-1)
            return seen_in(result, turned[product.index])
    return None
