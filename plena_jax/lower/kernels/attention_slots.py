"""Heads that are head slots of a block of lanes: M_BTMM makes their scores, V_MASK selects their results."""

from __future__ import annotations

from dataclasses import dataclass

from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels.attention_geometry import Geometry, Lanes, Room
from plena_jax.lower.tensors import Matrix, Rows


def blocks_of(operand: Rows, head: Lanes, first: int, rows: int) -> Rows:
    """The blocks of a head, of some rows."""
    shape = rows, head.blocks * head.width
    return Rows(operand.name, operand.at(head.block, first), shape, operand.lanes, operand.pitch)


@dataclass
class HeadSlots:
    """What is different for heads that are head slots, of one attention.

    Attributes:
        k, g, room: the kernel, what is static, the workspace.
        out, q: operands.
        copied: first query and block that the workspace has a copy of.
        scored: what the scores in the workspace are of.
    """

    k: Kernel
    g: Geometry
    room: Room
    out: Rows
    q: Rows
    copied: tuple[int, int] | None = None
    scored: tuple[int, ...] | None = None

    # -- results ------------------------------------------------------------------------------------------------------

    @property
    def masked(self) -> int:
        """The mask operand of what changes results: lanes of other heads stay as they are."""
        return int(self.g.direct)

    def select(self, place: Lanes) -> None:
        """V_MASK := the slots of a head."""
        b, hlen = self.k.b, self.k.config.hlen
        with b.scope():
            slots = b.gp((1 << place.size // hlen) - 1 << place.lane // hlen, "slots of the head")
            b.c_set_v_mask_reg(slots)

    def clear_rest(self) -> None:
        """Zeros in the last block of the result, if it has lanes that no head writes."""
        if self.g.direct and self.out.rest:
            self.k.clear(self.out.at(self.out.blocks - 1), self.out.shape[0])

    # -- scores -------------------------------------------------------------------------------------------------------

    def scores(self, place: Lanes, rows: int) -> Rows:
        """Where those of a head are: slot after slot, each with MLEN rows."""
        return self.room.rows(self.k, self.room.scores + place.lane // place.size * self.k.config.mlen, rows)

    def score(self, scored: tuple[int, ...], query: Rows, keys: Matrix, key: Lanes) -> None:
        """Scores of all query heads of a block with a head of keys of a tile, unless they are the last that were made.

        A head changes those of its own slot alone, and asks for those of a tile once.

        Args:
            scored: first query, block of queries, first column of keys, tile.
            query: the block.
            keys: the block of keys.
            key: the head there.
        """
        if self.scored == scored:
            return
        self.scored = scored
        b = self.k.b
        with self.k.opened(keys) as base, b.scope():
            tile, x = b.gp(0, "tile"), b.gp(keys.offset(0, 0), keys.name)
            b.h_prefetch_m(tile, x, base, 1, keys.precision)
            b.set(x, query.address)
            b.add(tile, tile, key.lane)
            b.m_btmm(tile, x)
            b.set(x, self.room.rows(self.k, self.room.scores, 1).address)
            b.m_bmm_wo(x, 0)

    def query(self, place: Lanes, first: int, rows: int) -> Rows:
        """The block of queries that has a head, where MLEN rows can be read: those behind the last are anything."""
        block = blocks_of(self.q, place, first, rows)
        if rows == self.k.config.mlen:
            return block
        copy = self.room.rows(self.k, self.room.query, rows)
        if self.copied != (first, place.block):
            self.copied = first, place.block
            with self.k.each_vector(block, copy) as (source, target):
                self.k.b.v_add_vf(target, source, self.k.b.fp_zero)
        return copy
