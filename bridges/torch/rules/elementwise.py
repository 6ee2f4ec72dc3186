"""Element by element: arithmetic, functions, activations, comparisons; and what changes no value."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..registry import Rule, refuse_if, rule

_FUNCTIONS: dict[str, Rule] = {
    "abs": jnp.abs,
    "neg": jnp.negative,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "erf": jax.scipy.special.erf,
    "erfc": jax.scipy.special.erfc,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "trunc": jnp.trunc,
    "logical_not": jnp.logical_not,
    "bitwise_not": jnp.bitwise_not,
    "isnan": jnp.isnan,
    "isinf": jnp.isinf,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": jax.nn.hard_swish,
    "hardsigmoid": jax.nn.hard_sigmoid,
    "selu": jax.nn.selu,
}
for _name, _function in _FUNCTIONS.items():
    rule(f"aten.{_name}.default")(_function)

_PAIRS: dict[str, Rule] = {
    "mul": jnp.multiply,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "remainder": jnp.remainder,
    "fmod": jnp.fmod,
}
for _name, _function in _PAIRS.items():
    rule(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_function)
_NAMED_PAIRS: dict[str, Rule] = {
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
    "floor_divide": jnp.floor_divide,
    "atan2": jnp.arctan2,
}
for _name, _function in _NAMED_PAIRS.items():
    rule(f"aten.{_name}.default")(_function)
rule("aten.max.other")(jnp.maximum)
rule("aten.min.other")(jnp.minimum)


@rule(
    *(
        f"aten.{name}.default"
        for name in ("alias", "clone", "contiguous", "detach", "detach_", "lift_fresh", "_to_copy")
    ),
    *(f"aten.to.{kind}" for kind in ("dtype", "device", "dtype_layout", "other", "prim_Device", "prim_dtype")),
    *(f"aten.{name}.default" for name in ("lift_fresh_copy", "type_as", "positive", "resolve_conj", "resolve_neg")),
)
def same(x: Array, *arguments: Any, **keywords: Any) -> Array:
    """The values as they are; the result is cast to the data type of the graph."""
    return x


@rule("aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default")
def dropout(x: Array, probability: float, train: bool) -> Array:
    """Nothing, outside of training."""
    refuse_if(train and probability > 0, "dropout in training is random; export the module in eval mode")
    return x


@rule("aten.native_dropout.default")
def native_dropout(x: Array, probability: float, train: bool | None) -> tuple[Any, ...]:
    """Nothing, outside of training; and what was kept."""
    return dropout(x, probability, bool(train)), lambda: jnp.ones(x.shape, bool)


def _scaled(x: Any, alpha: float) -> Any:
    return x if alpha == 1 else jnp.multiply(x, alpha)


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(a: Any, b: Any, scalar_alpha: float = 1, *, alpha: float = 1) -> Array:
    """a + alpha b."""
    return jnp.add(a, _scaled(b, alpha * scalar_alpha))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(a: Any, b: Any, scalar_alpha: float = 1, *, alpha: float = 1) -> Array:
    """a - alpha b."""
    return jnp.subtract(a, _scaled(b, alpha * scalar_alpha))


@rule("aten.rsub.Tensor", "aten.rsub.Scalar")
def rsub(a: Any, b: Any, scalar_alpha: float = 1, *, alpha: float = 1) -> Array:
    """b - alpha a."""
    return jnp.subtract(b, _scaled(a, alpha * scalar_alpha))


@rule("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode", "aten.true_divide.Tensor")
def div(a: Any, b: Any, *, rounding_mode: str | None = None) -> Array:
    """a / b, as it is or rounded down or to zero."""
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b)
    if rounding_mode == "trunc":
        kind = jnp.result_type(a, b)
        if jnp.issubdtype(kind, jnp.integer):
            # A quotient in float32 may round up.
            return lax.div(*jnp.broadcast_arrays(jnp.asarray(a, kind), jnp.asarray(b, kind)))
        return jnp.trunc(jnp.divide(a, b))
    return jnp.divide(a, b)


@rule("aten.reciprocal.default")
def reciprocal(x: Array) -> Array:
    """1 / x."""
    return jnp.divide(1.0, x)


@rule("aten.rsqrt.default")
def rsqrt(x: Array) -> Array:
    """1 / sqrt(x)."""
    return lax.rsqrt(x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32))


@rule("aten.square.default")
def square(x: Array) -> Array:
    """x x."""
    return x * x


@rule("aten.pow.Tensor_Scalar")
def power(x: Array, exponent: float) -> Array:
    """x to a known exponent, in the simplest operations that it can be written with."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.power(x, exponent)
    simple = {1: lambda: x, 2: lambda: x * x, 0.5: lambda: jnp.sqrt(x), -0.5: lambda: lax.rsqrt(x), -1: lambda: 1.0 / x}
    if exponent in simple:
        return simple[exponent]()
    if exponent == int(exponent):
        return x ** int(exponent)
    return jnp.power(x, exponent)


rule("aten.pow.Tensor_Tensor", "aten.pow.Scalar")(jnp.power)


@rule("aten.clamp.default", "aten.clamp.Tensor")
def clamp(x: Array, lowest: Any = None, highest: Any = None) -> Array:
    """Values between two limits."""
    return jnp.clip(x, lowest, highest)


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(x: Array, lowest: Any) -> Array:
    """Values not below a limit."""
    return jnp.maximum(x, lowest)


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(x: Array, highest: Any) -> Array:
    """Values not above a limit."""
    return jnp.minimum(x, highest)


@rule("aten.hardtanh.default")
def hardtanh(x: Array, lowest: float = -1.0, highest: float = 1.0) -> Array:
    """Values between two limits."""
    return jnp.clip(x, lowest, highest)


@rule("aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar")
def where(condition: Array, a: Any, b: Any) -> Array:
    """Values of a where the condition holds, else of b."""
    return jnp.where(condition, a, b)


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(x: Array, mask: Array, value: Any) -> Array:
    """One value where the mask holds."""
    return jnp.where(mask, value, x)


@rule("aten.gelu.default")
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """Both forms."""
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@rule("aten.leaky_relu.default")
def leaky_relu(x: Array, slope: float = 0.01) -> Array:
    """x, and a part of it below zero."""
    return jax.nn.leaky_relu(x, slope)


@rule("aten.prelu.default")
def prelu(x: Array, weight: Array) -> Array:
    """x, and a learned part of it below zero, for each channel (dimension 1)."""
    if weight.size > 1:
        weight = weight.reshape((-1,) + (1,) * (x.ndim - 2))
    return jnp.where(x > 0, x, weight * x)


@rule("aten._prelu_kernel.default")
def prelu_kernel(x: Array, weight: Array) -> Array:
    """x, and a learned part of it below zero."""
    return jnp.where(x > 0, x, weight * x)


@rule("aten.elu.default")
def elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    """scale (x or alpha (exp(input_scale x) - 1))."""
    if input_scale == 1:
        return _scaled(jax.nn.elu(x, alpha), scale)
    return _scaled(jnp.where(x > 0, x, alpha * jnp.expm1(jnp.minimum(x, 0.0) * input_scale)), scale)


@rule("aten.celu.default")
def celu(x: Array, alpha: float = 1.0) -> Array:
    """The continuous elu."""
    return jax.nn.celu(x, alpha)


@rule("aten.softplus.default")
def softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """log(1 + exp(beta x)) / beta; x above the threshold, which changes no float32 from 20 on."""
    y = jax.nn.softplus(x) if beta == 1 else jax.nn.softplus(x * beta) / beta
    return y if threshold >= 20 else jnp.where(x * beta > threshold, x, y)


@rule("aten.threshold.default")
def threshold(x: Array, limit: float, value: float) -> Array:
    """x above a limit, else a value."""
    return jnp.where(x > limit, x, value)


@rule("aten.glu.default")
def glu(x: Array, dim: int = -1) -> Array:
    """One half times the sigmoid of the other."""
    return jax.nn.glu(x, dim)


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(a: Array, b: Array, weight: Any) -> Array:
    """Between a and b."""
    return a + weight * (b - a)


@rule("aten.addcmul.default")
def addcmul(x: Array, a: Array, b: Array, *, value: float = 1) -> Array:
    """x + value a b."""
    return x + _scaled(a * b, value)


@rule("aten.addcdiv.default")
def addcdiv(x: Array, a: Array, b: Array, *, value: float = 1) -> Array:
    """x + value a / b."""
    return x + _scaled(a / b, value)
