"""Arithmetic as the machine does it, on whole matrices: for references with the same roundings in the same order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from plena_jax import arithmetic
from plena_jax.config import MachineConfig
from plena_jax.lower.tensors import Role, format_of, round_up
from plena_jax.machine import rounding
from plena_jax.machine.sums import accumulate, row_max, row_sum
from plena_jax.machine.transfer import effective

Method = TypeVar("Method", bound=Callable[..., Any])


def _once(method: Method) -> Method:
    """Compile an operation once for its shapes, not each of its many steps."""
    return wraps(method)(jax.jit(method, static_argnums=0))  # type: ignore[return-value]


@dataclass(frozen=True)
class Rounded:
    """The machine's operations on float32 matrices [rows, columns]; per-row scalars are [rows, 1].

    Every result is rounded as the place that takes it rounds: vector SRAM for matrices, registers for scalars.

    Attributes:
        config: the machine.
    """

    config: MachineConfig

    # -- places -------------------------------------------------------------------------------------------------------

    @_once
    def vector(self, x: jax.Array) -> jax.Array:
        """``x`` as vector SRAM stores it."""
        return rounding.vector(x, self.config, None, False)

    def scalar(self, x: jax.Array | float) -> jax.Array:
        """``x`` as registers and FP SRAM store it."""
        return self._scalar(jnp.asarray(x, jnp.float32))

    @_once
    def _scalar(self, x: jax.Array) -> jax.Array:
        return rounding.scalar(x, self.config, None, False)

    def staged(self, x: jax.Array, role: Role, matrix_unit: bool | None = None) -> jax.Array:
        """``x`` as HBM holds it; zeros up to whole tiles take part in blocks."""
        return self._staged(role, role == "weights" if matrix_unit is None else matrix_unit, x)

    @partial(jax.jit, static_argnums=(0, 1, 2))
    def _staged(self, role: Role, matrix_unit: bool, x: jax.Array) -> jax.Array:
        fmt = format_of(self.config, role, matrix_unit)
        rows, columns = x.shape
        padded = jnp.pad(x, ((0, 0), (0, round_up(columns, self.config.mlen) - columns)))
        return effective(fmt, self.config.intended).round(padded)[:rows, :columns]

    # -- vector unit --------------------------------------------------------------------------------------------------

    @_once
    def add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """V_ADD_VV, V_ADD_VF."""
        return self.vector(arithmetic.add(*jnp.broadcast_arrays(a, b)))

    @_once
    def subtract(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """V_SUB_VV, V_SUB_VF."""
        return self.vector(arithmetic.subtract(*jnp.broadcast_arrays(a, b)))

    @_once
    def reversed_subtract(self, a: jax.Array, f: jax.Array) -> jax.Array:
        """V_SUB_VF with order 1: ``f - a``."""
        return self.vector(-arithmetic.subtract(*jnp.broadcast_arrays(a, f)))

    @_once
    def multiply(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """V_MUL_VV, V_MUL_VF."""
        return self.vector(arithmetic.multiply(*jnp.broadcast_arrays(a, b)))

    @_once
    def exp(self, a: jax.Array) -> jax.Array:
        """V_EXP_V."""
        return self.vector(arithmetic.exp(arithmetic.clamp_exponent(a)))

    @_once
    def reciprocal(self, a: jax.Array) -> jax.Array:
        """V_RECI_V."""
        return self.vector(arithmetic.reciprocal(a))

    @_once
    def maximum(self, a: jax.Array, f: jax.Array) -> jax.Array:
        """V_MAX_VF."""
        a, f = jnp.broadcast_arrays(a, f)
        return self.vector(jnp.where(arithmetic.less(a, f), f, a))

    @_once
    def minimum(self, a: jax.Array, f: jax.Array) -> jax.Array:
        """V_MIN_VF."""
        a, f = jnp.broadcast_arrays(a, f)
        return self.vector(jnp.where(arithmetic.less(f, a), f, a))

    def _blocks(self, x: jax.Array, fill: float) -> list[jax.Array]:
        """Blocks [rows, MLEN] of columns; ``fill`` stands in the lanes behind the last column."""
        lanes = self.config.mlen
        padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % lanes)), constant_values=fill)
        return [padded[:, start : start + lanes] for start in range(0, padded.shape[1], lanes)]

    def row_sum(self, x: jax.Array, start: jax.Array | float = 0.0) -> jax.Array:
        """V_RED_SUM of each row, block after block: [rows, 1]."""
        total = jnp.broadcast_to(self.scalar(start), (x.shape[0], 1))
        for block in self._blocks(x, 0.0):
            total = self._sum(total, block)
        return total

    @_once
    def _sum(self, total: jax.Array, block: jax.Array) -> jax.Array:
        return self.scalar(arithmetic.add(total, row_sum(block)[:, None]))

    def row_max(self, x: jax.Array, start: jax.Array | float, fill: float) -> jax.Array:
        """V_RED_MAX of each row, block after block: [rows, 1]."""
        most = jnp.broadcast_to(self.scalar(start), (x.shape[0], 1))
        for block in self._blocks(x, fill):
            most = self._max(most, block)
        return most

    @_once
    def _max(self, most: jax.Array, block: jax.Array) -> jax.Array:
        largest = row_max(block)[:, None]
        return self.scalar(jnp.where(arithmetic.less(largest, most), most, largest))

    # -- scalars ------------------------------------------------------------------------------------------------------

    @_once
    def scalar_add(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """S_ADD_FP."""
        return self.scalar(arithmetic.add(*jnp.broadcast_arrays(a, b)))

    @_once
    def scalar_subtract(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """S_SUB_FP."""
        return self.scalar(arithmetic.subtract(*jnp.broadcast_arrays(a, b)))

    @_once
    def scalar_exp(self, a: jax.Array) -> jax.Array:
        """S_EXP_FP."""
        return self.scalar(arithmetic.exp(arithmetic.clamp_exponent(a)))

    @_once
    def scalar_multiply(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """S_MUL_FP."""
        return self.scalar(arithmetic.multiply(*jnp.broadcast_arrays(a, b)))

    @_once
    def scalar_reciprocal(self, a: jax.Array) -> jax.Array:
        """S_RECI_FP."""
        return self.scalar(arithmetic.reciprocal(a))

    @_once
    def scalar_sqrt(self, a: jax.Array) -> jax.Array:
        """S_SQRT_FP."""
        return self.scalar(arithmetic.sqrt(a))

    # -- matrix unit --------------------------------------------------------------------------------------------------

    def scaled_matmul(self, x: jax.Array, w: jax.Array, scale: float) -> jax.Array:
        """M_BTMM and M_BMM_WO: a sum along k, HLEN at most, times ``scale``; then rounded."""
        total = accumulate(jnp.zeros((x.shape[0], w.shape[1]), jnp.float32), x, w)
        scaled = arithmetic.multiply(*jnp.broadcast_arrays(total, jnp.float32(scale)))
        return self.vector(arithmetic.add(jnp.zeros_like(scaled), scaled))

    def matmul(self, x: jax.Array, w: jax.Array, tiles: int | None = None) -> jax.Array:
        """M_MM and M_MM_WO: tiles of MLEN along k in one float32 accumulator, then rounded.

        Args:
            x, w: [rows, k], [k, columns].
            tiles: those after which the accumulator is written and the rounded sums are added in vector SRAM.
        """
        lanes = self.config.mlen
        # Zeros behind the last k take part in no rounding, but in the order of sums.
        pad = -x.shape[1] % lanes
        x, w = jnp.pad(x, ((0, 0), (0, pad))), jnp.pad(w, ((0, pad), (0, 0)))
        count = x.shape[1] // lanes
        chunk = tiles or count
        result = None
        for first in range(0, count, chunk):
            total = jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)
            for tile in range(first, min(first + chunk, count)):
                at = slice(tile * lanes, (tile + 1) * lanes)
                total = accumulate(total, x[:, at], w[at])
            part = self.vector(total)
            result = part if result is None else self.add(result, part)
        assert result is not None
        return result
