"""Functions of single elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.sequence import Algebra, Compiled, Evaluated, Value
from plena_jax.lower.tensors import OperatorError, Rows, Shape, Tensor

# -- the formulas -----------------------------------------------------------------------------------------------------


def exp_reference(x: jax.Array) -> jax.Array:
    """``exp(x)``; the machine clamps x to -88..88."""
    return jnp.exp(x)


def exp(v: Algebra, x: Value) -> Value:
    """One instruction."""
    return v.exp(x)


def reciprocal_reference(x: jax.Array) -> jax.Array:
    """``1 / x``."""
    return 1 / x


def reciprocal(v: Algebra, x: Value) -> Value:
    """One instruction."""
    return v.reciprocal(x)


def square_reference(x: jax.Array) -> jax.Array:
    """``x ** 2``."""
    return x * x


def square(v: Algebra, x: Value) -> Value:
    """One instruction."""
    return v.mul(x, x)


def relu_reference(x: jax.Array) -> jax.Array:
    """``max(x, 0)``."""
    return jax.nn.relu(x)


def relu(v: Algebra, x: Value) -> Value:
    """One instruction."""
    return v.max(x, 0.0)


def sigmoid_reference(x: jax.Array) -> jax.Array:
    """``1 / (1 + exp(-x))``."""
    return jax.nn.sigmoid(x)


def sigmoid(v: Algebra, x: Value) -> Value:
    """As the formula says."""
    return v.reciprocal(v.add(v.exp(v.from_number(0.0, x)), 1.0))


def tanh_reference(x: jax.Array) -> jax.Array:
    """``tanh(x)``."""
    return jnp.tanh(x)


def tanh(v: Algebra, x: Value) -> Value:
    """``1 - 2 / (exp(2 x) + 1)``."""
    return v.from_number(1.0, v.mul(v.reciprocal(v.add(v.exp(v.mul(x, 2.0)), 1.0)), 2.0))


def silu_reference(x: jax.Array) -> jax.Array:
    """``x * sigmoid(x)``."""
    return jax.nn.silu(x)


def silu(v: Algebra, x: Value) -> Value:
    """As the formula says."""
    return v.mul(sigmoid(v, x), x)


def gelu_reference(x: jax.Array, *, approximate: str = "none") -> jax.Array:
    """``x * Phi(x)``: "none" to float32 accuracy, or the "tanh" or "sigmoid" approximation of Hendrycks and Gimpel."""
    if approximate == "sigmoid":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=approximate == "tanh")


#: erf by formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7: p, and the coefficients of t to t ** 5.
ERF = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def gelu(v: Algebra, x: Value, *, approximate: str = "none") -> Value:
    """The approximations are ``x * sigmoid(2 z)``. The exact form takes the tail of the normal distribution.

    With a = abs(x), t = 1 / (1 + p * a / sqrt(2)) and Q = polynomial(t) / 2 * exp(-a ** 2 / 2), the upper tail, it is
    max(x, 0) - a * Q: no difference of nearly equal numbers.
    """
    if approximate == "sigmoid":
        return v.mul(sigmoid(v, v.mul(x, 1.702)), x)
    if approximate == "tanh":
        factor = math.sqrt(8 / math.pi)
        inner = v.add(v.mul(v.mul(x, x), 0.044715 * factor), factor)
        return v.mul(sigmoid(v, v.mul(inner, x)), x)
    p, coefficients = ERF
    positive = v.max(x, 0.0)
    magnitude = v.sub(v.add(positive, positive), x)
    t = v.reciprocal(v.add(v.mul(magnitude, p / math.sqrt(2)), 1.0))
    polynomial = v.mul(t, coefficients[-1] / 2)
    for c in reversed(coefficients[:-1]):
        polynomial = v.mul(v.add(polynomial, c / 2), t)
    tail = v.mul(polynomial, v.exp(v.mul(v.mul(magnitude, magnitude), -0.5)))
    return v.sub(positive, v.mul(tail, magnitude))


def clamp_reference(x: jax.Array, *, low: float = -math.inf, high: float = math.inf) -> jax.Array:
    """``min(max(x, low), high)``."""
    return jnp.clip(x, low, high)


def clamp(v: Algebra, x: Value, *, low: float = -math.inf, high: float = math.inf) -> Value:
    """One or two instructions."""
    if high < low or (low == -math.inf and high == math.inf):
        raise OperatorError(f"clamp: low, high: expected low below high, one of them finite, got {low}, {high}")
    x = v.max(x, low) if low > -math.inf else x
    return v.min(x, high) if high < math.inf else x


def scale_reference(x: jax.Array, *, factor: float) -> jax.Array:
    """``x * factor``."""
    return x * jnp.float32(factor)


def scale(v: Algebra, x: Value, *, factor: float) -> Value:
    """One instruction; the factor is rounded to a scalar."""
    return v.mul(x, _finite("scale: factor", factor))


def add_number_reference(x: jax.Array, *, number: float) -> jax.Array:
    """``x + number``."""
    return x + jnp.float32(number)


def add_number(v: Algebra, x: Value, *, number: float) -> Value:
    """One instruction; the number is rounded to a scalar."""
    return v.add(x, _finite("add_number: number", number))


def subtract_from_reference(x: jax.Array, *, number: float) -> jax.Array:
    """``number - x``."""
    return jnp.float32(number) - x


def subtract_from(v: Algebra, x: Value, *, number: float) -> Value:
    """One instruction; the number is rounded to a scalar."""
    return v.from_number(_finite("subtract_from: number", number), x)


def _finite(what: str, number: float) -> float:
    if not isinstance(number, int | float) or not math.isfinite(number):
        raise OperatorError(f"{what}: expected a finite number, got {number!r}")
    return float(number)


# -- activations of networks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """An activation by name.

    Attributes:
        operator: its operator.
        formula, reference: as the machine and as the model compute it.
        attributes: of all three.
    """

    operator: str
    formula: Callable[..., Value]
    reference: Callable[..., jax.Array]
    attributes: Mapping[str, str] = field(default_factory=dict)


#: Activations of feed-forward networks.
ACTIVATIONS = {
    "silu": Activation("silu", silu, silu_reference),
    "gelu": Activation("gelu", gelu, gelu_reference),
    "gelu_tanh": Activation("gelu", gelu, gelu_reference, {"approximate": "tanh"}),
    "gelu_sigmoid": Activation("gelu", gelu, gelu_reference, {"approximate": "sigmoid"}),
    "relu": Activation("relu", relu, relu_reference),
}

# -- from formulas to operators ---------------------------------------------------------------------------------------


@cache
def _compiled(formula: Callable[..., Value], attributes: tuple[tuple[str, Any], ...]) -> Compiled:
    return Compiled.of(lambda v, x: formula(v, x, **dict(attributes)), 1)


def emit_rows(
    k: Kernel,
    compiled: Compiled,
    out: Rows,
    x: Rows,
    keeps_zero: bool,
    guarded: bool = False,
) -> None:
    """A sequence on every row. What is behind the last column becomes zero again if the formula makes something of it.

    ``guarded``: it gets ones there before, where zeros would become infinite.
    """
    b, used = k.b, compiled.scratch
    with b.scope():
        scratch = [b.gp(k.scratch + i * x.lanes, "intermediate value") for i in range(used)]
        loaded = compiled.load(b)
        full = x.blocks if keeps_zero or not x.rest else x.blocks - 1
        if full:
            with k.each_vector(x, out, blocks=slice(full)) as (source, target):
                compiled.emit(b, target, [source], scratch, loaded)
        if full == x.blocks:
            return
        mask = k.lane_mask(x.shape[1], used)
        row = b.gp(mask.address, "mask")
        held = used + constant_rows(k.config)
        behind = b.gp(k.minus_ones(mask, held).address, "minus ones behind the last column") if guarded else None
        with k.each_vector(x, out, blocks=slice(full, None)) as (source, target):
            if behind is not None:
                b.v_sub_vv(target, source, behind)
                source = target
            compiled.emit(b, target, [source], scratch, loaded)
            b.v_mul_vv(target, target, row)


def register_formula(
    name: str,
    reference: Callable[..., jax.Array],
    formula: Callable[..., Value],
    keeps_zero: bool,
    guarded: bool = False,
    steps: int = 0,
) -> None:
    """Register a formula as an operator.

    Args:
        name: of the operator.
        reference: in float32.
        formula: a sequence of one operand.
        keeps_zero: whether it makes zero of zero.
        guarded: whether lanes behind the last column must not be zero for it.
        steps: instructions for a vector, of formulas that cannot be traced without attributes.
    """

    def rounded(r: Rounded, x: jax.Array, **attributes: Any) -> jax.Array:
        return formula(Evaluated(r), x, **attributes)

    def shape(config: MachineConfig, x: Tensor, **attributes: Any) -> Shape:
        _compiled(formula, tuple(attributes.items()))
        return x.shape

    def workspace(config: MachineConfig, x: Tensor, **attributes: Any) -> Workspace:
        behind = 0 if keeps_zero or x.shape[1] % config.mlen == 0 else constant_rows(config) + 1
        return Workspace(rows=_compiled(formula, tuple(attributes.items())).scratch + behind)

    def emit(k: Kernel, out: Rows, x: Rows, **attributes: Any) -> None:
        emit_rows(k, _compiled(formula, tuple(attributes.items())), out, x, keeps_zero, guarded)

    rounded.__doc__ = formula.__doc__
    register(
        Operator(
            name=name,
            family="elementwise",
            reference=reference,
            rounded=rounded,
            shape=shape,
            emit=emit,
            workspace=workspace,
            shares=("x",),
            cost=f"rows * blocks * ({steps or len(_compiled(formula, ()).steps)} + 2 or 3)",
        )
    )


register_formula("exp", exp_reference, exp, keeps_zero=False)
register_formula("reciprocal", reciprocal_reference, reciprocal, keeps_zero=False, guarded=True)
register_formula("square", square_reference, square, keeps_zero=True)
register_formula("relu", relu_reference, relu, keeps_zero=True)
register_formula("sigmoid", sigmoid_reference, sigmoid, keeps_zero=False)
register_formula("tanh", tanh_reference, tanh, keeps_zero=False)
register_formula("silu", silu_reference, silu, keeps_zero=True)
register_formula("gelu", gelu_reference, gelu, keeps_zero=True)
register_formula("clamp", clamp_reference, clamp, keeps_zero=False, steps=2)
register_formula("scale", scale_reference, scale, keeps_zero=True, steps=1)
register_formula("add_number", add_number_reference, add_number, keeps_zero=False, steps=1)
register_formula("subtract_from", subtract_from_reference, subtract_from, keeps_zero=False, steps=1)
