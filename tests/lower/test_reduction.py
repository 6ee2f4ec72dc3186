"""Sums and maxima of rows, and rows made of scalars."""

from __future__ import annotations

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from plena_jax.lower import CapacityError, Graph, OperatorError, lower

from .cases import Case, Together, check_bits, check_case, check_formula, machine, same_bits

SHAPES = [(5, 40), (4, 16)]
CASES = [
    *[Case(name, {"x": shape}) for name in ("reduce_sum", "reduce_max") for shape in SHAPES],
    Case("reduce_max", {"x": (5, 40)}, shift=-9.0),
    Case("map_row", {"values": (1, 40)}, place={"values": "fp_sram"}),
    Case("map_row", {"values": (1, 16)}, place={"values": "fp_sram"}),
]


@cache
def run(formats: str = "published") -> Together:
    """All cases on one machine."""
    return Together(tuple(CASES), machine(formats=formats))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.id for case in CASES])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(run(), number)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[case.id for case in CASES])
def test_the_rounded_reference_is_the_formula_without_roundings(number: int) -> None:
    check_formula(run("float32"), number)


def test_lanes_behind_the_column_are_zero() -> None:
    together = run()
    for tensor in together.lowered.graph.outputs[:5]:
        where = together.lowered.plan.rows[tensor.name]
        first = where.at() // where.lanes
        assert not np.asarray(together.final.vram[first : first + where.shape[0], 1:]).any()


@pytest.mark.exhaustive
def test_float32_machines_too() -> None:
    together = run("float32")
    check_bits(together)


def test_scalars_stay_where_they_are() -> None:
    """Constants, workspace and inputs share FP SRAM; an input may be an output."""
    g = Graph(machine())
    values, x = g.input("values", (1, 20), "fp_sram"), g.input("x", (5, 40))
    g.output(g.reduce_max(g.softmax(x)))
    row = g.output(g.map_row(values))
    g.output(values)
    lowered = lower(g)
    random = np.random.default_rng(0)
    operands = {t.name: random.standard_normal(t.shape).astype(np.float32) for t in g.inputs}
    found, rounded = lowered(**operands), lowered.rounded(**operands)
    for name in rounded:
        assert same_bits(found[name], rounded[name]), name
    assert same_bits(found[row.name], found["values"])


def test_wrong_arguments() -> None:
    g = Graph(machine())
    x = g.input("x", (4, 16))
    with pytest.raises(OperatorError, match=r"map_row: values \(x\) is in vram; expected fp_sram"):
        g.map_row(x)
    with pytest.raises(OperatorError, match="input y: 2 rows in fp_sram; expected one"):
        g.input("y", (2, 16), "fp_sram")
    values = g.input("values", (1, 16), "fp_sram")
    with pytest.raises(OperatorError, match=r"reduce_sum: x \(values\) is in fp_sram; expected vram"):
        g.reduce_sum(values)
    with pytest.raises(OperatorError, match="reduce_max: missing a required argument: 'x'"):
        g.reduce_max()
    g.output(g.map_row(values.columns(0, 8)))
    with pytest.raises(OperatorError, match="a view in fp_sram; expected all 16 columns"):
        lower(g)


def test_scalars_that_do_not_fit() -> None:
    g = Graph(machine())
    first, second = g.input("first", (1, 1000), "fp_sram"), g.input("second", (1, 17), "fp_sram")
    g.output(g.map_row(first))
    g.output(g.map_row(second))
    with pytest.raises(CapacityError, match="FP SRAM: second needs 32 entries; 16 of 1,024 are free"):
        lower(g)


def only_traced(outputs: dict[str, jnp.ndarray]) -> jnp.ndarray:
    """The one output."""
    (value,) = outputs.values()
    return value
