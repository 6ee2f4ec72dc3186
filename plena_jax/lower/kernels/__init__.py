"""The kernels, one file for each family; importing this registers all operators."""

from plena_jax.lower.kernels import elementwise, matmul, normalization, softmax, transfer

__all__ = ["elementwise", "matmul", "normalization", "softmax", "transfer"]
