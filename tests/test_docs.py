"""The documentation: what it cites exists, and what it lists is what the code has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plena_jax import INSTRUCTIONS, Fault, Formats, Intended, Latency, MachineConfig, assemble, run
from plena_jax.config import BF16, E8M0, MXFP8
from plena_jax.formats import plena

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/machine.md").read_text(encoding="utf-8")
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FOLDERS = ("plena_jax", "tests", "benchmarks", "bridges")
#: All but this file, whose citations are examples.
SOURCES = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py") if path.name != "test_docs.py"]
MNEMONICS = {entry.mnemonic for entry in INSTRUCTIONS}

# -- reading Markdown -------------------------------------------------------------------------------------------------


def headings(text: str) -> set[str]:
    """The numbers of numbered headings."""
    return set(re.findall(r"^#+ (\d+(?:\.\d+)*) ", text, re.MULTILINE))


def section(number: str, text: str = PAGE) -> str:
    """A section with its subsections."""
    start = re.search(rf"^#+ {re.escape(number)} ", text, re.MULTILINE)
    assert start, f"no section {number}"
    level = text[start.start() :].split(" ", 1)[0]
    end = re.compile(rf"^#{{1,{len(level)}}} ", re.MULTILINE).search(text, start.end())
    return text[start.start() : end.start() if end else len(text)]


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table, heading row first, without the line below it; each a list of cells."""
    found: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif found[-1]:
            found.append([])
    made = [[rows[0], *rows[2:]] for rows in found if rows]
    assert all(len(row) == len(rows[0]) for rows in made for row in rows)
    return made


def only_table(number: str, heading: list[str]) -> list[list[str]]:
    """The rows of a section's only table, of which the first cells of the heading are known."""
    (rows,) = tables(section(number))
    assert rows[0][: len(heading)] == heading
    return rows[1:]


def links(text: str) -> list[str]:
    """Targets of links to files; not web addresses, nor places in the same page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]


def spans(text: str) -> list[str]:
    """What stands in backquotes."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def test_reading_markdown() -> None:
    text = "# A\n\n## 1 One\n\n### 1.2 Two\n\n| a | b |\n|---|---|\n| x \\| y | `z` |\n\ntext\n\n## 11 Eleven\n"
    assert headings(text) == {"1", "1.2", "11"}
    assert section("1", text).endswith("text\n\n")
    assert section("1.2", text).startswith("### 1.2 Two")
    assert tables(text) == [[["a", "b"], ["x \\| y", "`z`"]]]
    assert spans("`a`, `b c`\n```text\n`d`\n```\n`e`") == ["a", "b c", "e"]
    assert links("[a](b.md) [c](d/e.py#f) [g](#h) [i](https://j.k) \n```\nx[0](y)\n```\n") == ["b.md", "d/e.py"]


# -- references -------------------------------------------------------------------------------------------------------

NUMBER = r"\d+(?:\.\d+)*"
REFERENCE = re.compile(rf"docs/machine\.md,? (?:sections? )?({NUMBER}(?:(?:, | and | to ){NUMBER})*)")


def cited(text: str) -> list[str]:
    """The section numbers that a text cites; ``a to b`` cites both ends."""
    # A reference may be broken by the end of a comment's line.
    flat = re.sub(r"\s*\n\s*(?:#:? )?", " ", text)
    return [number for group in REFERENCE.findall(flat) for number in re.findall(NUMBER, group)]


def test_citations_are_found() -> None:
    text = (
        "# docs/machine.md 2.2 to 2.4, x\n# docs/machine.md\n#: section 9.\n(docs/machine.md sections 4.5, 4.6 and 11)"
    )
    assert cited(text) == ["2.2", "2.4", "9", "4.5", "4.6", "11"]


def test_cited_sections_exist() -> None:
    known = headings(PAGE)
    citations = [(path, number) for path in SOURCES for number in cited(path.read_text(encoding="utf-8"))]
    assert len(citations) > 40
    assert [(str(path), number) for path, number in citations if number not in known] == []
    # Sections cite each other as "(4.6)" or "see 6.2".
    inside = re.findall(r"(?:\(|see |in |than in | to )([1-9]\.\d)\b(?=[),.;:]| to )", PAGE)
    assert len(inside) >= 15
    assert [number for number in inside if number not in known] == []


def test_nothing_cites_what_is_not_in_the_repository() -> None:
    outside = re.compile(r"(?<!docs/)\b(?:isa|design|analytic|operators|anchors)\.md (?:sections? )?\d")
    texts = {path: path.read_text(encoding="utf-8") for path in [*SOURCES, *PAGES]}
    assert outside.search("(isa.md section 4)")
    assert [str(path) for path, text in texts.items() if outside.search(text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = links(page.read_text(encoding="utf-8"))
    assert targets or page.name not in ("README.md", "machine.md")
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_quirks_and_disagreements_that_tests_name_are_listed() -> None:
    text = (ROOT / "tests/instructions/test_quirks.py").read_text(encoding="utf-8")
    listed = {
        "disagreement": set(re.findall(r"\d+", " ".join(re.findall(r"\((\d+(?:, \d+)*)\)", section("8"))))),
        "quirk": set(re.findall(r"^(\d+)\. ", section("9"), re.MULTILINE)),
    }
    named = re.findall(r"(disagreement|quirk)s? (\d+)", text, re.IGNORECASE)
    assert len(named) > 50
    assert [pair for pair in named if pair[1] not in listed[pair[0].lower()]] == []


# -- what the page lists ----------------------------------------------------------------------------------------------


def defaults(owner: object) -> dict[str, object]:
    """The default of each TOML key."""
    return {f.metadata["key"]: f.default for f in dataclasses.fields(owner) if "key" in f.metadata}  # type: ignore[arg-type]


def test_config_keys_and_defaults() -> None:
    rows = only_table("2.2", ["Key", "Default"])
    assert {row[0]: int(row[1]) for row in rows} == defaults(MachineConfig)
    assert len(rows) == len(defaults(MachineConfig))


def test_latency_keys_and_defaults() -> None:
    rows = only_table("2.4", ["Key", "en", "dis", "Charged for"])
    assert {row[0]: (int(row[1]), int(row[2])) for row in rows} == defaults(Latency)
    assert len(rows) == len(defaults(Latency))


def test_latencies_are_charged_for_what_the_page_says() -> None:
    charged = {row[0]: expanded(row[3]) for row in only_table("2.4", ["Key", "en", "dis"])}
    for field in dataclasses.fields(Latency):
        # What costs more when only this key does.
        raised = MachineConfig(latency=Latency(**{field.name: (1000, 1000)}))
        more = {e.mnemonic for e in INSTRUCTIONS if e.cycles(raised, 0) > e.cycles(MachineConfig(), 0)}
        assert charged[field.metadata["key"]] == more


def test_precision_keys() -> None:
    keys = [key for row in only_table("2.3", ["Key"]) for key in row[0].split(", ")]
    assert sorted(keys) == sorted(defaults(Formats))


def test_faults() -> None:
    rows = only_table("4.8", ["Fault", "Code"])
    assert [(row[0], int(row[1])) for row in rows] == [(fault.name, fault.value) for fault in Fault]


def expanded(text: str) -> set[str]:
    """Mnemonics among the code spans of a text; ``V_ADD_*`` stands for all that match, and must match some."""
    found = set()
    for name in re.findall(r"^[MVSHC]_[A-Z0-9_*]+", "\n".join(spans(text)), re.MULTILINE):
        matching = {m for m in MNEMONICS if re.fullmatch(name.replace("*", "[A-Z_]+"), m)}
        assert matching, f"{name} is no instruction"
        found |= matching
    return found


def test_every_instruction_is_described_and_every_mnemonic_exists() -> None:
    one_by_one = "".join(f"`{span}`" for span in spans(section("4")) if "*" not in span)
    assert expanded(one_by_one) == MNEMONICS
    expanded(PAGE)


def test_switches_of_intended_behaviour() -> None:
    names = {field.name for field in dataclasses.fields(Intended)}
    assert {span for span in spans(section("9")) if re.fullmatch("[a-z_]+", span)} == names
    assert set(re.findall(r"`Intended\.(\w+)`", PAGE)) <= names


def test_departures_that_the_readme_promises_are_marked() -> None:
    assert PAGE.count("**Departure:**") >= 8


# -- worked values ----------------------------------------------------------------------------------------------------


def _float(text: str) -> np.ndarray:
    return np.array([float(t) for t in text.split(", ")], np.float32)


def _code(text: str) -> np.ndarray:
    return np.array([int(t, 16) for t in text.split(", ")], np.uint32)


def _element(values: np.ndarray) -> np.ndarray:
    """Element codes under a shared exponent of 0."""
    return plena.encode_element(values, MXFP8.element)


def _block(values: np.ndarray) -> np.ndarray:
    return np.concatenate(MXFP8.encode(values))


CONVERSIONS: dict[str, tuple[Callable[[str], np.ndarray], Callable[..., np.ndarray], Callable[[str], np.ndarray]]] = {
    "BF16 encode": (_float, BF16.encode, _code),
    "E4M3 encode": (_float, MXFP8.element.encode, _code),
    "E4M3 decode": (_code, MXFP8.element.decode, _float),
    "E8M0 decode": (_code, E8M0.decode, _float),
    "E8M0 encode": (_float, E8M0.encode, _code),
    "MX element": (_float, _element, _code),
    "MX block, scale last": (_float, _block, _code),
}


@pytest.mark.parametrize("row", only_table("5.6", ["Conversion", "Of", "Gives"]), ids=lambda row: f"{row[0]} {row[1]}")
def test_worked_values(row: list[str]) -> None:
    read, convert, expect = CONVERSIONS[row[0]]
    np.testing.assert_array_equal(convert(read(row[1])), expect(row[2]))


def test_words_of_the_assembler_section() -> None:
    for text, _, ours, _ in only_table("3.4", ["Text", "Published word", "Ours"]):
        lines = [span for span in spans(text) if " " in span]
        assert [f"{assemble(line).words[0]:08X}" for line in lines] == ours.split(", ")


# -- conformance vectors ----------------------------------------------------------------------------------------------


def test_conformance_vectors_are_those_that_are_tested() -> None:
    tested = (ROOT / "tests/instructions/test_vectors.py").read_text(encoding="utf-8")
    prefix = re.search(r"begins with `([0-9A-F ]+)`", " ".join(section("11").split()))
    assert prefix
    assert f'PREFIX = "{prefix[1]}"' in tested
    rows = only_table("11", ["Words", "What", "Result", "Cycles"])
    assert [row[0] for row in rows if f'"{row[0]}"' not in tested] == []
    assert len(rows) == 17


@pytest.mark.parametrize("row", only_table("11", ["Words"]), ids=lambda row: row[1])
def test_cycles_of_conformance_vectors(row: list[str], small: MachineConfig) -> None:
    prefix = "00100062 0000006C 00000028"
    final = run([int(w, 16) for w in f"{prefix} {row[0]}".split()], config=small, engine="architectural")
    assert final.latency_cycles == 2 + int(row[3])
