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
    # Negative control: it begins where rounding alone ends, and takes its time.
    assert 0.5 < result["losses"][0] / result["before"] < 2
    assert result["losses"][50] > result["after"]
