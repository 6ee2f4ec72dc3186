"""The operator registry: one declaration each, from which graphs, references, kernels and documentation follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import Any

from plena_jax.config import MachineConfig
from plena_jax.lower.tensors import OperatorError, Place, Role, Shape, Tensor


@dataclass(frozen=True)
class Workspace:
    """What a kernel needs beside its operands.

    Attributes:
        rows: of vector SRAM, in a row.
        fp: entries of FP SRAM, in a row.
        integers: entries of INT SRAM, the first ones.
    """

    rows: int = 0
    fp: int = 0
    integers: int = 0


def _nothing(config: MachineConfig, *tensors: Tensor | None, **attributes: Any) -> Workspace:
    return Workspace()


def _whole_tiles(config: MachineConfig, *tensors: Tensor | None, **attributes: Any) -> Mapping[str, int]:
    return {}


def _in_vram(config: MachineConfig, *tensors: Tensor | None, **attributes: Any) -> tuple[Place, Role | None]:
    return "vram", None


def _boundless(config: MachineConfig, *tensors: Tensor | None, **attributes: Any) -> dict[str, int]:
    return {}


def _missing(*arguments: Any, **keywords: Any) -> Any:
    raise NotImplementedError("an operator that is made of others has no kernel of its own")


@dataclass(frozen=True)
class Operator:
    """One operator.

    All functions take the tensors by position, those left out as None, and the attributes by keyword.

    Attributes:
        name: in graphs and in ``plena_jax.ops``.
        family: the kernel file.
        reference: float32 arrays in and out: the model's own formula. Its signature is the operator's; its docstring
            documents it.
        rounded: the same with the machine's roundings in its order; a :class:`~plena_jax.lower.rounded.Rounded` first.
        shape: the configuration first, then :class:`Tensor`; the shape of the result. Raises OperatorError.
        emit: a :class:`~plena_jax.lower.kernel.Kernel` and where the result is first.
        expand: of an operator that is made of others, instead of the three above: a graph first; the result.
        workspace: the configuration first, then :class:`Tensor`.
        reads: rows of HBM that the kernel reads of parameters, from their first one on, where that is more than whole
            tiles; from the same arguments as ``workspace``.
        result: place and role of the result, from the same arguments as ``shape``; vector SRAM.
        places: where each tensor may be, by parameter; vector SRAM if it is not named here.
        matrix: parameters that the matrix unit fetches; all others in HBM are fetched by the vector unit.
        roles: of arrays for parameters in HBM, where it is not "weights" for the matrix unit and "activations" for the
            vector unit.
        bounds: of integers in INT SRAM, from the same arguments as ``shape``: by parameter what they are below.
        shares: parameters whose memory the result may take, if nobody needs them any more.
        cost: instructions as a formula of the shape, in words.
    """

    name: str
    family: str
    reference: Callable[..., Any]
    rounded: Callable[..., Any] = _missing
    shape: Callable[..., Shape] = _missing
    emit: Callable[..., None] = _missing
    expand: Callable[..., Tensor] | None = None
    workspace: Callable[..., Workspace] = _nothing
    reads: Callable[..., Mapping[str, int]] = _whole_tiles
    result: Callable[..., tuple[Place, Role | None]] = _in_vram
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
    matrix: tuple[str, ...] = ()
    roles: Mapping[str, Role] = field(default_factory=dict)
    bounds: Callable[..., dict[str, int]] = _boundless
    shares: tuple[str, ...] = ()
    cost: str = ""

    @cached_property
    def signature(self) -> inspect.Signature:
        """Tensors by position, attributes by keyword."""
        return inspect.signature(self.reference)

    @property
    def usage(self) -> str:
        """Name and parameters, without types."""
        texts = []
        for name, parameter in self.signature.parameters.items():
            default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
            if parameter.kind is parameter.KEYWORD_ONLY and "*" not in texts:
                texts.append("*")
            texts.append(name + default)
        return f"{self.name}({', '.join(texts)})"

    @property
    def doc(self) -> str:
        """What it computes."""
        return inspect.getdoc(self.reference) or ""

    @property
    def tensors(self) -> list[str]:
        """Names of the tensor parameters."""
        return [n for n, p in self.signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]

    def usual(self, name: str) -> tuple[Place, Role | None]:
        """Place and role of an array that is given for a parameter: the first place it may have."""
        place = self.places.get(name, ("vram",))[0]
        if place != "hbm":
            return place, None
        return place, self.roles.get(name, "weights" if name in self.matrix else "activations")

    def bound(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> inspect.BoundArguments:
        """Arguments by parameter.

        Raises:
            OperatorError: arguments that the signature does not take.
        """
        try:
            return self.signature.bind(*arguments, **keywords)
        except TypeError as error:
            raise OperatorError(f"{self.name}: {error}; its signature is {self.usage}") from None

    def bind(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[list[Tensor | None], dict[str, Any]]:
        """Tensors in order, and all attributes.

        Raises:
            OperatorError: arguments that the signature does not take, no tensors, or tensors in a wrong place.
        """
        bound = self.bound(arguments, keywords)
        bound.apply_defaults()
        tensors: list[Tensor | None] = []
        for name in self.tensors:
            value = bound.arguments.pop(name)
            if value is None and self.signature.parameters[name].default is None:
                tensors.append(None)
                continue
            if not isinstance(value, Tensor):
                raise OperatorError(f"{self.name}: {name} is {value!r}; expected a tensor of the graph")
            allowed = self.places.get(name, ("vram",))
            if value.place not in allowed:
                raise OperatorError(
                    f"{self.name}: {name} ({value.name}) is in {value.place}; expected {' or '.join(allowed)}"
                )
            roles = ("weights", "kv") if name in self.matrix else ("activations", "kv")
            if value.role is not None and value.role not in roles:
                unit = "matrix" if name in self.matrix else "vector"
                raise OperatorError(
                    f"{self.name}: {name} ({value.name}) has role {value.role}; the {unit} unit fetches it: expected "
                    f"{' or '.join(roles)}"
                )
            tensors.append(value)
        return tensors, dict(bound.arguments)


#: Operators by name, as far as their modules are imported; :func:`operators` has all.
OPERATORS: dict[str, Operator] = {}


def register(operator: Operator) -> Operator:
    """Add an operator; each name once."""
    assert operator.name not in OPERATORS, operator.name
    OPERATORS[operator.name] = operator
    return operator


def expect(operator: str, argument: str, expected: object, got: object) -> None:
    """Check one property of an argument.

    Raises:
        OperatorError: the two differ.
    """
    if expected != got:
        raise OperatorError(f"{operator}: {argument}: expected {expected}, got {got}")


def operators() -> dict[str, Operator]:
    """All operators by name."""
    # Importing the kernels registers them; they import this module.
    import_module("plena_jax.lower.kernels")
    return OPERATORS


def find(name: str) -> Operator:
    """The operator of a name.

    Raises:
        OperatorError: there is none.
    """
    known = operators()
    if name not in known:
        raise OperatorError(f"no operator {name!r}; there are {', '.join(sorted(known))}")
    return known[name]
