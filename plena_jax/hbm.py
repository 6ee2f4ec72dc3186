"""The values face of HBM: what its elements are worth, one float32 cell for each element address.

The hardware holds bytes. Values have derivatives, need no decoding, and take formats that are traced; a machine runs
with either (``MachineState.create(hbm=...)``) and ends in the same VRAM, bit for bit, where tensors do not alias:

>>> import numpy as np, plena_jax
>>> from plena_jax import hbm
>>> config = plena_jax.MachineConfig()
>>> weights = hbm.Tensor("weights", (64, 64), 0, config.precision.hbm_m_weight_type)
>>> x = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
>>> values = hbm.place(config, {weights: hbm.stage(x, weights.format)})
>>> state = plena_jax.MachineState.create(config, hbm=values)
>>> image = hbm.to_bytes(config, values, [weights])
>>> np.array_equal(hbm.read(config, image, weights), hbm.read(config, values, weights))
True
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from plena_jax.bits import Array, quiet
from plena_jax.config import MachineConfig, Precision
from plena_jax.errors import ImageError
from plena_jax.formats import MXFormat, pack, unpack
from plena_jax.machine.resolved import Trace
from plena_jax.machine.rows import TransferredRows
from plena_jax.machine.transfer import cell_bits


@dataclass(frozen=True)
class Tensor:
    """A matrix in HBM.

    Attributes:
        name: for messages.
        shape: rows and columns; of MX formats columns are a whole number of blocks.
        address: of its first element, in bytes.
        format: of its elements.
        scale_address: of its first scale, in bytes; right behind the elements by default.
        stride: bytes from row to row; by default rows follow each other.

    Raises:
        ImageError: a row that is not a whole number of bytes, blocks or scales.
    """

    name: str
    shape: tuple[int, int]
    address: int
    format: Precision = field(repr=False)
    scale_address: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        rows, columns = self.shape
        block = self.format.block if isinstance(self.format, MXFormat) else 1
        if rows < 1 or columns < 1 or columns % block:
            raise ImageError(f"tensor {self.name}: shape {self.shape}; allowed: positive, columns in whole MX blocks")
        if columns * self.bits % 8 or self._scales_bits % 8:
            raise ImageError(f"tensor {self.name}: a row of {columns} elements or its scales are not whole bytes")
        if self.address < 0 or (self.scale_address or 0) < 0 or self._step < self._row_bytes:
            raise ImageError(f"tensor {self.name}: addresses must not be negative, nor rows overlap")
        if block > 1 and self._step * 8 % (self.bits * block):
            raise ImageError(f"tensor {self.name}: a stride of {self._step} bytes is not a whole number of MX blocks")

    @property
    def bits(self) -> int:
        """Width of an element."""
        return self.format.element.bits if isinstance(self.format, MXFormat) else self.format.bits

    @property
    def _scales_bits(self) -> int:
        return self.shape[1] // self.format.block * self.format.scale.bits if isinstance(self.format, MXFormat) else 0

    @property
    def _row_bytes(self) -> int:
        return self.shape[1] * self.bits // 8

    @property
    def _step(self) -> int:
        return self._row_bytes if self.stride is None else self.stride

    @cached_property
    def element_bytes(self) -> np.ndarray:
        """int64 [rows, bytes]: addresses of the elements' bytes."""
        rows = self.address + np.arange(self.shape[0], dtype=np.int64)[:, None] * self._step
        return rows + np.arange(self._row_bytes, dtype=np.int64)

    @cached_property
    def scale_bytes(self) -> np.ndarray:
        """int64 [rows, bytes]: addresses of the scales' bytes."""
        if not isinstance(self.format, MXFormat):
            return np.zeros((self.shape[0], 0), np.int64)
        start = self.address + self.shape[0] * self._step if self.scale_address is None else self.scale_address
        step = self._step * 8 // (self.bits * self.format.block) * self.format.scale.bits // 8
        rows = start + np.arange(self.shape[0], dtype=np.int64)[:, None] * step
        return rows + np.arange(self._scales_bits // 8, dtype=np.int64)

    @property
    def end(self) -> int:
        """One past its last byte, scales included."""
        return int(max(self.element_bytes.max(), self.scale_bytes.max(initial=-1))) + 1

    def cells(self, config: MachineConfig) -> np.ndarray:
        """int64 [rows, columns]: its cells on the values face.

        Raises:
            ImageError: elements that are not a whole number of the configuration's cells.
        """
        unit = cell_bits(config)
        if self.bits % unit:
            raise ImageError(f"tensor {self.name}: elements of {self.bits} bits; cells of this machine have {unit}")
        start = self.element_bytes[:, :1] * (8 // unit)
        return start + np.arange(self.shape[1], dtype=np.int64) * (self.bits // unit)


# -- values -----------------------------------------------------------------------------------------------------------


def stage(x: ArrayLike, fmt: Precision, scale: ArrayLike | None = None, clipped: bool = False) -> jax.Array:
    """What elements in a format hold of float32 ``x``.

    Args:
        x: any shape; the last axis a whole number of MX blocks.
        fmt: the format.
        scale: elements hold ``x / scale``; any shape that broadcasts, and a parameter to be learnt: its derivative is
            that of ``scale * round(x / scale)``, straight-through (Esser et al., "Learned step size quantization").
        clipped: roundings have derivative 0 where they saturate.
    """
    values = jnp.asarray(x, jnp.float32)
    if scale is None:
        return fmt.round(values, clipped)
    return fmt.round(values / scale, clipped) * scale


@quiet
def stored(x: Array, fmt: Precision) -> Array:
    """float32 ``x`` as a format holds it: :func:`stage`, or of NumPy arrays NumPy, for which nothing is compiled."""
    if isinstance(x, jax.Array):
        return stage(x, fmt)
    codes: Any = fmt.encode(x)
    return np.asarray(fmt.decode(*codes) if isinstance(fmt, MXFormat) else fmt.decode(codes))


def place(config: MachineConfig, contents: Mapping[Tensor, ArrayLike], size: int | None = None) -> jax.Array:
    """The values face with tensors in it: float32 [cells], zeros between them; differentiable.

    Args:
        config: the machine.
        contents: values [rows, columns] of each tensor, as :func:`stage` gives them.
        size: bytes of HBM, by default up to the last tensor, scales included.

    Raises:
        ImageError: values of another shape, tensors that overlap or lie beyond ``size``.
    """
    size = max((t.end for t in contents), default=0) if size is None else size
    known = all(isinstance(values, np.ndarray) for values in contents.values())
    cells: Any = (np if known else jnp).zeros(size * 8 // cell_bits(config), np.float32)
    taken = np.zeros(size, bool)
    for tensor, values in contents.items():
        for addresses in (tensor.element_bytes, tensor.scale_bytes):
            if addresses.max(initial=-1) >= size or taken[addresses].any():
                raise ImageError(f"tensor {tensor.name}: overlaps another one or ends beyond the {size} bytes of HBM")
            taken[addresses] = True
        if jnp.shape(values) != tensor.shape:
            raise ImageError(f"tensor {tensor.name}: values {jnp.shape(values)}; its shape is {tensor.shape}")
        if known:
            cells[tensor.cells(config)] = values
        else:
            cells = cells.at[tensor.cells(config)].set(values, unique_indices=True)
    return jnp.asarray(cells)


def read(config: MachineConfig, memory: ArrayLike, tensor: Tensor) -> Array:
    """float32 [rows, columns]: a tensor in HBM, of either face (uint8 bytes or float32 cells).

    Raises:
        ImageError: it lies beyond the memory.
    """
    memory = memory if isinstance(memory, jax.Array) else np.asarray(memory)
    has_values = memory.dtype == np.float32
    addresses = [tensor.cells(config)] if has_values else [tensor.element_bytes, tensor.scale_bytes]
    if max(a.max(initial=-1) for a in addresses) >= memory.shape[0]:
        raise ImageError(f"tensor {tensor.name}: ends beyond the {memory.shape[0]} entries of HBM")
    return memory[addresses[0]] if has_values else _decoded(np.asarray(memory), tensor.format, *addresses)


@quiet
def _decoded(image: np.ndarray, fmt: Precision, elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """float32 [n, columns] from byte addresses [n, bytes] of rows and their scales."""
    bits = fmt.element.bits if isinstance(fmt, MXFormat) else fmt.bits
    columns = elements.shape[1] * 8 // bits
    codes = unpack(image[elements], bits, columns)
    if not isinstance(fmt, MXFormat):
        return np.asarray(fmt.decode(codes))
    return np.asarray(fmt.decode(codes, unpack(image[scales], fmt.scale.bits, columns // fmt.block)))


# -- between the faces ------------------------------------------------------------------------------------------------


def to_values(config: MachineConfig, image: bytes | np.ndarray, tensors: Iterable[Tensor] | Trace) -> np.ndarray:
    """The values face of a byte image: float32 [cells], zero where there is no tensor.

    Args:
        config: the machine.
        image: bytes, from address 0.
        tensors: what lies where; of a resolved program, whatever it transfers.

    Raises:
        EngineError: the program uses bytes in different ways (see :meth:`TransferredRows.check`).
        ImageError: a tensor lies beyond the image.
    """
    data = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else np.asarray(image, np.uint8)
    unit = cell_bits(config)
    if isinstance(tensors, Trace):
        return _values_of_rows(TransferredRows.of(tensors), data, unit)
    cells = np.zeros(len(data) * 8 // unit, np.float32)
    for tensor in tensors:
        cells[tensor.cells(config)] = read(config, data, tensor)
    return cells


def _values_of_rows(rows: TransferredRows, data: np.ndarray, unit: int) -> np.ndarray:
    rows.check()
    cells = np.zeros(len(data) * 8 // unit, np.float32)
    # What lies beyond the image is zero.
    data = np.append(data, np.uint8(0))
    for transfer, elements, scales in rows.by_format():
        at = elements[:, :1] * (8 // unit) + np.arange(transfer.lanes) * (transfer.bits // unit)
        inside = lambda addresses: np.minimum(addresses, len(data) - 1)
        values = _decoded(data, transfer.fmt, inside(elements), inside(scales))
        cells[at[at < len(cells)]] = values[at < len(cells)]
    return cells


def to_bytes(
    config: MachineConfig, values: ArrayLike, tensors: Iterable[Tensor], image: bytes | np.ndarray | None = None
) -> np.ndarray:
    """The byte image of a values face: uint8 [bytes], encoded as the tensors' formats do.

    Args:
        config: the machine.
        values: float32 [cells].
        tensors: what lies where.
        image: what is between the tensors, by default zeros.

    Raises:
        ImageError: a tensor lies beyond the values.
    """
    cells = np.asarray(values, np.float32)
    size = math.ceil(len(cells) * cell_bits(config) / 8)
    data = np.zeros(size, np.uint8)
    if image is not None:
        given = np.frombuffer(image, np.uint8) if isinstance(image, bytes) else np.asarray(image, np.uint8)
        data[: len(given)] = given[:size]
    for tensor in tensors:
        held, fmt = np.asarray(read(config, cells, tensor)), tensor.format
        if tensor.end > size:
            raise ImageError(f"tensor {tensor.name}: ends at byte {tensor.end} of {size}")
        codes: Any = fmt.encode(held)
        elements, scales = codes if isinstance(fmt, MXFormat) else (codes, None)
        data[tensor.element_bytes] = pack(elements, tensor.bits)
        if isinstance(fmt, MXFormat):
            data[tensor.scale_bytes] = pack(scales, fmt.scale.bits)
    return data


__all__ = ["Tensor", "place", "read", "stage", "stored", "to_bytes", "to_values"]
