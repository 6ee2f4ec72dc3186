"""Rearranged elements on the machine against NumPy's, and what is chosen for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax.lower import Graph, OperatorError, lower
from plena_jax.lower.operators import find
from plena_jax.lower.rearrangement import Source

from .cases import Case, Together, fits, machine, relative_l2, same_bits

RANDOM = np.random.default_rng(0)


def flat(rows: int, columns: int) -> np.ndarray:
    """Positions of all elements."""
    return np.arange(rows * columns).reshape(rows, columns)


def padded(positions: np.ndarray, *widths: tuple[int, int]) -> np.ndarray:
    return np.pad(positions, widths, constant_values=-1)


def case(shape: tuple[int, int], positions: np.ndarray, into: bool = False) -> Case:
    """Positions of one result; with ``into`` others are kept."""
    shapes = {"x": shape} | ({"into": positions.shape} if into else {})
    return Case("rearrange", shapes, {"source": Source(positions)})


CASES = [
    case((9, 48), flat(9, 48)[:, 3:29]),
    case((20, 18), flat(20, 18).T),
    case((6, 24), flat(6, 24).reshape(18, 8)),
    case((5, 13), padded(flat(5, 13), (0, 0), (23, 0)), into=True),
    case((9, 40), RANDOM.integers(-1, 360, (2, 20))),
    case((5, 40), np.repeat(flat(5, 40)[:, 19:20], 20, axis=1)),
]
MORE = [
    case((5, 23), flat(5, 23)),
    case((9, 48), flat(9, 48).reshape(54, 8)),
    case((15, 8), flat(15, 8).reshape(5, 24)),
    case((15, 8), flat(15, 8).reshape(3, 5, 8).transpose(1, 0, 2).reshape(5, 24)),
    case((12, 15), flat(12, 15).reshape(2, 6, 15).transpose(0, 2, 1).reshape(30, 6)),
    case((3, 18), flat(3, 18).T),
    case((18, 3), flat(18, 3).T),
    case((5, 23), flat(5, 23)[::-1, ::-1]),
    case((6, 40), flat(6, 40)[:, ::2]),
    case((1, 23), np.repeat(flat(1, 23), 6, axis=0)),
    case((7, 1), np.repeat(flat(7, 1), 20, axis=1)),
    case((1, 1), np.zeros((5, 40), int)),
    case((6, 16), flat(6, 16).reshape(96, 1)),
    case((96, 1), flat(96, 1).reshape(6, 16)),
    case((5, 23), padded(flat(5, 23), (1, 1), (9, 3))),
    case((4, 5), np.full((3, 20), -1)),
    case((4, 5), np.full((3, 20), -1), into=True),
    case((5, 20), padded(flat(5, 20), (2, 2), (0, 0)), into=True),
    case((5, 13), np.where(RANDOM.random((5, 36)) < 0.7, -1, RANDOM.integers(0, 65, (5, 36))), into=True),
    case((6, 40), np.where(np.arange(40) % 2, flat(6, 40), -1), into=True),
    case((40, 20), RANDOM.permutation(800).reshape(40, 20)),
    case((40, 20), RANDOM.permutation(800).reshape(4, 200)),
]


@cache
def run(more: bool = False, formats: str = "published", mlen: int = 16, blen: int = 4, tiles: int = 8) -> Together:
    """All cases on one machine."""
    return Together(tuple(MORE if more else CASES), machine(mlen, blen, formats, tiles))


def check(together: Together) -> None:
    """Words are those of the reference, lanes behind the last column zero; what is wrong is found."""
    for one, tensor, found, rounded, stale in zip(
        together.cases,
        together.lowered.graph.outputs,
        together.found,
        together.rounded,
        together.stale,
        strict=True,
    ):
        assert same_bits(found, rounded), f"{one.id}: {relative_l2(found, rounded)}"
        where = together.lowered.plan.rows[tensor.name]
        if where.rest:
            row = where.at(where.blocks - 1) // where.lanes
            assert not np.asarray(together.final.vram[row : row + where.shape[0], where.rest :]).any(), one.id
        if not found.any():
            continue
        assert not fits(np.zeros_like(found), rounded)
        assert not fits(stale, rounded)
        assert not fits(np.roll(found, 1), rounded) or len(np.unique(found)) == 1, one.id


def test_the_machine_moves_what_the_source_says() -> None:
    check(run())


def test_the_reference_is_numpys() -> None:
    for one in (*CASES, *MORE):
        operands = one.operands()
        found = find("rearrange").reference(*operands.values(), **one.attributes)
        positions = one.attributes["source"].positions
        wanted = np.where(positions >= 0, operands["x"].reshape(-1)[positions], operands.get("into", np.float32(0)))
        assert np.array_equal(found, wanted), one.id


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "sizes", [{}, {"formats": "float32"}, {"mlen": 32, "blen": 8}, {"tiles": 64}, {"mlen": 64, "blen": 16}], ids=str
)
@pytest.mark.parametrize("more", [False, True])
def test_more_moves_and_machines(sizes: dict[str, Any], more: bool) -> None:
    check(run(more, **sizes))


@pytest.mark.exhaustive
def test_the_result_may_take_the_memory_of_into() -> None:
    """Or not, if that is needed later."""
    for is_needed in (False, True):
        g = Graph(machine())
        x, y = g.input("x", (5, 13)), g.input("y", (5, 36))
        z = g.square(y)
        (source,) = CASES[3].attributes.values()
        g.output(g.rearrange(x, z, source=source))
        if is_needed:
            g.output(z)
        lowered = lower(g)
        operands = {t.name: np.random.default_rng(1).standard_normal(t.shape).astype(np.float32) for t in g.inputs}
        found, wanted = lowered(**operands), lowered.rounded(**operands)
        for name in wanted:
            assert same_bits(found[name], wanted[name]), name
        at = [lowered.plan.rows[t.name].address for t in (z, g.outputs[0])]
        assert (at[0] == at[1]) != is_needed


@pytest.mark.exhaustive
def test_gradients_flow() -> None:
    for one in CASES:
        lowered = one.lowered(machine(formats="float32"))
        operands = {name: jnp.asarray(value) for name, value in one.operands().items()}
        (output,) = lowered.graph.outputs
        weights = np.random.default_rng(5).standard_normal(output.shape).astype(np.float32)
        loss = lambda run, operands: jnp.sum(run(**operands)[output.name] * weights)  # noqa: B023
        found = jax.jit(jax.grad(lambda x: loss(lowered, x)))(operands)  # noqa: B023
        wanted = jax.grad(lambda x: loss(lowered.exact, x))(operands)  # noqa: B023
        for name in operands:
            assert relative_l2(found[name], wanted[name]) < 1e-5, (one.id, name)


@pytest.mark.parametrize(
    ("name", "shape", "positions", "most"),
    [
        ("heads of a block", (64, 576), flat(64, 576).reshape(576, 64), 2000),
        ("transposed", (64, 64), flat(64, 64).T, 6000),
        ("a column", (64, 1), np.repeat(flat(64, 1), 64, axis=1), 500),
        ("rows", (64, 64), flat(64, 64)[8:40], 150),
    ],
)
def test_cheap_moves_are_cheap(name: str, shape: tuple[int, int], positions: np.ndarray, most: int) -> None:
    g = Graph(pj.MachineConfig())
    g.output(g.rearrange(g.input("x", shape), source=Source(positions)))
    found = lower(g).cost().instructions
    assert most / 2 < found <= most, (name, found)


def test_sources_are_equal_by_contents() -> None:
    one, same, other = Source([[2, 0], [1, -1]]), Source(np.array([[2, 0], [1, -1]], np.int8)), Source([[2, 0, 1, -1]])
    assert one == same and hash(one) == hash(same) and one != other and one != "x"
    assert repr(one).startswith("Source(2x2, 3 moved, ")
    assert not one.positions.flags.writeable


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda g, x, y: Source([1, 2]), r"source: expected integers \[rows, columns\], got int64 \(2,\)"),
        (lambda g, x, y: Source([[0.5]]), r"source: expected integers \[rows, columns\], got float64 \(1, 1\)"),
        (lambda g, x, y: Source([[-2]]), "source: expected positions from 0 on, or -1, got -2"),
        (lambda g, x, y: g.rearrange(x, source=[[0]]), "rearrange: source: expected a Source, got list"),
        (lambda g, x, y: g.rearrange(x, source=Source([[20]])), r"positions below 20, the elements of x \(x\), got 20"),
        (
            lambda g, x, y: g.rearrange(x, y, source=Source([[0]])),
            r"rearrange: shape of into \(y\): expected \(1, 1\), got \(2, 3\)",
        ),
    ],
)
def test_wrong_arguments(apply: Any, message: str) -> None:
    g = Graph(machine())
    with pytest.raises(OperatorError, match=message):
        apply(g, g.input("x", (4, 5)), g.input("y", (2, 3)))
