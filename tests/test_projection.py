"""The tiled projection of ``plena demo``: any shape it can tile equals its golden result, bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plena_jax import ConfigError, MachineConfig, MachineState, run
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


def test_plain_formats_are_refused() -> None:
    plain = dataclasses.replace(CONFIG.precision, hbm_m_weight_type=CONFIG.precision.vector_sram_type)
    job = random_projection(4, 16, 16, dataclasses.replace(CONFIG, precision=plain))
    with pytest.raises(ConfigError, match="MX formats"):
        _ = job.images
