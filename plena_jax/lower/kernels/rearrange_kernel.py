"""The instructions of a rearrangement (:mod:`~plena_jax.lower.kernels.rearrange_plan`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from plena_jax.lower.kernel import UNROLL, Kernel
from plena_jax.lower.kernels.rearrange_gather import Gather
from plena_jax.lower.kernels.rearrange_lanes import progressions
from plena_jax.lower.kernels.rearrange_plan import Elements, Group, Move, Number, Piece, Rearrangement
from plena_jax.lower.registers import Fp, Gp
from plena_jax.lower.tensors import Rows, round_up

#: Pieces that are added in one pass over a run, and parts of a product that have registers of their own: each takes
#: two registers or three.
_TOGETHER = 3


@dataclass(frozen=True)
class Mover:
    """Emits moves.

    Attributes:
        k: the kernel.
        plan: the moves.
        out, x, into: operands.
    """

    k: Kernel
    plan: Rearrangement
    out: Rows
    x: Rows
    into: Rows | None

    @cached_property
    def masks(self) -> Rows:
        """Masks, then one-hot rows of elements, in the workspace behind the rows of a gather."""
        contents = [*self.plan.masks, *(np.eye(self.out.lanes)[lane] for lane in self.hot)]
        return self.k.fetch_constant(np.stack(contents).astype(np.float32), spare_rows(self.k.config.blen))

    @cached_property
    def hot(self) -> list[int]:
        """Lanes that elements are taken from."""
        return hot_lanes(self.plan)

    def emit(self) -> None:
        """All moves."""
        b, config = self.k.b, self.k.config
        if self.plan.columns:
            self._fetch_columns()
        if self.plan.masks or self.hot:
            assert self.masks.address
        for move in self.plan.moves:
            self._move(move)
        if self.plan.gathers:
            self.k.clear(self.k.scratch, config.blen)
        for gather in self.plan.gathers:
            self._gather(gather)
        if self.plan.elements:
            with b.scope():
                value = b.fp(purpose="element")
                for vector in self.plan.elements:
                    self._elements(vector, value)

    # -- places -------------------------------------------------------------------------------------------------------

    def _source(self, move: Move, term: int) -> Rows:
        if term == move.into:
            assert self.into is not None
            return self.into
        return self.x

    def _from(self, rows: Rows, places: np.ndarray) -> tuple[int, int]:
        """The first address of a progression of places [vectors, 2], and the step."""
        first = rows.at(int(places[0, 0]), int(places[0, 1]))
        return first, rows.at(int(places[1, 0]), int(places[1, 1])) - first if len(places) > 1 else 0

    def _mask(self, number: int) -> int:
        return self.masks.at(0, number)

    # -- pieces and numbers -------------------------------------------------------------------------------------------

    def _move(self, move: Move) -> None:
        b, count = self.k.b, len(move.places)
        target = self._from(self.out, move.places[:, 0])
        if move.clear:
            with b.scope():
                row, far = b.gp(target[0], self.out.name), b.gp(self.out.lanes, "lanes")
                with b.loop(count, *_steps((row, target[1])), unroll=UNROLL):
                    b.v_shft_v(row, row, far)
        pieces = move.pieces
        if not pieces and move.into is not None and self.into is not None and self.into.address != self.out.address:
            pieces = (Piece(move.into, 0, None),)
        for first in range(0, len(pieces), _TOGETHER):
            self._add(move, pieces[first : first + _TOGETHER], first == 0)
        if move.number is not None:
            self._number(move, move.number)
        for group in move.groups:
            if move.batched:
                self._batched(move, group)
            else:
                self._single(move, group)

    def _add(self, move: Move, pieces: tuple[Piece, ...], is_first: bool) -> None:
        """Pieces to the vectors of a run, or added to them."""
        b = self.k.b
        with b.scope():
            start, step = self._from(self.out, move.places[:, 0])
            out, spare = b.gp(start, self.out.name), b.gp(self.k.scratch, "spare row")
            steps = [(out, step)]
            terms: dict[int, Gp] = {}
            for piece in pieces:
                if piece.term not in terms:
                    rows = self._source(move, piece.term)
                    start, step = self._from(rows, move.places[:, 1 + piece.term])
                    terms[piece.term] = b.gp(start, rows.name)
                    steps.append((terms[piece.term], step))
            shifts = {n: b.gp(n, "lanes") for n in dict.fromkeys(p.shift for p in pieces) if n}
            masks = {m: b.gp(self._mask(m), "mask") for m in dict.fromkeys(p.mask for p in pieces) if m is not None}
            one = b.fp(1.0) if is_first and pieces[0].shift == 0 and pieces[0].mask is None else None
            with b.loop(len(move.places), *_steps(*steps), unroll=UNROLL):
                for number, piece in enumerate(pieces):
                    source = terms[piece.term]
                    into = out if is_first and number == 0 else spare
                    if piece.shift:
                        b.v_shft_v(into, source, shifts[piece.shift])
                        source = into
                    if piece.mask is not None:
                        b.v_mul_vv(into, source, masks[piece.mask])
                        source = into
                    if into is spare:
                        b.v_add_vv(out, out, source)
                    elif source is not out:
                        assert one is not None
                        b.v_mul_vf(out, source, one)

    def _number(self, move: Move, number: Number) -> None:
        """An element to a register, a mask times that."""
        b = self.k.b
        with b.scope():
            start, step = self._from(self.out, move.places[:, 0])
            first, along = self._from(self.x, move.places[:, 1 + number.term])
            out, source, spare = b.gp(start, self.out.name), b.gp(first, self.x.name), b.gp(self.k.scratch, "element")
            mask, value = b.gp(self._mask(number.mask), "lanes"), b.fp(purpose="element")
            only = b.gp(self._mask(number.lane), "lane") if number.lane is not None else None

            def load() -> None:
                if only is not None:
                    b.v_mul_vv(spare, source, only)
                b.s_add_fp(value, b.fp_zero, b.fp_zero)
                b.v_red_sum(value, spare if only is not None else source)

            if not along:
                load()
            with b.loop(len(move.places), *_steps((out, step), (source, along)), unroll=UNROLL):
                if along:
                    load()
                b.v_mul_vf(out, mask, value)

    # -- products -----------------------------------------------------------------------------------------------------

    def _fetch_columns(self) -> None:
        """All columns to matrix SRAM, tile below tile."""
        b, config = self.k.b, self.k.config
        lanes, size, fetched = config.mlen, config.blen, config.prefetch_m_rows
        tiles = -(-len(self.plan.columns) * size // lanes)
        ones = np.zeros((tiles, lanes, lanes), np.float32)
        taken = np.stack(self.plan.columns).reshape(-1)
        column = np.flatnonzero(taken >= 0)
        ones[column // lanes, taken[column], column % lanes] = 1
        rows = ones.reshape(-1, lanes)
        rows = np.pad(rows, ((0, round_up(len(rows), fetched) - len(rows)), (0, 0)))
        matrix = self.k.constants.place(rows, "weights")
        with self.k.opened(matrix) as base, b.scope():
            tile, offset = b.gp(0, "tile"), b.gp(matrix.offset(0, 0), matrix.name)
            with b.loop(len(rows) // fetched, (tile, fetched * lanes), (offset, fetched * matrix.stride)):
                b.h_prefetch_m(tile, offset, base, 1, matrix.precision)

    def _column(self, number: int, is_row: bool) -> int:
        """Where a group of columns is, for M_MV or for M_MM."""
        lanes, size = self.out.lanes, self.k.config.blen
        tile, group = divmod(number, lanes // size)
        return tile * lanes * lanes + group * size * (1 if is_row else lanes)

    def _batched(self, move: Move, group: Group) -> None:
        """A group of lanes of a run, BLEN vectors at a time; the last ones together with some before them."""
        size, count = self.k.config.blen, len(move.places)
        whole, rest = divmod(count, size)
        self._rows(move, group, 0, whole)
        if rest:
            self._rows(move, group, count - size, 1)

    def _rows(self, move: Move, group: Group, first: int, turns: int) -> None:
        b, size, lanes = self.k.b, self.k.config.blen, self.out.lanes
        start, step = self._from(self.out, move.places[:, 0])
        with b.scope():
            result = b.gp(start + first * step + group.number * size, "result")
            apart = b.zero if step == lanes else b.gp(step // lanes, "rows from result to result")
            steps = [(result, size * step)]
            addresses = [
                (self._column(column, False), self._from(self._source(move, term), move.places[:, 1 + term])[0])
                for term, column in group.parts
            ]
            addresses = [(column, row + first * lanes) for column, row in addresses]
            own = len(addresses) <= _TOGETHER
            registers = [
                (b.gp(column, "columns"), b.gp(row, "rows")) for column, row in (addresses if own else addresses[:1])
            ]
            if own:
                steps += [(row, size * lanes) for _, row in registers]
            with b.loop(turns, *(steps if turns > 1 else ()), unroll=UNROLL):
                if own:
                    for column, row in registers:
                        b.m_mm(column, row)
                else:
                    self._walk(registers[0], addresses, size * lanes if turns > 1 else None)
                b.m_mm_wo(result, apart, 0)

    def _walk(self, registers: tuple[Gp, Gp], addresses: list[tuple[int, int]], step: int | None) -> None:
        """Two registers through all parts, and to the first one of the next rows."""
        b, (column, row) = self.k.b, registers
        before = addresses[0]
        for now in addresses:
            b.add(column, column, now[0] - before[0])
            b.add(row, row, now[1] - before[1])
            b.m_mm(column, row)
            before = now
        if step is not None:
            b.add(column, column, addresses[0][0] - before[0])
            b.add(row, row, addresses[0][1] + step - before[1])

    def _single(self, move: Move, group: Group) -> None:
        """A group of lanes of a run, vector after vector."""
        b, size, count = self.k.b, self.k.config.blen, len(move.places)
        start, step = self._from(self.out, move.places[:, 0])
        sources = [self._from(self._source(move, term), move.places[:, 1 + term]) for term, _ in group.parts]
        columns = [self._column(column, True) for _, column in group.parts]
        if count == 1 or len(sources) > _TOGETHER:
            with b.scope():
                column, row, result = b.gp(purpose="columns"), b.gp(purpose="row"), b.gp(purpose="result")
                for vector in range(count):
                    for at, (first, along) in zip(columns, sources, strict=True):
                        b.set(column, at)
                        b.set(row, first + vector * along)
                        b.m_mv(column, row)
                    b.set(result, start + vector * step)
                    b.m_mv_wo(result, group.number * size)
            return
        with b.scope():
            rows = [(b.gp(first, "row"), along) for first, along in sources]
            held = [b.gp(at, "columns") for at in columns]
            result = b.gp(start + group.number * size, "result")
            with b.loop(count, *_steps((result, step), *rows), unroll=UNROLL):
                for column, (row, _) in zip(held, rows, strict=True):
                    b.m_mv(column, row)
                b.m_mv_wo(result, 0)

    # -- gathers ------------------------------------------------------------------------------------------------------

    def _gather(self, gather: Gather) -> None:
        b, lanes = self.k.b, self.out.lanes
        start, step = self._from(self.out, gather.places)
        size, count = self.k.config.blen, len(gather.places)
        rows = [self.x.at(int(block), int(row)) for _, block, row, _ in gather.groups]
        columns = [self._column(int(column), False) for *_, column in gather.groups]
        results = [self.k.scratch + int(group) * size for group, *_ in gather.groups]
        addresses = np.stack([rows, columns, results], axis=1)
        moved = [gather.steps[0] * self.x.pitch + gather.steps[1] * lanes, gather.steps[2] * size * lanes]
        with b.scope():
            out, row, column = b.gp(start, self.out.name), b.gp(rows[0], self.x.name), b.gp(columns[0], "columns")
            with b.loop(count, *_steps((out, step), (row, moved[0]), (column, moved[1]))):
                self._windows(addresses, row, column)
                self._merge(out, gather.masks)

    def _windows(self, addresses: np.ndarray, row: Gp, column: Gp) -> None:
        """Products of all windows to the workspace."""
        b = self.k.b
        with b.scope():
            at, w, result = b.gp(purpose="window"), b.gp(purpose="columns"), b.gp(purpose="result")
            for part in progressions(addresses):
                first, count = addresses[part.start], part.stop - part.start
                b.add(at, row, int(first[0] - addresses[0, 0]))
                b.add(w, column, int(first[1] - addresses[0, 1]))
                b.set(result, int(first[2]))
                steps = addresses[part.start + 1] - first if count > 1 else first * 0
                with b.loop(
                    count, *_steps((at, int(steps[0])), (w, int(steps[1])), (result, int(steps[2]))), unroll=UNROLL
                ):
                    b.m_mm(w, at)
                    b.m_mm_wo(result, b.zero, 0)

    def _merge(self, out: Gp, masks: tuple[tuple[int, int], ...]) -> None:
        """The masked rows of the workspace, added."""
        b = self.k.b
        with b.scope():
            row, mask = b.gp(purpose="row"), b.gp(purpose="mask")
            spare = b.gp(self.k.scratch + self.k.config.blen * self.out.lanes, "spare row")
            for number, (which, at) in enumerate(masks):
                b.set(row, self.k.scratch + at * self.out.lanes)
                b.set(mask, self._mask(which))
                b.v_mul_vv(out if number == 0 else spare, row, mask)
                if number:
                    b.v_add_vv(out, out, spare)

    # -- elements -----------------------------------------------------------------------------------------------------

    def _elements(self, vector: Elements, value: Fp) -> None:
        """Each lane to FP SRAM, from there to the vector."""
        b, entry = self.k.b, self.k.entry
        hot = {lane: self._mask(len(self.plan.masks) + i) for i, lane in enumerate(self.hot)}
        with b.scope():
            row, only, spare = b.gp(purpose="row"), b.gp(purpose="lane"), b.gp(self.k.scratch, "element")
            for lane, (is_into, block, at, taken) in enumerate(vector.lanes.tolist()):
                if is_into < 0:
                    b.s_st_fp(b.fp_zero, b.zero, entry + lane)
                    continue
                source = self.into if is_into else self.x
                assert source is not None
                b.set(row, source.at(block, at))
                b.set(only, hot[taken])
                b.v_mul_vv(spare, row, only)
                b.s_add_fp(value, b.fp_zero, b.fp_zero)
                b.v_red_sum(value, spare)
                b.s_st_fp(value, b.zero, entry + lane)
            b.set(row, self.out.at(*vector.place))
            b.s_map_v_fp(row, b.zero, entry)


def hot_lanes(plan: Rearrangement) -> list[int]:
    """Lanes that elements are taken from."""
    lanes = [vector.lanes[vector.lanes[:, 0] >= 0, 3] for vector in plan.elements]
    return [int(lane) for lane in np.unique(np.concatenate(lanes))] if lanes else []


def spare_rows(size: int) -> int:
    """Rows of workspace before the masks: those of a window, and a spare one."""
    return size + 1


def _steps(*steps: tuple[Gp, int]) -> list[tuple[Gp, int]]:
    """Those that step."""
    return [(register, step) for register, step in steps if step]
