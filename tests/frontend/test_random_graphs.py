"""Random functions: the machine, its reference, the function itself, and both front ends agree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from tests.frontend.random_graphs import Numpyish, Torchish, arguments, random_function
from tests.frontend.test_machine import leaves, relative
from tests.lower.cases import machine

#: Functions of one program.
TOGETHER = 3
JAX = Numpyish(jnp, jax.nn.softmax)


@pytest.mark.parametrize("group", [0, *[pytest.param(n, marks=pytest.mark.exhaustive) for n in range(1, 32)]])
def test_the_machine_agrees(group: int) -> None:
    seeds = range(group * TOGETHER, (group + 1) * TOGETHER)
    functions = [random_function(seed) for seed in seeds]
    given = [arguments(function, seed) for function, seed in zip(functions, seeds, strict=True)]

    def whole(given: Any) -> Any:
        return [function(JAX, *x) for function, x in zip(functions, given, strict=True)]

    for formats in ("float32", "published"):
        program = pj.compile(whole, given, config=machine(formats=formats))
        found, reference = program(given), program.reference(given)
        for seed, got, wanted, original in zip(seeds, found, reference, whole(given), strict=True):
            for a, b, c in zip(leaves(got), leaves(wanted), leaves(original), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"seed {seed}")
                assert a.shape == c.shape
                if formats == "float32":
                    assert relative(a, c) < 1e-4 or np.abs(a - c).max() < 1e-5, seed


@pytest.mark.parametrize("first", [0, *[pytest.param(n, marks=pytest.mark.exhaustive) for n in range(20, 200, 20)]])
def test_both_front_ends_agree(first: int) -> None:
    torch = pytest.importorskip("torch")
    from plena_jax.bridges.torch import to_jax

    from plena_jax.frontend.compile import flattened
    from plena_jax.frontend.passes import fused
    from plena_jax.frontend.tracing import traced

    class Module(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, function: Any) -> None:
            super().__init__()
            self.function = function

        def forward(self, *x: Any) -> Any:
            return self.function(Torchish(torch), *x)

    def graph(function: Any, x: list[np.ndarray]) -> str:
        flat, shapes, _ = flattened(function, x)
        found, problems = traced(flat, shapes)
        assert not problems
        return str(fused(found).ordered())

    for seed in range(first, first + 6):
        function = random_function(seed)
        x = arguments(function, seed)
        exported = to_jax(Module(function), *map(torch.from_numpy, x))
        theirs = graph(lambda *x, e=exported: e.function(e.weights, *x), x)
        assert theirs == graph(lambda *x, f=function: f(JAX, *x), x), seed
        other = graph(lambda *x, f=function: [y + 1 for y in f(JAX, *x)], x)
        assert theirs != other
