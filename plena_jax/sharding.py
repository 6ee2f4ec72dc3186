"""Arrays spread over the devices of a mesh."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from plena_jax.errors import EngineError


def spread(leaf: Any, has_lanes: bool, mesh: Mesh | None) -> Any:
    """A leaf where the mesh wants it; every host has all of it."""
    if mesh is None or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return leaf
    spec = PartitionSpec(mesh.axis_names[0]) if has_lanes else PartitionSpec()
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, spec), lambda index: values[index])


def memory_of(mesh: Mesh | None) -> int:
    """Bytes of one device; of the host shared by its CPU devices."""
    devices = jax.devices()[:1] if mesh is None else list(mesh.local_devices)
    statistics = devices[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // len(devices)


def row_of(leaf: Any, index: int) -> Any:
    """Row ``index`` of an array; of one that is spread over devices out of the shard that has it.

    Indexing such an array is a masked sum over its devices, which on CPU makes subnormal numbers zero.
    """
    if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
        return leaf[index]
    for shard in leaf.addressable_shards:
        start, stop, _ = shard.index[0].indices(leaf.shape[0])
        if start <= index < stop:
            return shard.data[index - start]
    raise EngineError(f"batch: machine {index} is on another host")
