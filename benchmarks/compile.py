"""Compiling and running a decoder layer of SmolLM2-135M's size: seconds, and ratios to plain jitted JAX.

    python benchmarks/compile.py [--tokens N] [--front-end torch] [--json]

In a fresh process: from the function or module to the program, the first run with the compilation of the machine, and
further runs on new inputs. The baselines, measured in the same process: the layer's rounded reference, which makes the
machine's roundings without the machine, as one jitted JAX function, and the layer itself in float32.
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
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import plena_jax as pj  # noqa: E402
from plena_jax.models.llama import LlamaShape, decoder_layer, random_weights  # noqa: E402


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = jax.block_until_ready(function())
    return time.perf_counter() - start, found


def best_of(function: Callable[[], Any], repeats: int = 3) -> float:
    return min(timed(function)[0] for _ in range(repeats))


def build(front_end: str, shape: LlamaShape, x: np.ndarray) -> tuple[float, Any, tuple[Any, ...]]:
    """Seconds to compile, the program, and its arguments."""
    weights = random_weights(shape)
    layer = lambda w, x: decoder_layer(w, x, shape)
    if front_end == "jax":
        seconds, program = timed(lambda: pj.compile(layer, weights, x))
        return seconds, program, (weights, x)
    import torch
    from plena_jax.bridges.torch import compile as compile_module
    from plena_jax.bridges.torch.llama import DecoderLayer

    module = DecoderLayer(shape, x.shape[1])
    module.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    start = time.perf_counter()
    compiled = compile_module(module, torch.from_numpy(x))
    return time.perf_counter() - start, compiled.program, tuple(compiled.arguments(torch.from_numpy(x)))


def measure(front_end: str, tokens: int) -> dict[str, float | bool]:
    shape = LlamaShape()
    x = np.random.default_rng(1).normal(size=(1, tokens, shape.hidden)).astype(np.float32)
    seconds, program, (weights, *rest) = build(front_end, shape, x)
    first, found = timed(lambda: program(weights, *rest))
    fresh = iter(range(1, 100))
    again = lambda: program(weights, rest[0] * np.float32(1 + 1e-3 * next(fresh)))
    run = best_of(again)
    inputs = program.inputs(weights, *rest)
    rounded = jax.jit(lambda i: program.lowered.rounded(**i))
    rounded_first, _ = timed(lambda: rounded(inputs))
    reference = best_of(lambda: rounded(inputs), 5)
    exact = jax.jit(lambda w, *r: program.function(*jax.tree.leaves((w, *r))))
    timed(lambda: exact(weights, *rest))
    plain = best_of(lambda: exact(weights, *rest), 5)
    wanted = program.reference(weights, *rest)
    equal = all(
        bool(np.array_equal(a, b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    )
    return {
        "instructions": program.cost.instructions,
        "compile_s": seconds,
        "first_run_s": first,
        "compile_and_first_run_s": seconds + first,
        "further_run_s": run,
        "rounded_reference_jitted_s": reference,
        "rounded_reference_first_s": rounded_first,
        "float32_jitted_s": plain,
        "machine_over_rounded_reference": run / reference,
        "machine_over_float32": run / plain,
        "equal_to_reference": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--front-end", choices=("jax", "torch"), default="jax")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.front_end, options.tokens)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:34} {value if isinstance(value, bool) else f'{value:,.4g}'}")


if __name__ == "__main__":
    main()
