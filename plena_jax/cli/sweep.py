"""``plena sweep``: what number formats cost in each place of the machine."""

from __future__ import annotations

import argparse
import time
from typing import Any

from plena_jax.cli import console
from plena_jax.errors import ConfigError, FormatError
from plena_jax.files import refuse_to_overwrite
from plena_jax.formats import NAMES, named
from plena_jax.precision import BLOCKS, PLACES, RULES, Sweep, Workload, sweep

SHAPE = (16, 128, 128)


def add(commands: Any) -> None:
    """Register the subcommand."""
    parser = console.add_command(
        commands,
        "sweep",
        execute,
        "Try number formats in each place of the machine, on a projection of normal operands.\n\n"
        "Each format is tried in one place at a time, everything else in float32. Compiles once for each block size.",
        [
            "plena sweep",
            "plena sweep --formats mxfp4_e2m1 mxint4 e3m2 --places weights activations --blocks 8 16 32 64",
            "plena sweep --shape 64 576 576 --formats e4m1 e4m2 e4m3 e4m4 --plot mantissa.png",
            "plena sweep --together --json > sweep.json",
        ],
    )
    rows, k, n = SHAPE
    shape = f"activations [ROWS, K] times weights [K, N] (default: {rows} {k} {n})"
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE, metavar=("ROWS", "K", "N"), help=shape)
    text = "names of ml_dtypes, eXmY, intN, MX formats (default: all that have a name)"
    parser.add_argument("--formats", nargs="+", type=_name, metavar="F", default=list(NAMES), help=text)
    text = "where to try them (default: wherever the projection has use for them)"
    parser.add_argument("--places", nargs="+", choices=PLACES, help=text)
    text = f"block sizes of MX formats (default: those of {', '.join(map(str, BLOCKS))} that divide MLEN)"
    parser.add_argument("--blocks", nargs="+", type=int, metavar="N", help=text)
    parser.add_argument("--rule", choices=RULES, default="floor", help="scale rule of MX formats (default: floor)")
    parser.add_argument("--together", action="store_true", help="each format in all places of HBM at once, too")
    parser.add_argument("--seed", type=console.whole_number, default=0, help="of the random operands (default: 0)")
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--plot", metavar="FILE", help="draw it too (PNG, PDF, SVG; needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(usage_error=parser.error)


def _name(text: str) -> str:
    """A format name that exists."""
    try:
        named(text)
    except FormatError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def execute(options: argparse.Namespace) -> int:
    """Sweep and report; exit status 2 if what is asked makes no sense."""
    config, origin = console.find_settings(options.settings)
    if options.plot is not None:
        refuse_to_overwrite(options.plot, [options.settings])
    rows, k, n = options.shape
    start = time.perf_counter()
    try:
        workload = Workload.projection(rows, k, n, config, options.seed)
        with console.progress("compiling and running", "formats") as update:
            found = sweep(
                workload,
                options.formats,
                options.places,
                options.blocks,
                options.rule,
                options.together,
                progress=update,
            )
    except (FormatError, ConfigError) as error:
        options.usage_error(str(error))
    seconds = time.perf_counter() - start
    if options.plot is not None:
        found.plot(options.plot)
    if options.json:
        about = {"shape": list(options.shape), "settings": origin, "seed": options.seed, "seconds": seconds}
        console.print_json(about | found.as_json())
    else:
        _print(options, found, origin, seconds)
    return 0


def _print(options: argparse.Namespace, found: Sweep, origin: str, seconds: float) -> None:
    rows, k, n = options.shape
    console.out.print(
        f"{rows}x{k} activations x {k}x{n} weights on {origin}; each format in one place, the rest float32\n"
    )
    console.out.print(found.table())
    for reason, names in _skipped(found).items():
        console.out.print(f"\nskipped {names}: {reason}")
    if options.plot is not None:
        console.out.print(f"\nplot: {options.plot}")
    console.out.print(f"\n{len(found.entries)} runs in {seconds:.1f} s, compilation included")


def _skipped(found: Sweep) -> dict[str, str]:
    """What was skipped for each reason: places, and formats in them."""
    reasons: dict[str, dict[str, dict[str, None]]] = {}
    for one in found.skipped:
        formats = reasons.setdefault(one.reason, {}).setdefault(one.place, {})
        formats |= {} if one.format is None else {one.format: None}
    named = lambda place, formats: f"in {place} {', '.join(formats)}" if formats else place
    return {reason: "; ".join(named(*pair) for pair in places.items()) for reason, places in reasons.items()}
