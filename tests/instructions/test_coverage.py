"""Every instruction has tests of what it does and of how it faults."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import plena_jax

from . import machine_helpers


def _claimed(kind: str) -> dict[str, list[str]]:
    """Mnemonics to the tests that declare them, over all modules of this package."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for name, test in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_") and test.__module__ == module.__name__:
                for mnemonic in machine_helpers.claims(test, kind):
                    found.setdefault(mnemonic, []).append(f"{path.stem}.{name}")
    return found


MNEMONICS = {entry.mnemonic for entry in plena_jax.INSTRUCTIONS}


def test_every_instruction_is_covered() -> None:
    # That each test runs what it declares, the fixture ``claims`` checks.
    assert set(_claimed("covers")) == MNEMONICS


def test_every_instruction_is_misused() -> None:
    assert set(_claimed("misuses")) == MNEMONICS


def test_the_instruction_set_is_that_of_the_specification() -> None:
    # docs/machine.md section 3.2: opcodes 01 to 37 without 31 and 33.
    assert sorted(entry.opcode for entry in plena_jax.INSTRUCTIONS) == sorted({*range(1, 0x38)} - {0x31, 0x33})


def test_parametrised_claims_are_understood() -> None:
    from . import test_vector

    assert machine_helpers.claims(test_vector.test_row_with_row, "covers") == {"V_ADD_VV", "V_SUB_VV", "V_MUL_VV"}
    assert machine_helpers.claims(test_vector.test_reciprocal, "covers") == {"V_RECI_V"}
    assert machine_helpers.claims(test_vector.test_reciprocal, "misuses") == set()
