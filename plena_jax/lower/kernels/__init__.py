"""The kernels, one file for each family; importing this registers all operators."""

from plena_jax.lower.kernels import (
    binary,
    convolution,
    elementwise,
    experts,
    matmul,
    normalization,
    reduction,
    routing,
    softmax,
    transfer,
)

__all__ = [
    "binary",
    "convolution",
    "elementwise",
    "matmul",
    "normalization",
    "reduction",
    "routing",
    "softmax",
    "transfer",
]
