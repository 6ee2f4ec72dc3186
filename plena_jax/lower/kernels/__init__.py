"""The kernels, one file for each family; importing this registers all operators."""

from plena_jax.lower.kernels import binary, elementwise, matmul, normalization, softmax, transfer

__all__ = ["binary", "elementwise", "matmul", "normalization", "softmax", "transfer"]
