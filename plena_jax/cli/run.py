"""``plena run``: a program on memory images, with the files of the Rust emulator."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, get_args

from plena_jax.cli import console
from plena_jax.config import MachineConfig
from plena_jax.files import refuse_to_overwrite, write_atomically
from plena_jax.formats import MXFormat
from plena_jax.isa import SRAM_ENTRIES
from plena_jax.machine.images import Images
from plena_jax.machine.run import Engine, prepare, run
from plena_jax.machine.state import MachineState
from plena_jax.machine.tracing import Executed, trace
from plena_jax.program import Program

#: The dump files, by the field of Images that they hold.
DUMPS = {
    "vram": "vram_dump.bin",
    "mram": "mram_dump.bin",
    "fp_sram": "fpsram_dump.bin",
    "int_sram": "intsram_dump.bin",
    "hbm": "hbm_dump.bin",
}


def add(commands: Any) -> None:
    """Register the subcommand."""
    parser = console.add_command(
        commands,
        "run",
        execute,
        "Run a program on memory images; reads and writes the files of the Rust emulator.\n\n"
        "Exit status 101 if the program stops with a fault; nothing is dumped then.",
        [
            "plena run --opcode P.mem --hbm H.bin --fpsram F.bin --dump out",
            "plena run kernel.asm --settings plena_settings.toml --json",
            "plena run kernel.asm --trace | less",
            "plena run kernel.asm --trace trace.jsonl --max-instructions 1000",
        ],
    )
    parser.set_defaults(refuse=parser.error)
    program = parser.add_mutually_exclusive_group(required=True)
    program.add_argument("program", nargs="?", help="program: .mem words or assembly text (the same as --opcode)")
    program.add_argument("--opcode", metavar="P", help="program")
    parser.add_argument("--hbm", metavar="H", help="HBM image: raw bytes from address 0")
    parser.add_argument("--fpsram", metavar="F", help="FP SRAM image: float16 entries")
    parser.add_argument("--intsram", metavar="I", help="INT SRAM image: 32-bit words")
    parser.add_argument("--vram", metavar="V", help="VRAM image: elements of VECTOR_SRAM_TYPE (BF16)")
    settings = "plena_settings.toml (default: $PLENA_SETTINGS_TOML, ../plena_settings.toml, the published profile)"
    parser.add_argument("--settings", metavar="S", help=settings)
    size = "bytes of HBM, with an optional suffix K, M, G or T; replaces HBM_SIZE"
    parser.add_argument("--hbm-size", metavar="N", type=console.byte_count, help=size)
    parser.add_argument("--dump", metavar="DIR", default=".", help="folder for the dump files (default: this one)")
    parser.add_argument("--no-dump", action="store_true", help="write no dump files")
    parser.add_argument("--engine", choices=get_args(Engine), help="default: auto; --trace has one of its own")
    parser.add_argument("--max-instructions", metavar="N", type=_count, help="stop after so many")
    what = "show executed instructions and what they wrote, as text; as JSON lines into a .jsonl file, or with --json"
    parser.add_argument("--trace", nargs="?", const="-", metavar="FILE", help=what)
    parser.add_argument("--json", action="store_true", help="print the summary, or --trace, as JSON")
    for legacy in ("--log-level", "--log-file"):
        parser.add_argument(legacy, metavar="X", help=argparse.SUPPRESS)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {2**31 - 1}")
    return int(text)


def execute(options: argparse.Namespace) -> int:
    """Run, dump, print the summary."""
    if options.trace is not None and options.engine is not None:
        options.refuse("--trace executes one instruction after the other, on no --engine")
    config, origin = console.find_settings(options.settings)
    if options.hbm_size is not None:
        config = dataclasses.replace(config, hbm_size=options.hbm_size)
    program = Program.load(options.program or options.opcode)
    images = Images(*map(console.read_bytes, (options.hbm, options.fpsram, options.intsram, options.vram)))
    targets = _targets(options, origin)
    state = MachineState.from_images(config, images)
    _log(options, f"Topology mlen={config.mlen} vlen={config.vlen} blen={config.blen} hlen={config.hlen} ({origin})")
    if options.trace is not None:
        final, data = _traced(options, program, state, config)
    else:
        final, data = _timed(options, program, state, config)
    _dump(targets, final, config)
    _log_results(options, data)
    if options.trace == "-":
        return 0  # standard output has the trace, and nothing else
    if options.json:
        console.print_json(data | {"settings": origin, "dumps": [str(path) for path in targets.values()]})
    else:
        console.print_summary(data)
        if targets:
            console.out.print(f"dumps: {', '.join(str(path) for path in targets.values())}")
    return 0


def _targets(options: argparse.Namespace, settings: str) -> dict[str, Path]:
    """The dump files, after a look at everything that is going to be written."""
    inputs = [options.program, options.opcode, options.hbm, options.fpsram, options.intsram, options.vram, settings]
    folder = None if options.no_dump else console.require_folder(options.dump)
    targets = {} if folder is None else {field: folder / name for field, name in DUMPS.items()}
    for target in (options.trace, options.log_file, *targets.values()):
        if target not in (None, "-"):
            refuse_to_overwrite(target, inputs)
    return targets


def _timed(
    options: argparse.Namespace, program: Program, state: MachineState, config: MachineConfig
) -> tuple[MachineState, dict[str, Any]]:
    engine: Engine = options.engine or "auto"
    start = time.perf_counter()
    with console.progress("resolving and compiling") as update:
        choice = prepare(
            program, state, config, engine=engine, max_instructions=options.max_instructions, progress=update
        )
    prepared = time.perf_counter() - start
    start = time.perf_counter()
    with console.progress("running") as update:
        final = run(
            program,
            state,
            config,
            engine=engine,
            max_instructions=options.max_instructions,
            donate=True,
            progress=update,
        )
        final.pc.block_until_ready()
    return final, console.summary(final, time.perf_counter() - start, choice.name, prepared)


def _traced(
    options: argparse.Namespace, program: Program, state: MachineState, config: MachineConfig
) -> tuple[MachineState, dict[str, Any]]:
    start = time.perf_counter()
    to_stdout = options.trace == "-"
    as_json = options.json if to_stdout else options.trace.endswith((".jsonl", ".json"))
    with (
        nullcontext(sys.stdout) if to_stdout else open(options.trace, "w", encoding="utf-8") as stream,
        console.progress("tracing") as update,
    ):
        executed = trace(program, state, config, options.max_instructions)
        for count in itertools.count():
            try:
                one = next(executed)
            except StopIteration as end:
                final: MachineState = end.value
                break
            _write(stream, one, as_json)
            if not to_stdout and count % 1000 == 0:
                update(count)
    return final, console.summary(final, time.perf_counter() - start, "tracing")


def _write(stream: IO[str], one: Executed, as_json: bool) -> None:
    if as_json:
        stream.write(json.dumps(one.as_json()) + "\n")
        return
    effects = "; ".join(effect.describe() for effect in one.effects)
    stream.write(f"{one.tick:8d} {one.pc:7d}  {one.instruction:<36s} {effects}".rstrip() + "\n")


def _dump(targets: dict[str, Path], state: MachineState, config: MachineConfig) -> None:
    if not targets:
        return
    images = state.dump(config)
    sizes = full_sizes(config)
    for field, path in targets.items():
        write_atomically(path, getattr(images, field), sizes[field])


def full_sizes(config: MachineConfig) -> dict[str, int]:
    """Bytes of each dump file: whole memories, whatever part of them a state has allocated."""
    bits = {}
    for name in ("vector_sram_type", "matrix_sram_type"):
        fmt = getattr(config.precision, name)
        bits[name] = (fmt.element if isinstance(fmt, MXFormat) else fmt).bits
    return {
        "vram": config.vector_sram_size * config.vlen * bits["vector_sram_type"] // 8,
        "mram": config.tiles * config.mlen**2 * bits["matrix_sram_type"] // 8,
        "fp_sram": 2 * SRAM_ENTRIES,
        "int_sram": 4 * SRAM_ENTRIES,
        "hbm": config.hbm_size,
    }


def _log_results(options: argparse.Namespace, data: dict[str, Any]) -> None:
    """The lines that tools around the emulator look for; here the latency leaves HBM transfers out."""
    cycles, read, written = (data[k] for k in ("cycles_without_hbm_transfers", "hbm_bytes_read", "hbm_bytes_written"))
    rate = (read + written) / cycles * 1e9 if cycles else 0.0
    _log(options, f"Simulation completed. Latency {cycles:.3f}ns")
    _log(options, f"HBM Statistics - Bytes read: {read} | Bytes written: {written} | Utilization: {rate:e} bytes/sec")


def _log(options: argparse.Namespace, line: str) -> None:
    if options.log_level not in ("off", "error"):
        print(line, file=sys.stderr)
    if options.log_file is not None:
        with open(options.log_file, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
