"""Whether a state is one of a configuration: run checks it before it compiles anything."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import EngineError
from plena_jax.machine.state import MachineState, allocated_hbm


def check_state(state: MachineState, config: MachineConfig) -> None:
    """Compare every field with what the configuration implies; VRAM and HBM may be smaller than configured.

    Raises:
        EngineError: naming the field, what it is and what it has to be.
    """
    leaves = jax.tree.leaves(state)
    try:
        seen = tuple([(leaf.dtype, leaf.shape) for leaf in leaves])
    except AttributeError:
        seen = ()
    if _good.get(seen) is config:
        return
    _look(state, config)
    while len(_good) >= _KEPT:
        _good.pop(next(iter(_good)))
    _good[seen] = config


#: Configurations that states of some types and shapes are good for.
_good: dict[Any, MachineConfig] = {}
_KEPT = 64


def _look(state: MachineState, config: MachineConfig) -> None:
    fields, _ = jax.tree.flatten_with_path(state)
    for (path, got), expected in zip(fields, _expected(config), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name == "vram":
            rows = _axis(got, 0)
            allowed = f"float32[1 to {config.vector_sram_size} (VECTOR_SRAM_SIZE), {config.vlen}]"
            good = _is(got, (rows, config.vlen), (np.float32,)) and 1 <= rows <= config.vector_sram_size
        elif name == "hbm":
            allowed = f"uint8 or float32, one-dimensional, of at most {config.hbm_size} bytes (HBM_SIZE)"
            good = _is(got, (_axis(got, 0),), (np.uint8, np.float32)) and allocated_hbm(got, config) <= config.hbm_size
        else:
            allowed = _described(expected)
            good = _is(got, expected.shape, (expected.dtype,))
        if not good:
            raise EngineError(
                f"{name}: the state has {_described(got)}, the configuration needs {allowed}: the state was made for "
                "another machine (or is a batch: use vmap)"
            )


@lru_cache(maxsize=32)
def _expected(config: MachineConfig) -> list[Any]:
    """Shapes and dtypes of the leaves of a state."""
    return jax.tree.leaves(jax.eval_shape(partial(MachineState.create, config, vram_rows=1, hbm_bytes=0)))


def _is(leaf: Any, shape: tuple[int, ...], dtypes: tuple[Any, ...]) -> bool:
    return getattr(leaf, "dtype", None) in dtypes and leaf.shape == shape


def _axis(leaf: Any, axis: int) -> int:
    return np.shape(leaf)[axis] if np.ndim(leaf) > axis else 0


def _described(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else f"{leaf!r} ({type(leaf).__name__})"
