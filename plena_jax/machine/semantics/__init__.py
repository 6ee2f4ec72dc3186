"""What instructions do: one function for each, registered under its mnemonic."""

from plena_jax.machine.semantics import control, lanewise, matrix, memory, vector
from plena_jax.machine.semantics.registry import (
    SEMANTICS,
    Accumulator,
    Semantic,
    Stage,
    branch_index,
    branches,
    semantic_of,
)

__all__ = [
    "SEMANTICS",
    "Accumulator",
    "Semantic",
    "Stage",
    "branch_index",
    "branches",
    "control",
    "lanewise",
    "matrix",
    "memory",
    "semantic_of",
    "vector",
]
