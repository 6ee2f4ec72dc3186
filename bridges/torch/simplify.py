"""Steps as a person would write them in JAX: what torch has for its own reasons taken out.

* A product with a transposed matrix contracts the matrix where it is; the rows need not be flattened for it.
* Heads of k and v that are repeated for attention are not: attention takes them in groups.
* What nobody uses is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .graph import Graph, Reference, Step, Value, references

_VIEWS = {"aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"}
_PRODUCTS = {"aten.mm.default", "aten.addmm.default", "aten.matmul.default"}
_SAME = {
    *("aten.clone.default", "aten.contiguous.default", "aten.alias.default", "aten.detach.default"),
    *("aten.slice.Tensor", "aten.expand.default", "aten.to.dtype", "aten._to_copy.default", *_VIEWS),
}


class _Simplifier:
    """Steps by name; each is rewritten by what its operands are made of."""

    def __init__(self, graph: Graph, values: Mapping[str, tuple[Value, ...]]) -> None:
        self._graph, self._values = graph, values
        self._steps: dict[str, Step] = {}
        self._uses = Counter(
            reference.name
            for tree in (*((s.arguments, dict(s.keywords)) for s in graph.steps), graph.outputs)
            for reference in references(tree)
        )

    def graph(self) -> Graph:
        """The simpler steps."""
        for step in self._graph.steps:
            self._steps[step.name] = step if step.name in self._graph.folded else self._simpler(step)
        return _used(replace(self._graph, steps=tuple(self._steps.values())))

    def _simpler(self, step: Step) -> Step:
        if step.operation in _VIEWS:
            return self._rows_kept(step)
        if step.operation in _PRODUCTS:
            return self._contracted(step)
        if step.operation == "aten.scaled_dot_product_attention.default":
            return self._grouped(step)
        return step

    def _shape(self, reference: Reference) -> tuple[int, ...]:
        return self._values[reference.name][reference.index or 0].shape

    def _maker(self, operand: Any) -> Step | None:
        """The step that makes an operand, past those that change neither shape nor data type; None if there is none."""
        while isinstance(operand, Reference) and operand.index is None and operand.name in self._steps:
            step = self._steps[operand.name]
            before = step.arguments[0] if step.arguments else None
            if step.operation not in _SAME or not isinstance(before, Reference):
                return step
            value = self._values[before.name][before.index or 0]
            if (value.shape, value.dtype) != (step.results[0].shape, step.results[0].dtype):
                return step
            operand = before
        return None

    def _transposed(self, operand: Any) -> Any:
        """The matrix, or matrices, that an operand has with the last two dimensions exchanged; None if it has not."""
        step = self._maker(operand)
        if step is None:
            return None
        rank = len(step.results[0].shape)
        exchanged = [*range(rank - 2), rank - 1, rank - 2]
        if step.operation == "aten.permute.default":
            same = [d % rank for d in step.arguments[1]] == exchanged
        elif step.operation == "aten.transpose.int":
            same = sorted(d % rank for d in step.arguments[1:3]) == [rank - 2, rank - 1]
        else:
            same = step.operation in ("aten.t.default", "aten.mT.default") and rank >= 2
        return step.arguments[0] if same else None

    def _contracted(self, step: Step) -> Step:
        """A product, with a transposed second operand contracted where it is."""
        bias, (a, b) = step.arguments[:-2], step.arguments[-2:]
        matrix = self._transposed(b)
        if matrix is None or step.keywords or len(self._shape(a)) < 2:
            return step
        if len(self._shape(matrix)) == 2:
            if bias and self._shape(bias[0]) != self._shape(matrix)[:1]:
                return step
            return replace(step, operation="aten.linear.default", arguments=(a, matrix, *bias))
        if self._shape(a)[:-2] != self._shape(matrix)[:-2]:
            return step
        return replace(step, operation="plena.matmul_transposed.default", arguments=(a, matrix))

    def _rows_kept(self, step: Step) -> Step:
        """A product of rows that are flattened before and given back after, without either."""
        product = self._maker(step.arguments[0])
        if product is None or self._uses[product.name] != 1 or product.keywords:
            return step
        if product.operation == "aten.linear.default":
            rows, others = product.arguments[0], product.arguments[1:]
        elif product.operation in ("aten.mm.default", "aten.addmm.default"):
            rows, others = product.arguments[-2], (product.arguments[-1], *product.arguments[:-2])
            if others[1:] and self._shape(others[1]) != self._shape(others[0])[1:]:
                return step
        else:
            return step
        flattened = self._maker(rows)
        if flattened is None or flattened.operation not in _VIEWS:
            return step
        whole = flattened.arguments[0]
        shape, wanted = self._shape(whole), step.results[0].shape
        if not shape or len(self._shape(rows)) != 2 or shape[-1] != self._shape(rows)[-1] or shape[:-1] != wanted[:-1]:
            return step
        linear = product.operation == "aten.linear.default"
        name = "aten.linear.default" if linear else "plena.affine.default"
        return replace(product, name=step.name, operation=name, arguments=(whole, *others), results=step.results)

    def _grouped(self, step: Step) -> Step:
        """Attention whose heads of k and v are repeated, with the heads as they are."""
        if step.keywords.get("enable_gqa"):
            return step
        k, v = (self._unrepeated(operand) for operand in step.arguments[1:3])
        if k is None or v is None or self._shape(k)[-3] != self._shape(v)[-3]:
            return step
        arguments = (step.arguments[0], k, v, *step.arguments[3:])
        return replace(step, arguments=arguments, keywords={**step.keywords, "enable_gqa": True})

    def _unrepeated(self, operand: Any) -> Any:
        """[b, heads, s, d] of [b, heads group, s, d], if that is made by expanding a dimension behind the heads."""
        merged = self._maker(operand)
        if merged is None or merged.operation not in _VIEWS:
            return None
        expanded = self._maker(merged.arguments[0])
        if expanded is None or expanded.operation != "aten.expand.default":
            return None
        inserted = self._maker(expanded.arguments[0])
        if inserted is None or inserted.operation != "aten.unsqueeze.default":
            return None
        heads = inserted.arguments[0]
        batch, *rest = self._shape(heads)
        if len(rest) != 3 or inserted.results[0].shape != (batch, rest[0], 1, *rest[1:]):
            return None
        group = expanded.results[0].shape[2]
        if expanded.results[0].shape != (batch, rest[0], group, *rest[1:]):
            return None
        return heads if merged.results[0].shape == (batch, rest[0] * group, *rest[1:]) else None


def _used(graph: Graph) -> Graph:
    """Without the steps that nobody uses."""
    needed = {reference.name for reference in references(graph.outputs)}
    kept: list[Step] = []
    for step in reversed(graph.steps):
        if step.name in needed:
            kept.append(step)
            needed |= {reference.name for reference in references((step.arguments, dict(step.keywords)))}
    return replace(graph, steps=tuple(reversed(kept)))


def simplified(graph: Graph, values: Mapping[str, tuple[Value, ...]]) -> Graph:
    """The same outputs in fewer and simpler steps.

    Args:
        graph: all steps.
        values: shape and data type of every argument and result.
    """
    return _Simplifier(graph, values).graph()
