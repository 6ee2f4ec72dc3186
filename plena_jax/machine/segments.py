"""How a trace is cut into segments for its derivative, and what that is compiled for.

The way back needs a journal of what each step overwrote (:mod:`plena_jax.machine.journal`). Kept for a whole trace it
grows with the number of steps; cut into segments only their start is kept, and each is run again, with a journal, when
the way back comes to it. With R bytes of journal in all and M bytes of memories, n segments take ``n * M + R / n``,
least for ``n = sqrt(R / M)``: memory grows like the square root of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import EngineError
from plena_jax.machine.differentiate import Segments
from plena_jax.machine.journal import FIELDS, Plan, entry_shapes, with_slots
from plena_jax.machine.layout import Layout
from plena_jax.machine.record import WIDTH, Record
from plena_jax.machine.semantics import Stage
from plena_jax.machine.state import MachineState
from plena_jax.program import Program

#: Bytes of journal that are not worth running anything twice for.
_SMALL = 1 << 26

RoundingGradient = Literal["straight_through", "clipped"]


@dataclass(frozen=True)
class Gradient:
    """How a run is differentiated.

    Attributes:
        rounding: roundings have derivative 1 everywhere ("straight_through"), or 0 where the value saturates
            ("clipped").
        segments: pieces whose start is kept for the way back, each run a second time then; by default as many as make
            memory least, one (nothing runs twice) for short programs.
        debug: a reverse-mode derivative that becomes infinite or NaN raises a :class:`GradientError` naming the
            instruction (inside your own ``jit`` it is the text of jax's error). Slow: every step looks at everything.

    Raises:
        EngineError: not one of these.
    """

    rounding: RoundingGradient = "straight_through"
    segments: int | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        if self.rounding not in get_args(RoundingGradient):
            allowed = ", ".join(map(repr, get_args(RoundingGradient)))
            raise EngineError(f"Gradient: rounding {self.rounding!r}; allowed: {allowed}")
        if self.segments is not None and self.segments < 1:
            raise EngineError(f"Gradient: {self.segments} segments; allowed: 1 or more")


def cut(
    records: np.ndarray, state: MachineState, config: MachineConfig, gradient: Gradient, program: Program
) -> tuple[Plan, Segments]:
    """The segments of a trace.

    Args:
        records: int32 [n, 16].
        state: where the run starts; only shapes matter.
        config: the machine.
        gradient: how to differentiate.
        program: where the records come from, for messages.
    """
    count = gradient.segments or _segments(records, state, config)
    size = _bucket(-(-len(records) // max(1, min(count, len(records)))))
    # Rounding up may leave nothing for the last ones.
    pieces = [records[i : i + size] for i in range(0, max(len(records), 1), size)]
    placed = [with_slots(piece) for piece in pieces]
    entries = np.max([entries for _, entries in placed], axis=0)
    stacked = np.zeros((len(pieces), size + 1, WIDTH), np.int32)
    for index, (piece, _) in enumerate(placed):
        stacked[index, : len(piece)] = piece
    plan = Plan(
        config,
        clipped=gradient.rounding == "clipped",
        used=_used(records),
        entries=tuple(_bucket(int(n)) for n in entries),
        debug=program if gradient.debug else None,
    )
    return plan, Segments(jnp.asarray(stacked), jnp.asarray([len(piece) for piece in pieces], jnp.int32))


def together(traces: list[np.ndarray], config: MachineConfig) -> tuple[Plan, Segments]:
    """Several traces as a table, filled up to one length: records [traces, n, 16] and ends [traces].

    Args:
        traces: int32 [n, 16] each.
        config: the machine.
    """
    size = _bucket(max(len(records) for records in traces)) + 1
    stacked = np.zeros((len(traces), size, WIDTH), np.int32)
    for index, records in enumerate(traces):
        stacked[index, : len(records)] = records
    used = frozenset[tuple[int, int]]().union(*(_used(records) for records in traces))
    ends = jnp.asarray([len(records) for records in traces], jnp.int32)
    return Plan(config, clipped=False, used=used, entries=(1,) * len(FIELDS)), Segments(jnp.asarray(stacked), ends)


def _used(records: np.ndarray) -> frozenset[tuple[int, int]]:
    return frozenset((int(stage), int(branch)) for stage, branch in np.unique(records[:, :2], axis=0))


def _segments(records: np.ndarray, state: MachineState, config: MachineConfig) -> int:
    _, entries = with_slots(records)
    shapes = entry_shapes(config)
    journal = sum(4 * n * math.prod(shapes[name]) for name, n in zip(FIELDS.values(), entries, strict=True))
    if journal <= _SMALL:
        return 1
    stores = bool(np.any(records[:, Record.STAGE] == Stage.STORE))
    memories = 4 * (state.vram.size + Layout(config).rows * config.vlen + (state.hbm.size if stores else 0))
    return max(1, round(math.sqrt(journal / memories)))


def _bucket(n: int) -> int:
    """``n`` rounded up by at most a quarter, to few different numbers: what is compiled is shared."""
    step = 1 << max((max(n, 1) - 1).bit_length() - 3, 0)
    return -(-max(n, 1) // step) * step
