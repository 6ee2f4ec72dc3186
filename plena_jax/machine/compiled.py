"""The datapath of a concrete run: compiled functions, and the memories they work on.

Both engines use the same three functions, so that one compilation serves all programs of a configuration. (A run inside
``jit`` or ``vmap`` is compiled as part of that.)
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.bits import Array
from plena_jax.config import MachineConfig
from plena_jax.machine.control import LOG_ROWS
from plena_jax.machine.datapath import execute
from plena_jax.machine.memories import Memories, pack_memories, unpack_memories
from plena_jax.machine.record import WIDTH
from plena_jax.machine.state import INTEGER_FIELDS, MachineState

#: Records that one compiled call takes: those of a full log.
CHUNK = LOG_ROWS

_pack = jax.jit(pack_memories, static_argnames="config")


@partial(jax.jit, static_argnames="config")
def _pack_copies(config: MachineConfig, state: MachineState) -> Memories:
    """Packed memories that share nothing with the state."""
    return jax.tree.map(jnp.copy, pack_memories(config, state))


_execute = jax.jit(execute, static_argnames="config", donate_argnames="memories")


@partial(jax.jit, static_argnames="config")
def _unpack(
    config: MachineConfig, memories: Memories, state: MachineState, fresh: Array, int_sram: Array, unknown: Array
) -> MachineState:
    final = unpack_memories(config, memories, state, fresh)
    return final.replace(int_sram=jnp.where(unknown, memories.int_sram, int_sram))


def padded(records: np.ndarray, rows: int) -> np.ndarray:
    """``records`` [n, 16] with zeros behind, up to ``rows``."""
    return np.concatenate([records, np.zeros((rows - len(records), WIDTH), np.int32)])


class Datapath:
    """The memories and float registers of a concrete run."""

    def __init__(self, config: MachineConfig, state: MachineState, donate: bool = False) -> None:
        """Take them from ``state``; with ``donate`` its memories may be overwritten."""
        self.config, self._state = config, state
        self._memories = packed(config, state, donate)
        with _lock:
            self._compilation = _compilations.get(_key(config, state.vram, state.hbm))

    def execute(self, records: Array, count: int) -> None:
        """Run the first ``count`` of ``records``, int32 [CHUNK + 1, 16]."""
        if self._compilation is not None:
            # Whatever has gone wrong there goes wrong here again.
            wait([self._compilation])
            self._compilation = None
        self._memories = _execute(self.config, self._memories, records, np.int32(count))

    def wait(self) -> None:
        """Return when all that was asked for is done."""
        jax.block_until_ready(self._memories.m_accum)

    @property
    def int_sram(self) -> jax.Array:
        """uint32 [1024]: INT SRAM as V_TOPK has left it."""
        return self._memories.int_sram

    @int_sram.setter
    def int_sram(self, entries: np.ndarray) -> None:
        self._memories = self._memories._replace(int_sram=jax.device_put(entries))

    def finish(self, integers: dict[str, Any], fresh: int, unknown: np.ndarray) -> MachineState:
        """The final state; this object cannot be used after that.

        Args:
            integers: the integer fields of the state.
            fresh: bit mask of the accumulators that count as zero.
            unknown: bool [1024], INT SRAM entries that are to be taken from the datapath.
        """
        memories = self._memories
        del self._memories
        return finished(self.config, memories, self._state, integers, fresh, unknown)


def packed(config: MachineConfig, state: MachineState, donate: bool) -> Memories:
    """The memories of a state, to be overwritten; with ``donate`` they may be those of the state itself."""
    return (_pack if donate else _pack_copies)(config, state)


def finished(
    config: MachineConfig,
    memories: Memories,
    state: MachineState,
    integers: dict[str, Any],
    fresh: int,
    unknown: np.ndarray,
) -> MachineState:
    """``state`` with what ran; see :meth:`Datapath.finish`."""
    state = state.replace(**integers)
    return _unpack(config, memories, state, np.uint32(fresh), integers["int_sram"], unknown)


# -- compiling ahead of need ------------------------------------------------------------------------------------------

#: Compilations of ``_execute`` under way or done, by what they are for; those used last are at the end.
_compilations: OrderedDict[tuple[Any, ...], Future[Any]] = OrderedDict()
#: Compilations that are kept. jax keeps its own: one that was dropped is not compiled again while jax has it.
_KEPT = 16
_lock = threading.Lock()


def _key(config: MachineConfig, vram: Array, hbm: Array) -> tuple[Any, ...]:
    return config, vram.shape, hbm.shape, hbm.dtype, jax.default_backend()


def compile_ahead(config: MachineConfig, state: MachineState) -> None:
    """Begin to compile the datapath for states like ``state`` in another thread, unless that has been done.

    Resolving a program takes its time too, most of it in compiling something else. :meth:`Datapath.execute` waits.
    """
    key = _key(config, state.vram, state.hbm)
    # Two threads that need the same get one compilation: the second waits until the first has begun it.
    with _lock:
        if key in _compilations:
            _compilations.move_to_end(key)
            return
        # Python's part is done here: two threads would only wait for each other.
        memories = jax.eval_shape(partial(pack_memories, config), jax.tree.map(_shape_of, state))
        records = jax.ShapeDtypeStruct((CHUNK + 1, WIDTH), jnp.int32)
        lowered = _execute.lower(config, memories, records, jax.ShapeDtypeStruct((), jnp.int32))
        pool = ThreadPoolExecutor(1)
        _compilations[key] = pool.submit(lowered.compile)
        pool.shutdown(wait=False)
        while len(_compilations) > _KEPT:
            _compilations.popitem(last=False)


def compile_all(config: MachineConfig, state: MachineState) -> None:
    """Compile what a run from ``state`` needs, whether or not that is donated: run nothing on it."""
    _pack(config, state)
    integers = {name: getattr(state, name) for name in INTEGER_FIELDS}
    datapath = Datapath(config, state)
    datapath.execute(np.zeros((CHUNK + 1, WIDTH), np.int32), 0)
    jax.block_until_ready(datapath.finish(integers, 0, np.zeros(state.int_sram.shape, bool)))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
