"""Rows of tables by integers that are data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from plena_jax import ops
from plena_jax.lower import CapacityError, Graph, OperatorError, lower

from .cases import Case, Together, check_bits, check_case, check_formula, machine, only, same_bits


@dataclass(frozen=True)
class Lookup(Case):
    """Integers for the ids."""

    def operands(self, seed: int = 0) -> dict[str, np.ndarray]:
        """By parameter."""
        ids = np.random.default_rng(seed).integers(0, self.shapes["table"][0], self.shapes["ids"])
        return super().operands(seed) | {"ids": ids}


def case(table: tuple[int, int], count: int) -> Lookup:
    shapes = {"table": table, "ids": (1, count)}
    return Lookup("lookup", shapes, hbm={"table": "activations"}, place={"ids": "int_sram"})


CASES = [case((50, 40), 7), case((50, 16), 2)]


@cache
def run(formats: str = "published") -> Together:
    """All cases on one machine."""
    return Together(tuple(CASES), machine(formats=formats))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[one.id for one in CASES])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(run(), number)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[one.id for one in CASES])
def test_the_rounded_reference_is_the_formula_without_roundings(number: int) -> None:
    check_formula(run("float32"), number)


@pytest.mark.exhaustive
def test_float32_machines_too() -> None:
    check_bits(run("float32"))


@pytest.mark.exhaustive
def test_views_and_experts_beside_them() -> None:
    """Integers of experts are elsewhere in INT SRAM; ids stay where they are."""
    g = Graph(machine())
    table, ids, logits = g.input("table", (50, 40), "hbm"), g.input("ids", (1, 5), "int_sram"), g.input("l", (3, 32))
    g.output(g.top_k(logits, policy=0))
    g.output(g.lookup(table.rows(10, 40), ids))
    g.output(ids)
    lowered, random = lower(g), np.random.default_rng(0)
    operands: dict[str, Any] = {t.name: random.standard_normal(t.shape) for t in (table, logits)}
    operands["ids"] = np.array([[29, 0, 3, 3, 7]])
    found, wanted = lowered(**operands), lowered.rounded(**operands)
    for name in wanted:
        assert same_bits(found[name], wanted[name]), name
    assert np.array_equal(found["ids"], operands["ids"])
    # Other integers need no other program, known or not.
    operands["ids"] = operands["ids"][:, ::-1]
    assert same_bits(lowered(**operands)["lookup"], jax.jit(lambda x: lowered.rounded(**x))(operands)["lookup"])


def test_wrong_arguments() -> None:
    lowered = CASES[0].lowered(machine())
    table = np.zeros((50, 40), np.float32)
    for wrong in (50, -1, 0.5):
        with pytest.raises(OperatorError, match=rf"input ids: expected integers from 0 to 49, got {wrong}"):
            lowered.start(table=table, ids=np.full((1, 7), wrong))
    with pytest.raises(OperatorError, match="from 0 to 49, got 50"):
        ops.lookup(table, np.array([[50]]), config=machine())
    assert not only(lowered.exact(table=table, ids=np.zeros((1, 7), int))).any()
    g = Graph(machine())
    with pytest.raises(OperatorError, match="input y: 2 rows in int_sram; expected one"):
        g.input("y", (2, 16), "int_sram")
    ids, logits = g.input("ids", (1, 1020), "int_sram"), g.input("logits", (2, 32))
    g.output(g.lookup(g.input("table", (4, 16), "hbm"), ids))
    g.output(g.top_k(logits, policy=0))
    with pytest.raises(CapacityError, match="INT SRAM: top_k needs 8 entries; 4 are free"):
        lower(g)
