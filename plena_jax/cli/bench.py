"""``plena bench``: the engines on a program, in seconds; and ``plena explain``: what runs together on the fused one."""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import numpy as np

from plena_jax.cli import console
from plena_jax.config import MachineConfig
from plena_jax.errors import EngineError
from plena_jax.machine.fused.report import fusion
from plena_jax.machine.images import Images
from plena_jax.machine.run import engine_for, prepare, run
from plena_jax.machine.state import FLOAT_FIELDS, MachineState
from plena_jax.program import Program
from plena_jax.projection import random_projection

_SHAPE = (64, 576, 576)
#: Engines, and whether products add up in the machine's order.
_RUNS = {
    "architectural": ("architectural", False),
    "resolved": ("resolved", False),
    "fused": ("fused", False),
    "fused, strict": ("fused", True),
}


def add(commands: Any) -> None:
    """Register the subcommands."""
    text = "Time the engines on a program.\n\nWithout a program: the 64x576x576 projection of `plena demo`."
    examples = ["plena bench", "plena bench kernel.asm --hbm H.bin --json", "plena bench kernel.asm --engine fused"]
    parser = console.add_command(commands, "bench", execute, text, examples)
    _add_program(parser)
    parser.add_argument("--engine", action="append", choices=list(_RUNS), help="may be repeated (default: all)")
    parser.add_argument("--repeats", metavar="N", type=console.whole_number, default=5, help="the fastest counts")
    text = "Say what runs together on the fused engine, and what does not and why."
    examples = ["plena explain", "plena explain kernel.asm --json"]
    explain = console.add_command(commands, "explain", execute_explain, text, examples)
    _add_program(explain)


def _add_program(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("program", nargs="?", help="program: .mem words or assembly text (default: a projection)")
    parser.add_argument("--hbm", metavar="H", help="HBM image: raw bytes from address 0")
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def _job(options: argparse.Namespace) -> tuple[Program, MachineState, MachineConfig, str]:
    config, _ = console.find_settings(options.settings)
    if options.program is None:
        job = random_projection(*_SHAPE, config, 0)
        return job.program, MachineState.from_images(config, job.images), config, "64x576x576 projection"
    images = Images(hbm=console.read_bytes(options.hbm))
    return Program.load(options.program), MachineState.from_images(config, images), config, options.program


def execute(options: argparse.Namespace) -> int:
    """Time each engine; exit status 1 if a strict one ends in another state."""
    program, state, config, name = _job(options)
    rows: list[dict[str, Any]] = []
    ends: dict[str, MachineState] = {}
    for label in options.engine or list(_RUNS):
        row = _timed(label, program, state, config, max(options.repeats, 1), ends)
        rows.append(row)
    reference = next(iter(ends.values()), None)
    for row in rows:
        if row["engine"] in ends and reference is not None:
            row["differing_words"] = _differing(reference, ends[row["engine"]])
    good = all(row.get("differing_words", 0) == 0 for row in rows if row["engine"] != "fused")
    device = jax.devices()[0].device_kind
    if options.json:
        console.print_json({"program": name, "device": device, "engines": rows, "good": good})
        return 0 if good else 1
    table = console.table("engine", "first call", "run", "instructions/s", "differing words", "")
    for row in rows:
        if "reason" in row:
            table.add_row(row["engine"], "", "", "", "", row["reason"])
        else:
            first, seconds = f"{row['first_seconds']:.2f} s", f"{1e3 * row['seconds']:.3f} ms"
            rate = f"{row['instructions_per_second']:,.0f}"
            table.add_row(row["engine"], first, seconds, rate, f"{row['differing_words']:,}", "")
    console.out.print(f"{name}, on {device}")
    console.out.print(table)
    return 0 if good else 1


def _timed(
    label: str,
    program: Program,
    state: MachineState,
    config: MachineConfig,
    repeats: int,
    ends: dict[str, MachineState],
) -> dict[str, Any]:
    engine, strict = _RUNS[label]
    once = lambda: jax.block_until_ready(run(program, state, config, engine=engine, strict=strict))  # type: ignore[arg-type]
    start = time.perf_counter()
    try:
        with console.busy(f"{label}: compiling"):
            prepare(program, state, config, engine=engine)  # type: ignore[arg-type]
            final = once()
    except EngineError as error:
        return {"engine": label, "reason": str(error)}
    first, times = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        final = once()
        times.append(time.perf_counter() - start)
    ends[label] = final
    return {
        "engine": label,
        "instructions": final.instructions,
        "first_seconds": first,
        "seconds": min(times),
        "instructions_per_second": final.instructions / min(times),
    }


def _differing(a: MachineState, b: MachineState) -> int:
    """Words of float memories that differ."""
    bits = lambda leaf: np.asarray(leaf).reshape(-1).view(np.uint8)
    pairs = [(bits(getattr(a, name)), bits(getattr(b, name))) for name in FLOAT_FIELDS]
    return sum(int(np.sum((x != y).reshape(-1, 4 if x.size % 4 == 0 else 1).any(axis=1))) for x, y in pairs)


def execute_explain(options: argparse.Namespace) -> int:
    """Print the report."""
    program, state, config, name = _job(options)
    choice = engine_for(program, state, config)
    if choice.trace is None:
        raise EngineError(f"the fused engine cannot run it: {choice.reason}")
    report = fusion(choice.trace)
    if options.json:
        console.print_json({"program": name, **report.as_dict()})
    else:
        console.out.print(f"{name}; 'auto' takes the {choice.name} engine: {choice.reason}\n{report}")
    return 0
