"""The examples, in short versions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tuning_through_the_machine() -> None:
    tuning = load("quantisation_aware_tuning")
    result = tuning.tune(400)
    assert result["after"] < result["before"] / 3
    assert result["bytes_agree"]
    # Negative control: without steps nothing gets better.
    assert tuning.tune(0)["after"] == result["before"]
