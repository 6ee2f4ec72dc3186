"""Byte images of the memories: what the emulator's files hold (docs/machine.md sections 7.2 and 7.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from plena_jax.bits import quiet
from plena_jax.config import MachineConfig, Precision
from plena_jax.errors import ImageError
from plena_jax.formats import FloatFormat, IntFormat, MXFormat, pack, plena, unpack
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.transfer import effective, vram_format

if TYPE_CHECKING:
    from plena_jax.machine.state import MachineState


def image_error(memory: str, got: str, limit: str) -> ImageError:
    """The error for contents that do not fit."""
    return ImageError(f"{memory}: {got} do not fit; allowed: {limit}")


def array_of(memory: str, values: Any) -> np.ndarray:
    """Contents as an array.

    Raises:
        ImageError: rows of different lengths.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ImageError(f"{memory}: contents are not an array: {error}") from None


@dataclass(frozen=True)
class Images:
    """Byte images of memories, each from address 0.

    As input: ``fp_sram`` holds IEEE float16, ``int_sram`` little-endian 32-bit words, ``vram`` packed VECTOR_SRAM_TYPE
    elements. As output of :meth:`of`: ``fp_sram`` holds BF16 (so is the emulator's dump; SCALAR_FP where that is
    intended), ``mram`` packed MATRIX_SRAM_TYPE.
    """

    hbm: bytes = b""
    fp_sram: bytes = b""
    int_sram: bytes = b""
    vram: bytes = b""
    mram: bytes = b""

    def contents(self, config: MachineConfig) -> dict[str, Any]:
        """Values for :meth:`MachineState.create`.

        Raises:
            ImageError: an image is cut off inside an element, or larger than its memory.
        """
        _whole("FP SRAM image", self.fp_sram, 2, "float16 entries")
        _whole("INT SRAM image", self.int_sram, 4, "32-bit words")
        _fits("FP SRAM image", len(self.fp_sram) // 2, SRAM_ENTRIES, "entries")
        _fits("INT SRAM image", len(self.int_sram) // 4, SRAM_ENTRIES, "entries")
        _fits("HBM image", len(self.hbm), config.hbm_size, "bytes (HBM_SIZE)")
        return {
            "hbm": self.hbm,
            "fp_sram": np.frombuffer(self.fp_sram, "<f2"),
            "int_sram": np.frombuffer(self.int_sram, "<u4"),
            "vram": _vram_image(config, self.vram),
        }

    @classmethod
    def of(cls, config: MachineConfig, state: MachineState) -> Images:
        """The images that the emulator would dump, VRAM and HBM over what is allocated.

        Raises:
            ImageError: HBM shows its values face.
        """
        if state.has_values:
            raise ImageError(
                "HBM: values have no bytes without the layout of their tensors; plena_jax.hbm.to_bytes makes them"
            )
        return cls(
            hbm=np.asarray(state.hbm).tobytes(),
            fp_sram=_packed(state.fp_sram, _element(config.precision.scalar_fp))
            if config.intended.scalar_fp
            else (np.asarray(state.fp_sram).view(np.uint32) >> 16).astype("<u2").tobytes(),
            int_sram=np.asarray(state.int_sram).astype("<u4").tobytes(),
            vram=_packed(state.vram, vram_format(config)),
            mram=_packed(state.mram, _element(effective(config.precision.matrix_sram_type, config.intended))),
        )


def _element(fmt: Precision) -> FloatFormat | IntFormat:
    return fmt.element if isinstance(fmt, MXFormat) else fmt


def _packed(values: Any, fmt: FloatFormat | IntFormat) -> bytes:
    return pack(fmt.encode(np.asarray(values).reshape(-1)), fmt.bits).tobytes()


def _vram_image(config: MachineConfig, data: bytes) -> np.ndarray:
    fmt = vram_format(config)
    row = -(-config.vlen * fmt.bits // 8)
    _whole("VRAM image", data, fmt.bits / 8, f"{fmt.bits}-bit elements")
    rows = -(-len(data) // row)
    _fits("VRAM image", rows, config.vector_sram_size, "rows (VECTOR_SRAM_SIZE)")
    padded = np.frombuffer(data + bytes(rows * row - len(data)), np.uint8).reshape(rows, row)
    return fmt.decode(unpack(padded, fmt.bits, config.vlen))


def _whole(name: str, data: bytes, unit: float, what: str) -> None:
    if len(data) % unit:
        raise ImageError(f"{name}: {len(data)} bytes are not a whole number of {what}; the image is cut off")


def _fits(name: str, got: int, limit: int, what: str) -> None:
    if got > limit:
        raise ImageError(f"{name}: {got} {what.split(' ')[0]} do not fit; allowed: {limit} {what}")


# -- values -----------------------------------------------------------------------------------------------------------


@quiet
def vram_values(config: MachineConfig, values: Any, rows: int) -> np.ndarray:
    """float32 [n, VLEN] of values of VECTOR_SRAM_TYPE from a float array, the last row filled with zeros."""
    array = array_of("VRAM", values)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ImageError(f"VRAM: contents are {array.dtype} {array.shape}; allowed: an array of real numbers")
    flat = array.astype(np.float32).reshape(-1)
    count = -(-flat.size // config.vlen)
    if array.ndim > 1 and array.shape[-1] != config.vlen:
        raise ImageError(f"VRAM: rows of {array.shape[-1]} lanes; allowed: VLEN, {config.vlen}, or a flat array")
    if count > rows:
        raise image_error("VRAM", f"{count} rows", f"{rows} rows")
    padded = np.zeros((count, config.vlen), np.float32)
    padded.reshape(-1)[: flat.size] = flat
    fmt = vram_format(config)
    return fmt.decode(fmt.encode(padded))


@quiet
def scalar_values(values: Any, config: MachineConfig) -> np.ndarray:
    """float32 [n] of values of FP SRAM from floats, rounded as the emulator rounds its preload."""
    array = array_of("FP SRAM", values)
    if array.ndim != 1 or array.size > SRAM_ENTRIES or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ImageError(
            f"FP SRAM: contents are {array.dtype} {array.shape}; allowed: a one-dimensional float array of at most "
            f"{SRAM_ENTRIES} entries"
        )
    fmt, array = config.precision.scalar_fp, array.astype(np.float32)
    if not config.intended.scalar_fp or not isinstance(fmt, FloatFormat):
        return plena.round_scalar(array)
    return fmt.decode(fmt.encode(array))


def words(values: Any) -> np.ndarray:
    """uint32 [n] from integers."""
    array = array_of("INT SRAM", values)
    bad = array.ndim != 1 or array.size > SRAM_ENTRIES
    if bad or (array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 0xFFFFFFFF)):
        raise ImageError(
            f"INT SRAM: contents are {array.dtype} {array.shape}; allowed: a one-dimensional array of at most "
            f"{SRAM_ENTRIES} integers from 0 to 2**32 - 1"
        )
    return array.astype(np.uint32)
