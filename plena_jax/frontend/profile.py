"""Where a program's instructions and cycles go, by section."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax

from plena_jax.errors import EngineError
from plena_jax.machine.resolved import Unresolvable, resolve
from plena_jax.machine.state import MachineState
from plena_jax.program import Program

if TYPE_CHECKING:
    from rich.table import Table

    from plena_jax.frontend.compiled import CompiledProgram


@dataclass(frozen=True)
class SectionCost:
    """One section.

    Attributes:
        name: of the section.
        operation: the operation that it is a part of.
        source: the user's line, or "".
        instructions: executed.
        cycles: modelled, without HBM transfer times.
    """

    name: str
    operation: str
    source: str
    instructions: int
    cycles: int


@dataclass(frozen=True)
class Profile:
    """All sections of a program, in order."""

    sections: tuple[SectionCost, ...]

    @property
    def instructions(self) -> int:
        """Of all sections."""
        return sum(section.instructions for section in self.sections)

    @property
    def cycles(self) -> int:
        """Of all sections."""
        return sum(section.cycles for section in self.sections)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"instructions": self.instructions, "cycles": self.cycles}

    def table(self) -> Table:
        """To print with rich."""
        from rich.table import Table

        table = Table(title="instructions and modelled cycles by section")
        for heading in ("section", "operation", "instructions", "cycles", "share", "source"):
            table.add_column(heading, justify="right" if heading in ("instructions", "cycles", "share") else "left")
        for s in self.sections:
            share = f"{100 * s.cycles / max(self.cycles, 1):.1f} %"
            table.add_row(s.name, s.operation, f"{s.instructions:,}", f"{s.cycles:,}", share, s.source)
        table.add_row("all", "", f"{self.instructions:,}", f"{self.cycles:,}", "", "", end_section=True)
        return table


def profile(compiled: CompiledProgram) -> Profile:
    """Resolve the program section after section; see :meth:`CompiledProgram.profile`.

    Raises:
        EngineError: addresses depend on data.
    """
    lowered, found = compiled.lowered, []
    nodes = {node.name for node in lowered.graph.nodes}
    with jax.ensure_compile_time_eval():
        state = MachineState.create(lowered.config, vram_rows=1)
    for section in sorted((s for s in lowered.program.sections if s.name in nodes), key=lambda s: s.start):
        part = Program(lowered.program.words[: section.stop])
        try:
            trace = resolve(part, lowered.config, state)
        except Unresolvable as error:
            raise EngineError(f"profile: {error}: only a run knows") from None
        operation, state = compiled.sections.get(section.name), trace.end
        name, source = (operation.name, operation.source) if operation else ("", "")
        found.append(SectionCost(section.name, name, source, trace.instructions, state.latency_cycles))
    return Profile(tuple(found))
