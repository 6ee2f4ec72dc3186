"""Machines and states that many tests share: few shapes, so that compiled code is shared too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

from plena_jax import MachineConfig

# The same examples at every run; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("repeat", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=1000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def small() -> MachineConfig:
    """The machine of docs/machine.md section 11: rows of 8 lanes, 4 tiles, 48 VRAM rows."""
    return MachineConfig(
        mlen=8,
        vlen=8,
        blen=2,
        hlen=4,
        broadcast_amount=2,
        matrix_sram_size=32,
        vector_sram_size=48,
        hbm_m_prefetch_amount=8,
        hbm_v_prefetch_amount=2,
        hbm_v_writeback_amount=1,
        hbm_size=1 << 16,
    )


#: Bytes of a worker from which on it drops compiled code, and how many more it may take before it does so again.
MOST_MEMORY, MORE_MEMORY = 5 << 30, 3 << 29
_limit = [MOST_MEMORY]


def _memory() -> int:
    """Bytes of this process, where that can be read."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else 0


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    """Several workers, each with all that it has ever compiled, fill a small machine."""
    yield
    if _memory() > _limit[0]:
        jax.clear_caches()
        _limit[0] = max(MOST_MEMORY, _memory() + MORE_MEMORY)


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The recorded cases; tests that need them are skipped where they are not."""
    folder = SHARED / "conformance"
    if not folder.is_dir():
        pytest.skip("no ../shared/conformance here")
    return folder
