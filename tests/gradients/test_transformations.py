"""Derivatives under jit, vmap and segments; what has none; and that nothing is as large as a memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import EngineError, Gradient, GradientError, MachineConfig, MachineState
from plena_jax.machine import segments
from tests.test_canary import copies, loop_bodies

TEXT = """
S_ADDI_INT gp1, gp0, 8
S_ADDI_INT gp2, gp0, 16
C_LOOP_START gp5, 3
V_MUL_VF gp1, gp1, f1, 0
V_ADD_VV gp2, gp1, gp2, 0
V_EXP_V gp1, gp2, 0
V_RECI_V gp1, gp1, 0
C_LOOP_END gp5
H_STORE_V gp1, gp0, a0, 0, 0
H_PREFETCH_V gp2, gp0, a0, 0, 0
V_MUL_VV gp1, gp1, gp2, 0
"""
PROGRAM = pj.assemble(TEXT)


@pytest.fixture(scope="module")
def state(small: MachineConfig) -> MachineState:
    vram = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)
    start = MachineState.create(small, vram=vram, hbm=np.zeros(256, np.float32))
    return start.replace(f=start.f.at[1].set(0.5))


def value(vram: jax.Array, state: MachineState, config: MachineConfig, **options: object) -> jax.Array:
    end = pj.run(PROGRAM, state.replace(vram=vram), config, **options)  # type: ignore[arg-type]
    return jnp.sum(jnp.sin(jnp.arange(end.vram.size, dtype=jnp.float32)) * end.vram.reshape(-1))


@pytest.mark.exhaustive
def test_segments_change_nothing(small: MachineConfig, state: MachineState) -> None:
    results = []
    for count in (1, 2, 5):
        run = lambda v, n=count: value(v, state, small, gradient=Gradient(segments=n))
        results.append(jax.jit(jax.value_and_grad(run))(state.vram))
    plain = pj.run(PROGRAM, state, small)
    inside = jax.jit(lambda v: pj.run(PROGRAM, state.replace(vram=v), small, gradient=Gradient(segments=3)))(state.vram)
    assert np.array_equal(inside.vram, plain.vram)
    assert np.array_equal(inside.f, plain.f)
    for found in results[1:]:
        assert found[0] == results[0][0]
        assert np.array_equal(found[1], results[0][1])
    assert np.linalg.norm(results[0][1]) > 0.1


def test_long_traces_are_cut_by_themselves(
    small: MachineConfig, state: MachineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = pj.assemble("C_LOOP_START gp1, 262144\nV_ADD_VV gp2, gp2, gp3, 0\nC_LOOP_END gp1")
    records = pj.resolve(program, small, state).records

    def pieces(count: int) -> tuple[int, int]:
        plan, cut = segments.cut(records[:count], state, small, Gradient(), program)
        assert int(cut.ends.sum()) == count
        return len(cut.ends), plan.entries[1]

    assert pieces(1 << 18)[0] == 1
    monkeypatch.setattr(segments, "_SMALL", 0)
    (few, short), (many, long) = pieces(1 << 16), pieces(1 << 18)
    assert few > 1
    # Four times as long: twice as many segments, each twice as long.
    assert 1.5 < many / few < 2.5
    assert 1.5 < long / short < 2.5


@pytest.mark.exhaustive
def test_eager_jitted_and_batched(small: MachineConfig, state: MachineState) -> None:
    grad = jax.grad(lambda v: value(v, state, small))
    eager, jitted = grad(state.vram), jax.jit(grad)(state.vram)
    assert np.array_equal(eager, jitted)
    batch = jnp.stack([state.vram * (1 + i / 4) for i in range(18)])
    each = np.stack([jax.jit(grad)(v) for v in batch])
    together = jax.jit(jax.vmap(grad))(batch)
    assert np.allclose(together, each, rtol=1e-6, atol=1e-6)
    assert not np.allclose(each[0], each[1])


@pytest.mark.exhaustive
def test_one_leaf_shared_by_all_lanes(small: MachineConfig, state: MachineState) -> None:
    """The cotangent of what lanes share is a sum over them."""
    batch = jnp.stack([state.vram, 2 * state.vram])

    def total(f: jax.Array) -> jax.Array:
        return jnp.sum(jax.vmap(lambda v: value(v, state.replace(f=f), small))(batch))

    each = [jax.jit(jax.grad(lambda f, v=v: value(v, state.replace(f=f), small)))(state.f) for v in batch]
    assert np.allclose(jax.jit(jax.grad(total))(state.f), each[0] + each[1], rtol=1e-5)
    assert abs(float(each[0][1])) > 1e-3


def test_forward_mode(small: MachineConfig, state: MachineState) -> None:
    """``jvp``, ``jacfwd``, and vmapped; with segments too."""
    direction = jnp.asarray(np.random.default_rng(1).standard_normal(state.vram.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda v: value(v, state, small)))(state.vram)
    for options in ({}, {"gradient": Gradient(segments=3)}):
        run = lambda v, options=options: value(v, state, small, **options)
        _, slope = jax.jit(lambda v, d, run=run: jax.jvp(run, (v,), (d,)))(state.vram, direction)
        assert np.isclose(slope, jnp.vdot(gradient, direction), rtol=1e-4)
    column = jax.jit(jax.jacfwd(lambda a: value(state.vram.at[1, :3].set(a), state, small)))(state.vram[1, :3])
    assert np.allclose(column, gradient[1, :3], rtol=1e-4, atol=1e-6)


def test_no_memory_is_copied_inside_a_loop(small: MachineConfig) -> None:
    config = dataclasses.replace(small, vector_sram_size=1 << 16)
    start = MachineState.create(config, hbm=np.zeros(1 << 14, np.float32), vram_rows=4096)
    text = TEXT + "V_RED_MAX f2, gp1, 0\nM_MM 0, gp0, gp0\nM_MM_WO gp1, gp0, 0\nM_BTMM 0, gp0, gp0\nM_BMM_WO gp0, 0\n"
    text += "H_PREFETCH_M gp0, gp0, a0, 0, 0\nM_MV 0, gp0, gp0\nM_MV_WO gp0, 0"
    program = pj.assemble(text)

    def run(vram: jax.Array, hbm: jax.Array) -> jax.Array:
        return jnp.sum(pj.run(program, start.replace(vram=vram, hbm=hbm), config).vram)

    compiled = jax.jit(jax.grad(run, (0, 1))).lower(start.vram, start.hbm).compile()
    bodies = loop_bodies(compiled.as_text())
    assert len(bodies) > 50
    assert copies(bodies, start.vram.shape, "f32") == []
    assert copies(bodies, start.hbm.shape, "f32") == []


# -- what has no derivative, or none that is finite -------------------------------------------------------------------


def test_second_derivatives_are_refused(small: MachineConfig, state: MachineState) -> None:
    run = lambda a: value(state.vram.at[1, 0].set(a), state, small)
    for second in (jax.grad(jax.grad(run)), jax.hessian(run), jax.jacfwd(jax.jacfwd(run))):
        with pytest.raises(EngineError, match="only first ones"):
            second(1.0)


def test_the_architectural_engine_has_none(small: MachineConfig, state: MachineState) -> None:
    with pytest.raises(EngineError, match=r"derivatives: they need the resolved engine.*MachineState\.replace"):
        jax.grad(lambda v: value(v, state, small, engine="architectural"))(state.vram)


def test_stored_bytes_have_none(small: MachineConfig, state: MachineState) -> None:
    on_bytes = state.replace(hbm=jnp.zeros(256, jnp.uint8))
    with pytest.raises(EngineError, match=r"H_STORE_V.*values face.*MachineState\.create\(hbm="):
        jax.grad(lambda v: value(v, on_bytes, small))(state.vram)


def test_bytes_that_are_only_read_are_constants(small: MachineConfig, state: MachineState) -> None:
    program = pj.assemble("H_PREFETCH_V gp0, gp0, a0, 0, 0\nS_ADDI_INT gp1, gp0, 16\nV_MUL_VV gp1, gp1, gp0, 0")
    start = state.replace(hbm=jnp.full(256, 0x38, jnp.uint8))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(pj.run(program, start.replace(vram=v), small).vram[2])))(state.vram)
    assert np.array_equal(gradient[2], pj.run(program, start, small).vram[0])
    assert np.count_nonzero(gradient) == 8


def test_integers_have_none(small: MachineConfig, state: MachineState) -> None:
    with pytest.raises(TypeError, match="real- or complex-valued"):
        jax.grad(lambda gp: jnp.sum(pj.run(PROGRAM, state.replace(gp=gp), small).vram))(state.gp)


def test_what_is_not_finite_is_traced_to_its_instruction(small: MachineConfig, state: MachineState) -> None:
    text = "S_ADDI_INT gp1, gp0, 8\nV_ADD_VV gp0, gp0, gp0\nV_RECI_V gp1, gp1, 0\nV_ADD_VV gp2, gp1, gp0"
    program = pj.assemble(text)

    def run(vram: jax.Array, debug: bool = True, segments: int | None = None) -> jax.Array:
        gradient = Gradient(debug=debug, segments=segments)
        return jnp.sum(pj.run(program, state.replace(vram=vram), small, gradient=gradient).vram[:3])

    zero = state.vram.at[1, 3].set(0)
    assert not np.all(np.isfinite(jax.grad(lambda v: run(v, debug=False))(zero)))
    for count in (None, 2):
        grad = jax.grad(lambda v, n=count: run(v, segments=n))
        assert np.all(np.isfinite(grad(state.vram)))
        with pytest.raises(
            GradientError, match=r"pc 2: V_RECI_V gp1, gp1: .*number 2 of the run.* infinite or NaN"
        ) as e:
            grad(zero)
        assert (e.value.pc, e.value.tick) == (2, 2)
    with pytest.raises(GradientError):
        jax.vmap(jax.grad(run))(jnp.stack([state.vram, zero]))
    with pytest.raises(jax.errors.JaxRuntimeError, match="pc 2: V_RECI_V gp1, gp1"):
        jax.block_until_ready(jax.jit(jax.grad(run))(zero))


@pytest.mark.parametrize("options, message", [({"rounding": "no"}, "rounding 'no'"), ({"segments": 0}, "0 segments")])
def test_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Gradient(**options)  # type: ignore[arg-type]
