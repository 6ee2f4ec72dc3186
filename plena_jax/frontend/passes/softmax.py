"""Softmax, along any axes."""

from __future__ import annotations

import numpy as np

from plena_jax.frontend.graph import Operation, TensorGraph
from plena_jax.frontend.passes.matching import Sweep, is_repeated, places, rows_of, seen_in, swept, with_number
from plena_jax.frontend.passes.registry import graph_pass
from plena_jax.frontend.views import View


@graph_pass
def softmax(graph: TensorGraph) -> TensorGraph:
    """``exp(x) / sum(exp(x))`` becomes softmax, whatever was taken off the rows; a known factor becomes its scale."""
    return swept(graph, _quotient, _logarithm, _shifted, _scaled)


def _quotient(sweep: Sweep, operation: Operation) -> View | None:
    """Exponentials divided by their sum."""
    pairs: list[tuple[View, View, Operation | None]]
    if operation.name == "div":
        pairs = [(operation.inputs[0], operation.inputs[1], None)]
    elif operation.name == "mul":
        pairs = [
            (x, found[1][0], found[0])
            for x, y in (operation.inputs, operation.inputs[::-1])
            if (found := sweep.peel(y, "reciprocal"))
        ]
    else:
        return None
    for shares, total, reciprocal in pairs:
        reduction = sweep.producer(total, "reduce_sum")
        if reduction is None:
            continue
        rows = rows_of(reduction)
        at = places(shares, total.index, rows)
        found = None if at is None else sweep.peel(rows, "exp")
        if at is None or found is None:
            continue
        x, region = _unshifted(sweep, found[1][0])
        if sweep.hidden([reduction, found[0], *region, *([reciprocal] if reciprocal else [])]):
            return seen_in(sweep.add("softmax", x, scale=1.0), at)
    return None


def _unshifted(sweep: Sweep, rows: View) -> tuple[View, list[Operation]]:
    """Rows before numbers were taken off that are the same along a row: the maximum, in most programs."""
    found = sweep.peel(rows, "sub")
    if found is None or not is_repeated(found[1][1]):
        return rows, []
    return found[1][0], [found[0]]


def _logarithm(sweep: Sweep, operation: Operation) -> View | None:
    """Exponentials of ``x - log(sum(exp(x)))``."""
    if operation.name != "exp":
        return None
    terms, region = _terms(sweep, operation.inputs[0])
    logarithms = [(term, found) for term in terms if term[0] < 0 and (found := sweep.peel(term[1], "log"))]
    for logarithm, (log, (total,)) in logarithms:
        reduction = sweep.producer(total, "reduce_sum")
        rows = None if reduction is None else rows_of(reduction)
        found = None if rows is None else sweep.peel(rows, "exp")
        if reduction is None or found is None:
            continue
        inner, more = _terms(sweep, found[1][0])
        rest = [term for term in terms if term is not logarithm]
        x = next((view for sign, view in inner if sign > 0 and not is_repeated(view)), None)
        at = next((a for s, v in rest if x is not None and s > 0 if (a := places(v, total.index, x)) is not None), None)
        if (
            x is None
            or at is None
            or not _same_terms(rest, [(s, seen_in(v, v.index.reshape(-1)[at])) for s, v in inner])
        ):
            continue
        if sweep.hidden([log, reduction, found[0], *region]) and _hidden_after(sweep, more, found[0], region):
            return seen_in(sweep.add("softmax", x, scale=1.0), at)
    return None


def _hidden_after(sweep: Sweep, more: list[Operation], *others: object) -> bool:
    """The inner difference may be the outer one too."""
    known = [other for other in others if isinstance(other, Operation)]
    lists = [item for other in others if isinstance(other, list) for item in other]
    return sweep.hidden(more, *known, *lists)


def _terms(sweep: Sweep, view: View, sign: int = 1) -> tuple[list[tuple[int, View]], list[Operation]]:
    """The terms of a sum with their signs, and the sums."""
    found = sweep.peel(view, "add", "sub", "neg")
    if found is None:
        return [(sign, view)], []
    operation, operands = found
    terms, region = [], [operation]
    for number, operand in enumerate(operands):
        minus = operation.name == "neg" or (operation.name == "sub" and number == 1)
        more, inner = _terms(sweep, operand, -sign if minus else sign)
        terms += more
        region += inner
    return terms, region


def _same_terms(a: list[tuple[int, View]], b: list[tuple[int, View]]) -> bool:
    remaining = list(b)
    for sign, view in a:
        for number, (other, seen) in enumerate(remaining):
            if sign == other and view.bases == seen.bases and np.array_equal(view.index, seen.index):
                del remaining[number]
                break
        else:
            return False
    return not remaining


def _shifted(sweep: Sweep, operation: Operation) -> View | None:
    """What is taken off a whole row before a softmax changes nothing."""
    if operation.name != "softmax":
        return None
    x, region = _unshifted(sweep, operation.inputs[0])
    if not region or not sweep.hidden(region):
        return None
    return sweep.add("softmax", x, **operation.attributes)


def _scaled(sweep: Sweep, operation: Operation) -> View | None:
    """A product with a number before a softmax is its scale."""
    if operation.name != "softmax":
        return None
    found = sweep.peel(operation.inputs[0], "mul")
    known = found and with_number(found[1])
    if not found or not known or not sweep.hidden([found[0]]):
        return None
    scale = float(np.float32(operation.attributes["scale"] * known[1]))
    return sweep.add("softmax", known[0], scale=scale)
