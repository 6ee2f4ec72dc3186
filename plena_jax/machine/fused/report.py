"""What fused and what did not, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from plena_jax.isa import BY_MNEMONIC
from plena_jax.isa.instruction import OPCODE_MASK
from plena_jax.machine.fused.engine import fuse
from plena_jax.machine.fused.families import Family, sizes
from plena_jax.machine.record import Record
from plena_jax.machine.resolved import Trace
from plena_jax.machine.semantics import SEMANTICS

#: Why operations of a family run one by one, however many there are.
_ALONE = {
    Family.MM: "their chain mixes columns, or goes on from a sum that is there already",
    Family.TMM: "their chain mixes columns, or goes on from a sum that is there already",
    Family.MV: "their chain mixes columns or M_TMV, or goes on from a sum that is there already",
    Family.TMV: "M_TMV adds in another order than products do",
    Family.BMM: "a step takes one part of a head slot",
    Family.TOPK: "a step takes one",
}


@dataclass(frozen=True)
class FamilyReport:
    """Operations of one family.

    Attributes:
        name: of the family.
        operations: rows of products, rows put together, and else parts of instructions.
        steps: that run them.
        largest: operations of the largest group, which could all run at once.
        few: operations in groups that are smaller than half a wide step.
        why: those are not more, or run one by one.
    """

    name: str
    operations: int
    steps: int
    largest: int
    few: int
    why: str


@dataclass(frozen=True)
class FusionReport:
    """How a trace runs on the fused engine.

    Attributes:
        instructions, records: executed, and of them on the datapath.
        steps, levels: wide steps, and the longest chain of operations that need each other.
        pieces: that are scheduled apart.
        values: rows of values that are held at once, and their bytes.
        families: by family.
        by_mnemonic: datapath instructions.
    """

    instructions: int
    records: int
    steps: int
    levels: int
    pieces: int
    values: int
    bytes: int
    families: tuple[FamilyReport, ...]
    by_mnemonic: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**vars(self), "families": [vars(family) for family in self.families]}

    def __str__(self) -> str:
        per_step = self.records / max(self.steps, 1)
        lines = [
            f"{self.instructions:,} instructions, {self.records:,} of them on the datapath, in {self.steps:,} wide "
            f"steps ({per_step:.1f} instructions a step); {self.levels:,} levels, {self.pieces} pieces, "
            f"{self.bytes / 2**20:.1f} MiB of values",
            f"{'family':22}{'operations':>12}{'steps':>9}{'largest':>9}{'few':>9}  why few",
        ]
        for f in self.families:
            why = f.why if f.few else ""
            lines.append(f"{f.name:22}{f.operations:12,}{f.steps:9,}{f.largest:9,}{f.few:9,}  {why}".rstrip())
        return "\n".join(lines)


def fusion(trace: Trace) -> FusionReport:
    """How a trace runs on the fused engine: what runs together, and what does not and why.

    Accumulators are zero at the start, as those of a machine at reset are.
    """
    fused = fuse(trace, cleared=True)
    tables = [schedule.groups for schedule in fused.schedules]
    groups = np.concatenate([np.zeros((0, 4), np.int64), *tables])
    steps: dict[int, int] = {}
    for schedule in fused.schedules:
        branches = np.bincount(schedule.tables.steps[: schedule.steps, 0], minlength=len(schedule.buckets))
        for (family, _), count in zip(schedule.buckets, branches, strict=True):
            steps[family] = steps.get(family, 0) + int(count)
    families = []
    for family in Family:
        counts = groups[groups[:, 1] == family, 2]
        if len(counts):
            wide = sizes(family, trace.config)[-1]
            alone = family in _ALONE
            few = int(counts[counts < max(wide // 2, 1)].sum()) if not alone else int(counts.sum())
            why = _ALONE.get(family, "no more of them are independent at their level")
            families.append(FamilyReport(family.name, int(counts.sum()), steps[family], int(counts.max()), few, why))
    words = trace.program.words[trace.records[:, Record.PC]] & OPCODE_MASK
    names = {name: int(np.sum(words == BY_MNEMONIC[name].opcode)) for name in SEMANTICS}
    values = max((s.tables.entries.shape[0] for s in fused.schedules), default=0)
    return FusionReport(
        instructions=trace.instructions,
        records=len(trace),
        steps=sum(s.steps for s in fused.schedules),
        levels=sum(s.levels for s in fused.schedules),
        pieces=len(fused.schedules),
        values=values,
        bytes=4 * values * trace.config.vlen,
        families=tuple(families),
        by_mnemonic={name: count for name, count in names.items() if count},
    )
