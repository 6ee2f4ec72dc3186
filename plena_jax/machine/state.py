"""The machine's state: an immutable pytree of everything architectural."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.bits import Array
from plena_jax.config import MachineConfig
from plena_jax.errors import EngineError, ImageError
from plena_jax.isa import SRAM_ENTRIES, Unit
from plena_jax.machine.faults import Fault
from plena_jax.machine.images import Images, array_of, image_error, scalar_values, vram_values, words
from plena_jax.machine.transfer import cell_bits

#: Loops that may be open on one loop register at a time.
LOOPS_PER_REGISTER = 8
UNITS = tuple(Unit)
_REGISTERS = 16
#: VRAM elements allocated without being asked for (4 MiB of float32); more grows on demand.
_DEFAULT_ELEMENTS = 1 << 20
_DEFAULT_HBM = 1 << 16
#: Allocated HBM is indexed with 32-bit integers.
MAX_ALLOCATED_HBM = 1 << 31


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LoopStack:
    """Open hardware loops: a short stack per loop register (C_LOOP_END looks for the innermost of its register).

    Attributes:
        depth: int32 [16], open loops of each register.
        start_pc: int32 [16, 8], pc of the C_LOOP_START.
        tick: uint32 [16, 8], instruction counter at the start or the last jump back, for the loop guard.
        order: uint32 [16, 8], grows with every C_LOOP_START: the innermost loop has the largest.
    """

    depth: Array
    start_pc: Array
    tick: Array
    order: Array

    def entries(self) -> list[dict[str, int]]:
        """The open loops, outermost first: register, start_pc, tick."""
        depth = np.asarray(self.depth)
        found = []
        for register in range(_REGISTERS):
            for level in range(int(depth[register])):
                values = {name: int(getattr(self, name)[register, level]) for name in ("start_pc", "tick")}
                found.append((int(self.order[register, level]), {"register": register, **values}))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MachineState:
    """Everything a PLENA machine holds. Floats are float32 arrays of values that the place's format can hold.

    Memories are as large as allocated, not as configured: ``run`` grows ``vram`` and ``hbm`` when a program needs more.

    Attributes:
        vram: float32 [rows, VLEN], values of VECTOR_SRAM_TYPE.
        mram: float32 [tiles, MLEN, MLEN], unrounded.
        fp_sram: float32 [1024], BF16 values.
        int_sram: uint32 [1024].
        hbm: from address 0; what lies beyond reads as zero. Two faces: uint8 [bytes], what the hardware holds, or
            float32 [cells], the values of the elements (see :mod:`plena_jax.hbm`), which have derivatives.
        gp: uint32 [16].
        f: float32 [8], BF16 values.
        a: uint32 [16, 2], low and high word of the HBM address registers.
        scale, stride, v_mask: uint32 [], the C_SET registers.
        bmm_scale: float32 [], multiplies every M_B* product.
        m_accum: float32 [BLEN, BLEN].
        hm_accum: float32 [BROADCAST_AMOUNT, MLEN, MLEN].
        hv_accum: float32 [BROADCAST_AMOUNT, MLEN].
        v_accum: float32 [BLEN].
        loops: open hardware loops.
        pc: int32 [], the next instruction, or the one that faulted.
        status: int32 [], a :class:`Fault`.
        ticks: uint32 [], instructions executed modulo 2**32.
        counts: uint32 [6, 2], instructions executed per unit (in the order of :class:`Unit`), low and high word.
        cycles: uint32 [2], modelled cycles without HBM transfer times, low and high word.
        hbm_blocks: uint32 [2, 2], 64-byte blocks read and written, low and high word.
    """

    vram: jax.Array
    mram: jax.Array
    fp_sram: jax.Array
    int_sram: jax.Array
    hbm: jax.Array
    gp: jax.Array
    f: jax.Array
    a: jax.Array
    scale: jax.Array
    stride: jax.Array
    v_mask: jax.Array
    bmm_scale: jax.Array
    m_accum: jax.Array
    hm_accum: jax.Array
    hv_accum: jax.Array
    v_accum: jax.Array
    loops: LoopStack
    pc: jax.Array
    status: jax.Array
    ticks: jax.Array
    counts: jax.Array
    cycles: jax.Array
    hbm_blocks: jax.Array

    # -- construction -------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        config: MachineConfig,
        *,
        vram: Any = None,
        fp_sram: Any = None,
        int_sram: Any = None,
        hbm: Any = None,
        vram_rows: int | None = None,
        hbm_bytes: int | None = None,
    ) -> MachineState:
        """A machine at reset with the given memory contents (values; for byte images see :meth:`from_images`).

        Args:
            config: the machine.
            vram: float array, [rows, VLEN] or flat, from row 0; rounded to VECTOR_SRAM_TYPE.
            fp_sram: float array of at most 1024 entries; rounded to BF16 (SCALAR_FP where that is intended).
            int_sram: integers 0 .. 2**32 - 1, at most 1024.
            hbm: bytes, or a uint8 array, from address 0; or the values face, a float32 array, traced or not.
            vram_rows: rows to allocate, by default up to 4 MiB; grows on demand.
            hbm_bytes: bytes to allocate, by default what the image needs; grows on demand.

        Raises:
            ImageError: contents larger than the memory, wrong dtype, or an allocation beyond the configuration.
        """
        contents = None if hbm is None else _hbm(hbm)
        unit = 1 if contents is None or contents.dtype == np.uint8 else 8 // cell_bits(config)
        used = 0 if contents is None else -(-contents.shape[0] // unit)
        state = cls._reset(config, vram_rows, hbm_bytes, _size(vram, config.vlen), used)
        if vram is not None:
            rows = vram_values(config, vram, state.vram.shape[0])
            state = dataclasses.replace(state, vram=state.vram.at[: rows.shape[0]].set(rows))
        if fp_sram is not None:
            values = scalar_values(fp_sram, config)
            state = dataclasses.replace(state, fp_sram=state.fp_sram.at[: len(values)].set(values))
        if int_sram is not None:
            entries = words(int_sram)
            state = dataclasses.replace(state, int_sram=state.int_sram.at[: len(entries)].set(entries))
        if contents is not None:
            memory = jnp.zeros(state.hbm.shape[0] * unit, contents.dtype)
            state = dataclasses.replace(state, hbm=memory.at[: contents.shape[0]].set(contents))
        return state

    @classmethod
    def from_images(cls, config: MachineConfig, images: Images, **allocation: int | None) -> MachineState:
        """A machine at reset with memories from byte images (docs/machine.md section 7.2).

        Raises:
            ImageError: an image is larger than its memory or cut off inside an element.
        """
        return cls.create(config, **images.contents(config), **allocation)

    @classmethod
    def _reset(
        cls, config: MachineConfig, vram_rows: int | None, hbm_bytes: int | None, used_rows: int, used_bytes: int
    ) -> MachineState:
        for name, size in (("vram_rows", vram_rows), ("hbm_bytes", hbm_bytes)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer))):
                raise ImageError(f"{name} = {size!r}: cannot be allocated; allowed: an integer")
        rows = vram_allocation(config, max(used_rows, 1)) if vram_rows is None else vram_rows
        if max(used_rows, rows) > config.vector_sram_size:
            limit = f"VECTOR_SRAM_SIZE, {config.vector_sram_size} rows"
            raise image_error("VRAM", f"{max(used_rows, rows)} rows", limit)
        if rows < max(used_rows, 1):
            raise ImageError(
                f"VRAM: {rows} rows (vram_rows) do not fit; allowed: at least the {used_rows or 1} rows of contents"
            )
        size = hbm_allocation(config, used_bytes) if hbm_bytes is None else hbm_bytes
        if used_bytes > config.hbm_size or size > config.hbm_size:
            raise image_error("HBM", f"{max(used_bytes, size)} bytes", f"HBM_SIZE, {config.hbm_size} bytes")
        if size < used_bytes or size % 64 or size >= MAX_ALLOCATED_HBM:
            raise ImageError(
                f"HBM: cannot allocate {size} bytes; allowed: a multiple of 64, at least the {used_bytes} bytes of the "
                f"image, below {MAX_ALLOCATED_HBM}"
            )
        zeros, heads = jnp.zeros, config.broadcast_amount
        stack = (_REGISTERS, LOOPS_PER_REGISTER)
        return cls(
            vram=zeros((rows, config.vlen), jnp.float32),
            mram=zeros((config.tiles, config.mlen, config.mlen), jnp.float32),
            fp_sram=zeros(SRAM_ENTRIES, jnp.float32),
            int_sram=zeros(SRAM_ENTRIES, jnp.uint32),
            hbm=zeros(size, jnp.uint8),
            gp=zeros(_REGISTERS, jnp.uint32),
            f=zeros(8, jnp.float32),
            a=zeros((_REGISTERS, 2), jnp.uint32),
            scale=jnp.uint32(0),
            stride=jnp.uint32(1),
            v_mask=jnp.uint32(0),
            bmm_scale=jnp.float32(0.25),
            m_accum=zeros((config.blen, config.blen), jnp.float32),
            hm_accum=zeros((heads, config.mlen, config.mlen), jnp.float32),
            hv_accum=zeros((heads, config.mlen), jnp.float32),
            v_accum=zeros(config.blen, jnp.float32),
            loops=LoopStack(
                depth=zeros(_REGISTERS, jnp.int32),
                start_pc=zeros(stack, jnp.int32),
                tick=zeros(stack, jnp.uint32),
                order=zeros(stack, jnp.uint32),
            ),
            pc=jnp.int32(0),
            status=jnp.int32(Fault.OK),
            ticks=jnp.uint32(0),
            counts=zeros((len(UNITS), 2), jnp.uint32),
            cycles=zeros(2, jnp.uint32),
            hbm_blocks=zeros((2, 2), jnp.uint32),
        )

    # -- what people ask for ------------------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> MachineState:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def grown(self, vram_rows: int, hbm_size: int) -> MachineState:
        """The same state with at least so many VRAM rows and HBM bytes (or cells) allocated; the new ones are zero."""
        more_rows = max(vram_rows - self.vram.shape[-2], 0)
        more = max(hbm_size - self.hbm.shape[-1], 0)
        if not more_rows and not more:
            return self
        vram = jnp.pad(self.vram, [(0, more_rows), (0, 0)])
        return dataclasses.replace(self, vram=vram, hbm=jnp.pad(self.hbm, (0, more)))

    @property
    def has_values(self) -> bool:
        """Whether HBM shows its values face."""
        return self.hbm.dtype == np.float32

    @property
    def fault(self) -> Fault:
        """The status as a :class:`Fault`."""
        return Fault(int(self.status))

    @property
    def instructions(self) -> int:
        """Instructions executed."""
        return sum(self.instructions_by_unit.values())

    @property
    def instructions_by_unit(self) -> dict[str, int]:
        """Instructions executed, by functional unit."""
        return {unit.value: _wide(pair) for unit, pair in zip(UNITS, np.asarray(self.counts), strict=True)}

    @property
    def latency_cycles(self) -> int:
        """Modelled cycles (1 ns each) of all instructions executed, HBM transfer times left out."""
        return _wide(np.asarray(self.cycles))

    @property
    def hbm_traffic(self) -> tuple[int, int]:
        """Bytes read from and written to HBM, in blocks of 64 bytes."""
        read, written = np.asarray(self.hbm_blocks)
        return 64 * _wide(read), 64 * _wide(written)

    def dump(self, config: MachineConfig) -> Images:
        """The memories as byte images (docs/machine.md section 7.3); VRAM and HBM over what is allocated."""
        return Images.of(config, self)

    def __repr__(self) -> str:
        shapes = ", ".join(
            f"{f.name}={value.dtype}{list(value.shape)}"
            for f in dataclasses.fields(self)
            if hasattr(value := getattr(self, f.name), "dtype")
        )
        return f"MachineState({shapes})"


#: Fields that the integer side owns: they do not depend on the datapath, except INT SRAM through V_TOPK.
INTEGER_FIELDS = (
    *("int_sram", "gp", "a", "scale", "stride", "v_mask", "loops", "pc", "status", "ticks", "counts", "cycles"),
    "hbm_blocks",
)
FLOAT_FIELDS = tuple(f.name for f in dataclasses.fields(MachineState) if f.name not in INTEGER_FIELDS)


def integer_leaves(state: MachineState) -> list[Any]:
    """The arrays of all integer fields."""
    leaves: list[Any] = jax.tree.leaves([getattr(state, name) for name in INTEGER_FIELDS])
    return leaves


def _wide(pair: np.ndarray) -> int:
    return int(pair[0]) | int(pair[1]) << 32


def _size(contents: Any, unit: int) -> int:
    if contents is None:
        return 0
    return -(
        -(len(contents) if isinstance(contents, (bytes, bytearray, memoryview)) else array_of("VRAM", contents).size)
        // unit
    )


def _hbm(hbm: Any) -> Array:
    if isinstance(hbm, (bytes, bytearray, memoryview)):
        return np.frombuffer(hbm, np.uint8)
    data = hbm if isinstance(hbm, jax.Array) else array_of("HBM", hbm)
    if data.dtype not in (np.uint8, np.float32) or data.ndim != 1:
        raise ImageError(
            f"HBM: contents are {data.dtype} {data.shape}; allowed: bytes, a one-dimensional uint8 array, or for the "
            "values face a one-dimensional float32 array"
        )
    return data


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vram_allocation(config: MachineConfig, rows: int) -> int:
    """Rows to allocate when ``rows`` are needed: few different sizes, so that compiled code is shared."""
    default = max(_DEFAULT_ELEMENTS // config.vlen, 1)
    return min(max(_power_of_two(rows), default), config.vector_sram_size)


def hbm_allocation(config: MachineConfig, size: int) -> int:
    """Bytes to allocate when ``size`` are needed."""
    return min(max(_power_of_two(size), _DEFAULT_HBM), config.hbm_size, max(MAX_ALLOCATED_HBM - 64, size))


def allocated_hbm(hbm: Array, config: MachineConfig) -> int:
    """Bytes of HBM that a state's array, of either face, stands for."""
    size: int = hbm.shape[0]
    return size if hbm.dtype == np.uint8 else size * cell_bits(config) // 8


def allocate(state: MachineState, config: MachineConfig, rows: int, size: int) -> MachineState:
    """``state`` with at least ``rows`` of VRAM and ``size`` bytes of HBM allocated, in few different sizes.

    Raises:
        EngineError: more HBM than a state can hold.
    """
    if size > min(config.hbm_size, MAX_ALLOCATED_HBM - 64):
        raise EngineError(
            f"HBM: the program stores beyond the {MAX_ALLOCATED_HBM - 64} bytes that a state can hold (indices are "
            "32-bit)"
        )
    more_rows = vram_allocation(config, rows) if rows > state.vram.shape[0] else state.vram.shape[0]
    held, unit = allocated_hbm(state.hbm, config), 8 // cell_bits(config) if state.has_values else 1
    more = hbm_allocation(config, size) * unit if size > held else state.hbm.shape[0]
    if more >= MAX_ALLOCATED_HBM:
        raise EngineError(
            f"HBM: {more} cells for {size} bytes; a state can hold {MAX_ALLOCATED_HBM - 1} (indices are 32-bit)"
        )
    return state.grown(more_rows, more)


def grow(state: MachineState, config: MachineConfig, needed: int) -> MachineState:
    """``state``, stopped by an UNALLOCATED fault, with what the instruction at fault needs."""
    return allocate(state, config, *((needed, 0) if state.fault is Fault.VRAM_UNALLOCATED else (0, needed)))
