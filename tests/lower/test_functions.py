"""Functions of single elements that take many instructions, comparisons, reductions and scans."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from plena_jax.lower import Graph, OperatorError, lower

from .cases import (
    Case,
    Together,
    check_case,
    fits,
    machine,
    only,
    relative_l2,
    same_bits,
)


@dataclass(frozen=True)
class Small(Case):
    """Operands of few values: masks of ones and zeros, small integers for the others."""

    def operands(self, seed: int = 0) -> dict[str, np.ndarray]:
        """By parameter."""
        values = super().operands(seed)
        return {n: (v > 0).astype(np.float32) if n == "mask" else np.round(v) for n, v in values.items()}


CASES = [
    *[Case(name, {"x": (5, 23)}) for name in ("abs", "sign", "heaviside", "expm1", "erf", "softplus")],
    *[Case(name, {"x": (5, 23)}, shift=shift) for name, shift in (("log", 6.0), ("log1p", 5.0))],
    Small("is_zero", {"x": (5, 23)}, spread=0.75),
    Case("greater", {"x": (5, 23), "y": (5, 1)}),
    Small("equal", {"x": (5, 23), "y": (1, 23)}, spread=0.75),
    Small("select", {"mask": (5, 23), "x": (5, 23), "y": (5, 1)}, spread=1.5),
    Case("reduce_min", {"x": (5, 23)}),
    *[Case(name, {"x": (5, 23)}) for name in ("sum_rows", "max_rows", "min_rows", "cumsum")],
    Case("argmax", {"x": (5, 23)}, shift=-9.0),
]
#: To compile is what takes time: the others are exhaustive tests.
FAST = [case for case in CASES if case.name in ("greater", "select", "reduce_min", "max_rows", "cumsum", "argmax")]
MORE = [
    *[
        Case(name, {"x": shape}, spread=4.0)
        for name in ("abs", "sign", "erf", "expm1", "softplus")
        for shape in ((4, 32),)
    ],
    *[
        Case(name, {"x": (3, 33)}, shift=shift, spread=spread)
        for name in ("log", "log1p")
        for shift, spread in ((90.0, 9.0), (1.5, 0.1))
    ],
    *[
        Small(name, {"x": x, "y": y}, spread=0.75)
        for name in ("greater", "equal")
        for x, y in (((5, 23), (5, 23)), ((1, 23), (5, 23)), ((5, 1), (1, 23)), ((5, 1), (5, 1)))
    ],
    *[
        Small("select", {"mask": mask, "x": x, "y": y}, spread=1.5)
        for mask, x, y in (((5, 23), (1, 23), (1, 1)), ((5, 1), (5, 23), (5, 23)), ((1, 23), (5, 1), (5, 23)))
    ],
    *[
        Case(name, {"x": shape}, shift=shift)
        for name in ("reduce_min", "sum_rows", "max_rows", "min_rows", "cumsum", "argmax")
        for shape, shift in (((1, 16), 0.0), ((9, 40), -9.0), ((4, 100), 9.0))
    ],
]


@cache
def run(formats: str = "published", which: str = "fast") -> Together:
    """Cases on one machine."""
    return Together(tuple({"fast": FAST, "all": CASES, "more": MORE}[which]), machine(formats=formats))


@pytest.mark.parametrize("number", range(len(FAST)), ids=[case.id for case in FAST])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(run(), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("formats", ["published", "float32"])
@pytest.mark.parametrize("which", ["all", "more"])
def test_more_shapes_and_formats(formats: str, which: str) -> None:
    together = run(formats, which)
    for case, found, rounded, exact in zip(
        together.cases, together.found, together.rounded, together.exact, strict=True
    ):
        assert same_bits(found, rounded), f"{case.id}: {relative_l2(found, rounded)}"
        assert not fits(np.zeros_like(found), rounded) or not rounded.any(), case.id
        assert formats != "float32" or relative_l2(found, exact) <= 1e-5, case.id


def rounded(name: str, x: Any, formats: str = "float32") -> np.ndarray:
    """A function of one element, without the machine."""
    operands = {"x": np.asarray(x, np.float32).reshape(1, -1)}
    lowered = lower(Graph.single(name, {"x": operands["x"].shape}, {}, machine(formats=formats)))
    return only(lowered.rounded(**operands))[0]


@pytest.mark.exhaustive
def test_functions_are_accurate_everywhere() -> None:
    many = np.exp(np.linspace(-69, 69, 499))
    near = np.concatenate([2.0 ** -np.arange(2, 20), -(2.0 ** -np.arange(2, 20))])
    for name, formula, x in (
        ("log", np.log, np.concatenate([many, 1 + near])),
        ("log1p", np.log1p, np.concatenate([many, near, [-0.9, -0.5]])),
        ("expm1", np.expm1, np.concatenate([np.linspace(-80, 60, 99), near])),
    ):
        wanted = formula(x.astype(np.float32).astype(np.float64))
        found = rounded(name, x)
        assert np.all(np.abs(found - wanted) <= 1e-5 * np.abs(wanted)), name
        assert not np.all(np.abs(found - 1.0001 * wanted) <= 1e-5 * np.abs(wanted)), name


@pytest.mark.exhaustive
def test_where_functions_end() -> None:
    tiny, large = 1e-45, 3e38
    assert rounded("log", [0, -1, 1]).tolist() == [-np.inf, -np.inf, 0]
    assert rounded("log1p", [-1, -2, 0]).tolist() == [-np.inf, -np.inf, 0]
    assert rounded("sign", [tiny, -tiny, 0, large, -np.inf]).tolist() == [1, -1, 0, 1, -1]
    assert rounded("heaviside", [tiny, -tiny, 0, large]).tolist() == [1, 0, 0, 1]
    assert rounded("is_zero", [tiny, -tiny, 0, large]).tolist() == [0, 0, 1, 0]
    assert rounded("abs", [-np.inf, large, -tiny]).tolist() == [np.inf, np.float32(large), np.float32(tiny)]


def test_the_first_of_equal_maxima_counts() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, [7, 9, 33]] = 2
    lowered = lower(Graph.single("argmax", {"x": x.shape}, {}, machine()))
    assert only(lowered.rounded(x=x)) == 7


@pytest.mark.parametrize(
    ("columns", "message"), [(257, r"argmax: columns of x \(x\): expected at most 256, as vector SRAM do not hold 257")]
)
def test_wrong_arguments(columns: int, message: str) -> None:
    g = Graph(machine())
    with pytest.raises(OperatorError, match=message):
        g.argmax(g.input("x", (2, columns)))
