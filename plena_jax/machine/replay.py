"""Derivatives of single instructions: a semantic function replayed as a function of what it has read."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.machine.record import Step
from plena_jax.machine.view import View, block_of


class Memory(enum.Enum):
    """What can be read."""

    VRAM = "vram"
    CELLS = "cells"
    HBM = "hbm"


class Site(NamedTuple):
    """A place that was read.

    Attributes:
        memory: which memory.
        row, lane: int32, where a block of VRAM or ``cells`` begins.
        index, there: of HBM, see :meth:`View.hbm_values`.
    """

    memory: Memory
    row: Any = 0
    lane: Any = 0
    index: Any = None
    there: Any = None


class Read(NamedTuple):
    """A place and the cotangent of what was read there."""

    site: Site
    cotangent: jax.Array


@dataclass(frozen=True)
class _Recorder(View):
    """A view that keeps what is read; or, given values, one that gives these back in the same order."""

    sites: list[Site] = field(default_factory=list)
    values: list[jax.Array] = field(default_factory=list)
    given: list[jax.Array] | None = None

    def _take(self, site: Site, read: Callable[[], jax.Array]) -> jax.Array:
        if self.given is not None:
            return self.given.pop(0)
        value = read()
        self.sites.append(site)
        self.values.append(value)
        return value

    def rows(self, row: jax.Array, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """See :class:`View`."""
        return self._take(Site(Memory.VRAM, row, lane), lambda: block_of(self.vram, row, rows, lane, lanes))

    def block(self, row: jax.Array | int, rows: int, lane: jax.Array | int = 0, lanes: int | None = None) -> jax.Array:
        """See :class:`View`."""
        return self._take(Site(Memory.CELLS, row, lane), lambda: block_of(self.cells, row, rows, lane, lanes))

    def hbm_values(self, index: jax.Array, there: jax.Array) -> jax.Array:
        """See :class:`View`."""
        site = Site(Memory.HBM, index=index, there=there)
        return self._take(site, lambda: View.hbm_values(self, index, there))


Function = Callable[..., Any]


def reads_of(function: Function, view: View, step: Step) -> tuple[list[Site], list[jax.Array]]:
    """The places that a semantic function reads, and what is there."""
    recorder = _recorder(view)
    function(recorder, step)
    return recorder.sites, recorder.values


def pull_back(
    function: Function, view: View, step: Step, output: Callable[[Any], tuple[Any, Any]]
) -> tuple[list[Read], Any]:
    """Cotangents of what a semantic function reads.

    Args:
        function, view, step: what is executed; memories as they are before it.
        output: from what the function returns, what is differentiated and its cotangent.

    Returns:
        The reads, and what the function returns.
    """
    sites, values = reads_of(function, view, step)

    def replay(values: list[jax.Array]) -> tuple[Any, Any]:
        result = function(_recorder(view, given=list(values)), step)
        differentiated, cotangent = output(result)
        return differentiated, (cotangent, result)

    _, transpose, (cotangent, result) = jax.vjp(replay, values, has_aux=True)
    (cotangents,) = transpose(cotangent)
    return [Read(*pair) for pair in zip(sites, cotangents, strict=True)], result


def _recorder(view: View, given: list[jax.Array] | None = None) -> _Recorder:
    return _Recorder(**{f.name: getattr(view, f.name) for f in fields(View)}, given=given)


def add_block(memory: jax.Array, row: Any, lane: Any, block: jax.Array) -> jax.Array:
    """``memory`` with ``block`` added at (row, lane)."""
    row, lane = jnp.asarray(row, jnp.int32), jnp.asarray(lane, jnp.int32)
    total = block_of(memory, row, block.shape[0], lane, block.shape[1]) + block
    return lax.dynamic_update_slice(memory, total, (row, lane), allow_negative_indices=False)


def add_reads(cotangents: dict[Memory, jax.Array], reads: list[Read]) -> dict[Memory, jax.Array]:
    """Cotangents of memories with those of reads added; memories that are not given are left out."""
    for site, cotangent in reads:
        if site.memory not in cotangents:
            continue
        memory = cotangents[site.memory]
        if site.memory is Memory.HBM:
            there = jnp.where(site.there, cotangent, jnp.float32(0))
            memory = memory.at[site.index].add(there, mode="promise_in_bounds")
        else:
            memory = add_block(memory, site.row, site.lane, cotangent)
        cotangents = cotangents | {site.memory: memory}
    return cotangents
