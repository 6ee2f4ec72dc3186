"""Operators as functions, their documentation, maps of memory, and the commands that show them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import ops
from plena_jax.cli import main
from plena_jax.lower import CapacityError, Graph, OperatorError, ProgramBuilder, lower, maps
from plena_jax.lower.memory import Pool
from plena_jax.lower.operators import OPERATORS

from .cases import machine, relative_l2

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((5, 23)).astype(np.float32)


def test_operators_are_functions() -> None:
    y = ops.softmax(X, scale=0.5, config=machine())
    assert relative_l2(y, jax.nn.softmax(0.5 * X, axis=1)) < 0.02
    assert relative_l2(y, jax.nn.softmax(X, axis=1)) > 0.02
    assert set(OPERATORS) < set(dir(ops))
    assert "exp(scale * x - max)" in (ops.softmax.__doc__ or "")


def test_programs_are_made_once() -> None:
    first = ops.lowered("softmax", X, scale=0.5, config=machine())
    assert ops.lowered("softmax", X + 1, scale=0.5, config=machine()) is first
    assert ops.lowered("softmax", X, scale=0.25, config=machine()) is not first


@pytest.mark.exhaustive
def test_operators_have_derivatives() -> None:
    config = machine(formats="float32")
    loss = lambda x: jnp.sum(ops.softmax(x, config=config) * X)
    wanted = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x, axis=1) * X))(jnp.asarray(X))
    assert relative_l2(jax.grad(loss)(jnp.asarray(X)), wanted) < 1e-4


def test_tables_of_rotary_embeddings_rotate() -> None:
    """As complex numbers: the first half of a head is the real part, the second the imaginary one."""
    positions, size = np.array([0, 1, 7, 1000]), 8
    cos, sin = ops.rope_tables(positions, size, theta=500.0)
    x = RANDOM.standard_normal((4, size))
    turned = (x[:, :4] + 1j * x[:, 4:]) * np.exp(1j * positions[:, None] * 500.0 ** -(np.arange(4) / 4))
    found = x * cos + np.concatenate([-x[:, 4:], x[:, :4]], axis=1) * sin
    assert relative_l2(found, np.concatenate([turned.real, turned.imag], axis=1)) < 1e-5
    assert relative_l2(found, x) > 0.1
    with pytest.raises(OperatorError, match="rope_tables: size modulo 2: expected 0, got 1"):
        ops.rope_tables(positions, 7)


def test_wrong_calls() -> None:
    with pytest.raises(OperatorError, match=r"softmax: x: expected a matrix, got shape \(23,\)"):
        ops.softmax(X[0])
    with pytest.raises(
        OperatorError, match=r"softmax: too many positional arguments; its signature is softmax\(x, \*, sc"
    ):
        ops.softmax(X, X)
    with pytest.raises(AttributeError, match="no operator 'sofmax'"):
        ops.sofmax  # noqa: B018


def test_every_operator_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    for name, operator in OPERATORS.items():
        assert operator.doc and operator.cost, name
        assert f"### `{operator.usage}`" in page, f"{name}: plena ops --markdown > docs/operators.md"


def test_the_command_lists_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ops"]) == 0
    assert "softmax(x, *, scale=1.0)" in capsys.readouterr().out
    assert main(["ops", "linear"]) == 0
    assert "w: hbm" in capsys.readouterr().out
    assert main(["ops", "--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == set(OPERATORS)
    assert main(["ops", "conv5d"]) == 1
    assert "no operator 'conv5d'" in capsys.readouterr().err


def test_the_command_maps_memory(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["map", "gated_ffn", "x=8x128", "gate=128x192", "up=128x192", "down=192x128", "activation=relu"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [one["name"] for one in found["VRAM"]["allocations"]]
    assert "gated_ffn/relu" in names and "x" in names
    assert [one["name"] for one in found["HBM"]["allocations"]] == ["gate", "up", "down"]
    pytest.importorskip("matplotlib")
    assert main([*arguments, "--plot", str(tmp_path / "map.png")]) == 0
    assert "gated_ffn/linear_2" in capsys.readouterr().out
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["softmax", "x=3"], "input x: shape 3; expected two positive sizes"),
        (["softmax", "3x4"], "argument '3x4'; expected NAME=ROWSxCOLUMNS"),
        (["linear", "x=3x4", "w=5x6"], "linear: rows of w (w): expected 4, got 5"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["map", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


# -- plans ------------------------------------------------------------------------------------------------------------


def test_what_is_live_at_once_does_not_overlap() -> None:
    g = Graph(machine())
    x = g.input("x", (5, 40))
    values = [x]
    for step in ("softmax", "silu", "rms_norm", "exp", "tanh"):
        values.append(g.apply(step, values[-1]))
        values.append(g.add(values[-1], x))
    g.output(g.mul(values[3], values[-1]))
    lowered = lower(g)
    for a in lowered.plan.vram:
        for b in lowered.plan.vram:
            apart = a.stop <= b.start or b.stop <= a.start
            # One that takes over another's memory begins where that ends.
            handed_on = a.start == b.start and (a.last == b.first or b.last == a.first)
            assert a is b or apart or handed_on or a.last < b.first or b.last < a.first, (a, b)
    assert max(one.stop for one in lowered.plan.vram) < 8 * len(lowered.plan.vram), "memory is used again"
    assert maps.as_json(g, lowered.plan)["VRAM"]["unit"] == "rows"


def test_pools_take_the_gap_that_fits_best() -> None:
    pool = Pool("VRAM", 100, "rows")
    assert [pool.take(name, size) for name, size in (("a", 30), ("b", 10), ("c", 20), ("d", 10))] == [0, 30, 40, 60]
    pool.give("a")
    pool.give("c")
    assert pool.take("e", 15) == 40
    assert pool.take("f", 25) == 0
    with pytest.raises(
        CapacityError, match=r"VRAM: g needs 50 rows; 40 of 100 are free, live are f \(25\), b \(10\), e"
    ):
        pool.take("g", 50)


# -- sections ---------------------------------------------------------------------------------------------------------


def test_sections_label_traces_and_faults() -> None:
    b = ProgramBuilder(pj.MachineConfig())
    with b.section("layer"):
        row = b.gp(3, "row")
        with b.section("exp"):
            b.v_exp_v(row, row)
    program = b.program()
    state = pj.MachineState.create(b.config, vram_rows=64)
    with pytest.raises(pj.MachineFault, match="pc 1 in layer/exp: V_EXP_V gp1, gp1: misaligned") as fault:
        pj.run(program, state, b.config)
    assert fault.value.section == "layer/exp"
    assert program.section(0) == "layer"
