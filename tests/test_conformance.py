"""Recorded runs of the Rust emulator: every word of every memory, on both engines; and the comparison itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from plena_jax import ConfigError, EngineError, ImageError, Images, engine_for
from plena_jax.conformance import Case, Comparison, verify

HERE = sorted(Path(__file__).with_name("cases").glob("*.npz"))
ENGINES = ["architectural", "resolved"]
FAULTS = {
    "aten_flash_attention_mha_unrolled": (1585, "M_MM 0, gp4, gp3", "gp4", 4),
    "direct_bmm": (270, "M_MM 0, gp2, gp1", "gp2", 4),
    "direct_ffn_intermediate": (41, "M_MM 0, gp2, gp3", "gp2", 4),
    "direct_flashattn_prefill": (145, "M_MM 0, gp2, gp1", "gp2", 4),
    "misc_flash_attention_gqa_fused": (145, "M_MM 0, gp2, gp1", "gp2", 4),
    "models_ffn": (48, "M_MM 0, gp2, gp3", "gp2", 4),
}


def check(path: Path, engine: str) -> None:
    check_case(Case.load(path), engine)


def check_case(case: Case, engine: str) -> None:
    for one in verify(case, engine):  # type: ignore[arg-type]
        assert one.equal, one
        if not case.recorded:
            pc, instruction, operand, value = FAULTS[case.name]
            what = f"pc {pc}: {instruction}: misaligned MRAM address (operand {operand} = {value})"
            assert one.message.startswith(what)
            assert "multiple of BLEN * MLEN" in one.message


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_cases_that_come_along(path: Path, engine: str) -> None:
    check(path, engine)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_programs_that_must_stop(name: str, conformance: Path) -> None:
    for engine in ENGINES:
        check(conformance / "faults" / f"{name}.npz", engine)


def check_all(paths: list[Path]) -> None:
    """Both engines; programs of one configuration follow each other, with HBM of one size: each is compiled once."""
    cases: dict[str, list[Case]] = {}
    for path in paths:
        case = Case.load(path)
        cases.setdefault(repr(case.config), []).append(case)
    for group in cases.values():
        size = max(len(case.images.hbm or b"") for case in group)
        for case in group:
            image = (case.images.hbm or b"").ljust(size, b"\0")
            case = dataclasses.replace(case, images=dataclasses.replace(case.images, hbm=image))
            check_case(case, "architectural")
            if engine_for(case.program, case.state(), case.config).name != "architectural":
                check_case(case, "resolved")


@pytest.mark.slow
def test_random_programs(conformance: Path) -> None:
    paths = list((conformance / "fuzz").glob("*.npz"))
    assert len(paths) == 40
    check_all(paths)


#: The first part takes as long as the others together.
@pytest.mark.parametrize(
    "part",
    [pytest.param(0, marks=pytest.mark.exhaustive), *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))],
)
def test_compiled_programs(part: int, conformance: Path) -> None:
    paths = list((conformance / "programs").glob("*.npz"))
    assert len(paths) >= 120
    keys = sorted({repr(Case.load(path).config) for path in paths})
    check_all([path for path in paths if keys.index(repr(Case.load(path).config)) % 4 == part])


def test_latency_of_programs_without_transfers(conformance: Path) -> None:
    from plena_jax import run

    checked = 0
    for name in ("micro_int_ctrl", "micro_vector_masks", "moe_router_gemm", "moe_topk", "gptoss_attn_qk_head_norm"):
        case = Case.load(conformance / "programs" / f"{name}.npz")
        transfers = any(text.startswith("H_") for text in case.program.disassemble())
        if case.latency_ns is not None and not transfers:
            assert run(case.program, case.state(), case.config).latency_cycles == case.latency_ns
            checked += 1
    assert checked >= 2


# -- the comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case() -> Case:
    return Case.load(Path(__file__).with_name("cases") / "direct_gelu.npz")


def changed(case: Case, key: str, index: int, word: int) -> Case:
    memory = case.recorded[key].copy()
    memory[index] = word
    return dataclasses.replace(case, recorded=case.recorded | {key: memory})


def test_one_changed_word_is_found(case: Case) -> None:
    for key, memory in (("out_vram", "VRAM"), ("out_fp_sram", "FP SRAM"), ("out_int_sram", "INT SRAM")):
        word = int(case.recorded[key][3]) ^ 1
        found = [one for one in verify(changed(case, key, 3, word)) if not one.equal]
        assert [(one.memory, one.differing, one.max_ulp) for one in found] == [(memory, 1, 1)]


def test_a_zero_output_is_found(case: Case) -> None:
    silent = dataclasses.replace(case, images=Images())
    assert any(not one.within_sum_order for one in verify(silent))


def test_a_case_that_should_fault_but_does_not(case: Case) -> None:
    (one,) = verify(dataclasses.replace(case, recorded={}))
    assert not one.equal
    assert "where it had to stop" in one.message


def test_a_case_that_faults_but_should_not(case: Case) -> None:
    stopped = Case.load(Path(__file__).with_name("cases") / "direct_flashattn_prefill.npz")
    (one,) = verify(dataclasses.replace(stopped, recorded=case.recorded))
    assert not one.equal
    assert one.message.startswith("pc 145")


def test_only_the_recorded_words_count(case: Case) -> None:
    """A share of what is allocated would let a record of 200 words differ in all of them."""
    words = case.recorded["out_vram"][:200]
    (one,) = verify(dataclasses.replace(case, recorded={"out_vram": words}))
    assert one.words == 200
    behind = np.count_nonzero(case.recorded["out_vram"][200:])
    assert one.differing == behind > 0
    (one,) = verify(
        changed(dataclasses.replace(case, recorded={"out_vram": case.recorded["out_vram"]}), "out_vram", 3, 1)
    )
    assert one.words == len(case.recorded["out_vram"])


def test_what_the_order_of_sums_may_explain() -> None:
    good = Comparison("c", "resolved", "VRAM", 1000, 4, 1, 1e-3)
    assert good.within_sum_order
    assert not dataclasses.replace(good, differing=5).within_sum_order
    assert not dataclasses.replace(good, relative_l2=1.1e-3).within_sum_order
    assert not dataclasses.replace(good, relative_l2=float("nan")).within_sum_order
    assert not dataclasses.replace(good, memory="fault").within_sum_order


def test_distances_in_units_in_the_last_place(case: Case) -> None:
    value = int(case.recorded["out_vram"][500])
    # Across zero, the distance is that over both zeros; NaN is as far as can be.
    for word, distance in ((value ^ 0x8000, 2 * (value & 0x7FFF)), (0x7FC0, 0xFFFF)):
        found = [one for one in verify(changed(case, "out_vram", 500, word)) if not one.equal]
        assert [one.max_ulp for one in found] == [distance]


def test_files_that_are_no_cases(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"not a zip file")
    with pytest.raises(ImageError, match=r"not an \.npz file"):
        Case.load(path)
    np.savez(path, program=np.zeros(3, np.uint32))
    with pytest.raises(ImageError, match="'settings' is missing"):
        Case.load(path)
    np.savez(path, settings=np.array("x"), program=np.zeros(3, np.uint32), fp_sram=np.zeros(0, np.float16))
    with pytest.raises(ImageError, match="'hbm' is missing; it must hold one-dimensional uint8"):
        Case.load(path)
    settings = np.array(case.config.to_toml())
    np.savez(
        path,
        settings=settings,
        program=np.zeros(3, np.int64),
        hbm=np.zeros(0, np.uint8),
        fp_sram=np.zeros(0, np.float16),
    )
    with pytest.raises(ImageError, match=r"'program' holds int64 \(3,\); allowed: one-dimensional uint32"):
        Case.load(path)
    with pytest.raises(FileNotFoundError):
        Case.load(tmp_path / "nothing.npz")


_GOOD = dict(np.load(Path(__file__).with_name("cases") / "direct_gelu.npz"))
_NUMBER = "allowed: a single number, 0 or more"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "out_vram",
            _GOOD["out_vram"].astype(np.int64) + 2**32,
            r"'out_vram' holds int64 \(\d+,\); allowed: .* uint16",
        ),
        ("out_mram", _GOOD["out_mram"] + 0.7, r"'out_mram' holds float64 \(\d+,\); allowed: one-dimensional uint16"),
        ("out_fp_sram", _GOOD["out_fp_sram"].astype(str), "'out_fp_sram' holds <U.*; allowed: one-dimensional uint16"),
        ("out_int_sram", _GOOD["out_int_sram"][None], r"'out_int_sram' holds uint32 \(1, \d+\); allowed: one-dimens"),
        ("out_hbm", np.zeros(5, bool), r"'out_hbm' holds bool \(5,\); allowed: one-dimensional uint8"),
        ("out_vrma", _GOOD["out_vram"], "'out_vrma' is not a key of a case; allowed: settings, program, .*out_vram"),
        ("latency_ns", np.ones(2), r"'latency_ns' holds float64 \(2,\); " + _NUMBER),
        ("latency_ns", np.array("5"), r"'latency_ns' holds <U1 \(\) 5; " + _NUMBER),
        ("latency_ns", np.array(np.nan), r"'latency_ns' holds float64 \(\) nan; " + _NUMBER),
        ("settings", np.zeros(1), r"'settings' holds float64 \(1,\); allowed: the text of a plena_settings.toml"),
        ("fp_sram", np.zeros(1025, np.float16), "FP SRAM image: 1025 entries do not fit; allowed: 1024"),
    ],
)
def test_contents_that_are_refused(key: str, value: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **_GOOD | {key: value})
    with pytest.raises(ImageError, match=message) as caught:
        Case.load(tmp_path / "x.npz")
    assert str(tmp_path / "x.npz") in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "rule"), [("\n", "\n[", "cannot be parsed"), ("= 16", "= 5", "multiple|divide")]
)
def test_settings_that_are_refused_name_the_file(old: str, new: str, rule: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **_GOOD | {"settings": np.array(str(_GOOD["settings"]).replace(old, new))})
    with pytest.raises(ConfigError, match=rule) as caught:
        Case.load(tmp_path / "x.npz")
    assert f"in {tmp_path / 'x.npz'}: settings" in str(caught.value)


def test_records_of_a_case_made_by_hand(case: Case) -> None:
    with pytest.raises(
        ImageError, match=r"direct_gelu: 'out_vram' holds int64 \(3,\); allowed: one-dimensional uint16"
    ):
        dataclasses.replace(case, recorded={"out_vram": np.array([5 + 2**32, 0, 0])})
    with pytest.raises(ImageError, match="direct_gelu: 'vram' is not a key of a case; allowed: out_vram"):
        dataclasses.replace(case, recorded={"vram": case.recorded["out_vram"]})


def test_an_engine_that_cannot(case: Case) -> None:
    from plena_jax import assemble

    program = assemble("V_TOPK gp1, gp1, gp1, 0\nS_LD_INT gp2, gp0, 1")
    with pytest.raises(EngineError):
        verify(dataclasses.replace(case, program=program), "resolved")
