"""``plena demo``: a tiled projection on the machine, checked against two golden results."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from plena_jax.cli import console
from plena_jax.machine.run import prepare, run
from plena_jax.machine.state import MachineState
from plena_jax.projection import Projection, random_projection

SHAPE = (64, 576, 576)
#: Runs, of which the fastest counts.
_REPEATS = 5


def add(commands: Any) -> None:
    """Register the subcommand."""
    rows, k, n = SHAPE
    text = (
        f"Multiply a {rows}x{k} activation with a {k}x{n} MXFP8 weight on the emulated machine.\n\n"
        "Checks the result against a matmul with the machine's roundings and against a float32 matmul."
    )
    parser = console.add_command(commands, "demo", execute, text, ["plena demo", "plena demo --json"])
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--seed", type=console.whole_number, default=0, help="of the random operands (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def execute(options: argparse.Namespace) -> int:
    """Run it; exit status 1 if the machine leaves its golden result."""
    config, origin = console.find_settings(options.settings)
    job = random_projection(*SHAPE, config, options.seed)
    state = MachineState.from_images(config, job.images)
    start = time.perf_counter()
    with console.busy("resolving and compiling (a few seconds the first time)"):
        engine = prepare(job.program, state, config).name
    prepared = time.perf_counter() - start
    seconds = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        final = run(job.program, state, config)
        final.vram.block_until_ready()
        seconds = min(seconds, time.perf_counter() - start)
    report = {
        "shape": list(SHAPE),
        "settings": origin,
        "program_words": len(job.program),
        **console.summary(final, seconds, engine, prepared),
        **_distances(job, job.result(np.asarray(final.vram))),
    }
    good = report["against_rounded"]["differing"] == 0
    if options.json:
        console.print_json(report | {"good": good})
    else:
        _print(report, good)
    return 0 if good else 1


def _distances(job: Projection, result: np.ndarray) -> dict[str, Any]:
    golden, exact = job.rounded(), job.exact()
    # What a result that has nothing to do with the operands would score: the checks below must not let it pass.
    control = np.roll(result, job.config.mlen, axis=1)
    return {
        "against_rounded": _distance(result, golden),
        "against_float32": _distance(result, exact),
        "permuted_against_float32": _distance(control, exact),
    }


def _distance(result: np.ndarray, golden: np.ndarray) -> dict[str, Any]:
    a, b = result.astype(np.float64), golden.astype(np.float64)
    return {
        "differing": int(np.sum(result.view(np.uint32) != golden.view(np.uint32))),
        "words": result.size,
        "relative_l2": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
        "cosine": float(np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))),
        "max_error": float(np.abs(a - b).max()),
    }


def _print(report: dict[str, Any], good: bool) -> None:
    rows, k, n = report["shape"]
    console.out.print(f"{rows}x{k} activation x {k}x{n} weight, both MXFP8 in HBM, on {report['settings']}")
    console.out.print(f"{report['program_words']} words, {report['instructions']:,} instructions executed\n")
    console.print_summary(report)
    table = console.table("\nresult against", "differing words", "relative L2", "cosine", "largest error")
    for name, key in (
        ("matmul with the machine's roundings", "against_rounded"),
        ("float32 matmul of the same operands", "against_float32"),
        ("the same, tiles permuted (must be bad)", "permuted_against_float32"),
    ):
        d = report[key]
        words = f"{d['differing']:,} of {d['words']:,}" if key == "against_rounded" else ""
        table.add_row(name, words, f"{d['relative_l2']:.3g}", f"{d['cosine']:.6f}", f"{d['max_error']:.3g}")
    console.out.print(table)
    verdict = "bit-exact" if good else "THE MACHINE LEAVES ITS GOLDEN RESULT"
    console.out.print(f"\n{verdict}; the distance to float32 is what MXFP8 and BF16 cost")
