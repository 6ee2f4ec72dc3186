"""Tables of rules that other modules fill, each name once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Rule = TypeVar("Rule")


def declares(rules: dict[str, Any], *names: str) -> Callable[[Rule], Rule]:
    """A decorator that puts what it decorates into a table, under names that nothing has there yet."""

    def declared(rule: Rule) -> Rule:
        for name in names:
            assert name not in rules, name
            rules[name] = rule
        return rule

    return declared
