"""The README's code does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import plena_jax as pj

ROOT = Path(__file__).parents[1]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_examples_print_what_their_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    said, printed, raised = [], [], []
    for block in blocks("README.md"):
        said += re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        try:
            exec(block, names)
        except pj.MachineFault as fault:
            raised.append(f"# MachineFault: {fault}")
            assert raised[-1] in block
        printed += capsys.readouterr().out.splitlines()
    assert len(said) >= 2
    assert printed == said
    assert len(raised) == 1
    assert names["sums"].shape == (256,)
    assert names["codes"].dtype == "uint32"


@pytest.mark.parametrize(
    ("page", "prints"), [("docs/gradients.md", 3), ("docs/lowering.md", 4), ("docs/compile.md", 4)]
)
def test_examples_of_pages(page: str, prints: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    text = "\n".join(blocks(page))
    exec(text, names)
    said = re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == prints


def test_the_commands_exist() -> None:
    from plena_jax.cli import parser

    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^plena .*?(?=  |$|#)", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = command.split("|")[0].split()[1:]
        parser().parse_args(words)


def test_the_package_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    import doctest

    failed, tried = doctest.testmod(pj)
    assert (failed, tried) == (0, 3)
