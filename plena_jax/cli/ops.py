"""``plena ops``: the operators, from their declarations."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from rich.table import Table

from plena_jax.cli import console
from plena_jax.lower.operators import Operator, find, operators


def add(commands: Any) -> None:
    """Register the subcommand."""
    text = "List the operators that programs can be made of."
    examples = ["plena ops", "plena ops softmax linear", "plena ops --markdown > operators.md"]
    parser = console.add_command(commands, "ops", execute, text, examples)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, with every parameter")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print as JSON")
    forms.add_argument("--markdown", action="store_true", help="print as a Markdown page")


def execute(options: argparse.Namespace) -> int:
    """Print it."""
    entries = [find(name) for name in options.names] or sorted(operators().values(), key=lambda o: (o.family, o.name))
    if options.json:
        console.print_json([describe(entry) for entry in entries])
    elif options.markdown:
        print(markdown(entries), end="")
    elif options.names:
        for entry in entries:
            _print_one(entry)
    else:
        _print_all(entries)
    return 0


def describe(entry: Operator) -> dict[str, Any]:
    """Plain data."""
    return {
        "name": entry.name,
        "family": entry.family,
        "signature": entry.usage,
        "formula": entry.doc,
        "kernel": inspect.getdoc(entry.expand or entry.emit) or "",
        "roundings": inspect.getdoc(entry.rounded) if entry.expand is None else "those of what it is made of",
        "cost": entry.cost,
        "places": {name: list(entry.places.get(name, ("vram",))) for name in entry.tensors},
    }


def markdown(entries: list[Operator]) -> str:
    """A page for all."""
    lines = ["# Operators", "", "Made by `plena ops --markdown`.", ""]
    family = ""
    for entry in entries:
        if entry.family != family:
            family = entry.family
            lines += [f"## {family.replace('_', ' ').capitalize()}", ""]
        about = describe(entry)
        places = ", ".join(f"{name} in {' or '.join(there)}" for name, there in about["places"].items())
        lines += [f"### `{about['signature']}`", "", about["formula"], "", f"* Places: {places}"]
        lines += [f"* Kernel: {' '.join(about['kernel'].split())}"]
        lines += [f"* Roundings: {' '.join(about['roundings'].split())}", f"* Instructions: {entry.cost}", ""]
    return "\n".join(lines)


def _print_all(entries: list[Operator]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("family", "operator", "what"):
        table.add_column(column, overflow="fold")
    family = ""
    for entry in entries:
        first = entry.doc.split("\n\n")[0].replace("\n", " ")
        table.add_row("" if entry.family == family else entry.family, entry.usage, first)
        family = entry.family
    console.out.print(table)


def _print_one(entry: Operator) -> None:
    about = describe(entry)
    console.out.print(about["signature"], style="bold", highlight=False, markup=False)
    for title in ("formula", "kernel", "roundings", "cost"):
        console.out.print(f"\n{title}", style="bold")
        console.out.print(about[title], highlight=False, markup=False)
    console.out.print("\nplaces", style="bold")
    for name, places in about["places"].items():
        console.out.print(f"  {name}: {' or '.join(places)}", highlight=False)
    console.out.print()
