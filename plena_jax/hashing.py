"""Hashes of large frozen objects, which ``jit`` asks for at every call."""

from __future__ import annotations

from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_KEPT = "_hash"


def hashed_once(cls: _Class) -> _Class:
    """Make a frozen dataclass keep its hash; a copy in another process, where strings hash otherwise, does not."""
    made: Any = cls.__hash__

    def hash_of(self: Any) -> int:
        held: int | None = self.__dict__.get(_KEPT)
        if held is None:
            held = made(self)
            object.__setattr__(self, _KEPT, held)
        return held

    def state_of(self: Any) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != _KEPT}

    cls.__hash__ = hash_of  # type: ignore[assignment]
    cls.__getstate__ = state_of  # type: ignore[method-assign, assignment]
    return cls
