"""``compile`` and ``explain`` for PyTorch modules: the same graphs, passes and kernels as for JAX functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import UnsupportedOperation
from plena_jax.frontend.compile import Explanation, Options, compiled, explained, flattened
from plena_jax.frontend.compiled import CompiledProgram
from plena_jax.frontend.lowering import Vectors

from .module import ArgumentError, JaxModule, to_jax


@dataclass(frozen=True, eq=False)
class CompiledModule:
    """A PyTorch module as a program of the machine, with its weights.

    Called with tensors or arrays as the module is, it runs them on the machine and returns JAX arrays. What a call
    changes, such as the buffers of a cache, is kept for the next one.

    Attributes:
        program: of :attr:`JaxModule.function`: a dict of parameters first, then the flat inputs.
        module: what was exported.
        parameters: by name, as of the last call.
        static: values of inputs that are constants of the program, by name.
    """

    program: CompiledProgram
    module: JaxModule
    parameters: dict[str, Any]
    static: dict[str, Any]

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """What the module returns, from a run on the machine."""
        return self._outputs(self.program(*self.arguments(*inputs, **keywords)), keep=True)

    def arguments(self, *inputs: Any, **keywords: Any) -> list[Any]:
        """What the program takes for these inputs of the module."""
        leaves = self.module.flat(*inputs, **keywords)
        for value, leaf in zip(self.module.inputs, leaves, strict=True):
            if value.name in self.static and not np.array_equal(leaf, self.static[value.name]):
                raise ArgumentError(
                    f"static input {value.name}: compiled for {self.static[value.name]!r}, got {leaf!r}"
                )
        return [self.parameters, *_moving(self.module, leaves, self.static)]

    def reference(self, *inputs: Any, **keywords: Any) -> Any:
        """The results with every rounding of the machine, without the machine."""
        return self._outputs(self.program.reference(*self.arguments(*inputs, **keywords)), keep=False)

    def original(self, *inputs: Any, **keywords: Any) -> Any:
        """The module's own results, in float32."""
        return self._outputs(self.program.original(*self.arguments(*inputs, **keywords)), keep=False)

    def check(self, *inputs: Any, **keywords: Any) -> Any:
        """How far the machine's results are from both; see :meth:`CompiledProgram.check`."""
        return self.program.check(*self.arguments(*inputs, **keywords))

    def __getattr__(self, name: str) -> Any:
        """Everything else is the program's: ``asm``, ``profile``, ``memory_map``, ``cost`` ..."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.program, name)

    def save(self, folder: Any, *inputs: Any, **keywords: Any) -> None:
        """Write program, memory images and a manifest; see :meth:`CompiledProgram.save`."""
        self.program.save(folder, *self.arguments(*inputs, **keywords))

    def _outputs(self, results: Any, keep: bool) -> Any:
        if not self.module.mutated:
            return results
        outputs, changed = results
        if keep:
            self.parameters.update({name: value for name, value in changed.items() if name in self.parameters})
        return outputs


def compile(
    module: Any,
    *example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    config: MachineConfig | None = None,
    vectors: Vectors = "hbm",
    disabled: Sequence[str] = (),
    spill: bool = True,
    decompose: bool = False,
    static: Sequence[str] = (),
) -> CompiledModule:
    """Compile a PyTorch module for inputs of these shapes.

    Args:
        module: a ``torch.nn.Module``, put into eval mode, or a ``torch.export.ExportedProgram``.
        example_inputs, kwargs, decompose: see :func:`to_jax`.
        config, vectors, disabled, spill: see :func:`plena_jax.compile`.
        static: names of inputs whose example values are constants of the program: positions, indices.

    Raises:
        ArgumentError: no input has a name in ``static``.
        UnsupportedOperation: operations that have no lowering, all of them, with the module's lines.
        CapacityError: what one operator needs does not fit the machine.
    """
    exported = to_jax(module, *example_inputs, kwargs=kwargs, decompose=decompose)
    options = Options(config or MachineConfig(), vectors, tuple(disabled), spill)
    known = _known(exported, example_inputs, kwargs or {}, static)
    function, arguments, signature = flattened(_function(exported, known), _shapes(exported, known))
    program = compiled(function, arguments, signature, options, exported.sources)
    assert isinstance(program, CompiledProgram), "nothing runs on the host unless it is asked for"
    return CompiledModule(program, exported, dict(exported.weights), known)


def explain(
    module: Any,
    *example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    config: MachineConfig | None = None,
    vectors: Vectors = "hbm",
    disabled: Sequence[str] = (),
    decompose: bool = False,
    static: Sequence[str] = (),
) -> Explanation:
    """What becomes of each operation of a module, and what is not supported; takes the arguments of ``compile``."""
    try:
        exported = to_jax(module, *example_inputs, kwargs=kwargs, decompose=decompose)
    except UnsupportedOperation as error:
        return Explanation((), tuple(error.problems))
    options = Options(config or MachineConfig(), vectors, tuple(disabled))
    known = _known(exported, example_inputs, kwargs or {}, static)
    function, arguments, _ = flattened(_function(exported, known), _shapes(exported, known))
    return explained(function, arguments, options, exported.sources)


def _known(
    exported: JaxModule, inputs: Sequence[Any], keywords: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """The example values of static inputs."""
    leaves = dict(zip((v.name for v in exported.inputs), exported.flat(*inputs, **keywords), strict=True))
    unknown = [name for name in names if name not in leaves]
    if unknown:
        raise ArgumentError(f"static: no input {', '.join(unknown)}; there are {', '.join(leaves)}")
    return {name: np.asarray(leaves[name]) for name in names}


def _moving(exported: JaxModule, leaves: Sequence[Any], known: Mapping[str, Any]) -> list[Any]:
    """The inputs that are data; numbers and flags are constants of the export."""
    pairs = zip(leaves, exported.inputs, strict=True)
    return [leaf for leaf, value in pairs if value.dtype is not None and value.name not in known]


def _function(exported: JaxModule, known: Mapping[str, Any]) -> Callable[..., Any]:
    def function(parameters: Any, *moving: Any) -> Any:
        given = iter(moving)
        fixed = {value.name: value.constant for value in exported.inputs if value.dtype is None} | dict(known)
        inputs = [fixed[v.name] if v.name in fixed else next(given) for v in exported.inputs]
        return exported.function(parameters, *inputs)

    return function


def _shapes(exported: JaxModule, known: Mapping[str, Any]) -> list[Any]:
    moving = [value for value in exported.inputs if value.dtype is not None and value.name not in known]
    inputs = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in moving]
    weights = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in exported.weights.items()}
    return [weights, *inputs]
