"""The fused engine against the resolved one, a NumPy interpreter, and plain jitted JAX.

    python benchmarks/fused.py [--json] [--only projection|operators|layer|analysis]

Every ratio is of times measured in one run, after compilation, the fastest of several calls each. Vector SRAM is as
large as the program needs, rounded up: a run copies it, on every engine.
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
from benchmarks.kernels import attention, convolution, gated, linear, lowered, rows  # noqa: E402
from benchmarks.machine import CASE, CompileTime, best_of, load, state_of, timed  # noqa: E402
from plena_jax.lower import Graph, Lowered, Tensor, lower  # noqa: E402
from plena_jax.machine.fused import engine as fused_engine  # noqa: E402
from tests.numpy_machine import NumpyMachine  # noqa: E402

Results = dict[str, float]


def alternating(*functions: Callable[[], Any], repeats: int = 30) -> list[float]:
    """Seconds of the fastest call of each, some calls of each in turns, so that what else runs here hits all."""
    times = [[best_of(f, 5) for f in functions] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def runner(program: pj.Program, state: pj.MachineState, config: pj.MachineConfig, **options: Any) -> Callable[[], Any]:
    """A call that runs a program."""
    return lambda: pj.run(program, state, config, **options)


# -- projection -------------------------------------------------------------------------------------------------------


def projection() -> Results:
    """The 64x576x576 projection."""
    case = load(CASE if CASE.exists() else None)
    config = pj.MachineConfig.from_toml(str(case["settings"]))
    program, state = pj.Program.from_words(case["program"]), state_of(case, config)
    arguments = (case["program"], case["hbm"], case["fp_sram"], case.get("int_sram"), case.get("vram"))
    random = np.random.default_rng(0)
    x, w = (jax.device_put(random.normal(size=s).astype(np.float32)) for s in ((64, 576), (576, 576)))
    product = jax.jit(jnp.matmul)
    numpy = min(timed(lambda: NumpyMachine(str(case["settings"]), *arguments).run())[0] for _ in range(3))
    with CompileTime() as compiling:
        first = timed(runner(program, state, config, engine="fused"))[0]
    calls = [runner(program, state, config, engine="fused", strict=strict) for strict in (False, True)]
    calls += [runner(program, state, config, engine="resolved"), lambda: product(x, w)]
    for call in calls:
        jax.block_until_ready(call())
    fused, strict, resolved, matmul = alternating(*calls)
    return {
        "projection: fused, ms": fused * 1e3,
        "projection: fused and strict, ms": strict * 1e3,
        "projection: NumPy interpreter / fused (200)": numpy / fused,
        "projection: fused / plain float32 matmul (5)": fused / matmul,
        "projection: resolved / fused": resolved / fused,
        "projection: first call less a run": first - fused,
        "projection: of that XLA, summed over threads": compiling.seconds,
    }


# -- operators --------------------------------------------------------------------------------------------------------


def unary(name: str, shape: tuple[int, int]) -> Callable[[Graph], Tensor]:
    return lambda g: g.apply(name, rows(g, "x", shape))


OPERATORS: dict[str, Callable[[Graph], Tensor]] = {
    "softmax 64x64": unary("softmax", (64, 64)),
    "softmax 1024x64": unary("softmax", (1024, 64)),
    "rms_norm 64x256": unary("rms_norm", (64, 256)),
    "rms_norm 512x256": unary("rms_norm", (512, 256)),
    "layer_norm 64x192": unary("layer_norm", (64, 192)),
    "linear 64x384x192": linear(64, 384, 192),
    "gated_ffn 64x64x128": gated(64, 64, 128),
    "gated_ffn 64x128x384": gated(64, 128, 384),
    "attention 64x64": attention(1, 1),
    "attention 64x4x16, causal": attention(4, 1, causal=True),
    "conv 4x4x4": convolution(4, 67, 4, 4, shift=False),
    "conv 4x4x4, shifts": convolution(4, 67, 4, 4, shift=True),
    "conv 3x8x8": convolution(3, 71, 8, 8, shift=False),
    "conv 3x8x8, shifts": convolution(3, 71, 8, 8, shift=True),
}


def inputs_of(program: Lowered) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {t.name: random.normal(size=t.shape).astype(np.float32) for t in program.graph.inputs}


def compact(state: pj.MachineState, rows: int) -> pj.MachineState:
    """The same state with as many rows of vector SRAM as needed, in few sizes, so that compiled code is shared."""
    return state.replace(vram=state.vram[: max(1024, 1 << (rows - 1).bit_length())])


def operators() -> Results:
    """Programs of the operator benchmark: resolved / fused, and against the operator's rounded reference, jitted."""
    results: Results = {}
    for name, build in OPERATORS.items():
        program = lowered(build)
        state = program.start(**inputs_of(program))
        trace = pj.engine_for(program.program, state, program.config).trace
        assert trace is not None
        state = compact(state, trace.vram_rows)
        calls = [runner(program.program, state, program.config, engine=e) for e in ("resolved", "fused")]
        inputs = {key: jnp.asarray(value) for key, value in inputs_of(program).items()}
        rounded = jax.jit(lambda inputs, program=program: program.rounded(**inputs))
        calls.append(lambda rounded=rounded, inputs=inputs: rounded(inputs))
        for call in calls:
            jax.block_until_ready(call())
        resolved, fused, plain = alternating(*calls, repeats=15)
        results[f"{name}: resolved / fused (10)"] = resolved / fused
        results[f"{name}: fused, ms"] = fused * 1e3
        results[f"{name}: fused / plain JAX with the same roundings"] = fused / plain
    return results


# -- a decoder layer --------------------------------------------------------------------------------------------------


def decoder_layer(tokens: int = 64) -> Lowered:
    """A layer of SmolLM2-135M: hidden 576, 9 query and 3 key heads of 64, FFN 1536."""
    g = Graph(pj.MachineConfig())
    hidden, heads, kv_heads, size, inner = 576, 9, 3, 64, 1536
    weights = lambda name, shape: g.input(name, shape, "hbm", "weights")
    x = g.load(g.input("x", (tokens, hidden), "hbm", "activations"))
    cos, sin = (g.load(g.input(name, (tokens, size), "hbm", "activations")) for name in ("cos", "sin"))
    normed = g.rms_norm(x)
    q = g.rope(g.linear(normed, weights("wq", (hidden, hidden))), cos, sin, heads=heads)
    k = g.rope(g.linear(normed, weights("wk", (hidden, kv_heads * size))), cos, sin, heads=kv_heads)
    v = g.linear(normed, weights("wv", (hidden, kv_heads * size)))
    k, v = (g.store(t, role="kv") for t in (k, v))
    mixed = g.attention(q, k, v, heads=heads, kv_heads=kv_heads, causal=True)
    x = g.add(x, g.linear(mixed, weights("wo", (hidden, hidden))))
    ffn = g.gated_ffn(
        g.rms_norm(x),
        weights("gate", (hidden, inner)),
        weights("up", (hidden, inner)),
        weights("down", (inner, hidden)),
    )
    g.output(g.add(x, ffn))
    return lower(g)


def layer() -> Results:
    """A decoder layer against the same roundings in plain JAX."""
    program = decoder_layer()
    inputs = {name: jnp.asarray(0.1 * value) for name, value in inputs_of(program).items()}
    state = program.start(**inputs)
    trace = pj.engine_for(program.program, state, program.config).trace
    assert trace is not None
    # Choosing the engine has fused it.
    fused_engine._fused.clear()
    fusing = timed(lambda: fused_engine.fuse(trace, True))[0]
    rounded = jax.jit(lambda inputs: program.rounded(**inputs))
    call = runner(program.program, state, program.config, engine="fused")
    strict = runner(program.program, state, program.config, engine="fused", strict=True)
    first = timed(call)[0]
    jax.block_until_ready((rounded(inputs), strict()))
    ours, in_order, theirs = alternating(call, strict, lambda: rounded(inputs), repeats=5)
    resolved = best_of(runner(program.program, state, program.config, engine="resolved"), 2)
    (got,) = program.read(call()).values()
    (wanted,) = rounded(inputs).values()
    distance = float(jnp.linalg.norm(got - wanted) / jnp.linalg.norm(wanted))
    return {
        "layer: instructions": float(trace.instructions),
        "layer: datapath instructions": float(len(trace)),
        "layer: fused, ms": ours * 1e3,
        "layer: fused and strict, ms": in_order * 1e3,
        "layer: fused / plain JAX with the same roundings (4)": ours / theirs,
        "layer: resolved / fused": resolved / ours,
        "layer: relative distance to plain JAX": distance,
        "layer: seconds of analysis": fusing,
        "layer: seconds of analysis per million instructions (2)": fusing / trace.instructions * 1e6,
        "layer: first call less a run": first - ours,
    }


# -- analysis ---------------------------------------------------------------------------------------------------------


def analysis() -> Results:
    """Seconds to schedule traces of a million instructions."""
    case = load(CASE if CASE.exists() else None)
    config = pj.MachineConfig.from_toml(str(case["settings"]))
    program, state = pj.Program.from_words(case["program"]), state_of(case, config)
    text = "C_LOOP_START gp5, 250000\nV_ADD_VV gp1, gp2, gp3\nV_RED_SUM f1, gp1\nS_ST_FP f1, gp0, 3\nC_LOOP_END gp5"
    serial = pj.assemble(text)
    results: Results = {}
    for name, one in (("the projection", program), ("a loop that is one long chain", serial)):
        trace = pj.resolve(one, config, state)
        times = []
        for _ in range(3):
            fused_engine._fused.clear()
            start = time.perf_counter()
            fused_engine.fuse(trace, True)
            times.append(time.perf_counter() - start)
        per_million = min(times) / trace.instructions * 1e6
        results[f"analysis of {name}: seconds per million instructions (2)"] = per_million
    return results


PARTS = {"projection": projection, "operators": operators, "layer": layer, "analysis": analysis}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=list(PARTS), action="append")
    options = parser.parse_args()
    results: Results = {}
    for name, part in PARTS.items():
        if options.only is None or name in options.only:
            found = part()
            results |= found
            if not options.json:
                for key, value in found.items():
                    print(f"{key:70s} {value:12.4g}", flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
