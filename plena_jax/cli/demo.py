"""``plena demo``: a decoder layer from a checkpoint, compiled and run whole on the machine, against two goldens."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from plena_jax.cli import console
from plena_jax.cli.compile import print_result
from plena_jax.config import MachineConfig
from plena_jax.models.llama import LlamaShape, decoder_layer, random_weights

PREFIX = "model.layers.0."


def add(commands: Any) -> None:
    """Register the subcommand."""
    text = (
        "Compile one decoder layer of SmolLM2-135M's size (random weights, written to and read from a safetensors\n"
        "checkpoint), run it whole on the emulated machine, and compare with its two golden results."
    )
    examples = ["plena demo", "plena demo --front-end jax --tokens 16", "plena demo --sections", "plena demo --json"]
    parser = console.add_command(commands, "demo", execute, text, examples)
    front = "where the layer comes from (default: torch if it is installed)"
    parser.add_argument("--front-end", choices=("torch", "jax"), help=front)
    parser.add_argument("--tokens", type=console.whole_number, default=64, help="of the sequence (default: 64)")
    parser.add_argument("--small", action="store_true", help="a layer of hidden size 128 instead of 576")
    parser.add_argument("--settings", metavar="S", help="plena_settings.toml (default: the published profile)")
    parser.add_argument("--seed", type=console.whole_number, default=0, help="of weights and input (default: 0)")
    parser.add_argument("--sections", action="store_true", help="compare section by section")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(usage_error=parser.error)


def execute(options: argparse.Namespace) -> int:
    """Run it; exit status 1 if the machine leaves its golden result."""
    if options.tokens < 1:
        options.usage_error("--tokens: expected 1 or more")
    config, origin = console.find_settings(options.settings)
    shape = LlamaShape(hidden=128, heads=4, kv_heads=2, inter=256) if options.small else LlamaShape()
    front = options.front_end or ("torch" if importlib.util.find_spec("torch") else "jax")
    x = np.random.default_rng(options.seed + 1).normal(size=(1, options.tokens, shape.hidden)).astype(np.float32)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, console.busy("reading the checkpoint and compiling"):
        program, arguments = _compiled(front, shape, x, _checkpoint(Path(folder), shape, options.seed), config)
    compiled = time.perf_counter() - start
    start = time.perf_counter()
    with console.busy("running on the machine (compiling it takes seconds the first time)"):
        program(*arguments)
    first = time.perf_counter() - start
    start = time.perf_counter()
    np.asarray(program(*arguments))
    seconds = time.perf_counter() - start
    with console.busy("comparing"):
        report = program.check(*arguments)
    if options.json:
        cost = program.cost
        data = {"front_end": front, "tokens": options.tokens, "settings": origin, "instructions": cost.instructions}
        data |= {"cycles_without_hbm_transfers": cost.cycles, "seconds_to_compile": compiled}
        data |= {"seconds_of_first_run": first, "seconds": seconds, "report": report.as_json(), "good": report.good}
        console.print_json(data)
        return 0 if report.good else 1
    size = f"hidden {shape.hidden}, {shape.heads}/{shape.kv_heads} heads of {shape.size}, FFN {shape.inter}"
    console.out.print(f"decoder layer from {front}: {size}, {options.tokens} tokens, on {origin}")
    print_result(program, report, compiled, options.sections)
    console.out.print(f"first run {first:.2f} s, each further run {seconds:.2f} s")
    return 0 if report.good else 1


def _checkpoint(folder: Path, shape: LlamaShape, seed: int) -> Path:
    """A checkpoint as Hugging Face publishes them."""
    from plena_jax.bridges import checkpoints

    path = folder / "model.safetensors"
    checkpoints.save(path, {PREFIX + name: x for name, x in random_weights(shape, seed).items()})
    return path


def _compiled(
    front: str, shape: LlamaShape, x: np.ndarray, checkpoint: Path, config: MachineConfig
) -> tuple[Any, tuple[Any, ...]]:
    from plena_jax.bridges import checkpoints

    if front == "jax":
        from plena_jax.frontend.compile import compile

        weights = dict(checkpoints.arrays(checkpoint, prefix=PREFIX))
        layer = lambda w, x: decoder_layer(w, x, shape)
        return compile(layer, weights, x, config=config), (weights, x)
    import torch

    from plena_jax.bridges.torch import compile as compile_module
    from plena_jax.bridges.torch.llama import DecoderLayer

    module = DecoderLayer(shape, x.shape[1])
    checkpoints.load_into(module, checkpoint, prefix=PREFIX)
    return compile_module(module, torch.from_numpy(x), config=config), (torch.from_numpy(x),)
