"""PyTorch modules as JAX functions, by one rule for each ATen operator of the exported graph.

>>> from plena_jax.bridges.torch import to_jax
>>> layer = to_jax(torch.nn.Linear(3, 2), torch.ones(4, 3))
>>> jaxpr = jax.make_jaxpr(layer.function)(layer.weights, np.ones((4, 3), np.float32))
"""

from .compile import CompiledModule, compile, explain
from .module import ArgumentError, JaxModule, to_jax
from .registry import rules
