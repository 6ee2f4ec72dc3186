"""The public face: arguments, errors, explanations, files, the command line."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax.cli import main
from plena_jax.frontend.files import SavedProgramError, load
from plena_jax.frontend.hosted import HostedProgram, HostWarning
from tests.frontend.networks import NETWORKS, normal
from tests.frontend.test_machine import relative
from tests.frontend.test_networks import compiled
from tests.lower.cases import machine

CONFIG = machine()


def test_pytrees_and_static_arguments() -> None:
    def function(weights: dict[str, Any], pair: tuple[Any, Any], count: int) -> dict[str, Any]:
        return {"sum": [pair[0] + count * pair[1]], "scaled": (weights["w"] * 2,)}

    arguments = {"w": normal(0, 3, 4)}, (normal(1, 5), normal(2, 5)), 3
    program = pj.compile(function, *arguments, config=CONFIG, static_argnums=2)
    found = program(*arguments)
    assert jax.tree.structure(found) == jax.tree.structure(function(*arguments))
    with pytest.raises(pj.ArgumentError, match="static argument 2: compiled for 3, got 4"):
        program(*arguments[:2], 4)
    with pytest.raises(pj.ArgumentError, match=r"argument 1\[0\]: expected shape \(5,\), got \(6,\)"):
        program(arguments[0], (normal(1, 6), normal(2, 5)), 3)
    with pytest.raises(pj.ArgumentError, match="arguments: expected"):
        program(arguments[0], [normal(1, 5), normal(2, 5)], 3)


def test_all_problems_are_named_at_once() -> None:
    def function(x: Any) -> Any:
        y = jnp.sort(x)
        y = y + jnp.sin(x)
        return jax.lax.cond(x[0] > 0, jnp.exp, jnp.tanh, y)

    with pytest.raises(pj.UnsupportedOperation, match="3 operations") as caught:
        pj.compile(function, normal(0, 8), config=CONFIG)
    problems = caught.value.problems
    assert [p.operation for p in problems] == ["sort", "sin", "cond"]
    assert all(Path(p.source.partition(":")[0]).name == "test_compile.py" for p in problems)
    assert "jnp.where" in problems[2].reason
    explanation = pj.explain(function, normal(0, 8), config=CONFIG)
    assert not explanation.supported and explanation.problems == tuple(problems)
    assert "not supported: sort" in str(explanation)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (lambda x: x + 1j, (normal(0, 3),), "complex64"),
        (lambda x: x.astype(jnp.int32), (normal(0, 3),), "does not round to integers"),
        (lambda x, i: jax.lax.dynamic_slice(x, (i,), (2,)), (normal(0, 5), np.int32(1)), "make the place static"),
        (lambda x: jax.lax.while_loop(lambda h: h.sum() < 9, jnp.exp, x), (normal(0, 3),), "end depends on data"),
        (lambda x: jnp.sum(x, 0), (np.zeros((0, 3), np.float32),), "reduction of nothing"),
        (lambda x, i: x[i, i], (normal(0, 5, 5), np.array([1, 2], np.int32)), "places that depend on data"),
        (lambda i: i * 2, (np.array([1, 2], np.int32),), "integers that depend on data"),
    ],
)  # fmt: skip
def test_what_is_not_taken(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(pj.UnsupportedOperation, match=message):
        pj.compile(function, *arguments, config=CONFIG)


def test_what_does_not_fit() -> None:
    config = machine()
    with pytest.raises(pj.PlenaError, match="HBM"):
        pj.compile(lambda x, w: x @ w, normal(0, 4, 4096), np.zeros((4096, 8192), np.float32), config=config)


def test_explanations_name_operators_and_lines() -> None:
    network = NETWORKS["mlp"]
    rows = pj.explain(network.function, *network.arguments, config=CONFIG).operations
    assert [(row[0], row[2]) for row in rows] == [
        ("dot", "load, linear"),
        ("relu", "relu"),
        ("dot", "linear"),
    ]
    assert all("networks.py:" in row[3] for row in rows)


def test_profiles_add_up() -> None:
    program = compiled("mlp")
    profile = program.profile()
    assert profile.instructions == program.cost.instructions
    assert profile.cycles == program.cost.cycles
    assert [s.name for s in profile.sections] == [n.name for n in program.lowered.graph.nodes]
    assert program.asm(sections=True).count("; ") == len(profile.sections)


def test_saved_programs_run_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, program = NETWORKS["llama"], compiled("llama")
    folder = tmp_path / "saved"
    program.save(folder, *network.arguments)
    saved = load(folder)
    (found,) = saved.results(saved.run())
    np.testing.assert_array_equal(found, np.asarray(program(*network.arguments)))
    with pytest.raises(SavedProgramError, match="not an empty folder"):
        program.save(folder, *network.arguments)
    images = [f"--{flag}={folder / name}" for flag, name in (("hbm", "hbm.bin"), ("fpsram", "fp_sram.bin"))]
    images += [f"--vram={folder / 'vram.bin'}", f"--settings={folder / 'plena_settings.toml'}", "--no-dump", "--json"]
    assert main(["run", str(folder / "program.mem"), *images]) == 0
    assert json.loads(capsys.readouterr().out)["instructions"] >= program.cost.instructions
    (folder / "vram.bin").unlink()
    with pytest.raises(SavedProgramError, match=r"missing vram\.bin"):
        load(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        textwrap.dedent("""
        import jax, jax.numpy as jnp
        def layer(x, w):
            return jax.nn.silu(x @ w)
        def bad(x):
            return jnp.sort(x)
        """)
    )
    settings = tmp_path / "s.toml"
    CONFIG.to_toml(settings)
    common = ["--settings", str(settings)]
    command = ["compile", f"{file}:layer", "--args", "4x16", "16x8", *common]
    assert main([*command, "--json", "--profile"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["report"]["good"] and data["profile"]["instructions"] == data["instructions"]
    assert main([*command, "--sections"]) == 0
    assert "rounded reference" in capsys.readouterr().out
    assert main([*command, "--explain"]) == 0
    assert "silu" in capsys.readouterr().out
    assert main(["compile", f"{file}:bad", "--args", "4", *common]) == 1
    assert "sort" in capsys.readouterr().err
    assert main(["compile", f"{file}:nothing", *common]) == 1
    assert "has no nothing" in capsys.readouterr().err


def test_the_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = tmp_path / "s.toml"
    CONFIG.to_toml(settings)
    command = ["demo", "--front-end", "jax", "--small", "--tokens", "5", "--settings", str(settings), "--json"]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["good"] and data["report"]["machine"]["differing"] == 0


def test_the_host_may_help_and_says_so() -> None:
    def function(x: Any, w: Any) -> Any:
        ordered = jnp.sort(jnp.tanh(x @ w), axis=-1)
        return {"sines": jnp.sin(ordered) + 1, "largest": ordered[:, -1] * 2, "plain": x * 3}

    x, w = normal(0, 4, 9), normal(1, 9, 6)
    config = machine(formats="float32")
    with pytest.raises(pj.UnsupportedOperation, match="2 operations"):
        pj.compile(function, x, w, config=config)
    with pytest.warns(HostWarning, match="on the host, not on the machine: sort, sin"):
        program = pj.compile(function, x, w, config=config, host=True)
    assert isinstance(program, HostedProgram)
    assert [piece.program is None for piece in program.pieces] == [False, True, False]
    assert [problem.operation for problem in program.host_operations] == ["sort", "sin"]
    found, reference, wanted = program(x, w), program.reference(x, w), function(x, w)
    for name in wanted:
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(reference[name]))
        assert relative(np.asarray(found[name]), np.asarray(wanted[name])) < 1e-4
    assert isinstance(pj.compile(lambda x: x + 1, x, config=config, host=True), pj.CompiledProgram)
