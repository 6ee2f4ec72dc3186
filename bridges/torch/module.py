"""A PyTorch module as a JAX function with its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils import _pytree as pytree

from plena_jax.errors import PlenaError, UnsupportedOperation

from .export import convert, export
from .graph import Graph, Value
from .tensors import to_numpy

Arrays = Mapping[str, Any]


class ArgumentError(PlenaError, TypeError):
    """Arguments of a converted module that are not those it was exported for."""


@dataclass(frozen=True, eq=False)
class JaxModule:
    """A module as a pure function that JAX can trace.

    Attributes:
        parameters: parameters, buffers and lifted constants by name, as NumPy arrays; tied ones once.
        constants: names of those among them that are neither parameters nor mutated: tables, masks, running
            statistics, numbers. What is made of them only is evaluated once, by torch, as long as they are not changed:
            leave them out of the dict that is traced (``weights``) and the jaxpr has the results as constants.
        inputs: name, shape and data type of the leaves of the inputs, in order.
        outputs: the same of the leaves of the outputs.
        mutated: buffers and inputs that a call changes: caches. The function returns their new values.
        aliases: names of tied parameters, with the name that they have in ``parameters``.
        sources: ``file:line  code`` of the user's program for each scope that JAX traces a step under.
    """

    parameters: dict[str, np.ndarray[Any, Any]] = field(repr=False)
    constants: tuple[str, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    mutated: tuple[str, ...]
    aliases: dict[str, str]
    sources: dict[str, str] = field(repr=False)
    _graph: Graph = field(repr=False)
    _bound: dict[str, list[str]] = field(repr=False)
    _arguments: tuple[str, ...] = field(repr=False)
    _trees: tuple[Any, Any] = field(repr=False)

    @property
    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """The parameters without the constants."""
        return {name: array for name, array in self.parameters.items() if name not in self.constants}

    def function(self, parameters: Arrays, *inputs: Any) -> Any:
        """The outputs of the module; pure, and traceable by all of JAX's transformations.

        Args:
            parameters: arrays for names in ``parameters``; constants may be left out.
            inputs: arrays, one for each of ``inputs``.

        Returns:
            The outputs as the module returns them: tensors, tuples, lists, dicts; other containers as dicts. If
            anything is mutated: a pair of the outputs and a dict of the new values, by the names in ``mutated``. Feed
            ``{**parameters, **new}`` to the next call.

        Raises:
            ArgumentError: other arguments than the module was exported for.
        """
        arguments, changed = self._named(parameters, inputs)
        leaves = self._graph.evaluate(arguments, changed)
        count = len(self.outputs)
        outputs = _plain(pytree.tree_unflatten(leaves[:count], self._trees[1]))
        if not self.mutated:
            return outputs
        return outputs, dict(zip(self.mutated, leaves[count:], strict=True))

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """:meth:`function`, compiled, with the module's own parameters, and inputs as the module takes them."""
        return self._compiled(self.weights, *self.flat(*inputs, **keywords))

    def flat(self, *inputs: Any, **keywords: Any) -> list[Any]:
        """The leaves of inputs that are nested as the module takes them; tensors of torch as arrays.

        Raises:
            ArgumentError: they are nested in another way than the module was exported for.
        """
        expected = self._trees[0]
        order = list(expected.children()[1].context)
        if sorted(order) == sorted(keywords):
            keywords = {name: keywords[name] for name in order}
        leaves, found = pytree.tree_flatten((inputs, keywords))
        if found != expected:
            raise ArgumentError(
                f"the inputs are nested in another way than those of the export: {found}, not {expected}"
            )
        return [to_numpy(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    def source_of(self, name_stack: Any) -> str:
        """The user's line for a name stack of a jaxpr (``equation.source_info.name_stack``); empty if it has none."""
        parts = str(name_stack).split("/")
        return next((self.sources[part] for part in reversed(parts) if part in self.sources), "")

    @cached_property
    def _compiled(self) -> Any:
        # What is no tensor is checked, and known to the graph.
        static = tuple(1 + i for i, value in enumerate(self.inputs) if value.dtype is None)
        return jax.jit(self.function, static_argnums=static)

    def _named(self, parameters: Arrays, inputs: tuple[Any, ...]) -> tuple[dict[str, Any], frozenset[str]]:
        """Arrays by the graph's arguments, and the constants that are not the module's own."""
        missing = [name for name in self.parameters if name not in parameters and name not in self.constants]
        unknown = [name for name in parameters if name not in self.parameters]
        problems = [f"no parameter {name!r}" for name in missing] + [f"unknown parameter {name!r}" for name in unknown]
        if len(inputs) != len(self.inputs):
            names = ", ".join(value.name for value in self.inputs)
            raise ArgumentError(f"expected {len(self.inputs)} inputs ({names}), got {len(inputs)}")
        named: dict[str, Any] = {}
        for value, argument, given in zip(self.inputs, self._arguments, inputs, strict=True):
            if value.dtype is None:
                if not isinstance(given, type(value.constant)) or given != value.constant:
                    problems.append(f"{value.name} is {given!r}; the module was exported for {value.constant!r}")
                continue
            array = _array(given, value)
            if isinstance(array, str):
                problems.append(array)
            named[argument] = array
        changed = {n for n in self.constants if n in parameters and parameters[n] is not self.parameters[n]}
        for name, arguments in self._bound.items():
            if name in self.constants and name not in changed:
                continue
            if name not in parameters:
                continue
            own = self.parameters[name]
            array = _array(parameters[name], Value(name, own.shape, own.dtype))
            if isinstance(array, str):
                problems.append(array)
            named.update(dict.fromkeys(arguments, array))
        if problems:
            raise ArgumentError("; ".join(problems))
        return named, frozenset(changed)


def _array(given: Any, wanted: Value) -> Any:
    """An array of JAX, or what is wrong with it."""
    assert wanted.dtype is not None
    if isinstance(given, torch.Tensor):
        given = to_numpy(given)
    if np.shape(given) != wanted.shape:
        return f"{wanted.name} has shape {np.shape(given)}; the module was exported for {wanted.shape}"
    array = jnp.asarray(given)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(array.dtype, kind) and jnp.issubdtype(wanted.dtype, kind) for kind in kinds):
        return f"{wanted.name} has data type {array.dtype}; the module was exported for {wanted.dtype}"
    return array.astype(wanted.dtype)


def _plain(tree: Any) -> Any:
    """Containers that JAX knows, for those that only torch does."""
    if isinstance(tree, Mapping):
        return {key: _plain(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [_plain(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return [_plain(value) for value in tree]
    if is_dataclass(tree) and not isinstance(tree, type):
        return {f.name: _plain(getattr(tree, f.name)) for f in fields(tree)}
    return tree


def to_jax(
    module: Any,
    *example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
    decompose: bool = False,
) -> JaxModule:
    """A PyTorch module as a JAX function, by ``torch.export`` in eval mode.

    Parameters and inputs in bfloat16 and float16 become float32, and so does all that is computed in them; 64-bit
    integers become 32-bit. The shapes are those of the example.

    Args:
        module: a ``torch.nn.Module``, or a ``torch.export.ExportedProgram``.
        example_inputs: positional inputs of the module.
        kwargs: keyword inputs.
        strict: export with TorchDynamo; else by running the module's Python code.
        decompose: decompose into core ATen operators first. Otherwise operators that have a rule stay whole: linear
            layers, norms, attention.

    Raises:
        UnsupportedOperation: naming everything that is not supported at once.
    """
    program, converted = convert(export(module, example_inputs, kwargs or {}, strict), decompose)
    if converted.problems:
        raise UnsupportedOperation(list(dict.fromkeys(converted.problems)))
    return JaxModule(
        parameters=converted.parameters,
        constants=tuple(converted.constants),
        inputs=tuple(converted.inputs),
        outputs=tuple(converted.outputs),
        mutated=tuple(converted.mutated),
        aliases=converted.aliases,
        sources={step.scope: step.source for step in converted.graph.steps},
        _graph=converted.graph,
        _bound=converted.bound,
        _arguments=tuple(converted.arguments),
        _trees=(program.call_spec.in_spec, program.call_spec.out_spec),
    )
