"""Cost of derivatives, as ratios against forward runs measured in the same run.

    python benchmarks/gradients.py [--steps N] [--json]

The program is the 64x576x576 tiled projection of ``plena demo``, on the values face of HBM.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import plena_jax as pj  # noqa: E402
from plena_jax import hbm  # noqa: E402
from plena_jax.projection import random_projection  # noqa: E402


def best_of(function: Callable[[], Any], repeats: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def first(function: Callable[[], Any]) -> float:
    """Seconds of the first call: tracing, compiling and one run."""
    return best_of(function, 1)


def projection() -> dict[str, float]:
    """value_and_grad of the projection with respect to all of HBM, over its forward run."""
    config = pj.MachineConfig()
    job = random_projection(64, 576, 576, config)
    start = pj.MachineState.from_images(config, job.images)
    trace = pj.engine_for(job.program, start, config).trace
    assert trace is not None
    values = hbm.to_values(config, np.asarray(start.hbm), trace)
    start = pj.MachineState.create(config, hbm=values)
    weights = jnp.asarray(np.random.default_rng(0).standard_normal(start.vram.shape), jnp.float32)

    def loss(cells: jax.Array) -> jax.Array:
        return jnp.sum(pj.run(job.program, start.replace(hbm=cells), config).vram * weights)

    forward, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    compile_forward, compile_both = first(lambda: forward(start.hbm)), first(lambda: both(start.hbm))
    run_forward, run_both = best_of(lambda: forward(start.hbm)), best_of(lambda: both(start.hbm))
    concrete = best_of(lambda: pj.run(job.program, start, config).vram)
    return {
        "forward_ms": 1e3 * run_forward,
        "forward_outside_jit_ms": 1e3 * concrete,
        "value_and_grad_ms": 1e3 * run_both,
        "value_and_grad_over_forward": run_both / run_forward,
        "first_forward_s": compile_forward,
        "first_value_and_grad_s": compile_both,
    }


def step_cost() -> dict[str, float]:
    """A backward step at 2^18 rows of VRAM over one at 2^10, from the difference of two lengths."""
    config = pj.MachineConfig()

    def slope(rows: int) -> float:
        start = pj.MachineState.create(config, vram=np.ones((4, 64), np.float32), vram_rows=rows)
        times = []
        for count in (2_000, 42_000):
            body = "V_ADD_VV gp1, gp2, gp3, 0\nV_RED_SUM f1, gp1, 0\nS_ST_FP f1, gp0, 3"
            text = f"S_ADDI_INT gp1, gp0, 64\nC_LOOP_START gp5, {count}\n{body}\nC_LOOP_END gp5"
            program = pj.assemble(text)
            one = lambda vram, program=program: pj.run(program, start.replace(vram=vram), config).vram[:4].sum()
            grad = jax.jit(jax.grad(one))
            first(lambda grad=grad: grad(start.vram))
            times.append(best_of(lambda grad=grad: grad(start.vram)))
        return (times[1] - times[0]) / 120_000

    small, large = slope(1 << 10), slope(1 << 18)
    return {"step_us_2^10": 1e6 * small, "step_us_2^18": 1e6 * large, "step_ratio": large / small}


def long_trace(steps: int) -> dict[str, float]:
    """Seconds and peak memory of the gradient of a long trace (in a process of its own)."""
    config = pj.MachineConfig()
    text = f"S_ADDI_INT gp1, gp0, 64\nC_LOOP_START gp5, {steps // 2}\nV_ADD_VV gp1, gp1, gp2, 0\n"
    program = pj.assemble(text + "V_MUL_VF gp1, gp1, f1, 0\nC_LOOP_END gp5")
    start = pj.MachineState.create(config, vram=np.ones((4, 64), np.float32))
    start = start.replace(f=start.f.at[1].set(0.5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run = lambda vram: pj.run(program, start.replace(vram=vram), config).vram[:4].sum()
    grad = jax.jit(jax.grad(run))
    seconds = first(lambda: grad(start.vram))
    assert float(jnp.sum(grad(start.vram)[0])) > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"long_first_s": seconds, "long_peak_gb": peak / 2**20, "long_before_gb": before / 2**20}


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="datapath steps of the long trace")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-long", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_long:
        print(json.dumps(long_trace(options.steps)))
        return
    command = [sys.executable, __file__, "--only-long", "--steps", str(options.steps)]
    long = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    results = projection() | step_cost() | long
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:32} {value:10.3f}")
    print(f"value_and_grad of the projection: {results['value_and_grad_over_forward']:.2f} forward runs (at most 6)")
    print(f"backward step at 2^18 over 2^10 rows: {results['step_ratio']:.2f} (at most 1.5)")
    print(f"peak memory of a gradient of {options.steps:,} steps: {results['long_peak_gb']:.2f} GB (at most 3)")


if __name__ == "__main__":
    main()
