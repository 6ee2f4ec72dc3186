"""The kernels, one file for each family; importing this registers all operators."""

from plena_jax.lower.kernels import (
    binary,
    elementwise,
    embedding,
    feed_forward,
    matmul,
    normalization,
    softmax,
    transfer,
)

__all__ = ["binary", "elementwise", "embedding", "feed_forward", "matmul", "normalization", "softmax", "transfer"]
