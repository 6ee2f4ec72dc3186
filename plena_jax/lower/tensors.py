"""Tensors of a graph, and where they lie in the machine's memories."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from plena_jax import hbm
from plena_jax.config import MachineConfig, Precision
from plena_jax.errors import PlenaError
from plena_jax.machine.transfer import BLOCK, Transfer

Place = Literal["vram", "hbm", "fp_sram", "int_sram"]
#: Memories of numbers one by one: tensors there have one row.
SCALARS = ("fp_sram", "int_sram")
#: What a tensor in HBM is for, which decides its format.
Role = Literal["weights", "activations", "kv"]
Shape = tuple[int, int]


class OperatorError(PlenaError, ValueError):
    """Arguments that an operator does not take: names operator, argument, what is expected, and what was given."""


class CapacityError(PlenaError, ValueError):
    """Tensors that do not fit a memory: names what was live.

    Attributes:
        memory: which one.
        node: number of the node that needed it, if it is known; -1 for inputs.
    """

    def __init__(self, message: str, memory: str, node: int | None = None) -> None:
        super().__init__(message)
        self.memory, self.node = memory, node


@dataclass(frozen=True, eq=False)
class Tensor:
    """A matrix in a graph.

    Attributes:
        name: unique in its graph.
        shape: rows and columns; vectors have one row.
        place: the memory.
        role: of a tensor in HBM.
        base: the tensor that this one is a view of, or None.
        start: row and column of the base where the view begins.
    """

    name: str
    shape: Shape
    place: Place = "vram"
    role: Role | None = None
    base: Tensor | None = field(default=None, repr=False)
    start: Shape = (0, 0)

    @property
    def root(self) -> Tensor:
        """The tensor that owns the memory."""
        return self if self.base is None else self.base

    def rows(self, start: int, stop: int) -> Tensor:
        """A view of rows ``start`` to ``stop``; no copy.

        Raises:
            OperatorError: rows that there are not.
        """
        return self._view((start, 0), (stop, self.shape[1]))

    def columns(self, start: int, stop: int) -> Tensor:
        """A view of columns ``start`` to ``stop``; no copy. In VRAM ``start`` must be a multiple of MLEN.

        Raises:
            OperatorError: columns that there are not.
        """
        return self._view((0, start), (self.shape[0], stop))

    def _view(self, start: Shape, stop: Shape) -> Tensor:
        for what, first, last, size in zip(("rows", "columns"), start, stop, self.shape, strict=True):
            if not 0 <= first < last <= size:
                raise OperatorError(f"{self.name}: {what} {first} to {last}; allowed: inside the {size} that there are")
        shape = stop[0] - start[0], stop[1] - start[1]
        name = f"{self.root.name}[{self.start[0] + start[0]}:{self.start[0] + stop[0]}, "
        name += f"{self.start[1] + start[1]}:{self.start[1] + stop[1]}]"
        origin = self.start[0] + start[0], self.start[1] + start[1]
        return Tensor(name, shape, self.place, self.role, self.root, origin)


def round_up(value: int, unit: int) -> int:
    """The next multiple of ``unit``."""
    return -(-value // unit) * unit


def row_unit(config: MachineConfig) -> int:
    """VRAM tensors have a multiple of so many rows: products and transfers move several at once."""
    return math.lcm(config.blen, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount)


# -- vector SRAM ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """A matrix in vector SRAM: blocks of MLEN columns, one behind the other, each with all rows.

    Element (r, c) is at ``address + c // lanes * pitch + r * lanes + c % lanes``. Lanes behind the last column are
    zero; rows behind the last are anything.

    Attributes:
        name: of the tensor.
        address: of element (0, 0), in elements.
        shape: rows and columns.
        lanes: columns of a block.
        pitch: elements from block to block.
    """

    name: str
    address: int
    shape: Shape
    lanes: int
    pitch: int

    @property
    def blocks(self) -> int:
        """Blocks of columns."""
        return -(-self.shape[1] // self.lanes)

    @property
    def rest(self) -> int:
        """Columns of the last block if it is not full, else 0."""
        return self.shape[1] % self.lanes

    def at(self, block: int = 0, row: int = 0) -> int:
        """Address of a row of a block."""
        return self.address + block * self.pitch + row * self.lanes


def vram_rows(config: MachineConfig, shape: Shape) -> int:
    """VRAM rows that a tensor takes."""
    return round_up(shape[0], row_unit(config)) * -(-shape[1] // config.mlen)


# -- FP SRAM and INT SRAM ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entries:
    """A row of scalars in FP SRAM, with zeros behind it up to a multiple of MLEN, or of integers in INT SRAM.

    Attributes:
        name: of the tensor.
        first: entry of the first one.
        shape: one row, and how many.
    """

    name: str
    first: int
    shape: Shape


# -- HBM --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matrix:
    """A matrix in HBM: rows one after the other, then their scales; zeros up to whole tiles.

    Attributes:
        shape: rows and columns that count.
        tensor: what is stored, zeros included.
        role: decides which format the machine takes it for.
        start: row and column where a view begins.
    """

    shape: Shape
    tensor: hbm.Tensor
    role: Role
    start: Shape = (0, 0)

    @property
    def name(self) -> str:
        """Of the tensor."""
        return self.tensor.name

    @property
    def precision(self) -> int:
        """The precision operand of transfers."""
        return int(self.role == "kv")

    @property
    def bits(self) -> int:
        """Width of an element."""
        return self.tensor.bits

    @property
    def stride(self) -> int:
        """Bytes from row to row."""
        return self.tensor.shape[1] * self.bits // 8

    @property
    def scale(self) -> int:
        """What the SCALE register must hold: bytes from the elements to their scales."""
        return self.tensor.shape[0] * self.stride

    def offset(self, row: int, column: int) -> int:
        """Bytes from the start of the tensor to an element, of the view."""
        row, column = row + self.start[0], column + self.start[1]
        return row * self.stride + column * self.bits // 8


def format_of(config: MachineConfig, role: Role, matrix_unit: bool) -> Precision:
    """The format of a role: ``H_PREFETCH_M`` takes it for one of the matrix unit's, the others of the vector unit's."""
    formats = config.precision
    if role == "kv":
        return formats.hbm_m_kv_type if matrix_unit else formats.hbm_v_kv_type
    return formats.hbm_m_weight_type if role == "weights" else formats.hbm_v_act_type


def stored_shape(config: MachineConfig, shape: Shape, role: Role) -> Shape:
    """Rows and columns that a matrix takes in HBM: whole tiles, and whole transfers, of a cache from any row on."""
    more = config.hbm_v_writeback_amount - 1 if role == "kv" else 0
    rows = round_up(shape[0] + more, math.lcm(config.mlen, row_unit(config)))
    return rows, round_up(shape[1], config.mlen)


def place_matrix(config: MachineConfig, tensor: Tensor, address: int, read: int = 0) -> Matrix:
    """A tensor of HBM at an address, a multiple of 64, with zeros behind it up to ``read`` rows at least.

    Raises:
        OperatorError: the machine cannot transfer the role's format.
    """
    assert tensor.role is not None
    fmt = format_of(config, tensor.role, tensor.role == "weights")
    transfer = Transfer.of(config, fmt)
    if transfer.problem:
        raise OperatorError(f"{tensor.name}: format {fmt} of {tensor.role}: {transfer.problem}")
    if transfer.scale_bytes and BLOCK % transfer.scale_bytes:
        raise OperatorError(
            f"{tensor.name}: rows of {transfer.scale_bytes} scale bytes (MLEN {config.mlen}, {fmt}); the machine "
            f"fetches one line of {BLOCK} bytes a row: allowed are divisors of it"
        )
    rows, columns = stored_shape(config, tensor.shape, tensor.role)
    rows = max(rows, round_up(read, math.lcm(config.mlen, row_unit(config))))
    where = hbm.Tensor(tensor.name, (rows, columns), address, transfer.fmt)
    if where.shape[0] * where.shape[1] // max(transfer.ratio, 1) > 1 << 24:
        raise OperatorError(f"{tensor.name}: scales are too far apart for float32, in which the machine computes where")
    return Matrix(tensor.shape, where, tensor.role)
