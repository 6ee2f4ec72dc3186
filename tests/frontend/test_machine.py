"""Functions on the machine: equal to their rounded reference, and in float32 formats to the function itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from tests.frontend.machine_cases import FUNCTIONS, arguments
from tests.lower.cases import machine

#: Functions that are compiled into one program: fewer programs to compile for the tests.
GROUP = 13
NAMES = list(FUNCTIONS)


class Together:
    """Several functions as one."""

    def __init__(self, names: list[str], formats: str) -> None:
        self.names, self.arguments = names, {name: arguments(name) for name in names}
        config = machine(formats=formats)
        self.compiled = pj.compile(self.function, self.arguments, config=config)
        self.found = self.compiled(self.arguments)

    def function(self, given: dict[str, list[Any]]) -> dict[str, Any]:
        return {name: FUNCTIONS[name][0](*given[name]) for name in self.names}


@cache
def together(group: int, formats: str) -> Together:
    return Together(NAMES[group * GROUP : (group + 1) * GROUP], formats)


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


@pytest.mark.parametrize("name", NAMES)
def test_the_machine_is_the_rounded_reference(name: str) -> None:
    both = together(NAMES.index(name) // GROUP, "published")
    reference = reference_of(both)[name]
    for found, wanted in zip(leaves(both.found[name]), leaves(reference), strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.shape == wanted.shape
        # Zeros, or the results of another place, must not pass.
        assert relative(np.zeros_like(found), wanted) > 2e-3
        if found.size > 1 and not (found == found.reshape(-1)[0]).all():
            assert relative(np.roll(found.reshape(-1), 1), wanted.reshape(-1)) > 2e-3


@cache
def reference_of(both: Together) -> Any:
    return both.compiled.reference(both.arguments)


@pytest.mark.parametrize("name", NAMES)
def test_in_float32_lowering_loses_nothing(name: str) -> None:
    both = together(NAMES.index(name) // GROUP, "float32")
    original = FUNCTIONS[name][0](*map(jnp.asarray, both.arguments[name]))
    for found, wanted in zip(leaves(both.found[name]), leaves(original), strict=True):
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        assert relative(found, wanted) < 1e-4
