"""Comparing whole machine states, bit for bit."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from plena_jax import MachineState
from plena_jax.machine.state import FLOAT_FIELDS


def bits(leaf: Any) -> np.ndarray:
    """A leaf of a state as integers: NaN equals NaN only if every bit does."""
    array = np.asarray(leaf)
    return array.view(np.uint32) if array.dtype == np.float32 else array


def differences(a: MachineState, b: MachineState, ignore: tuple[str, ...] = ()) -> dict[str, int]:
    """How many words differ, by field; empty for equal states."""
    found = {}
    for item in dataclasses.fields(MachineState):
        if item.name in ignore:
            continue
        pairs = zip(jax.tree.leaves(getattr(a, item.name)), jax.tree.leaves(getattr(b, item.name)), strict=True)
        count = sum(int(np.sum(bits(x) != bits(y))) for x, y in pairs)
        if count:
            found[item.name] = count
    return found


def batch_of(states: list[MachineState]) -> MachineState:
    """States stacked along a new first axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)


def lane(batch: MachineState, index: int) -> MachineState:
    """One state of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], batch)


FLOATS = FLOAT_FIELDS
