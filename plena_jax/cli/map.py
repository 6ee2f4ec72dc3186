"""``plena map``: where the tensors of an operator's program are."""

from __future__ import annotations

import argparse
import ast
import re
from typing import Any

from plena_jax.cli import console
from plena_jax.files import refuse_to_overwrite
from plena_jax.lower import Graph, lower, maps
from plena_jax.lower.operators import find
from plena_jax.lower.tensors import OperatorError, Shape


def add(commands: Any) -> None:
    """Register the subcommand."""
    text = "Show where the tensors of an operator's program are, and when: a table, JSON, or a picture."
    examples = [
        "plena map linear x=64x576 w=576x1536",
        "plena map gated_ffn x=64x576 gate=576x1536 up=576x1536 down=1536x576 --plot map.png",
        "plena map softmax x=64x64 scale=0.125 --json",
    ]
    parser = console.add_command(commands, "map", execute, text, examples)
    parser.add_argument("operator", metavar="OPERATOR", help="as `plena ops` lists them")
    help_text = "shape of a tensor as ROWSxCOLUMNS, or the value of an attribute"
    parser.add_argument("arguments", nargs="+", metavar="NAME=VALUE", help=help_text)
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--no-spill", action="store_true", help="an error instead of moving tensors to HBM")
    parser.add_argument("--plot", metavar="FILE", help="draw it (PNG, PDF, SVG; needs matplotlib)")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(usage_error=parser.error)


def execute(options: argparse.Namespace) -> int:
    """Plan and print; exit status 2 if what is asked makes no sense."""
    config, _ = console.find_settings(options.settings)
    if options.plot is not None:
        refuse_to_overwrite(options.plot, [options.settings])
    try:
        operator, given = find(options.operator), dict(_argument(text) for text in options.arguments)
        shapes = {name: given.pop(name) for name in operator.tensors if name in given}
        g = Graph.single(operator.name, shapes, given, config)
    except OperatorError as error:
        options.usage_error(str(error))
    lowered = lower(g, spill=not options.no_spill)
    if options.plot is not None:
        maps.plot(lowered.graph, lowered.plan, options.plot)
    if options.json:
        console.print_json(maps.as_json(lowered.graph, lowered.plan) | {"words": len(lowered.program)})
        return 0
    console.out.print(maps.table(lowered.graph, lowered.plan))
    console.out.print(f"\n{len(lowered.program):,} words" + (f"; plot: {options.plot}" if options.plot else ""))
    return 0


def _argument(text: str) -> tuple[str, Shape | Any]:
    """``x=64x576`` or ``scale=0.5``."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise OperatorError(f"argument {text!r}; expected NAME=ROWSxCOLUMNS or NAME=VALUE")
    shape = re.fullmatch(r"(\d+)x(\d+)", value)
    if shape:
        return name, (int(shape[1]), int(shape[2]))
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
