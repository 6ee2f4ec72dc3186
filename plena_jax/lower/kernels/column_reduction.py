"""Sums, maxima and minima of each column: row after row."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import UNROLL, Kernel
from plena_jax.lower.kernels.functions import heaviside
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.sequence import Algebra, Compiled, Evaluated, Value
from plena_jax.lower.tensors import Rows, Shape, Tensor


def sum_reference(x: jax.Array) -> jax.Array:
    """The sum of each column: [1, columns]."""
    return jnp.sum(x, axis=0, keepdims=True)


def max_reference(x: jax.Array) -> jax.Array:
    """The maximum of each column of finite numbers: [1, columns]."""
    return jnp.max(x, axis=0, keepdims=True)


def min_reference(x: jax.Array) -> jax.Array:
    """The minimum of each column of finite numbers: [1, columns]."""
    return jnp.min(x, axis=0, keepdims=True)


def _sum(v: Algebra, x: Value, so_far: Value) -> Value:
    """Row after row, each sum rounded."""
    return v.add(x, so_far)


def _max(v: Algebra, x: Value, so_far: Value) -> Value:
    """Row after row; exact: ``m * x + (1 - m) * so_far``, m is 1 where x is greater."""
    return _chosen(v, heaviside(v, v.sub(x, so_far)), x, so_far)


def _min(v: Algebra, x: Value, so_far: Value) -> Value:
    """Row after row; exact: ``m * x + (1 - m) * so_far``, m is 1 where x is less."""
    return _chosen(v, heaviside(v, v.sub(so_far, x)), x, so_far)


def _chosen(v: Algebra, mask: Value, x: Value, y: Value) -> Value:
    rest = v.mul(v.from_number(1.0, mask), y)
    return v.add(v.mul(mask, x), rest)


@cache
def _compiled(formula: Callable[..., Value]) -> Compiled:
    return Compiled.of(formula, 2)


def _rounded(formula: Callable[..., Value], r: Rounded, x: jax.Array) -> jax.Array:
    step = lambda so_far, row: (formula(Evaluated(r), row[None], so_far), None)
    result: jax.Array = jax.lax.scan(step, x[:1], x[1:])[0]
    return result


def _shape(config: MachineConfig, x: Tensor) -> Shape:
    """One row."""
    return 1, x.shape[1]


def _workspace(formula: Callable[..., Value], config: MachineConfig, x: Tensor) -> Workspace:
    """Intermediate values."""
    return Workspace(rows=_compiled(formula).scratch)


def _emit(formula: Callable[..., Value], k: Kernel, out: Rows, x: Rows) -> None:
    """For each block the first row, then the others one after the other. FP SRAM: 1, and constants."""
    b, compiled = k.b, _compiled(formula)
    with b.scope():
        one, loaded = b.fp(1.0), compiled.load(b)
        scratch = [b.gp(k.scratch + i * x.lanes, "intermediate value") for i in range(compiled.scratch)]
        result, row = b.gp(out.address, out.name), b.gp(x.address, x.name)
        with b.loop(x.blocks, (result, out.pitch), (row, x.pitch - (x.shape[0] - 1) * x.lanes)):
            b.v_mul_vf(result, row, one)
            if x.shape[0] > 1:
                with b.loop(x.shape[0] - 1, unroll=UNROLL):
                    b.add(row, row, x.lanes)
                    compiled.emit(b, result, [row, result], scratch, loaded)


for _name, _reference, _formula in (
    ("sum_rows", sum_reference, _sum),
    ("max_rows", max_reference, _max),
    ("min_rows", min_reference, _min),
):
    _evaluated = partial(_rounded, _formula)
    _emitted = partial(_emit, _formula)
    _evaluated.__doc__, _emitted.__doc__ = _formula.__doc__, _emit.__doc__
    register(
        Operator(
            name=_name,
            family="column_reduction",
            reference=_reference,
            rounded=_evaluated,
            shape=_shape,
            emit=_emitted,
            workspace=partial(_workspace, _formula),
            cost=f"rows * blocks * {1 + len(_compiled(_formula).steps)}, about",
        )
    )
