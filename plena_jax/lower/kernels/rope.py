"""Rotary position embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor, round_up, row_unit, vram_rows


def reference(x: jax.Array, cos: jax.Array, sin: jax.Array, *, heads: int = 1) -> jax.Array:
    """``x * cos + rotate_half(x) * sin`` for each head, ``rotate_half([a, b]) = [-b, a]``.

    Tables have the columns of one head, used by all of them, or of all heads.
    """
    return x * _repeated(cos, x) + _rotate_half(x, heads) * _repeated(sin, x)


def rounded(r: Rounded, x: jax.Array, cos: jax.Array, sin: jax.Array, *, heads: int = 1) -> jax.Array:
    """Both products and their sum are rounded; the rotation and the repetition of tables are exact."""
    tables = [_repeated(r.vector(table), x) for table in (cos, sin)]
    return r.add(r.multiply(x, tables[0]), r.multiply(_rotate_half(x, heads), tables[1]))


def _repeated(table: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.tile(table, (1, x.shape[1] // table.shape[1]))


def _rotate_half(x: jax.Array, heads: int) -> jax.Array:
    first, second = jnp.split(x.reshape(x.shape[0], heads, -1), 2, axis=2)
    return jnp.concatenate([-second, first], axis=2).reshape(x.shape)


def shape(config: MachineConfig, x: Tensor, cos: Tensor, sin: Tensor, *, heads: int) -> Shape:
    """That of x; tables as many rows, and the columns of one head or of all."""
    if not isinstance(heads, int) or heads < 1 or x.shape[1] % heads or x.shape[1] // heads % 2:
        raise OperatorError(
            f"rope: heads: expected a number that divides the {x.shape[1]} columns of x ({x.name}) into heads of even "
            f"size, got {heads!r}"
        )
    size = x.shape[1] // heads
    for name, table in (("cos", cos), ("sin", sin)):
        expect("rope", f"rows of {name} ({table.name})", x.shape[0], table.shape[0])
        if table.shape[1] not in (size, x.shape[1]):
            raise OperatorError(
                f"rope: columns of {name} ({table.name}): expected {size}, those of one head, or {x.shape[1]}, those "
                f"of x ({x.name}), got {table.shape[1]}"
            )
    return x.shape


def workspace(config: MachineConfig, x: Tensor, cos: Tensor, sin: Tensor, *, heads: int) -> Workspace:
    """A block of rotated columns or products; tables that come from HBM, and that are repeated inside of blocks."""
    rows = vram_rows(config, (x.shape[0], config.mlen))
    for table in (cos, sin):
        rows += vram_rows(config, table.shape) if table.place == "hbm" else 0
        repeated = _repeated_columns(config, table.shape[1], x.shape[1])
        rows += vram_rows(config, (x.shape[0], repeated)) if repeated else 0
    return Workspace(rows=rows)


def _repeated_columns(config: MachineConfig, columns: int, wanted: int) -> int:
    """Columns to which a table is repeated so that all blocks begin in it; 0 if they do as it is."""
    lanes = config.mlen
    if columns == wanted or columns % lanes == 0:
        return 0
    # Blocks that begin with the first column of a head are all the same.
    return lanes if lanes % columns == 0 else wanted


def emit(k: Kernel, out: Rows, x: Rows, cos: Rows | Matrix, sin: Rows | Matrix, *, heads: int) -> None:
    """Block of columns after block of columns: the block rotated, three vector instructions a row.

    Heads whose halves are whole blocks are rotated by taking another block. Others are multiplied with a constant
    matrix of 0, 1 and -1, as lanes can only be shifted upwards. So are tables of one head, if heads begin inside of
    blocks. Registers: 13 gp at most. Workspace: a block; tables.
    """
    lanes, size, held = x.lanes, x.shape[1] // heads, round_up(x.shape[0], row_unit(k.config))
    first = held
    tables = []
    for table in (cos, sin):
        rows, first = k.in_vram(table, first)
        rows, first = _repeat(k, rows, x, first, held)
        tables.append(rows)
    for block in range(out.blocks):
        at = [_block(t, block % t.blocks) for t in tables]
        if size % (2 * lanes) == 0:
            _from_other_half(k, out, x, at, block, size // (2 * lanes))
        else:
            _from_product(k, out, x, at, block, size)


def _block(rows: Rows, block: int) -> Rows:
    """One block of columns."""
    return Rows(rows.name, rows.at(block), (rows.shape[0], rows.lanes), rows.lanes, rows.pitch)


def _repeat(k: Kernel, table: Rows, x: Rows, first: int, held: int) -> tuple[Rows, int]:
    """A table whose blocks are those that blocks of x need, one after the other; the next free row."""
    lanes, size = table.lanes, table.shape[1]
    columns = _repeated_columns(k.config, size, x.shape[1])
    if not columns:
        return table, first
    rows = Rows(table.name, k.scratch + first * lanes, (table.shape[0], columns), lanes, held * lanes)
    ones = np.zeros((table.blocks * lanes, rows.blocks * lanes), np.float32)
    ones[np.arange(columns) % size, np.arange(columns)] = 1
    Product(k, table, k.constants.place(ones, "weights")).emit(rows)
    return rows, first + held * rows.blocks


def _from_other_half(k: Kernel, out: Rows, x: Rows, tables: list[Rows], block: int, half: int) -> None:
    """The block of x that is half a head away: its product is subtracted in the first half, added in the second."""
    b, is_first = k.b, block // half % 2 == 0
    product = k.scratch_rows(1, x.lanes)
    here, other = _block(x, block), _block(x, block + half if is_first else block - half)
    target = _block(out, block)
    with k.each_row(x.shape[0], here, other, target, *tables, fixed=[product]) as at:
        b.v_mul_vv(at(product), at(other), at(tables[1]))
        b.v_mul_vv(at(target), at(here), at(tables[0]))
        (b.v_sub_vv if is_first else b.v_add_vv)(at(target), at(target), at(product))


def _from_product(k: Kernel, out: Rows, x: Rows, tables: list[Rows], block: int, size: int) -> None:
    """The product of those blocks of x that hold the other halves with a signed permutation."""
    b, lanes = k.b, x.lanes
    columns = np.arange(block * lanes, min((block + 1) * lanes, x.shape[1]))
    is_first = columns % size < size // 2
    sources = np.where(is_first, columns + size // 2, columns - size // 2)
    start, stop = int(sources.min()) // lanes, int(sources.max()) // lanes + 1
    signs = np.zeros(((stop - start) * lanes, lanes), np.float32)
    signs[sources - start * lanes, columns - block * lanes] = np.where(is_first, -1, 1)
    blocks = Rows(x.name, x.at(start), (x.shape[0], (stop - start) * lanes), lanes, x.pitch)
    rotated = k.scratch_rows(x.shape[0], lanes)
    Product(k, blocks, k.constants.place(signs, "weights")).emit(rotated)
    here, target = _block(x, block), _block(out, block)
    with k.each_row(x.shape[0], here, rotated, target, *tables) as at:
        b.v_mul_vv(at(rotated), at(rotated), at(tables[1]))
        b.v_mul_vv(at(target), at(here), at(tables[0]))
        b.v_add_vv(at(target), at(target), at(rotated))


def rope_tables(positions: ArrayLike, size: int, theta: float = 10000.0) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of rotary embeddings, as Llama and its like have them: float32 [positions, size] each.

    Args:
        positions: of the rows.
        size: of a head, even.
        theta: base of the frequencies ``theta ** (-2 * i / size)``, i < size / 2, which both halves share.

    Raises:
        OperatorError: an odd size.
    """
    expect("rope_tables", "size modulo 2", 0, size % 2)
    frequencies = theta ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    angles = np.asarray(positions, np.float64).reshape(-1, 1) * np.concatenate([frequencies, frequencies])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


register(
    Operator(
        name="rope",
        family="rope",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        places={"cos": ("vram", "hbm"), "sin": ("vram", "hbm")},
        cost="rows * blocks * 8; with heads whose halves are not whole blocks blocks * MLEN/BLEN * (6 + "
        "ceil(rows/BLEN) * 5) more, about, and as much for tables that are repeated",
    )
)
