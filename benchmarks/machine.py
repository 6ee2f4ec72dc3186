"""Speed of the machine, as ratios against baselines measured in the same run.

    python benchmarks/machine.py [CASE.npz] [--json]

The program is the 64x576x576 tiled projection (about 100,000 instructions): a recorded case if one is given or found in
../shared, else the one of ``plena demo``. The baseline is ``tests/numpy_machine.py``, a plain NumPy
interpreter.
"""

from __future__ import annotations

import argparse
import json
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
from plena_jax.machine import compiled, resolved  # noqa: E402
from tests.numpy_machine import NumpyMachine  # noqa: E402

CASE = ROOT.parent / "shared/conformance/bench/linear_64x576x576.npz"


def best_of(function: Callable[[], Any], repeats: int = 7) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return min(times)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


def load(path: Path | None) -> dict[str, Any]:
    """A case as arrays: settings, program and images."""
    if path is not None:
        return dict(np.load(path))
    from plena_jax.projection import random_projection

    job = random_projection(64, 576, 576, pj.MachineConfig())
    hbm, fp_sram = np.frombuffer(job.images.hbm, np.uint8), np.zeros(0, np.float16)
    return {"settings": job.config.to_toml(), "program": job.program.words, "hbm": hbm, "fp_sram": fp_sram}


def state_of(case: dict[str, Any], config: pj.MachineConfig, **allocation: int) -> pj.MachineState:
    """The machine with the case's images."""
    images = pj.Images(
        hbm=case["hbm"].tobytes(),
        fp_sram=case["fp_sram"].tobytes(),
        int_sram=case["int_sram"].tobytes() if "int_sram" in case else b"",
        vram=case["vram"].tobytes() if "vram" in case else b"",
    )
    return pj.MachineState.from_images(config, images, **allocation)


class CompileTime:
    """Seconds that XLA spends compiling inside the block, however many threads it does so in."""

    def __enter__(self) -> CompileTime:
        self.seconds = 0.0
        self.listener = lambda name, seconds, **_: self.add(name, seconds)
        jax.monitoring.register_event_duration_secs_listener(self.listener)
        return self

    def add(self, name: str, seconds: float) -> None:
        if "backend_compile" in name:
            self.seconds += seconds

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.listener)


def engines(case: dict[str, Any], config: pj.MachineConfig) -> dict[str, float]:
    """Run times and compile times of both engines against the NumPy interpreter."""
    program, state = pj.Program.from_words(case["program"]), state_of(case, config)
    arguments = (case["program"], case["hbm"], case["fp_sram"], case.get("int_sram"), case.get("vram"))
    numpy = min(timed(lambda: NumpyMachine(str(case["settings"]), *arguments).run())[0] for _ in range(3))
    results = {"NumPy interpreter (baseline)": numpy}
    second = pj.Program.from_words(np.append(case["program"], np.uint32(0x22)))
    for engine in ("resolved", "architectural"):
        # Each engine as the first one of a process.
        jax.clear_caches()
        compiled._compilations.clear()
        resolved._traces.clear()
        resolved._last.clear()
        with CompileTime() as compile_time:
            first, final = timed(lambda e=engine: pj.run(program, state, config, engine=e))
        run = best_of(lambda e=engine: pj.run(program, state, config, engine=e))
        other = timed(lambda e=engine: pj.run(second, state, config, engine=e))[0]
        results |= {
            f"{engine}: run": run,
            f"{engine}: baseline / run": numpy / run,
            f"{engine}: instructions per second": final.instructions / run,
            f"{engine}: first call less run (trace, lower, compile)": first - run,
            f"{engine}: of that XLA compiling, summed over threads": compile_time.seconds,
            f"{engine}: first call of a second program": other,
        }
    resolved._traces.clear()
    resolved._last.clear()
    results["resolving the program again"] = timed(lambda: pj.resolve(program, config, state))[0]
    return results


def vram_scaling(config: pj.MachineConfig) -> dict[str, float]:
    """Cost of a step with a large vector SRAM over that with a small one: the slope between two lengths of a loop."""
    results: dict[str, float] = {}
    body = "V_ADD_VV gp1, gp2, gp3\nS_ADDI_INT gp4, gp4, 1\nV_RED_SUM f1, gp1\nS_ST_FP f1, gp0, 3\n"
    for engine in ("resolved", "architectural"):
        slopes = []
        for rows in (1 << 10, 1 << 20):
            wide = pj.MachineConfig(vector_sram_size=max(rows, config.vector_sram_size))
            state = pj.MachineState.create(wide, vram_rows=rows, hbm_bytes=1 << 16)
            times = []
            for count in (10_000, 60_000):
                program = pj.assemble(f"C_LOOP_START gp5, {count}\n{body}C_LOOP_END gp5")
                pj.run(program, state, wide, engine=engine)
                times.append(best_of(lambda p=program, s=state, w=wide, e=engine: pj.run(p, s, w, engine=e), 3))
            slopes.append((times[1] - times[0]) / (50_000 * 5))
        results |= {
            f"{engine}: ns per instruction at 2^10 VRAM rows": slopes[0] * 1e9,
            f"{engine}: ns per instruction at 2^20 VRAM rows": slopes[1] * 1e9,
            f"{engine}: step cost 2^20 / 2^10": slopes[1] / slopes[0],
        }
    return results


def batch(case: dict[str, Any], config: pj.MachineConfig, size: int = 64) -> dict[str, float]:
    """``vmap`` over memory images: time per instance over that of a single run."""
    program, state = pj.Program.from_words(case["program"]), state_of(case, config)
    random = np.random.default_rng(0)
    images = random.normal(size=(size, *state.vram.shape)).astype(np.float32)
    images = jnp.asarray(images).astype(jnp.bfloat16).astype(jnp.float32)
    one = lambda vram: pj.run(program, state.replace(vram=vram), config).vram
    many = jax.jit(jax.vmap(one))
    first, together = timed(lambda: many(images))
    per_instance = best_of(lambda: many(images), 3) / size
    single = best_of(lambda: one(images[0]))
    equal = all(bool(jnp.all(together[i] == one(images[i]))) for i in range(size))
    return {
        f"vmap over {size} images: first call": first,
        "vmap: seconds per instance": per_instance,
        "single run": single,
        "vmap per instance / single": per_instance / single,
        "vmap equals single runs (1 = yes)": float(equal),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="?", type=Path, default=CASE if CASE.exists() else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["engines", "vram", "batch"])
    options = parser.parse_args()
    case = load(options.case)
    config = pj.MachineConfig.from_toml(str(case["settings"]))
    parts = {
        "engines": lambda: engines(case, config),
        "vram": lambda: vram_scaling(config),
        "batch": lambda: batch(case, config),
    }
    results: dict[str, float] = {}
    for name, part in parts.items():
        if options.only in (None, name):
            results |= part()
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, value in results.items():
        print(f"{name:55s} {value:14.5g}")


if __name__ == "__main__":
    main()
