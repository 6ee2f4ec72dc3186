"""The movement of elements: reshaping, transposing, slicing, padding, repeating and gathering are one operator."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.kernels.rearrange_kernel import Mover, hot_lanes, spare_rows
from plena_jax.lower.kernels.rearrange_plan import Rearrangement, Sizes, rearrangement
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rearrangement import Source
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import OperatorError, Rows, Shape, Tensor


def reference(x: jax.Array, into: jax.Array | None = None, *, source: Source) -> jax.Array:
    """Elements of x where ``source`` says; others are those of ``into``, or zero.

    The result has the shape of the source. Exact: values keep their bits, but for the sign of zeros, which is kept
    where whole vectors are copied only. Infinities and NaN arrive where they belong, but may make NaN of other elements
    that are moved in one product or sum with them (zero times infinity).

    Args:
        x: the matrix.
        into: of the shape of the source.
        source: a :class:`~plena_jax.lower.rearrangement.Source`: flat positions in x, or -1.
    """
    positions = source.positions
    moved = jnp.reshape(x, (-1,))[np.maximum(positions, 0)]
    return jnp.where(positions >= 0, moved, jnp.float32(0) if into is None else into)


def rounded(r: Rounded, x: jax.Array, into: jax.Array | None = None, *, source: Source) -> jax.Array:
    """Moves round nothing."""
    return reference(x, into, source=source)


def shape(config: MachineConfig, x: Tensor, into: Tensor | None, *, source: Source) -> Shape:
    """That of the source."""
    if not isinstance(source, Source):
        raise OperatorError(f"rearrange: source: expected a Source, got {type(source).__name__}")
    size = x.shape[0] * x.shape[1]
    if source.positions.max() >= size:
        raise OperatorError(
            f"rearrange: source: expected positions below {size}, the elements of x ({x.name}), got "
            f"{source.positions.max()}"
        )
    if into is not None:
        expect("rearrange", f"shape of into ({into.name})", source.shape, into.shape)
    return source.shape


def _plan(config: MachineConfig, x: Shape, has_into: bool, source: Source) -> Rearrangement:
    fetched = config.prefetch_m_rows // config.mlen
    tiles = config.tiles // fetched * fetched
    sizes = Sizes(config.mlen, config.blen, tiles * (config.mlen // config.blen))
    return rearrangement(source, x, has_into, sizes)


def workspace(config: MachineConfig, x: Tensor, into: Tensor | None, *, source: Source) -> Workspace:
    """Rows of a window, a spare row, masks; for elements a row for each lane, and MLEN entries of FP SRAM."""
    plan = _plan(config, x.shape, into is not None, source)
    masks = len(plan.masks) + len(hot_lanes(plan))
    held = constant_rows(config, masks) if masks else 0
    return Workspace(rows=spare_rows(config.blen) + held, fp=config.mlen if plan.elements else 0)


def emit(k: Kernel, out: Rows, x: Rows, into: Rows | None, *, source: Source) -> None:
    """For each run of like vectors what is cheapest: copies, shifts and masks; products with columns of zeros and ones.

    A vector whose lanes come from a row each, as in a transposition, is the sum of masked products of windows of BLEN
    rows. An element for many lanes goes through a register; if matrix SRAM does not hold all columns, others go through
    FP SRAM one by one. Workspace: BLEN + 1 rows, and masks. FP SRAM: 1, and for elements MLEN entries. Registers: 13 gp
    at most.
    """
    Mover(k, _plan(k.config, x.shape, into is not None, source), out, x, into).emit()


register(
    Operator(
        name="rearrange",
        family="rearrange",
        reference=reference,
        rounded=rounded,
        shape=shape,
        emit=emit,
        workspace=workspace,
        shares=("into",),
        cost="for each vector of MLEN lanes, about: copied 3; shifted and added 3 to 5 for each piece; products of "
        "BLEN rows 4 * MLEN/BLEN**2 for each vector that lanes come from; transposed 4 * MLEN/BLEN + 4 * BLEN",
    )
)
