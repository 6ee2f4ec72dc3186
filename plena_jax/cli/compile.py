"""``plena compile``: a function or module from somebody's Python file as a program of the machine."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from plena_jax.cli import console
from plena_jax.errors import PlenaError
from plena_jax.frontend.compile import Explanation
from plena_jax.frontend.passes import passes


class TargetError(PlenaError, ValueError):
    """A target on the command line that is not there: names what was looked for."""


def add(commands: Any) -> None:
    """Register the subcommand."""
    text = (
        "Compile a JAX function or a PyTorch module, run it on the machine, and compare with its two goldens.\n\n"
        "Arguments are made of normal random numbers (--seed). Exit status 1 if the machine leaves its golden result,\n"
        "or something has no lowering."
    )
    examples = [
        "plena compile model.py:layer --args 64x576 576x1536",
        "plena compile package.module:Block --args 1x64x576 --profile",
        "plena compile model.py:layer --args 64x576 576x1536 --explain",
        "plena compile model.py:embed --args 1000x64 8:int32 --save out --json",
    ]
    parser = console.add_command(commands, "compile", execute, text, examples)
    what = "FILE.py:NAME or MODULE:NAME of a function of arrays, a torch.nn.Module, or a class of one without arguments"
    parser.add_argument("target", metavar="TARGET", help=what)
    shape = "shape and optionally type of each argument: 4x64, 8:int32, or - for a scalar"
    parser.add_argument("--args", nargs="*", default=[], metavar="SHAPE", help=shape)
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--seed", type=console.whole_number, default=0, help="of the random arguments (default: 0)")
    where = "where inputs of the vector unit are at the start (default: hbm, in the format of activations)"
    parser.add_argument("--vectors", choices=("hbm", "vram"), default="hbm", help=where)
    names = ", ".join(passes())
    parser.add_argument("--disable", nargs="*", default=[], metavar="PASS", help=f"fusions to leave out: {names}")
    parser.add_argument("--explain", action="store_true", help="say what becomes of each operation, and run nothing")
    parser.add_argument("--sections", action="store_true", help="compare section by section")
    parser.add_argument("--profile", action="store_true", help="instructions and cycles by section")
    parser.add_argument("--save", metavar="DIR", help="write program, memory images and a manifest")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(usage_error=parser.error)


def execute(options: argparse.Namespace) -> int:
    """Compile, run, compare, print."""
    config, origin = console.find_settings(options.settings)
    target, arguments = find(options.target), _arguments(options)
    compile_, explain_, wrapped = _front_end(target)
    keywords = {"config": config, "vectors": options.vectors, "disabled": tuple(options.disable)}
    if options.explain:
        return _explain(options, explain_(target, *wrapped(arguments), **keywords))
    start = time.perf_counter()
    with console.busy("compiling"):
        program = compile_(target, *wrapped(arguments), **keywords)
    compiled = time.perf_counter() - start
    with console.busy("running on the machine (compiling it takes seconds the first time)"):
        report = program.check(*wrapped(arguments))
    if options.save is not None:
        program.save(options.save, *wrapped(arguments))
    profile = program.profile() if options.profile else None
    cost = program.cost
    if options.json:
        data = {"settings": origin, "words": len(program.program), "instructions": cost.instructions}
        data |= {"cycles_without_hbm_transfers": cost.cycles, "hbm_bytes_read": cost.read}
        data |= {"hbm_bytes_written": cost.written, "seconds_to_compile": compiled, "report": report.as_json()}
        console.print_json(data | ({"profile": profile.as_json()} if profile else {}))
        return 0 if report.good else 1
    print_result(program, report, compiled, options.sections)
    if profile is not None:
        console.out.print(profile.table())
    if options.save is not None:
        console.out.print(f"saved in {options.save}")
    return 0 if report.good else 1


def print_result(program: Any, report: Any, seconds: float, sections: bool) -> None:
    """What there is to say about a compiled program and its check."""
    cost = program.cost
    words = len(getattr(program.program, "program", program.program))
    console.out.print(
        f"compiled in {seconds:.2f} s: {words:,} words, {cost.instructions:,} instructions executed, {cost.cycles:,} "
        f"cycles without HBM transfers; HBM: {cost.read:,} bytes read, {cost.written:,} written"
    )
    if sections:
        console.out.print(report.table())
    table = console.table("\nmachine against", "differing", "relative L2", "cosine", "largest error")
    for name, d in (("its rounded reference", report.machine), ("the original in float32", report.original)):
        table.add_row(
            name, f"{d.differing:,} of {d.elements:,}", f"{d.relative_l2:.3g}", f"{d.cosine:.6f}", f"{d.largest:.3g}"
        )
    console.out.print(table)
    console.out.print(f"\n{report}")


def _explain(options: argparse.Namespace, explanation: Explanation) -> int:
    if options.json:
        keys = ("operation", "shapes", "operators", "source")
        operations = [dict(zip(keys, row, strict=True)) for row in explanation.operations]
        console.print_json({"operations": operations, "problems": [vars(p) for p in explanation.problems]})
    else:
        table = console.table("operation", "operands", "becomes", "source", left=4)
        for row in explanation.operations:
            table.add_row(*row)
        console.out.print(table)
        for problem in explanation.problems:
            console.out.print(f"not supported: {problem}")
    return 0 if explanation.supported else 1


# -- targets and arguments --------------------------------------------------------------------------------------------


def find(text: str) -> Any:
    """What ``FILE.py:NAME`` or ``MODULE:NAME`` names.

    Raises:
        TargetError: it is not there.
    """
    where, separator, name = text.rpartition(":")
    if not separator or not name:
        raise TargetError(f"{text!r}: expected FILE.py:NAME or MODULE:NAME")
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise TargetError(f"{where}: no such file")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        sys.path.insert(0, str(path.parent.resolve()))
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, str(Path.cwd()))
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise TargetError(f"{where}: {error}") from None
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise TargetError(f"{where} has no {name}")
        found = getattr(found, part)
    return found


def _front_end(target: Any) -> tuple[Any, Any, Any]:
    """The functions that compile and explain, and what makes arguments for them of arrays."""
    torch = sys.modules.get("torch")
    if torch is not None:
        module = target() if isinstance(target, type) and issubclass(target, torch.nn.Module) else target
        if isinstance(module, torch.nn.Module):
            from plena_jax.bridges.torch import compile, explain

            tensors = lambda arrays: [torch.from_numpy(a) for a in arrays]
            of = lambda function: lambda _, *a, **k: function(module, *a, **k)
            return of(compile), of(explain), tensors
    if not callable(target):
        raise TargetError(f"{target!r} is neither a function nor a module")
    from plena_jax.frontend.compile import compile as of_function
    from plena_jax.frontend.compile import explain as explain_function

    return of_function, explain_function, list


def _arguments(options: argparse.Namespace) -> list[np.ndarray]:
    random, made = np.random.default_rng(options.seed), []
    for text in options.args:
        shape, _, kind = text.partition(":")
        if not re.fullmatch(r"-|\d+(x\d+)*", shape) or kind not in ("", "float32", "int32", "bool"):
            options.usage_error(f"argument {text!r}: expected a shape as 4x64 or -, with :int32 or :bool if it is one")
        size = () if shape == "-" else tuple(int(n) for n in shape.split("x"))
        x = random.normal(size=size)
        if kind == "int32":
            made.append(random.integers(0, 8, size).astype(np.int32))
        else:
            made.append(np.asarray(x > 0 if kind == "bool" else x, bool if kind == "bool" else np.float32))
    return made
