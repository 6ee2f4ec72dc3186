"""Moving patches of images to the rows of a matrix: the instructions of im2col.

Patches begin at any lane of an image row, and go to any lane of a result row. The machine moves lanes in these ways:

* V_SHFT_V moves a row towards higher lanes, zeros below, and drops what leaves the row;
* a product with a constant matrix of zeros and ones moves any lanes to any others, exactly: every sum has one term;
* V_RED_SUM of a row times a one-hot row takes one lane to a register, S_ST_FP and S_MAP_V_FP put it anywhere.

Fetching from HBM at an unaligned column is none of them: the scales of blocks of 8 would be those of other blocks. So
whole rows are fetched, and pieces (a kernel row of a patch) go to lane 0 with a product, then to their lanes with a
shift. What a shift drops at the end of a row, another product brings to lane 0 of the next block.

Images are finite: zero times infinity is no number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape

#: One number for both directions, or (rows, columns).
Pair = int | tuple[int, int]
#: Pieces of one result row that are placed in one loop: each takes two registers.
_TOGETHER = 5
#: One-hot rows that have registers of their own.
_HOT = 8


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution; pairs are (rows, columns).

    Attributes:
        channels: of the image.
        image: height and width.
        kernel, stride, padding: of the convolution.
    """

    channels: int
    image: Shape
    kernel: Shape
    stride: Shape
    padding: Shape

    @classmethod
    def of(
        cls, channels: int, height: int, width: int, kernel: Pair, stride: Pair, padding: Pair, operator: str = "im2col"
    ) -> Geometry:
        """Check and complete the arguments of an operator.

        Raises:
            OperatorError: sizes that are not positive, or a kernel that the padded image does not hold.
        """
        one = {"channels": channels, "height": height, "width": width}
        for name, value in one.items():
            if not isinstance(value, int) or value < 1:
                raise OperatorError(f"{operator}: {name}: expected a positive number, got {value!r}")
        k, s = (_pair(operator, name, value, 1) for name, value in (("kernel", kernel), ("stride", stride)))
        p = _pair(operator, "padding", padding, 0)
        held = height + 2 * p[0], width + 2 * p[1]
        if k[0] > held[0] or k[1] > held[1]:
            raise OperatorError(f"{operator}: kernel: expected at most {held}, the padded image, got {k}")
        return cls(channels, (height, width), k, s, p)

    @cached_property
    def out(self) -> Shape:
        """Height and width of the result."""
        sizes = zip(self.image, self.kernel, self.stride, self.padding, strict=True)
        rows, columns = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
        return rows, columns

    @property
    def shape(self) -> Shape:
        """Of the matrix of patches."""
        return self.out[0] * self.out[1], self.channels * self.kernel[0] * self.kernel[1]

    # Image rows of a channel are gathered by their remainder modulo the stride, so that those of neighbouring results
    # are neighbours. Each remainder has its rows of padding with it.

    @cached_property
    def gathered(self) -> tuple[int, ...]:
        """Gathered rows of each remainder."""
        return tuple(
            self.out[0] + (self.kernel[0] - 1 - f) // self.stride[0] for f in range(min(self.stride[0], self.kernel[0]))
        )

    def line(self, row: int) -> int:
        """The first gathered row of a row of the kernel; those of the other results follow."""
        return sum(self.gathered[: row % self.stride[0]]) + row // self.stride[0]

    def stored(self, remainder: int) -> range:
        """Which gathered rows of a remainder are rows of the image; the others are padding."""
        count, s, behind = self.gathered[remainder], self.stride[0], self.padding[0] - remainder
        first = max(0, -(-behind // s))
        return range(min(first, count), max(min(first, count), min(count, (self.image[0] - 1 + behind) // s + 1)))


def _pair(operator: str, name: str, value: Pair, least: int) -> Shape:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, tuple) or len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise OperatorError(f"{operator}: {name}: expected a number or a pair of at least {least}, got {value!r}")
    return pair


def gathered_rows(config: MachineConfig, g: Geometry) -> int:
    """VRAM rows of a block of gathered rows; the last transfer and the last product go beyond them."""
    return sum(g.gathered) + max(config.hbm_v_prefetch_amount, config.blen)


@dataclass(frozen=True)
class Part:
    """A piece of a patch inside a block of the result: elements of a kernel row.

    Attributes:
        row: of the kernel.
        skipped: elements of the kernel row before it.
        width: elements.
        block, lane: where it begins.
    """

    row: int
    skipped: int
    width: int
    block: int
    lane: int


@dataclass(frozen=True)
class Patches:
    """Emits one matrix of patches.

    Attributes:
        k: the kernel.
        out: the result.
        image: in HBM.
        g: sizes.
    """

    k: Kernel
    out: Rows
    image: Matrix
    g: Geometry

    @cached_property
    def lines(self) -> Rows:
        """Gathered rows of a channel."""
        lanes, pitch = self.out.lanes, gathered_rows(self.k.config, self.g) * self.out.lanes
        return Rows("image", self.k.scratch + lanes, (sum(self.g.gathered), self.g.image[1]), lanes, pitch)

    @cached_property
    def pieces(self) -> Rows:
        """Pieces at lane 0, behind the gathered rows."""
        at = self.lines.address + self.lines.blocks * self.lines.pitch
        return Rows("pieces", at, (self.lines.shape[0], self.g.kernel[1]), self.out.lanes, self.lines.pitch)

    def parts(self, channel: int) -> Iterator[Part]:
        """All pieces of a channel, cut where a block of the result ends."""
        height, width = self.g.kernel
        for row in range(height):
            first, skipped = (channel * height + row) * width, 0
            while skipped < width:
                block, lane = divmod(first + skipped, self.out.lanes)
                yield Part(row, skipped, min(width - skipped, self.out.lanes - lane), block, lane)
                skipped += self.out.lanes - lane

    def first_column(self, column: int) -> int:
        """Of the image, of the patches of a column of results; negative in the padding."""
        return column * self.g.stride[1] - self.g.padding[1]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def gather(self, channel: int) -> None:
        """The rows of a channel, by their remainder modulo the stride; rows of padding are zero."""
        b, g, image, lines = self.k.b, self.g, self.image, self.lines
        starts = [sum(g.gathered[:f]) for f in range(len(g.gathered))]
        step, far = self.k.config.hbm_v_prefetch_amount, g.stride[0] * image.stride
        with self.k.opened(image) as base, b.scope():
            row, offset = b.gp(purpose="gathered rows"), b.gp(far, "stride")
            b.c_set_stride_reg(offset)
            for f, start in enumerate(starts):
                found = g.stored(f)
                if not found:
                    continue
                first = channel * g.image[0] + found.start * g.stride[0] + f - g.padding[0]
                turns = -(-len(found) // step)
                b.set(row, lines.at(0, start + found.start))
                b.set(offset, image.offset(first, 0))
                across = lines.lanes * image.bits // 8
                ends = [(row, lines.pitch - turns * step * lines.lanes), (offset, across - turns * step * far)]
                with b.loop(lines.blocks, *ends), b.loop(turns, (row, step * lines.lanes), (offset, step * far)):
                    b.h_prefetch_v(row, offset, base, 1, image.precision)
        # Transfers bring whole groups of rows: what lies behind the last one is cleared after all of them.
        for f, start in enumerate(starts):
            found, count = g.stored(f), g.gathered[f]
            for gap in (range(found.start), range(found.stop, count)):
                for block in range(lines.blocks if gap else 0):
                    self.k.clear(lines.at(block, start + gap.start), len(gap))

    # -- products and shifts ------------------------------------------------------------------------------------------

    def shifted(self, channel: int, column: int) -> None:
        """The pieces of all patches of a column of results."""
        first, width = self.first_column(column), min(self.g.kernel[1], self.out.lanes)
        parts = list(self.parts(channel))
        if parts and (source := self._at_lane_0(first, width, 0, self.lines.shape[0])) is not None:
            whole = [(part, source.at(0, self.g.line(part.row))) for part in parts if not part.skipped]
            self._place(column, whole)
        for part in parts:
            if not part.skipped:
                continue
            line = self.g.line(part.row)
            rest = self._at_lane_0(first + part.skipped, part.width, line, self.g.out[0])
            if rest is not None:
                self._place(column, [(part, rest.address)])

    def _at_lane_0(self, first: int, width: int, line: int, count: int) -> Rows | None:
        """Where ``count`` gathered rows from ``line`` on have columns from ``first`` on at lane 0, zeros behind them.

        None if there is nothing but padding.
        """
        lanes, columns = self.out.lanes, self.g.image[1]
        tiles = [
            tile
            for tile in range(first // lanes, (first + width - 1) // lanes + 1)
            if max(first, tile * lanes, 0) < min(first + width, (tile + 1) * lanes, columns)
        ]
        if not tiles:
            return None
        if first % lanes == 0 and (width == lanes or first + width >= columns):
            return Rows("image", self.lines.at(tiles[0], line), (count, width), lanes, self.lines.pitch)
        self._fetch_selection(width, [lanes * (tile + 1) - first for tile in tiles])
        self._select([self.lines.at(tile, line) for tile in tiles], count)
        return self.pieces

    def _fetch_selection(self, width: int, rows: list[int]) -> None:
        """To matrix SRAM tiles of the matrix with ones at (MLEN + j, j) for j < width, from the rows given on."""
        b, config = self.k.b, self.k.config
        lanes, fetched = config.mlen, config.prefetch_m_rows
        ones = np.zeros((2 * lanes + fetched, lanes), np.float32)
        ones[np.arange(width) + lanes, np.arange(width)] = 1
        matrix = self.k.constants.place(ones, "weights")
        # Tiles of neighbouring rows come with one transfer if it brings several.
        rows = rows[:1] if fetched > lanes else rows
        with self.k.opened(matrix) as base, b.scope():
            tile, offset = b.gp(0, "tile"), b.gp(purpose="offset in HBM")
            for number, row in enumerate(rows):
                if number:
                    b.set(tile, number * lanes * lanes)
                b.set(offset, matrix.offset(row, 0))
                b.h_prefetch_m(tile, offset, base, 1, matrix.precision)

    def _select(self, sources: list[int], count: int) -> None:
        """Products of rows with tiles of the selection: BLEN x BLEN results at a time, all of one width."""
        b, size, lanes = self.k.b, self.k.config.blen, self.out.lanes
        groups, step = -(-min(self.g.kernel[1], lanes) // size), size * lanes
        with b.scope():
            tiles = [b.gp(i * lanes * lanes, "columns of a tile") for i in range(len(sources))]
            lane = b.gp(self.pieces.address, "pieces")
            with b.loop(groups, (lane, size), *[(tile, step) for tile in tiles]), b.scope():
                rows, result = [b.gp(source, "rows") for source in sources], b.gp(purpose="result")
                b.add(result, lane, 0)
                with b.loop(-(-count // size), (result, step), *[(row, step) for row in rows]):
                    for tile, row in zip(tiles, rows, strict=True):
                        b.m_mm(tile, row)
                    b.m_mm_wo(result, b.zero, 0)

    def _place(self, column: int, parts: Iterable[tuple[Part, int]]) -> None:
        """Add pieces at lane 0 of the rows from an address on to their lanes of the result."""
        for block, inside in groupby(parts, key=lambda found: found[0].block):
            pieces = [(part.lane, address) for part, address in inside]
            for start in range(0, len(pieces), _TOGETHER):
                self._add(self.out.at(block, column), pieces[start : start + _TOGETHER])

    def _add(self, target: int, pieces: list[tuple[int, int]]) -> None:
        b, lanes = self.k.b, self.out.lanes
        with b.scope():
            out, spare = b.gp(target, "result"), b.gp(self.k.scratch, "spare row")
            found = [(b.gp(lane, "lane") if lane else None, b.gp(address, "piece")) for lane, address in pieces]
            steps = [(out, self.g.out[1] * lanes), *[(source, lanes) for _, source in found]]
            with b.loop(self.g.out[0], *steps):
                for lane, source in found:
                    if lane is not None:
                        b.v_shft_v(spare, source, lane)
                    b.v_add_vv(out, out, spare if lane is not None else source)

    # -- element by element -------------------------------------------------------------------------------------------

    def basis(self) -> Rows:
        """One-hot rows in the workspace."""
        count, first = min(self.g.image[1], self.out.lanes), 1 + self.lines.blocks * self.lines.pitch // self.out.lanes
        return self.k.fetch_constant(np.eye(count, self.out.lanes, dtype=np.float32), first)

    def element_by_element(self, channel: int, column: int, basis: Rows) -> None:
        """All patches of a column of results, block after block."""
        for block, inside in groupby(self.parts(channel), key=lambda part: part.block):
            self._block(column, block, list(inside), basis)

    def _block(self, column: int, block: int, parts: list[Part], basis: Rows) -> None:
        """Elements inside a block to FP SRAM, from there to a row that is added to the result."""
        b, lanes, entry = self.k.b, self.out.lanes, self.k.entry
        elements: dict[int, tuple[int, int]] = {}
        for part in parts:
            for i in range(part.width):
                source = self.first_column(column) + part.skipped + i
                if 0 <= source < self.g.image[1]:
                    tile, lane = divmod(source, lanes)
                    elements[part.lane + i] = self.lines.at(tile, self.g.line(part.row)), basis.at(0, lane)
        if not elements:
            return
        for lane in range(lanes):
            if lane not in elements:
                b.s_st_fp(b.fp_zero, b.zero, entry + lane)
        first, *_ = sources = list(elements.values())
        hot = list(dict.fromkeys(one for _, one in sources))
        with b.scope():
            out, spare = b.gp(self.out.at(block, column), "result"), b.gp(self.k.scratch, "spare row")
            row, value = b.gp(first[0], "image"), b.fp(purpose="element")
            # As many one-hot rows as there are registers for; of more, one register goes through all.
            ones = [b.gp(address, "one-hot row") for address in (hot if len(hot) <= _HOT else hot[:1])]
            with b.loop(self.g.out[0], (out, self.g.out[1] * lanes)):
                before = first
                for lane, found in elements.items():
                    b.add(row, row, found[0] - before[0])
                    if len(hot) > _HOT:
                        b.add(ones[0], ones[0], found[1] - before[1])
                    b.v_mul_vv(spare, row, ones[hot.index(found[1]) if len(hot) <= _HOT else 0])
                    b.s_add_fp(value, b.fp_zero, b.fp_zero)
                    b.v_red_sum(value, spare)
                    b.s_st_fp(value, b.zero, entry + lane)
                    before = found
                b.s_map_v_fp(spare, b.zero, entry)
                b.v_add_vv(out, out, spare)
                b.add(row, row, first[0] + lanes - before[0])
                if len(hot) > _HOT:
                    b.add(ones[0], ones[0], first[1] - before[1])
