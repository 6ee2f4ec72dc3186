"""Rows of HBM to numbers: tiles of common scales are calculated, others looked up, and both are the same."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_formats import assert_same_bits

from plena_jax import MachineConfig
from plena_jax.config import E8M0, MXFP8
from plena_jax.formats import FloatFormat, IntFormat, MXFormat
from plena_jax.machine.memories import has_subnormal
from plena_jax.machine.transfer import Transfer, plain_scales

FORMATS = {
    "e4m3": MXFP8,
    "e5m2": MXFormat(FloatFormat.make(5, 2, family="plena"), E8M0, 8, "plena"),
    "e3m4": MXFormat(FloatFormat.make(3, 4, family="plena"), E8M0, 16, "plena"),
}
LANES = 64


def transfer(fmt: MXFormat) -> Transfer:
    return Transfer.of(MachineConfig(), fmt)


def every_code(fmt: MXFormat, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of rows with all elements under all of some scales."""
    codes = np.tile(np.arange(256, dtype=np.uint8), len(scales)).reshape(-1, LANES)
    return codes, np.repeat(scales.astype(np.uint8), 256 // fmt.block).reshape(-1, LANES // fmt.block)


def decoded(t: Transfer, codes: np.ndarray, scales: np.ndarray) -> jax.Array:
    run: Callable[..., jax.Array] = jax.jit(lambda c, s: t.decoding(len(c), lambda: c, lambda: s).taken())
    return run(codes, scales)


@pytest.mark.parametrize("name", FORMATS)
def test_plain_scales_are_calculated_as_looked_up(name: str) -> None:
    t, (first, last) = transfer(FORMATS[name]), plain_scales(FORMATS[name])
    assert first < 100 < 150 < last
    codes, scales = every_code(FORMATS[name], np.arange(first, last + 1))
    assert_same_bits(jax.jit(t._calculated)(codes, scales), t._looked_up(jnp.asarray(codes), jnp.asarray(scales)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_under_every_scale(name: str) -> None:
    """One odd scale in a tile is enough for looking up."""
    t = transfer(FORMATS[name])
    codes, scales = every_code(FORMATS[name], np.arange(256))
    assert_same_bits(decoded(t, codes, scales), t._looked_up(jnp.asarray(codes), jnp.asarray(scales)))


@pytest.mark.parametrize("name", FORMATS)
def test_smaller_scales_need_looking_up(name: str) -> None:
    """XLA's product would be zero."""
    t, (first, _) = transfer(FORMATS[name]), plain_scales(FORMATS[name])
    codes, scales = (jnp.asarray(a) for a in every_code(FORMATS[name], np.array([first - 1])))
    calculated, looked_up = (np.asarray(way(codes, scales)) for way in (jax.jit(t._calculated), t._looked_up))
    assert (calculated.view(np.uint32) != looked_up.view(np.uint32)).any()


def test_only_odd_tiles_have_subnormal_numbers() -> None:
    t, (first, last) = transfer(MXFP8), plain_scales(MXFP8)

    @jax.jit
    def quick(codes: jax.Array, scales: jax.Array) -> tuple[jax.Array, jax.Array]:
        ways = t.decoding(len(codes), lambda: codes, lambda: scales)
        assert ways.odd is not None
        return ways.odd, has_subnormal(ways.careful())

    assert [bool(found) for found in quick(*every_code(MXFP8, np.arange(first, last + 1)))] == [False, False]
    assert [bool(found) for found in quick(*every_code(MXFP8, np.arange(256)))] == [True, True]


def test_formats_that_are_not_calculated_say_so() -> None:
    first, last = plain_scales(MXFormat(IntFormat(8, fraction=6), E8M0, 8, "plena"))
    assert first > last
