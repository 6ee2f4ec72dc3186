from __future__ import annotations

from collections.abc import Iterator

import pytest

from plena_jax import Latency, MachineConfig
from plena_jax.config import BF16, Formats
from plena_jax.formats import FloatFormat

from . import machine_helpers
from .machine_helpers import ENGINES, Machine, compiled, section_11


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def machine(small: MachineConfig, engine: str) -> Machine:
    return compiled(small, engine)


@pytest.fixture
def plain(engine: str) -> Machine:
    """Plain BF16 as KV type, two tiles a prefetch, two rows a store; loops of at most 4 instructions."""
    precision = Formats(hbm_m_kv_type=BF16, hbm_v_kv_type=BF16)
    changes = {"hbm_m_prefetch_amount": 9, "hbm_v_writeback_amount": 2, "max_loop_instructions": 4}
    return compiled(section_11(precision=precision, **changes), engine)


@pytest.fixture
def wide(engine: str) -> Machine:
    """Rows of 64 lanes in 64 head slots of one lane (so that M_B* cannot run), one tile."""
    config = MachineConfig(
        mlen=64,
        vlen=64,
        blen=4,
        hlen=1,
        broadcast_amount=64,
        matrix_sram_size=64,
        vector_sram_size=128,
        hbm_m_prefetch_amount=64,
        hbm_v_prefetch_amount=1,
        hbm_v_writeback_amount=1,
        hbm_size=1 << 16,
    )
    return compiled(config, engine)


#: Every key has a value of its own (those that 6.2 does not name must count nowhere).
DISTINCT = Latency(
    systolic_processing_overhead=(90001, 3),
    vector_longest_operate_cycles=(90002, 90003),
    vector_basic_cycles=(90004, 90005),
    vector_add_cycles=(90006, 11),
    vector_mul_cycles=(90007, 13),
    vector_exp_cycles=(90008, 17),
    vector_prefix_scan_cycles=(90009, 90010),
    vector_shift_cycles=(90011, 90012),
    vector_reci_cycles=(90013, 19),
    vector_max_cycles=(90014, 23),
    vector_sum_cycles=(90015, 29),
    scalar_fp_longest_operate_cycles=(90016, 90017),
    scalar_fp_basic_cycles=(90018, 31),
    scalar_fp_exp_cycles=(90019, 37),
    scalar_fp_sqrt_cycles=(90020, 41),
    scalar_fp_reci_cycles=(90021, 43),
    scalar_int_basic_cycles=(90022, 47),
)


@pytest.fixture
def odd(engine: str) -> Machine:
    """A latency of its own for every key, and vector SRAM of binary16, which the hardware model encodes wrongly."""
    precision = Formats(vector_sram_type=FloatFormat.make(5, 10, family="plena"))
    return compiled(section_11(dc_en=0, latency=DISTINCT, precision=precision), engine)


@pytest.fixture(autouse=True)
def claims(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test runs the instructions that it claims to cover, and makes those fault that it claims to misuse."""
    machine_helpers.ran.clear()
    machine_helpers.faulted.clear()
    yield
    report = getattr(request.node, "callspec", None)
    mnemonic = report.params.get("mnemonic") if report is not None else None
    named = lambda kind: {mnemonic if m == "mnemonic" else m for m in getattr(request.function, kind, ())}
    assert named("covers") <= machine_helpers.ran, "does not run what it covers"
    assert named("misuses") <= machine_helpers.faulted, "does not fault what it misuses"
