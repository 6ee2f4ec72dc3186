"""Tune the weights of a two-layer MLP so that its MXFP4 execution on the machine comes closer to float32.

    python examples/quantisation_aware_tuning.py [--steps 1000] [--json] [--plot losses.png]

The forward pass is a PLENA program: MXFP4 weights in HBM, BF16 in vector SRAM, every rounding of the machine. Each step
stages float32 weights as MXFP4 (straight-through), runs the program, compares with the float32 network, and goes down
the gradient through the whole machine. At the end the tuned weights are encoded to bytes and run on those.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plena_jax as pj
from plena_jax import hbm

ROWS, INPUTS, HIDDEN, OUTPUTS = 32, 64, 128, 64
MXFP4 = pj.formats.named("mxfp4_e2m1", block=32)
CONFIG = pj.MachineConfig(
    matrix_sram_size=256,
    vector_sram_size=1024,
    precision=dataclasses.replace(pj.Formats(), hbm_m_weight_type=MXFP4),
    intended=pj.Intended(sub_byte_formats=True),
)
SIDE, SMALL = CONFIG.mlen, CONFIG.blen
FIRST = hbm.Tensor("first", (INPUTS, HIDDEN), 0, MXFP4)
SECOND = hbm.Tensor("second", (HIDDEN, OUTPUTS), 8192, MXFP4)

Weights = dict[str, jax.Array]


# -- the program ------------------------------------------------------------------------------------------------------


def linear(tensor: hbm.Tensor, x: int, out: int) -> Iterator[str]:
    """``out = x @ tensor``; both in VRAM as blocks of MLEN columns, one below the other, from these rows on."""
    k, n = tensor.shape
    elements = k * n * MXFP4.element.bits // 8
    row_bytes = n * MXFP4.element.bits // 8
    yield from (f"S_ADDI_INT gp1, gp0, {tensor.address}", "C_SET_ADDR_REG a0, gp0, gp1")
    yield from (f"S_ADDI_INT gp1, gp0, {elements}", "C_SET_SCALE_REG gp1")
    yield from (f"S_ADDI_INT gp1, gp0, {row_bytes}", "C_SET_STRIDE_REG gp1")
    for block in range(n // SIDE):
        for tile in range(k // SIDE):
            offset = tile * SIDE * row_bytes + block * SIDE * MXFP4.element.bits // 8
            yield from (f"S_ADDI_INT gp1, gp0, {tile * SIDE**2}", f"S_ADDI_INT gp2, gp0, {offset}")
            yield "H_PREFETCH_M gp1, gp2, a0, 1, 0"
        # BLEN columns (gp3: tile, gp4: results), BLEN rows (gp5: x, gp6: results).
        yield from ("S_ADDI_INT gp3, gp0, 0", f"S_ADDI_INT gp4, gp0, {(out + block * ROWS) * SIDE}")
        yield f"C_LOOP_START gp7, {SIDE // SMALL}"
        yield from (f"S_ADDI_INT gp5, gp0, {x * SIDE}", "S_ADDI_INT gp6, gp4, 0")
        yield f"C_LOOP_START gp8, {ROWS // SMALL}"
        for tile in range(k // SIDE):
            yield from (f"S_ADDI_INT gp1, gp3, {tile * SIDE**2}", f"S_ADDI_INT gp2, gp5, {tile * ROWS * SIDE}")
            yield "M_MM 0, gp1, gp2"
        yield from (
            "M_MM_WO gp6, gp0, 0",
            f"S_ADDI_INT gp5, gp5, {SMALL * SIDE}",
            f"S_ADDI_INT gp6, gp6, {SMALL * SIDE}",
        )
        yield "C_LOOP_END gp8"
        yield from (f"S_ADDI_INT gp3, gp3, {SMALL * SIDE}", f"S_ADDI_INT gp4, gp4, {SMALL}", "C_LOOP_END gp7")


def relu(row: int, count: int) -> Iterator[str]:
    """max(x, 0) of some rows; f0 is zero."""
    yield from (f"S_ADDI_INT gp1, gp0, {row * SIDE}", f"C_LOOP_START gp2, {count}", "V_MAX_VF gp1, gp1, f0, 0")
    yield from (f"S_ADDI_INT gp1, gp1, {SIDE}", "C_LOOP_END gp2")


X, H = 0, ROWS * INPUTS // SIDE
Y = H + ROWS * HIDDEN // SIDE
PROGRAM = pj.assemble("\n".join([*linear(FIRST, X, H), *relu(H, ROWS * HIDDEN // SIDE), *linear(SECOND, H, Y)]))


# -- the two networks -------------------------------------------------------------------------------------------------


def exact(weights: Weights, x: jax.Array) -> jax.Array:
    """float32 [rows, outputs]: the network as it is meant."""
    return jax.nn.relu(x @ weights["first"]) @ weights["second"]


def on_machine(weights: Weights, x: jax.Array, start: pj.MachineState) -> jax.Array:
    """float32 [rows, outputs]: the network as the machine runs it."""
    staged = {t: hbm.stage(weights[t.name], MXFP4) for t in (FIRST, SECOND)}
    cells = hbm.place(CONFIG, staged, size=start.hbm.shape[0] // 2)
    vram = start.vram.at[X : X + ROWS].set(pj.formats.named("bfloat16").round(x))
    final = pj.run(PROGRAM, start.replace(vram=vram, hbm=cells), CONFIG)
    return final.vram[Y : Y + ROWS]


def adam(rate: float, steps: int) -> tuple[Callable[[Any], Any], Callable[..., Any]]:
    """Adam (Kingma and Ba, 2015), at a rate that falls to zero along a cosine: at any other, weights keep flipping."""

    def update(gradient: Any, state: Any, weights: Any) -> tuple[Any, Any]:
        count, mean, square = state
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, gradient)
        square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, gradient)
        now = rate * (1 + jnp.cos(jnp.pi * count / steps)) / 2
        scale = now * jnp.sqrt(1 - 0.999 ** (count + 1)) / (1 - 0.9 ** (count + 1))
        new = jax.tree.map(lambda w, m, s: w - scale * m / (jnp.sqrt(s) + 1e-8), weights, mean, square)
        return new, (count + 1, mean, square)

    zeros = lambda weights: jax.tree.map(jnp.zeros_like, weights)
    return lambda weights: (0.0, zeros(weights), zeros(weights)), update


def tune(steps: int, seed: int = 0, report: Callable[[int, float], None] | None = None) -> dict[str, Any]:
    """Tune; the losses of all steps, on other inputs before and after, and whether bytes give the same."""
    keys = jax.random.split(jax.random.key(seed), 4)
    teacher = {
        "first": jax.random.normal(keys[0], FIRST.shape) / np.sqrt(INPUTS),
        "second": jax.random.normal(keys[1], SECOND.shape) / np.sqrt(HIDDEN),
    }
    # Inputs as layers see them: a few directions matter.
    basis = jax.random.normal(keys[2], (8, INPUTS)) / np.sqrt(8)
    inputs = lambda key: jax.random.normal(key, (ROWS, 8)) @ basis
    start = pj.MachineState.create(CONFIG, hbm=np.zeros(2 * 16384, np.float32), vram_rows=512)

    def loss(weights: Weights, x: jax.Array) -> jax.Array:
        return jnp.mean((on_machine(weights, x, start) - exact(teacher, x)) ** 2)

    begin, update = adam(1e-3, steps)

    @jax.jit
    def step(weights: Weights, state: Any, key: jax.Array) -> tuple[Weights, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(weights, inputs(key))
        return *update(gradient, state, weights), value

    measure, other = jax.jit(loss), inputs(jax.random.key(seed + 1000))
    before = float(measure(teacher, other))
    weights, state, losses = teacher, begin(teacher), []
    for i, key in enumerate(jax.random.split(keys[3], steps)):
        weights, state, value = step(weights, state, key)
        losses.append(float(value))
        if report is not None:
            report(i, losses[-1])
    result = {"before": before, "after": float(measure(weights, other)), "losses": losses}
    return result | {"bytes_agree": _runs_on_bytes(weights, other, start)}


def _runs_on_bytes(weights: Weights, x: jax.Array, start: pj.MachineState) -> bool:
    """Whether the weights, encoded as the hardware holds them, give the same output, bit for bit."""
    staged = {t: hbm.stage(weights[t.name], MXFP4) for t in (FIRST, SECOND)}
    image = hbm.to_bytes(CONFIG, hbm.place(CONFIG, staged, size=16384), [FIRST, SECOND])
    vram = start.vram.at[X : X + ROWS].set(pj.formats.named("bfloat16").round(x))
    state = pj.MachineState.create(CONFIG, hbm=image, vram_rows=512).replace(vram=vram)
    final = pj.run(PROGRAM, state, CONFIG).vram[Y : Y + ROWS]
    return bool(np.array_equal(final, on_machine(weights, x, start)))


def main() -> None:
    """Tune and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", metavar="FILE", help="write a picture of the losses (needs matplotlib)")
    options = parser.parse_args()
    begin = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if not options.json and step % 100 == 0:
            print(f"step {step:4}  loss {loss:.3e}  {time.perf_counter() - begin:5.1f} s", flush=True)

    result = tune(options.steps, options.seed, report)
    result["seconds"] = time.perf_counter() - begin
    if options.plot:
        plot(result["losses"], options.plot)
    if options.json:
        print(json.dumps(result))
        return
    print(f"mean square error against float32, on other inputs: {result['before']:.3e} with rounded weights,")
    print(f"{result['after']:.3e} with tuned ones: {result['before'] / result['after']:.1f} times less")
    print(f"the tuned weights as MXFP4 bytes give the same output, bit for bit: {result['bytes_agree']}")


def plot(losses: list[float], path: str) -> None:
    """Losses over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(losses)
    axes.set(xlabel="step", ylabel="mean square error", title="MXFP4 on the machine against float32")
    figure.savefig(path)


if __name__ == "__main__":
    main()
