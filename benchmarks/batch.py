"""Speed of many machines in one call, as ratios against single runs measured in the same process.

    python benchmarks/batch.py [--shape ROWS K N] [--machines N] [--json]

* A sweep of 64 formats of the weights and activations of a tiled projection, staging included, against 64 single runs
  of the same compiled function, one format each.
* 1,024 machines with HBM of their own through ``run_batch``, against single runs; on an accelerator also against the
  CPU, measured in a process of its own.

Every call is warm, calls of both kinds alternate, and the fastest counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import plena_jax as pj  # noqa: E402
from plena_jax import formats, hbm  # noqa: E402
from plena_jax.precision import Candidate, Workload, sweep  # noqa: E402
from plena_jax.precision.lanes import Lane, contents, measure, run_one, varied  # noqa: E402
from plena_jax.projection import random_projection  # noqa: E402

#: What formats are tried in, half of them in each.
PLACES = ("weights", "activations")
ROUNDS = 9
#: Single runs that the batch is compared with.
SAMPLE = 32


class Compilations:
    """Counts what XLA compiles inside the block, and the seconds that takes."""

    def __enter__(self) -> Compilations:
        self.count, self.seconds = 0, 0.0
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def listen(self, name: str, seconds: float, **_: Any) -> None:
        if "backend_compile" in name:
            self.count, self.seconds = self.count + 1, self.seconds + seconds

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.listen)


def seconds_of(function: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def plain_lanes(count: int) -> list[Lane]:
    """Floats of all sizes that have no trouble with the range of the operands."""
    names = [f"e{exponent}m{mantissa}" for mantissa in range(1, 9) for exponent in range(4, 8)]
    tried = [Candidate(name, formats.named(name)) for name in names[: count // len(PLACES)]]
    return [Lane(place, (place,), one) for place in PLACES for one in tried]


def formats_of_weights(shape: tuple[int, int, int], count: int = 64) -> dict[str, float]:
    """The sweep against single runs."""
    config = pj.MachineConfig()
    workload = Workload.projection(*shape, config)
    lanes = plain_lanes(count)
    arrays, stacked = contents(workload), varied(lanes)
    single = jax.jit(lambda arrays, formats: run_one(workload, arrays, formats))
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(len(lanes))]
    with Compilations() as first:
        measured = measure(workload, lanes)
    with Compilations() as second:
        jax.block_until_ready(single(arrays, each[0]))
    # What somebody has without any of this: the values face, staged beforehand, in the configuration's formats.
    placed = {one.tensor: hbm.stage(one.contents, one.tensor.format) for one in workload.operands}
    state = workload.start.replace(hbm=hbm.place(workload.machine, placed, workload.hbm_bytes))
    plain = lambda: pj.run(workload.program, state, config).vram
    plain()
    together, alone, concrete = [], [], []
    for _ in range(ROUNDS):
        together.append(seconds_of(lambda: measure(workload, lanes)))
        alone.append(seconds_of(lambda: [single(arrays, one) for one in each]))
        concrete.append(min(seconds_of(plain) for _ in range(5)))
    outputs = [np.asarray(single(arrays, one)[0]) for one in each]
    equal = all(
        np.array_equal(a.output.view(np.uint32), b.view(np.uint32)) for a, b in zip(measured, outputs, strict=True)
    )
    return {
        f"sweep of {len(lanes)} formats, seconds": min(together),
        f"{len(lanes)} single runs, seconds": min(alone),
        "sweep / single runs": min(together) / min(alone),
        "single run without formats as arguments, nor staging, seconds": min(concrete),
        "compilations of the sweep": float(first.count),
        "compilation of the sweep, seconds": first.seconds,
        "compilation of the single run, seconds": second.seconds,
        "sweep equals single runs (1 = yes)": float(equal),
    }


def block_sizes(shape: tuple[int, int, int]) -> dict[str, float]:
    """Compilations of a whole sweep, plain formats and four block sizes."""
    workload = Workload.projection(*shape, pj.MachineConfig())
    # Small operations of the set-up are compiled before.
    contents(workload)
    names = ["float8_e4m3fn", "float8_e5m2", "int8", "mxfp8_e4m3", "mxfp6_e2m3", "mxfp4_e2m1", "mxint8", "mxint4"]
    with Compilations() as compilations:
        found = sweep(workload, names)
    again = seconds_of(lambda: sweep(workload, names))
    return {
        "runs of a sweep with block sizes 8, 16, 32, 64": float(len(found.entries)),
        "its compilations (plain formats and each block size)": float(compilations.count),
        "seconds once compiled": again,
    }


def machines(shape: tuple[int, int, int], count: int) -> dict[str, float]:
    """Many machines of one program, each with operands of its own, against single runs of a sample of them."""
    config = pj.MachineConfig()
    job = random_projection(*shape, config)
    start = pj.MachineState.from_images(config, job.images)
    contents = np.tile(np.asarray(start.hbm), (count, 1))
    elements = job.tensors[0].element_bytes.reshape(-1)
    contents[:, elements] = np.random.default_rng(0).permuted(contents[:, elements], axis=1)
    states = start.replace(hbm=jax.device_put(contents))
    sample = [start.replace(hbm=states.hbm[i]) for i in range(0, count, max(count // SAMPLE, 1))]
    batch = lambda: pj.run_batch(job.program, states, config)
    singles = lambda: [pj.run(job.program, one, config) for one in sample]
    first = seconds_of(batch)
    seconds_of(singles)
    together, alone = [], []
    for _ in range(3):
        together.append(seconds_of(batch) / count)
        alone.append(seconds_of(singles) / len(sample))
    final = batch()
    found = (pj.lane(final, i, config).vram for i in range(0, count, max(count // SAMPLE, 1)))
    bits = lambda state: np.asarray(state).view(np.uint32)
    equal = all(np.array_equal(bits(a), bits(b.vram)) for a, b in zip(found, singles(), strict=True))
    what = f"{jax.default_backend()}: {count} machines"
    return {
        f"{what}, machines per second": 1 / min(together),
        f"{what}, per machine / single run": min(together) / min(alone),
        f"{what}, first call, seconds": first,
        f"{what}, equal single runs (1 = yes)": float(equal),
    }


def machines_everywhere(shape: tuple[int, int, int], count: int) -> dict[str, float]:
    """:func:`machines` here and, on an accelerator, on the CPU."""
    here = machines(shape, count)
    if jax.default_backend() == "cpu":
        return here
    command = [sys.executable, __file__, "--only", "machines", "--json", "--machines", str(count)]
    command += ["--shape", *map(str, shape)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    there = json.loads(process.stdout)
    speed = lambda found: next(value for name, value in found.items() if "per second" in name)
    return here | there | {"machines per second over those of the CPU": speed(here) / speed(there)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, type=int, default=(64, 576, 64), metavar=("ROWS", "K", "N"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--machines", type=int, default=1024, metavar="N")
    parser.add_argument("--only", choices=["formats", "blocks", "machines"])
    options = parser.parse_args()
    shape = tuple(options.shape)
    parts = {"formats": lambda: formats_of_weights(shape), "blocks": lambda: block_sizes(shape)}
    parts["machines"] = lambda: machines_everywhere(shape, options.machines)
    results: dict[str, float] = {}
    for name, part in parts.items():
        if options.only in (None, name):
            results |= part()
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, value in results.items():
        print(f"{name:62s} {value:12.5g}")


if __name__ == "__main__":
    main()
