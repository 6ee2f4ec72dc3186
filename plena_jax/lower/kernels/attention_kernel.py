"""The program of attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from plena_jax.lower.kernel import LARGE, Kernel, Pointer, constant_rows
from plena_jax.lower.kernels.attention_geometry import Geometry, Lanes, Room, key_of, pattern_of, patterns_of
from plena_jax.lower.kernels.attention_slots import HeadSlots, blocks_of
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.registers import Fp, Gp
from plena_jax.lower.tensors import Matrix, Rows, Tensor, row_unit


def emit(
    k: Kernel,
    out: Rows,
    q: Rows,
    keys: Matrix,
    values: Matrix,
    mask: Rows | Matrix | None,
    sinks: Rows | Matrix | None,
    **attributes: Any,
) -> None:
    """For each group of queries, head and tile of keys: scores, their shares row by row, the part of the result.

    A head that begins or ends inside of a block is copied with zeros around it, so that the products over whole blocks
    see nothing else of them; its result is cut out in the same way. If the head of keys has other lanes, the copy is
    shifted up, or multiplied with a permutation. Few queries (a row to decode) of heads that share keys are taken as
    queries of one head.

    Heads that are head slots of a block (HLEN lanes, or a multiple) are not cut out: products with V take their columns
    alone and write them where they belong; V_MASK keeps corrections and divisions there. If they are one slot, M_BTMM
    makes the scores of a tile for all query heads of a block at once.

    FP SRAM: -LARGE, LARGE, 1 and the scale; workspace: maximum and denominator of each query of a group; sinks.
    Registers: f for -LARGE, scale, maximum, denominator and correction; those of products.
    """
    g = Geometry.of(k.config, q, keys, mask is not None, **attributes)
    room = Room.of(g, isinstance(mask, Matrix), _like(sinks))
    attention = _Attention(k, g, room, out, q, keys, values, mask, sinks is not None)
    if sinks is not None:
        attention.read_sinks(sinks)
    attention.slots.clear_rest()
    for first, rows in g.groups:
        attention.group(first, rows)


def _like(operand: Rows | Matrix | None) -> Tensor | None:
    """A tensor that takes as much room."""
    if operand is None:
        return None
    return Tensor(operand.name, operand.shape, "hbm" if isinstance(operand, Matrix) else "vram")


@dataclass
class _Attention:
    """Emits one attention.

    Attributes:
        k, g, room: the kernel, what is static, the workspace.
        out, q, keys, values, mask: operands.
        has_sinks: whether FP SRAM has a sink for each head.
        lanes_held: whose lanes are ones in the row of lanes now.
        patterns: what a group sees of its tiles: ones and zeros, and what is added to scores.
    """

    k: Kernel
    g: Geometry
    room: Room
    out: Rows
    q: Rows
    keys: Matrix
    values: Matrix
    mask: Rows | Matrix | None
    has_sinks: bool
    lanes_held: tuple[int, int] | None = None
    patterns: dict[bytes, tuple[Rows, Rows]] = field(default_factory=dict)

    @cached_property
    def slots(self) -> HeadSlots:
        """For heads that are head slots."""
        return HeadSlots(self.k, self.g, self.room, self.out, self.q)

    def rows_at(self, first: int, rows: int, blocks: int = 1, held: int | None = None) -> Rows:
        """A part of the workspace."""
        return self.room.rows(self.k, first, rows, blocks, held)

    # -- before the first group ---------------------------------------------------------------------------------------

    def read_sinks(self, sinks: Rows | Matrix) -> None:
        """Sinks to FP SRAM: a lane is left, and summed."""
        k, b, first, lanes = self.k, self.k.b, self.room.patterns, self.k.config.mlen
        sinks, _ = k.in_vram(sinks, first + 1 + constant_rows(k.config))
        for head in range(self.g.heads):
            lane = np.zeros((1, lanes), np.float32)
            lane[0, head % lanes] = 1
            only = k.fetch_constant(lane, first + 1)
            with b.scope():
                product, total = b.gp(self.rows_at(first, 1).address, "product"), b.fp(purpose="sink")
                b.v_mul_vv(product, b.gp(sinks.at(head // lanes), sinks.name), b.gp(only.address, "lane"))
                b.s_add_fp(total, b.fp_zero, b.fp_zero)
                b.v_red_sum(total, product)
                b.s_st_fp(total, b.zero, self._sink(head))

    @property
    def _maximum(self) -> int:
        """Entry of the first query's maximum."""
        return self.k.entry

    @property
    def _total(self) -> int:
        """Entry of the first query's denominator."""
        return self.k.entry + self.g.stack

    def _sink(self, head: int) -> int:
        return self.k.entry + 2 * self.g.stack + head

    # -- groups and heads ---------------------------------------------------------------------------------------------

    def group(self, first: int, rows: int) -> None:
        """All heads of a group of queries."""
        self._fetch_patterns(first, rows)
        for head in range(0, self.g.heads, self.g.stacked):
            self._heads(range(head, head + self.g.stacked), first, rows)

    def _fetch_patterns(self, first: int, count: int) -> None:
        """What the group sees, and -LARGE where it does not."""
        k, b = self.k, self.k.b
        place = self.room.patterns
        self.patterns = {}
        for key, pattern in patterns_of(self.g, first, count).items():
            seen = k.fetch_constant(pattern.astype(np.float32), place)
            held = constant_rows(k.config, len(pattern))
            low = self.rows_at(place + held, len(pattern), held=held)
            place += 2 * held
            self.patterns[key] = seen, low
            with b.scope():
                one, large = b.fp(1.0), b.fp(LARGE)
                with k.each_vector(seen, low) as (source, target):
                    b.v_sub_vf(target, source, one)
                    b.v_mul_vf(target, target, large)

    def _heads(self, heads: range, first: int, rows: int) -> None:
        """Heads with the same keys, of a group of queries, tile after tile."""
        k, key, count = self.k, self.g.key(heads[0]), len(heads) * rows
        query, place = self._query(heads, key, first, rows), self.g.query(heads[0])
        scores, part = self.rows_at(self.room.scores, count), self.rows_at(self.room.part, count, key.blocks)
        if self.g.batched:
            scores = self.slots.scores(place, rows)
        in_place = self.g.direct or (key.whole and len(heads) == 1)
        columns = (key.lane, place.lane, key.size) if self.g.direct else None
        result = self.rows_at(self.room.result, count, key.blocks)
        if in_place:
            result = blocks_of(self.out, place, first, rows)
        if self.g.direct:
            self.slots.select(place)
        if self.has_sinks:
            self._start_with_sinks(heads, rows)
        tiles = self.g.tiles(first, rows)
        for number, (tile, seen) in enumerate(tiles):
            if self.g.batched:
                self.slots.score((first, place.block, key.start, tile), query, self._tile(self.keys, tile, key), key)
            else:
                Product(k, query, self._tile(self.keys, tile, key), transposed=True).emit(scores)
            shown = None if seen is None else self.patterns[key_of(pattern_of(self.g, seen))]
            self._shares(first, tile, scores, shown, None if number == 0 else result, number + 1 == len(tiles))
            product = Product(k, scores, self._tile(self.values, tile, key))
            product.emit(part if number else result, columns=columns)
            if 0 < number < len(tiles) - 1:
                with k.each_vector(result, part) as (total, more):
                    k.b.v_add_vv(total, total, more, self.slots.masked)
        self._divide(count, result, part if len(tiles) > 1 else None)
        if not in_place:
            for number, head in enumerate(heads):
                self._place(key, self.g.query(head), _some(result, number * rows, rows), first)

    def _start_with_sinks(self, heads: range, rows: int) -> None:
        """The sink of a head is the first maximum of each of its queries."""
        b = self.k.b
        with b.scope():
            sink, entry = b.fp(purpose="sink"), b.gp(0, "number of the query")
            for head in heads:
                b.s_ld_fp(sink, b.zero, self._sink(head))
                with b.loop(rows, (entry, 1)):
                    b.s_st_fp(sink, entry, self._maximum)

    def _tile(self, matrix: Matrix, tile: int, head: Lanes) -> Matrix:
        """The blocks of a head of a tile of keys or values."""
        row, column = matrix.start
        start = row + tile * head.width, column + head.block * head.width
        return Matrix((head.width, head.blocks * head.width), matrix.tensor, matrix.role, start)

    # -- lanes --------------------------------------------------------------------------------------------------------

    def _query(self, heads: range, key: Lanes, first: int, rows: int) -> Rows:
        """Queries of heads, one after the other, in the lanes of their keys, zeros around them."""
        if self.g.batched:
            return self.slots.query(self.g.query(heads[0]), first, rows)
        if key.whole and len(heads) == 1:
            return blocks_of(self.q, self.g.query(heads[0]), first, rows)
        query = self.rows_at(self.room.query, len(heads) * rows, key.blocks)
        for number, head in enumerate(heads):
            place = self.g.query(head)
            self._move(blocks_of(self.q, place, first, rows), place, _some(query, number * rows, rows), key)
        return query

    def _place(self, key: Lanes, place: Lanes, result: Rows, first: int) -> None:
        """A result in the lanes of its keys to those of its head; other heads that are there stay."""
        k, rows = self.k, result.shape[0]
        out = blocks_of(self.out, place, first, rows)
        # Blocks that begin before the head does hold an earlier one.
        fresh = [(place.block + block) * place.width >= place.start for block in range(out.blocks)]
        if all(fresh):
            self._move(result, key, out, place)
            return
        moved = self.rows_at(self.room.part, rows, place.blocks)
        self._move(result, key, moved, place)
        with k.each_row(rows, out, moved) as at:
            for block, is_fresh in enumerate(fresh):
                if is_fresh:
                    k.b.v_add_vf(at(out, block), at(moved, block), k.b.fp_zero)
                else:
                    k.b.v_add_vv(at(out, block), at(out, block), at(moved, block))

    def _move(self, source: Rows, origin: Lanes, target: Rows, goal: Lanes) -> None:
        """Columns of a head from some lanes to others, zeros around them."""
        k, b = self.k, self.k.b
        if origin.whole:
            with k.each_row(source.shape[0], source, target) as at:
                for block in range(source.blocks):
                    b.v_add_vf(at(target, block), at(source, block), b.fp_zero)
            return
        upwards = goal.lane - origin.lane
        if upwards and not (upwards > 0 and origin.blocks == goal.blocks == 1):
            ones = np.zeros((source.shape[1], target.shape[1]), np.float32)
            columns = np.arange(origin.size)
            ones[origin.lane + columns, goal.lane + columns] = 1
            Product(k, source, k.constants.place(ones, "weights")).emit(target)
            return
        lanes = self._lanes(origin)
        with b.scope():
            shift = b.gp(upwards, "lanes") if upwards else None
            with k.each_row(source.shape[0], source, target, fixed=[lanes]) as at:
                for block in range(source.blocks):
                    b.v_mul_vv(at(target, block), at(source, block), at(lanes, block))
                    if shift is not None:
                        b.v_shft_v(at(target, block), at(target, block), shift)

    def _lanes(self, head: Lanes) -> Rows:
        """A row with ones in the lanes of a head."""
        unit = row_unit(self.k.config)
        if self.lanes_held != (head.lane, head.blocks):
            ones = np.zeros((1, head.blocks * head.width), np.float32)
            ones[0, head.lane : head.lane + head.size] = 1
            self.lanes_held = head.lane, head.blocks
            self.k.fetch_constant(ones, self.room.lanes)
        return self.rows_at(self.room.lanes, 1, head.blocks, unit)

    # -- softmax ------------------------------------------------------------------------------------------------------

    def _shares(
        self,
        first: int,
        tile: int,
        scores: Rows,
        shown: tuple[Rows, Rows] | None,
        result: Rows | None,
        is_last: bool,
    ) -> None:
        """Scores become exponentials of differences to the maximum so far; what is there already is corrected for it.

        Args:
            first, tile: first query, number of the tile.
            scores: of the tile.
            shown: which keys are seen, and what is added for that; None if all are.
            result: of the tiles before, None if there are none.
            is_last: no tile follows.
        """
        k, b, rows = self.k, self.k.b, scores.shape[0]
        added = self._added(first, rows, tile)
        patterns = [] if shown is None else list(shown)
        moving = [o for o in (scores, result, added, *patterns) if o is not None and o.shape[0] == rows]
        fixed = [o for o in patterns if o.shape[0] != rows]
        with b.scope():
            lowest = b.fp(-LARGE, "lowest score")
            factor = b.fp(self.g.factor, "scale") if self.g.factor != 1.0 else None
            most, total, change = b.fp(purpose="maximum"), b.fp(purpose="denominator"), b.fp(purpose="correction")
            entry = b.gp(0, "number of the query")
            with k.each_row(rows, *moving, fixed=fixed) as at:
                row = at(scores)
                if factor is not None:
                    b.v_mul_vf(row, row, factor)
                if shown is not None:
                    b.v_add_vv(row, row, at(shown[1]))
                if added is not None:
                    b.v_add_vv(row, row, at(added))
                    # Below that a difference of two could be infinite less infinite.
                    b.v_max_vf(row, row, lowest)
                corrects = self._maximum_of(entry, row, result is None, (lowest, most, change))
                if not is_last:
                    b.s_st_fp(most, entry, self._maximum)
                b.v_sub_vf(row, row, most)
                b.v_exp_v(row, row)
                if shown is not None:
                    # The smallest exponential is not zero.
                    b.v_mul_vv(row, row, at(shown[0]))
                self._denominator(entry, row, total, change if corrects else None, result is None)
                if result is not None:
                    self._correct(result, change, at)
                b.add(entry, entry, 1)

    def _added(self, first: int, rows: int, tile: int) -> Rows | None:
        """The tile of the mask."""
        if self.mask is None:
            return None
        lanes = self.k.config.mlen
        if isinstance(self.mask, Rows):
            return Rows(self.mask.name, self.mask.at(tile, first), (rows, lanes), lanes, self.mask.pitch)
        (row, column), there = self.mask.start, self.rows_at(self.room.mask, rows)
        start = row + first, column + tile * lanes
        self.k.fetch(Matrix((rows, lanes), self.mask.tensor, self.mask.role, start), there)
        return there

    def _maximum_of(self, entry: Gp, row: Gp, is_first: bool, registers: tuple[Fp, Fp, Fp]) -> bool:
        """The maximum, and the correction for it; whether there is one."""
        b, (lowest, most, change) = self.k.b, registers
        if is_first and not self.has_sinks:
            b.s_add_fp(most, lowest, b.fp_zero)
            b.v_red_max(most, row)
            return False
        b.s_ld_fp(most, entry, self._maximum)
        b.s_add_fp(change, most, b.fp_zero)
        b.v_red_max(most, row)
        b.s_sub_fp(change, change, most)
        b.s_exp_fp(change, change)
        return True

    def _denominator(self, entry: Gp, row: Gp, total: Fp, change: Fp | None, is_first: bool) -> None:
        """The sum so far, corrected, and that of the row."""
        b = self.k.b
        if change is None:
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
        elif is_first:
            # A sink is the first exponential: one.
            b.s_add_fp(total, change, b.fp_zero)
        else:
            b.s_ld_fp(total, entry, self._total)
            b.s_mul_fp(total, total, change)
        b.v_red_sum(total, row)
        b.s_st_fp(total, entry, self._total)

    def _correct(self, result: Rows, change: Fp, at: Pointer) -> None:
        for block in range(result.blocks):
            self.k.b.v_mul_vf(at(result, block), at(result, block), change, self.slots.masked)

    def _divide(self, rows: int, result: Rows, part: Rows | None) -> None:
        """The last part is added, and all is divided by the denominator."""
        k, b = self.k, self.k.b
        with b.scope():
            total, entry = b.fp(purpose="denominator"), b.gp(0, "number of the query")
            with k.each_row(rows, *([result] if part is None else [result, part])) as at:
                b.s_ld_fp(total, entry, self._total)
                b.s_reci_fp(total, total)
                for block in range(result.blocks):
                    if part is not None:
                        b.v_add_vv(at(result, block), at(result, block), at(part, block), self.slots.masked)
                    b.v_mul_vf(at(result, block), at(result, block), total, self.slots.masked)
                b.add(entry, entry, 1)


def _some(operand: Rows, start: int, count: int) -> Rows:
    """Some rows."""
    return Rows(operand.name, operand.at(0, start), (count, operand.shape[1]), operand.lanes, operand.pitch)
