"""What a wide step can be: the families of operations, their operands, and how a semantic function sees them.

A wide step runs one operation on many independent values at once. Values are rows of one array, ``values`` [slots,
VLEN]; a scalar (f register, entry of FP SRAM) is a row that holds it in every lane. An operation is an *entry* of
integers: slots of its operands and what else its record says. Its semantic function runs on a private memory of just
these operands, so nothing of the instructions' arithmetic is written again here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.machine.fused.operands import Machine
from plena_jax.machine.record import Flag, Step
from plena_jax.machine.semantics import lanewise, matrix, memory, vector
from plena_jax.machine.semantics.matrix import fresh, wide_rows
from plena_jax.machine.semantics.vector import TOPK_ENTRIES
from plena_jax.machine.sums import accumulate


class Entry(enum.IntEnum):
    """Columns of an entry, int32 (unsigned values as bit patterns)."""

    #: Slots: rs1, rs2, and the old value of what is written. A transfer has addresses there (see ``memory.py``).
    A = 0
    B = 1
    D = 2
    #: Those of the record.
    MASK = 3
    ARGUMENT = 4
    FRESH = 5
    #: A lane, an amount, the high word of an address, or a part.
    X = 6
    #: A slot, a part, a high word, or the row in a tile.
    Y = 7
    #: Where a list of operands begins in the pool.
    POOL = 8


COLUMNS = len(Entry)
#: In place of the family of operations that only copy a scalar: they make no value (see ``copies.py``).
COPY = -3
#: Rows that a wide step writes.
WIDE = 64
#: Operations of a lane-wise step when there are only few.
FEW = 4
#: Rows of products when there are only few.
FEW_PRODUCTS = 8


class Family(enum.IntEnum):
    """Operations that run together."""

    ADD = 0
    MULTIPLY = enum.auto()
    SELECT = enum.auto()
    EXP = enum.auto()
    RECIPROCAL = enum.auto()
    SQRT = enum.auto()
    #: The same of f registers.
    ADD_SCALARS = enum.auto()
    MULTIPLY_SCALARS = enum.auto()
    SELECT_SCALARS = enum.auto()
    EXP_SCALARS = enum.auto()
    RECIPROCAL_SCALARS = enum.auto()
    SHIFT = enum.auto()
    SUM = enum.auto()
    SUM_MASKED = enum.auto()
    MAX = enum.auto()
    MAX_MASKED = enum.auto()
    #: A row of hm_accum or hv_accum, written out.
    WRITE_OUT = enum.auto()
    MAP = enum.auto()
    #: A row of vector SRAM put together of blocks of BLEN lanes: what M_MM_WO and M_MV_WO write.
    ASSEMBLE = enum.auto()
    #: M_MM and the like one by one, where a chain of them is not a product.
    MM = enum.auto()
    TMM = enum.auto()
    MV = enum.auto()
    TMV = enum.auto()
    BMM = enum.auto()
    BMV = enum.auto()
    BTMV = enum.auto()
    PREFETCH_V = enum.auto()
    PREFETCH_V_KV = enum.auto()
    TOPK = enum.auto()
    #: Rows times tiles: M_MM and M_MV from one write-out to the next; with M_TMM among them.
    PRODUCT = enum.auto()
    PRODUCT_TRANSPOSED = enum.auto()
    #: Tiles from HBM.
    PREFETCH_M = enum.auto()
    PREFETCH_M_KV = enum.auto()
    #: The only one that writes no value.
    STORE = enum.auto()


Compute = Callable[[Machine, jax.Array, jax.Array], jax.Array]
Operands = Callable[[MachineConfig, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Kind:
    """How a family runs.

    Attributes:
        compute: ``(machine, entry, rows) -> float32 [unit, VLEN]``, where the rows are an array, or by ``lanes``.
        operands: ``(config, entry, pool) -> int32 [k]``, slots of the rows.
        unit: rows that an operation writes.
        sizes: operations of a step, by bucket: the smallest first.
        lanes: of each operand, whether only the first one is looked at; empty for all of all.
    """

    compute: Compute
    operands: Operands
    unit: Callable[[MachineConfig], int] = lambda config: 1
    sizes: Callable[[MachineConfig], tuple[int, ...]] = lambda config: (FEW, WIDE)
    lanes: tuple[bool, ...] = ()


def _step(entry: jax.Array, **fields: Any) -> Step:
    zero: Any = jnp.int32(0)
    values = dict.fromkeys(Step._fields, zero)
    values |= {"parts": jnp.int32(1), "mask": entry[Entry.MASK], "argument": entry[Entry.ARGUMENT]}
    values |= {"fresh": entry[Entry.FRESH]}
    return Step(**(values | fields))


# -- lane by lane -----------------------------------------------------------------------------------------------------


def _lanewise(function: Callable[..., Any], reads: tuple[Entry, ...], dest: str = "row", shift: bool = False) -> Kind:
    """A function of rows or scalars.

    Args:
        function: the semantic function.
        reads: the operands' columns, in the order of their rows in the private memory; D and A of what is reduced.
        dest: "row", "scalar", or "reduced" for a scalar of whole rows.
        shift: rs2 is an amount.
    """
    rs2 = reads.index(Entry.B) if Entry.B in reads else 0

    def compute(machine: Machine, entry: jax.Array, rows: Any) -> jax.Array:
        # All of this is known when it is compiled, so that operands are plain slices.
        flags: Any = int(Flag.RS1_VRAM | Flag.RS2_VRAM | (Flag.RD_VRAM if dest == "row" else 0))
        step = _step(
            entry, flags=flags, rd=np.int32(0), rs1=np.int32(0), rs2=entry[Entry.X] if shift else np.int32(rs2)
        )
        if dest == "reduced":
            view = machine.view(rows[1][None], rows[0][None, :1])
        else:
            taken = jnp.stack([row[:1] for row in rows]) if dest == "scalar" else rows
            view = machine.view(taken, taken)
        found: jax.Array = function(view, step)
        return found[None] if dest == "row" else jnp.broadcast_to(found[:1], (1, machine.config.vlen))

    kind = Kind(compute, lambda config, entry, pool: jnp.stack([entry[name] for name in reads]))
    if dest == "row":
        return kind
    if dest == "reduced":
        return replace(kind, lanes=(True, False))
    # Scalars take next to no time, however many.
    return replace(kind, sizes=lambda config: (WIDE,), lanes=(True,) * len(reads))


def _written_out(machine: Machine, entry: jax.Array, rows: jax.Array) -> jax.Array:
    return matrix.m_bmv_wo(machine.view(rows, rows, hv_accum=jnp.int32(0)), _step(entry))[None]


def _mapped(machine: Machine, entry: jax.Array, rows: jax.Array) -> jax.Array:
    # Every row has its scalar in all lanes.
    entries = jnp.stack([jnp.diagonal(rows), jnp.zeros(rows.shape[1], jnp.float32)])
    return vector.s_map_v_fp(machine.view(entries, entries), _step(entry))[None]


def _pooled(count: Callable[[MachineConfig], int]) -> Operands:
    return lambda config, entry, pool: _list(pool, entry[Entry.POOL], count(config))


def _list(pool: jax.Array, start: jax.Array, count: int) -> jax.Array:
    return jax.lax.dynamic_slice(pool, (start,), (count,), allow_negative_indices=False)


# -- rows and tiles, one by one ---------------------------------------------------------------------------------------


def _tile(config: MachineConfig, entry: jax.Array) -> jax.Array:
    return entry[Entry.B] + jnp.arange(config.mlen, dtype=jnp.int32)


def _with_tile(*others: Callable[[MachineConfig, jax.Array, jax.Array], jax.Array]) -> Operands:
    """Other slots, then those of the tile at B."""
    return lambda config, entry, pool: jnp.concatenate(
        [*(other(config, entry, pool) for other in others), _tile(config, entry)]
    )


def _one(name: Entry) -> Operands:
    return lambda config, entry, pool: entry[name][None]


def _block_product(function: Callable[..., Any], transposed: bool, m: Machine, e: jax.Array, r: jax.Array) -> jax.Array:
    """M_MM or M_TMM by itself: BLEN rows of m_accum in BLEN lanes."""
    size = m.config.blen
    x, old, tile = r[:size], r[size : 2 * size, :size], r[2 * size :]
    zero, row = jnp.int32(0), e[Entry.Y]
    step = _step(e, rs1=zero if transposed else row, rs2=row if transposed else zero)
    x, w = function(m.view(x, tile), step)
    return jnp.pad(accumulate(fresh(step, old), x, w), ((0, 0), (0, m.config.vlen - size)))


def _vector_product(
    function: Callable[..., Any], accumulator: str, m: Machine, e: jax.Array, r: jax.Array
) -> jax.Array:
    """A row times a tile: rows are the accumulator, the broadcast scale, the row, the tile."""
    part = e[Entry.ARGUMENT]
    step = _step(e, rs1=jnp.int32(2), rs1_lane=e[Entry.X], rs2=jnp.int32(0), part=part)
    places = {accumulator: jnp.int32(0) if accumulator == "v_accum" else -part, "bmm_scale": jnp.int32(1)}
    return function(m.view(r[2:3], jnp.concatenate([r[:2], r[3:]]), **places), step)[None]


def _vector_kind(function: Callable[..., Any], accumulator: str) -> Kind:
    scale = _one(Entry.Y)
    return Kind(
        partial(_vector_product, function, accumulator),
        _with_tile(_one(Entry.D), scale, _one(Entry.A)),
        sizes=lambda config: (FEW,),
    )


def _heads(m: Machine, e: jax.Array, r: jax.Array) -> jax.Array:
    """A part of M_BMM or M_BTMM: rows are those of the part, the old ones of the accumulator, the scale, the tile."""
    size, part = wide_rows(m.config), e[Entry.Y]
    row = jax.lax.rem(part, jnp.int32(m.config.mlen // size)) * size
    cells = r[size:]
    step = _step(e, rs1=jnp.int32(size + 1), rs1_lane=e[Entry.X], rs2=-row, part=part)
    view = m.view(r[:size], cells, hm_accum=-part * size, bmm_scale=jnp.int32(size))
    return matrix.m_bmm(view, step)


def _head_operands(config: MachineConfig, entry: jax.Array, pool: jax.Array) -> jax.Array:
    size = wide_rows(config)
    old = entry[Entry.D] + jnp.where(entry[Entry.FRESH] == 1, 0, jnp.arange(size, dtype=jnp.int32))
    return jnp.concatenate([_list(pool, entry[Entry.POOL], size), old, entry[Entry.A][None], _tile(config, entry)])


def _block_operands(config: MachineConfig, entry: jax.Array, pool: jax.Array) -> jax.Array:
    offset = jnp.arange(config.blen, dtype=jnp.int32)
    x = _list(pool, entry[Entry.POOL], config.blen)
    old = entry[Entry.D] + jnp.where(entry[Entry.FRESH] == 1, 0, offset)
    return jnp.concatenate([x, old, _tile(config, entry)])


# -- transfers, top k -------------------------------------------------------------------------------------------------


def transfer_step(entry: jax.Array, argument: jax.Array | int) -> Step:
    """The step of a transfer, whose part is in X's place and high words in Y (elements) and FRESH (scales)."""
    return _step(
        entry,
        rs1=entry[Entry.A],
        rs1_lane=entry[Entry.Y],
        rs2=entry[Entry.B],
        rs2_lane=entry[Entry.FRESH],
        part=entry[Entry.X],
        rd=-entry[Entry.X],
        argument=jnp.asarray(argument, jnp.int32),
    )


def _transfer(function: Callable[..., Any], argument: int, m: Machine, entry: jax.Array, rows: jax.Array) -> jax.Array:
    result = function(m.view(rows, rows), transfer_step(entry, argument))
    return result.reshape(-1, m.config.vlen)


def _transfers(function: Callable[..., Any], argument: int) -> Kind:
    none: Operands = lambda config, entry, pool: jnp.zeros(1, jnp.int32)
    return Kind(partial(_transfer, function, argument), none)


def _blocks(config: MachineConfig) -> tuple[int, ...]:
    """Blocks of rows that a step takes."""
    return tuple(sorted({1, max(1, WIDE // wide_rows(config))}))


def topk_rows(config: MachineConfig) -> int:
    """Rows of logits that V_TOPK looks at."""
    return -(-max(experts for experts, _ in TOPK_POLICIES) // config.vlen)


def _topk(m: Machine, entry: jax.Array, rows: jax.Array) -> jax.Array:
    """Weights, then indices as bit patterns, each in every lane of a row."""
    weights, order, _ = vector.v_topk(m.view(rows, rows), _step(entry, rs1=jnp.int32(0)))
    indices = jax.lax.bitcast_convert_type(order, jnp.float32)
    both = jnp.concatenate([weights, indices])
    return jnp.broadcast_to(both[:, None], (2 * TOPK_ENTRIES, m.config.vlen))


def _kinds() -> dict[Family, Kind]:
    a, b, d = Entry.A, Entry.B, Entry.D
    one = lambda config: (1,)
    return {
        Family.ADD: _lanewise(lanewise.add, (a, b)),
        Family.MULTIPLY: _lanewise(lanewise.multiply, (a, b)),
        Family.SELECT: _lanewise(lanewise.select, (a, b)),
        Family.EXP: _lanewise(lanewise.exp, (a,)),
        Family.RECIPROCAL: _lanewise(lanewise.reciprocal, (a,)),
        Family.SQRT: _lanewise(lanewise.sqrt, (a,), "scalar"),
        Family.ADD_SCALARS: _lanewise(lanewise.add, (a, b), "scalar"),
        Family.MULTIPLY_SCALARS: _lanewise(lanewise.multiply, (a, b), "scalar"),
        Family.SELECT_SCALARS: _lanewise(lanewise.select, (a, b), "scalar"),
        Family.EXP_SCALARS: _lanewise(lanewise.exp, (a,), "scalar"),
        Family.RECIPROCAL_SCALARS: _lanewise(lanewise.reciprocal, (a,), "scalar"),
        Family.SHIFT: _lanewise(vector.v_shft_v, (a,), shift=True),
        Family.SUM: _lanewise(vector.v_red_sum, (d, a), "reduced"),
        Family.SUM_MASKED: _lanewise(vector.v_red_sum_masked, (d, a), "reduced"),
        Family.MAX: _lanewise(vector.v_red_max, (d, a), "reduced"),
        Family.MAX_MASKED: _lanewise(vector.v_red_max_masked, (d, a), "reduced"),
        Family.WRITE_OUT: Kind(_written_out, _one(a)),
        Family.MAP: Kind(_mapped, _pooled(lambda c: c.vlen), sizes=lambda c: (FEW, WIDE // 4)),
        Family.MM: Kind(partial(_block_product, matrix.m_mm, False), _block_operands, lambda c: c.blen, one),
        Family.TMM: Kind(partial(_block_product, matrix.m_tmm, True), _block_operands, lambda c: c.blen, one),
        Family.MV: _vector_kind(matrix.m_mv, "v_accum"),
        Family.TMV: _vector_kind(matrix.m_tmv, "v_accum"),
        Family.BMM: Kind(_heads, _head_operands, wide_rows, _blocks),
        Family.BMV: _vector_kind(matrix.m_bmv, "hv_accum"),
        Family.BTMV: _vector_kind(matrix.m_btmv, "hv_accum"),
        Family.PREFETCH_V: _transfers(memory.h_prefetch_v, 0),
        Family.PREFETCH_V_KV: _transfers(memory.h_prefetch_v, 1),
        Family.TOPK: Kind(_topk, _pooled(topk_rows), lambda c: 2 * TOPK_ENTRIES, one),
    }


#: Of f registers, instead of rows.
OF_SCALARS: dict[int, Family] = {
    Family.ADD: Family.ADD_SCALARS,
    Family.MULTIPLY: Family.MULTIPLY_SCALARS,
    Family.SELECT: Family.SELECT_SCALARS,
    Family.EXP: Family.EXP_SCALARS,
    Family.RECIPROCAL: Family.RECIPROCAL_SCALARS,
}
#: Loads of tiles.
LOADS = (Family.PREFETCH_M, Family.PREFETCH_M_KV)
#: All families but ASSEMBLE, PRODUCT*, PREFETCH_M* and STORE, which are not functions of so many rows (see
#: ``execute.py``).
KINDS = _kinds()


def sizes(family: Family, config: MachineConfig) -> tuple[int, ...]:
    """Operations of a step, by bucket."""
    if family in (Family.PRODUCT, Family.PRODUCT_TRANSPOSED):
        return FEW_PRODUCTS, WIDE
    if family in (Family.ASSEMBLE, Family.STORE):
        return FEW, WIDE
    if family in LOADS:
        return _blocks(config)
    return KINDS[family].sizes(config)


def unit(family: Family, config: MachineConfig) -> int:
    """Rows that an operation writes."""
    if family in LOADS:
        return wide_rows(config)
    return KINDS[family].unit(config) if family in KINDS else int(family is not Family.STORE)


def written_rows(config: MachineConfig) -> int:
    """Rows that every step writes, those behind what it is for included."""
    return max(WIDE, config.blen)
