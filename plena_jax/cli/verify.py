"""``plena verify``: recorded cases, word by word."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from plena_jax.cli import console
from plena_jax.conformance import Case, Comparison, as_json, verify
from plena_jax.errors import PlenaError
from plena_jax.machine.run import Engine


def add(commands: Any) -> None:
    """Register the subcommand."""
    parser = console.add_command(
        commands,
        "verify",
        execute,
        "Run recorded cases and compare every memory with its record.\n\n"
        "Exit status 1 if any word differs or a case cannot be read or run. Cases without recorded memories must stop "
        "with a fault.",
        [
            "plena verify cases/*.npz",
            "plena verify --engine architectural --engine resolved cases/*.npz",
            "plena verify --json cases/*.npz > report.json",
        ],
    )
    parser.add_argument("cases", nargs="+", metavar="CASE.npz", help="recorded cases")
    help_text = "engine to run; may be repeated (default: auto)"
    parser.add_argument("--engine", action="append", choices=get_args(Engine), help=help_text)
    allow = "accept what the order of float32 sums can explain: under 0.5 %% of words and 1e-3 relative L2 a memory"
    parser.add_argument("--allow-sum-order", action="store_true", help=allow)
    parser.add_argument("--all", action="store_true", help="list equal memories too")
    parser.add_argument("--json", action="store_true", help="print a list of objects, one for each memory compared")


def execute(options: argparse.Namespace) -> int:
    """Verify and report."""
    found: list[Comparison] = []
    engines = options.engine or ["auto"]
    with _progress() as bar:
        task = bar.add_task("", total=len(options.cases) * len(engines))
        for path in options.cases:
            for engine in engines:
                bar.update(task, description=_name(path))
                found += _verify(path, engine)
                bar.advance(task)
    accepted = [one.within_sum_order if options.allow_sum_order else one.equal for one in found]
    if options.json:
        console.print_json([as_json(one) for one in found])
    else:
        _report(found, accepted, options.all)
    return 0 if all(accepted) else 1


def _verify(path: str, engine: Any) -> list[Comparison]:
    """The comparisons of one run; a case that cannot be read or run is one that fails."""
    what = "case"
    try:
        case = Case.load(path)
        what = "engine"
        return verify(case, engine)
    except (PlenaError, OSError) as error:
        return [Comparison(_name(path), engine, what, 1, 1, 0, 0.0, str(error))]


def _name(path: str) -> str:
    return Path(path).name.removesuffix(".npz")


def _progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console.err, transient=True)


def _report(found: list[Comparison], accepted: list[bool], everything: bool) -> None:
    rows = console.table("case", "engine", "memory", "words", "differing", "max ulp", "relative L2", "", left=3)
    rows.columns[-1].justify = "left"
    for one, good in zip(found, accepted, strict=True):
        if everything or not one.equal or one.message:
            verdict = "equal" if one.equal else "accepted" if good else "DIFFERS"
            if one.memory == "fault":
                verdict = "stopped as it must" if good else "DIFFERS"
            elif one.memory in ("case", "engine"):
                verdict = "FAILED"
            figures = f"{one.words:,}", f"{one.differing:,}", f"{one.max_ulp:,}", f"{one.relative_l2:.3g}"
            rows.add_row(one.case, one.engine, one.memory, *figures, f"{verdict}: {one.message}".rstrip(": "))
    if rows.row_count:
        console.out.print(rows)
    runs = {(one.case, one.engine): True for one in found}
    for one, good in zip(found, accepted, strict=True):
        runs[one.case, one.engine] &= good
    words = sum(one.words for one in found)
    equal = sum(one.differing for one in found)
    console.out.print(f"{sum(runs.values())} of {len(runs)} runs good; {equal:,} of {words:,} words differ")
