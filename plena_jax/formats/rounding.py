"""What all formats do alike: round straight-through for derivatives, and say which values that loses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from plena_jax.bits import INFINITY, Array, array_module, float32, magnitude, quiet, to_bits, u32


class Rounding:
    """Base of the formats: rounding and what it loses, from ``_held`` and ``_largest`` of the format."""

    def _held(self, x: Array) -> Array:
        """float32 ``x`` as the format holds it."""
        raise NotImplementedError

    def _largest(self, x: Array) -> tuple[Array, Array]:
        """Bit patterns of the largest finite magnitudes among positive and among negative values, for each of ``x``."""
        raise NotImplementedError

    def round(self, x: ArrayLike, clipped: bool = False) -> jax.Array:
        """float32 ``x`` as the format holds it, ``decode(encode(x))``.

        Args:
            x: any shape; of MX formats the last axis is a whole number of blocks.
            clipped: the derivative is 0 where :meth:`saturates` and 1 elsewhere, instead of 1 everywhere
                (straight-through).
        """
        # jax takes Python integers for int32: the code of NaN of a 32-bit format can be beyond.
        fmt = jax.tree.map(lambda v: np.uint32(v) if isinstance(v, int) and v >= 1 << 31 else v, self)
        return _straight_through(jnp.asarray(x, jnp.float32), fmt, clipped)

    @quiet
    def saturates(self, x: ArrayLike) -> Array:
        """Whether finite ``x`` is beyond the format: ``|x|`` above the largest finite value with the sign of ``x``.

        It then gives the largest value, infinity or NaN, as the format says ("plena" integers wrap). Where there are
        no negative values the largest is 0. Of MX formats: the largest element times the scale of the block. bool, the
        shape of ``x``; of NumPy arrays as NumPy array.
        """
        x = float32(x)
        positive, negative = self._largest(x)
        xp, body = array_module(x, positive), magnitude(x)
        largest = xp.where(to_bits(x) >> 31 == 1, negative, positive)
        return (body > largest) & (body < u32(INFINITY))

    @quiet
    def flushes(self, x: ArrayLike) -> Array:
        """Whether finite ``x`` is not zero but rounds to zero: bool, the shape of ``x``; of NumPy arrays as NumPy."""
        x = float32(x)
        body = magnitude(x)
        return (magnitude(self._held(x)) == 0) & (body > 0) & (body < u32(INFINITY))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _straight_through(x: jax.Array, fmt: Any, clipped: bool) -> jax.Array:
    held: jax.Array = fmt._held(x)
    return held


@_straight_through.defjvp
def _jvp(clipped: bool, primals: tuple[jax.Array, Any], tangents: tuple[jax.Array, Any]) -> tuple[jax.Array, jax.Array]:
    x, fmt = primals
    # A cast would round the tangent too.
    tangent = jnp.where(fmt.saturates(x), np.float32(0), tangents[0]) if clipped else tangents[0]
    return _straight_through(x, fmt, clipped), tangent
