"""The command line, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import plena_jax as pj
from plena_jax.cli import main
from plena_jax.cli.console import byte_count
from plena_jax.conformance import Case

CASES = Path(__file__).with_name("cases")


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave jax's compilation cache alone, and work in an empty folder without settings anywhere."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    monkeypatch.delenv("PLENA_SETTINGS_TOML", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def files() -> dict[str, str]:
    """The files that the emulator's harness writes, for one case."""
    data = np.load(CASES / "direct_h_store.npz")
    case = Case.load(CASES / "direct_h_store.npz")
    Path("P.mem").write_text(case.program.to_mem())
    Path("H.bin").write_bytes(case.images.hbm)
    Path("F.bin").write_bytes(case.images.fp_sram)
    Path("S.toml").write_text(str(data["settings"]))
    return {"--opcode": "P.mem", "--hbm": "H.bin", "--fpsram": "F.bin", "--settings": "S.toml"}


def arguments(files: dict[str, str], *more: str) -> list[str]:
    return ["run", *(part for pair in files.items() for part in pair), *more]


def test_run_writes_the_emulators_dumps(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = {name: Path(name).read_bytes() for name in ("P.mem", "H.bin", "F.bin", "S.toml")}
    assert main(arguments(files, "--hbm-size", "64K", "--dump", "out", "--json")) == 0
    recorded = np.load(CASES / "direct_h_store.npz")
    config = pj.MachineConfig.from_toml(Path("S.toml"), partial_heads=True)
    sizes = {
        "vram": config.vector_sram_size * config.vlen * 2,
        "mram": config.tiles * config.mlen**2 * 2,
        "fpsram": 2048,
        "intsram": 4096,
        "hbm": 1 << 16,
    }
    for name, size in sizes.items():
        data = Path(f"out/{name}_dump.bin").read_bytes()
        assert len(data) == size
        key = {"fpsram": "out_fp_sram", "intsram": "out_int_sram"}.get(name, f"out_{name}")
        if key in recorded:
            expected = recorded[key].tobytes()
            assert data[: len(expected)] == expected
            assert name == "hbm" or not any(data[len(expected) :])
    assert {name: Path(name).read_bytes() for name in before} == before
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary["instructions"] == sum(summary["instructions_by_unit"].values()) == 39
    assert summary["engine"] == "resolved"
    assert summary["hbm_bytes_written"] > 0
    assert "Simulation completed. Latency " in output.err
    assert "HBM Statistics - Bytes read: " in output.err
    assert "mlen=64 vlen=64 blen=4" in output.err


def test_run_prints_a_summary_for_people(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(files, "--engine", "architectural", "--no-dump")) == 0
    assert not list(Path.cwd().glob("*_dump.bin"))
    text = capsys.readouterr().out
    assert "scalar int" in text
    assert "architectural engine" in text
    assert "instructions/s" in text


def test_dumps_go_to_the_current_folder_by_default(files: dict[str, str]) -> None:
    assert main(arguments(files, "--hbm-size", "1M")) == 0
    assert {path.name for path in Path.cwd().glob("*_dump.bin")} == {
        "vram_dump.bin", "mram_dump.bin", "fpsram_dump.bin", "intsram_dump.bin", "hbm_dump.bin"
    }  # fmt: skip


def test_run_takes_assembly_and_every_image(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.asm").write_text("S_LD_INT gp1, gp0, 1 ; entry 1\nS_ST_INT gp1, gp0, 2\nV_ADD_VV gp0, gp0, gp0\n")
    np.array([7, 8], "<u4").tofile("i.bin")
    np.array([0x3F80, 0x4000], "<u2").tofile("v.bin")
    command = ["run", "a.asm", "--intsram", "i.bin", "--vram", "v.bin", "--hbm-size", "64k", "--dump", "o"]
    assert main(command) == 0
    assert np.fromfile("o/intsram_dump.bin", "<u4")[:3].tolist() == [7, 8, 8]
    assert np.fromfile("o/vram_dump.bin", "<u2", 3).tolist() == [0x4000, 0x4080, 0]
    assert "published transactional profile" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["environment", "parent"])
def test_settings_are_found_where_the_emulator_looks(
    how: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Path("S.toml").rename("../plena_settings.toml" if how == "parent" else "elsewhere.toml")
    if how == "environment":
        monkeypatch.setenv("PLENA_SETTINGS_TOML", str(settings.resolve()))
    del files["--settings"]
    assert main(arguments(files, "--no-dump")) == 0
    assert settings.name in capsys.readouterr().err


def test_settings_that_cannot_be_used_are_an_error(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("S.toml").write_text("[TRANSACTIONAL.CONFIG.MLEN]\nvalue = 64\n")
    assert main(arguments(files)) == 1
    assert "plena run: error: TRANSACTIONAL.CONFIG" in capsys.readouterr().err
    files["--settings"] = "nothing.toml"
    assert main(arguments(files)) == 1


def test_a_fault_exits_like_the_emulator_and_dumps_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.asm").write_text("S_ADDI_INT gp1, gp0, 3\nV_ADD_VV gp0, gp0, gp1\n")
    assert main(["run", "a.asm", "--hbm-size", "64K"]) == 101
    assert not list(Path.cwd().glob("*_dump.bin"))
    message = capsys.readouterr().err
    assert (
        "pc 1: V_ADD_VV gp0, gp0, gp1: misaligned VRAM address (operand gp1 = 3); allowed: a multiple of 64" in message
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("H.bin", b"x" * 70000, "HBM image: 70000 bytes do not fit; allowed: 65536"),
        ("F.bin", b"x" * 7, "FP SRAM image: 7 bytes are not a whole number of float16 entries"),
        ("F.bin", b"x" * 2050, "FP SRAM image: 1025 entries do not fit"),
        ("P.mem", b"0x12 0xZZ", "P.mem:1:6: '0xZZ' is not a hexadecimal word"),
        ("P.mem", b"\xff\xfe\x00", "P.mem"),
    ],
)
def test_bad_files_are_named(
    name: str, content: bytes, message: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(content)
    assert main(arguments(files, "--hbm-size", "64K")) == 1
    assert message in capsys.readouterr().err
    assert Path(name).read_bytes() == content
    assert not list(Path.cwd().glob("*_dump.bin"))


def test_inputs_are_never_overwritten(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("H.bin").rename("hbm_dump.bin")
    content = Path("hbm_dump.bin").read_bytes()
    files["--hbm"] = "hbm_dump.bin"
    assert main(arguments(files)) == 1
    assert "is an input file" in capsys.readouterr().err
    assert Path("hbm_dump.bin").read_bytes() == content
    assert main(["disasm", "P.mem", "-o", "P.mem"]) == 1


def test_no_input_is_overwritten_by_a_trace_or_a_log(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    np.array([7, 8], "<u4").tofile("I.bin")
    np.array([0x3F80], "<u2").tofile("V.bin")
    files |= {"--intsram": "I.bin", "--vram": "V.bin"}
    before = {name: Path(name).read_bytes() for name in files.values()}
    for option in ("--trace", "--log-file"):
        for name in before:
            assert main(arguments(files, "--no-dump", option, name)) == 1
            assert f"{name}: is an input file" in capsys.readouterr().err
    assert {name: Path(name).read_bytes() for name in before} == before


def test_settings_that_were_found_are_an_input_too(
    files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLENA_SETTINGS_TOML", files.pop("--settings"))
    before = Path("S.toml").read_bytes()
    assert main(arguments(files, "--no-dump", "--trace", "S.toml")) == 1
    assert "S.toml: is an input file" in capsys.readouterr().err
    assert Path("S.toml").read_bytes() == before


def test_missing_files_and_missing_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nothing.mem"]) == 1
    assert "nothing.mem" in capsys.readouterr().err
    for command in (["run"], ["run", "a", "--opcode", "b"], ["nonsense"], ["run", "a", "--hbm-size", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(command)
        assert caught.value.code == 2


def test_a_trace_takes_no_engine(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for engine in ("auto", "architectural", "resolved"):
        with pytest.raises(SystemExit) as caught:
            main(arguments(files, "--no-dump", "--trace", "--engine", engine))
        assert caught.value.code == 2
        assert "--trace executes one instruction after the other, on no --engine" in capsys.readouterr().err


def test_a_command_works_where_nobody_has_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pwd

    def unknown(user: int) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert main(["isa", "C_BREAK"]) == 0
    assert "C_BREAK" in capsys.readouterr().out


def test_trace_as_text_and_as_json_lines(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(files, "--no-dump", "--trace", "--max-instructions", "12")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0].split()[:3] == [
        "0",
        "0",
        Case.load(CASES / "direct_h_store.npz").program.disassemble()[0].split()[0],
    ]
    assert main(arguments(files, "--no-dump", "--trace", "t.jsonl")) == 0
    objects = [json.loads(line) for line in Path("t.jsonl").read_text().splitlines()]
    assert len(objects) == 39
    assert set(objects[0]) == {"tick", "pc", "instruction", "unit", "effects", "section"}
    capsys.readouterr()
    assert main(arguments(files, "--no-dump", "--trace", "--json")) == 0
    assert capsys.readouterr().out == Path("t.jsonl").read_text()


def test_asm_and_disasm_are_inverse(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["disasm", "P.mem", "-o", "p.asm"]) == 0
    assert main(["asm", "p.asm"]) == 0
    assert capsys.readouterr().out == Path("P.mem").read_text()
    assert main(["disasm", "P.mem", "--addresses"]) == 0
    Path("q.asm").write_text(capsys.readouterr().out)
    assert main(["asm", "q.asm", "-o", "q.mem"]) == 0
    assert Path("q.mem").read_bytes() == Path("P.mem").read_bytes()


def test_asm_shows_where_the_text_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.asm").write_text("S_ADDI_INT gp1, gp0, 1\n  V_ADD_VV gp1, gp16, gp2\n")
    assert main(["asm", "a.asm"]) == 1
    error = capsys.readouterr().err
    assert "a.asm:2:17: operand gpA of V_ADD_VV" in error
    assert "gp0..gp15" in error
    assert not Path("a.mem").exists()


def test_isa_lists_every_instruction(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isa"]) == 0
    text = capsys.readouterr().out
    assert all(entry.syntax in text for entry in pj.INSTRUCTIONS)
    assert main(["isa", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [one["mnemonic"] for one in data] == [entry.mnemonic for entry in pj.INSTRUCTIONS]
    assert main(["isa", "v_topk", "M_BMM"]) == 0
    text = capsys.readouterr().out
    assert "128 or 512 cycles" in text
    assert "hm_accum[j]" in text
    assert main(["isa", "V_NOTHING"]) == 1
    assert main(["isa", "M_MM", "--unit", "vector"]) == 1


def test_the_reference_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["isa", "--markdown"]) == 0
    assert capsys.readouterr().out == (Path(__file__).parents[1] / "docs/isa.md").read_text()


def test_verify_reports_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    good = [str(CASES / f"{name}.npz") for name in ("direct_gelu", "direct_flashattn_prefill")]
    assert main(["verify", *good]) == 0
    text = capsys.readouterr().out
    assert "2 of 2 runs good" in text
    assert "stopped as it must: pc 145" in text
    assert main(["verify", "--json", "--engine", "resolved", "--engine", "architectural", *good]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"case", "engine", "memory", "words", "differing", "max_ulp", "relative_l2"} <= set(data[0])
    assert {(one["case"], one["engine"]) for one in data} == {
        (case, engine)
        for case in ("direct_gelu", "direct_flashattn_prefill")
        for engine in ("resolved", "architectural")
    }


def test_verify_fails_on_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    data = dict(np.load(CASES / "direct_gelu.npz"))
    data["out_vram"] = data["out_vram"].copy()
    data["out_vram"][500] ^= 1
    np.savez("bad.npz", **data)
    assert main(["verify", "bad.npz"]) == 1
    assert "DIFFERS" in capsys.readouterr().out
    # One bit in the last place of one word: the order of sums could explain that, but only if it is asked for.
    assert main(["verify", "--allow-sum-order", "bad.npz"]) == 0
    data["out_vram"][500] ^= 0x4000
    np.savez("bad.npz", **data)
    assert main(["verify", "--allow-sum-order", "bad.npz"]) == 1


def test_verify_reports_bad_cases_among_others(capsys: pytest.CaptureFixture[str]) -> None:
    """One that cannot be read, one that is not there, one that cannot be run, and good ones around them."""
    data = dict(np.load(CASES / "direct_gelu.npz"))
    np.savez("wide.npz", **data | {"out_vram": data["out_vram"].astype(np.int64)})
    np.savez("refused.npz", **data | {"program": np.array([0x03 | 1 << 6], np.uint32)})
    good = [str(CASES / f"{name}.npz") for name in ("direct_gelu", "direct_flashattn_prefill")]
    paths = [good[0], "wide.npz", "nothing.npz", "refused.npz", good[1]]
    assert main(["verify", *paths]) == 1
    text = capsys.readouterr().out
    assert "2 of 5 runs good" in text
    assert "FAILED: wide.npz: 'out_vram' holds int64" in text
    assert main(["verify", "--json", "--allow-sum-order", *paths]) == 1
    report = json.loads(capsys.readouterr().out)
    failed = {one["case"]: one["message"] for one in report if one["differing"]}
    assert list(failed) == ["wide", "nothing", "refused"]
    assert "No such file" in failed["nothing"]
    assert "the rd field must be 0" in failed["refused"]
    assert {one["case"] for one in report if not one["differing"]} == {"direct_gelu", "direct_flashattn_prefill"}


@pytest.mark.parametrize("seed", ["-1", "1.5", "x"])
def test_demo_refuses_what_is_no_seed(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["demo", "--seed", seed])
    assert caught.value.code == 2
    assert f"'{seed}' is not a whole number, 0 or more" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_demo_checks_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """In PyTorch if it is there, else in JAX; what it prints for machines is tested in tests/frontend."""
    assert main(["demo", "--small", "--tokens", "4", "--sections"]) == 0
    said = capsys.readouterr().out
    assert "the machine equals its rounded reference" in said and "attention" in said


def test_every_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["run"], ["asm"], ["disasm"], ["isa"], ["verify"], ["demo"], ["sweep"], ["compile"], ["bench"]):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--help"])
        assert caught.value.code == 0
        assert "examples:\n  plena" in capsys.readouterr().out


def test_byte_counts() -> None:
    values = {"65536": 65536, "64K": 1 << 16, "64kB": 1 << 16, "2MiB": 1 << 21, "1g": 1 << 30, "1TiB": 1 << 40}
    assert {text: byte_count(text) for text in values} == values
    for wrong in ("", "K", "-1", "1.5G", "0x10", "10 apples", "1KK"):
        with pytest.raises(Exception, match="is not a number of bytes"):
            byte_count(wrong)


def test_as_a_module_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "plena_jax", "isa", "C_BREAK", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)[0]["opcode"] == 0x34
