"""The fused engine inside ``jit``, ``vmap`` and derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from plena_jax.config import Formats
from plena_jax.machine.adjoint import Floats
from plena_jax.machine.batching import in_groups
from plena_jax.machine.differentiate import NOTHING, differentiated, joined, split, with_tangents
from plena_jax.machine.fused.adjoint import Adjoint
from plena_jax.machine.fused.execute import run_values
from plena_jax.machine.fused.tables import Plan, Tables
from plena_jax.machine.memories import Memories

Pieces = tuple[Tables, ...]


class _Residuals(NamedTuple):
    """What the derivative needs of a run: memories at the start, all values of each piece, and what was run."""

    start: Memories
    values: tuple[jax.Array, ...]
    precision: Formats | None
    segments: Pieces


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def run_pieces(plan: Plan, memories: Memories, precision: Formats | None, pieces: Pieces) -> Memories:
    """The memories after all pieces of a schedule; differentiable with respect to float memories.

    Under ``vmap`` over memories or formats, machines take each step together.

    Args:
        plan: what it is compiled for.
        memories: at the start, all of them.
        precision: formats that replace those of the configuration; not differentiable.
        pieces: what to run.
    """
    return _run(plan, memories, precision, pieces)[0]


@partial(jax.jit, static_argnums=0)
def _run(
    plan: Plan, memories: Memories, precision: Formats | None, pieces: Pieces
) -> tuple[Memories, tuple[jax.Array, ...]]:
    def run(data: tuple[Memories, Formats | None], pieces: Pieces) -> tuple[Memories, tuple[jax.Array, ...]]:
        memories, precision = data
        final, kept = _plain(plan, memories, precision, pieces)
        # What is not returned is not copied for each machine.
        return (final if plan.stores else final._replace(hbm=final.hbm[:1])), kept

    final, kept = in_groups(run, (memories, precision), (pieces,))
    return (final if plan.stores else final._replace(hbm=memories.hbm)), kept


def _plain(
    plan: Plan, memories: Memories, precision: Formats | None, pieces: Pieces
) -> tuple[Memories, tuple[jax.Array, ...]]:
    kept = []
    for tables in pieces:
        values = jnp.zeros((tables.entries.shape[0], plan.config.vlen), jnp.float32)
        memories, values, _ = run_values(plan, memories, precision, tables, values)
        kept.append(values)
    return memories, tuple(kept)


@run_pieces.defjvp
def _jvp(plan: Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Memories, Memories]:
    memories, precision, pieces = primals
    memories = differentiated(memories, plan.stores)
    end, values = _run(plan, memories, precision, pieces)
    return with_tangents(_Rule(plan), _Residuals(memories, values, precision, pieces), end, tangents[0])


@dataclass(frozen=True)
class _Rule:
    """See :class:`~plena_jax.machine.differentiate.Rule`."""

    plan: Plan

    @property
    def debug(self) -> None:
        """A debug run is one of single steps."""
        return None

    def push(self, residuals: _Residuals, tangents: Floats) -> Floats:
        """Forward mode, by the plain derivative of the loop."""
        start = residuals.start
        run = lambda floats: split(_plain(self.plan, joined(floats, start), residuals.precision, residuals.segments)[0])
        return jax.jvp(run, (split(start),), (tangents,))[1]

    def pull(self, residuals: _Residuals, bar: Floats) -> tuple[Floats, jax.Array]:
        """Reverse mode."""
        start = residuals.start
        for tables, values in reversed(list(zip(residuals.segments, residuals.values, strict=True))):
            adjoint = Adjoint(self.plan, residuals.precision, tables, values, start.hbm, start.careful)
            bar = adjoint.run_back(bar)
        return bar, jnp.asarray(NOTHING)
