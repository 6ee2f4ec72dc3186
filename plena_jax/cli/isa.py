"""``plena isa``: the instruction reference, from the instruction table."""

from __future__ import annotations

import argparse
from typing import Any

from plena_jax.cli import console
from plena_jax.config import MachineConfig
from plena_jax.errors import PlenaError
from plena_jax.isa import INSTRUCTIONS, Instruction, Kind, Unit


def add(commands: Any) -> None:
    """Register the subcommand."""
    text = "Print the instruction reference."
    examples = ["plena isa", "plena isa V_ADD_VV M_MM", "plena isa --unit matrix", "plena isa --markdown > isa.md"]
    parser = console.add_command(commands, "isa", execute, text, examples)
    parser.add_argument("mnemonics", nargs="*", metavar="MNEMONIC", help="only these, with every operand")
    parser.add_argument("--unit", choices=[unit.value for unit in Unit], help="only those of one functional unit")
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml that cycles are for")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print as JSON")
    forms.add_argument("--markdown", action="store_true", help="print as a Markdown page")


def execute(options: argparse.Namespace) -> int:
    """Print it."""
    entries = [e for e in INSTRUCTIONS if options.unit in (None, e.unit.value)]
    wanted = [name.upper() for name in options.mnemonics]
    unknown = set(wanted) - {e.mnemonic for e in entries}
    if unknown:
        raise PlenaError(f"no instruction {', '.join(sorted(unknown))}; `plena isa` lists all")
    if wanted:
        entries = [e for e in entries if e.mnemonic in wanted]
    config = console.find_settings(options.settings)[0] if options.settings else MachineConfig()
    if options.json:
        console.print_json([describe(entry, config) for entry in entries])
    elif options.markdown:
        print(markdown(entries, config), end="")
    elif wanted:
        for entry in entries:
            _print_one(entry, config)
    else:
        _print_all(entries, config)
    return 0


def _cycles(entry: Instruction, config: MachineConfig) -> str:
    counts = {entry.cycles(config, rs3) for rs3 in (0, 1)}
    return " or ".join(str(count) for count in sorted(counts))


def _note(entry: Instruction) -> str:
    return "; with destination f0 nothing happens, in 0 cycles" if entry.ignores_rd_0 else ""


def _operand_rows(entry: Instruction) -> list[dict[str, Any]]:
    rows = []
    for operand in entry.operands:
        address = operand.address
        low, width = operand.field.value
        rows.append(
            {
                "operand": operand.kind.value + operand.name,
                "field": operand.field.name.lower(),
                "bits": f"{low + width - 1}:{low}",
                "allowed": f"0..{operand.most}",
                "optional": operand.default is not None,
                "addresses": address.space.value if address else "",
                "rule": address.rule if address else "",
            }
        )
    return rows


def describe(entry: Instruction, config: MachineConfig) -> dict[str, Any]:
    """One instruction as plain data."""
    return {
        "mnemonic": entry.mnemonic,
        "opcode": entry.opcode,
        "unit": entry.unit.value,
        "syntax": entry.syntax,
        "cycles": _cycles(entry, config),
        "doc": entry.doc + _note(entry),
        "operands": _operand_rows(entry),
    }


def _print_all(entries: list[Instruction], config: MachineConfig) -> None:
    for unit in Unit:
        here = [entry for entry in entries if entry.unit is unit]
        if not here:
            continue
        rows = console.table("code", "syntax", "cycles", "", title=f"\n{unit.value} unit", left=2)
        for entry in here:
            rows.add_row(f"{entry.opcode:02X}", entry.syntax, _cycles(entry, config), entry.doc)
        rows.columns[3].justify = "left"
        console.out.print(rows)
    console.out.print(
        "\nRegisters: gp0..gp15, f0..f7, a0..a15. H_* instructions also take the time of their transfers."
    )


def _print_one(entry: Instruction, config: MachineConfig) -> None:
    console.out.print(f"{entry.syntax}\n  {entry.doc}{_note(entry)}")
    console.out.print(f"  opcode 0x{entry.opcode:02X}, {entry.unit.value} unit, {_cycles(entry, config)} cycles")
    rows = console.table("operand", "field", "bits", "allowed", "addresses", left=6)
    for row in _operand_rows(entry):
        address = f"{row['addresses']}: {row['rule']}".rstrip(": ")
        optional = " (optional)" if row["optional"] else ""
        rows.add_row(f"  {row['operand']}{optional}", row["field"], row["bits"], row["allowed"], address)
    console.out.print(rows)


def markdown(entries: list[Instruction], config: MachineConfig) -> str:
    """The reference page."""
    lines = ["# Instructions", "", "Made by `plena isa --markdown`; cycles are those of the published profile.", ""]
    lines += [
        "Bits of a word that no field of its instruction uses are ignored. Fields: opcode 5:0, rd 9:6, rs1 13:10,"
    ]
    lines += ["rs2 17:14, rs3 21:18, funct1 25:22, imm18 31:14, imm22 31:10.", ""]
    for unit in Unit:
        here = [entry for entry in entries if entry.unit is unit]
        if not here:
            continue
        lines += [f"## {unit.value.capitalize()} unit", "", "| code | syntax | fields | cycles | effect |"]
        lines += ["|---|---|---|---|---|"]
        for entry in here:
            fields = ", ".join(
                f"{'' if o.kind is Kind.NUMBER else o.kind.value}{o.name}: {o.field.name.lower()}"
                for o in entry.operands
            )
            doc = (entry.doc + _note(entry)).replace("|", "\\|").replace("*", "\\*")
            cycles = _cycles(entry, config)
            lines.append(f"| {entry.opcode:02X} | `{entry.syntax}` | {fields} | {cycles} | {doc} |")
        lines.append("")
    return "\n".join(lines)
