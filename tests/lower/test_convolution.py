"""Convolutions of any stride, padding and width: exact moves, then products."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import plena_jax as pj
from plena_jax.lower import Graph, OperatorError, lower
from plena_jax.lower.kernels.convolution import host_im2col

from .cases import Case, Together, check_bits, check_case, check_formula, fits, machine, only, relative_l2, same_bits


def patches(channels: int, height: int, width: int, kernel: Any, **more: Any) -> Case:
    """The patches of an image."""
    sizes = {"channels": channels, "height": height, "width": width, "kernel": kernel, **more}
    return Case("im2col", {"image": (channels * height, width)}, sizes, hbm={"image": "activations"})


def convolution(columns: int, case: Case, bias: bool = False, **more: Any) -> Case:
    """The same image with a kernel."""
    k, channels = case.attributes["kernel"], case.attributes["channels"]
    rows = channels * (k * k if isinstance(k, int) else k[0] * k[1])
    shapes = {**case.shapes, "w": (rows, columns)} | ({"bias": (1, columns)} if bias else {})
    roles = case.hbm | {"w": "weights"} | ({"bias": "activations"} if bias else {})
    return Case("conv2d", shapes, case.attributes | more, roles)


#: Of MLEN 16: pieces that straddle blocks, padding on all sides, rows wider than a block, kernels of one element.
#: Images of two shapes: each takes compilations of its own.
CASES = [
    patches(1, 12, 7, 3),
    patches(2, 6, 7, (3, 2), stride=(2, 1), padding=(1, 2)),
    patches(1, 12, 40, (2, 5), stride=(1, 7), padding=(0, 3)),
    patches(3, 4, 40, 4, stride=4),
    patches(2, 6, 40, (1, 20), stride=(3, 9), padding=(2, 1)),
    patches(2, 6, 40, (2, 8), stride=(1, 32)),
    patches(3, 4, 40, 1, stride=(1, 13)),
    patches(1, 12, 7, (6, 7), padding=(2, 20), stride=(1, 5)),
    patches(3, 4, 7, (3, 7)),
]
CONVOLUTIONS = [convolution(5, CASES[1], bias=True)]
ELEMENT_BY_ELEMENT = [dataclasses.replace(case, attributes=case.attributes | {"shift": False}) for case in CASES]
ALL = (*CASES, *ELEMENT_BY_ELEMENT, *CONVOLUTIONS)
#: What there is time for at every run.
TABLE = (*(CASES[i] for i in (1, 2, 4, 5, 7)), *(ELEMENT_BY_ELEMENT[i] for i in (1, 2)), *CONVOLUTIONS)


@cache
def run(formats: str = "published") -> Together:
    """Some cases on one machine."""
    return Together(TABLE, machine(formats=formats))


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[case.id for case in TABLE])
def test_the_machine_is_the_rounded_reference(number: int) -> None:
    check_case(run(), number)


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[case.id for case in TABLE])
def test_the_rounded_reference_is_the_formula_without_roundings(number: int) -> None:
    check_formula(run("float32"), number)


def convolved(x: np.ndarray, w: np.ndarray, sizes: dict[str, Any]) -> np.ndarray:
    """By JAX."""
    pair = lambda value: (value, value) if isinstance(value, int) else value
    k, s, p = (pair(sizes.get(name, default)) for name, default in (("kernel", 0), ("stride", 1), ("padding", 0)))
    channels = sizes["channels"]
    y = jax.lax.conv_general_dilated(
        x.reshape(1, channels, sizes["height"], sizes["width"]),
        w.T.reshape(w.shape[1], channels, *k),
        s,
        [(n, n) for n in p],
        precision=jax.lax.Precision.HIGHEST,
    )
    return np.asarray(y).reshape(w.shape[1], -1).T


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_patches_times_weights_are_the_convolution_of_jax(case: Case) -> None:
    sizes = case.attributes
    x = case.operands()["image"]
    columns = np.asarray(host_im2col(x, **sizes))
    w = np.random.default_rng(3).standard_normal((columns.shape[1], 4)).astype(np.float32)
    assert relative_l2(columns @ w, convolved(x, w, sizes)) < 1e-6
    if columns.shape[1] > 1:
        assert relative_l2(np.roll(columns, 1, axis=1) @ w, convolved(x, w, sizes)) > 1e-2


def test_conv2d_is_the_convolution_of_jax() -> None:
    together, number = run("float32"), len(TABLE) - 1
    case = TABLE[number]
    operands = together.operands()
    image, w, bias = (operands[together.lowered.graph.inputs[i].name] for i in (0, -2, -1))
    wanted = convolved(image, w, case.attributes) + bias
    assert relative_l2(together.rounded[number], wanted) <= 1e-5
    assert relative_l2(together.exact[number], wanted) <= 1e-6


@pytest.mark.exhaustive
@pytest.mark.parametrize("formats", ["published", "float32"])
def test_all_cases(formats: str) -> None:
    together = Together(ALL, machine(formats=formats))
    check_bits(together)


@pytest.mark.exhaustive
@pytest.mark.parametrize("fetched", [1, 2, 3])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_transfers_of_other_sizes(fetched: int, step: int) -> None:
    config = dataclasses.replace(
        machine(), hbm_m_prefetch_amount=16 * fetched, hbm_v_prefetch_amount=step, matrix_sram_size=16 * 12
    )
    together = Together(ALL, config)
    check_bits(together)


#: OP7a to OP7d of the published tests: channels, kernel, height, width.
PUBLISHED = [(4, 4, 67, 4), (2, 8, 71, 8), (3, 8, 71, 8), (3, 14, 77, 14)]


@pytest.mark.slow
def test_the_kernel_of_siglip() -> None:
    check_published(*PUBLISHED[-1], shift=True)


@pytest.mark.exhaustive
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(("channels", "kernel", "height", "width"), PUBLISHED)
def test_the_published_sizes(channels: int, kernel: int, height: int, width: int, shift: bool) -> None:
    check_published(channels, kernel, height, width, shift=shift)


def check_published(channels: int, kernel: int, height: int, width: int, shift: bool) -> None:
    """One of the published tests, bit for bit."""
    config = pj.MachineConfig(hbm_size=1 << 24, vector_sram_size=8192)
    case = convolution(64, patches(channels, height, width, kernel, shift=shift))
    lowered, operands = case.lowered(config), case.operands()
    found, rounded = only(lowered(**operands)), only(lowered.rounded(**operands))
    assert same_bits(found, rounded)
    # 8-bit formats: a few percent from the formula.
    assert relative_l2(found, only(lowered.exact(**operands))) < 0.08
    assert not fits(np.zeros_like(found), rounded)


@pytest.mark.exhaustive
def test_patches_of_siglip() -> None:
    """Patches of 14 x 14 every 14 elements, of images wider than a block."""
    config = pj.MachineConfig(hbm_size=1 << 24, vector_sram_size=8192)
    case = patches(3, 56, 112, 14, stride=14)
    lowered, operands = case.lowered(config), case.operands()
    assert same_bits(only(lowered(**operands)), only(lowered.rounded(**operands)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "im2col: channels: expected a positive number, got 0"),
        ({"kernel": (9, 2)}, r"im2col: kernel: expected at most \(6, 7\), the padded image, got \(9, 2\)"),
        ({"stride": 0}, "im2col: stride: expected a number or a pair of at least 1, got 0"),
        ({"padding": (1, -1)}, r"im2col: padding: expected a number or a pair of at least 0, got \(1, -1\)"),
        ({"kernel": (1, 2, 3)}, r"im2col: kernel: expected a number or a pair of at least 1, got \(1, 2, 3\)"),
        ({"channels": 1}, r"im2col: shape of image \(image\): expected \(6, 7\), got \(12, 7\)"),
        ({"shift": 3}, "im2col: shift: expected True or False, got 3"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    case = patches(2, 6, 7, 2)
    with pytest.raises(OperatorError, match=message):
        dataclasses.replace(case, attributes=case.attributes | change).graph(machine())


def test_wrong_operands() -> None:
    g = Graph(machine())
    x, w = g.input("x", (12, 7), "hbm"), g.input("w", (9, 4), "hbm", "weights")
    sizes: dict[str, Any] = {"channels": 2, "height": 6, "width": 7, "kernel": 2}
    with pytest.raises(OperatorError, match=r"conv2d: rows of w \(w\): expected 8, got 9"):
        g.conv2d(x, w, **sizes)
    with pytest.raises(OperatorError, match=r"im2col: image \(y\) is in vram; expected hbm"):
        g.im2col(g.input("y", (12, 7)), **sizes)
    with pytest.raises(OperatorError, match="im2col: shift: expected 2 tiles of matrix SRAM, got 1"):
        patches(2, 6, 7, 2).graph(machine(tiles=1))
    lower_ = patches(2, 6, 7, 2, shift=False).graph(machine(tiles=1))
    assert lower(lower_).program.words.size
