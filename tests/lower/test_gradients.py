"""Derivatives of every family of kernels: those of the float32 formulas where nothing is rounded."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plena_jax.lower.operators import operators
from plena_jax.lower.rearrangement import Source

from .cases import Case, Together, machine, relative_l2

OPERATORS = operators()

#: One of each family. Operands have shapes of their own: each derivative comes from one kernel.
FAMILIES = [
    Case("softmax", {"x": (3, 20)}),
    Case("rms_norm", {"x": (3, 21), "weight": (1, 21)}, hbm={"weight": "activations"}),
    Case("linear", {"x": (3, 22), "w": (22, 6)}, hbm={"w": "weights"}),
    Case("batched_matmul", {"x": (4, 17), "w": (34, 7)}, {"batch": 2}, hbm={"w": "weights"}),
    Case("gelu", {"x": (3, 23)}),
    Case("div", {"x": (3, 24), "y": (3, 1)}, shift=3.0),
    Case("sqrt", {"x": (3, 25)}, shift=9.0),
    Case("store", {"x": (3, 26)}),
    Case("reduce_sum", {"x": (3, 27)}),
    Case("sum_rows", {"x": (5, 19)}),
    Case("cumsum", {"x": (3, 28)}),
    Case("rearrange", {"x": (3, 29)}, {"source": Source(np.random.default_rng(6).permutation(87).reshape(29, 3))}),
    Case("embedding", {"table": (9, 18)}, {"tokens": (8, 0, 8)}, hbm={"table": "activations"}),
    Case("rope", {"x": (3, 32), "cos": (3, 16), "sin": (3, 16)}, {"heads": 2}),
    Case(
        "attention",
        {"q": (3, 16), "k": (20, 8), "v": (20, 8)},
        {"heads": 2, "kv_heads": 1, "causal": True, "query_offset": 9},
        hbm={"k": "kv", "v": "kv"},
    ),
    Case(
        "conv2d",
        {"image": (10, 6), "w": (12, 5), "bias": (1, 5)},
        {"channels": 2, "height": 5, "width": 6, "kernel": (2, 3), "stride": (2, 1), "padding": (1, 0)},
        hbm={"image": "activations", "w": "weights"},
    ),
    Case(
        "im2col", {"image": (5, 7)}, {"channels": 1, "height": 5, "width": 7, "kernel": 2}, hbm={"image": "activations"}
    ),
]


@cache
def derivatives() -> tuple[Together, dict[str, Any], dict[str, Any]]:
    """Of a weighted sum of all results: the kernels', in one program, and the formulas'."""
    together = Together(tuple(FAMILIES), machine(formats="float32"))
    lowered, operands = together.lowered, jax.tree.map(jnp.asarray, together.operands())
    random = np.random.default_rng(5)
    weights = {t.name: random.standard_normal(t.shape).astype(np.float32) for t in lowered.graph.outputs}

    def loss(run: Any, operands: dict[str, Any]) -> jax.Array:
        results = run(**operands)
        return jnp.sum(jnp.stack([jnp.sum(results[name] * weight) for name, weight in weights.items()]))

    found, wanted = (jax.jit(jax.grad(lambda o, run=run: loss(run, o)))(operands) for run in (lowered, lowered.exact))
    return together, found, wanted


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=[case.name for case in FAMILIES])
def test_gradients_flow_through_kernels(number: int) -> None:
    together, found, wanted = derivatives()
    case, names = FAMILIES[number], {key: tensor.name for key, tensor in together._inputs.items()}
    for parameter in case.shapes:
        name = names[case.key(parameter)]
        assert np.linalg.norm(wanted[name]) > 0.1
        assert relative_l2(found[name], wanted[name]) < 1e-4, parameter
        assert relative_l2(-found[name], wanted[name]) > 1e-4
        assert relative_l2(found[name] * np.float32(1.001), wanted[name]) > 1e-4


def test_every_family_is_in_the_table() -> None:
    """But for those whose addresses depend on data."""
    families = {operator.family for operator in OPERATORS.values() if operator.expand is None}
    assert families - {OPERATORS[case.name].family for case in FAMILIES} == {"experts", "lookup", "routing"}
