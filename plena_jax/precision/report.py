"""What a sweep has found: numbers, a table, JSON and a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plena_jax import figures
from plena_jax.errors import PlenaError
from plena_jax.files import write_atomically
from plena_jax.precision.places import PLACES, TOGETHER

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

#: Widths that the axis of a plot names.
_TICKS = (2, 4, 6, 8, 16, 32)
_ORDER = {place: index for index, place in enumerate((*PLACES, TOGETHER))}


@dataclass(frozen=True)
class Entry:
    """A format in a place, everything else in float32; plain Python numbers (docs/precision.md section 3).

    Attributes:
        place: one of the places, "hbm" for all those of HBM at once, or "none" for the baseline.
        format: its name.
        bits: width of an element.
        bits_per_value: with the share of the scale.
        block: elements of a block, None of plain formats.
        rule: scale rule, None of plain formats.
        relative_l2, cosine, max_error, snr_db, non_finite: see :class:`~plena_jax.precision.metrics.Distance`.
        saturated: elements beyond the format, by tensor; of "output" those whose reference is beyond the format of the
            place that holds it, and those that are not finite.
        flushed: elements that are not zero but round to zero, by tensor; of "output" zeros where the reference is not.
    """

    place: str
    format: str
    bits: int
    bits_per_value: float
    block: int | None
    rule: str | None
    relative_l2: float
    cosine: float
    max_error: float
    snr_db: float
    non_finite: int
    saturated: dict[str, int]
    flushed: dict[str, int]


@dataclass(frozen=True)
class Skipped:
    """What a sweep did not try.

    Attributes:
        place: the place.
        format: the format's name, None for all.
        block: its block size, None of plain formats.
        reason: why.
    """

    place: str
    format: str | None
    block: int | None
    reason: str

    @property
    def described(self) -> str:
        """All of it as a sentence."""
        blocks = "" if self.block is None else f" in blocks of {self.block}"
        return (
            f"place {self.place!r}" + (f", format {self.format!r}{blocks}" if self.format else "") + f": {self.reason}"
        )


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
        entries: one for each format in each place, in the order in which they were asked for.
        skipped: what could not be asked.
        baseline: every place in float32: what is left is the order of sums.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[Skipped, ...]
    baseline: Entry

    def sorted(self) -> list[Entry]:
        """The entries by place, then bits, then error."""
        return sorted(self.entries, key=lambda e: (_ORDER[e.place], e.bits_per_value, e.relative_l2, e.format))

    def best(self, place: str, max_relative_l2: float) -> Entry | None:
        """The entry of fewest bits a value whose relative L2 suffices, of several the best; None if there is none.

        Raises:
            PlenaError: a place that was not swept.
        """
        there = [entry for entry in self.sorted() if entry.place == place]
        if not there:
            places = ", ".join(dict.fromkeys(entry.place for entry in self.sorted()))
            raise PlenaError(f"place {place!r} was not swept; swept: {places}")
        return next((entry for entry in there if entry.relative_l2 <= max_relative_l2), None)

    def as_json(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinite numbers: these are the strings "inf" and "-inf"."""
        entry = lambda e: {name: _plain(value) for name, value in dataclasses.asdict(e).items()}
        return {
            "baseline": entry(self.baseline),
            "entries": [entry(e) for e in self.sorted()],
            "skipped": [dataclasses.asdict(one) for one in self.skipped],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The result as JSON text; also written to ``path`` if given."""
        text = json.dumps(self.as_json(), indent=1, allow_nan=False)
        if path is not None:
            write_atomically(path, text.encode())
        return text

    def table(self) -> Table:
        """A table for people; print it with rich."""
        from rich.table import Table

        made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in ("place", "format"):
            made.add_column(column, overflow="fold")
        for column in ("bits", "block", "relative L2", "SNR dB", "cosine", "max error", "saturated", "flushed"):
            made.add_column(column, justify="right", overflow="fold")
        previous = ""
        for entry in (self.baseline, *self.sorted()):
            made.add_row(*_cells(entry, entry.place != previous))
            previous = entry.place
        return made

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the ratio of signal to noise over bits a value, a panel for each place, into a file (PNG, PDF, SVG).

        Raises:
            PlenaError: matplotlib is not installed, or does not know the file's ending.
        """
        places = list(dict.fromkeys(entry.place for entry in self.sorted()))
        columns = min(len(places), 3)
        rows = -(-len(places) // columns)
        figure = figures.figure(4.5 * columns, 3.6 * rows)
        _draw(figure, self, places, rows, columns)
        figures.save(figure, path)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _cells(entry: Entry, is_first: bool) -> list[str]:
    return [
        entry.place if is_first else "",
        entry.format,
        f"{entry.bits_per_value:g}",
        "" if entry.block is None else str(entry.block),
        f"{entry.relative_l2:.3g}",
        f"{entry.snr_db:.1f}",
        f"{entry.cosine:.6f}",
        f"{entry.max_error:.3g}",
        _counts(entry.saturated),
        _counts(entry.flushed),
    ]


def _counts(counts: dict[str, int]) -> str:
    """The counts that are not zero, by tensor."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _kind(entry: Entry) -> str:
    return "plain" if entry.block is None else f"blocks of {entry.block}"


def _draw(figure: Figure, sweep: Sweep, places: list[str], rows: int, columns: int) -> None:
    kinds = list(dict.fromkeys(_kind(e) for e in sorted(sweep.entries, key=lambda e: e.block or 0)))
    finite = [entry.snr_db for entry in sweep.entries if math.isfinite(entry.snr_db)]
    floor = min(finite, default=0.0) - 5
    for index, place in enumerate(places):
        panel = figure.add_subplot(rows, columns, index + 1, title=place, xlabel="bits a value", ylabel="SNR (dB)")
        for number, kind in enumerate(kinds):
            points = [e for e in sweep.sorted() if e.place == place and _kind(e) == kind]
            x = [e.bits_per_value for e in points]
            # What is not finite stands on the floor, what is exact on the baseline.
            y = [max(min(e.snr_db, max(finite, default=0.0)), floor) for e in points]
            panel.plot(x, y, "osD^v<>"[number % 7], label=kind, markersize=4, alpha=0.8)
        panel.set_xscale("log", base=2)
        panel.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        panel.grid(alpha=0.3)
    if kinds:
        figure.axes[0].legend(fontsize="small")
