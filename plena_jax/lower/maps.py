"""Pictures of a plan: a table, and a drawing of what is where and when."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from plena_jax import figures
from plena_jax.isa.instruction import SRAM_ENTRIES
from plena_jax.lower.graph import Graph
from plena_jax.lower.memory import Allocation, Plan

if TYPE_CHECKING:
    from rich.table import Table


def memories(plan: Plan) -> list[tuple[str, str, int, tuple[Allocation, ...]]]:
    """Name, unit, size and allocations of each memory."""
    config = plan.config
    integers = [("INT SRAM", "entries", SRAM_ENTRIES, plan.int_sram)] if plan.int_sram else []
    return [
        ("VRAM", "rows", config.vector_sram_size, plan.vram),
        ("HBM", "bytes", config.hbm_size, plan.hbm),
        ("FP SRAM", "entries", SRAM_ENTRIES, plan.fp_sram),
        *integers,
    ]


def as_json(graph: Graph, plan: Plan) -> dict[str, Any]:
    """Plain data; times are names of operators, None before the first and behind the last."""
    return {
        name: {
            "unit": unit,
            "size": size,
            "allocations": [
                {
                    "name": one.name,
                    "start": one.start,
                    "size": one.size,
                    "from": _when(graph, one.first),
                    "to": _when(graph, one.last),
                }
                for one in found
            ],
        }
        for name, unit, size, found in memories(plan)
    }


def table(graph: Graph, plan: Plan) -> Table:
    """A table for a rich console: address by address."""
    from rich.table import Table

    result = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("memory", "start", "size", "tensor", "from", "to"):
        result.add_column(column, justify="right" if column in ("start", "size") else "left", overflow="fold")
    for name, unit, size, found in memories(plan):
        used = max((one.stop for one in found), default=0)
        result.add_row(name, "", f"{size:,}", f"{unit}; used up to {used:,}", "", "", style="dim")
        for one in sorted(found, key=lambda one: (one.start, one.first)):
            when = [_when(graph, number) or end for number, end in ((one.first, "start"), (one.last, "end"))]
            result.add_row("", f"{one.start:,}", f"{one.size:,}", one.name, *when)
    return result


def _when(graph: Graph, number: int) -> str | None:
    return graph.nodes[number].name if 0 <= number < len(graph.nodes) else None


def plot(graph: Graph, plan: Plan, path: str | os.PathLike[str]) -> None:
    """Draw VRAM and HBM: operators from left to right, addresses upwards (PNG, PDF or SVG by the file's ending).

    Raises:
        PlenaError: matplotlib is not installed, or does not know the ending.
    """
    figure = figures.figure(10, 7)
    for index, (name, unit, _, found) in enumerate(memories(plan)[:2]):
        axes = figure.add_subplot(2, 1, index + 1, title=name, xlabel="operator", ylabel=unit)
        for number, one in enumerate(found):
            width = one.last - one.first + 1
            axes.bar(one.first, one.size, width, one.start, align="edge", edgecolor="black", color=f"C{number % 10}",
                     alpha=0.6)  # fmt: skip
            axes.text(one.first + width / 2, one.start + one.size / 2, one.name, ha="center", va="center", fontsize=6)
        axes.set_xticks(
            [i + 0.5 for i in range(len(graph.nodes))], [n.name for n in graph.nodes], rotation=45, fontsize=6
        )
    figures.save(figure, path)
