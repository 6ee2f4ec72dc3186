"""What kernels are written with: row pointers, transfers, constants in HBM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from plena_jax import hbm
from plena_jax.config import MachineConfig
from plena_jax.lower.builder import ProgramBuilder
from plena_jax.lower.registers import Ar, BuildError, Gp
from plena_jax.lower.tensors import Matrix, Role, Rows, Tensor, place_matrix, round_up, row_unit
from plena_jax.machine.transfer import BLOCK

#: The largest magnitude of a BF16 scalar: seeds maxima, and stands where nothing counts.
LARGE = 3.3895313892515355e38

#: Times that the body of an inner loop is repeated at most: the end of a loop costs as much as an instruction.
UNROLL = 8

#: Gives the address register of a row of a block of an operand.
Pointer = Callable[..., Gp]


@dataclass
class Constants:
    """Matrices in HBM that kernels need, behind all tensors; equal ones once.

    Attributes:
        config: the machine.
        end: where the next one goes, in bytes.
        found: contents by place.
    """

    config: MachineConfig
    end: int
    found: dict[bytes, tuple[Matrix, np.ndarray]] = field(default_factory=dict)

    def place(self, contents: np.ndarray, role: Role = "activations") -> Matrix:
        """Where a float32 matrix of constants is.

        Args:
            contents: rows and columns.
            role: "activations" for the vector unit, "weights" for the matrix unit.

        Raises:
            BuildError: the format of the role, in which they are stored, does not hold the values.
        """
        contents = np.ascontiguousarray(contents, np.float32)
        key = repr((role, contents.shape)).encode() + contents.tobytes()
        if key not in self.found:
            name = f"constants {len(self.found)}"
            shape = contents.shape[0], contents.shape[1]
            matrix = place_matrix(self.config, Tensor(name, shape, "hbm", role), self.end)
            self._check(contents, matrix)
            self.found[key] = matrix, contents
            self.end = round_up(matrix.tensor.end, BLOCK)
        return self.found[key][0]

    def _check(self, contents: np.ndarray, matrix: Matrix) -> None:
        padded = np.pad(contents, ((0, 0), (0, -contents.shape[1] % self.config.mlen)))
        rounded = hbm.stored(padded, matrix.tensor.format)
        if not np.array_equal(rounded, padded):
            wrong = padded[rounded != padded][0]
            raise BuildError(f"the constant {wrong} is none of {matrix.tensor.format}, the format of {matrix.role}")


@dataclass(frozen=True)
class Kernel:
    """What a kernel emits into.

    Attributes:
        b: the program builder.
        constants: matrices in HBM.
        scratch: address of the workspace in vector SRAM, in elements.
        entry: first entry of the workspace in FP SRAM.
    """

    b: ProgramBuilder
    constants: Constants
    scratch: int
    entry: int

    @property
    def config(self) -> MachineConfig:
        """The machine."""
        return self.b.config

    def scratch_rows(self, rows: int, columns: int, first: int = 0) -> Rows:
        """A matrix in the workspace, ``first`` VRAM rows behind its start."""
        lanes = self.config.mlen
        return Rows("workspace", self.scratch + first * lanes, (rows, columns), lanes, rows * lanes)

    def clear(self, address: int, count: int) -> None:
        """Rows of vector SRAM become zero, one behind the other."""
        b, lanes = self.b, self.config.mlen
        with b.scope():
            # Nothing but zeros is left after so far a shift, whatever was there.
            row, far = b.gp(address, "row"), b.gp(lanes, "lanes")
            with b.loop(count, (row, lanes)):
                b.v_shft_v(row, row, far)

    def clear_entries(self, first: int, count: int) -> None:
        """Entries of FP SRAM become zero."""
        with self.b.scope():
            entry = self.b.gp(first, "entry")
            with self.b.loop(count, (entry, 1)):
                self.b.s_st_fp(self.b.fp_zero, entry, 0)

    # -- loops over rows ----------------------------------------------------------------------------------------------

    @contextmanager
    def each_row(self, count: int, *operands: Rows, fixed: Sequence[Rows] = ()) -> Iterator[Pointer]:
        """A loop over rows; yields ``pointer(operand, block=0)``, the register with the address of its current row.

        Each block has a register of its own while there are enough; else the registers of later blocks are computed
        where they are asked for, and good until the next one of that operand is.

        Args:
            count: rows.
            operands: of that many rows.
            fixed: operands whose first row is used every time.
        """
        with self.b.scope():
            pointers = _Pointers(self.b, [(o, True) for o in operands] + [(o, False) for o in fixed])
            with self.b.loop(count, *pointers.steps, unroll=UNROLL):
                yield pointers

    @contextmanager
    def each_vector(self, *operands: Rows, blocks: slice = slice(None)) -> Iterator[list[Gp]]:
        """A loop over all rows of all blocks, one vector after the other; yields the operands' registers.

        Args:
            operands: of one shape.
            blocks: those that count.
        """
        first, stop, _ = blocks.indices(operands[0].blocks)
        rows, lanes = operands[0].shape[0], operands[0].lanes
        if first >= stop:
            raise BuildError(f"no blocks {first} to {stop} of {operands[0].name}")
        with self.b.scope():
            distinct = {(o.at(first), o.pitch): o for o in operands}
            registers = {key: self.b.gp(key[0], o.name) for key, o in distinct.items()}
            together = all(o.pitch == rows * lanes for o in operands) or rows == 1
            own = [registers[o.at(first), o.pitch] for o in operands]
            if together:
                steps = [(r, key[1] if rows == 1 else lanes) for key, r in registers.items()]
                with self.b.loop((stop - first) * rows, *steps, unroll=UNROLL):
                    yield own
            else:
                ends = [(r, key[1] - rows * lanes) for key, r in registers.items()]
                inner = [(r, lanes) for r in registers.values()]
                with self.b.loop(stop - first, *ends), self.b.loop(rows, *inner, unroll=UNROLL):
                    yield own

    # -- transfers ----------------------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, matrix: Matrix) -> Iterator[Ar]:
        """The address register of a matrix in HBM, with SCALE and STRIDE set for it."""
        b = self.b
        with b.scope():
            base = b.address(matrix.tensor.address, matrix.name)
            with b.scope():
                register = b.gp(matrix.scale, "scale")
                b.c_set_scale_reg(register)
                b.set(register, matrix.stride)
                b.c_set_stride_reg(register)
            yield base

    def fetch(self, matrix: Matrix, out: Rows) -> None:
        """A matrix from HBM to vector SRAM: ``out`` of its shape, with room for whole transfers."""
        b, step, lanes = self.b, self.config.hbm_v_prefetch_amount, self.config.mlen
        turns = -(-out.shape[0] // step)
        with self.opened(matrix) as base, b.scope():
            row, offset = b.gp(out.address, out.name), b.gp(matrix.offset(0, 0), matrix.name)
            across = lanes * matrix.bits // 8 - turns * step * matrix.stride
            ends = [(row, out.pitch - turns * step * lanes), (offset, across)]
            with (
                b.loop(out.blocks, *ends),
                b.loop(turns, (row, step * lanes), (offset, step * matrix.stride), unroll=UNROLL),
            ):
                b.h_prefetch_v(row, offset, base, 1, matrix.precision)

    def store(self, x: Rows, matrix: Matrix, row: int, keep: bool = False) -> None:
        """Rows of vector SRAM to HBM, from row ``row`` of the matrix on.

        A last group of fewer rows than a transfer moves goes through the workspace (:func:`last_group`). Behind its
        rows are zeros, or with ``keep`` what HBM has there.
        """
        b, step, lanes = self.b, self.config.hbm_v_writeback_amount, self.config.mlen
        whole = x.shape[0] // step
        with self.opened(matrix) as base:
            if whole:
                with b.scope():
                    source, offset = b.gp(x.address, x.name), b.gp(matrix.offset(row, 0), matrix.name)
                    across = lanes * matrix.bits // 8 - whole * step * matrix.stride
                    steps = [(source, step * lanes), (offset, step * matrix.stride)]
                    with (
                        b.loop(x.blocks, (source, x.pitch - whole * step * lanes), (offset, across)),
                        b.loop(whole, *steps),
                    ):
                        b.h_store_v(source, offset, base, 1, matrix.precision)
            if x.shape[0] % step:
                self._store_rest(x, matrix, base, whole * step, row + whole * step, keep)

    def _store_rest(self, x: Rows, matrix: Matrix, base: Ar, first: int, row: int, keep: bool) -> None:
        """The last rows, from row ``first`` of x and ``row`` of the matrix on."""
        b, lanes, step = self.b, self.config.mlen, self.config.hbm_v_writeback_amount
        count = x.shape[0] - first
        with b.scope():
            one, source = b.fp(1.0), b.gp(x.at(0, first), x.name)
            group, target = b.gp(self.scratch, "last rows"), b.gp(purpose="row")
            offset = b.gp(matrix.offset(row, 0), matrix.name)
            if not keep:
                self.clear(self.scratch + count * lanes, step - count)
            with b.loop(x.blocks, (source, x.pitch), (offset, lanes * matrix.bits // 8)):
                if keep:
                    self._fetch_group(matrix, group, offset, base)
                b.add(target, group, 0)
                with b.loop(count, (source, lanes), (target, lanes)):
                    b.v_mul_vf(target, source, one)
                b.add(source, source, -count * lanes)
                b.h_store_v(group, offset, base, 1, matrix.precision)

    def _fetch_group(self, matrix: Matrix, group: Gp, offset: Gp, base: Ar) -> None:
        """The rows of HBM that a transfer is going to store."""
        b, step = self.b, self.config.hbm_v_prefetch_amount
        with b.scope():
            target, source = b.gp(purpose="row"), b.gp(purpose="offset in HBM")
            b.add(target, group, 0)
            b.add(source, offset, 0)
            turns = -(-self.config.hbm_v_writeback_amount // step)
            with b.loop(turns, (target, step * self.config.mlen), (source, step * matrix.stride)):
                b.h_prefetch_v(target, source, base, 1, matrix.precision)

    def fetch_constant(self, contents: np.ndarray, first: int = 0) -> Rows:
        """Constants [rows, columns] to the workspace, ``first`` rows behind its start (:func:`constant_rows`)."""
        rows, columns = contents.shape
        lanes, held = self.config.mlen, round_up(rows, row_unit(self.config))
        out = Rows("constants", self.scratch + first * lanes, (rows, columns), lanes, held * lanes)
        self.fetch(self.constants.place(contents), out)
        return out

    def lane_mask(self, columns: int, first: int = 0) -> Rows:
        """A row of the workspace with ones in the lanes of the last ``columns % MLEN`` columns, zeros behind them."""
        mask = np.zeros((1, self.config.mlen), np.float32)
        mask[0, : columns % self.config.mlen] = 1
        return self.fetch_constant(mask, first)

    def minus_ones(self, mask: Rows, first: int) -> Rows:
        """Row ``first`` of the workspace: minus ones where the mask (:meth:`lane_mask`) has zeros, zeros elsewhere."""
        b, behind = self.b, self.scratch_rows(1, self.config.mlen, first)
        with b.scope():
            b.v_sub_vf(b.gp(behind.address, "minus ones"), b.gp(mask.address, "mask"), b.fp(1.0))
        return behind

    def lowest_behind(self, columns: int) -> tuple[Rows, Rows]:
        """The first rows of the workspace (:func:`masked_rows`): the mask of lanes, and -LARGE where that has zeros."""
        b, mask = self.b, self.lane_mask(columns)
        low = self.minus_ones(mask, constant_rows(self.config))
        with b.scope():
            row = b.gp(low.address, "lowest behind the last column")
            b.v_mul_vf(row, row, b.fp(LARGE))
        return mask, low

    # -- operands -----------------------------------------------------------------------------------------------------

    def in_vram(self, operand: Rows | Matrix, first: int) -> tuple[Rows, int]:
        """An operand, fetched to row ``first`` of the workspace if it is in HBM; the next free row."""
        if isinstance(operand, Rows):
            return operand, first
        lanes, held = self.config.mlen, round_up(operand.shape[0], row_unit(self.config))
        rows = Rows(operand.name, self.scratch + first * lanes, operand.shape, lanes, held * lanes)
        self.fetch(operand, rows)
        return rows, first + held * rows.blocks

    def copy(self, source: Rows, target: Rows) -> None:
        """All rows of an operand to another of its shape, signs of zeros included. FP SRAM: 1."""
        with self.b.scope():
            one = self.b.fp(1.0)
            with self.each_vector(source, target) as (here, there):
                self.b.v_mul_vf(there, here, one)


def last_group(config: MachineConfig, rows: int) -> int:
    """Rows of workspace that :meth:`Kernel.store` needs."""
    step = config.hbm_v_writeback_amount
    return round_up(step, config.hbm_v_prefetch_amount) if rows % step else 0


def constant_rows(config: MachineConfig, rows: int = 1) -> int:
    """Rows of workspace that a block of constants takes."""
    return round_up(rows, row_unit(config))


def masked_rows(config: MachineConfig, columns: int) -> int:
    """Rows of workspace that :meth:`Kernel.lowest_behind` needs, if the last block of so many columns is not full."""
    return constant_rows(config) + 1 if columns % config.mlen else 0


class _Pointers:
    """Registers with the addresses of the current rows."""

    def __init__(self, b: ProgramBuilder, operands: list[tuple[Rows, bool]]) -> None:
        self.b = b
        distinct: dict[tuple[int, int, bool], Rows] = {}
        for operand, moves in operands:
            key = operand.address, operand.pitch, moves
            if key not in distinct or distinct[key].blocks < operand.blocks:
                distinct[key] = operand
        # Two registers stay free: for the loop and for whoever runs inside.
        every = sum(o.blocks for o in distinct.values()) <= b.free(Gp) - 3
        self.registers: dict[tuple[int, int], list[Gp]] = {}
        self.temporary: dict[tuple[int, int], Gp] = {}
        self.holds: dict[tuple[int, int], tuple[int, int]] = {}
        self.steps: list[tuple[Gp, int]] = []
        for (address, pitch, moves), operand in distinct.items():
            count = operand.blocks if every else 1
            held = [b.gp(operand.at(block), f"{operand.name}, block {block}") for block in range(count)]
            self.registers[address, pitch] = held
            if count < operand.blocks:
                self.temporary[address, pitch] = b.gp(purpose=f"a block of {operand.name}")
            if moves:
                self.steps += [(register, operand.lanes) for register in held]

    def __call__(self, operand: Rows, block: int = 0) -> Gp:
        key = operand.address, operand.pitch
        held = self.registers[key]
        if block < len(held):
            return held[block]
        # A loop that begins or ends in between may come back with another block.
        if self.holds.get(key) != (self.b.loops, block):
            self.b.add(self.temporary[key], held[0], block * operand.pitch)
            self.holds[key] = self.b.loops, block
        return self.temporary[key]
