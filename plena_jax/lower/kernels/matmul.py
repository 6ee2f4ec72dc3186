"""Products with matrices in HBM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import UNROLL, Kernel
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.registers import Ar, Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor, vram_rows

#: What becomes of sums along a k that matrix SRAM cannot hold at once: tiles are fetched again for each BLEN x BLEN
#: results so that sums stay in the accumulator; or partial sums are rounded and added in vector SRAM; or an error.
ACCUMULATE = ("float32", "rounded", "resident")


def reference(
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    transposed: bool = False,
    accumulate: str = "float32",
) -> jax.Array:
    """``x @ w + bias``; with ``transposed`` ``x @ w.T + bias``."""
    y = jnp.dot(x, w.T if transposed else w, precision=jax.lax.Precision.HIGHEST)
    return y if bias is None else y + bias


def rounded(
    r: Rounded,
    x: jax.Array,
    w: jax.Array,
    bias: jax.Array | None = None,
    *,
    transposed: bool = False,
    accumulate: str = "float32",
) -> jax.Array:
    """Sums along k are float32, tile after tile, and rounded once (with "rounded" for each filling of matrix SRAM)."""
    tiles = _capacity(r.config, transposed) if accumulate == "rounded" else None
    y = r.matmul(x, w.T if transposed else w, tiles)
    return y if bias is None else r.add(y, bias)


def shape(
    config: MachineConfig, x: Tensor, w: Tensor, bias: Tensor | None, *, transposed: bool, accumulate: str
) -> Shape:
    """Rows of x, columns of w."""
    k, n = w.shape[::-1] if transposed else w.shape
    expect("linear", f"{'columns' if transposed else 'rows'} of w ({w.name})", x.shape[1], k)
    if bias is not None:
        expect("linear", "shape of bias", (1, n), bias.shape)
    if accumulate not in ACCUMULATE:
        raise OperatorError(f"linear: accumulate: expected {', '.join(ACCUMULATE)}, got {accumulate!r}")
    capacity, tiles = _capacity(config, transposed), -(-k // config.mlen)
    if capacity < 1:
        raise OperatorError(
            f"linear: matrix SRAM of {config.tiles} tiles; a transfer brings {config.prefetch_m_rows // config.mlen}"
        )
    if accumulate == "resident" and tiles > capacity:
        raise OperatorError(
            f"linear: columns of x: expected at most {capacity * config.mlen}, which matrix SRAM holds, got {k} "
            "(accumulate='float32' or 'rounded' take more)"
        )
    return x.shape[0], n


def workspace(
    config: MachineConfig, x: Tensor, w: Tensor, bias: Tensor | None, *, transposed: bool, accumulate: str
) -> Workspace:
    """The bias, if it is in HBM; a block of the result for partial sums."""
    held = vram_rows(config, bias.shape) if bias is not None and bias.place == "hbm" else 0
    split = accumulate == "rounded" and -(-x.shape[1] // config.mlen) > _capacity(config, transposed)
    return Workspace(rows=held + (vram_rows(config, (x.shape[0], config.mlen)) if split else 0))


def _capacity(config: MachineConfig, transposed: bool) -> int:
    """Tiles along k that matrix SRAM holds."""
    # A transfer brings tiles below each other. Those are neighbours along k only if w is not transposed.
    fetched = config.prefetch_m_rows // config.mlen
    return config.tiles // fetched * (1 if transposed else fetched)


@dataclass(frozen=True)
class Product:
    """Emits one product; also for kernels that are more than one.

    Attributes:
        k: the kernel.
        x, w: operands.
        transposed: whether w is.
        moved: emits what adds to a register, the offset of w in HBM, a number of bytes that is known at run time only.
    """

    k: Kernel
    x: Rows
    w: Matrix
    transposed: bool = False
    moved: Callable[[Gp], None] | None = None

    @property
    def _fetched(self) -> int:
        return self.k.config.prefetch_m_rows // self.k.config.mlen

    @property
    def _per_fetch(self) -> int:
        """Tiles along k that a transfer brings."""
        return 1 if self.transposed else self._fetched

    @property
    def _slot(self) -> int:
        """Elements of matrix SRAM from tile to tile along k."""
        return self.k.config.mlen**2 * (self._fetched if self.transposed else 1)

    @property
    def _along_k(self) -> int:
        """Bytes of HBM from one transfer along k to the next."""
        lanes = self.k.config.mlen
        return lanes * self.w.bits // 8 if self.transposed else self._fetched * lanes * self.w.stride

    @property
    def _across(self) -> int:
        """Bytes of HBM from one tile of columns of the result to the next."""
        lanes = self.k.config.mlen
        return lanes * self.w.stride if self.transposed else lanes * self.w.bits // 8

    def emit(
        self, out: Rows, first: int = 0, count: int | None = None, columns: tuple[int, int, int] | None = None
    ) -> None:
        """``out = x @ w`` over ``count`` tiles along k from tile ``first`` on, in one accumulator.

        Args:
            out: the result, with room for BLEN rows at a time.
            first, count: tiles along k; all by default.
            columns: only some, multiples of BLEN, of each block: the first one, the lane that its result goes to, and
                how many; other lanes of the result stay as they are.
        """
        columns = columns or (0, 0, self.k.config.mlen)
        b, tiles = self.k.b, self.x.blocks - first if count is None else count
        groups = -(-tiles // self._per_fetch)
        room = self.k.config.tiles // self._fetched
        # Of what does not fit, the last place takes one after the other.
        resident = groups if groups <= room else room - 1
        with self.k.opened(self.w) as base, b.scope():
            source = b.gp(self.w.offset(0, 0) + first // self._per_fetch * self._along_k, self.w.name)
            if self.moved is not None:
                self.moved(source)
            target = b.gp(out.address + columns[1], out.name)
            with b.loop(out.blocks, (source, self._across), (target, out.pitch)):
                self._fetch(source, base, resident)
                self._columns(source, base, target, first, tiles, resident, columns)

    def _fetch(self, source: Gp, base: Ar, groups: int) -> None:
        """The first transfers along k to matrix SRAM."""
        b, fetched = self.k.b, self._fetched * self.k.config.mlen**2
        if not groups:
            return
        with b.scope():
            tile, offset = b.gp(0, "tile"), b.gp(purpose="offset in HBM")
            b.add(offset, source, 0)
            with b.loop(groups, (tile, fetched), (offset, self._along_k), unroll=UNROLL):
                b.h_prefetch_m(tile, offset, base, 1, self.w.precision)

    def _columns(
        self,
        source: Gp,
        base: Ar,
        target: Gp,
        first: int,
        tiles: int,
        resident: int,
        columns: tuple[int, int, int],
    ) -> None:
        """The results of a tile of columns, BLEN x BLEN at a time."""
        b, config = self.k.b, self.k.config
        lanes, size = config.mlen, config.blen
        one_row = self.x.shape[0] == 1 and not self.transposed
        across = size if one_row else size * lanes
        with b.scope():
            lane = b.gp(purpose="columns of the result")
            b.add(lane, target, 0)
            start = columns[0] // size * across
            held = self._places(min(resident * self._per_fetch, tiles), resident * self._per_fetch < tiles, start)
            with b.loop(columns[2] // size, *[(place, across) for place in held], (lane, size)), b.scope():
                row, result = b.gp(self.x.at(first), self.x.name), b.gp(purpose="result")
                b.add(result, lane, 0)
                step = size * lanes
                with b.loop(-(-self.x.shape[0] // size), (row, step), (result, step), unroll=UNROLL):
                    self._sum(source, base, held, row, tiles, resident, one_row)
                    if one_row:
                        b.m_mv_wo(result, 0)
                    else:
                        b.m_mm_wo(result, b.zero, 0)

    def _places(self, tiles: int, streams: bool, start: int) -> list[Gp]:
        """Registers with the current columns of the first tiles: of one, and of more while there are registers."""
        b = self.k.b
        # Loops over columns and rows, row, result, tile and rows of a product; offset and loop of a stream.
        spare = max(b.free(Gp) - (8 if streams else 6), 1)
        return [b.gp(start + tile * self._slot, "columns of a tile") for tile in range(max(min(tiles, spare), 1))]

    def _sum(self, source: Gp, base: Ar, places: list[Gp], row: Gp, tiles: int, resident: int, one_row: bool) -> None:
        """One accumulator over all tiles."""
        b, held = self.k.b, min(resident * self._per_fetch, tiles)
        with b.scope():
            w, x = b.gp(purpose="tile"), b.gp(purpose="rows")
            at_w, at_x = places[0], row
            for tile in range(held):
                if tile:
                    b.add(x, at_x, self.x.pitch)
                    at_x = x
                if 0 < tile < len(places):
                    at_w = places[tile]
                elif tile:
                    b.add(w, at_w, self._slot)
                    at_w = w
                self._multiply(at_w, at_x, one_row)
            if held < tiles:
                self._stream(source, base, (places[0], row), (w, x), held, tiles, resident, one_row)

    def _stream(
        self,
        source: Gp,
        base: Ar,
        start: tuple[Gp, Gp],
        current: tuple[Gp, Gp],
        held: int,
        tiles: int,
        resident: int,
        one_row: bool,
    ) -> None:
        """The tiles that matrix SRAM has no room for, through its last place."""
        b, place = self.k.b, resident * self._fetched * self.k.config.mlen**2
        (column, row), (w, x) = start, current
        whole, rest = divmod(tiles - held, self._per_fetch)
        with b.scope():
            offset = b.gp(purpose="offset in HBM")
            b.add(offset, source, resident * self._along_k)
            b.add(x, row, held * self.x.pitch)

            def through(count: int) -> None:
                b.set(w, place)
                b.h_prefetch_m(w, offset, base, 1, self.w.precision)
                b.add(w, column, place)
                for tile in range(count):
                    if tile:
                        b.add(w, w, self._slot)
                    self._multiply(w, x, one_row)
                    b.add(x, x, self.x.pitch)
                b.add(offset, offset, self._along_k)

            if whole:
                with b.loop(whole):
                    through(self._per_fetch)
            if rest:
                through(rest)

    def _multiply(self, w: Gp, x: Gp, one_row: bool) -> None:
        b = self.k.b
        if one_row:
            b.m_mv(w, x)
        elif self.transposed:
            b.m_tmm(x, w)
        else:
            b.m_mm(w, x)


def emit(
    k: Kernel, out: Rows, x: Rows, w: Matrix, bias: Rows | Matrix | None, *, transposed: bool, accumulate: str
) -> None:
    """For each MLEN columns of the result: their tiles once, then BLEN x BLEN results at a time.

    Weight-stationary: a tile is fetched once, but for those that matrix SRAM has no room for. One row takes M_MV.
    Registers: 13 gp at most, one address. Workspace: the bias, a block for partial sums.
    """
    product, capacity = Product(k, x, w, transposed), _capacity(k.config, transposed)
    if accumulate != "rounded" or x.blocks <= capacity:
        product.emit(out)
    else:
        product.emit(out, 0, capacity)
        first = 0 if bias is None or isinstance(bias, Rows) else vram_rows(k.config, bias.shape)
        for start in range(capacity, x.blocks, capacity):
            _add_part(k, product, out, start, min(capacity, x.blocks - start), first)
    if bias is not None:
        _add_bias(k, out, bias)


def _add_part(k: Kernel, product: Product, out: Rows, start: int, count: int, first: int) -> None:
    """Partial sums, block of columns by block of columns, added to the result."""
    lanes, w = k.config.mlen, product.w
    for block in range(out.blocks):
        part = k.scratch_rows(out.shape[0], lanes, first)
        across = (
            (w.start[0] + block * lanes, w.start[1]) if product.transposed else (w.start[0], w.start[1] + block * lanes)
        )
        Product(k, product.x, Matrix(w.shape, w.tensor, w.role, across), product.transposed).emit(part, start, count)
        there = Rows(out.name, out.at(block), (out.shape[0], lanes), lanes, out.pitch)
        with k.each_vector(there, part) as (total, more):
            k.b.v_add_vv(total, total, more)


def _add_bias(k: Kernel, out: Rows, bias: Rows | Matrix) -> None:
    """A row, added to all rows."""
    bias, _ = k.in_vram(bias, 0)
    with k.each_row(out.shape[0], out, fixed=[bias]) as at:
        for block in range(out.blocks):
            k.b.v_add_vv(at(out, block), at(out, block), at(bias, block))


register(
    Operator(
        name="linear",
        family="matmul",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        places={"w": ("hbm",), "bias": ("vram", "hbm")},
        matrix=("w",),
        cost="ceil(n/MLEN) * (3 * ceil(k/MLEN) + MLEN/BLEN * (6 + ceil(rows/BLEN) * (3 * ceil(k/MLEN) + 2))), about",
    )
)
