"""Instructions and cycles of kernels, beside those of the published compiler's programs; and what making them takes.

    python benchmarks/kernels.py [--json]

Both sides begin with operands in HBM and are executed by the same machine: dynamic instructions, modelled cycles
without HBM transfer times. Numbers of published programs are those of the recorded ones in ``../shared/conformance``,
measured anew where that folder is. Of the shapes of the published tests that no recorded program has, what has been
published stands beside ours: of most, accuracies only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import plena_jax as pj  # noqa: E402
from plena_jax.conformance import Case  # noqa: E402
from plena_jax.isa.instruction import OPCODE_MASK  # noqa: E402
from plena_jax.isa.table import BY_MNEMONIC  # noqa: E402
from plena_jax.lower import Graph, Lowered, Tensor, lower  # noqa: E402
from plena_jax.machine.record import Record  # noqa: E402

RECORDED = ROOT.parent / "shared" / "conformance" / "programs"
Build = Callable[[Graph], Tensor]
#: The machine of the recorded decoder layer.
WIDE = pj.MachineConfig(blen=16, hlen=64, broadcast_amount=1, hbm_v_prefetch_amount=16, hbm_v_writeback_amount=16)


def rows(g: Graph, name: str, shape: tuple[int, int]) -> Tensor:
    """Activations, fetched to vector SRAM."""
    return g.load(g.input(name, shape, "hbm", "activations"))


def weights(g: Graph, name: str, shape: tuple[int, int]) -> Tensor:
    """Weights in HBM."""
    return g.input(name, shape, "hbm", "weights")


def gated(r: int, hidden: int, inner: int) -> Build:
    """A gated FFN."""
    return lambda g: g.gated_ffn(
        rows(g, "x", (r, hidden)),
        weights(g, "gate", (hidden, inner)),
        weights(g, "up", (hidden, inner)),
        weights(g, "down", (inner, hidden)),
    )


def linear(r: int, k: int, n: int) -> Build:
    """A product."""
    return lambda g: g.linear(rows(g, "x", (r, k)), weights(g, "w", (k, n)))


def attention(heads: int, kv_heads: int, causal: bool = False, size: int = 64) -> Build:
    """As many queries as keys, a block of query heads."""

    def build(g: Graph) -> Tensor:
        k, v = (g.input(name, (size, size // heads * kv_heads), "hbm", "kv") for name in "kv")
        return g.attention(rows(g, "q", (size, size)), k, v, heads=heads, kv_heads=kv_heads, causal=causal)

    return build


def decoder(g: Graph) -> Tensor:
    """The published compiler's layer: 64 tokens, hidden 64, inner 128; no projections, no residuals.

    Positions are added, then rms_norm, rope, attention with keys and values in HBM, the gated FFN, rms_norm.
    """
    x, positions, cos, sin = (rows(g, name, (64, 64)) for name in ("x", "positions", "cos", "sin"))
    q = g.rope(g.rms_norm(g.add(x, positions)), cos, sin, heads=1)
    k, v = (g.input(name, (64, 64), "hbm", "kv") for name in "kv")
    w = [weights(g, name, shape) for name, shape in (("gate", (64, 128)), ("up", (64, 128)), ("down", (128, 64)))]
    return g.rms_norm(g.gated_ffn(g.attention(q, k, v, heads=1, kv_heads=1), *w))


def convolution(channels: int, height: int, width: int, kernel: int, shift: bool) -> Build:
    """64 output channels, stride 1."""
    image = dict(channels=channels, height=height, width=width, kernel=kernel)
    return lambda g: g.conv2d(
        g.input("image", (channels * height, width), "hbm"),
        weights(g, "w", (channels * kernel**2, 64)),
        **image,
        shift=shift,
    )


@dataclass(frozen=True)
class Entry:
    """A kernel and the published program that does the same.

    Attributes:
        name: of both.
        case: the recorded program, or empty.
        instructions, cycles: of that; None where nothing has been published.
        build: ours.
        note: where the two differ.
        machine: the configuration.
    """

    name: str
    case: str
    instructions: int | None
    cycles: int | None
    build: Build
    note: str = ""
    machine: pj.MachineConfig = field(default_factory=pj.MachineConfig)


def entries() -> list[Entry]:
    """What is compared."""
    unary = lambda name, shape: lambda g: g.apply(name, rows(g, "x", shape))
    seed = "its maximum is not seeded for each row"
    gate = "its SiLU is on the up projection"
    accuracy = "of this shape accuracies are published, no counts"
    return [
        Entry("linear 64x64x128", "aten_linear", 5930, 38168, linear(64, 64, 128)),
        Entry(
            "linear 64x384x192", "aten_linear_k384_n192", 31262, 321452, linear(64, 384, 192), "it rounds partial sums"
        ),
        Entry("softmax 64x64", "aten_softmax", 1046, 1670, unary("softmax", (64, 64)), seed),
        Entry("rms_norm 4x64", "aten_rms_norm", 91, 118, unary("rms_norm", (4, 64))),
        Entry("rms_norm 8x256", "aten_rms_norm_h256_b8", 354, 570, unary("rms_norm", (8, 256))),
        Entry("layer_norm 4x64", "aten_layer_norm", 112, 167, unary("layer_norm", (4, 64)), "it cancels"),
        Entry("layer_norm 8x192", "aten_layer_norm_h192", 375, 705, unary("layer_norm", (8, 192)), "it cancels"),
        Entry("gated_ffn 64x64x128", "aten_ffn", 11822, 108696, gated(64, 64, 128), gate),
        Entry("gated_ffn 8x128x384", "aten_ffn_h128", 7895, 80479, gated(8, 128, 384), gate),
        Entry(
            "add 16x256",
            "aten_embedding_add_h256",
            380,
            348,
            lambda g: g.add(rows(g, "x", (16, 256)), rows(g, "y", (16, 256))),
        ),
        Entry("attention 64x64", "aten_flash_attention_mha", 7406, 40300, attention(1, 1), seed),
        Entry("attention 64x4x16", "aten_flash_attention_gqa", 12986, 31731, attention(4, 1), seed),
        Entry("the same, causal", "aten_flash_attention_gqa_causal", 18509, 45382, attention(4, 1, causal=True), seed),
        Entry("conv 4x4x4", "aten_conv2d_baseline", 25619, 78030, convolution(4, 67, 4, 4, shift=False)),
        Entry("the same, shifts", "aten_conv2d_baseline_shift", 9220, 24450, convolution(4, 67, 4, 4, shift=True)),
        Entry("conv 3x8x8", "aten_conv2d_siglip", 69933, 228194, convolution(3, 71, 8, 8, shift=False)),
        Entry("the same, shifts", "aten_conv2d_siglip_shift", 14478, 61450, convolution(3, 71, 8, 8, shift=True)),
        Entry(
            "decoder layer 64/64/128",
            "e2e_sliced_decoder_layer",
            8398,
            18098,
            decoder,
            "rotates on the host; SiLU on up",
            WIDE,
        ),
        Entry("the same, BLEN 4", "", 21638, None, decoder, "profile with loops expanded, cycles of another model"),
        Entry("linear 64x128x256", "", None, None, linear(64, 128, 256), accuracy),
        Entry("gated_ffn 4x128x256", "", None, None, gated(4, 128, 256), accuracy),
        Entry("attention 128x128", "", None, None, attention(1, 1, size=128), accuracy),
        Entry("conv 3x14x14, K 588", "", None, None, convolution(3, 77, 14, 14, shift=True), accuracy),
        Entry("the same, no shifts", "", None, None, convolution(3, 77, 14, 14, shift=False), accuracy),
    ]


def published(entry: Entry) -> tuple[int | None, int | None]:
    """Instructions and cycles of the recorded program."""
    path = RECORDED / f"{entry.case}.npz"
    if not entry.case or not path.exists():
        return entry.instructions, entry.cycles
    case = Case.load(path)
    state = pj.MachineState.create(case.config, vram_rows=64)
    trace = pj.engine_for(case.program, state, case.config).trace
    assert trace is not None
    return trace.end.instructions, trace.end.latency_cycles


def lowered(build: Build, config: pj.MachineConfig | None = None) -> Lowered:
    """The program of a kernel, on the published machine if no other is given."""
    g = Graph(config or pj.MachineConfig())
    g.output(build(g))
    return lower(g)


def compared() -> list[dict[str, Any]]:
    """Ours beside the published ones."""
    table = []
    for entry in entries():
        program = lowered(entry.build, entry.machine)
        cost, (instructions, cycles) = program.cost(), published(entry)
        table.append(
            {
                "kernel": entry.name,
                "published instructions": instructions,
                "instructions": cost.instructions,
                "published cycles": cycles,
                "cycles": cost.cycles,
                "words": len(program.program),
                "note": entry.note,
            }
        )
    return table


def making() -> dict[str, float]:
    """Seconds of making a large program, and the share of its datapath that multiplies."""
    build = linear(64, 576, 1536)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        program = lowered(build)
        seconds.append(time.perf_counter() - start)
    state = pj.MachineState.create(program.config, vram_rows=program.vram_rows)
    trace = pj.engine_for(program.program, state, program.config).trace
    assert trace is not None
    multiply = BY_MNEMONIC["M_MM"].opcode
    executed = program.program.words[trace.records[:, Record.PC]] & OPCODE_MASK
    share = float(np.mean(executed == multiply))
    return {"linear 64x576x1536: seconds to make": min(seconds), "share of M_MM in datapath steps": share}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table, made = compared(), making()
    if options.json:
        print(json.dumps({"kernels": table, "making": made}, indent=1))
        return
    print(f"{'kernel':24} {'instructions':>22} {'cycles':>22} {'words':>7}  note")
    print(f"{'':24} {'published':>11}{'ours':>11} {'published':>11}{'ours':>11}")
    known = lambda number: "none" if number is None else f"{number:,}"
    for row in table:
        print(
            f"{row['kernel']:24} {known(row['published instructions']):>11}{row['instructions']:11,} "
            f"{known(row['published cycles']):>11}{row['cycles']:11,} {row['words']:7,}  {row['note']}"
        )
    for name, value in made.items():
        print(f"{name:40} {value:.4g}")


if __name__ == "__main__":
    main()
