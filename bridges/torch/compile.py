"""``compile`` and ``explain`` for PyTorch modules: the same graphs, passes and kernels as for JAX functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from plena_jax.config import MachineConfig
from plena_jax.errors import UnsupportedOperation
from plena_jax.frontend.compile import Explanation, Options, compiled, explained, flattened
from plena_jax.frontend.compiled import CompiledProgram
from plena_jax.frontend.lowering import Vectors

from .module import JaxModule, to_jax


@dataclass(frozen=True, eq=False)
class CompiledModule:
    """A PyTorch module as a program of the machine, with its weights.

    Called with tensors or arrays as the module is, it runs them on the machine and returns JAX arrays. What a call
    changes, such as the buffers of a cache, is kept for the next one.

    Attributes:
        program: of :attr:`JaxModule.function`: a dict of parameters first, then the flat inputs.
        module: what was exported.
        parameters: by name, as of the last call.
    """

    program: CompiledProgram
    module: JaxModule
    parameters: dict[str, Any]

    def __call__(self, *inputs: Any, **keywords: Any) -> Any:
        """What the module returns, from a run on the machine."""
        return self._outputs(self.program(*self.arguments(*inputs, **keywords)), keep=True)

    def arguments(self, *inputs: Any, **keywords: Any) -> list[Any]:
        """What the program takes for these inputs of the module."""
        return [self.parameters, *_moving(self.module, self.module.flat(*inputs, **keywords))]

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
) -> CompiledModule:
    """Compile a PyTorch module for inputs of these shapes.

    Args:
        module: a ``torch.nn.Module``, put into eval mode, or a ``torch.export.ExportedProgram``.
        example_inputs, kwargs, decompose: see :func:`to_jax`.
        config, vectors, disabled, spill: see :func:`plena_jax.compile`.

    Raises:
        UnsupportedOperation: operations that have no lowering, all of them, with the module's lines.
        CapacityError: what one operator needs does not fit the machine.
    """
    exported = to_jax(module, *example_inputs, kwargs=kwargs, decompose=decompose)
    options = Options(config or MachineConfig(), vectors, tuple(disabled), spill)
    function, arguments, signature = flattened(_function(exported), _shapes(exported))
    program = compiled(function, arguments, signature, options, exported.sources)
    return CompiledModule(program, exported, dict(exported.weights))


def explain(
    module: Any,
    *example_inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    config: MachineConfig | None = None,
    vectors: Vectors = "hbm",
    disabled: Sequence[str] = (),
    decompose: bool = False,
) -> Explanation:
    """What becomes of each operation of a module, and what is not supported; takes the arguments of ``compile``."""
    try:
        exported = to_jax(module, *example_inputs, kwargs=kwargs, decompose=decompose)
    except UnsupportedOperation as error:
        return Explanation((), tuple(error.problems))
    options = Options(config or MachineConfig(), vectors, tuple(disabled))
    function, arguments, _ = flattened(_function(exported), _shapes(exported))
    return explained(function, arguments, options, exported.sources)


def _moving(exported: JaxModule, leaves: Sequence[Any]) -> list[Any]:
    """The inputs that are arrays; numbers and flags are constants of the export."""
    return [leaf for leaf, value in zip(leaves, exported.inputs, strict=True) if value.dtype is not None]


def _function(exported: JaxModule) -> Callable[..., Any]:
    def function(parameters: Any, *moving: Any) -> Any:
        given = iter(moving)
        inputs = [value.constant if value.dtype is None else next(given) for value in exported.inputs]
        return exported.function(parameters, *inputs)

    return function


def _shapes(exported: JaxModule) -> list[Any]:
    inputs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in exported.inputs if v.dtype is not None]
    weights = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in exported.weights.items()}
    return [weights, *inputs]
