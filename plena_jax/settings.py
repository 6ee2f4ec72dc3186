"""The published ``plena_settings.toml`` schema: MODE, and ANALYTIC and TRANSACTIONAL trees of three tables each."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plena_jax.errors import ConfigError, FormatError
from plena_jax.formats import FloatFormat, IntFormat, MXFormat

if TYPE_CHECKING:
    from plena_jax.config import MachineConfig, Precision

MODES = ("transactional", "analytic")
#: Tables beside the two modes: which one is active, and the name the transactional tree had before May 2026.
_OTHER_TABLES = ("MODE", "BEHAVIOR")
#: Keys of the schema that a file may leave out, because the emulator does not read them.
_OPTIONAL = {
    "HBM_WIDTH",
    "VECTOR_LONGEST_OPERATE_CYCLES",
    "VECTOR_BASIC_CYCLES",
    "VECTOR_PREFIX_SCAN_CYCLES",
    "VECTOR_SHIFT_CYCLES",
    "SCALAR_FP_LONGEST_OPERATE_CYCLES",
}


def read(source: str | os.PathLike[str], mode: str | None) -> dict[str, Any]:
    """Field values of a MachineConfig from a settings file or its text."""
    text, name = _text_of(source)
    try:
        tree = tomllib.loads(text.removeprefix("\ufeff"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("TOML", name, f"cannot be parsed: {error}") from None
    for key, table in tree.items():
        if key.lower() not in MODES and key not in _OTHER_TABLES:
            raise ConfigError(key, "...", "unknown table; allowed: MODE, TRANSACTIONAL, ANALYTIC, BEHAVIOR", name)
        if not isinstance(table, dict):
            raise ConfigError(key, table, "must be a table", name)
    mode = _mode(tree, mode, name)
    if mode.upper() not in tree:
        raise ConfigError(mode.upper(), "missing", f"the settings have no [{mode.upper()}.*] tables", name)
    return _Reader(mode.upper(), tree[mode.upper()], name).fields()


def _text_of(source: str | os.PathLike[str]) -> tuple[str, str]:
    if isinstance(source, str) and "\n" in source:
        return source, "<settings text>"
    if not isinstance(source, (str, os.PathLike)) or source == "":
        rule = "must be the path of a settings file, or its text (with line ends)"
        raise ConfigError("settings", source, rule)
    try:
        return Path(source).read_text(encoding="utf-8"), str(source)
    except (OSError, ValueError) as error:
        raise ConfigError("settings", str(source), f"cannot be read: {error}") from None


def _mode(tree: dict[str, Any], mode: str | None, name: str) -> str:
    if mode == "active":
        mode = tree.get("MODE", {}).get("active")
        if mode not in MODES:
            raise ConfigError("MODE.active", mode, f"must be one of {', '.join(MODES)}", name)
    mode = mode or "transactional"
    if mode not in MODES:
        raise ConfigError("mode", mode, f"must be one of {', '.join(MODES)}, active", name)
    return mode


class _Reader:
    """Walks one mode's tree; every complaint names the full key."""

    def __init__(self, mode: str, tree: dict[str, Any], source: str) -> None:
        self.mode, self.tree, self.source = mode, tree, source

    def fail(self, key: str, value: Any, rule: str) -> ConfigError:
        return ConfigError(f"{self.mode}.{key}", value, rule, self.source)

    def fields(self) -> dict[str, Any]:
        from plena_jax.config import Formats, Latency, MachineConfig

        for section in self.tree:
            if section not in ("CONFIG", "PRECISION", "LATENCY"):
                raise self.fail(section, "...", "unknown table; allowed: CONFIG, PRECISION, LATENCY")
        values = self.section("CONFIG", MachineConfig, self.integer)
        values["precision"] = Formats(**self.section("PRECISION", Formats, self.precision))
        values["latency"] = Latency(**self.section("LATENCY", Latency, self.cycles))
        return values

    def section(self, section: str, owner: Any, parse: Any) -> dict[str, Any]:
        table = self.tree.get(section)
        if not isinstance(table, dict):
            raise self.fail(section, table, "missing table")
        known = {f.metadata["key"]: f.name for f in dataclasses.fields(owner) if "key" in f.metadata}
        for key in table:
            if key not in known:
                raise self.fail(f"{section}.{key}", table[key], f"unknown key; allowed: {', '.join(sorted(known))}")
        for key in known:
            if key not in table and key not in _OPTIONAL:
                raise self.fail(f"{section}.{key}", "missing", "required key")
        return {known[key]: parse(f"{section}.{key}", value) for key, value in table.items()}

    def only(self, key: str, table: Any, required: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        if not isinstance(table, dict):
            raise self.fail(key, table, f"must be a table with {', '.join(sorted(required))}")
        for name in table.keys() - required - optional:
            raise self.fail(
                f"{key}.{name}", table[name], f"unknown key; allowed: {', '.join(sorted(required | optional))}"
            )
        for name in required - table.keys():
            raise self.fail(f"{key}.{name}", "missing", "required key")

    def number(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(key, value, "must be an integer")
        return value

    def integer(self, key: str, table: Any) -> int:
        self.only(key, table, {"value"})
        return self.number(f"{key}.value", table["value"])

    def cycles(self, key: str, table: Any) -> tuple[int, int]:
        self.only(key, table, {"dc_lib_en", "dc_lib_dis"})
        return self.number(f"{key}.dc_lib_en", table["dc_lib_en"]), self.number(
            f"{key}.dc_lib_dis", table["dc_lib_dis"]
        )

    def precision(self, key: str, table: Any) -> Precision:
        if not isinstance(table, dict):
            raise self.fail(key, table, "must be a table")
        if "ELEM" in table or "SCALE" in table or "block" in table:
            # The keys decide what a type is; the hardware model ignores the text of `format`.
            self.only(key, table, {"block", "ELEM", "SCALE"}, {"format"})
            element, scale = self.type(f"{key}.ELEM", table["ELEM"]), self.type(f"{key}.SCALE", table["SCALE"])
            if not isinstance(scale, FloatFormat):
                raise self.fail(f"{key}.SCALE.type", table["SCALE"]["type"], "must be Fp")
            block = self.number(f"{key}.block", table["block"])
            if block < 1:
                raise self.fail(f"{key}.block", block, "must be 1 or more")
            return MXFormat(element, scale, block, "plena")
        if "DATA_TYPE" in table:
            self.only(key, table, {"DATA_TYPE"}, {"format"})
            return self.type(f"{key}.DATA_TYPE", table["DATA_TYPE"])
        return self.type(key, table)

    def type(self, key: str, table: Any) -> FloatFormat | IntFormat:
        kind = table.get("type") if isinstance(table, dict) else table
        try:
            if kind == "Fp":
                self.only(key, table, {"type", "sign", "exponent", "mantissa"})
                if not isinstance(table["sign"], bool):
                    raise self.fail(f"{key}.sign", table["sign"], "must be true or false")
                exponent = self.number(f"{key}.exponent", table["exponent"])
                mantissa = self.number(f"{key}.mantissa", table["mantissa"])
                return FloatFormat.make(exponent, mantissa, sign=table["sign"], family="plena")
            if kind == "Int":
                self.only(key, table, {"type", "width"})
                return IntFormat(self.number(f"{key}.width", table["width"]), family="plena")
        except FormatError as error:
            raise self.fail(key, dict(table), str(error)) from None
        raise self.fail(f"{key}.type", kind, "must be Fp or Int")


def write(config: MachineConfig, mode: str) -> str:
    """The settings text of one mode."""
    if mode not in MODES:
        raise ConfigError("mode", mode, f"must be one of {', '.join(MODES)}")
    lines = ["[MODE]", f'active = "{mode}"', ""]
    for item in dataclasses.fields(config):
        if "key" in item.metadata:
            lines += [f"[{mode.upper()}.CONFIG.{item.metadata['key']}]", f"value = {getattr(config, item.name)}", ""]
    for item in dataclasses.fields(config.precision):
        name = f"{mode.upper()}.PRECISION.{item.metadata['key']}"
        lines += _write_precision(name, getattr(config.precision, item.name))
    for item in dataclasses.fields(config.latency):
        enabled, disabled = getattr(config.latency, item.name)
        lines += [f"[{mode.upper()}.LATENCY.{item.metadata['key']}]"]
        lines += [f"dc_lib_en = {enabled}", f"dc_lib_dis = {disabled}", ""]
    return "\n".join(lines)


def _write_precision(name: str, fmt: Precision) -> list[str]:
    if name.endswith("SCALAR_FP") and not isinstance(fmt, MXFormat):
        return _write_type(name, fmt)
    if isinstance(fmt, MXFormat):
        head = [f"[{name}]", 'format = "Mx"', f"block = {fmt.block}", ""]
        return [*head, *_write_type(f"{name}.ELEM", fmt.element), *_write_type(f"{name}.SCALE", fmt.scale)]
    return [f"[{name}]", 'format = "Plain"', "", *_write_type(f"{name}.DATA_TYPE", fmt)]


def _write_type(name: str, fmt: FloatFormat | IntFormat) -> list[str]:
    if isinstance(fmt, IntFormat):
        return [f"[{name}]", 'type = "Int"', f"width = {fmt.width}", ""]
    sign = str(bool(fmt.sign)).lower()
    return [
        f"[{name}]",
        'type = "Fp"',
        f"sign = {sign}",
        f"exponent = {fmt.exponent}",
        f"mantissa = {fmt.mantissa}",
        "",
    ]
