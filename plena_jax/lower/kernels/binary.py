"""Functions of two operands, with rows, columns and single numbers that are repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, Pointer, constant_rows
from plena_jax.lower.operators import Operator, Workspace, register
from plena_jax.lower.registers import Fp, Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import OperatorError, Rows, Shape, Tensor

#: How an operand of one row or column is repeated; see :func:`_shape`.
Reference = Callable[[jax.Array, jax.Array], jax.Array]


def add_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x + y``; one row, one column or one number is repeated."""
    return x + y


def sub_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x - y``; one row, one column or one number is repeated."""
    return x - y


def mul_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x * y``; one row, one column or one number is repeated."""
    return x * y


def div_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x / y``; one row, one column or one number is repeated."""
    return x / y


def maximum_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of x and y; one row, one column or one number is repeated."""
    return jnp.maximum(x, y)


def minimum_reference(x: jax.Array, y: jax.Array) -> jax.Array:
    """The smaller of x and y; one row, one column or one number is repeated."""
    return jnp.minimum(x, y)


# -- roundings --------------------------------------------------------------------------------------------------------


def _is_scalar(a: jax.Array, shape: Shape) -> bool:
    """Whether the machine takes an operand from a register: one number for each row, of results with more columns."""
    return a.shape[1] == 1 < shape[1]


def _rounded(kind: str, r: Rounded, x: jax.Array, y: jax.Array) -> jax.Array:
    shape = max(x.shape[0], y.shape[0]), max(x.shape[1], y.shape[1])
    swaps = _is_scalar(x, shape)
    # What comes from a register has been summed there: zeros are positive.
    scalar = lambda a: r.scalar(a + 0.0) if _is_scalar(a, shape) else a
    x, y = scalar(x), scalar(y)
    if kind == "add":
        return r.add(x, y)
    if kind == "sub":
        return r.reversed_subtract(y, x) if swaps else r.subtract(x, y)
    if kind == "mul":
        return r.multiply(x, y)
    if kind == "div":
        return r.multiply(x, r.scalar_reciprocal(y) if _is_scalar(y, shape) else r.reciprocal(y))
    if _is_scalar(x, shape) or _is_scalar(y, shape):
        vector, number = (y, x) if swaps else (x, y)
        return r.maximum(vector, number) if kind == "maximum" else r.minimum(vector, number)
    difference = r.subtract(y, x)
    zero = jnp.float32(0)
    return r.add(x, r.maximum(difference, zero) if kind == "maximum" else r.minimum(difference, zero))


# -- shapes -----------------------------------------------------------------------------------------------------------


def _shape(kind: str, config: MachineConfig, x: Tensor, y: Tensor) -> Shape:
    sizes = []
    for axis, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)):
        if a != b and 1 not in (a, b):
            what = ("rows", "columns")[axis]
            raise OperatorError(f"{kind}: {what} of y ({y.name}): expected {a} as x ({x.name}) or 1, got {b}")
        sizes.append(max(a, b))
    return sizes[0], sizes[1]


def _workspace(kind: str, config: MachineConfig, x: Tensor, y: Tensor) -> Workspace:
    _, columns = _shape(kind, config, x, y)
    mask = 2 * constant_rows(config) if columns % config.mlen else 0
    return Workspace(rows=1 + mask)


# -- kernels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Operands:
    """Where the current operands are.

    Attributes:
        k: the kernel.
        at: row pointers.
        out, x, y: operands.
        spare: a row of scratch.
        numbers: registers of operands of one column, by name.
        behind: minus ones behind the last column, or None.
    """

    k: Kernel
    at: Pointer
    out: Rows
    x: Rows
    y: Rows
    spare: Gp
    numbers: dict[str, Fp]
    behind: Rows | None

    def row(self, operand: Rows, block: int) -> Gp:
        """The current row of a block."""
        return self.at(operand, block)


def _emit(kind: str, k: Kernel, out: Rows, x: Rows, y: Rows) -> None:
    """Row by row, block by block. FP SRAM: none. Workspace: a row, and a mask of the lanes behind the last column.

    An operand of one column is summed into a register for each row.
    """
    b, last = k.b, out.blocks - 1
    held = constant_rows(k.config)
    numbered = {name: o for name, o in (("x", x), ("y", y)) if o.shape[1] == 1 < out.shape[1]}
    # Zeros behind the last column stay zero but for these.
    spoils = bool(out.rest) and (kind == "div" or (bool(numbered) and kind != "mul"))
    with b.scope():
        mask = k.lane_mask(out.shape[1], 1) if spoils else None
        behind = k.minus_ones(mask, 1 + held) if mask is not None and kind == "div" else None
        numbers = {name: b.fp(purpose=name) for name in numbered}
        moving = [o for o in (x, y) if o.shape[0] > 1 or out.shape[0] == 1]
        fixed = [o for o in (x, y) if not (o.shape[0] > 1 or out.shape[0] == 1)]
        fixed += [o for o in (mask, behind) if o is not None]
        spare = b.gp(k.scratch, "scratch")
        with k.each_row(out.shape[0], out, *moving, fixed=fixed) as at:
            for name, operand in numbered.items():
                b.s_add_fp(numbers[name], b.fp_zero, b.fp_zero)
                b.v_red_sum(numbers[name], at(operand))
            if kind == "div" and "y" in numbers:
                b.s_reci_fp(numbers["y"], numbers["y"])
            operands = _Operands(k, at, out, x, y, spare, numbers, behind)
            for block in range(out.blocks):
                _BLOCKS[kind](operands, block, block == last)
                if mask is not None and block == last:
                    b.v_mul_vv(at(out, block), at(out, block), at(mask))


def _emit_alike(kind: str, k: Kernel, out: Rows, x: Rows, y: Rows) -> None:
    """Operands of one shape, vector after vector."""
    b = k.b
    with b.scope():
        spare = b.gp(k.scratch, "scratch")
        with k.each_vector(out, x, y) as (target, first, second):
            rows = {out: target, y: second, x: first}
            at = lambda operand, block=0: rows[operand]
            _BLOCKS[kind](_Operands(k, at, out, x, y, spare, {}, None), 0, False)


def _commutative(name: str, o: _Operands, block: int, is_last: bool) -> None:
    b, target = o.k.b, o.row(o.out, block)
    if o.numbers:
        (which,) = o.numbers
        vector = o.row(o.y if which == "x" else o.x, block)
        getattr(b, f"v_{name}_vf")(target, vector, o.numbers[which])
    else:
        getattr(b, f"v_{name}_vv")(target, o.row(o.x, block), o.row(o.y, block))


def _sub(o: _Operands, block: int, is_last: bool) -> None:
    b, target = o.k.b, o.row(o.out, block)
    if "x" in o.numbers:
        b.v_sub_vf(target, o.row(o.y, block), o.numbers["x"], 0, 1)
    elif "y" in o.numbers:
        b.v_sub_vf(target, o.row(o.x, block), o.numbers["y"])
    else:
        b.v_sub_vv(target, o.row(o.x, block), o.row(o.y, block))


def _div(o: _Operands, block: int, is_last: bool) -> None:
    b, target = o.k.b, o.row(o.out, block)
    if "y" in o.numbers:
        b.v_mul_vf(target, o.row(o.x, block), o.numbers["y"])
        return
    source = o.row(o.y, block)
    if is_last and o.behind is not None:
        # One over the zeros behind the last column would be infinite.
        b.v_sub_vv(o.spare, source, o.at(o.behind))
        source = o.spare
    b.v_reci_v(o.spare, source)
    if "x" in o.numbers:
        b.v_mul_vf(target, o.spare, o.numbers["x"])
    else:
        b.v_mul_vv(target, o.row(o.x, block), o.spare)


def _extremum(name: str, o: _Operands, block: int, is_last: bool) -> None:
    if o.numbers:
        _commutative(name, o, block, is_last)
        return
    b = o.k.b
    b.v_sub_vv(o.spare, o.row(o.y, block), o.row(o.x, block))
    getattr(b, f"v_{name}_vf")(o.spare, o.spare, b.fp_zero)
    b.v_add_vv(o.row(o.out, block), o.row(o.x, block), o.spare)


_BLOCKS: dict[str, Callable[[_Operands, int, bool], None]] = {
    "add": partial(_commutative, "add"),
    "sub": _sub,
    "mul": partial(_commutative, "mul"),
    "div": _div,
    "maximum": partial(_extremum, "max"),
    "minimum": partial(_extremum, "min"),
}
_DOCS = {
    "add": "Each sum is rounded.",
    "sub": "Each difference is rounded.",
    "mul": "Each product is rounded.",
    "div": "The reciprocal of y is rounded, then its product with x.",
    "maximum": "Of two matrices ``x + max(y - x, 0)``, each step rounded: the machine compares with numbers only.",
    "minimum": "Of two matrices ``x + min(y - x, 0)``, each step rounded: the machine compares with numbers only.",
}


def _register(kind: str, reference: Reference) -> None:
    rounded = partial(_rounded, kind)
    rounded.__doc__ = _DOCS[kind]
    register(
        Operator(
            name=kind,
            family="binary",
            reference=reference,
            rounded=rounded,
            shape=partial(_shape, kind),
            emit=partial(_emit, kind),
            workspace=partial(_workspace, kind),
            shares=("x", "y"),
            cost="rows * blocks and the steps of the row pointers; two or three times that for div, maximum, minimum",
        )
    )


for _kind, _reference in (
    ("add", add_reference),
    ("sub", sub_reference),
    ("mul", mul_reference),
    ("div", div_reference),
    ("maximum", maximum_reference),
    ("minimum", minimum_reference),
):
    _register(_kind, _reference)
