"""``torch.export`` of a module, with the operators that there are rules for left whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram

from plena_jax.errors import Problem, UnsupportedOperation

from .flatten import Flattener
from .graph import Graph, Reference, Value
from .registry import Refused, rules
from .simplify import simplified
from .tensors import to_numpy, too_wide, value_of

_HELP = {
    "data-dependent": "the control flow or a shape depends on the values of tensors: compute both sides and choose "
    "with torch.where, or make the number a Python argument",
    "dynamo": "TorchDynamo cannot trace this Python code; try strict=False",
}


@dataclass
class Converted:
    """An exported program as steps.

    Attributes:
        graph: its outputs are those of the module, then the new values of what is mutated.
        parameters: parameters, buffers and lifted constants; names of tied ones are in ``aliases``.
        constants: names of those that are neither parameters nor mutated.
        bound: the argument of the graph for each of ``parameters``.
        inputs: in order; ``arguments`` are their arguments of the graph.
        outputs: names, shapes, types.
        mutated: buffers and inputs whose new values follow the outputs.
        problems: what is not supported.
    """

    graph: Graph
    parameters: dict[str, Any] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    bound: dict[str, list[str]] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    mutated: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in eval mode, and back; without the warnings that torch gives about itself."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def export(module: Any, inputs: tuple[Any, ...], keywords: Mapping[str, Any], strict: bool) -> ExportedProgram:
    """The exported program of a module in eval mode.

    Raises:
        UnsupportedOperation: torch cannot export it.
    """
    if isinstance(module, ExportedProgram):
        if inputs or keywords:
            raise TypeError("an ExportedProgram has its example inputs already")
        return module
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"expected a torch.nn.Module or ExportedProgram, got {type(module).__name__}")
    with _evaluating(module):
        try:
            return torch.export.export(module, inputs, dict(keywords), strict=strict)
        except Exception as error:
            raise UnsupportedOperation([_failure(module, error)]) from error


def _failure(module: Any, error: Exception) -> Problem:
    kind, text = type(error).__name__, str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    hints = []
    if "DataDependent" in kind or "data-dependent" in text or "unbacked" in text.lower():
        hints.append(_HELP["data-dependent"])
    if "dynamo" in type(error).__module__:
        hints.append(_HELP["dynamo"])
    hints.append("run the module on the same inputs to see whether the error is its own" if not hints else "")
    reason = f"torch.export failed with {kind}: {lines[0] if lines else ''}; {'; '.join(h for h in hints if h)}"
    source = next((line for line in reversed(lines) if line.startswith('File "') and "/torch/" not in line), "")
    return Problem(f"torch.export of {type(module).__name__}", reason, "", source)


def _decomposed(program: ExportedProgram, keep: bool) -> ExportedProgram:
    """The program as functions without side effects, of simpler operators: all, or those that have no rule."""
    table: Any = None
    if keep:
        known = rules()
        table = {op: f for op, f in torch.export.default_decompositions().items() if str(op) not in known}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return program.run_decompositions(table)


def convert(program: ExportedProgram, decompose: bool) -> tuple[ExportedProgram, Converted]:
    """Steps of a program; decomposed as far as asked for, or as is needed."""
    from .check import check, missing

    if decompose:
        program = _decomposed(program, keep=False)
    converted, flattener = _flattened(program)
    if flattener.mutating or missing(converted.graph):
        try:
            program = _decomposed(program, keep=True)
        except Exception as error:
            converted.problems.append(
                Problem("run_decompositions", f"torch cannot make the graph functional: {str(error).splitlines()[0]}")
            )
        else:
            converted, flattener = _flattened(program)
    converted.problems += flattener.problems + check(converted.graph, flattener.values)
    return program, converted


def _flattened(program: ExportedProgram) -> tuple[Converted, Flattener]:
    """Steps of a program as it is."""
    flattener = Flattener()
    converted = Converted(Graph((), {}, ()))
    signature = program.graph_signature
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    mutated = set(signature.buffers_to_mutate.values()) | set(getattr(signature, "parameters_to_mutate", {}).values())
    tensors = _Tensors(program, mutated)
    operands = []
    for node, spec in zip(placeholders, signature.input_specs, strict=True):
        if spec.kind.name == "USER_INPUT":
            operands.append(_input(converted, flattener, node, spec))
        elif spec.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            operands.append(_parameter(converted, flattener, node.name, spec, tensors))
        else:
            converted.problems.append(Problem(node.name, f"an argument of kind {spec.kind.name}"))
            operands.append(None)
    results = flattener.walk(program.graph_module, operands)
    _outputs(converted, flattener, signature, results)
    return converted, flattener


class _Tensors:
    """Parameters, buffers and constants by name, tied ones once."""

    def __init__(self, program: ExportedProgram, mutated: set[str]) -> None:
        self._program, self.mutated = program, mutated
        self._first: dict[tuple[Any, ...], str] = {}

    def find(self, name: str) -> tuple[Any, str]:
        """The tensor, and the first name that it has."""
        tensor = self._program.state_dict.get(name)
        tensor = self._program.constants[name] if tensor is None else tensor
        if tensor.device.type == "meta":
            return tensor, name
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        return tensor, self._first.setdefault(key, name) if tensor.numel() else name


def _parameter(converted: Converted, flattener: Flattener, argument: str, spec: Any, tensors: _Tensors) -> Any:
    tensor, name = tensors.find(spec.target)
    reason = too_wide(tensor.dtype)
    # A constant in double precision is used in what torch evaluates; what comes of it counts.
    constant = spec.kind.name != "PARAMETER" and name not in tensors.mutated
    if name != spec.target:
        converted.aliases[spec.target] = name
    elif reason and not constant:
        converted.problems.append(Problem(name, reason, source="a parameter of the module"))
    elif not tensor.is_complex():
        try:
            converted.parameters[name] = to_numpy(tensor)
        except Refused as refused:
            converted.problems.append(Problem(name, str(refused)))
    if constant and name == spec.target and name in converted.parameters:
        converted.constants.append(name)
    converted.bound.setdefault(name, []).append(argument)
    return flattener.argument(argument, tensor if constant else None, value_of(name, tensor))


def _input(converted: Converted, flattener: Flattener, node: Any, spec: Any) -> Any:
    tensor = node.meta.get("val")
    converted.arguments.append(node.name)
    if not isinstance(tensor, torch.Tensor):
        constant = getattr(spec.arg, "value", None)
        converted.inputs.append(Value(node.name, constant=constant))
        return constant
    try:
        value = value_of(node.name, tensor)
        reason = too_wide(tensor.dtype)
    except Refused as refused:
        value, reason = Value(node.name, exact=False), str(refused)
    if reason:
        converted.problems.append(Problem(f"input {node.name}", reason))
    converted.inputs.append(value)
    return flattener.argument(node.name, None, value)


def _outputs(converted: Converted, flattener: Flattener, signature: Any, results: tuple[Any, ...]) -> None:
    """Sort the results of a graph into outputs and new values."""
    outputs, states = [], []
    for spec, result in zip(signature.output_specs, results, strict=True):
        kind = spec.kind.name
        if kind == "USER_OUTPUT":
            outputs.append(result)
            value = Value("", constant=result)
            if isinstance(result, Reference):
                value = flattener.values[result.name][result.index or 0]
            name = str(getattr(spec.arg, "name", ""))
            converted.outputs.append(Value(name, value.shape, value.dtype, value.constant))
        elif kind in ("BUFFER_MUTATION", "PARAMETER_MUTATION", "USER_INPUT_MUTATION"):
            states.append(result)
            converted.mutated.append(converted.aliases.get(spec.target, spec.target))
        else:
            converted.problems.append(Problem(str(spec.arg), f"an output of kind {kind}"))
    twice = {n for n in converted.mutated if n in converted.parameters and n in {v.name for v in converted.inputs}}
    for name in sorted(twice):
        converted.problems.append(Problem(name, "an input and a buffer of this name; rename one of them"))
    converted.graph = simplified(flattener.graph((*outputs, *states)), flattener.values)
