"""Gradients of whole programs, through ``plena_jax.run``, against the same computation in dense JAX."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plena_jax as pj
from plena_jax import Gradient, MachineConfig, MachineState
from plena_jax.formats import named

from .kernels import SPACING, Kernel

Dense = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
SIDE = 8
#: What f registers hold: zero, one, 1 / VLEN, epsilon, a bound for maxima.
F = [0.0, 0.0, 0.0, 0.0, 1.0, 1 / SIDE, 1e-2, -1e4]
bf16 = named("bfloat16").round


def numbers(seed: int, *shape: int, unit: float = 1 / 8) -> np.ndarray:
    """Multiples of ``unit`` of size one: products and their sums are exact in float32, in any order."""
    return (
        np.clip(np.round(np.random.default_rng(seed).standard_normal(shape) / unit), -16, 16).astype(np.float32) * unit
    )


def tensors(*contents: np.ndarray) -> np.ndarray:
    """The values face with these one after the other."""
    cells = np.zeros(SPACING * (len(contents) + 2), np.float32)
    for i, x in enumerate(contents):
        cells[i * SPACING : i * SPACING + x.size] = x.reshape(-1)
    return cells


def taken(cells: jax.Array, tensor: int, *shape: int) -> jax.Array:
    """A tensor out of the values face."""
    return cells[tensor * SPACING : tensor * SPACING + int(np.prod(shape))].reshape(shape)


def check(kernel: Kernel, dense: Dense, vram: np.ndarray, hbm: np.ndarray, gradient: Gradient | None = None) -> None:
    """Compare values and gradients with respect to VRAM, HBM and FP registers."""
    config = kernel.config
    program = pj.assemble(kernel.text)
    start = MachineState.create(config, vram=vram, hbm=hbm, vram_rows=48)

    def on_machine(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = pj.run(program, start.replace(vram=vram, hbm=hbm, f=f), config, gradient=gradient)
        rows = end.vram
        return jnp.sum(rows * weights), rows

    def in_jax(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = dense(vram, hbm, f)
        return jnp.sum(rows * weights), rows

    weights = jnp.asarray(np.random.default_rng(9).standard_normal(start.vram.shape), jnp.float32)
    arguments = start.vram, start.hbm, jnp.asarray(F, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32)
    (_, rows), found = jax.jit(jax.value_and_grad(on_machine, (0, 1, 2), has_aux=True))(*arguments)
    (_, expected_rows), expected = jax.jit(jax.value_and_grad(in_jax, (0, 1, 2), has_aux=True))(*arguments)
    assert np.array_equal(rows, expected_rows)
    # Where the kernel takes f0 for zero, the dense one has a constant.
    found, expected = ((vram, hbm, f[1:]) for vram, hbm, f in (found, expected))
    for name, g, e in zip(("vram", "hbm", "f"), found, expected, strict=True):
        distance, length = np.linalg.norm(np.asarray(g - e)), np.linalg.norm(np.asarray(e))
        assert distance <= 1e-5 * length, (name, distance, length)
    # Negative control: the gradient is not that of a copy, and a wrong sign would be seen.
    assert np.linalg.norm(np.asarray(found[0] - weights)) > 1e-2
    assert np.linalg.norm(np.asarray(expected[0])) > 1e-2


@pytest.fixture
def kernel(small: MachineConfig) -> Kernel:
    return Kernel(small)


def test_tiled_projection(kernel: Kernel) -> None:
    kernel.fetch_tiles(0, 2)
    kernel.matmul(out=16, x=0, rows=8, tiles=2)

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        x = jnp.concatenate([vram[:8], vram[8:16]], axis=1)
        return vram.at[16:24].set(bf16(x @ taken(hbm, 0, 16, SIDE)))

    check(kernel, dense, numbers(0, 24, SIDE), tensors(numbers(1, 16, SIDE)))


def test_softmax_rows(kernel: Kernel) -> None:
    kernel.softmax(0, 4)
    check(kernel, lambda vram, hbm, f: vram.at[:4].set(softmax(vram[:4])), numbers(0, 8, SIDE), tensors())


def softmax(x: jax.Array) -> jax.Array:
    x = bf16(x - bf16(x.max(axis=-1, keepdims=True)))
    x = bf16(jnp.exp(x))
    return bf16(x * bf16(1 / bf16(x.sum(axis=-1, keepdims=True))))


def test_rms_norm(kernel: Kernel) -> None:
    kernel.rms_norm(0, 3, scratch=8)

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        squares = bf16(vram[:3] ** 2)
        mean = bf16(bf16(bf16(squares.sum(axis=-1)) * f[5]) + f[6])
        normed = bf16(vram[:3] * bf16(1 / bf16(jnp.sqrt(mean)))[:, None])
        return vram.at[:3].set(normed).at[8].set(squares[2])

    check(kernel, dense, numbers(0, 9, SIDE), tensors())


def test_gated_ffn(kernel: Kernel) -> None:
    kernel.fetch_tiles(0, 1)
    kernel.matmul(out=4, x=0, rows=4)
    kernel.silu(4, 4, scratch=20)
    kernel.fetch_tiles(1, 1)
    kernel.matmul(out=8, x=0, rows=4)
    for i in range(4):
        kernel.emit(f"V_MUL_VV {kernel.at('gp1', 4 + i)}, gp1, {kernel.at('gp2', 8 + i)}, 0")
    kernel.fetch_tiles(2, 1)
    kernel.matmul(out=12, x=4, rows=4)

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        gate, up, down = (taken(hbm, i, SIDE, SIDE) for i in range(3))
        g = bf16(vram[:4] @ gate)
        sigmoid = bf16(1 / bf16(bf16(jnp.exp(-g)) + f[4]))
        u = bf16(vram[:4] @ up)
        h = bf16(bf16(g * sigmoid) * u)
        rows = vram.at[4:8].set(h).at[8:12].set(u).at[20].set(sigmoid[3])
        return rows.at[12:16].set(bf16(h @ down))

    weights = [numbers(i, SIDE, SIDE, unit=1 / 4) / 4 for i in range(1, 4)]
    check(kernel, dense, numbers(0, 24, SIDE), tensors(*weights))


def test_single_head_attention(kernel: Kernel) -> None:
    kernel.fetch_rows(0, row=0, count=8)
    kernel.fetch_tiles(1, 1)
    kernel.matmul(out=8, x=0, rows=8, transposed=True)
    for i in range(8, 16):
        kernel.emit(f"V_MUL_VF {kernel.at('gp1', i)}, gp1, f5, 0")
    kernel.softmax(8, 8)
    kernel.fetch_tiles(2, 1)
    kernel.matmul(out=16, x=8, rows=8)

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        q, k, v = (taken(hbm, i, SIDE, SIDE) for i in range(3))
        scores = softmax(bf16(bf16(q @ k.T) * f[5]))
        return vram.at[:8].set(q).at[8:16].set(scores).at[16:24].set(bf16(scores @ v))

    check(kernel, dense, numbers(5, 24, SIDE), tensors(*(numbers(i, SIDE, SIDE, unit=1 / 4) for i in range(3))))


def test_strided_and_masked(kernel: Kernel) -> None:
    kernel.fetch_tiles(0, 1)
    # Rows of the product two apart; then half of each row only.
    kernel.lines += ["S_ADDI_INT gp5, gp0, 2", "S_ADDI_INT gp7, gp0, 2", "C_SET_V_MASK_REG gp7"]
    kernel.emit("S_ADDI_INT gp1, gp0, 32")
    kernel.emit(f"M_MM 0, gp1, {kernel.at('gp2', 0)}")
    kernel.emit(f"M_MM_WO {kernel.at('gp4', 8)}, gp5, 6")
    kernel.emit(f"V_MUL_VV {kernel.at('gp1', 8)}, gp1, {kernel.at('gp2', 1)}, 1")
    kernel.emit(f"V_EXP_V {kernel.at('gp1', 2)}, gp1, 1")
    kernel.emit(f"V_ADD_VF {kernel.at('gp1', 3)}, {kernel.at('gp2', 10)}, f4, 1")
    kernel.emit(f"V_RED_SUM f2, {kernel.at('gp1', 3)}, 1")
    kernel.emit("V_ADD_VF gp2, gp2, f2, 0")

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        w = taken(hbm, 0, SIDE, SIDE)
        upper = jnp.arange(SIDE) >= 4
        product = bf16(vram[:2] @ w[:, 4:6])
        vram = vram.at[8, 6:8].set(product[0]).at[10, 6:8].set(product[1])
        vram = vram.at[8].set(jnp.where(upper, bf16(vram[8] * vram[1]), vram[8]))
        vram = vram.at[2].set(jnp.where(upper, bf16(jnp.exp(vram[2])), vram[2]))
        vram = vram.at[3].set(jnp.where(upper, bf16(vram[10] + f[4]), vram[10]))
        row = jnp.where(upper, vram[3, 4:].sum(), vram[3])
        return vram.at[10].set(bf16(vram[10] + bf16(f[2] + row.sum())))

    check(kernel, dense, numbers(0, 16, SIDE), tensors(numbers(1, SIDE, SIDE)))


@pytest.mark.parametrize("rounding", ["straight_through", "clipped"])
def test_store_then_prefetch(kernel: Kernel, rounding: str) -> None:
    kernel.store_rows(0, row=0, count=2)
    kernel.emit(f"V_MUL_VV {kernel.at('gp1', 0)}, gp1, gp1, 0")
    kernel.fetch_rows(0, row=4, count=2)
    kernel.emit(f"V_MUL_VV {kernel.at('gp1', 5)}, gp1, {kernel.at('gp2', 4)}, 0")
    fp8 = kernel.config.precision.hbm_v_act_type

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        stored = fp8.round(vram[:2], rounding == "clipped")
        vram = vram.at[0].set(bf16(vram[0] ** 2)).at[4:6].set(stored)
        return vram.at[5].set(bf16(vram[5] * vram[4]))

    gradient = Gradient(rounding=rounding)  # type: ignore[arg-type]
    check(kernel, dense, numbers(0, 8, SIDE, unit=1 / 16), tensors(numbers(1, 2, SIDE)), gradient)


def test_rows_read_and_overwritten(kernel: Kernel) -> None:
    """One instruction reads and writes a row; rows are read twice; memory is written twice; some never."""
    a, b = kernel.at("gp1", 0), kernel.at("gp2", 1)
    kernel.lines += [
        f"V_MUL_VV {a}, {a}, {a}, 0",
        f"V_ADD_VV {b}, {a}, {b}, 0",
        f"V_SUB_VV {a}, {b}, {a}, 0",
        f"V_ADD_VV {a}, {b}, {b}, 0",
        f"V_MUL_VV {b}, {a}, {kernel.at('gp3', 40)}, 0",
        "S_ST_FP f4, gp0, 3",
        "S_ST_FP f5, gp0, 3",
        "S_LD_FP f3, gp0, 3",
        "S_MUL_FP f3, f3, f3",
        f"V_ADD_VF {a}, {a}, f3, 0",
    ]

    def dense(vram: jax.Array, hbm: jax.Array, f: jax.Array) -> jax.Array:
        a, b = bf16(vram[0] ** 2), vram[1]
        b = bf16(a + b)
        a = bf16(b + b)
        b = bf16(a * vram[40])
        return vram.at[1].set(b).at[0].set(bf16(a + bf16(f[5] * f[5])))

    check(kernel, dense, numbers(0, 8, SIDE), tensors())
