"""What ``vmap`` needs to know: decisions that must be the same in all lanes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


@custom_vmap
def any_lane(predicate: jax.Array) -> jax.Array:
    """``predicate``; under ``vmap``, whether it holds in any lane, as one unbatched value.

    For a choice between a fast way and a careful one that gives the same where the fast one will do. A batched choice
    would make ``vmap`` take both ways, and turn every index of a loop that depends on it into a gather.
    """
    return predicate


@any_lane.def_vmap
def _any_lane_rule(axis_size: int, batched: Any, predicate: jax.Array) -> tuple[jax.Array, bool]:
    return any_lane(jnp.any(predicate, axis=0) if batched[0] else predicate), False
