"""Passes find what functions compute however it is written, and nothing that only looks like it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest

from plena_jax.frontend.graph import TensorGraph
from plena_jax.frontend.passes import ORDER, fused, passes
from plena_jax.frontend.tracing import check, traced
from tests.frontend import attentions, programs
from tests.frontend.programs import COS, HEADS, SIN, B, Function, W, X, random

WEIGHTS = random(8, 8)
CASES = {
    f"{family}: {name}": (kinds, function, arguments)
    for family, table, arguments in (
        ("activations", programs.ACTIVATIONS, (X * 3,)),
        ("norms", programs.NORMS, (X, W, B)),
        ("softmax", programs.SOFTMAX, (X,)),
        ("rope", programs.ROPE, (HEADS, COS, SIN)),
        ("linear", programs.LINEAR, (X, WEIGHTS, B)),
    )
    for name, (kinds, function) in table.items()
}


def graph_of(function: Function, arguments: Sequence[Any]) -> TensorGraph:
    graph, problems = traced(lambda *arrays: jax.tree.leaves(function(*arrays)), arguments)
    check(problems)
    return graph


def same(function: Function, arguments: Sequence[Any], *graphs: TensorGraph) -> None:
    """All graphs compute the function."""
    everything = jax.jit(lambda *x: [jax.tree.leaves(function(*x)), *(graph.evaluate(x) for graph in graphs)])
    # Compiled once, and not well: it runs once.
    compiled = everything.lower(*arguments).compile({"xla_backend_optimization_level": 0})
    expected, *results = compiled(*arguments)
    for found in results:
        for array, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(array, wanted, rtol=2e-5, atol=2e-5)


def kinds_of(graph: TensorGraph) -> list[str]:
    return [operation.name for operation in graph.operations]


@pytest.mark.parametrize("name", CASES)
def test_spellings(name: str) -> None:
    kinds, function, arguments = CASES[name]
    graph = graph_of(function, arguments)
    found = fused(graph)
    assert kinds_of(found) == kinds, found
    same(function, arguments, graph, found)


@pytest.mark.parametrize("name", attentions.MATCHED)
def test_attention(name: str) -> None:
    count, expected, function, *arguments = attentions.MATCHED[name]
    graph = graph_of(function, arguments)
    found = fused(graph)
    operations = [operation for operation in found.operations if operation.name == "attention"]
    assert len(operations) == count, found
    assert "softmax" not in kinds_of(found)
    for operation in operations:
        assert {key: operation.attributes[key] for key in expected} == pytest.approx(expected)
    same(function, arguments, graph, found)


@pytest.mark.parametrize("name", attentions.ALIKE)
def test_what_is_not_attention(name: str) -> None:
    function, *arguments = attentions.ALIKE[name]
    graph = graph_of(function, arguments)
    found = fused(graph)
    assert "attention" not in kinds_of(found), found
    same(function, arguments, graph, found)


def test_weights_keep_their_order() -> None:
    """The graph of one set of weights is that of any other."""
    for name in ("rsqrt", "sum", "other axis", "two passes"):
        function = programs.NORMS[name][1]
        same(function, (X[::-1], W[::-1], B[::-1]), fused(graph_of(function, (X, W, B))))


# -- passes by name ---------------------------------------------------------------------------------------------------


def test_all_passes_are_listed() -> None:
    assert tuple(passes()) == ORDER
    assert all(line.endswith(".") for line in passes().values())


@pytest.mark.parametrize("name", [name for name in ORDER if name != "dead_code"])
def test_each_pass_can_be_turned_off(name: str) -> None:
    function, *arguments = attentions.EVERYTHING
    graph = graph_of(function, arguments)
    with_all, without = fused(graph), fused(graph, {name})
    assert str(with_all) != str(without)
    same(function, arguments, without)


def test_nothing_is_left_for_a_second_time() -> None:
    function, *arguments = attentions.EVERYTHING
    found = fused(graph_of(function, arguments))
    assert str(fused(found)) == str(found)
    expected = ["rms_norm", "dot", "rope", "attention", "softmax", "silu"]
    assert set(expected) <= set(kinds_of(found)), found


def test_a_pass_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"no pass is called fusion; there are simplify, "):
        fused(TensorGraph(), {"fusion"})


def test_sources_are_kept() -> None:
    found = fused(graph_of(lambda x: jax.nn.silu(x) @ x.T, (X,)))
    assert all("test_passes.py" in operation.source for operation in found.operations)
