"""Semantics of the HBM transfers (docs/machine.md section 4.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from plena_jax.bits import u32
from plena_jax.config import MachineConfig
from plena_jax.machine.record import Step
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.semantics.registry import Stage, semantic
from plena_jax.machine.transfer import (
    Decoding,
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


def _decoding(view: View, step: Step, transfer: Transfer, rows: jax.Array) -> Decoding:
    """Ways to float32 [n, lanes], HBM rows of one transfer, from bytes."""
    if transfer.problem:
        # Never executed: the instruction faults.
        return Decoding.only(lambda: jnp.zeros((rows.shape[0], transfer.lanes), jnp.float32))
    element = element_address(u32(step.rs1), u32(step.rs1_lane), step.mask, rows)
    scale = scale_address(u32(step.rs2), u32(step.rs2_lane), step.mask, rows, transfer.ratio)
    elements = lambda: read_bytes(view.hbm, *element, transfer.element_bytes, inside=view.inside)
    scales = lambda: read_bytes(view.hbm, *scale, transfer.scale_bytes, line_only=True, inside=view.inside)
    return transfer.decoding(rows.shape[0], elements, scales)


def _fetch(view: View, step: Step, transfers: tuple[Transfer, Transfer], rows: jax.Array) -> jax.Array:
    """float32 [n, lanes]: HBM rows of one transfer."""
    if view.has_values:
        index, there = stored_cells(view.config, step, transfers, rows)
        return view.hbm_values(jnp.where(there, index, 0), there & (index < view.hbm.shape[0]))
    first, second = transfers
    if first == second:
        return _decoding(view, step, first, rows).taken()
    kv, other = (lambda t=t: _decoding(view, step, t, rows).taken() for t in (second, first))
    return lax.cond(step.argument != 0, kv, other)


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
    return view.round_matrix(_fetch(view, step, Transfers.of(view.config).matrix, _tile_rows(view, step)))


def _tile_rows(view: View, step: Step) -> jax.Array:
    count = wide_rows(view.config)
    return step.part * count + jnp.arange(count, dtype=jnp.int32)


def tile_decoding(view: View, step: Step, is_kv: bool) -> Decoding:
    """Ways to what H_PREFETCH_M writes, for one of its formats."""
    if view.has_values or view.config.intended.matrix_sram_type:
        return Decoding.only(lambda: h_prefetch_m(view, step))
    return _decoding(view, step, Transfers.of(view.config).matrix[is_kv], _tile_rows(view, step))


@semantic("H_PREFETCH_V", stage=Stage.ROW, parts=lambda c: c.hbm_v_prefetch_amount, argument=_precision)
def h_prefetch_v(view: View, step: Step) -> jax.Array:
    """A VRAM row := an HBM row."""
    rows = jnp.asarray(step.part, jnp.int32).reshape(1)
    return view.round(_fetch(view, step, Transfers.of(view.config).vector, rows)[0])


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
