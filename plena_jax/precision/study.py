"""The sweep: which formats go where, and what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from plena_jax.errors import FormatError
from plena_jax.formats import named
from plena_jax.formats.mx import ScaleRule
from plena_jax.formats.named import Format
from plena_jax.precision.lanes import Lane, Measured, grouped, measure
from plena_jax.precision.metrics import distance
from plena_jax.precision.places import (
    BLOCKS,
    HBM_PLACES,
    PLACES,
    TOGETHER,
    Candidate,
    Place,
    candidates,
    objection,
)
from plena_jax.precision.report import Entry, Skipped, Sweep
from plena_jax.precision.workload import OUTPUT, Workload


def sweep(
    workload: Workload,
    formats: Iterable[str | Format] | Mapping[str, Format],
    places: Sequence[Place] | None = None,
    blocks: Sequence[int] | None = None,
    rule: ScaleRule = "floor",
    together: bool = False,
    chunk: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sweep:
    """Try each format in each place by itself, everything else in float32, and measure what that does to the result.

    All formats of a block size run as one vmapped function, compiled once, staging included; the plain formats are one
    more.

    Args:
        workload: what to run.
        formats: names as of :func:`plena_jax.formats.named` or format objects, or a mapping from names of your own to
            objects; those of the "ieee" family.
        places: any of :data:`PLACES`, all by default. A format that a place cannot hold, and a place that the program
            does not use, is an error if the place is named here, else it is listed as skipped.
        blocks: block sizes of the block formats that are given by name, divisors of MLEN; by default those among 8, 16,
            32 and 64.
        rule: scale rule of those.
        together: each format also in all places of HBM that the program uses at once.
        chunk: machines that run together; by default at most 16 on CPU, all on an accelerator.
        progress: called now and then with the number of runs done.

    Raises:
        FormatError: an unknown place, format, block size or rule, or a place that was named and cannot be asked that.
    """
    chosen = _usual(workload) if blocks is None else _checked(blocks, workload)
    tried = candidates(formats, chosen, rule)
    lanes, skipped = _lanes(workload, tried, places, together)
    if not lanes:
        raise FormatError("nothing to sweep: " + "; ".join(dict.fromkeys(one.described for one in skipped)))
    groups = grouped(lanes)
    # The baseline needs no call of its own.
    groups[0].append(_BASELINE)
    found: dict[Lane, Entry] = {}
    for group in groups:
        report = None if progress is None else partial(_report, progress, len(found))
        for lane, measured in zip(group, measure(workload, group, chunk, report), strict=True):
            found[lane] = _entry(workload, lane, measured)
    return Sweep(tuple(found[lane] for lane in lanes), tuple(skipped), found[_BASELINE])


def _report(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


#: The run in which every place is wide.
_BASELINE = Lane("none", (), None)


def _usual(workload: Workload) -> Sequence[int]:
    mlen = workload.config.mlen
    return [block for block in BLOCKS if mlen % block == 0] or [mlen]


def _checked(blocks: Sequence[int], workload: Workload) -> Sequence[int]:
    mlen = workload.config.mlen
    for block in blocks:
        if block < 1 or mlen % block:
            raise FormatError(f"block size {block}; allowed: those that divide MLEN ({mlen})")
    return list(dict.fromkeys(blocks))


def _lanes(
    workload: Workload, tried: Sequence[Candidate], places: Sequence[Place] | None, together: bool
) -> tuple[list[Lane], list[Skipped]]:
    """The runs to make, and what cannot be asked."""
    for place in places or ():
        if place not in PLACES:
            raise FormatError(f"place {place!r}; allowed: {', '.join(PLACES)}")
    lanes: list[Lane] = []
    skipped: list[Skipped] = []
    for place in dict.fromkeys(PLACES if places is None else places):
        unused = workload.unused(place)
        if unused is not None:
            skipped.append(Skipped(place, None, None, unused))
            continue
        for one in tried:
            reason = _objection(workload, place, one)
            if reason is None:
                lanes.append(Lane(place, (place,), one))
            else:
                skipped.append(Skipped(place, one.name, one.block, reason))
    if skipped and places is not None:
        raise FormatError(skipped[0].described)
    if together:
        used = tuple(place for place in HBM_PLACES if workload.unused(place) is None)
        good = [one for one in tried if all(_objection(workload, place, one) is None for place in used)]
        lanes += [Lane(TOGETHER, used, one) for one in good if used]
    return lanes, skipped


def _objection(workload: Workload, place: Place, one: Candidate) -> str | None:
    reason = objection(place, one, workload.config.mlen)
    for operand in workload.operands:
        columns = operand.tensor.shape[1]
        if reason is None and operand.role == place and columns % (one.block or 1):
            return f"rows of {columns} elements of tensor {operand.tensor.name} are not whole blocks"
    return reason


def _entry(workload: Workload, lane: Lane, measured: Measured) -> Entry:
    one, output, reference = lane.candidate, measured.output, workload.reference
    bound = one.format if one is not None and workload.bound in lane.places else named("float32")
    beyond = np.isfinite(reference) & (bound.saturates(reference) | ~np.isfinite(output))
    vanished = (output == 0) & (reference != 0)
    return Entry(
        place=lane.label,
        format="float32" if one is None else one.name,
        bits=32 if one is None else one.bits,
        bits_per_value=32.0 if one is None else one.bits_per_value,
        block=None if one is None else one.block,
        rule=None if one is None else one.rule,
        **dataclasses.asdict(distance(output, reference)),
        saturated=measured.saturated | {OUTPUT: int(beyond.sum())},
        flushed=measured.flushed | {OUTPUT: int(vanished.sum())},
    )
