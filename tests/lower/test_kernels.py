"""Every operator on the machine against its references; every check fails on results that are wrong."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plena_jax as pj
from plena_jax.lower import CapacityError, Graph, Lowered, OperatorError, lower
from plena_jax.lower.operators import operators

from .cases import (
    Case,
    Together,
    assert_formula,
    check_case,
    check_formula,
    fits,
    machine,
    only,
    relative_l2,
    same_bits,
)

OPERATORS = operators()

#: Rows x columns: whole tiles, ragged, tiny, wide.
SHAPES = [(5, 23), (1, 1), (4, 32)]
#: Every shape is compiled for every operator: these are for exhaustive tests.
MORE_SHAPES = [(4, 16), (1, 40), (7, 16), (3, 130)]
UNARY = ["exp", "reciprocal", "square", "relu", "sigmoid", "tanh", "silu", "gelu"]
VECTOR = {"weight": "activations"}

WEIGHTS = {"gate": "weights", "up": "weights", "down": "weights"}
CASES = [
    Case("gated_ffn", {"x": (5, 23), "gate": (23, 40), "up": (23, 40), "down": (40, 23)}, hbm=WEIGHTS),
    Case("ffn", {"x": (5, 23), "up": (23, 40), "down": (40, 23)}, {"activation": "gelu_tanh"}, hbm=WEIGHTS),
    Case(
        "ffn",
        {"x": (5, 23), "up": (23, 40), "down": (40, 23), "up_bias": (1, 40), "down_bias": (1, 23)},
        hbm=WEIGHTS | {"up_bias": "activations", "down_bias": "activations"},
    ),
    Case("lm_head", {"x": (5, 23), "table": (40, 23)}, hbm={"table": "weights"}),
    *[
        Case("embedding", {"table": (50, 40)}, {"tokens": tokens}, hbm={"table": "activations"})
        for tokens in ((7,), (0, 49, 3, 3, 17, 20), (1, 2, 3, 4))
    ],
    *[Case(name, {"x": shape}) for name in UNARY for shape in ((5, 23), (1, 2))],
    *[Case("gelu", {"x": (5, 23)}, {"approximate": form}) for form in ("tanh", "sigmoid")],
    *[Case("gelu", {"x": shape}, spread=4.0) for shape in SHAPES],
    *[Case("reciprocal", {"x": shape}, shift=-3.0) for shape in SHAPES],
    Case("scale", {"x": (5, 23)}, {"factor": -1.7}),
    Case("add_number", {"x": (5, 23)}, {"number": 0.3}),
    Case("subtract_from", {"x": (5, 23)}, {"number": 1.0}),
    Case("sqrt", {"x": (5, 23)}, shift=9.0),
    Case("sqrt", {"x": (4, 32)}, shift=100.0),
    *[Case("clamp", {"x": (5, 23)}, limits) for limits in ({"low": -0.5}, {"high": 0.25}, {"low": 0.5, "high": 1.0})],
    *[Case("softmax", {"x": shape}, {"scale": scale}, spread=3.0) for shape in SHAPES for scale in (1.0, 0.125)],
    Case("softmax", {"x": (6, 300)}, spread=10.0, shift=-500.0),
    *[Case("rms_norm", {"x": shape}) for shape in SHAPES],
    *[Case("rms_norm", {"x": shape, "weight": (1, shape[1])}, {"eps": 1e-5}, hbm=VECTOR) for shape in SHAPES],
    Case("rms_norm", {"x": (5, 23), "weight": (1, 23)}),
    *[Case("layer_norm", {"x": shape}) for shape in SHAPES if shape[1] > 1],
    Case("layer_norm", {"x": (5, 40), "weight": (1, 40), "bias": (1, 40)}, hbm={**VECTOR, "bias": "activations"}),
    Case("layer_norm", {"x": (5, 40), "weight": (1, 40), "bias": (1, 40)}),
    Case("layer_norm", {"x": (8, 32)}, shift=30.0),
    *[
        Case(name, {"x": x, "y": y}, shift=2.0 if name == "div" else 0.0)
        for name in ("add", "sub", "mul", "div", "maximum", "minimum")
        for x, y in (
            ((5, 23), (5, 23)),
            ((4, 32), (1, 32)),
            ((1, 23), (5, 23)),
            ((5, 23), (5, 1)),
            ((5, 1), (5, 40)),
            ((5, 40), (1, 1)),
            ((5, 1), (1, 23)),
            ((1, 16), (1, 16)),
        )
    ],
    *[
        Case("linear", {"x": (rows, k), "w": (k, n)}, hbm={"w": "weights"})
        for rows, k, n in ((5, 23, 40), (1, 1, 1), (1, 40, 23))
    ],
    *[
        Case("linear", {"x": (rows, k), "w": (n, k)}, {"transposed": True}, hbm={"w": "kv"})
        for rows, k, n in ((5, 23, 40), (1, 40, 23))
    ],
    Case("linear", {"x": (5, 23), "w": (23, 40), "bias": (1, 40)}, hbm={"w": "weights", "bias": "activations"}),
    Case("linear", {"x": (5, 23), "w": (23, 40), "bias": (1, 40)}, hbm={"w": "weights"}),
    *[
        Case("linear", {"x": (5, 300), "w": (300, 40)}, {"accumulate": how}, hbm={"w": "weights"})
        for how in ("float32", "rounded")
    ],
    Case(
        "linear", {"x": (5, 300), "w": (40, 300)}, {"accumulate": "rounded", "transposed": True}, hbm={"w": "weights"}
    ),
    Case("batched_matmul", {"x": (15, 16), "w": (48, 23)}, {"batch": 3}, hbm={"w": "kv"}),
    Case("batched_matmul", {"x": (10, 23), "w": (46, 40)}, {"batch": 2}, hbm={"w": "weights"}),
    Case("batched_matmul", {"x": (2, 23), "w": (32, 23)}, {"batch": 2, "transposed": True}, hbm={"w": "kv"}),
    *[Case("load", {"x": shape}, hbm={"x": "activations"}) for shape in SHAPES],
    *[Case("store", {"x": shape}, {"role": role}) for shape in SHAPES for role in ("activations", "kv")],
    *[
        Case("update", {"cache": (12, 40), "x": (rows, 40)}, {"row": row}, hbm={"cache": "kv"})
        for rows, row in ((1, 11), (4, 8), (3, 5), (5, 0))
    ],
]

MORE_CASES = [
    *[Case("gelu", {"x": shape}, spread=4.0) for shape in MORE_SHAPES],
    *[Case("reciprocal", {"x": shape}, shift=-3.0) for shape in MORE_SHAPES],
    *[Case("softmax", {"x": shape}, {"scale": scale}, spread=3.0) for shape in MORE_SHAPES for scale in (1.0, 0.125)],
    *[Case("rms_norm", {"x": shape, "weight": (1, shape[1])}, {"eps": 1e-5}, hbm=VECTOR) for shape in MORE_SHAPES],
    *[Case("layer_norm", {"x": shape}) for shape in MORE_SHAPES],
    *[Case("load", {"x": shape}, hbm={"x": "activations"}) for shape in MORE_SHAPES],
    *[Case("store", {"x": shape}, {"role": role}) for shape in MORE_SHAPES for role in ("activations", "kv")],
    *[
        Case("linear", {"x": (rows, k), "w": (k, n)}, hbm={"w": "weights"})
        for rows, k, n in ((4, 16, 16), (9, 50, 3), (3, 200, 20))
    ],
]


def chosen(count: int) -> list[Case]:
    """Of each operator the first case and, with a count of two, the last; the others are for exhaustive tests.

    Of those that work element by element only the first: they share their kernel.
    """
    of: dict[str, list[Case]] = {}
    for case in CASES:
        of.setdefault(case.name, []).append(case)
    alone = {name for name in of if OPERATORS[name].family in ("elementwise", "binary")}
    found = [case for name, cases in of.items() for case in (cases[0], cases[-1])[: 1 if name in alone else count]]
    return [case for case in CASES if any(case is one for one in found)]


#: In one program but for caches, which an operator changes: each needs its own.
SAMPLE_OF_TWO, SAMPLE_OF_ONE = ([c for c in chosen(count) if c.name != "update"] for count in (2, 1))
CACHES = [case for case in chosen(2) if case.name == "update"]
REST = [case for case in (*CASES, *MORE_CASES) if not any(case is one for one in chosen(2))]


@cache
def together(formats: str) -> Together:
    """A sample of all operators on one machine."""
    cases = SAMPLE_OF_TWO if formats == "published" else SAMPLE_OF_ONE
    return Together(tuple(cases), machine(formats=formats))


@pytest.mark.parametrize("number", range(len(SAMPLE_OF_TWO)), ids=[case.id for case in SAMPLE_OF_TWO])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(together("published"), number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", range(len(SAMPLE_OF_ONE)), ids=[case.id for case in SAMPLE_OF_ONE])
def test_the_rounded_reference_is_the_formula_without_roundings(number: int) -> None:
    check_formula(together("float32"), number)


@pytest.mark.parametrize("case", CACHES, ids=lambda case: case.id)
def test_caches(case: Case) -> None:
    check_alone(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", REST, ids=lambda case: case.id)
def test_more_shapes(case: Case) -> None:
    check_alone(case)


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", [*CASES, *MORE_CASES], ids=lambda case: case.id)
def test_more_shapes_without_roundings(case: Case) -> None:
    lowered, operands = case.lowered(machine(formats="float32")), case.operands()
    assert_formula(only(lowered.rounded(**operands)), only(lowered.exact(**operands)))


def check(case: Case, config: pj.MachineConfig) -> tuple[np.ndarray, np.ndarray, Lowered]:
    """The machine's result and the rounded reference, whose words are the same; and the program."""
    lowered, operands = case.lowered(config), case.operands()
    found, rounded = only(lowered(**operands)), only(lowered.rounded(**operands))
    assert same_bits(found, rounded), f"{case.id}: {relative_l2(found, rounded)}"
    return found, rounded, lowered


def check_alone(case: Case) -> None:
    """A case in a program of its own; results that are the same everywhere may be moved."""
    found, rounded, lowered = check(case, machine())
    assert np.isfinite(rounded).all()
    assert fits(found, rounded)
    # What is wrong does not fit.
    assert not fits(np.zeros_like(found), rounded)
    if found.size > 1:
        assert not fits(np.roll(found, 1, axis=int(found.shape[1] > 1)), rounded) or is_flat(found)
    stale = only(lowered.rounded(**case.operands(seed=1)))
    assert not fits(stale, rounded) or case.id == "softmax 1x1 scale=1.0" or is_flat(found)


def is_flat(found: np.ndarray) -> bool:
    """Whether a result is the same everywhere, whatever goes in (a softmax of one column, a norm of one)."""
    return len(np.unique(np.abs(found))) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted({case.name for case in CASES}))
def test_float32_machines_too(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    check(case, machine(formats="float32"))


def test_every_operator_is_in_the_table() -> None:
    tables = [importlib.import_module(f"{__package__}.{path.stem}") for path in Path(__file__).parent.glob("test_*.py")]
    cases = [case for table in tables for case in getattr(table, "CASES", [])]
    missing = {name for name, operator in OPERATORS.items() if operator.expand is None} - {case.name for case in cases}
    assert not missing


# -- sizes of machines ------------------------------------------------------------------------------------------------

SIZES = [(32, 4), (64, 4), (64, 16), (128, 8), (256, 16)]
SAMPLE = [
    Case("softmax", {"x": (5, 300)}, {"scale": 0.5}),
    Case("rms_norm", {"x": (5, 300), "weight": (1, 300)}, hbm=VECTOR),
    Case("linear", {"x": (5, 300), "w": (300, 70)}, hbm={"w": "weights"}),
    Case("linear", {"x": (5, 300), "w": (70, 300)}, {"transposed": True}, hbm={"w": "weights"}),
    Case("gelu", {"x": (5, 300)}),
    Case("div", {"x": (5, 300), "y": (5, 1)}, shift=2.0),
    Case("store", {"x": (5, 300)}, {"role": "kv"}),
]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mlen", "blen"), SIZES)
@pytest.mark.parametrize("formats", ["published", "bfloat16"])
def test_machines_of_all_sizes(mlen: int, blen: int, formats: str) -> None:
    for case in SAMPLE:
        check(case, machine(mlen, blen, formats))


# -- one after the other ----------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(st.data())
def test_chains_are_compositions(data: st.DataObject) -> None:
    """Registers, constants and rows of one kernel are nothing to the next."""
    config = machine()
    rows, columns = data.draw(st.sampled_from([(5, 23), (4, 32)]))
    g = Graph(config)
    values = [g.input("x", (rows, columns)), g.input("y", (rows, columns))]
    w = g.input("w", (columns, columns), "hbm", "weights")
    scale = g.input("scale", (1, columns), "hbm", "activations")
    for _ in range(data.draw(st.integers(1, 6))):
        x, y = (data.draw(st.sampled_from(values)) for _ in range(2))
        step = data.draw(st.sampled_from(["linear", "softmax", "rms_norm", "silu", "tanh", "add", "mul", "store"]))
        if step == "linear":
            values.append(g.linear(x, w))
        elif step == "rms_norm":
            values.append(g.rms_norm(x, scale))
        elif step in ("add", "mul"):
            values.append(g.apply(step, x, y))
        elif step == "store":
            values.append(g.load(g.store(x)))
        else:
            values.append(g.apply(step, x))
    for value in (values[-1], data.draw(st.sampled_from(values))):
        g.output(value)
    random = np.random.default_rng(data.draw(st.integers(0, 9)))
    operands = {t.name: random.standard_normal(t.shape).astype(np.float32) for t in g.inputs}
    lowered = lower(g)
    found, wanted = lowered(**operands), lowered.rounded(**operands)
    for name in wanted:
        assert same_bits(found[name], wanted[name]), name


# -- what is refused --------------------------------------------------------------------------------------------------


def graph() -> tuple[Graph, dict[str, Any]]:
    g = Graph(machine())
    return g, {
        "x": g.input("x", (4, 40)),
        "w": g.input("w", (24, 16), "hbm", "weights"),
        "good": g.input("good", (40, 16), "hbm", "weights"),
        "v": g.input("v", (1, 40), "hbm"),
        "cache": g.input("cache", (8, 40), "hbm", "kv"),
    }


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda g, t: g.linear(t["x"], t["w"]), r"linear: rows of w \(w\): expected 40, got 24"),
        (lambda g, t: g.linear(t["x"], t["x"]), r"linear: w \(x\) is in vram; expected hbm"),
        (lambda g, t: g.linear(t["x"], t["v"]), r"linear: w \(v\) has role activations; .* expected weights or kv"),
        (lambda g, t: g.linear(t["x"], t["good"], accumulate="no"), "expected float32, rounded, resident, got 'no'"),
        (lambda g, t: g.linear(t["x"]), "linear: missing a required argument: 'w'; its signature is linear"),
        (lambda g, t: g.softmax(t["x"], temperature=3), "softmax: got an unexpected keyword argument 'temperature'"),
        (lambda g, t: g.softmax(3), "softmax: x is 3; expected a tensor of the graph"),
        (lambda g, t: g.rms_norm(t["x"], t["x"]), r"rms_norm: shape of weight: expected \(1, 40\), got \(4, 40\)"),
        (lambda g, t: g.rms_norm(t["x"], t["w"]), "weight .w. has role weights; the vector unit fetches it"),
        (
            lambda g, t: g.add(t["x"], t["x"].columns(0, 16)),
            r"add: columns of y .*: expected 40 as x \(x\) or 1, got 16",
        ),
        (lambda g, t: g.clamp(t["x"], low=1.0, high=0.0), "clamp: low, high: expected low below high"),
        (lambda g, t: g.update(t["cache"], t["x"], row=6), "update: row: expected 0 to 4, so that 4 rows fit, got 6"),
        (
            lambda g, t: g.batched_matmul(t["x"], t["w"], batch=5),
            r"rows of x \(x\): expected a multiple of batch 5, got 4",
        ),
        (
            lambda g, t: g.batched_matmul(t["x"], t["w"], batch=2),
            "rows of each of the 2 matrices of w .w.: expected 40, got 12",
        ),
        (
            lambda g, t: g.softmax(t["x"].columns(8, 40)),
            r"softmax: x \(x\[0:4, 8:40\]\): expected columns from a multiple of 16",
        ),
        (lambda g, t: g.softmax(t["x"].columns(0, 20)), r"expected columns from a multiple of 16 to one or to the end"),
        (lambda g, t: g.store(t["x"], role="weights"), "store: role: expected activations or kv, got 'weights'"),
        (lambda g, t: t["x"].rows(3, 9), "x: rows 3 to 9; allowed: inside the 4"),
        (lambda g, t: g.apply("conv5d", t["x"]), "no operator 'conv5d'; there are abs, add"),
        (lambda g, t: g.input("x", (1, 1)), "input x: the graph has a tensor of that name"),
        (lambda g, t: g.input("z", (0, 1)), r"input z: shape \(0, 1\); expected two positive sizes"),
        (lambda g, t: g.softmax(graph()[1]["x"]), "softmax: tensor x is not of this graph"),
        (lambda g, t: lower(g), "a graph without operators"),
        (
            lambda g, t: g.embedding(t["v"], tokens=(0, 1)),
            "embedding: tokens: expected numbers from 0 to 0, got token 1",
        ),
        (lambda g, t: g.ffn(t["x"], t["good"], t["w"], activation="x"), "ffn: activation: expected one of silu, gelu"),
    ],
)
def test_wrong_arguments(apply: Any, message: str) -> None:
    g, tensors = graph()
    with pytest.raises(OperatorError, match=message):
        apply(g, tensors)


def test_wrong_inputs() -> None:
    lowered = Case("softmax", {"x": (4, 16)}).lowered(machine())
    with pytest.raises(OperatorError, match="inputs y; expected x"):
        lowered(y=np.zeros((4, 16)))
    with pytest.raises(OperatorError, match=r"input x: expected \(4, 16\), got \(4, 15\)"):
        lowered(x=np.zeros((4, 15)))


def test_a_cache_that_is_needed_later_is_not_changed() -> None:
    g, tensors = graph()
    g.output(g.update(tensors["cache"], tensors["x"], row=0))
    g.output(g.load(tensors["cache"]))
    with pytest.raises(OperatorError, match=r"update: cache .cache. is changed in place, but it is needed later"):
        lower(g)


def crowded(rows: int) -> Graph:
    """Three tensors of so many rows that are needed again after the program has used others."""
    g = Graph(machine())
    x, y = g.input("x", (rows, 16)), g.input("y", (rows, 16))
    z = g.add(x, y)
    g.output(g.mul(g.softmax(z), x))
    g.output(g.add(z, y))
    return g


def test_memory_that_does_not_fit_names_what_is_live() -> None:
    with pytest.raises(
        CapacityError, match=r"VRAM: softmax needs 2,600 rows; 388 of 8,188 are free, live are x \(2,600\)"
    ):
        lower(crowded(2600), spill=False)
    with pytest.raises(CapacityError, match=r"VRAM: y needs 4,800 rows; 3,388 of 8,188 are free"):
        lower(crowded(4800))


def test_what_does_not_fit_goes_to_hbm_and_comes_back() -> None:
    lowered = lower(crowded(2600))
    names = [node.operator.name for node in lowered.graph.nodes]
    assert "store" in names and names.count("load") == names.count("store")
    random = np.random.default_rng(0)
    operands = {name: random.standard_normal((2600, 16)).astype(np.float32) for name in "xy"}
    found, wanted = lowered(**operands), lowered.rounded(**operands)
    assert list(found) == ["mul", "add_1"]
    for name in wanted:
        assert same_bits(found[name], wanted[name])
