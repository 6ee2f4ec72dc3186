"""How far a run is from its two goldens, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from plena_jax.machine.run import run
from plena_jax.program import Program

if TYPE_CHECKING:
    from rich.table import Table

    from plena_jax.frontend.compiled import CompiledProgram

#: What a machine may be from its rounded reference, and still be right: sums in another order.
MOST_RELATIVE_L2 = 2e-3
LEAST_COSINE = 0.9999


@dataclass(frozen=True)
class Distance:
    """Between two arrays.

    Attributes:
        differing, elements: how many numbers differ, of how many.
        relative_l2: norm of the difference by that of the second.
        cosine: of the angle between them; 1 of two arrays of zeros.
        largest: the largest difference.
    """

    differing: int
    elements: int
    relative_l2: float
    cosine: float
    largest: float

    @classmethod
    def between(cls, found: Any, wanted: Any) -> Distance:
        """Of the first from the second; equal infinities and NaN are no difference."""
        a, b = (np.asarray(x, np.float64).reshape(-1) for x in (found, wanted))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, a - b)
        norm = float(np.linalg.norm(b))
        both = float(np.linalg.norm(a)) * norm
        relative = float(np.linalg.norm(difference)) / norm if norm else float(bool(difference.any()))
        cosine = float(a @ b) / both if both else float(not difference.any())
        return cls(int((~same).sum()), a.size, relative, cosine, float(np.abs(difference).max(initial=0.0)))

    @property
    def good(self) -> bool:
        """Whether rounding explains it."""
        return self.relative_l2 <= MOST_RELATIVE_L2 and self.cosine >= LEAST_COSINE


@dataclass(frozen=True)
class SectionReport:
    """One section of the program.

    Attributes:
        name: of the section.
        source: the user's line, or "".
        machine: distance of the machine from the reference, at the section's end.
        format: distance of the reference from float32, from the inputs on.
    """

    name: str
    source: str
    machine: Distance
    format: Distance


@dataclass(frozen=True)
class Report:
    """A run against its goldens.

    Attributes:
        machine: the results against the rounded reference: what must be nothing.
        original: the results against the original function in float32: what the formats cost.
        sections: each section of the program.
        first: the first section where the machine leaves the reference, or None.
    """

    machine: Distance
    original: Distance
    sections: tuple[SectionReport, ...]
    first: str | None

    @property
    def good(self) -> bool:
        """Whether the machine's results are those of the reference."""
        return self.machine.good

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"good": self.good}

    def table(self) -> Table:
        """To print with rich."""
        from rich.table import Table

        table = Table(title="machine against rounded reference, and reference against float32")
        for heading in ("section", "differing", "relative L2", "cosine", "formats: relative L2", "source"):
            table.add_column(heading)
        rows = [(s.name, s.machine, s.format, s.source) for s in self.sections]
        for name, machine, cost, source in [*rows, ("results", self.machine, self.original, "")]:
            differing = f"{machine.differing:,} of {machine.elements:,}"
            numbers = f"{machine.relative_l2:.2g}", f"{machine.cosine:.6f}", f"{cost.relative_l2:.2g}"
            table.add_row(name, differing, *numbers, source)
        return table

    def __str__(self) -> str:
        verdict = "the machine equals its rounded reference"
        if self.machine.differing:
            verdict = (
                f"{self.machine.differing:,} of {self.machine.elements:,} numbers differ from the rounded reference"
            )
            verdict += f", first in section {self.first}" if self.first else ""
        return (
            f"{verdict}; relative L2 to the original {self.original.relative_l2:.3g}, cosine {self.original.cosine:.6f}"
        )


def check(compiled: CompiledProgram, arguments: Sequence[Any]) -> Report:
    """Run, and compare; see :meth:`CompiledProgram.check`."""
    inputs = compiled.inputs(*arguments)
    sections = tuple(_sections(compiled, inputs))
    found, reference, original = (_flat(f(*arguments)) for f in (compiled, compiled.reference, compiled.original))
    first = next((s.name for s in sections if s.machine.differing), None)
    return Report(Distance.between(found, reference), Distance.between(found, original), sections, first)


def _flat(results: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float32).reshape(-1) for leaf in jax.tree.leaves(results)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.float32)


def _sections(compiled: CompiledProgram, inputs: dict[str, Any]) -> list[SectionReport]:
    """Section after section: the program up to its end runs on from the state before."""
    lowered = compiled.lowered
    rounded, exact = lowered.intermediate(**inputs)
    state = lowered.start(**inputs)
    found = []
    stops = {section.name: section.stop for section in lowered.program.sections}
    for node in lowered.graph.nodes:
        if node.name not in stops:
            continue
        state = run(Program(lowered.program.words[: stops[node.name]]), state, lowered.config)
        operation = compiled.sections.get(node.name)
        got = np.asarray(lowered.value(state, node.output))
        found.append(
            SectionReport(
                node.name,
                operation.source if operation else "",
                Distance.between(got, rounded[node.output]),
                Distance.between(rounded[node.output], exact[node.output]),
            )
        )
    return found
