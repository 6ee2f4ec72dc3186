"""Running many formats at once: a lane for each, one vmapped and jitted function for each block size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax import hbm
from plena_jax.bits import Array
from plena_jax.config import Formats
from plena_jax.formats import MXFormat, Quantizer, named
from plena_jax.formats.rounding import Rounding
from plena_jax.machine.batching import CPU_LANES
from plena_jax.machine.run import run
from plena_jax.machine.state import FLOAT_FIELDS, MachineState
from plena_jax.precision.places import FIELDS, PLACES, Candidate, Place
from plena_jax.precision.workload import FP_SRAM, VRAM, Workload

#: What every place that is not tried holds: any float32.
WIDE = Quantizer.of(named("float32"))  # type: ignore[arg-type]

#: The formats of places that differ between lanes: quantizers, block formats, or :class:`Either`.
Varied = dict[Place, Any]


@dataclass(frozen=True)
class Lane:
    """One run of a sweep.

    Attributes:
        label: the place, or the name of several.
        places: those that hold the format; the others are wide.
        candidate: the format; None for a run in which every place is wide.
    """

    label: str
    places: tuple[Place, ...]
    candidate: Candidate | None


@dataclass(frozen=True)
class Measured:
    """What a lane gives.

    Attributes:
        output: float32, the workload's result.
        saturated, flushed: how many elements of each staged tensor do.
    """

    output: np.ndarray
    saturated: dict[str, int]
    flushed: dict[str, int]


@partial(jax.tree_util.register_dataclass, data_fields=["plain", "blocks", "in_blocks"], meta_fields=[])
@dataclass(frozen=True)
class Either(Rounding):
    """A plain or a block format, as data: so that lanes with and without blocks run together.

    Attributes:
        plain: a quantizer.
        blocks: a block format with a quantizer as element.
        in_blocks: 1 for ``blocks``, 0 for ``plain``.
    """

    plain: Quantizer
    blocks: MXFormat
    in_blocks: int

    def _held(self, x: Array) -> Array:
        return jnp.where(jnp.asarray(self.in_blocks) == 1, self.blocks._held(x), self.plain._held(x))

    def _largest(self, x: Array) -> tuple[Array, Array]:
        pairs = zip(self.blocks._largest(x), self.plain._largest(x), strict=True)
        first, second = (jnp.where(jnp.asarray(self.in_blocks) == 1, a, b) for a, b in pairs)
        return first, second


def grouped(lanes: Sequence[Lane]) -> list[list[Lane]]:
    """The lanes that run in one call: those without blocks, and those of each block size and scale rule."""
    groups: dict[Any, list[Lane]] = {}
    for lane in sorted(lanes, key=lambda lane: 0 if lane.candidate is None else lane.candidate.block or 0):
        one = lane.candidate
        key = (None, None) if one is None else (one.block, one.rule)
        groups.setdefault(key, []).append(lane)
    return list(groups.values())


def measure(
    workload: Workload,
    lanes: Sequence[Lane],
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Measured]:
    """Run lanes, which are of one group, together: one vmapped function, compiled once.

    Args:
        workload: what to run.
        lanes: of one block size and scale rule, if of any.
        chunk: lanes of one call; by default as many as the machine's batches on CPU, else all.
        progress: called with the number of lanes done.
    """
    limit = chunk or (CPU_LANES if jax.default_backend() == "cpu" else len(lanes))
    turns = -(-len(lanes) // limit)
    width = -(-len(lanes) // turns)
    # The last turn repeats a lane rather than being one of another shape, which would be compiled too.
    padded = [*lanes, *[lanes[-1]] * (turns * width - len(lanes))]
    formats, arrays, call = varied(padded), contents(workload), _compiled(workload)
    found: list[Measured] = []
    # Turns are calls, not a loop inside one call, which was slower on CPU.
    for start in range(0, len(padded), width):
        outputs, losses = jax.device_get(
            call(arrays, jax.tree.map(lambda leaf, at=start: leaf[at : at + width], formats))
        )
        for lane in range(width):
            counts = [{name: int(both[kind][lane]) for name, both in losses.items()} for kind in (0, 1)]
            found.append(Measured(outputs[lane], *counts))
        if progress is not None:
            progress(min(len(found), len(lanes)))
    return found[: len(lanes)]


# -- formats ----------------------------------------------------------------------------------------------------------


def varied(lanes: Sequence[Lane]) -> Varied:
    """The formats of each place that any of the lanes tries, stacked: int32 leaves [lanes]."""
    tried = {place for lane in lanes for place in lane.places} or {PLACES[0]}
    return {place: _stacked([_tried(lane, place) for lane in lanes]) for place in PLACES if place in tried}


def _tried(lane: Lane, place: Place) -> Any:
    return lane.candidate.quantizer if lane.candidate is not None and place in lane.places else WIDE


def _stacked(formats: list[Any]) -> Any:
    blocks = next((fmt for fmt in formats if isinstance(fmt, MXFormat)), None)
    if blocks is not None:
        both = lambda fmt: Either(WIDE, fmt, 1) if isinstance(fmt, MXFormat) else Either(fmt, blocks, 0)
        formats = [both(fmt) for fmt in formats]
    return jax.tree.map(lambda *leaves: np.asarray(leaves, np.int32), *formats)


def as_formats(formats: Varied) -> Formats:
    """The formats of a run: what is not among them is wide."""
    # Every entry a quantizer: the machine's own formats need not go with values.
    entries: dict[str, Any] = dict.fromkeys(Formats.__dataclass_fields__, WIDE)
    for place, fmt in formats.items():
        entries |= dict.fromkeys(FIELDS[place], fmt)
    return Formats(**entries)


# -- the call ---------------------------------------------------------------------------------------------------------


def contents(workload: Workload) -> dict[str, Any]:
    """What the compiled call takes beside formats: contents before rounding, and the machine's empty memories."""
    start = workload.start
    return {
        "operands": [operand.contents for operand in workload.operands],
        "memories": {name: getattr(start, name) for name in FLOAT_FIELDS if name != "hbm"},
        VRAM: None if workload.vram is None else _rows(workload.vram, workload.config.vlen),
        FP_SRAM: None if workload.fp_sram is None else np.asarray(workload.fp_sram, np.float32).reshape(-1),
    }


def _rows(values: Any, vlen: int) -> np.ndarray:
    flat = np.asarray(values, np.float32).reshape(-1)
    return np.pad(flat, (0, -len(flat) % vlen)).reshape(-1, vlen)


def _compiled(workload: Workload) -> Callable[..., Any]:
    """The call, kept with the workload, so that it is compiled once for each block size however often it is swept."""
    if "_call" not in workload.__dict__:
        workload.__dict__["_call"] = jax.jit(jax.vmap(partial(run_one, workload), in_axes=(None, 0)))
    call: Callable[..., Any] = workload.__dict__["_call"]
    return call


def run_one(workload: Workload, arrays: dict[str, Any], formats: Varied) -> tuple[jax.Array, dict[str, Any]]:
    """The output of a run in which some places have formats and the others are wide; and what staging lost.

    Args:
        workload: what to run.
        arrays: its :func:`contents`.
        formats: of places, traced or not.

    Returns:
        The output, and for each staged tensor two int32: elements that saturate, and that flush to zero.
    """
    losses: dict[str, Any] = {}

    def staged(name: str, x: Any, place: Place) -> jax.Array:
        fmt, x = formats.get(place, WIDE), jnp.asarray(x)
        # What is wide loses nothing.
        counts = (jnp.sum(fmt.saturates(x)), jnp.sum(fmt.flushes(x))) if place in formats else (0, 0)
        losses[name] = tuple(jnp.asarray(count, jnp.int32) for count in counts)
        return hbm.stage(x, fmt)

    final = run(
        workload.program,
        _state(workload, arrays, staged),
        workload.machine,
        engine="resolved",
        precision=as_formats(formats),
    )
    return workload.picked(final), losses


def _state(workload: Workload, arrays: dict[str, Any], staged: Callable[..., jax.Array]) -> MachineState:
    pairs = zip(workload.operands, arrays["operands"], strict=True)
    placed = {one.tensor: staged(one.tensor.name, x, one.role) for one, x in pairs}
    memories = dict(arrays["memories"])
    for name, place in ((VRAM, "vector_sram"), (FP_SRAM, "scalar")):
        if arrays[name] is not None:
            values = staged(name, arrays[name], place)
            memories[name] = memories[name].at[: values.shape[0]].set(values)
    cells = hbm.place(workload.machine, placed, workload.hbm_bytes)
    return workload.start.replace(hbm=cells, **memories)
