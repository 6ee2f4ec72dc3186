"""Products with a bias."""

from __future__ import annotations

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Sweep, columns, seen_in, swept
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View


@graph_pass
def linear(graph: TensorGraph) -> TensorGraph:
    """A product plus numbers that depend on the column (or the row) only becomes a product with a bias."""
    return swept(graph, _biased, _biased_later)


def _biased(sweep: Sweep, operation: Operation) -> View | None:
    if operation.name != "add":
        return None
    for product, bias in (operation.inputs, operation.inputs[::-1]):
        dot = sweep.producer(product, "dot")
        if dot is not None and sweep.hidden([dot]):
            found = _with_bias(sweep, dot, product, bias)
            if found is not None:
                return found
    return None


def _biased_later(sweep: Sweep, operation: Operation) -> View | None:
    """``(x + product) + bias`` becomes ``x + (product + bias)``: the bias of a layer with a residual."""
    if operation.name != "add":
        return None
    for total, bias in (operation.inputs, operation.inputs[::-1]):
        inner = sweep.producer(total, "add")
        if inner is None or total.index.min(initial=0) < 0:
            continue
        seen = lambda view, at=total.index: view.moved(lambda index: index.reshape(-1)[at])
        for product, x in (inner.inputs, inner.inputs[::-1]):
            dot = sweep.producer(product, "dot")
            if dot is None or not sweep.hidden([dot, inner]):
                continue
            found = _with_bias(sweep, dot, seen(product), bias)
            if found is not None:
                return sweep.add("add", seen(x), found, shape=total.shape)
    return None


def _with_bias(sweep: Sweep, dot: Operation, product: View, bias: View) -> View | None:
    """A view of a product plus a view of its shape, as a view of a product with a bias."""
    if len(dot.inputs) != 2:
        return None
    x, y = dot.inputs
    _, m, n = dot.output.shape
    found = columns(bias, product.index % n, n, dot.output.size // n)
    if found is not None:
        result = sweep.add("dot", x, y, found, shape=dot.output.shape, rows=dot.attributes["rows"])
        return seen_in(result, product.index)
    # W @ x + b[:, None] is x.T @ W.T + b, transposed.
    found = columns(bias, product.index // n % m, m, dot.output.size // m)
    if found is None:
        return None
    result = sweep.add("dot", y, x, found, shape=(x.shape[0], n, m), rows=(n,))
    turned = result.transpose((0, 2, 1)).index.reshape(-1)
    return seen_in(result, turned[product.index])
