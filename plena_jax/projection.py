"""A tiled projection: activations times MX weights, as one program; the job of ``plena demo`` and of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import numpy as np

from plena_jax import hbm
from plena_jax.assembler import assemble
from plena_jax.bits import quiet
from plena_jax.config import MachineConfig
from plena_jax.errors import ConfigError
from plena_jax.formats import MXFormat, pack
from plena_jax.hbm import Tensor
from plena_jax.machine.images import Images
from plena_jax.machine.sums import K_BLOCK
from plena_jax.machine.transfer import BLOCK, Transfer, vram_format
from plena_jax.program import Program


@dataclass(frozen=True, eq=False)
class Projection:
    """``activations @ weights``, staged in HBM in the configuration's formats.

    Attributes:
        activations: float32 [rows, k]; rows a multiple of BLEN and of HBM_V_Prefetch_Amount, k of MLEN.
        weights: float32 [k, n]; n a multiple of MLEN. All tiles of MLEN columns must fit matrix SRAM at once.
        config: the machine.

    Raises:
        ConfigError: a shape that the program cannot tile, or a format whose rows it cannot fetch.
    """

    activations: np.ndarray
    weights: np.ndarray
    config: MachineConfig

    def __post_init__(self) -> None:
        config, (rows, k), n = self.config, self.activations.shape, self.weights.shape[1]
        for name, value, unit in (
            ("rows", rows, config.blen),
            ("rows", rows, config.hbm_v_prefetch_amount),
            ("k", k, config.mlen),
            ("n", n, config.mlen),
        ):
            if value % unit:
                raise ConfigError(name, value, f"must be a multiple of {unit}")
        if config.prefetch_m_rows != config.mlen or k // config.mlen > config.tiles:
            raise ConfigError("k", k, f"needs {k // config.mlen} tiles, fetched one at a time, of {config.tiles}")
        _check_rows("k", (rows, k), rows * k, self._activation_type)
        _check_rows("n", (k, n), self._weights_at + k * n, self._weight_type)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, k, n)."""
        return (*self.activations.shape, self.weights.shape[1])

    @cached_property
    def program(self) -> Program:
        """The instructions: fetch activations, then for each MLEN output columns their weight tiles, then multiply."""
        rows, k, n = self.shape
        config, size = self.config, self.config.mlen
        step = config.hbm_v_prefetch_amount
        tiles, groups = k // size, rows // config.blen
        lines = [
            *_constant("gp1", 0),
            "C_SET_ADDR_REG a0, gp0, gp1",
            *_constant("gp1", self._weights_at),
            "C_SET_ADDR_REG a1, gp0, gp1",
            *_constant("gp1", rows * k),
            "C_SET_SCALE_REG gp1",
            *_constant("gp1", k),
            "C_SET_STRIDE_REG gp1",
            "; activations: one block of MLEN columns after the other (gp2: VRAM, gp3: first row in HBM)",
            *_constant("gp2", 0),
            *_constant("gp3", 0),
            f"C_LOOP_START gp4, {tiles}",
            "S_ADDI_INT gp5, gp3, 0",
            f"C_LOOP_START gp6, {rows // step}",
            "H_PREFETCH_V gp2, gp5, a0, 1, 0",
            *_add("gp2", step * size),
            *_add("gp5", step * k),
            "C_LOOP_END gp6",
            f"S_ADDI_INT gp3, gp3, {size}",
            "C_LOOP_END gp4",
            *_constant("gp1", k * n),
            "C_SET_SCALE_REG gp1",
            *_constant("gp1", n),
            "C_SET_STRIDE_REG gp1",
            "; blocks of MLEN output columns (gp7: results in VRAM, gp8: first column)",
            *_constant("gp7", rows * k),
            *_constant("gp8", 0),
            f"C_LOOP_START gp4, {n // size}",
            *_constant("gp2", 0),
            "S_ADDI_INT gp3, gp8, 0",
            f"C_LOOP_START gp5, {tiles}",
            "H_PREFETCH_M gp2, gp3, a1, 1, 0",
            *_add("gp2", size**2),
            *_add("gp3", size * n),
            "C_LOOP_END gp5",
            "; BLEN columns (gp9: tile, gp10: results), BLEN rows (gp11: activations), tiles along k",
            *_constant("gp9", 0),
            "S_ADDI_INT gp10, gp7, 0",
            f"C_LOOP_START gp5, {size // config.blen}",
            *_constant("gp11", 0),
            "S_ADDI_INT gp12, gp10, 0",
            f"C_LOOP_START gp6, {groups}",
            "S_ADDI_INT gp13, gp9, 0",
            "S_ADDI_INT gp14, gp11, 0",
            f"C_LOOP_START gp15, {tiles}",
            "M_MM 0, gp13, gp14",
            *_add("gp13", size**2),
            *_add("gp14", rows * size),
            "C_LOOP_END gp15",
            "M_MM_WO gp12, gp0, 0",
            *_add("gp12", config.blen * size),
            *_add("gp11", config.blen * size),
            "C_LOOP_END gp6",
            *_add("gp9", config.blen * size),
            f"S_ADDI_INT gp10, gp10, {config.blen}",
            "C_LOOP_END gp5",
            *_add("gp7", rows * size),
            f"S_ADDI_INT gp8, gp8, {size}",
            "C_LOOP_END gp4",
        ]
        return assemble("\n".join(lines), "<projection>")

    @property
    def _activation_type(self) -> Transfer:
        return Transfer.of(self.config, self.config.precision.hbm_v_act_type)

    @property
    def _weight_type(self) -> Transfer:
        return Transfer.of(self.config, self.config.precision.hbm_m_weight_type)

    @property
    def _weights_at(self) -> int:
        """Address of the weights: behind the activations, at a 64-byte line."""
        transfer = self._activation_type
        size = self.activations.size // self.config.mlen * (transfer.element_bytes + transfer.scale_bytes)
        return -(-size // BLOCK) * BLOCK

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Activations and weights in HBM."""
        rows, k, n = self.shape
        precision = self.config.precision
        activations = Tensor("activations", (rows, k), 0, precision.hbm_v_act_type)
        return activations, Tensor("weights", (k, n), self._weights_at, precision.hbm_m_weight_type)

    @cached_property
    def images(self) -> Images:
        """The operands in HBM: elements and scales of the activations, then of the weights."""
        head = b"".join(_stage(self.activations, self._activation_type)).ljust(self._weights_at, b"\0")
        return Images(hbm=head + b"".join(_stage(self.weights, self._weight_type)))

    def result(self, vram: np.ndarray) -> np.ndarray:
        """float32 [rows, n] from VRAM [rows, VLEN] after the run."""
        rows, k, n = self.shape
        size = self.config.mlen
        first = rows * (k // size)
        blocks = np.asarray(vram)[first : first + rows * (n // size)].reshape(n // size, rows, size)
        return np.ascontiguousarray(blocks.transpose(1, 0, 2).reshape(rows, n))

    @quiet
    def rounded(self) -> np.ndarray:
        """float32 [rows, n]: the product with every rounding of the machine, in the machine's order."""
        size = self.config.mlen
        x = self._vram(_rounded(self.activations, self._activation_type))
        w = _rounded(self.weights, self._weight_type)
        total = np.zeros((len(x), w.shape[1]), np.float32)
        for tile in range(0, len(w), size):
            blocks = [range(tile, tile + size)[i : i + K_BLOCK] for i in range(0, size, K_BLOCK)]
            total = total + reduce(add, (reduce(add, (x[:, k, None] * w[k] for k in block)) for block in blocks))
        return self._vram(total)

    def _vram(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(hbm.stored(values, vram_format(self.config)))

    def exact(self) -> np.ndarray:
        """float32 [rows, n]: the product of the operands as they were given."""
        product: np.ndarray = self.activations.astype(np.float32) @ self.weights.astype(np.float32)
        return product


def _constant(register: str, value: int) -> list[str]:
    if value < 1 << 18:
        return [f"S_ADDI_INT {register}, gp0, {value}"]
    return [f"S_LUI_INT {register}, {value >> 12}", f"S_ADDI_INT {register}, {register}, {value & 0xFFF}"]


def _add(register: str, value: int) -> list[str]:
    """Add a constant of any size: an immediate holds 18 bits."""
    most = (1 << 18) - 1
    steps = [most] * (value // most) + ([value % most] if value % most else [])
    return [f"S_ADDI_INT {register}, {register}, {step}" for step in steps]


def _check_rows(key: str, shape: tuple[int, int], scales_at: int, transfer: Transfer) -> None:
    """Refuse a matrix whose rows of MLEN elements the machine does not fetch as they are staged (machine.md 4.6).

    Args:
        key: the extent to name.
        shape: of the matrix.
        scales_at: address of its scales.
        transfer: how its rows lie in HBM.
    """
    if not isinstance(transfer.fmt, MXFormat) or transfer.problem:
        raise ConfigError("PRECISION", str(transfer.fmt), transfer.problem or "the projection takes MX formats")
    if transfer.element_bytes != transfer.lanes:
        raise ConfigError("PRECISION", str(transfer.fmt), "the projection takes MX elements of 8 bits")
    size = transfer.scale_bytes
    starts = scales_at + size * np.arange(min(shape[0] * shape[1] // transfer.lanes, BLOCK))
    if (starts % BLOCK + size > BLOCK).any():
        rule = f"rows of {size} scale bytes straddle lines of {BLOCK} bytes, of which the machine fetches one a row"
        raise ConfigError(key, shape[1], rule)
    # The machine works out where the scales of a row are in float32.
    if transfer.lanes * shape[1] // transfer.ratio > 1 << 24:
        raise ConfigError(key, shape[1], "scales are too far apart for float32 to tell")


def _stage(matrix: np.ndarray, transfer: Transfer) -> tuple[bytes, bytes]:
    """Element bytes and scale bytes of a matrix, row after row."""
    fmt = transfer.fmt
    assert isinstance(fmt, MXFormat)
    codes, scales = fmt.encode(np.asarray(matrix, np.float32))
    return pack(codes, fmt.element.bits).tobytes(), pack(scales, fmt.scale.bits).tobytes()


def _rounded(matrix: np.ndarray, transfer: Transfer) -> np.ndarray:
    return np.asarray(hbm.stored(np.asarray(matrix, np.float32), transfer.fmt))


def random_projection(rows: int, k: int, n: int, config: MachineConfig, seed: int = 0) -> Projection:
    """A projection of normal activations with weights that keep their scale."""
    random = np.random.default_rng(seed)
    activations = random.normal(size=(rows, k)).astype(np.float32)
    weights = (random.normal(size=(k, n)) / np.sqrt(k)).astype(np.float32)
    return Projection(activations, weights, config)
