"""The kernels, one file for each family; importing this registers all operators."""

from plena_jax.lower.kernels import (
    attention,
    binary,
    elementwise,
    embedding,
    feed_forward,
    matmul,
    normalization,
    rope,
    softmax,
    transfer,
)

__all__ = [
    "attention",
    "binary",
    "elementwise",
    "embedding",
    "feed_forward",
    "matmul",
    "normalization",
    "rope",
    "softmax",
    "transfer",
]
