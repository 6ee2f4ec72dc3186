"""Convolutions of any stride, padding and width: exact moves, then products."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from plena_jax.lower import Graph, OperatorError, lower
from plena_jax.lower.kernels.convolution import host_im2col

from .cases import Case, cosine, machine, only, relative_l2, same_bits


def image(channels: int, height: int, width: int, kernel: Any, **more: Any) -> Case:
    """The patches of an image."""
    sizes = {"channels": channels, "height": height, "width": width, "kernel": kernel, **more}
    return Case("im2col", {"image": (channels * height, width)}, sizes, hbm={"image": "activations"})


#: Of MLEN 16: pieces that straddle blocks, padding on all sides, rows wider than a block, kernels of one element.
CASES = [
    image(1, 5, 5, 3),
    image(2, 6, 7, (3, 2), stride=(2, 1), padding=(1, 2)),
    image(1, 3, 40, (2, 5), stride=(1, 7), padding=(0, 3)),
    image(3, 4, 16, 4, stride=4),
    image(1, 2, 40, (1, 20), stride=(3, 9), padding=(2, 1)),
    image(2, 8, 4, 4),
]
CASES += [Case(c.name, c.shapes, c.attributes | {"shift": False}, c.hbm) for c in CASES]


def fits(found: np.ndarray, wanted: np.ndarray) -> bool:
    """The gate."""
    return relative_l2(found, wanted) <= 1e-3 and cosine(found, wanted) >= 0.9999


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_patches_are_exact(case: Case) -> None:
    lowered, operands = case.lowered(machine()), case.operands()
    found, rounded = only(lowered(**operands)), only(lowered.rounded(**operands))
    assert same_bits(found, rounded)
