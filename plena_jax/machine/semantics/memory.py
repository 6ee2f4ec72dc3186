"""Semantics of the HBM transfers (docs/machine.md section 4.6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.semantics.registry import Stage, semantic
from plena_jax.machine.transfer import (
    Transfer,
    Transfers,
    cell_bits,
    cells_of,
    element_address,
    read_bytes,
    scale_address,
)
from plena_jax.machine.view import View

# In the record of a transfer rs1 and rs2 hold the 64-bit addresses of elements and scales (low word, offset: high
# word), mask the stride, argument whether the KV type is meant.


Look = Callable[[jax.Array], Any]


def _nothing(values: jax.Array) -> None:
    return None


def _fetch(
    view: View, step: Step, transfers: tuple[Transfer, Transfer], rows: jax.Array, look: Look = _nothing
) -> tuple[jax.Array, Any]:
    """float32 [n, lanes], HBM rows of one transfer; and what ``look`` finds in them (see :meth:`Transfer.decode`)."""
    if view.has_values:
        index, there = stored_cells(view.config, step, transfers, rows)
        values = view.hbm_values(jnp.where(there, index, 0), there & (index < view.hbm.shape[0]))
        return values, look(values)

    def fetch(transfer: Transfer, hbm: jax.Array, step: Step, rows: jax.Array) -> tuple[jax.Array, Any]:
        if transfer.problem:
            none = jnp.zeros((rows.shape[0], transfer.lanes), jnp.float32)  # never executed: the instruction faults
            return none, look(none)
        element = element_address(u32(step.rs1), u32(step.rs1_lane), step.mask, rows)
        scale = scale_address(u32(step.rs2), u32(step.rs2_lane), step.mask, rows, transfer.ratio)
        elements = lambda: read_bytes(hbm, *element, transfer.element_bytes, inside=view.inside)
        scales = lambda: read_bytes(hbm, *scale, transfer.scale_bytes, line_only=True, inside=view.inside)
        return transfer.decode(rows.shape[0], elements, scales, look)

    first, second = transfers
    if first == second:
        return fetch(first, view.hbm, step, rows)
    branches = [lambda *a, t=t: fetch(t, *a) for t in (first, second)]
    return lax.cond(step.argument != 0, branches[1], branches[0], view.hbm, step, rows)


def stored_cells(
    config: MachineConfig, step: Step, transfers: tuple[Transfer, Transfer], rows: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """int32 [n, lanes] cells of the values face that rows of a transfer take, and whether there are such cells."""
    low, high = element_address(u32(step.rs1), u32(step.rs1_lane), step.mask, rows)
    first, second = (cells_of(t, cell_bits(config), low, high) for t in transfers)
    return jax.tree.map(lambda a, b: jnp.where(step.argument != 0, b, a), first, second)


def _precision(fields: dict[str, int]) -> int:
    return int(fields["precision"] != 0)


@semantic("H_PREFETCH_M", stage=Stage.WIDE, parts=lambda c: c.prefetch_m_rows // wide_rows(c), argument=_precision)
def h_prefetch_m(view: View, step: Step) -> jax.Array:
    """Rows of tiles := HBM rows, unrounded (MATRIX_SRAM_TYPE where that is intended)."""
    return tile_rows(view, step, _nothing)[0]


def tile_rows(view: View, step: Step, look: Look) -> tuple[jax.Array, Any]:
    """What H_PREFETCH_M writes, and what ``look`` finds in it: zeros if none of it can be subnormal."""
    count = wide_rows(view.config)
    rows = step.part * count + jnp.arange(count, dtype=jnp.int32)
    if view.config.intended.matrix_sram_type:
        rounded = view.round_matrix(_fetch(view, step, Transfers.of(view.config).matrix, rows)[0])
        return rounded, look(rounded)
    return _fetch(view, step, Transfers.of(view.config).matrix, rows, look)


@semantic("H_PREFETCH_V", stage=Stage.ROW, parts=lambda c: c.hbm_v_prefetch_amount, argument=_precision)
def h_prefetch_v(view: View, step: Step) -> jax.Array:
    """A VRAM row := an HBM row."""
    rows = jnp.asarray(step.part, jnp.int32).reshape(1)
    return view.round(_fetch(view, step, Transfers.of(view.config).vector, rows)[0][0])


@semantic("H_STORE_V", stage=Stage.STORE, parts=lambda c: c.hbm_v_writeback_amount, argument=_precision)
def h_store_v(view: View, step: Step) -> tuple[jax.Array, jax.Array] | jax.Array:
    """Element and scale bytes of a VRAM row, padded to the larger of the two formats; or the values they stand for."""
    transfers = Transfers.of(view.config).vector
    if view.has_values:
        stored = view.row(step.rd + step.part)
        act, kv = (view.round_stored(stored, is_kv) for is_kv in (False, True))
        return jnp.where(step.argument != 0, kv, act)
    elements, scales = (max(getattr(t, n) for t in transfers) for n in ("element_bytes", "scale_bytes"))

    def encode(transfer: Transfer, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        if transfer.problem:
            return jnp.zeros(elements, jnp.uint8), jnp.zeros(scales, jnp.uint8)  # never executed
        data, factors = transfer.encode(row)
        return jnp.pad(data, (0, elements - data.shape[0])), jnp.pad(factors, (0, scales - factors.shape[0]))

    row = view.row(step.rd + step.part)
    first, second = transfers
    if first == second:
        return encode(first, row)
    return lax.cond(step.argument != 0, lambda r: encode(second, r), lambda r: encode(first, r), row)
