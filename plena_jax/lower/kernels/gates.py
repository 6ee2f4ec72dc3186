"""What becomes of the gate and the up projection of a feed-forward network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp

from plena_jax.lower.kernels import elementwise
from plena_jax.lower.kernels.elementwise import Activation
from plena_jax.lower.sequence import Algebra, Compiled, Value


@dataclass(frozen=True)
class Gate:
    """What becomes of the two products of an expert; of zeros, zero.

    Attributes:
        formula, reference: of gate and up, as the machine and as the model compute it.
    """

    formula: Callable[[Algebra, Value, Value], Value]
    reference: Callable[[jax.Array, jax.Array], jax.Array]

    @classmethod
    def of(cls, activation: Activation) -> Gate:
        """``activation(gate) * up``."""
        return cls(
            lambda v, g, u: v.mul(activation.formula(v, g, **activation.attributes), u),
            lambda g, u: activation.reference(g, **activation.attributes) * u,
        )


#: Where GPT-OSS clamps, and the factor in its sigmoid.
LIMIT, ALPHA = 7.0, 1.702


def clamped_reference(g: jax.Array, u: jax.Array) -> jax.Array:
    """``(clamp(u, -7, 7) + 1) * h * sigmoid(1.702 * h)`` with ``h = min(g, 7)``, as in GPT-OSS."""
    h = jnp.minimum(g, LIMIT)
    return (jnp.clip(u, -LIMIT, LIMIT) + 1) * h * jax.nn.sigmoid(ALPHA * h)


def clamped(v: Algebra, g: Value, u: Value) -> Value:
    """As the formula says."""
    h = v.min(g, LIMIT)
    swish = v.mul(elementwise.sigmoid(v, v.mul(h, ALPHA)), h)
    return v.mul(v.add(v.min(v.max(u, -LIMIT), LIMIT), 1.0), swish)


#: Activations of experts.
GATES = {name: Gate.of(activation) for name, activation in elementwise.ACTIVATIONS.items()}
GATES["clamped_swiglu"] = Gate(clamped, clamped_reference)


@cache
def compiled(activation: str) -> Compiled:
    """The sequence of one of :data:`GATES`."""
    return Compiled.of(GATES[activation].formula, 2)
