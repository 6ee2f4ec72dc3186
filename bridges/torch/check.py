"""All that stands against running a graph, found before it runs: each step is tried on shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from plena_jax.errors import Problem

from .graph import Graph, Reference, Step, Value, references, replaced
from .registry import Refused, rules


def missing(graph: Graph) -> set[str]:
    """Operators of steps that must run, and for which there is no rule."""
    return {s.operation for s in graph.steps if s.name not in graph.folded and s.operation not in rules()}


def check(graph: Graph, values: Mapping[str, tuple[Value, ...]]) -> list[Problem]:
    """One problem for each step that has no rule, is refused by its rule, or comes out in another shape than in torch.

    Args:
        graph: all steps.
        values: shape and data type of every argument and result.
    """
    problems: list[Problem] = []
    # Layers are alike: the same operator with the same shapes is tried once.
    tried: dict[str, str] = {}
    for step in graph.steps:
        if step.name in graph.folded:
            continue

        def look_up(reference: Reference) -> Value:
            return values[reference.name][reference.index or 0]

        used = references((step.arguments, dict(step.keywords)))
        operands = tuple(look_up(reference) for reference in used)
        known = [reference.name in graph.folded for reference in used]
        # What is not exact is reported where it is made; numbers known in double precision are rounded.
        if not all(operand.exact or folded for operand, folded in zip(operands, known, strict=True)):
            continue
        key = repr(
            (step.operation, replaced((step.arguments, dict(step.keywords)), str_of(look_up)), known, step.results)
        )
        if key not in tried or any(known):
            tried[key] = _reason(graph, step, look_up)
        if tried[key]:
            problems.append(step.problem(tried[key], operands))
    return problems


def str_of(look_up: Any) -> Any:
    """The same look-up, as text without the name."""
    return lambda reference: str(look_up(reference))


def _reason(graph: Graph, step: Step, look_up: Any) -> str:
    """Why a step cannot run; empty if it can."""
    if step.operation not in rules():
        return "there is no rule for it"
    unknown = [r for r in references((step.arguments, dict(step.keywords))) if r.name not in graph.folded]
    arrays = []
    for reference in unknown:
        value = look_up(reference)
        arrays.append(jax.ShapeDtypeStruct(value.shape, value.dtype))

    def run(*tensors: Any) -> Any:
        by_reference = dict(zip(unknown, tensors, strict=True))

        def concrete(reference: Reference) -> Any:
            return by_reference[reference] if reference in by_reference else graph.constant(reference)

        return graph.call(step, replaced(step.arguments, concrete), replaced(dict(step.keywords), concrete))

    try:
        jax.eval_shape(run, *arrays)
    except Refused as refused:
        return str(refused)
    except Exception as error:
        return f"its rule does not take these arguments: {type(error).__name__}: {str(error).splitlines()[0]}"
    return ""
