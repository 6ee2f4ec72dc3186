"""Copies between memories and values: what a schedule reads at the start, and what memories end with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.machine.fused.families import WIDE
from plena_jax.machine.fused.tables import Move, Plan, Tables
from plena_jax.machine.memories import Memories


def each_move(tables: Tables, kind: Move, function: Callable[[Any, jax.Array], Any], carry: Any) -> Any:
    """``carry`` after ``function(carry, move)`` for each move of a kind."""
    take = lambda i: lax.dynamic_index_in_dim(tables.moves, i, keepdims=False, allow_negative_indices=False)
    return lax.fori_loop(tables.bounds[kind], tables.bounds[kind + 1], lambda i, c: function(c, take(i)), carry)


def _copy(target: jax.Array, at: Any, source: jax.Array, start: Any, rows: int) -> jax.Array:
    zero = jnp.int32(0)
    block = lax.dynamic_slice(source, (start, zero), (rows, source.shape[1]), allow_negative_indices=False)
    return lax.dynamic_update_slice(target, block, (at, zero), allow_negative_indices=False)


def _take(source: jax.Array, rows: int, first: int, values: jax.Array, move: jax.Array) -> jax.Array:
    return _copy(values, move[0], source, move[1] - first, rows)


def _give(values: jax.Array, rows: int, first: int, target: jax.Array, move: jax.Array) -> jax.Array:
    return _copy(target, move[1] - first, values, move[0], rows)


def _regions(plan: Plan) -> list[tuple[Move, str]]:
    """Kinds of moves of blocks of rows, and the memory that these are in."""
    tiles = "cells" if plan.whole else "tiles"
    matrix = [(Move.TILE_BLOCK, tiles), (Move.CELLS_BLOCK, "cells")] if plan.has_matrix else []
    return [(Move.VRAM_BLOCK, "vram"), *matrix]


#: Rows of moves by kind, from that of a region on.
_SIZES = (WIDE, 1)


def loaded(plan: Plan, memories: Memories, tiles: jax.Array | None, tables: Tables, values: jax.Array) -> jax.Array:
    """Values at the start: zeros in slot 0, and what the schedule reads of the memories."""
    config, first = plan.config, plan.first_cell
    values = values.at[0].set(0.0)
    for region, name in _regions(plan):
        source = tiles if name == "tiles" else getattr(memories, name)
        assert source is not None
        for step, rows in enumerate(_SIZES):
            if source.shape[0] >= rows:
                take = partial(_take, source, rows, first if name == "cells" else 0)
                values = each_move(tables, Move(region + step), take, values)

    def scalar(values: jax.Array, move: jax.Array) -> jax.Array:
        one = lax.dynamic_slice(memories.cells, (move[1] - first, move[2]), (1, 1), allow_negative_indices=False)
        row = jnp.broadcast_to(one, (1, config.vlen))
        return lax.dynamic_update_slice(values, row, (move[0], jnp.int32(0)), allow_negative_indices=False)

    values = each_move(tables, Move.SCALAR, scalar, values)
    m_accum = jnp.pad(memories.m_accum, ((0, 0), (0, config.vlen - config.blen)))
    return each_move(tables, Move.M_ACCUM, lambda v, m: _copy(v, m[0], m_accum, m[1], 1), values)


def stored(
    plan: Plan, memories: Memories, tiles: jax.Array | None, tables: Tables, values: jax.Array
) -> tuple[Memories, jax.Array | None]:
    """The memories and tiles at the end."""
    config, first = plan.config, plan.first_cell
    ends: dict[str, Any] = {"vram": memories.vram, "cells": memories.cells, "tiles": tiles}
    for region, name in _regions(plan):
        for step, rows in enumerate(_SIZES):
            if ends[name].shape[0] >= rows:
                give = partial(_give, values, rows, first if name == "cells" else 0)
                ends[name] = each_move(tables, Move(region + step + Move.TO_VRAM_BLOCK), give, ends[name])
    cells = ends["cells"]

    def part(target: jax.Array, move: jax.Array, above: int, lane: Any, lanes: int) -> jax.Array:
        taken = lax.dynamic_slice(values, (move[0], lane), (1, lanes), allow_negative_indices=False)
        at = (move[1] - above, move[2] - lane)
        return lax.dynamic_update_slice(target, taken, at, allow_negative_indices=False)

    cells = each_move(tables, Move.TO_SCALAR, lambda c, m: part(c, m, first, jnp.int32(0), 1), cells)
    m_accum = each_move(tables, Move.TO_M_ACCUM, lambda a, m: part(a, m, 0, m[2], config.blen), memories.m_accum)
    cells = each_move(tables, Move.TO_V_ACCUM, lambda c, m: part(c, m, first, m[2], config.blen), cells)

    def entry(int_sram: jax.Array, move: jax.Array) -> jax.Array:
        # Slices first: XLA would convert all values, before the loop.
        held = lax.dynamic_slice(values, (move[0], jnp.int32(0)), (1, 1), allow_negative_indices=False)[0]
        word = lax.bitcast_convert_type(held, jnp.uint32)
        return lax.dynamic_update_slice(int_sram, word, (move[1],), allow_negative_indices=False)

    int_sram = each_move(tables, Move.TO_INT_SRAM, entry, memories.int_sram)
    memories = memories._replace(vram=ends["vram"], cells=cells, m_accum=m_accum, int_sram=int_sram)
    return memories, ends["tiles"]
