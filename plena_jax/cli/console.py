"""What the subcommands share: help with examples, tables, progress, reading of programs and settings."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plena_jax.config import MachineConfig
from plena_jax.errors import ImageError
from plena_jax.machine.state import MachineState

#: Columns that tables may take where nobody's terminal says.
_WIDTH = 160
out = Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDTH)
err = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
#: Nothing is said about what takes less.
_PATIENCE = 2.0


def add_command(
    commands: Any, name: str, execute: Callable[[argparse.Namespace], int], text: str, examples: list[str]
) -> argparse.ArgumentParser:
    """A subparser with a description and examples in its help."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text.splitlines()[0],
        description=text,
        epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(execute=execute)
    return parser


def table(*columns: str, title: str | None = None, left: int = 1) -> Table:
    """A table whose first ``left`` columns are text and the others numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index < left else "right", overflow="fold")
    return made


def print_json(value: Any) -> None:
    """Plain JSON on standard output."""
    print(json.dumps(value, indent=1))


@contextmanager
def progress(what: str, unit: str = "instructions") -> Iterator[Callable[[int], None]]:
    """Show ``what`` and a count of ``unit`` on standard error once it takes more than two seconds.

    Yields the function to call with the count.
    """
    status = err.status(what)
    # A timer: a long step may come before the first count.
    timer = threading.Timer(_PATIENCE, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield lambda count: status.update(f"{what}: {count:,} {unit}")
    finally:
        timer.cancel()
        timer.join()
        status.stop()


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Show ``what`` with a spinner on standard error, if that is a terminal."""
    with err.status(what):
        yield


def read_bytes(path: str | None) -> bytes:
    """The content of a file, nothing for None."""
    return Path(path).read_bytes() if path is not None else b""


def find_settings(path: str | None) -> tuple[MachineConfig, str]:
    """The configuration, and where it is from.

    As the emulator does: the path given, else the environment variable PLENA_SETTINGS_TOML, else plena_settings.toml in
    the parent of the current directory. A file that is named but cannot be used is an error, never silently replaced.
    """
    default = Path.cwd().parent / "plena_settings.toml"
    chosen = path or os.environ.get("PLENA_SETTINGS_TOML") or (str(default) if default.is_file() else None)
    if chosen is None:
        return MachineConfig(), "the published transactional profile"
    # Head slots that do not fill a row are no error before an instruction uses them.
    return MachineConfig.from_toml(Path(chosen), partial_heads=True), chosen


def whole_number(text: str) -> int:
    """A number that is not negative."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def byte_count(text: str) -> int:
    """A number of bytes with an optional suffix K, M, G or T (powers of 1024, any case, "B" or "iB" may follow)."""
    body = text.strip().lower().removesuffix("b").removesuffix("i")
    powers = {"k": 10, "m": 20, "g": 30, "t": 40}
    digits, shift = (body[:-1], powers[body[-1]]) if body and body[-1] in powers else (body, 0)
    if not (digits.isascii() and digits.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 65536, 64K or 16GiB")
    return int(digits) << shift


def summary(state: MachineState, seconds: float, engine: str, prepared: float | None = None) -> dict[str, Any]:
    """What there is to say about a run, as plain data; times in seconds, ``prepared`` being that before the run."""
    read, written = state.hbm_traffic
    return {
        "engine": engine,
        "instructions": state.instructions,
        "instructions_by_unit": state.instructions_by_unit,
        "seconds": seconds,
        "instructions_per_second": state.instructions / seconds,
        **({} if prepared is None else {"seconds_to_resolve_and_compile": prepared}),
        "cycles_without_hbm_transfers": state.latency_cycles,
        "hbm_bytes_read": read,
        "hbm_bytes_written": written,
    }


def print_summary(data: dict[str, Any]) -> None:
    """The same for people."""
    rows = table("unit", "instructions", "share")
    total = max(data["instructions"], 1)
    for unit, count in data["instructions_by_unit"].items():
        rows.add_row(unit, f"{count:,}", f"{100 * count / total:.1f} %")
    rows.add_row("all", f"{data['instructions']:,}", "")
    out.print(rows)
    before = data.get("seconds_to_resolve_and_compile")
    out.print(
        f"{data['seconds']:.4g} s on the {data['engine']} engine, "
        f"{data['instructions_per_second']:,.0f} instructions/s"
        + ("" if before is None else f" (resolving and compiling before that: {before:.2f} s)")
    )
    out.print(
        f"{data['cycles_without_hbm_transfers']:,} cycles without HBM transfers; HBM: {data['hbm_bytes_read']:,} bytes "
        f"read, {data['hbm_bytes_written']:,} written"
    )


def require_folder(path: str) -> Path:
    """The folder, made if it does not exist."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ImageError(f"{path}: not a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
