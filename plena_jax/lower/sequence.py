"""Sequences of vector instructions, written once: traced for a kernel, evaluated on arrays for its reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from plena_jax.lower.builder import ProgramBuilder
from plena_jax.lower.registers import Fp, Gp
from plena_jax.lower.rounded import Rounded

#: A value of a sequence: an array, or the number of one that is traced.
Value = Any


#: A sequence: an algebra and the operands in, the result out.
Sequence_ = Callable[..., Value]


@dataclass(frozen=True)
class Evaluated:
    """Evaluates sequences on arrays, with the machine's roundings."""

    r: Rounded

    def _of(self, b: Value | float) -> jax.Array:
        return self.r.scalar(b) if isinstance(b, float | int) else b

    def add(self, a: jax.Array, b: Value | float) -> jax.Array:
        """V_ADD_VV or V_ADD_VF."""
        return self.r.add(a, self._of(b))

    def sub(self, a: jax.Array, b: Value | float) -> jax.Array:
        """V_SUB_VV or V_SUB_VF."""
        return self.r.subtract(a, self._of(b))

    def from_number(self, f: float, a: jax.Array) -> jax.Array:
        """V_SUB_VF in reverse order: ``f - a``."""
        return self.r.reversed_subtract(a, self._of(f))

    def mul(self, a: jax.Array, b: Value | float) -> jax.Array:
        """V_MUL_VV or V_MUL_VF."""
        return self.r.multiply(a, self._of(b))

    def max(self, a: jax.Array, f: float) -> jax.Array:
        """V_MAX_VF."""
        return self.r.maximum(a, self._of(f))

    def min(self, a: jax.Array, f: float) -> jax.Array:
        """V_MIN_VF."""
        return self.r.minimum(a, self._of(f))

    def exp(self, a: jax.Array) -> jax.Array:
        """V_EXP_V."""
        return self.r.exp(a)

    def reciprocal(self, a: jax.Array) -> jax.Array:
        """V_RECI_V."""
        return self.r.reciprocal(a)


@dataclass(frozen=True)
class Step:
    """One instruction of a traced sequence.

    Attributes:
        method: of the builder, in lower case.
        a, b: numbers of values: operands first, then results of steps. ``b`` may be None.
        number: the scalar operand, or None.
        reverse: the order operand of V_SUB_VF.
    """

    method: str
    a: int
    b: int | None = None
    number: float | None = None
    reverse: bool = False


class Traced:
    """Traces a sequence into steps."""

    def __init__(self, operands: int) -> None:
        self.operands = operands
        self.steps: list[Step] = []

    def _emit(self, step: Step) -> int:
        self.steps.append(step)
        return self.operands + len(self.steps) - 1

    def _two(self, name: str, a: int, b: Any) -> int:
        # Values are ints here; numbers of a sequence are floats.
        if isinstance(b, float):
            return self._emit(Step(f"v_{name}_vf", a, number=b))
        return self._emit(Step(f"v_{name}_vv", a, b))

    def add(self, a: int, b: Any) -> int:
        """V_ADD_VV or V_ADD_VF."""
        return self._two("add", a, b)

    def sub(self, a: int, b: Any) -> int:
        """V_SUB_VV or V_SUB_VF."""
        return self._two("sub", a, b)

    def from_number(self, f: float, a: int) -> int:
        """V_SUB_VF in reverse order."""
        return self._emit(Step("v_sub_vf", a, number=f, reverse=True))

    def mul(self, a: int, b: Any) -> int:
        """V_MUL_VV or V_MUL_VF."""
        return self._two("mul", a, b)

    def max(self, a: int, f: float) -> int:
        """V_MAX_VF."""
        return self._emit(Step("v_max_vf", a, number=f))

    def min(self, a: int, f: float) -> int:
        """V_MIN_VF."""
        return self._emit(Step("v_min_vf", a, number=f))

    def exp(self, a: int) -> int:
        """V_EXP_V."""
        return self._emit(Step("v_exp_v", a))

    def reciprocal(self, a: int) -> int:
        """V_RECI_V."""
        return self._emit(Step("v_reci_v", a))


#: What sequences are written with: :class:`Evaluated` or :class:`Traced`.
Algebra = Any


@dataclass(frozen=True)
class Compiled:
    """A traced sequence with places for its intermediate values.

    Attributes:
        operands: how many it takes.
        steps: the instructions; the last one's result is the sequence's.
        places: of each step's result: a number of a scratch row, or -1 for the result's own row.
        scratch: rows of scratch.
    """

    operands: int
    steps: tuple[Step, ...]
    places: tuple[int, ...]
    scratch: int

    @classmethod
    def of(cls, sequence: Sequence_, operands: int) -> Compiled:
        """Trace a sequence and give its values places, a row as soon as it is free again."""
        traced = Traced(operands)
        result = sequence(traced, *range(operands))
        assert result == operands + len(traced.steps) - 1, "the last instruction gives the result"
        last: dict[int, int] = {}
        for number, step in enumerate(traced.steps):
            last |= {value: number for value in (step.a, step.b) if value is not None}
        free: list[int] = []
        places: list[int] = []
        scratch = 0
        for number, step in enumerate(traced.steps):
            for value in dict.fromkeys(v for v in (step.a, step.b) if v is not None):
                # An instruction reads before it writes.
                if value >= operands and last[value] == number:
                    free.append(places[value - operands])
            if number == len(traced.steps) - 1:
                places.append(-1)
                continue
            if not free:
                free.append(scratch)
                scratch += 1
            places.append(free.pop())
        return cls(operands, tuple(traced.steps), tuple(places), scratch)

    @property
    def numbers(self) -> list[float]:
        """The scalars that it needs, zero left out."""
        return list(dict.fromkeys(s.number for s in self.steps if s.number is not None and s.number != 0.0))

    def load(self, b: ProgramBuilder) -> dict[float, Fp]:
        """Registers with as many of the scalars as there are registers, but one."""
        loaded = {0.0: b.fp_zero}
        for number in self.numbers:
            if b.free(Fp) < 2 and number != self.numbers[-1]:
                break
            loaded[number] = b.fp(number)
        return loaded

    def emit(
        self, b: ProgramBuilder, out: Gp, operands: Sequence[Gp], scratch: Sequence[Gp], loaded: dict[float, Fp]
    ) -> None:
        """The instructions.

        Args:
            b: the builder.
            out, operands, scratch: addresses of rows. ``out`` may be an operand's.
            loaded: registers with scalars, as :meth:`load` gives them; others are loaded where they are needed.
        """
        values = list(operands)
        for step, place in zip(self.steps, self.places, strict=True):
            target = out if place < 0 else scratch[place]
            self._one(b, step, target, values, loaded)
            values.append(target)

    def _one(self, b: ProgramBuilder, step: Step, target: Gp, values: list[Gp], loaded: dict[float, Fp]) -> None:
        method, a = getattr(b, step.method), values[step.a]
        if step.b is not None:
            method(target, a, values[step.b])
        elif step.number is None:
            method(target, a)
        else:
            with b.scope():
                f = loaded.get(step.number)
                f = b.fp(step.number) if f is None else f
                method(target, a, f, 0, 1) if step.reverse else method(target, a, f)
