"""Sweeps over formats: equal to single runs, measured right, compiled once, and clear about what cannot be asked."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

import plena_jax as pj
from plena_jax import ConfigError, EngineError, FormatError, ImageError, MachineConfig, PlenaError, hbm
from plena_jax.cli import main
from plena_jax.formats import FloatFormat, IntFormat, MXFormat, Quantizer, named
from plena_jax.precision import PLACES, Candidate, Operand, Sweep, Workload, distance, sweep
from plena_jax.precision.lanes import Lane, Measured, contents, grouped, measure, run_one, varied
from plena_jax.precision.places import FIELDS, describe, objection

ROOT = Path(__file__).parents[1]
#: Plain formats: one with infinities, one that saturates, one that loses nearly everything, and more and more mantissa.
MANTISSAS = ["e5m1", "e5m4", "e5m7", "e5m10"]
PLAIN = [*MANTISSAS, "e2m1", "float4_e2m1fn", "int4"]
BLOCKS = ["mxfp4_e2m1", "mxint8"]
BLOCK = 4


#: Uses every place: a product with a tile, an element-wise sum with a KV row and a scalar, stored and read back.
EVERYWHERE = """
    S_ADDI_INT gp1, gp0, 32
    C_SET_ADDR_REG a1, gp0, gp1
    S_ADDI_INT gp1, gp0, 128
    C_SET_ADDR_REG a2, gp0, gp1
    S_ADDI_INT gp1, gp0, 256
    C_SET_ADDR_REG a3, gp0, gp1
    S_ADDI_INT gp2, gp0, 8
    C_SET_STRIDE_REG gp2
    S_ADDI_INT gp3, gp0, 16
    C_SET_SCALE_REG gp3
    H_PREFETCH_V gp0, gp0, a0, 1, 0
    H_PREFETCH_V gp3, gp0, a2, 1, 1
    S_ADDI_INT gp3, gp0, 64
    C_SET_SCALE_REG gp3
    H_PREFETCH_M gp0, gp0, a1, 1, 0
    S_ADDI_INT gp4, gp0, 32
    M_MM 0, gp0, gp0
    M_MM_WO gp4, gp0, 0
    S_ADDI_INT gp5, gp0, 16
    V_ADD_VV gp4, gp4, gp5, 0
    S_LD_FP f1, gp0, 3
    V_MUL_VF gp4, gp4, f1, 0
    V_RED_SUM f2, gp4
    V_ADD_VF gp4, gp4, f2, 0
    S_ADDI_INT gp3, gp0, 8
    C_SET_SCALE_REG gp3
    H_STORE_V gp4, gp0, a3, 0, 0
"""


def everywhere(config: MachineConfig, output: Any = slice(4, 5), seed: int = 0) -> Workload:
    random = np.random.default_rng(seed)
    x, kv = (random.normal(size=(2, 8)).astype(np.float32) for _ in range(2))
    w = random.normal(size=(8, 8)).astype(np.float32)
    fp_sram = random.normal(size=8).astype(np.float32)
    p = config.precision
    operands = (
        Operand(hbm.Tensor("x", (2, 8), 0, p.hbm_v_act_type), x, "activations"),
        Operand(hbm.Tensor("w", (8, 8), 32, p.hbm_m_weight_type), w, "weights"),
        Operand(hbm.Tensor("cache", (2, 8), 128, p.hbm_v_kv_type), kv, "kv"),
    )
    row = np.zeros(8, np.float32)
    row[:2] = (x @ w)[0, :2]
    row = (row + kv[0]) * fp_sram[3]
    program = pj.assemble(EVERYWHERE)
    return Workload(program, config, operands, output, (row + row.sum())[None], fp_sram=fp_sram)


# -- against single runs ----------------------------------------------------------------------------------------------


def bits(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32).view(np.uint32)


class Compilations:
    """Counts what XLA compiles inside the block."""

    def __enter__(self) -> Compilations:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self

    def listen(self, name: str, seconds: float, **_: Any) -> None:
        self.count += "backend_compile" in name

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.listen)


@pytest.fixture(scope="module")
def workload(small: MachineConfig) -> Workload:
    return everywhere(small)


@pytest.fixture(scope="module")
def lanes(workload: Workload) -> list[Lane]:
    """Each format in each place that can hold it, in all of HBM at once, and none."""
    found = [Lane("none", (), None)]
    for name in [*PLAIN, *BLOCKS]:
        one = Candidate(name, named(name, block=BLOCK))
        there = [place for place in PLACES if objection(place, one, workload.config.mlen) is None]
        found += [Lane(place, (place,), one) for place in there] + [Lane("hbm", PLACES[:3], one)]
    return found


@pytest.fixture(scope="module")
def measured(workload: Workload, lanes: list[Lane]) -> dict[Lane, Measured]:
    """What each lane gives in its batch; and one compilation for each block size."""
    assert workload.start is not None
    found: dict[Lane, Measured] = {}
    groups = grouped(lanes)
    assert len(groups) == 2
    with Compilations() as compilations:
        for group in groups:
            found |= zip(group, measure(workload, group), strict=True)
    assert compilations.count == 2
    with Compilations() as compilations:
        for group in groups:
            again = measure(workload, group[::-1])
            assert np.array_equal(bits(again[0].output), bits(found[group[-1]].output))
    assert compilations.count == 0
    return found


def test_a_batch_equals_single_runs(workload: Workload, lanes: list[Lane], measured: dict[Lane, Measured]) -> None:
    single = jax.jit(lambda arrays, formats: run_one(workload, arrays, formats))
    arrays = contents(workload)
    for group in grouped(lanes):
        formats = varied(group)
        with Compilations() as compilations:
            outputs = [single(arrays, jax.tree.map(lambda leaf, i=i: leaf[i], formats)) for i in range(len(group))]
        assert compilations.count == 1
        for lane, (output, losses) in zip(group, outputs, strict=True):
            assert np.array_equal(bits(output), bits(measured[lane].output)), lane
            assert {name: int(pair[0]) for name, pair in losses.items()} == measured[lane].saturated
            assert {name: int(pair[1]) for name, pair in losses.items()} == measured[lane].flushed


def test_every_format_does_something_in_every_place(lanes: list[Lane], measured: dict[Lane, Measured]) -> None:
    wide = measured[lanes[0]].output
    assert {lane.label for lane in lanes} == {*PLACES, "hbm", "none"}
    for lane in lanes[1:]:
        assert not np.array_equal(bits(measured[lane].output), bits(wide)), lane
    # Weights lose the same in HBM and in matrix SRAM; some formats leave nothing but NaN.
    others = [one.output.tobytes() for lane, one in measured.items() if lane.label != "matrix_sram"]
    assert len(set(others)) > 0.8 * len(others)


def alone(workload: Workload, lane: Lane) -> np.ndarray:
    """The run of a lane by itself, with formats as users have them: encoded and decoded."""
    assert lane.candidate is not None
    wide: Any = Quantizer.of(named("float32"))  # type: ignore[arg-type]
    fmt = lane.candidate.format
    at = lambda place: fmt if place in lane.places else wide
    entries = {f.name: wide for f in dataclasses.fields(pj.Formats)}
    for place in lane.places:
        entries |= dict.fromkeys(FIELDS[place], fmt)
    placed = {one.tensor: hbm.stage(one.contents, at(one.role)) for one in workload.operands}
    state = workload.start.replace(hbm=hbm.place(workload.machine, placed, workload.hbm_bytes))
    assert workload.fp_sram is not None
    held = at("scalar").round(workload.fp_sram)
    state = state.replace(fp_sram=state.fp_sram.at[: len(held)].set(held))
    final = pj.run(workload.program, state, workload.machine, precision=pj.Formats(**entries))
    return np.asarray(workload.picked(final))


@pytest.mark.exhaustive
def test_a_batch_equals_a_run_with_codes(workload: Workload, lanes: list[Lane], measured: dict[Lane, Measured]) -> None:
    (lane,) = (one for one in lanes if one.label == "scalar" and one.candidate and one.candidate.name == "e2m1")
    assert np.array_equal(bits(alone(workload, lane)), bits(measured[lane].output))


def test_losses_are_those_of_the_formats(workload: Workload, lanes: list[Lane], measured: dict[Lane, Measured]) -> None:
    total = 0
    for lane in lanes[1:]:
        assert lane.candidate is not None
        for operand in workload.operands:
            fmt, one = lane.candidate.format, measured[lane]
            lost = fmt.saturates(operand.contents), fmt.flushes(operand.contents)
            expected = [int(np.sum(x)) if operand.role in lane.places else 0 for x in lost]
            assert [one.saturated[operand.tensor.name], one.flushed[operand.tensor.name]] == expected
            total += sum(expected)
    assert total > 50


def test_the_machine_in_float32_computes_the_reference(
    workload: Workload, lanes: list[Lane], measured: dict[Lane, Measured]
) -> None:
    wide = measured[lanes[0]].output
    assert distance(wide, workload.reference).relative_l2 < 1e-6
    for wrong in (np.zeros_like(wide), np.roll(wide, 1, axis=1), -wide):
        assert distance(wrong, workload.reference).relative_l2 > 0.1


# -- the sweep --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(workload: Workload, measured: dict[Lane, Measured]) -> Sweep:
    counts: list[int] = []
    # The same formats in the same places as above: nothing is left to compile.
    with Compilations() as compilations:
        found = sweep(workload, [*PLAIN, *BLOCKS], blocks=[BLOCK], together=True, progress=counts.append)
    assert compilations.count == 0
    # Integers have no place in vector SRAM and among scalars; the baseline is one more.
    assert 7 * len(PLAIN) - 2 + 1 in counts
    assert counts == sorted(set(counts))
    assert counts[-1] == len(found.entries) + 1
    return found


def test_entries_are_what_was_measured(
    swept: Sweep, workload: Workload, lanes: list[Lane], measured: dict[Lane, Measured]
) -> None:
    expected = {(lane.label, lane.candidate.name): measured[lane] for lane in lanes[1:] if lane.candidate}
    assert {(e.place, e.format) for e in swept.entries} == set(expected)
    for entry in swept.entries:
        one = expected[entry.place, entry.format]
        assert entry.relative_l2 == distance(one.output, workload.reference).relative_l2
        assert {k: v for k, v in entry.saturated.items() if k != "output"} == one.saturated
        assert (entry.block, entry.rule) == ((BLOCK, "floor") if entry.format in BLOCKS else (None, None))
    assert (swept.baseline.place, swept.baseline.format, swept.baseline.bits) == ("none", "float32", 32)
    assert swept.baseline.relative_l2 < 1e-6


def test_more_mantissa_is_better(swept: Sweep) -> None:
    for place in (*PLACES, "hbm"):
        errors = [e.relative_l2 for name in MANTISSAS for e in swept.entries if (e.place, e.format) == (place, name)]
        assert len(errors) == len(MANTISSAS)
        assert errors == sorted(errors, reverse=True), place
        assert errors[0] > 20 * errors[-1], place


def test_best_is_the_narrowest_that_suffices(swept: Sweep) -> None:
    errors = {e.format: e.relative_l2 for e in swept.entries if e.place == "weights"}
    best = swept.best("weights", errors["mxint8"])
    assert best is not None
    assert best.relative_l2 <= errors["mxint8"]
    assert all(e.bits_per_value >= best.bits_per_value for e in swept.entries if e.place == "weights" and (
        e.relative_l2 <= errors["mxint8"]))  # fmt: skip
    assert best.bits_per_value == 10  # two bits are each element's share of the scale
    assert swept.best("weights", 0.0) is None
    with pytest.raises(PlenaError, match="place 'nowhere' was not swept; swept: weights, activations, kv"):
        swept.best("nowhere", 1)


def test_json_is_strict_and_complete(swept: Sweep, tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = swept.to_json(tmp_path / "s.json")
    assert (tmp_path / "s.json").read_text() == text
    data = json.loads(text, parse_constant=refuse)
    assert len(data["entries"]) == len(swept.entries)
    assert data["baseline"]["place"] == "none"
    broken = [e for e in data["entries"] if e["non_finite"]]
    assert broken
    assert all(
        (e["relative_l2"], e["snr_db"], e["max_error"], e["cosine"]) == ("inf", "-inf", "inf", 0) for e in broken
    )
    assert {"place", "format", "block", "reason"} == set(data["skipped"][0])


def test_the_table_shows_every_entry(swept: Sweep) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(swept.table())
    lines = console.export_text().splitlines()
    assert len(lines) == len(swept.entries) + 2
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["place", "none", *PLACES, "hbm"]
    assert any("-inf" in line for line in lines)


def test_plots_and_what_they_need(swept: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    swept.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlenaError, match="nonsense"):
        swept.plot(tmp_path / "a.nonsense")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlenaError, match=r"needs matplotlib: pip install 'plena-jax\[docs\]'"):
        swept.plot(tmp_path / "b.png")


def test_what_a_place_cannot_hold_is_skipped(workload: Workload) -> None:
    """Nothing of this is run."""
    with pytest.raises(FormatError, match="nothing to sweep: place 'weights', format 'float8_e8m0fnu': it has no zero"):
        sweep(workload, ["float8_e8m0fnu"])


def test_skipped_pairs_say_why(swept: Sweep) -> None:
    reasons = {(one.place, one.format): one.reason for one in swept.skipped}
    assert set(reasons) == {(p, f) for p in ("vector_sram", "scalar") for f in ("int4", *BLOCKS)}
    assert reasons["scalar", "int4"] == "it is an integer format; allowed: floats (eXmY)"
    assert reasons["vector_sram", "mxint8"] == "it is a block format; allowed: floats (eXmY)"


# -- measures ---------------------------------------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    found = distance(np.array([3.0, 4.5], np.float32), np.array([3.0, 4.0], np.float32))
    assert math.isclose(found.relative_l2, 0.1)
    assert math.isclose(found.snr_db, 20.0)
    assert found.max_error == 0.5
    assert math.isclose(found.cosine, (9 + 18) / (5 * math.sqrt(9 + 20.25)))
    x, y = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    found = distance(x, y)
    assert math.isclose(found.relative_l2, np.linalg.norm(x - y) / np.linalg.norm(y), rel_tol=1e-6)
    assert math.isclose(found.cosine, np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y), rel_tol=1e-4)
    assert found.relative_l2 > 0.5


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("result", "reference", "expected"),
    [
        (ONES, ONES, (0.0, 1.0, 0.0, math.inf, 0)),
        (0 * ONES, ONES, (1.0, 0.0, 1.0, 0.0, 0)),
        (-ONES, ONES, (2.0, -1.0, 2.0, -20 * math.log10(2), 0)),
        (0 * ONES, 0 * ONES, (0.0, 0.0, 0.0, math.inf, 0)),
        (ONES, 0 * ONES, (math.inf, 0.0, 1.0, -math.inf, 0)),
        (np.array([1, np.nan, np.inf, 1], np.float32), ONES, (math.inf, 0.0, math.inf, -math.inf, 2)),
        (1e38 * ONES, -1e38 * ONES, (2.0, -1.0, 2 * float(np.float32(1e38)), -20 * math.log10(2), 0)),
    ],
)
def test_honest_numbers_at_the_edges(result: np.ndarray, reference: np.ndarray, expected: tuple[float, ...]) -> None:
    found = dataclasses.astuple(distance(result, reference))
    assert np.allclose(found, expected, rtol=1e-12)
    assert all(type(value) in (int, float) for value in found)


# -- what cannot be asked ---------------------------------------------------------------------------------------------

PLENA_FP8 = FloatFormat.make(4, 3, family="plena")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"places": ["scalar"], "formats": ["int8"]},
            "place 'scalar', format 'int8': it is an integer format; allowed: fl",
        ),
        (
            {"places": ["vector_sram"], "formats": ["mxint8"]},
            "'vector_sram', format 'mxint8' in blocks of 8: it is a block",
        ),
        (
            {"places": ["weights"], "formats": ["float8_e8m0fnu"]},
            "it has no zero, it is for scales; allowed: formats with",
        ),
        (
            {"places": ["weights"], "formats": [PLENA_FP8]},
            "format 'e4m3': it is of the hardware model's family; allowed",
        ),
        ({"places": ["nowhere"]}, "place 'nowhere'; allowed: weights, activations, kv, matrix_sram"),
        ({"formats": ["e4m3", "e9m3"]}, "e9m3: a float format has 1..8 exponent"),
        ({"formats": ["nonsense"]}, "no format is called 'nonsense'"),
        ({"formats": [8]}, "format 8; allowed: a name, a FloatFormat"),
        ({"formats": []}, "no format to sweep"),
        ({"blocks": [3]}, r"block size 3; allowed: those that divide MLEN \(8\)"),
        ({"blocks": [0]}, "block size 0"),
        ({"rule": "plena"}, "scale rule 'plena'; allowed in a sweep: floor, ceil, even, rceil"),
        ({"places": ["weights"], "formats": [named("mxint8", block=16)]}, "rows of 8 elements are not whole blocks"),
        ({"places": ["weights"], "formats": [named("mxint8", block=8, rule="plena")]}, "hardware model's family"),
        (
            {"places": ["weights"], "formats": [MXFormat(named("bfloat16"), FloatFormat.exponent_only(), 8)]},
            r"mx\(bfloat16\)' in blocks of 8: a quantizer with values .* cannot be scaled exactly",
        ),
    ],
)
def test_clear_errors(arguments: dict[str, Any], message: str, workload: Workload) -> None:
    with pytest.raises(FormatError, match=message):
        sweep(workload, **({"formats": ["e4m3"]} | arguments))


def test_places_that_a_program_does_not_use(small: MachineConfig) -> None:
    projection = Workload.projection(4, 16, 8, small)
    reasons = {place: projection.unused(place) for place in PLACES}
    assert [place for place, reason in reasons.items() if reason is None] == [
        "weights", "activations", "matrix_sram", "vector_sram"
    ]  # fmt: skip
    for place, message in (
        ("kv", "no tensor of role 'kv' and stores none"),
        ("scalar", "the program writes no scalar"),
    ):
        with pytest.raises(FormatError, match=f"place '{place}': .*{message}"):
            sweep(projection, ["e4m3"], places=[place])
    empty = Workload(pj.assemble("S_ADDI_INT gp1, gp0, 1"), small, (), slice(0, 1), np.zeros((1, 8)))
    assert all(empty.unused(place) for place in PLACES)


def test_names_of_formats() -> None:
    objects = [named("mxfp4_e2m1", block=16, rule="even"), named("tf32"), IntFormat(6), IntFormat(4, 2, 0)]
    names = ["mxfp4_e2m1", "tf32", "int6", "uint4f2"]
    assert [describe(one) for one in objects] == names
    assert describe(FloatFormat.make(4, 3, bias=8)) == "e4m3 (bias 8)"
    assert describe(FloatFormat.make(5, 3, specials="fn", saturate=True)) == "e5m3 (largest 0xfe, saturating)"
    assert Candidate("x", objects[0]).bits_per_value == 4.5


def test_bad_workloads(small: MachineConfig) -> None:
    good = everywhere(small)
    x = good.operands[0]
    with pytest.raises(ImageError, match=r"tensor x: contents \(8, 2\); its shape is \(2, 8\)"):
        Operand(x.tensor, x.contents.T, "weights")
    with pytest.raises(ImageError, match="tensor x: role 'gradients'; allowed: weights, activations, kv"):
        Operand(x.tensor, x.contents, "gradients")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="different names"):
        dataclasses.replace(good, operands=(x, x))
    with pytest.raises(ImageError, match="the reference has infinite or NaN"):
        dataclasses.replace(good, reference=np.full((1, 8), np.nan))
    with pytest.raises(ImageError, match=r"the output is \(2, 8\), its reference \(1, 8\)"):
        dataclasses.replace(good, output=slice(4, 6)).picked(good.start)
    topk = "V_TOPK gp0, gp0, gp0, 0\nS_LD_INT gp1, gp0, 0\nV_ADD_VV gp1, gp1, gp1, 0"
    with pytest.raises(EngineError, match="a sweep needs the resolved engine, but"):
        sweep(dataclasses.replace(good, program=pj.assemble(topk)), ["e4m3"])
    with pytest.raises(pj.MachineFault, match="misaligned VRAM address"):
        sweep(dataclasses.replace(good, program=pj.assemble("S_ADDI_INT gp1, gp0, 3\nV_EXP_V gp1, gp0, 0")), ["e4m3"])
    with pytest.raises(ConfigError, match="k = 12"):
        Workload.projection(4, 12, 8, small)


def test_outputs_can_be_tensors(small: MachineConfig, workload: Workload) -> None:
    stored = hbm.Tensor("y", (1, 8), 256, small.precision.hbm_v_act_type)
    other = dataclasses.replace(workload, output=stored)
    assert other.bound == "activations"
    final = other.start.replace(hbm=other.start.hbm.at[256:264].set(np.arange(8.0)))
    assert np.array_equal(other.picked(final), [np.arange(8.0)])
    assert other.start.vram.shape[0] < 16


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(small: MachineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small machine; jax's compilation cache is left alone."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    small.to_toml(tmp_path / "s.toml")
    return str(tmp_path / "s.toml")


def test_the_command_reports_as_json(settings: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "--settings", settings, "--shape", "4", "16", "8", "--formats", "e4m1", "e4m5", "--json"]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["shape"], data["seed"], data["settings"]) == ([4, 16, 8], 0, settings)
    assert {e["place"] for e in data["entries"]} == {"weights", "activations", "matrix_sram", "vector_sram"}
    errors = {(e["place"], e["format"]): e["relative_l2"] for e in data["entries"]}
    assert all(4 * errors[place, "e4m5"] < errors[place, "e4m1"] < 0.5 for place, _ in errors)


def test_the_command_prints_and_plots(
    settings: str, swept: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    asked: list[Any] = []
    monkeypatch.setattr("plena_jax.cli.sweep.sweep", lambda *arguments, **_: asked.append(arguments[1:6]) or swept)
    plot = str(tmp_path / "a.svg")
    assert main(["sweep", "--settings", settings, "--shape", "4", "16", "8", "--plot", plot, "--rule", "even"]) == 0
    text = capsys.readouterr().out
    assert "4x16 activations x 16x8 weights" in text
    assert "skipped in vector_sram int4; in scalar int4: it is an integer format" in text
    assert "mxfp4_e2m1" in text
    assert Path(plot).exists()
    assert asked[0][1:] == (None, None, "even", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "e9m9"], "e9m9: a float format has 1..8 exponent"),
        (["--places", "nowhere"], "invalid choice: 'nowhere'"),
        (["--places", "scalar"], "place 'scalar': the program writes no scalar"),
        (
            ["--places", "vector_sram", "--formats", "int8"],
            "place 'vector_sram', format 'int8': it is an integer format",
        ),
        (["--blocks", "5"], "block size 5; allowed"),
        (["--shape", "3", "16", "8"], "rows = 3"),
        (["--shape", "4", "16"], "expected 3 arguments"),
        (["--rule", "plena"], "invalid choice"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], message: str, settings: str, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [] if "--shape" in arguments else ["--shape", "4", "16", "8"]
    with pytest.raises(SystemExit) as caught:
        main(["sweep", "--settings", settings, *usual, *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_example_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/precision.md").read_text(), re.DOTALL)
    exec(example, {})
    said = re.findall(r"^print\(.*\)  # (.*)$", example, re.MULTILINE)
    assert len(said) == 2
    assert capsys.readouterr().out.splitlines() == said


def test_other_errors_exit_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--settings", "nothing.toml"]) == 1
    assert "nothing.toml" in capsys.readouterr().err
