"""Exported graphs as steps: wrappers opened, what is known evaluated by torch, what is not supported collected."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from plena_jax.errors import Problem

from .graph import Folded, Graph, Reference, Step, Value, references, replaced
from .registry import STORAGE, Refused
from .source import path_of, source_of
from .tensors import dtype_of, to_numpy, too_wide, value_of

#: What only checks, or says where tensors are.
_IGNORED = ("aten._assert_", "aten.sym_constrain_range", "aten._functional_assert", "aten._functional_sym_constrain")

#: Results that depend on the shape of the first argument only.
_LIKE = {
    f"aten.{name}.default" for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}

_CONTROL = {
    "cond": "the branch depends on the data; torch.where computes both",
    "while_loop": "the number of turns depends on the data",
    "scan": "a loop over tensors; write it as a Python loop",
    "map_impl": "a loop over tensors; write it as a Python loop",
}


class Flattener:
    """Walks a graph and all graphs inside of it.

    Attributes:
        steps: as many as there are operators.
        problems: what no rule can help.
        mutating: whether operators write into their arguments: the graph must be made functional first.
        values: shape and data type of every argument and result.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.problems: list[Problem] = []
        self.mutating = False
        self.values: dict[str, tuple[Value, ...]] = {}
        self._known: dict[str, Any] = {}
        self._depends: dict[str, frozenset[str]] = {}

    def argument(self, name: str, tensor: Any, value: Value) -> Reference:
        """An argument of the graph; with its tensor if it is constant."""
        self.values[name] = (value,)
        if tensor is not None:
            self._known[name] = tensor.detach()
            self._depends[name] = frozenset({value.name}) if value.name else frozenset()
        return Reference(name)

    def graph(self, outputs: Iterable[Any]) -> Graph:
        """All steps so far."""
        folded = {
            name: Folded(cache(partial(_arrays, value)), self._depends[name]) for name, value in self._known.items()
        }
        return Graph(tuple(self.steps), folded, tuple(outputs))

    def walk(self, module: Any, operands: Iterable[Any], prefix: str = "") -> tuple[Any, ...]:
        """The outputs of a graph module for the operands of its placeholders."""
        remaining = iter(operands)
        found: dict[Any, Any] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder":
                found[node] = next(remaining)
            elif node.op == "get_attr":
                found[node] = self._attribute(module, node, prefix)
            elif node.op == "output":
                return tuple(_operands(node.args[0], found))
            elif node.op == "call_function":
                found[node] = self._call(node, found, prefix)
            elif "_guards_fn" not in str(node.target):
                self._problem(node, "a call of a module that export has not traced")
        raise AssertionError("a graph without output")

    def _attribute(self, module: Any, node: Any, prefix: str) -> Any:
        value = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            return value
        return self.argument(prefix + node.name, value, value_of("", value))

    def _problem(self, node: Any, reason: str) -> None:
        self.problems.append(Problem(str(node.target), reason, _shapes(node.meta.get("val")), source_of(node)))

    def _call(self, node: Any, found: Mapping[Any, Any], prefix: str) -> Any:
        arguments, keywords = _operands(node.args, found), _operands(node.kwargs, found)
        if node.target is operator.getitem:
            return _item(*arguments)
        name = getattr(node.target, "__name__", str(node.target))
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._higher_order(node, node.target.name(), arguments, prefix)
        if not isinstance(node.target, torch._ops.OpOverload):
            self._problem(node, f"{name} of sizes or numbers that depend on the data")
            return None
        if str(node.target).startswith(_IGNORED):
            return None
        return self._operator(node, arguments, keywords, prefix)

    def _higher_order(self, node: Any, name: str, arguments: Any, prefix: str) -> Any:
        inner = f"{prefix}{node.name}."
        if name == "wrap_with_set_grad_enabled":
            return self.walk(arguments[1], arguments[2:], inner)
        if name == "wrap_with_autocast":
            return self.walk(arguments[4], arguments[5:], inner)
        if name == "cond" and self._is_known(arguments[0]):
            branch = arguments[1] if bool(replaced(arguments[0], self._tensor)) else arguments[2]
            return self.walk(branch, arguments[3] if len(arguments) > 3 else (), inner)
        self._problem(node, _CONTROL.get(name, "there is no rule for this higher-order operator"))
        return self._unknown(node, prefix)

    def _unknown(self, node: Any, prefix: str) -> Any:
        """A stand-in for the results of what is not supported, so that all that follows is looked at too."""
        values, several = self._results(node, prefix + node.name, report=False)
        self.values[prefix + node.name] = values
        name = prefix + node.name
        return tuple(Reference(name, i) for i in range(len(values))) if several else Reference(name)

    def _operator(self, node: Any, arguments: Any, keywords: Any, prefix: str) -> Any:
        target, name = node.target, prefix + node.name
        operation = str(target)
        if target._schema.is_mutable and operation != "aten.detach_.default":
            self.mutating = True
            self._problem(node, "it writes into its argument")
            return self._unknown(node, prefix)
        if (
            torch.Tag.nondeterministic_seeded in target.tags
            and "dropout" not in operation
            and "attention" not in operation
        ):
            self._problem(node, "random numbers; pass them as an input")
            return self._unknown(node, prefix)
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            self._problem(node, "a number that depends on the data (such as item() or a size)")
            return self._unknown(node, prefix)
        if self._fold(name, operation, target, arguments, keywords):
            known = self._known[name]
            self.values[name] = tuple(value_of("", t) for t in (known if isinstance(known, tuple) else (known,)))
            results, several = self.values[name], isinstance(known, tuple)
        else:
            count = len(self.problems)
            results, several = self._results(node, name)
            self.values[name] = results
            if len(self.problems) > count:
                return Reference(name)
        path = path_of(node)
        positional, keywords = _bound(target, arguments, keywords)
        self.steps.append(
            Step(
                name=name,
                operation=operation,
                arguments=positional,
                keywords=keywords,
                results=results,
                several=several,
                scope=f"{path}:{name}" if path else name,
                source=source_of(node),
            )
        )
        return tuple(Reference(name, i) for i in range(len(results))) if several else Reference(name)

    def _results(self, node: Any, name: str, report: bool = True) -> tuple[tuple[Value, ...], bool]:
        """Shapes and data types of what a node gives, and whether that is a tuple; problems with them are reported."""
        value = node.meta.get("val")
        several = isinstance(value, list | tuple)
        results = []
        for tensor in value if several else (value,):
            try:
                reason = too_wide(tensor.dtype) if isinstance(tensor, torch.Tensor) else ""
                results.append(value_of(name, tensor) if isinstance(tensor, torch.Tensor) else Value(name, exact=False))
            except Refused as refused:
                reason = str(refused)
                results.append(Value(name, exact=False))
            if reason and report:
                self._problem(node, reason)
        return tuple(results), several

    def _is_known(self, tree: Any) -> bool:
        return all(reference.name in self._known for reference in references(tree))

    def _tensor(self, reference: Reference) -> Any:
        value = self._known[reference.name]
        return value if reference.index is None else value[reference.index]

    def _fold(self, name: str, operation: str, target: Any, arguments: Any, keywords: Any) -> bool:
        """Evaluate an operator all of whose tensors are known; False if they are not."""
        depends: frozenset[str] = frozenset()
        if operation in _LIKE and not self._is_known(arguments[0]):
            if not self._is_known((arguments[1:], keywords)):
                return False
            like = self.values[arguments[0].name][arguments[0].index or 0]
            if like.dtype is None or not like.exact:
                return False
            arguments = (torch.empty(like.shape, dtype=_TORCH_DTYPES[like.dtype]), *arguments[1:])
        if not self._is_known((arguments, keywords)):
            return False
        for reference in references((arguments, keywords)):
            depends |= self._depends[reference.name]
        with torch.no_grad():
            result = target(*replaced(arguments, self._tensor), **replaced(keywords, self._tensor))
        tensors = tuple(result) if isinstance(result, list | tuple) else result
        self._known[name], self._depends[name] = tensors, depends
        return True


_TORCH_DTYPES = {
    np.dtype(np.float32): torch.float32,
    np.dtype(np.int32): torch.int64,
    np.dtype(np.int16): torch.int16,
    np.dtype(np.int8): torch.int8,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.bool_): torch.bool,
}


def _arrays(value: Any) -> Any:
    return tuple(to_numpy(t) for t in value) if isinstance(value, tuple) else to_numpy(value)


def _item(value: Any, index: int) -> Any:
    return value[index] if isinstance(value, tuple | list) else Reference(value.name, index)


def _operands(tree: Any, found: Mapping[Any, Any]) -> Any:
    """Arguments of a node with what was found for its nodes."""
    if isinstance(tree, torch.fx.Node):
        return found.get(tree)
    if isinstance(tree, Mapping):
        return {key: _operands(value, found) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_operands(value, found) for value in tree)
    if isinstance(tree, list):
        return [_operands(value, found) for value in tree]
    return tree


def _bound(target: Any, arguments: Any, keywords: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that may be given by position by position, those of storage left out, data types as JAX's."""
    given = dict(keywords)
    positional = list(arguments)
    for parameter in target._schema.arguments[len(positional) :]:
        if parameter.kwarg_only or not any(p.name in given for p in target._schema.arguments if not p.kwarg_only):
            break
        positional.append(given.pop(parameter.name, parameter.default_value))
    plain = {key: _plain(value) for key, value in given.items() if key not in STORAGE}
    return tuple(_plain(value) for value in positional), plain


def _plain(value: Any) -> Any:
    return dtype_of(value) if isinstance(value, torch.dtype) else value


def _shapes(value: Any) -> str:
    tensors = value if isinstance(value, list | tuple) else (value,)
    return ", ".join(
        f"{str(t.dtype).removeprefix('torch.')}[{', '.join(map(str, t.shape))}]"
        for t in tensors
        if isinstance(t, torch.Tensor)
    )
