"""Sums so far along each row, and where its maximum is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax import hbm
from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import LARGE, Kernel, constant_rows, masked_rows
from plena_jax.lower.kernels.functions import HUGE
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import OperatorError, Rows, Shape, Tensor
from plena_jax.machine.transfer import vram_format

# -- cumsum -----------------------------------------------------------------------------------------------------------


def cumsum_reference(x: jax.Array) -> jax.Array:
    """Sums of the elements of each row up to each column."""
    return jnp.cumsum(x, axis=1)


def cumsum_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """Inside of a block float32 sums, rounded once; the sum of the blocks before, a scalar, is added to that."""
    lanes = r.config.mlen
    total = jnp.zeros((x.shape[0], 1), jnp.float32)
    found = []
    for start in range(0, x.shape[1], lanes):
        block = x[:, start : start + lanes]
        sums = r.matmul(block, jnp.asarray(_triangle(lanes, block.shape[1])))[:, : block.shape[1]]
        found.append(r.add(sums, total) if start else sums)
        total = r.row_sum(block, total)
    return jnp.concatenate(found, axis=1)


def _triangle(lanes: int, columns: int) -> np.ndarray:
    """[columns, MLEN]: the matrix that sums the rows so far; zeros behind its last column."""
    return np.pad(np.triu(np.ones((columns, columns), np.float32)), ((0, 0), (0, lanes - columns)))


def cumsum_shape(config: MachineConfig, x: Tensor) -> Shape:
    """That of x."""
    return x.shape


def cumsum_workspace(config: MachineConfig, x: Tensor) -> Workspace:
    """The mask of the lanes behind the last column, if there are several blocks."""
    several = x.shape[1] > config.mlen and x.shape[1] % config.mlen
    return Workspace(rows=constant_rows(config) if several else 0)


def cumsum_emit(k: Kernel, out: Rows, x: Rows) -> None:
    """A product with a triangle of ones for each block; the sum of the blocks before is in a register of each row.

    Registers: 13 gp at most, f for that sum. Workspace: a mask of the lanes behind the last column.
    """
    b, rows = k.b, x.shape[0]
    for block in range(x.blocks):
        columns = min(x.shape[1] - block * x.lanes, x.lanes)
        triangle = k.constants.place(_triangle(x.lanes, columns), "weights")
        here, there = (Rows(o.name, o.at(block), (rows, x.lanes), o.lanes, o.pitch) for o in (x, out))
        Product(k, here, triangle).emit(there)
    if x.blocks == 1:
        return
    mask = [k.lane_mask(x.shape[1])] if x.rest else []
    with b.scope():
        total = b.fp(purpose="sum of the blocks before")
        with k.each_row(rows, x, out, fixed=mask) as at:
            b.s_add_fp(total, b.fp_zero, b.fp_zero)
            for block in range(1, x.blocks):
                b.v_red_sum(total, at(x, block - 1))
                b.v_add_vf(at(out, block), at(out, block), total)
                if mask and block == x.blocks - 1:
                    b.v_mul_vv(at(out, block), at(out, block), at(mask[0]))


# -- argmax -----------------------------------------------------------------------------------------------------------


def argmax_reference(x: jax.Array) -> jax.Array:
    """The column of the first maximum of each row of finite numbers, as a number: [rows, 1]."""
    return jnp.argmax(x, axis=1, keepdims=True).astype(jnp.float32)


def argmax_rounded(r: Rounded, x: jax.Array) -> jax.Array:
    """The maximum as reduce_max; numbers of columns are exact."""
    largest = r.row_max(x, -LARGE, -LARGE)
    return jnp.argmax(r.subtract(x, largest) >= 0, axis=1, keepdims=True).astype(jnp.float32)


def argmax_shape(config: MachineConfig, x: Tensor) -> Shape:
    """One column. Vectors and scalars must hold the numbers of all columns, and their count."""
    numbers = np.arange(x.shape[1] + 1, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        scalars = np.asarray(Rounded(config).scalar(jnp.asarray(numbers)))
    for what, held in (("vector SRAM", hbm.stored(numbers, vram_format(config))), ("scalars", scalars)):
        if (held != numbers).any():
            least = int(numbers[held != numbers][0])
            raise OperatorError(
                f"argmax: columns of x ({x.name}): expected at most {least - 1}, as {what} do not hold {least}, got "
                f"{x.shape[1]}"
            )
    return x.shape[0], 1


def _digits(columns: int) -> int:
    """Hexadecimal digits of numbers up to so many columns."""
    return len(f"{columns:x}")


def argmax_workspace(config: MachineConfig, x: Tensor) -> Workspace:
    """A spare row, the lanes behind the last column, numbers of columns and digits of them; MLEN entries of FP SRAM."""
    blocks = -(-x.shape[1] // config.mlen)
    rows = masked_rows(config, x.shape[1]) + 1 + (blocks + 1) * constant_rows(config)
    return Workspace(rows=rows, fp=config.mlen)


def argmax_emit(k: Kernel, out: Rows, x: Rows) -> None:
    """The maximum to a register; 1 where x is as large, else 0, times ``columns - column``: the largest of these.

    Those numbers are summed from their digits to the base 16, which HBM holds. FP SRAM: constants, MLEN entries of
    workspace. Registers: f for seed, maximum and the number.
    """
    b, last, first = k.b, x.blocks - 1, masked_rows(k.config, x.shape[1])
    k.clear_entries(k.entry, out.lanes)
    low = [k.lowest_behind(x.shape[1])[1]] if x.rest else []
    numbers = _numbers(k, x, first + 1)
    with b.scope():
        seed, huge, most, number = b.fp(-LARGE), b.fp(HUGE), b.fp(purpose="maximum"), b.fp(purpose="number")
        one, columns = b.fp(1.0), b.fp(float(x.shape[1]))
        spare = b.gp(k.scratch + first * x.lanes, "spare row")
        with k.each_row(x.shape[0], x, out, fixed=[numbers, *low]) as at:
            b.s_add_fp(most, seed, b.fp_zero)
            for block in range(x.blocks):
                source = at(x, block)
                if low and block == last:
                    b.v_add_vv(spare, source, at(low[0]))
                    source = spare
                b.v_red_max(most, source)
            b.s_add_fp(number, b.fp_zero, b.fp_zero)
            for block in range(x.blocks):
                b.v_sub_vf(spare, at(x, block), most)
                b.v_mul_vf(spare, spare, huge)
                b.v_mul_vf(spare, spare, huge)
                b.v_add_vf(spare, spare, one)
                b.v_max_vf(spare, spare, b.fp_zero)
                # Behind the last column zeros may be above the maximum.
                b.v_min_vf(spare, spare, one)
                b.v_mul_vv(spare, spare, at(numbers, block))
                b.v_red_max(number, spare)
            b.s_sub_fp(number, columns, number)
            b.s_st_fp(number, b.zero, k.entry)
            b.s_map_v_fp(at(out), b.zero, k.entry)


def _numbers(k: Kernel, x: Rows, first: int) -> Rows:
    """A row with ``columns - column`` in each lane, zeros behind, in the workspace."""
    b, held = k.b, constant_rows(k.config)
    columns = x.shape[1]
    left = columns - np.arange(columns)
    out = Rows("numbers", k.scratch + first * x.lanes, (1, columns), x.lanes, held * x.lanes)
    digit = Rows("digit", out.at(out.blocks), (1, x.lanes), x.lanes, held * x.lanes)
    for place in range(_digits(columns)):
        values = (left >> (4 * place) & 15) << (4 * place)
        row = np.zeros((1, out.blocks * x.lanes), np.float32)
        row[0, :columns] = values
        matrix = k.constants.place(row)
        if place == 0:
            k.fetch(matrix, Rows(out.name, out.address, row.shape, x.lanes, out.pitch))
            continue
        for block in range(out.blocks):
            part = k.constants.place(row[:, block * x.lanes : (block + 1) * x.lanes])
            k.fetch(part, digit)
            with b.scope():
                total, more = b.gp(out.at(block), "numbers"), b.gp(digit.address, "digit")
                b.v_add_vv(total, total, more)
    return out


register(
    Operator(
        name="cumsum",
        family="scan",
        reference=cumsum_reference,
        rounded=cumsum_rounded,
        shape=cumsum_shape,
        emit=cumsum_emit,
        workspace=cumsum_workspace,
        cost="a product of MLEN columns (see linear) and rows * 3 for each block",
    )
)
register(
    Operator(
        name="argmax",
        family="scan",
        reference=argmax_reference,
        rounded=argmax_rounded,
        shape=argmax_shape,
        emit=argmax_emit,
        workspace=argmax_workspace,
        cost="rows * (6 + 9 * blocks) and the steps of the row pointers; 3 * MLEN to clear FP SRAM",
    )
)
