"""The rules: one JAX function for each ATen operator, by the operator's name in exported graphs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from plena_jax.frontend.declare import declares

Rule = Callable[..., Any]
_Function = TypeVar("_Function", bound=Rule)

#: Rules by operator, as far as their modules are imported; :func:`rules` has all.
_RULES: dict[str, Rule] = {}

#: Arguments that say where and how a tensor is stored: nothing that a value depends on.
STORAGE = frozenset({"device", "layout", "pin_memory", "memory_format", "non_blocking"})


class Refused(Exception):
    """A rule cannot do what its arguments ask for: says why."""


def rule(*operators: str) -> Callable[[_Function], _Function]:
    """Register a function for operators such as ``aten.linear.default``.

    It takes the operator's arguments: those that may be given by position by position, defaults left out as in the
    graph, and none of :data:`STORAGE`; tensors are arrays (those that are known: of NumPy) and data types those of
    NumPy. The result is cast to the data type that the graph says. An operator with several results gives a tuple,
    whose elements may be functions without arguments that make the result when it is needed.
    """
    return declares(_RULES, *operators)


def rules() -> dict[str, Rule]:
    """All rules by operator."""
    # Importing the families registers them; they import this module.
    import_module(".rules", __package__)
    return _RULES


def refuse_if(condition: bool, reason: str) -> None:
    """Check an argument.

    Raises:
        Refused: the condition holds.
    """
    if condition:
        raise Refused(reason)
