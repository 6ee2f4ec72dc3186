"""The memories of a running machine: packing the readable state, and writing windows of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from plena_jax.config import MachineConfig
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.batching import any_lane
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import Flag, Step
from plena_jax.machine.semantics import Accumulator, Stage, branches
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.state import MachineState
from plena_jax.machine.transfer import Transfers, cell_bits, exact_products, significand, vram_format
from plena_jax.machine.view import block_of


class Memories(NamedTuple):
    """What the datapath writes.

    Attributes:
        vram: float32 [rows, VLEN].
        cells: float32 [rows, VLEN], see :class:`Layout`.
        m_accum: float32 [BLEN, BLEN].
        hbm: uint8 [bytes].
        int_sram: uint32 [1024]; the datapath writes what V_TOPK writes, and reads nothing.
        careful: bool [], whether matrix SRAM may hold what fast sums exclude: subnormals, or longer significands than
            the formats of HBM give.
    """

    vram: jax.Array
    cells: jax.Array
    m_accum: jax.Array
    hbm: jax.Array
    int_sram: jax.Array
    careful: jax.Array


def has_subnormal(a: jax.Array) -> jax.Array:
    """bool []: whether any element is subnormal."""
    return jnp.any(is_subnormal(a))


def is_subnormal(a: jax.Array) -> jax.Array:
    """bool [...]: which elements are subnormal."""
    # Without the sign, and less one, so that zeros are the largest.
    return (lax.bitcast_convert_type(a, jnp.uint32) << 1) - np.uint32(1) < np.uint32(0x00FFFFFF)


def has_long_significand(mram: jax.Array, config: MachineConfig) -> jax.Array:
    """bool []: whether a product with a VRAM element may not be exact although the configuration's formats say so."""
    # A product has as many bits as both significands together: of 24, so many must be free.
    taken = significand(vram_format(config)) if exact_products(config) else 0
    return jnp.any(leaves_too_few(mram, taken))


def leaves_too_few(a: jax.Array, bits: int) -> jax.Array:
    """bool [...]: which elements' significands leave fewer than so many bits of 24 free."""
    return (lax.bitcast_convert_type(a, jnp.uint32) & np.uint32((1 << bits) - 1)) != 0


# -- between the readable state and what runs -------------------------------------------------------------------------


def pack_memories(config: MachineConfig, state: MachineState) -> Memories:
    """The memories and float registers of a state as the datapath holds them."""
    layout = Layout(config)

    def rows(values: jax.Array) -> jax.Array:
        flat = values.reshape(-1)
        return jnp.pad(flat, (0, -flat.shape[0] % config.vlen)).reshape(-1, config.vlen)

    parts = (state.mram, state.fp_sram, state.f, state.bmm_scale, state.v_accum, state.hv_accum, state.hm_accum)
    cells = jnp.concatenate([rows(part) for part in parts])
    assert cells.shape[0] == layout.rows
    # A store writes a window of a whole row, M_MM reads BLEN rows and M_BMM more: smaller memories are filled up while
    # they run.
    window = max(max(t.element_bytes, t.scale_bytes) for t in Transfers.of(config).vector)
    window *= 8 // cell_bits(config) if state.has_values else 1
    hbm = jnp.pad(state.hbm, (0, max(window - state.hbm.shape[0], 0)))
    least = max(config.blen, wide_rows(config))
    vram = jnp.pad(state.vram, ((0, max(least - state.vram.shape[0], 0)), (0, 0)))
    return Memories(vram, cells, state.m_accum, hbm, state.int_sram, any_lane(needs_care(config, state)))


def needs_care(config: MachineConfig, state: MachineState) -> jax.Array:
    """bool []: whether matrix SRAM holds what fast sums exclude."""
    careful = has_subnormal(state.mram)
    return careful if state.has_values else careful | has_long_significand(state.mram, config)


def unpack_memories(config: MachineConfig, memories: Memories, state: MachineState, fresh: jax.Array) -> MachineState:
    """``state`` with memories and float registers taken from what ran; ``fresh`` has a bit per drained accumulator."""
    cells, layout = memories.cells, Layout(config)

    def values(first: int, shape: tuple[int, ...]) -> jax.Array:
        count = int(np.prod(shape))
        return cells[first : first - (-count // config.vlen)].reshape(-1)[:count].reshape(shape)

    def accumulator(kind: Accumulator, held: jax.Array) -> jax.Array:
        return jnp.where((fresh >> np.uint32(kind)) & 1 == 1, jnp.float32(0), held)

    heads, mlen = config.broadcast_amount, config.mlen
    return state.replace(
        vram=memories.vram[: state.vram.shape[0]],
        mram=values(layout.mram, (config.tiles, mlen, mlen)),
        fp_sram=values(layout.fp_sram, (SRAM_ENTRIES,)),
        f=values(layout.f, (8,)),
        m_accum=accumulator(Accumulator.M, memories.m_accum),
        v_accum=accumulator(Accumulator.V, values(layout.v_accum, (config.blen,))),
        hv_accum=accumulator(Accumulator.HV, values(layout.hv_accum, (heads, mlen))),
        hm_accum=accumulator(Accumulator.HM, values(layout.hm_accum, (heads, mlen, mlen))),
        hbm=memories.hbm[: state.hbm.shape[0]],
    )


# -- rows of either memory ------------------------------------------------------------------------------------------


def first_row(config: MachineConfig, stage: Stage, s: Step, rows: int) -> tuple[jax.Array, jax.Array]:
    """int32 first row that a part of a ROW or WIDE instruction writes, and whether in vector SRAM (else ``cells``)."""
    layout = Layout(config)
    regions = np.array([getattr(layout, b.region) if b.region else -1 for b in branches(stage)], np.int32)
    region = jnp.asarray(regions)[s.branch]
    return jnp.where(region < 0, s.rd, region) + s.part * rows, s.has(Flag.RD_VRAM)


def pick_rows(in_vram: jax.Array, first: jax.Array, rows: int, vram: jax.Array, cells: jax.Array) -> jax.Array:
    """float32 [rows, VLEN] from either."""
    pick = lambda memory, here: block_of(memory, jnp.where(here, first, 0), rows)
    return jnp.where(in_vram, pick(vram, in_vram), pick(cells, ~in_vram))


def put_rows(
    in_vram: jax.Array, first: jax.Array, new: jax.Array, vram: jax.Array, cells: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rows written to vector SRAM, or to ``cells``; the other one gets back what it has."""

    def put(memory: jax.Array, here: jax.Array) -> jax.Array:
        row = jnp.where(here, first, 0)
        kept = jnp.where(here, new, block_of(memory, row, len(new)))
        return lax.dynamic_update_slice(memory, kept, (row, jnp.int32(0)), allow_negative_indices=False)

    return put(vram, in_vram), put(cells, ~in_vram)


def held(s: Step, read: Callable[..., jax.Array], *memories: jax.Array) -> jax.Array:
    """``read(*memories)``, done before any write of the memories that depends on it.

    Reads are merged into what uses them. Where that comes after a write of the same memory, XLA copies the memory. A
    conditional, whose condition always holds but is not known, is not merged.
    """
    shape = jax.eval_shape(read, *memories)
    return lax.cond(s.parts >= 0, read, lambda *_: jnp.zeros(shape.shape, shape.dtype), *memories)


# -- windows of a memory of one dimension ------------------------------------------------------------------------------


def put_counted(memory: jax.Array, at: jax.Array, data: jax.Array, count: jax.Array) -> jax.Array:
    """``memory`` [n] with the first ``count`` elements of ``data`` at ``at``; what lies behind them stays."""
    return put(memory, at, data, jnp.arange(data.shape[0], dtype=jnp.int32) < count)


def put(memory: jax.Array, at: jax.Array, data: jax.Array, wanted: jax.Array) -> jax.Array:
    """``memory`` [n] with those elements of ``data`` from ``at`` on that are ``wanted``."""
    size = data.shape[0]
    if size == 0:
        return memory
    start = window_start(memory, at, size)
    old = lax.dynamic_slice(memory, (start,), (size,), allow_negative_indices=False)
    new = merged(old, at.astype(jnp.int32) - start, data, wanted)
    return lax.dynamic_update_slice(memory, new, (start,), allow_negative_indices=False)


def window_start(memory: jax.Array, at: jax.Array, size: int) -> jax.Array:
    """int32: where a window of ``size`` over ``at`` begins; near the end of memory before ``at``."""
    return jnp.minimum(at.astype(jnp.int32), memory.shape[0] - size)


def merged(old: jax.Array, shift: jax.Array, data: jax.Array, wanted: jax.Array) -> jax.Array:
    """``old`` with those elements of ``data``, moved up by ``shift``, that are ``wanted``."""
    index = jnp.arange(old.shape[0], dtype=jnp.int32) - shift
    clipped = jnp.clip(index, 0, data.shape[0] - 1)
    return jnp.where((index >= 0) & (index < data.shape[0]) & wanted[clipped], data[clipped], old)
