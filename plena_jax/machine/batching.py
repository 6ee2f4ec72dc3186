"""What ``vmap`` needs to know: decisions that must be the same in all lanes, and how many lanes run together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

#: Machines that take a step together on CPU. More share the cost of a step, but fall out of the cache: 64 at once took
#: 1.6 times as long as 16.
CPU_LANES = 16


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


def in_groups(function: Callable[..., Any], data: Any, program: Any) -> Any:
    """``function(data, *program)``; a ``vmap`` over ``data`` alone is done in groups, any other one by one."""
    run = custom_vmap(lambda data, program: function(data, *program))

    @run.def_vmap
    def rule(axis_size: int, batched: Any, data: Any, program: Any) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten((data, program))

        def one(leaves: list[Any]) -> Any:
            data, program = jax.tree.unflatten(structure, leaves)
            return function(data, *program)

        result = map_lanes(one, leaves, jax.tree.leaves(batched), any(jax.tree.leaves(batched[1])))
        return result, jax.tree.map(lambda _: True, result)

    return run(data, program)


def map_lanes(function: Callable[[list[Any]], Any], leaves: list[Any], flags: list[bool], sequential: bool) -> Any:
    """``function`` of a list of arrays for each lane, in groups on CPU.

    Args:
        function: of one lane.
        leaves, flags: arrays, and which of them have a lane axis in front.
        sequential: one lane after the other.
    """

    def one(lanes: list[Any]) -> Any:
        lane = iter(lanes)
        return function([next(lane) if is_lane else leaf for leaf, is_lane in zip(leaves, flags, strict=True)])

    lanes = [leaf for leaf, is_lane in zip(leaves, flags, strict=True) if is_lane]
    if sequential:
        return lax.map(one, lanes)
    if jax.default_backend() == "cpu" and lanes[0].shape[0] > CPU_LANES:
        return lax.map(one, lanes, batch_size=CPU_LANES)
    return jax.vmap(one)(lanes)
