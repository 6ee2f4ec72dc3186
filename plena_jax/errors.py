"""Every exception plena_jax raises on purpose, under one root."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plena_jax.machine.state import MachineState

#: Characters of a line that are shown on either side of what is wrong with it.
_MOST_SHOWN = 120


class PlenaError(Exception):
    """Root of all errors of plena_jax. They can be pickled: worker processes hand them on."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[PlenaError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PlenaError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(attributes)
    return error


class ConfigError(PlenaError, ValueError):
    """A machine configuration that breaks a rule: names the key, its value and the rule."""

    def __init__(self, key: str, value: Any, rule: str, source: str | None = None) -> None:
        self.key, self.value, self.rule, self.source = key, value, rule, source
        where = f" in {source}" if source else ""
        super().__init__(f"{key} = {value!r}{where}: {rule}")


class FormatError(PlenaError, ValueError):
    """A number format that does not exist or cannot hold what is asked of it."""


class AssemblyError(PlenaError, ValueError):
    """Assembly text that has no encoding: names line, column, operand and what is allowed."""

    def __init__(self, message: str, *, line: int, column: int, text: str = "", source: str = "<assembly>") -> None:
        self.message, self.line, self.column, self.text, self.source = message, line, column, text, source
        before, after = text[: column - 1], text[column - 1 :]
        before = before if len(before) <= _MOST_SHOWN else f"...{before[-_MOST_SHOWN:]}"
        after = after if len(after) <= _MOST_SHOWN else f"{after[:_MOST_SHOWN]}..."
        # Under a tab stands a tab.
        indent = re.sub(r"[^\t]", " ", before)
        shown = f"\n    {before}{after}\n    {indent}^" if text else ""
        super().__init__(f"{source}:{line}:{column}: {message}{shown}")


class ProgramError(PlenaError, ValueError):
    """Machine words that the machine refuses to load: names the pc and the word."""


class ImageError(PlenaError, ValueError):
    """A memory image of the wrong size or content: names the memory, the size and the limit."""


class EngineError(PlenaError, ValueError):
    """An engine was asked for what it cannot do."""


class GradientError(PlenaError, ArithmeticError):
    """A derivative became infinite or NaN on its way back through an instruction; all behind it were finite.

    Attributes:
        pc: index of the instruction.
        instruction: its disassembly.
        tick: instructions that the run had executed before it, modulo 2**32.
    """

    def __init__(self, pc: int, instruction: str, tick: int) -> None:
        self.pc, self.instruction, self.tick = pc, instruction, tick
        super().__init__(
            f"pc {pc}: {instruction}: the derivative of this instruction (number {tick} of the run) is infinite or NaN"
        )


class MachineFault(PlenaError, RuntimeError):
    """The machine stopped at an instruction it cannot execute.

    Attributes:
        code: the :class:`plena_jax.Fault` that was recorded.
        pc: index of the instruction.
        instruction: its disassembly.
        operand: the operand at fault, as written in the instruction (empty where the rule concerns no operand).
        value: value of that operand.
        limit: what it would have had to be.
        section: the part of the program that the instruction is in, if it has such parts.
        state: the machine as it was before the instruction; nothing of the instruction has been done.
    """

    def __init__(
        self,
        *,
        code: Any,
        pc: int,
        instruction: str,
        rule: str,
        operand: str = "",
        value: int | None = None,
        limit: str = "",
        state: MachineState | None = None,
        section: str = "",
    ) -> None:
        self.code, self.pc, self.instruction, self.rule = code, pc, instruction, rule
        self.operand, self.value, self.limit, self.state, self.section = operand, value, limit, state, section
        at = f"pc {pc} in {section}" if section else f"pc {pc}"
        where = f"{at}: {instruction}: " if instruction else f"{at}: "
        operand_text = ""
        if operand:
            operand_text = f" (operand {operand}" + (f" = {value}" if value is not None else "") + ")"
        super().__init__(where + rule + operand_text + (f"; allowed: {limit}" if limit else ""))


@dataclass(frozen=True)
class Problem:
    """One operation of a model that cannot be converted or lowered.

    Attributes:
        operation: its name in the graph it is in, such as ``aten.nonzero.default``.
        reason: why not, and what helps if something does.
        shapes: of its operands and results; empty where there are none.
        source: ``file:line  code`` in the user's program; empty where it is not known.
    """

    operation: str
    reason: str
    shapes: str = ""
    source: str = ""

    def __str__(self) -> str:
        shapes = f" ({self.shapes})" if self.shapes else ""
        source = f"\n      at {self.source}" if self.source else ""
        return f"{self.operation}{shapes}: {self.reason}{source}"


class UnsupportedOperation(PlenaError, NotImplementedError):
    """A model has operations that cannot be converted or lowered: all of them at once.

    Attributes:
        problems: one :class:`Problem` for each.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = "1 operation is" if len(self.problems) == 1 else f"{len(self.problems)} operations are"
        super().__init__(f"{count} not supported:" + "".join(f"\n  - {problem}" for problem in self.problems))
