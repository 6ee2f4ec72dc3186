"""``plena asm`` and ``plena disasm``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from plena_jax.assembler import assemble
from plena_jax.cli.console import add_command
from plena_jax.errors import ProgramError
from plena_jax.files import refuse_to_overwrite, write_atomically
from plena_jax.program import Program


def add(commands: Any) -> None:
    """Register both."""
    text = "Assemble text to machine words (.mem: one hexadecimal word a line)."
    asm = add_command(commands, "asm", _asm, text, ["plena asm kernel.asm -o kernel.mem", "plena asm - < kernel.asm"])
    asm.add_argument("source", help="assembly file, - for standard input")
    text = "Disassemble machine words; assembling the text again gives the same words."
    examples = ["plena disasm kernel.mem", "plena disasm kernel.mem --addresses | less"]
    disasm = add_command(commands, "disasm", _disasm, text, examples)
    disasm.add_argument("source", help=".mem file, - for standard input")
    disasm.add_argument("--addresses", action="store_true", help="show pc and word as a comment behind each line")
    for parser in (asm, disasm):
        parser.add_argument("-o", "--output", metavar="FILE", help="write here instead of standard output")


def _read(source: str) -> tuple[str, str]:
    data, name = (sys.stdin.buffer.read(), "<stdin>") if source == "-" else (Path(source).read_bytes(), source)
    try:
        return data.decode("utf-8-sig"), name
    except UnicodeDecodeError as error:
        raise ProgramError(f"{name}: not text: {error}") from None


def _asm(options: argparse.Namespace) -> int:
    return _write(options, assemble(*_read(options.source)).to_mem())


def _disasm(options: argparse.Namespace) -> int:
    program = Program.from_mem(*_read(options.source))
    lines = program.disassemble()
    if options.addresses:
        words = program.words.tolist()
        lines = [
            f"{line:<40s} ; {pc:6d}  0x{word:08X}" for pc, (line, word) in enumerate(zip(lines, words, strict=True))
        ]
    return _write(options, "".join(f"{line}\n" for line in lines))


def _write(options: argparse.Namespace, text: str) -> int:
    if options.output is None:
        sys.stdout.write(text)
    else:
        refuse_to_overwrite(options.output, [options.source])
        write_atomically(options.output, text.encode())
    return 0
