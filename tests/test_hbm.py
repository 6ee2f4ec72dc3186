"""The two faces of HBM: bytes, and the values of the elements."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plena_jax as pj
from plena_jax import EngineError, ImageError, Intended, MachineConfig, MachineState, hbm
from plena_jax.conformance import Case
from plena_jax.formats import FloatFormat, MXFormat, named
from plena_jax.projection import Projection, random_projection

CONFIG = MachineConfig()
HERE = Path(__file__).with_name("cases")
#: Bytes of this one are read as activations and as weights.
ALIASED = {"moe_gather_scatter_address"}
FP8 = CONFIG.precision.hbm_v_act_type


def bits(x: object) -> np.ndarray:
    return np.asarray(x, np.float32).view(np.uint32)


def tensors_of(job: Projection) -> list[hbm.Tensor]:
    rows, k, n = job.shape
    return [
        hbm.Tensor("activations", (rows, k), 0, FP8),
        hbm.Tensor("weights", (k, n), job._weights_at, CONFIG.precision.hbm_m_weight_type),
    ]


# -- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["resolved", "architectural"])
def test_a_projection_gives_the_same_on_both_faces(engine: str) -> None:
    job = random_projection(8, 128, 64, CONFIG)
    values = hbm.to_values(CONFIG, job.images.hbm, tensors_of(job))
    states = (MachineState.from_images(CONFIG, job.images), MachineState.create(CONFIG, hbm=values))
    on_bytes, on_values = (pj.run(job.program, s, CONFIG, engine=engine) for s in states)  # type: ignore[arg-type]
    assert np.array_equal(bits(on_values.vram), bits(on_bytes.vram))
    assert np.std(on_values.vram) > 0
    assert on_values.hbm_traffic == on_bytes.hbm_traffic
    values[job._weights_at] += 1
    other = pj.run(job.program, MachineState.create(CONFIG, hbm=values), CONFIG)
    assert not np.array_equal(bits(other.vram), bits(on_bytes.vram))


@pytest.mark.parametrize("name", ["fuzz_0001", "direct_h_store"])
def test_recorded_programs_give_the_same_on_both_faces(name: str) -> None:
    assert check(HERE / f"{name}.npz")


@pytest.mark.exhaustive
def test_all_recorded_programs_that_do_not_alias(conformance: Path) -> None:
    paths = [*HERE.glob("*.npz"), *(conformance / "fuzz").glob("*.npz")]
    agreed = [check(path) for path in sorted(paths, key=lambda path: repr(Case.load(path).config))]
    assert sum(agreed) >= 45, "most programs use their tensors in one way"


def check(path: Path) -> bool:
    """Compare the faces; whether the program can run on values."""
    case = Case.load(path)
    state = case.state()
    choice = pj.engine_for(case.program, state, case.config)
    if choice.trace is None:
        return False
    try:
        values = hbm.to_values(case.config, np.asarray(state.hbm), choice.trace)
    except EngineError as error:
        assert "only bytes can hold this" in str(error)
        return False
    assert path.stem not in ALIASED
    other = state.replace(hbm=MachineState.create(case.config, hbm=values).hbm)
    on_bytes, on_values = (pj.run(case.program, s, case.config, throw=False) for s in (state, other))
    for name in ("vram", "mram", "fp_sram", "f"):
        assert np.array_equal(bits(getattr(on_values, name)), bits(getattr(on_bytes, name))), name
    return True


def test_what_bytes_alone_can_hold_is_refused() -> None:
    program = pj.assemble("S_ADDI_INT gp1, gp0, 32\nH_PREFETCH_V gp0, gp0, a0, 0, 0\nH_PREFETCH_V gp0, gp1, a0, 0, 0")
    state = MachineState.create(CONFIG, hbm=bytes(1024))
    trace = pj.engine_for(program, state, CONFIG).trace
    assert trace is not None
    # Scales of the second are those of the first, but for other elements.
    with pytest.raises(EngineError, match=r"values face: pc \d: H_PREFETCH_V gp0, gp\d, a0, 0, 0: uses byte 0x"):
        hbm.to_values(CONFIG, bytes(1024), trace)


@pytest.mark.parametrize(
    "name, elements",
    [pytest.param(n, e, marks=pytest.mark.exhaustive) for n, e in (("bfloat16", 2), ("float8_e4m3fn", 1))],
)
def test_plain_formats_have_cells_too(name: str, elements: int) -> None:
    fmt = named(name)
    precision = dataclasses.replace(CONFIG.precision, hbm_v_act_type=fmt)
    config = dataclasses.replace(CONFIG, precision=precision, intended=Intended(plain_formats=True))
    x = np.linspace(-3, 3, 4 * 64, dtype=np.float32).reshape(4, 64)
    tensor = hbm.Tensor("x", (4, 64), 64, fmt)
    values = hbm.place(config, {tensor: hbm.stage(x, fmt)}, size=4096)
    image = hbm.to_bytes(config, values, [tensor])
    program = pj.assemble(
        f"S_ADDI_INT gp1, gp0, 64\nS_ADDI_INT gp2, gp0, {64 * 16}\nS_ADDI_INT gp3, gp0, {2048 + 64 * elements}\n"
        "H_PREFETCH_V gp2, gp1, a0, 0, 0\nV_ADD_VV gp2, gp2, gp2, 0\nH_STORE_V gp2, gp3, a0, 0, 0"
    )
    on_bytes = pj.run(program, MachineState.create(config, hbm=image), config)
    on_values = pj.run(program, MachineState.create(config, hbm=values), config)
    assert np.array_equal(bits(on_values.vram), bits(on_bytes.vram))
    assert np.abs(np.asarray(on_values.vram)).max() > 5
    stored = hbm.Tensor("y", (4, 64), 2048 + 64 * elements, fmt)
    assert np.array_equal(bits(hbm.read(config, on_values.hbm, stored)), bits(hbm.read(config, on_bytes.hbm, stored)))
    assert np.abs(np.asarray(hbm.read(config, on_values.hbm, stored))).max() > 5


@pytest.mark.exhaustive
def test_sub_byte_elements_have_cells_of_their_own() -> None:
    fmt = named("mxfp4_e2m1", block=16)
    precision = dataclasses.replace(CONFIG.precision, hbm_m_weight_type=fmt)
    config = dataclasses.replace(CONFIG, precision=precision, intended=Intended(sub_byte_formats=True))
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    tensor = hbm.Tensor("w", (64, 64), 0, fmt)
    values = hbm.place(config, {tensor: hbm.stage(x, fmt)})
    assert len(values) == 2 * tensor.end
    program = pj.assemble(
        "S_ADDI_INT gp1, gp0, 2048\nC_SET_SCALE_REG gp1\nS_ADDI_INT gp1, gp0, 32\nC_SET_STRIDE_REG gp1\n"
        "H_PREFETCH_M gp0, gp0, a0, 1, 0"
    )
    on_values = pj.run(program, MachineState.create(config, hbm=values), config)
    on_bytes = pj.run(program, MachineState.create(config, hbm=hbm.to_bytes(config, values, [tensor])), config)
    assert np.array_equal(bits(on_values.mram[0]), bits(hbm.stage(x, fmt)))
    assert np.array_equal(bits(on_values.mram), bits(on_bytes.mram))


# -- staging and images -----------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from(["mxfp8_e4m3", "mxint8", "mxfp6_e2m3", "bfloat16", "float8_e5m2"]))
def test_bytes_and_values_are_the_same_tensor(seed: int, name: str) -> None:
    fmt, random = named(name, block=8), np.random.default_rng(seed)
    config = dataclasses.replace(
        CONFIG,
        precision=dataclasses.replace(CONFIG.precision, hbm_m_weight_type=fmt),
        intended=Intended(sub_byte_formats=True, plain_formats=True),
    )
    width = fmt.element.bits if isinstance(fmt, MXFormat) else fmt.bits
    tensor = hbm.Tensor("t", (3, 32), 64 * seed % 256, fmt, stride=4 * width * int(random.integers(1, 4)))
    x = hbm.stage(random.standard_normal((3, 32)).astype(np.float32), fmt)
    values = hbm.place(config, {tensor: x})
    image = hbm.to_bytes(config, values, [tensor])
    assert np.array_equal(bits(hbm.read(config, image, tensor)), bits(x))
    assert np.array_equal(bits(hbm.to_values(config, image, [tensor])), bits(values))
    image[tensor.element_bytes[1, 5]] ^= 1
    assert not np.array_equal(bits(hbm.read(config, image, tensor)), bits(x))


def test_a_scale_is_a_parameter() -> None:
    fmt, x = named("float4_e2m1fn"), jnp.asarray([0.3, -0.9, 1.7, 40.0], jnp.float32)

    def staged(scale: jax.Array, clipped: bool = False) -> jax.Array:
        return hbm.stage(x, fmt, scale, clipped)

    scale = jnp.float32(0.5)
    assert np.array_equal(staged(scale), [0.25, -1.0, 1.5, 3.0])
    slopes = jax.jacobian(staged)(scale)
    assert np.allclose(slopes, np.asarray(staged(scale) / scale - x / scale), atol=1e-6)
    # Where it saturates the value is the scale times the largest element.
    assert jax.jacobian(staged)(scale, True)[3] == fmt.max
    assert np.array_equal(jax.grad(lambda x: hbm.stage(x, fmt, scale, True).sum())(x), [1, 1, 1, 0])


@pytest.mark.parametrize(
    "tensor, message",
    [
        (lambda: hbm.Tensor("t", (2, 12), 0, FP8), "whole MX blocks"),
        (lambda: hbm.Tensor("t", (2, 16), -1, FP8), "negative"),
        (lambda: hbm.Tensor("t", (2, 16), 0, FP8, stride=8), "rows overlap"),
        (lambda: hbm.Tensor("t", (2, 16), 0, FP8, stride=20), "whole number of MX blocks"),
        (lambda: hbm.Tensor("t", (1, 3), 0, FloatFormat.make(2, 1)), "whole bytes"),
    ],
)
def test_impossible_tensors(tensor: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        tensor()  # type: ignore[operator]


def test_tensors_that_do_not_fit() -> None:
    one, two = hbm.Tensor("one", (2, 64), 0, FP8), hbm.Tensor("two", (2, 64), 140, FP8)
    x = np.ones((2, 64), np.float32)
    with pytest.raises(ImageError, match="tensor two: overlaps"):
        hbm.place(CONFIG, {one: x, two: x})
    with pytest.raises(ImageError, match="tensor one: values"):
        hbm.place(CONFIG, {one: x.T})
    with pytest.raises(ImageError, match="tensor one: overlaps another one or ends beyond the 100 bytes"):
        hbm.place(CONFIG, {one: x}, size=100)
    with pytest.raises(ImageError, match="tensor two: ends beyond"):
        hbm.read(CONFIG, np.zeros(100, np.uint8), two)


def test_values_have_no_bytes_by_themselves() -> None:
    state = MachineState.create(CONFIG, hbm=np.zeros(64, np.float32))
    assert state.has_values
    with pytest.raises(ImageError, match=r"plena_jax\.hbm\.to_bytes"):
        state.dump(CONFIG)
    with pytest.raises(ImageError, match="float64"):
        MachineState.create(CONFIG, hbm=np.zeros(64))
