"""The integer machine driven from the host: from start registers to records, one log at a time."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from plena_jax.bits import Array
from plena_jax.config import MachineConfig
from plena_jax.machine import lanes
from plena_jax.machine.control import LOG_ROWS, Stop, control_loop
from plena_jax.machine.decode import decode
from plena_jax.machine.faults import Fault
from plena_jax.machine.plan import EVERYTHING, plan
from plena_jax.machine.state import FLOAT_FIELDS, MachineState
from plena_jax.program import Program

_control = jax.jit(control_loop, static_argnames=("config", "rows"))


def integers_of(state: MachineState) -> MachineState:
    """The integer side of a concrete state as NumPy arrays; every float field is 0."""
    only = state.replace(**dict.fromkeys(FLOAT_FIELDS, np.float32(0)))
    fetched: MachineState = jax.device_get(only)
    return fetched


class Ahead:
    """The integer machine of one run.

    Attributes:
        vram_rows: one past the last VRAM row touched so far.
        hbm_bytes: one past the last byte of HBM stored to so far.
        needed: VRAM rows or HBM bytes that an UNALLOCATED fault is about.
    """

    def __init__(
        self,
        program: Program,
        config: MachineConfig,
        start: MachineState,
        limit: int | None = None,
        resolving: bool = False,
    ) -> None:
        """A machine about to run.

        Args:
            program, config: what runs.
            start: the integer side, as :func:`integers_of` gives it.
            limit: instructions to execute at most.
            resolving: go past V_TOPK without knowing what it computes; see :data:`plena_jax.machine.lanes.RESOLVING`.
        """
        self.config, self._start = config, start
        self._words = decode(program, config)
        self._device = jax.local_devices(backend="cpu")[0]
        with np.errstate(over="ignore"):
            self._core, self._side = lanes.pack(start)
            self._set(resolving, lanes.RESOLVING)
            if limit is not None:
                self._stop_at(np.uint32(start.ticks) + np.uint32(limit))
        self._blocks = np.zeros((2, 2), np.uint64)
        self._fault = Fault.OK
        self.vram_rows = self.hbm_bytes = self.needed = 0

    def _set(self, value: Array, lane: int) -> None:
        registers = np.array(self._side.registers)
        registers[lane] = value
        self._side = self._side._replace(registers=registers)

    def _stop_at(self, tick: Array) -> None:
        self._set(tick, lanes.UNTIL)
        self._set(1, lanes.HAS_UNTIL)

    def pieces(self, vram_rows: int = EVERYTHING, hbm_bytes: int = EVERYTHING) -> Iterator[np.ndarray]:
        """Records int32 [n, 16] as they are executed, up to ``LOG_ROWS`` at a time, until the program ends or stops.

        Before it goes on, what V_TOPK has written among the records so far must be put into :attr:`int_sram` (unless
        the program is resolved).

        Args:
            vram_rows, hbm_bytes: what is allocated; an instruction that needs more stops the run.
        """
        while True:
            with jax.default_device(self._device):
                result = _control(self._core, self._side, self._words, self.config, LOG_ROWS)
            core, side, log = jax.device_get(result)
            logged = core[lanes.LOGGED]
            rows = log[: max(int(logged), 1)]
            with np.errstate(over="ignore"):
                found = plan(rows, logged, self._words, self.config, vram_rows, hbm_bytes)
            if found.fault:
                # Once more from where this began, up to the instruction at fault.
                self._fault, self.needed = Fault(int(found.fault)), int(found.needed)
                self._stop_at(found.tick)
                continue
            self._core, self._side = core, side
            self.vram_rows = max(self.vram_rows, int(found.vram_top))
            self.hbm_bytes = max(self.hbm_bytes, int(found.hbm_top))
            self._blocks += found.moved
            yield found.records[: int(found.count)]
            if side.registers[lanes.STOP] != Stop.LOG:
                return

    @property
    def status(self) -> Fault:
        """Why the run has ended."""
        return self._fault or Fault(int(self._side.registers[lanes.STATUS]))

    @property
    def fresh(self) -> int:
        """Bit mask of the accumulators that have been drained since anything was added to them."""
        return int(self._core[lanes.FRESH])

    @property
    def unknown(self) -> np.ndarray:
        """bool [1024]: INT SRAM entries that V_TOPK has written last, while resolving."""
        return np.asarray(self._side.unknown)

    @property
    def waits(self) -> bool:
        """Whether V_TOPK has written INT SRAM since the last piece, so that the machine needs to know what."""
        return bool(self._side.registers[lanes.PENDING])

    @property
    def int_sram(self) -> np.ndarray:
        """uint32 [1024]."""
        return np.asarray(self._side.int_sram)

    @int_sram.setter
    def int_sram(self, entries: Array) -> None:
        self._side = self._side._replace(int_sram=np.asarray(entries))

    @property
    def tick(self) -> int:
        """Instructions executed, modulo 2**32."""
        return int(self._core[lanes.TICKS])

    def end(self) -> MachineState:
        """The integer side now, as NumPy arrays."""
        self._set(np.uint32(self.status), lanes.STATUS)
        final = lanes.unpack(self._core, self._side, self._start)
        return final.replace(hbm_blocks=add_wide(final.hbm_blocks, split_wide(self._blocks[:, 0], self._blocks[:, 1])))


def compile_control(program: Program, config: MachineConfig, state: MachineState) -> None:
    """Compile the integer machine for a program: let it execute no instruction."""
    for _ in Ahead(program, config, integers_of(state), limit=0).pieces():
        pass


def split_wide(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint32 [..., 2]: low and high word of ``low + high * 2**32``, for uint64 halves of any size."""
    total = low + (high << np.uint64(32))
    return np.stack([total & np.uint64(0xFFFFFFFF), total >> np.uint64(32)], axis=-1).astype(np.uint32)


def add_wide(a: Array, b: Array) -> np.ndarray:
    """Sum of two 64-bit integers given as uint32 [..., 2], low and high word."""
    halves = a.astype(np.uint64) + b.astype(np.uint64)
    return split_wide(halves[..., 0], halves[..., 1])
