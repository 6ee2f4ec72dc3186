"""The ``plena`` command: a module for each subcommand, with ``add(subparsers)`` and functions that execute it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from plena_jax.errors import MachineFault, PlenaError

#: Exit status of a program that stopped with a fault, that of the emulator this replaces.
FAULT_STATUS = 101


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    _keep_compiled_code()
    try:
        status: int = options.execute(options)
        sys.stdout.flush()
        return status
    except MachineFault as fault:
        print(f"plena {options.command}: fault: {fault}", file=sys.stderr)
        return FAULT_STATUS
    except (PlenaError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader has gone; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"plena {options.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"plena {options.command}: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    from plena_jax import __version__
    from plena_jax.cli import assembly, bench, compile, demo, isa, map, ops, run, sweep, verify

    top = argparse.ArgumentParser(
        prog="plena",
        description="Emulator of the PLENA accelerator in JAX: bit-exact, fast, differentiable.",
        epilog="examples:\n  plena demo\n  plena run --opcode P.mem --hbm H.bin --fpsram F.bin --dump out\n"
        "  plena sweep --formats mxfp4_e2m1 e4m3\n  plena asm kernel.asm -o kernel.mem\n  plena isa V_ADD_VV\n\n"
        "`plena COMMAND --help` has more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"plena_jax {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (demo, compile, run, bench, verify, sweep, assembly, isa, ops, map):
        module.add(commands)
    return top


def _keep_compiled_code() -> None:
    """Let jax keep what it compiles on disk, so that the next command starts sooner; its own variables win."""
    import jax

    if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
        try:
            caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:
            return  # nobody's home, as in some containers: nowhere to keep it
        jax.config.update("jax_compilation_cache_dir", str(caches / "plena_jax"))
    if os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS") is None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
