"""Every datapath instruction against finite differences, and the way back against the way forwards."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import MachineConfig, MachineState
from plena_jax.machine.adjoint import Floats
from plena_jax.machine.semantics import SEMANTICS
from tests.random_programs import random_program

from .differentiator import Differentiator, dot, random_like, size, wide

#: Registers: gp1 .. gp3 rows 1 .. 3 of VRAM, gp4 the second tile, gp5 a column, gp6 entry 5, gp7 row 40 of HBM, gp8 a
#: lane.
SETUP = """
S_ADDI_INT gp1, gp0, 8
S_ADDI_INT gp2, gp0, 16
S_ADDI_INT gp3, gp0, 24
S_ADDI_INT gp4, gp0, 64
S_ADDI_INT gp5, gp0, 66
S_ADDI_INT gp6, gp0, 5
S_ADDI_INT gp7, gp0, 1280
S_ADDI_INT gp8, gp0, 3
S_ADDI_INT gp9, gp0, 1
S_ADDI_INT gp10, gp0, 32
S_ADDI_INT gp11, gp0, 80
S_ADDI_INT gp12, gp0, 68
C_SET_V_MASK_REG gp9
C_SET_STRIDE_REG gp10
"""
PROGRAMS = {
    "M_MM": "M_MM 0, gp11, gp2\nM_MM 0, gp4, gp2\nM_MM_WO gp1, gp0, 2",
    "M_TMM": "M_TMM 0, gp2, gp11\nM_MM_WO gp2, gp0, 0",
    "M_MM_WO": "M_MM_WO gp1, gp9, 4\nM_MM 0, gp4, gp1\nM_MM_WO gp2, gp8, 0\nM_MM_WO gp3, gp0, 0",
    "M_BMM": "M_BMM 0, gp12, gp2\nM_BMM 0, gp4, gp1\nM_BMM_WO gp1, 0",
    "M_BTMM": "M_BTMM 0, gp12, gp2\nM_BMM_WO gp3, 0",
    "M_BMM_WO": "M_BMM_WO gp1, 0\nM_BMM_WO gp3, 0",
    "M_MV": "M_MV 0, gp5, gp2\nM_MV 0, gp4, gp3\nM_MV_WO gp1, 2",
    "M_TMV": "M_TMV 0, gp4, gp2\nM_MV_WO gp2, 0",
    "M_MV_WO": "M_MV_WO gp1, 6\nM_MV_WO gp2, 0",
    "M_BMV": "M_BMV gp0, gp12, gp2\nM_BMV_WO gp1, 0",
    "M_BTMV": "M_BTMV gp0, gp12, gp2\nM_BMV_WO gp2, 0",
    "M_BMV_WO": "M_BMV_WO gp1, 0\nM_BMV_WO gp3, 0",
    "V_ADD_VV": "V_ADD_VV gp1, gp2, gp3, 0\nV_ADD_VV gp2, gp2, gp2, 1\nV_MUL_VV gp2, gp1, gp2",
    "V_ADD_VF": "V_ADD_VF gp1, gp1, f2, 0\nV_ADD_VF gp2, gp1, f3, 1",
    "V_SUB_VV": "V_SUB_VV gp1, gp2, gp3, 1\nV_SUB_VV gp2, gp2, gp2, 0",
    "V_SUB_VF": "V_SUB_VF gp1, gp1, f2, 0, 0\nV_SUB_VF gp2, gp1, f3, 1, 1",
    "V_MUL_VV": "V_MUL_VV gp1, gp2, gp3, 1\nV_MUL_VV gp2, gp2, gp2, 0",
    "V_MUL_VF": "V_MUL_VF gp1, gp1, f2, 0\nV_MUL_VF gp2, gp1, f3, 1",
    "V_EXP_V": "V_EXP_V gp1, gp1, 0\nV_EXP_V gp2, gp2, 1",
    "V_RECI_V": "V_RECI_V gp1, gp1, 0\nV_RECI_V gp2, gp2, 1",
    "V_RED_SUM": "V_RED_SUM f1, gp1, 0\nV_RED_SUM f2, gp2, 1\nV_RED_SUM f1, gp2, 0",
    "V_RED_MAX": "V_RED_MAX f1, gp1, 0\nV_RED_MAX f2, gp2, 1",
    "V_SHFT_V": "V_SHFT_V gp1, gp2, gp8",
    "V_MAX_VF": "V_MAX_VF gp1, gp1, f2, 0\nV_MAX_VF gp2, gp1, f3, 1",
    "V_MIN_VF": "V_MIN_VF gp1, gp1, f2, 0\nV_MIN_VF gp2, gp1, f3, 1",
    "V_TOPK": "V_TOPK gp6, gp0, gp0, 0\nS_LD_FP f1, gp6, 1",
    "S_ADD_FP": "S_ADD_FP f1, f2, f3\nS_ADD_FP f3, f3, f3",
    "S_SUB_FP": "S_SUB_FP f1, f2, f3\nS_SUB_FP f3, f3, f1",
    "S_MAX_FP": "S_MAX_FP f1, f2, f3\nS_MAX_FP f3, f3, f4",
    "S_MUL_FP": "S_MUL_FP f1, f2, f3\nS_MUL_FP f3, f3, f3",
    "S_EXP_FP": "S_EXP_FP f1, f1",
    "S_RECI_FP": "S_RECI_FP f1, f2",
    "S_SQRT_FP": "S_SQRT_FP f1, f2",
    "S_LD_FP": "S_LD_FP f1, gp6, 2\nS_MUL_FP f2, f1, f1",
    "S_ST_FP": "S_ST_FP f1, gp6, 2\nS_ST_FP f2, gp6, 2\nS_LD_FP f3, gp6, 2",
    "S_MAP_V_FP": "S_MAP_V_FP gp1, gp6, 1\nV_MUL_VV gp2, gp1, gp1",
    "H_PREFETCH_M": "H_PREFETCH_M gp4, gp7, a0, 1, 0\nM_MM 0, gp4, gp2\nM_MM_WO gp1, gp0, 2",
    "H_PREFETCH_V": "H_PREFETCH_V gp1, gp7, a0, 1, 0\nV_MUL_VV gp2, gp1, gp2",
    "H_STORE_V": "H_STORE_V gp1, gp7, a0, 1, 0\nV_ADD_VV gp1, gp1, gp2\nH_PREFETCH_V gp2, gp7, a0, 1, 1",
}


@pytest.fixture(scope="module")
def smooth(small: MachineConfig) -> Differentiator:
    return Differentiator(wide(small), records=63)


@pytest.fixture(scope="module")
def rounded(small: MachineConfig) -> Differentiator:
    return Differentiator(small)


def start_of(config: MachineConfig, random: np.random.Generator) -> MachineState:
    """A machine whose memories, registers and accumulators all hold numbers of size one, none near zero."""

    def numbers(*shape: int) -> jax.Array:
        signs = random.choice([-1.0, 1.0], shape)
        return jnp.asarray(signs * random.uniform(0.4, 1.6, shape), jnp.float32)

    state = MachineState.create(config, hbm=np.asarray(numbers(4096)), vram_rows=48)
    new = {name: numbers(*getattr(state, name).shape) for name in ("vram", "mram", "fp_sram", "m_accum", "v_accum")}
    new |= {name: numbers(*getattr(state, name).shape) for name in ("hv_accum", "hm_accum")}
    return state.replace(**new, f=jnp.abs(numbers(8)).at[0].set(0))


def test_the_table_has_every_instruction() -> None:
    assert PROGRAMS.keys() == SEMANTICS.keys()


#: Takes longest, and is a part of every program with a product.
_OFTEN = {"H_PREFETCH_M"}


@pytest.mark.parametrize(
    "mnemonic", [pytest.param(m, marks=[pytest.mark.exhaustive] * (m in _OFTEN)) for m in sorted(PROGRAMS)]
)
def test_instruction(mnemonic: str, smooth: Differentiator) -> None:
    random = np.random.default_rng(list(mnemonic.encode()))
    state = start_of(smooth.config, random)
    x, rest = smooth.load(pj.assemble(SETUP + PROGRAMS[mnemonic]), state)
    bar, direction = random_like(x, random), random_like(x, random)
    _compare(smooth, x, bar, direction, rest)
    # What the instruction does not write has derivative one: look at the rest by itself.
    changed = jax.tree.map(lambda a, b: (a != b).astype(jnp.float32), smooth.run(x, rest), x)
    assert dot(changed, changed) > 0, "the program does nothing"
    _compare(smooth, x, jax.tree.map(jnp.multiply, bar, changed), direction, rest)


def _compare(smooth: Differentiator, x: Floats, bar: Floats, direction: Floats, rest: object) -> None:
    def value(step: float) -> float:
        moved = jax.tree.map(lambda a, d: a + np.float32(step) * d, x, direction)
        return dot(bar, smooth.run(moved, rest))

    step = 2.0**-8
    # Central differences of two steps, so that the third order drops out too.
    slopes = [(value(h) - value(-h)) / (2 * h) for h in (step, step / 2)]
    expected = (4 * slopes[1] - slopes[0]) / 3
    forwards = dot(bar, smooth.push(x, direction, rest))
    backwards = dot(smooth.pull(x, bar, rest), direction)
    scale = abs(expected) + 1
    assert abs(forwards - expected) < 1e-3 * scale
    assert abs(backwards - forwards) < 1e-5 * scale
    # Negative control: with a factor of two, or without one memory, it is wrong.
    assert abs(2 * backwards - expected) > 1e-3 * scale or abs(expected) < 1e-2


@pytest.mark.parametrize("seed", [0, 1, 2, 3, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(4, 12))])
def test_random_programs_with_few_rows(seed: int, rounded: Differentiator) -> None:
    """Rows, tiles, registers and HBM read and written again and again: transposed is transposed."""
    config, random = rounded.config, np.random.default_rng(seed)
    job = random_program(config, seed, size=40, rows=8, tame=True)
    state = MachineState.from_images(config, job.images, vram_rows=48)
    values = np.asarray(random.choice([-1, 1], 8192) * 2.0 ** random.integers(-2, 2, 8192), np.float32)
    state = state.replace(hbm=MachineState.create(config, hbm=values, hbm_bytes=1 << 15).hbm)
    x, rest = rounded.load(job.program, state)
    direction, bar = random_like(x, random), random_like(x, random)
    pushed, pulled = rounded.push(x, direction, rest), rounded.pull(x, bar, rest)
    assert np.isfinite(size(pushed)) and size(pushed) < 1e15
    # Both sums have terms of both signs: compare with what they could be.
    most = max(size(pushed) * size(bar), size(pulled) * size(direction))
    assert abs(dot(bar, pushed) - dot(pulled, direction)) < 1e-5 * most
    assert abs(dot(bar, pushed)) > 0


def test_a_dropped_term_is_noticed(small: MachineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: an adjoint that forgets one of two operands."""
    from plena_jax.machine import adjoint

    whole = adjoint.pull_back

    def partly(*arguments: object) -> object:
        reads, result = whole(*arguments)  # type: ignore[arg-type]
        return reads[:1] + reads[2:], result

    config = wide(small)
    random = np.random.default_rng(0)
    state = start_of(config, random)
    program = pj.assemble(SETUP + PROGRAMS["V_MUL_VV"])
    monkeypatch.setattr(adjoint, "pull_back", partly)
    broken = Differentiator(config, records=63)
    only = pj.resolve(program, config, state).records[0, :2]
    broken.plan = dataclasses.replace(broken.plan, used=frozenset({(int(only[0]), int(only[1]))}))
    x, rest = broken.load(program, state)
    bar, direction = random_like(x, random), random_like(x, random)
    with pytest.raises(AssertionError):
        _compare(broken, x, bar, direction, rest)
