"""The machine's configuration: geometry, memory sizes, number formats, latencies, switches."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import jax

from plena_jax.errors import ConfigError
from plena_jax.formats import FloatFormat, IntFormat, MXFormat
from plena_jax.hashing import hashed_once

#: What a PRECISION entry holds: one type, or an MX block type.
Precision = FloatFormat | IntFormat | MXFormat

BF16 = FloatFormat.make(8, 7, family="plena")
E8M0 = FloatFormat.make(8, 0, sign=False, family="plena")
MXFP8 = MXFormat(FloatFormat.make(4, 3, family="plena"), E8M0, 8, "plena")


def _key(name: str, default: Any) -> Any:
    return field(default=default, metadata={"key": name})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Formats:
    """The PRECISION table: which number format each place holds. A pytree, so that ``vmap`` can sweep it.

    ``hbm_v_int_type`` is read and written but, as in the hardware model, used by nothing, and so is ``scalar_fp``
    (scalars are BF16) unless ``Intended.scalar_fp`` is set. ``matrix_sram_type`` only encodes the dump (matrix SRAM
    holds unrounded float32) unless ``Intended.matrix_sram_type`` is set.
    """

    matrix_sram_type: Precision = _key("MATRIX_SRAM_TYPE", BF16)
    vector_sram_type: Precision = _key("VECTOR_SRAM_TYPE", BF16)
    hbm_m_weight_type: Precision = _key("HBM_M_WEIGHT_TYPE", MXFP8)
    hbm_m_kv_type: Precision = _key("HBM_M_KV_TYPE", MXFP8)
    hbm_v_act_type: Precision = _key("HBM_V_ACT_TYPE", MXFP8)
    hbm_v_kv_type: Precision = _key("HBM_V_KV_TYPE", MXFP8)
    hbm_v_int_type: Precision = _key("HBM_V_INT_TYPE", IntFormat(32, family="plena"))
    scalar_fp: Precision = _key("SCALAR_FP", BF16)


def _check_integer(key: str, value: Any, *, zero: bool) -> None:
    least = 0 if zero else 1
    most = 2**63 - 1 if key in ("HBM_SIZE", "MAX_LOOP_INSTRUCTIONS") else 2**32 - 1
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(key, value, f"must be an integer from {least} to {most}")


def _cycles(name: str, enabled: int, disabled: int) -> Any:
    return field(default=(enabled, disabled), metadata={"key": name})


@dataclass(frozen=True)
class Latency:
    """The LATENCY table: cycles ``(dc_lib_en, dc_lib_dis)``; ``DC_EN`` picks one."""

    systolic_processing_overhead: tuple[int, int] = _cycles("SYSTOLIC_PROCESSING_OVERHEAD", 0, 0)
    vector_longest_operate_cycles: tuple[int, int] = _cycles("VECTOR_LONGEST_OPERATE_CYCLES", 10, 20)
    vector_basic_cycles: tuple[int, int] = _cycles("VECTOR_BASIC_CYCLES", 1, 2)
    vector_add_cycles: tuple[int, int] = _cycles("VECTOR_ADD_CYCLES", 1, 2)
    vector_mul_cycles: tuple[int, int] = _cycles("VECTOR_MUL_CYCLES", 1, 5)
    vector_exp_cycles: tuple[int, int] = _cycles("VECTOR_EXP_CYCLES", 1, 6)
    vector_prefix_scan_cycles: tuple[int, int] = _cycles("VECTOR_PREFIX_SCAN_CYCLES", 9, 9)
    vector_shift_cycles: tuple[int, int] = _cycles("VECTOR_SHIFT_CYCLES", 1, 1)
    vector_reci_cycles: tuple[int, int] = _cycles("VECTOR_RECI_CYCLES", 2, 7)
    vector_max_cycles: tuple[int, int] = _cycles("VECTOR_MAX_CYCLES", 4, 4)
    vector_sum_cycles: tuple[int, int] = _cycles("VECTOR_SUM_CYCLES", 8, 20)
    scalar_fp_longest_operate_cycles: tuple[int, int] = _cycles("SCALAR_FP_LONGEST_OPERATE_CYCLES", 4, 4)
    scalar_fp_basic_cycles: tuple[int, int] = _cycles("SCALAR_FP_BASIC_CYCLES", 1, 1)
    scalar_fp_exp_cycles: tuple[int, int] = _cycles("SCALAR_FP_EXP_CYCLES", 1, 2)
    scalar_fp_sqrt_cycles: tuple[int, int] = _cycles("SCALAR_FP_SQRT_CYCLES", 1, 2)
    scalar_fp_reci_cycles: tuple[int, int] = _cycles("SCALAR_FP_RECI_CYCLES", 1, 2)
    scalar_int_basic_cycles: tuple[int, int] = _cycles("SCALAR_INT_BASIC_CYCLES", 1, 1)

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            key, value = f"LATENCY.{item.metadata['key']}", getattr(self, item.name)
            if not isinstance(value, tuple) or len(value) != 2:
                raise ConfigError(key, value, "must be a tuple of two cycle counts (dc_lib_en, dc_lib_dis)")
            for part, cycles in zip(("dc_lib_en", "dc_lib_dis"), value, strict=True):
                _check_integer(f"{key}.{part}", cycles, zero=True)


@dataclass(frozen=True)
class Intended:
    """Switches from what the hardware model does to what the instruction set evidently intends. All off: bit-exact.

    Attributes:
        masked_reductions: a masked V_RED_SUM or V_RED_MAX reduces the active lanes only. (Off: all lanes are reduced,
            after each active head slot has been replaced by copies of its own sum or maximum.)
        c_break: C_BREAK continues after the C_LOOP_END of the loop it leaves. (Off: with the next instruction.)
        m_bmv: M_BMV works, as the matrix-vector form of M_BMM. (Off: it faults.)
        sub_byte_formats: MX elements of fewer than 8 bits (or not a whole number of bytes) are packed, least
            significant bit first, and integer elements are two's complement fractions as in OCP's MXINT. (Off: they
            fault.)
        plain_formats: rows of plain HBM formats follow each other without overlap in contiguous mode, 32-bit types
            work, and plain integers are signed, rounded and saturated. (Off: the row step is the number of elements,
            whatever their width, and 32-bit types are refused.)
        scalar_fp: f registers and FP SRAM hold values of SCALAR_FP. (Off: BF16.)
        matrix_sram_type: matrix SRAM holds values of MATRIX_SRAM_TYPE. (Off: unrounded.)
    """

    masked_reductions: bool = False
    c_break: bool = False
    m_bmv: bool = False
    sub_byte_formats: bool = False
    plain_formats: bool = False
    scalar_fp: bool = False
    matrix_sram_type: bool = False


@hashed_once
@dataclass(frozen=True)
class MachineConfig:
    """Everything that fixes a machine. Hashable: a static argument of ``jit``.

    Defaults are the published transactional profile. Field names are the TOML keys in lower case.

    Attributes:
        mlen: side of a matrix SRAM tile, inner length of every product.
        vlen: lanes of a vector SRAM row; must equal ``mlen``.
        blen: rows and columns of one systolic tile.
        hlen: lanes of one head slot.
        broadcast_amount: head slots of the M_B* instructions.
        hbm_size: bytes, a multiple of 64.
        hbm_width: bits; used by nothing in the machine.
        matrix_sram_size: rows of ``mlen`` elements.
        vector_sram_size: rows of ``vlen`` elements.
        hbm_m_prefetch_amount: HBM rows per H_PREFETCH_M, rounded up to whole tiles.
        hbm_v_prefetch_amount: rows per H_PREFETCH_V.
        hbm_v_writeback_amount: rows per H_STORE_V.
        dc_en: non-zero picks the first of each pair of latencies, zero the second.
        max_loop_instructions: instructions one loop iteration may dispatch.
        precision, latency: the two tables.
        intended: departures from the hardware model, all off.
        partial_heads: accept ``hlen * broadcast_amount != mlen``, as the hardware model does until an M_B* instruction
            runs (which then faults).

    Raises:
        ConfigError: on construction, naming key, value and rule.
    """

    mlen: int = _key("MLEN", 64)
    vlen: int = _key("VLEN", 64)
    blen: int = _key("BLEN", 4)
    hlen: int = _key("HLEN", 16)
    broadcast_amount: int = _key("BROADCAST_AMOUNT", 4)
    hbm_size: int = _key("HBM_SIZE", 17179869184)
    hbm_width: int = _key("HBM_WIDTH", 512)
    matrix_sram_size: int = _key("MATRIX_SRAM_SIZE", 4096)
    vector_sram_size: int = _key("VECTOR_SRAM_SIZE", 4194304)
    hbm_m_prefetch_amount: int = _key("HBM_M_Prefetch_Amount", 64)
    hbm_v_prefetch_amount: int = _key("HBM_V_Prefetch_Amount", 4)
    hbm_v_writeback_amount: int = _key("HBM_V_Writeback_Amount", 4)
    dc_en: int = _key("DC_EN", 1)
    max_loop_instructions: int = _key("MAX_LOOP_INSTRUCTIONS", 100000)
    precision: Formats = Formats()
    latency: Latency = Latency()
    intended: Intended = Intended()
    partial_heads: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("precision", Formats), ("latency", Latency), ("intended", Intended)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(name.upper(), getattr(self, name), f"must be a {kind.__name__}")
        for item in dataclasses.fields(self):
            if "key" in item.metadata:
                _check_integer(item.metadata["key"], getattr(self, item.name), zero=item.name in ("dc_en", "hbm_width"))
        self._check_geometry()
        self._check_formats()

    def _check_geometry(self) -> None:
        if self.vlen != self.mlen:
            raise ConfigError("VLEN", self.vlen, f"must equal MLEN ({self.mlen}): matrix operands are vector SRAM rows")
        if self.mlen % self.blen:
            raise ConfigError("MLEN", self.mlen, f"must be a multiple of BLEN ({self.blen})")
        if self.hlen > self.mlen or self.mlen % self.hlen:
            raise ConfigError("HLEN", self.hlen, f"must divide MLEN ({self.mlen})")
        if self.hlen * self.broadcast_amount != self.mlen and not self.partial_heads:
            raise ConfigError(
                "BROADCAST_AMOUNT",
                self.broadcast_amount,
                f"HLEN x BROADCAST_AMOUNT ({self.hlen} x {self.broadcast_amount}) must equal MLEN ({self.mlen})",
            )
        if self.hbm_size % 64:
            raise ConfigError("HBM_SIZE", self.hbm_size, "must be a multiple of 64 bytes")
        if self.max_loop_instructions >= 2**31:
            raise ConfigError("MAX_LOOP_INSTRUCTIONS", self.max_loop_instructions, "must be below 2**31")

    def _check_formats(self) -> None:
        for item in dataclasses.fields(self.precision):
            key, value = f"PRECISION.{item.metadata['key']}", getattr(self.precision, item.name)
            if not isinstance(value, Precision):
                raise ConfigError(key, value, "must be a FloatFormat, IntFormat or MXFormat")
            if isinstance(value, MXFormat) and self.mlen % value.block:
                raise ConfigError(f"{key}.block", value.block, f"must divide MLEN ({self.mlen})")
        vram = self.precision.vector_sram_type
        vram = vram.element if isinstance(vram, MXFormat) else vram
        if not isinstance(vram, FloatFormat):
            raise ConfigError("PRECISION.VECTOR_SRAM_TYPE", _describe(vram), "must be a float (Fp)")
        scalar = self.precision.scalar_fp
        if self.intended.scalar_fp and not isinstance(scalar, FloatFormat):
            raise ConfigError("PRECISION.SCALAR_FP", _describe(scalar), "must be a float (Fp), not of blocks")
        for key, fmt in (("VECTOR_SRAM_TYPE", vram), ("MATRIX_SRAM_TYPE", self.precision.matrix_sram_type)):
            if not isinstance(fmt, MXFormat) and fmt.bits == 32 and not self.intended.plain_formats:
                raise ConfigError(
                    f"PRECISION.{key}",
                    _describe(fmt),
                    "32-bit types do not unpack in the hardware model; they need Intended(plain_formats=True)",
                )

    @property
    def tiles(self) -> int:
        """Matrix SRAM tiles of ``mlen`` x ``mlen`` elements."""
        return self.matrix_sram_size // self.mlen

    @property
    def prefetch_m_rows(self) -> int:
        """HBM rows an H_PREFETCH_M moves: ``hbm_m_prefetch_amount`` rounded up to whole tiles."""
        return max(1, -(-self.hbm_m_prefetch_amount // self.mlen)) * self.mlen

    @property
    def heads_match(self) -> bool:
        """Whether the M_B* instructions can run: HLEN x BROADCAST_AMOUNT = MLEN and HLEN > 1."""
        return self.hlen * self.broadcast_amount == self.mlen and self.hlen > 1

    def cycles(self, name: str) -> int:
        """Cycles of the :class:`Latency` entry ``name`` under ``dc_en``."""
        pair: tuple[int, int] = getattr(self.latency, name)
        return pair[0] if self.dc_en else pair[1]

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str], mode: str | None = None, **changes: Any) -> MachineConfig:
        """Read the published ``plena_settings.toml`` schema.

        Args:
            source: path of a file, or the TOML text itself.
            mode: ``"transactional"`` (also None: what the machine runs), ``"analytic"``, or ``"active"`` for whatever
                the file names under MODE.active.
            **changes: field values that replace those of the file.

        Raises:
            ConfigError: unreadable file, TOML error, unknown or missing key, value out of range, inconsistent values.
        """
        from plena_jax.settings import read

        return cls(**(read(source, mode) | changes))

    def to_toml(self, path: str | os.PathLike[str] | None = None, mode: str = "transactional") -> str:
        """The configuration in the published schema; also written to ``path`` if given.

        The switches of :class:`Intended` and ``partial_heads`` are not part of that schema and are left out.
        """
        from plena_jax.settings import write

        text = write(self, mode)
        if path is not None:
            from plena_jax.files import write_atomically

            write_atomically(path, text.encode())
        return text


def _describe(fmt: Precision) -> str:
    if isinstance(fmt, MXFormat):
        return f"MX block {fmt.block} of {_describe(fmt.element)} with scale {_describe(fmt.scale)}"
    if isinstance(fmt, IntFormat):
        return f"Int {fmt.width}"
    return f"Fp sign {fmt.sign} exponent {fmt.exponent} mantissa {fmt.mantissa}"
