"""The tiled projection of ``plena demo``: any shape it can tile equals its golden result, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plena_jax import ConfigError, MachineConfig, MachineState, run
from plena_jax.config import Formats, Intended
from plena_jax.formats import FloatFormat, MXFormat
from plena_jax.projection import Projection, random_projection

CONFIG = MachineConfig(mlen=16, vlen=16, blen=4, hlen=4, hbm_m_prefetch_amount=16, matrix_sram_size=96)


def result_of(job: Projection) -> np.ndarray:
    final = run(job.program, MachineState.from_images(job.config, job.images), job.config)
    return job.result(np.asarray(final.vram))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_equals_the_rounded_product(rows: int, k: int, n: int, seed: int) -> None:
    job = random_projection(4 * rows, 16 * k, 16 * n, CONFIG, seed)
    result, golden = result_of(job), job.rounded()
    assert np.array_equal(result.view(np.uint32), golden.view(np.uint32))
    exact = job.exact()
    assert np.linalg.norm(golden - exact) < 0.15 * np.linalg.norm(exact)


def test_stale_permuted_and_zero_results_differ() -> None:
    """Negative controls."""
    job, other = (random_projection(16, 32, 32, CONFIG, seed) for seed in (0, 1))
    result = result_of(job)
    for wrong in (np.zeros_like(result), np.roll(result, 16, axis=1), np.roll(result, 4, axis=0), result_of(other)):
        assert np.linalg.norm(wrong - job.rounded()) > 0.5 * np.linalg.norm(result)


def test_dead_weights_and_huge_activations() -> None:
    activations = np.zeros((4, 32), np.float32)
    activations[:, 0] = 3e38
    activations[1, 1] = 1e-30
    weights = np.zeros((32, 16), np.float32)
    weights[1] = 1.0
    job = Projection(activations, weights, CONFIG)
    assert np.array_equal(result_of(job).view(np.uint32), job.rounded().view(np.uint32))


@pytest.mark.parametrize(
    ("shape", "key"), [((3, 16, 16), "rows"), ((4, 20, 16), "k"), ((4, 16, 17), "n"), ((4, 16 * 7, 16), "k")]
)
def test_shapes_that_do_not_tile(shape: tuple[int, int, int], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        random_projection(*shape, CONFIG)
    assert caught.value.key == key


def shaped(mlen: int, tiles: int = 2, **changes: object) -> MachineConfig:
    fields = {"mlen": mlen, "vlen": mlen, "blen": 4, "hlen": mlen // 4, "hbm_m_prefetch_amount": mlen}
    return MachineConfig(**(fields | {"matrix_sram_size": tiles * mlen} | changes))


def test_tiles_of_more_than_a_block_add_in_blocks() -> None:
    """MLEN 256: two partial sums of 128 products a tile. Float32 in VRAM shows every bit of them."""
    precision = Formats(vector_sram_type=FloatFormat.make(8, 23, family="plena"))
    config = shaped(256, precision=precision, intended=Intended(plain_formats=True))
    job = random_projection(4, 512, 256, config, 1)
    assert np.array_equal(result_of(job).view(np.uint32), job.rounded().view(np.uint32))


@pytest.mark.parametrize(
    ("mlen", "shape", "key"),
    [
        (192, (4, 192, 192), "k"),
        (192, (4, 192, 1536), "k"),
        (40, (4, 40, 40), "n"),
        (24, (8, 24, 48), "n"),
        (1024, (4, 1024, 1024), "k"),
    ],
)
def test_scales_that_straddle_lines_are_refused(mlen: int, shape: tuple[int, int, int], key: str) -> None:
    """Of the scales behind a line the machine fetches none."""
    with pytest.raises(ConfigError, match="scale bytes straddle lines of 64 bytes") as caught:
        random_projection(*shape, shaped(mlen))
    assert caught.value.key == key


def test_a_side_that_is_no_power_of_two_is_not_refused() -> None:
    """Two scales a row straddle nothing."""
    mx = dataclasses.replace(CONFIG.precision.hbm_m_weight_type, block=12)
    job = random_projection(4, 48, 72, shaped(24, precision=Formats(hbm_m_weight_type=mx, hbm_v_act_type=mx)), 2)
    assert np.array_equal(result_of(job).view(np.uint32), job.rounded().view(np.uint32))


def test_plain_and_wide_formats_are_refused() -> None:
    wide = MXFormat(FloatFormat.make(5, 10, family="plena"), CONFIG.precision.hbm_m_weight_type.scale, 8)
    for fmt, rule in ((CONFIG.precision.vector_sram_type, "takes MX formats"), (wide, "MX elements of 8 bits")):
        precision = dataclasses.replace(CONFIG.precision, hbm_m_weight_type=fmt)
        with pytest.raises(ConfigError, match=rule):
            random_projection(4, 16, 16, dataclasses.replace(CONFIG, precision=precision))
