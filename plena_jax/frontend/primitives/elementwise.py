"""Arithmetic, comparisons and functions of single elements."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from plena_jax.frontend.tracing import Call, Entry, Unsupported, Walk, primitive
from plena_jax.frontend.views import View

#: The largest finite number of BF16.
LARGEST = np.asarray(3.3895314e38, np.float32)
#: Primitives that are kinds of operations, by name.
_SAME = {
    "abs": "abs",
    "erf": "erf",
    "exp": "exp",
    "expm1": "expm1",
    "log": "log",
    "log1p": "log1p",
    "logistic": "sigmoid",
    "neg": "neg",
    "rsqrt": "rsqrt",
    "sign": "sign",
    "sqrt": "sqrt",
    "square": "square",
    "tanh": "tanh",
    "sub": "sub",
    "add": "add",
    "add_any": "add",
    "max": "maximum",
    "min": "minimum",
}


def _number(x: float) -> np.ndarray:
    return np.asarray(x, np.float32)


def _same(kind: str, walk: Walk, call: Call, *operands: Entry) -> Entry:
    _floats(call, kind, *operands)
    return walk.elementwise(kind, *operands, dtype=call.dtype)


def _floats(call: Call, kind: str, *operands: Entry) -> None:
    """Arithmetic on integers is for places in tables only; see ``gather``."""
    if call.dtype.kind in "iu" and kind not in ("add", "sub", "maximum", "minimum"):
        raise Unsupported("arithmetic on integers that depend on data")


for _primitive, _kind in _SAME.items():
    primitive(_primitive)(partial(_same, _kind))


@primitive("mul")
def mul(walk: Walk, call: Call, x: Entry, y: Entry) -> Entry:
    """A number times itself is a square."""
    _floats(call, "mul", x, y)
    a, b = walk.view(x), walk.view(y)
    return walk.elementwise("square", a) if a.same(b) else walk.elementwise("mul", a, b, dtype=call.dtype)


@primitive("div")
def div(walk: Walk, call: Call, x: Entry, y: Entry) -> Entry:
    """By a known number: times its reciprocal."""
    if call.dtype.kind in "iu":
        raise Unsupported("division of integers that depend on data")
    known = walk.known(y)
    if known is not None and known.all():
        return walk.elementwise("mul", x, (1 / known.astype(np.float64)).astype(np.float32))
    if walk.view(x).scalar == 1.0:
        return walk.elementwise("reciprocal", walk.view(y).broadcast(call.shape))
    return walk.elementwise("div", x, y)


@primitive("exp2")
def exp2(walk: Walk, call: Call, x: Entry) -> Entry:
    """By the exponential."""
    return walk.elementwise("exp", walk.elementwise("mul", x, _number(math.log(2))))


@primitive("cbrt")
def cbrt(walk: Walk, call: Call, x: Entry) -> Entry:
    """By logarithm and exponential of the magnitude."""
    root = _power_of(walk, walk.elementwise("abs", x), _number(1 / 3))
    return walk.elementwise("mul", walk.elementwise("sign", x), root)


@primitive("erfc")
def erfc(walk: Walk, call: Call, x: Entry) -> Entry:
    """``1 - erf(x)``."""
    return walk.elementwise("sub", _number(1), walk.elementwise("erf", x))


@primitive("integer_pow")
def integer_pow(walk: Walk, call: Call, x: Entry) -> Entry:
    """Repeated squares."""
    return _integer_power(walk, walk.view(x), call.params["y"])


def _integer_power(walk: Walk, x: View, n: int) -> View:
    if n < 0:
        return walk.elementwise("reciprocal", _integer_power(walk, x, -n))
    if n == 0:
        return walk.view(np.ones(x.shape, np.float32))
    if n == 1:
        return x
    half = walk.elementwise("square", _integer_power(walk, x, n // 2))
    return walk.elementwise("mul", half, x) if n % 2 else half


@primitive("pow")
def power(walk: Walk, call: Call, x: Entry, y: Entry) -> Entry:
    """Products and roots for exponents that are known to allow it, else by logarithm: of positive numbers."""
    exponent = walk.view(y).scalar
    if exponent is not None and exponent == int(exponent) and abs(exponent) <= 64:
        return _integer_power(walk, walk.view(x), int(exponent))
    if exponent == 0.5:
        return walk.elementwise("sqrt", x)
    if exponent == -0.5:
        return walk.elementwise("rsqrt", x)
    return _power_of(walk, x, y)


def _power_of(walk: Walk, x: Entry, y: Entry) -> View:
    base = walk.known(x)
    logarithm: Entry = walk.elementwise("log", x) if base is None else np.log(base)
    return walk.elementwise("exp", walk.elementwise("mul", logarithm, y))


# -- comparisons ------------------------------------------------------------------------------------------------------


def _compare(kind: str, swaps: bool, negates: bool, walk: Walk, call: Call, x: Entry, y: Entry) -> Entry:
    if swaps:
        x, y = y, x
    found = walk.elementwise(kind, x, y, dtype=bool)
    return walk.elementwise("not", found, dtype=bool) if negates else found


for _primitive, _arguments in {
    "gt": ("greater", False, False),
    "lt": ("greater", True, False),
    "ge": ("greater", True, True),
    "le": ("greater", False, True),
    "eq": ("equal", False, False),
    "ne": ("equal", False, True),
}.items():
    primitive(_primitive)(partial(_compare, *_arguments))


@primitive("and", "or", "xor", "not")
def logic(walk: Walk, call: Call, *operands: Entry) -> Entry:
    """Of booleans, which are 1 and 0."""
    if call.dtype.kind != "b":
        raise Unsupported("bits of integers that depend on data")
    name = call.primitive.name
    if name == "not":
        return walk.elementwise("not", *operands, dtype=bool)
    if name == "xor":
        return walk.elementwise("not", walk.elementwise("equal", *operands, dtype=bool), dtype=bool)
    return walk.elementwise("mul" if name == "and" else "maximum", *operands, dtype=bool)


@primitive("is_finite")
def is_finite(walk: Walk, call: Call, x: Entry) -> Entry:
    """Whether the magnitude is below the largest number of BF16."""
    return walk.elementwise("greater", LARGEST, walk.elementwise("abs", x), dtype=bool)


@primitive("select_n")
def select_n(walk: Walk, call: Call, which: Entry, *cases: Entry) -> Entry:
    """Of a known number one case; else of two."""
    known = walk.known(which)
    if known is not None and known.size and (known == known.reshape(-1)[0]).all():
        return walk.view(cases[int(known.reshape(-1)[0])]).broadcast(call.shape)
    if len(cases) > 2:
        raise Unsupported("a choice among more than two cases that depends on data")
    return walk.elementwise("select", which, cases[1], cases[0], dtype=call.dtype)


@primitive("clamp")
def clamp(walk: Walk, call: Call, low: Entry, x: Entry, high: Entry) -> Entry:
    """Bounds that are numbers, or of the shape of x."""
    return walk.elementwise("minimum", walk.elementwise("maximum", x, low), high)


# -- types ------------------------------------------------------------------------------------------------------------


@primitive("convert_element_type")
def convert(walk: Walk, call: Call, x: Entry) -> Entry:
    """Between floats, and from booleans and integers to floats, numbers stay what they are."""
    view, dtype = walk.view(x), call.dtype
    is_float = lambda d: d.kind == "f" or d.name in ("bfloat16", "float16")
    if view.dtype == dtype or is_float(dtype) or (view.dtype.kind == "b" and dtype.kind in "iu"):
        return View(view.bases, view.index, np.dtype(np.float32) if is_float(dtype) else dtype)
    if view.dtype.kind in "iu" and dtype.kind in "iu":
        return View(view.bases, view.index, dtype)
    if dtype.kind == "b":
        return walk.elementwise("not", walk.elementwise("equal", view, _number(0), dtype=bool), dtype=bool)
    raise Unsupported(f"numbers that depend on data made into {dtype.name}: the machine does not round to integers")


@primitive("reduce_precision", "copy", "copy_p", "stop_gradient", "optimization_barrier", "pvary", "device_put")
def same(walk: Walk, call: Call, *operands: Entry) -> list[Entry]:
    """What only concerns types, memory or derivatives."""
    return list(operands)
