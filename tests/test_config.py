"""MachineConfig: defaults, validation, the published settings schema."""

from __future__ import annotations

import dataclasses
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plena_jax import ConfigError, Formats, Intended, Latency, MachineConfig, PlenaError, formats
from plena_jax.formats import FloatFormat, IntFormat, MXFormat

# -- docs/machine.md 2.2 to 2.4, column by column ---------------------------------------------------------------------

#: key: TRANSACTIONAL, ANALYTIC
CONFIG = {
    "BLEN": (4, 128),
    "HLEN": (16, 128),
    "MLEN": (64, 2048),
    "VLEN": (64, 2048),
    "BROADCAST_AMOUNT": (4, 16),
    "HBM_SIZE": (17179869184, 137438953472),
    "HBM_WIDTH": (512, 512),
    "MATRIX_SRAM_SIZE": (4096, 256),
    "VECTOR_SRAM_SIZE": (4194304, 65536),
    "HBM_M_Prefetch_Amount": (64, 2048),
    "HBM_V_Prefetch_Amount": (4, 16),
    "HBM_V_Writeback_Amount": (4, 16),
    "DC_EN": (1, 1),
    "MAX_LOOP_INSTRUCTIONS": (100000, 10000),
}
#: key: en, dis; the same in both modes
LATENCY = {
    "SYSTOLIC_PROCESSING_OVERHEAD": (0, 0),
    "VECTOR_ADD_CYCLES": (1, 2),
    "VECTOR_MUL_CYCLES": (1, 5),
    "VECTOR_EXP_CYCLES": (1, 6),
    "VECTOR_RECI_CYCLES": (2, 7),
    "VECTOR_MAX_CYCLES": (4, 4),
    "VECTOR_SUM_CYCLES": (8, 20),
    "SCALAR_FP_BASIC_CYCLES": (1, 1),
    "SCALAR_FP_EXP_CYCLES": (1, 2),
    "SCALAR_FP_SQRT_CYCLES": (1, 2),
    "SCALAR_FP_RECI_CYCLES": (1, 2),
    "SCALAR_INT_BASIC_CYCLES": (1, 1),
    "VECTOR_PREFIX_SCAN_CYCLES": (9, 9),
    "VECTOR_SHIFT_CYCLES": (1, 1),
    "SCALAR_FP_LONGEST_OPERATE_CYCLES": (4, 4),
    "VECTOR_LONGEST_OPERATE_CYCLES": (10, 20),
    "VECTOR_BASIC_CYCLES": (1, 2),
}
BF16 = '{ type = "Fp", sign = true, exponent = 8, mantissa = 7 }'
PLAIN_BF16 = f'{{ format = "Plain", DATA_TYPE = {BF16} }}'
MXFP8 = (
    '{ format = "Mx", block = 8, ELEM = { type = "Fp", sign = true, exponent = 4, mantissa = 3 }, '
    'SCALE = { type = "Fp", sign = false, exponent = 8, mantissa = 0 } }'
)
PRECISION = {
    "MATRIX_SRAM_TYPE": PLAIN_BF16,
    "VECTOR_SRAM_TYPE": PLAIN_BF16,
    "HBM_M_WEIGHT_TYPE": MXFP8,
    "HBM_M_KV_TYPE": MXFP8,
    "HBM_V_ACT_TYPE": MXFP8,
    "HBM_V_KV_TYPE": MXFP8,
    "HBM_V_INT_TYPE": '{ format = "Plain", DATA_TYPE = { type = "Int", width = 32 } }',
    "SCALAR_FP": BF16,
}


def settings(
    changes: dict[str, str | None] | None = None, modes: tuple[str, ...] = ("TRANSACTIONAL", "ANALYTIC")
) -> str:
    """The published file; ``changes`` replaces or drops what stands at keys like TRANSACTIONAL.CONFIG.MLEN."""
    entries = {"MODE": '{ active = "analytic" }'}
    for column, mode in enumerate(("TRANSACTIONAL", "ANALYTIC")):
        if mode in modes:
            entries |= {f"{mode}.CONFIG.{key}": f"{{ value = {row[column]} }}" for key, row in CONFIG.items()}
            entries |= {f"{mode}.PRECISION.{key}": text for key, text in PRECISION.items()}
            entries |= {
                f"{mode}.LATENCY.{key}": f"{{ dc_lib_en = {en}, dc_lib_dis = {dis} }}"
                for key, (en, dis) in LATENCY.items()
            }
    entries |= changes or {}
    return "\n".join(f"{key} = {text}" for key, text in entries.items() if text is not None) + "\n"


def field_of(owner: Any, key: str) -> Any:
    """The value of the field whose TOML key is ``key``."""
    return next(getattr(owner, f.name) for f in dataclasses.fields(owner) if f.metadata.get("key") == key)


def keys_of(owner: Any) -> set[str]:
    return {f.metadata["key"] for f in dataclasses.fields(owner) if "key" in f.metadata}


def refused(make: Any, key: str, value: Any, rule: str) -> ConfigError:
    """The ConfigError of ``make()``, after checking that it and its text name key, value and rule."""
    with pytest.raises(ConfigError, match=rule) as caught:
        make()
    error = caught.value
    assert isinstance(error, PlenaError)
    assert isinstance(error, ValueError)
    assert error.key == key
    if value is not ...:
        assert error.value == value
        assert repr(value) in str(error)
    assert str(error).startswith(f"{key} = ")
    assert error.rule in str(error)
    return error


# -- defaults ---------------------------------------------------------------------------------------------------------


def test_defaults_are_the_published_transactional_profile():
    config = MachineConfig()
    assert keys_of(config) == set(CONFIG)
    assert keys_of(config.latency) == set(LATENCY)
    assert keys_of(config.precision) == set(PRECISION)
    for key, (transactional, _) in CONFIG.items():
        assert field_of(config, key) == transactional, key
    for key, pair in LATENCY.items():
        assert field_of(config.latency, key) == pair, key
    assert config.intended == Intended(*[False] * len(dataclasses.fields(Intended)))
    assert not config.partial_heads


def test_default_formats_are_those_of_the_profile():
    precision = MachineConfig().precision
    bf16 = FloatFormat.make(8, 7, family="plena")
    element, scale = FloatFormat.make(4, 3, family="plena"), FloatFormat.make(8, 0, sign=False, family="plena")
    for key in ("MATRIX_SRAM_TYPE", "VECTOR_SRAM_TYPE", "SCALAR_FP"):
        assert field_of(precision, key) == bf16
    for key in ("HBM_M_WEIGHT_TYPE", "HBM_M_KV_TYPE", "HBM_V_ACT_TYPE", "HBM_V_KV_TYPE"):
        assert field_of(precision, key) == MXFormat(element, scale, 8, "plena")
    assert precision.hbm_v_int_type == IntFormat(32, family="plena")


def test_derived_numbers():
    config = MachineConfig()
    assert (config.tiles, config.prefetch_m_rows, config.heads_match) == (64, 64, True)
    assert MachineConfig(matrix_sram_size=200).tiles == 3
    for amount, rows in ((1, 64), (64, 64), (65, 128), (128, 128), (129, 192)):
        assert MachineConfig(hbm_m_prefetch_amount=amount).prefetch_m_rows == rows
    assert not MachineConfig(broadcast_amount=2, partial_heads=True).heads_match
    assert not MachineConfig(hlen=1, broadcast_amount=64).heads_match


@pytest.mark.parametrize("dc_en, column", [(1, 0), (7, 0), (0, 1)])
def test_dc_en_picks_the_latency(dc_en, column):
    config = MachineConfig(dc_en=dc_en)
    for key, pair in LATENCY.items():
        assert config.cycles(key.lower()) == pair[column]


# -- validation -------------------------------------------------------------------------------------------------------

NAMES = {f.metadata["key"]: f.name for f in dataclasses.fields(MachineConfig) if "key" in f.metadata}


@pytest.mark.parametrize("value", ["64", 64.0, True, None, -1, np.int64(64), [64]])
@pytest.mark.parametrize("key", CONFIG)
def test_numbers_must_be_integers_in_range(key, value):
    refused(lambda: MachineConfig(**{NAMES[key]: value}), key, value, r"must be an integer from [01] to \d+")


@pytest.mark.parametrize("key", sorted(set(CONFIG) - {"DC_EN", "HBM_WIDTH"}))
def test_zero_is_refused_where_it_makes_no_sense(key):
    refused(lambda: MachineConfig(**{NAMES[key]: 0}), key, 0, r"must be an integer from 1 to")


def test_zero_is_allowed_for_a_switch_and_an_unused_width():
    config = MachineConfig(dc_en=0, hbm_width=0)
    assert (config.dc_en, config.hbm_width) == (0, 0)


@pytest.mark.parametrize("key", sorted(set(CONFIG) - {"HBM_SIZE", "MAX_LOOP_INSTRUCTIONS"}))
def test_numbers_are_32_bits_wide(key):
    refused(lambda: MachineConfig(**{NAMES[key]: 2**32}), key, 2**32, "to 4294967295")


@pytest.mark.parametrize("key", ["HBM_SIZE", "MAX_LOOP_INSTRUCTIONS"])
def test_sizes_are_64_bits_wide(key):
    refused(lambda: MachineConfig(**{NAMES[key]: 2**63}), key, 2**63, "to 9223372036854775807")
    assert MachineConfig(hbm_size=1 << 40).hbm_size == 1 << 40


def test_vlen_must_equal_mlen():
    refused(lambda: MachineConfig(vlen=32), "VLEN", 32, r"must equal MLEN \(64\)")


def test_blen_must_divide_mlen():
    refused(lambda: MachineConfig(blen=3), "MLEN", 64, r"must be a multiple of BLEN \(3\)")


@pytest.mark.parametrize("hlen", [24, 128])
def test_hlen_must_divide_mlen(hlen):
    refused(lambda: MachineConfig(hlen=hlen), "HLEN", hlen, r"must divide MLEN \(64\)")


def test_heads_must_fill_a_row_unless_partial_heads():
    rule = r"HLEN x BROADCAST_AMOUNT \(16 x 2\) must equal MLEN \(64\)"
    refused(lambda: MachineConfig(broadcast_amount=2), "BROADCAST_AMOUNT", 2, rule)
    assert MachineConfig(broadcast_amount=2, partial_heads=True).broadcast_amount == 2


@pytest.mark.parametrize("size", [1, 96, 100])
def test_hbm_size_must_be_whole_blocks(size):
    refused(lambda: MachineConfig(hbm_size=size), "HBM_SIZE", size, "must be a multiple of 64 bytes")


def test_loop_limit_must_fit_31_bits():
    refused(
        lambda: MachineConfig(max_loop_instructions=2**31), "MAX_LOOP_INSTRUCTIONS", 2**31, r"must be below 2\*\*31"
    )
    assert MachineConfig(max_loop_instructions=2**31 - 1).max_loop_instructions == 2**31 - 1


@pytest.mark.parametrize("key", sorted(k for k in PRECISION if k != "SCALAR_FP"))
def test_mx_blocks_must_divide_mlen(key):
    mx = dataclasses.replace(MachineConfig().precision.hbm_m_kv_type, block=7)
    refused(
        lambda: MachineConfig(precision=Formats(**{key.lower(): mx})),
        f"PRECISION.{key}.block",
        7,
        r"must divide MLEN \(64\)",
    )


@pytest.mark.parametrize("key", PRECISION)
def test_formats_must_be_formats(key):
    refused(
        lambda: MachineConfig(precision=Formats(**{key.lower(): "bf16"})),
        f"PRECISION.{key}",
        "bf16",
        "must be a FloatFormat, IntFormat or MXFormat",
    )


def test_vector_sram_holds_floats():
    integer = IntFormat(16, family="plena")
    make = lambda fmt: lambda: MachineConfig(precision=Formats(vector_sram_type=fmt))
    refused(make(integer), "PRECISION.VECTOR_SRAM_TYPE", "Int 16", r"must be a float \(Fp\)")
    mx = dataclasses.replace(MachineConfig().precision.hbm_m_kv_type, element=integer)
    refused(make(mx), "PRECISION.VECTOR_SRAM_TYPE", "Int 16", r"must be a float \(Fp\)")


@pytest.mark.parametrize("key", ["VECTOR_SRAM_TYPE", "MATRIX_SRAM_TYPE"])
def test_32_bit_sram_types_need_a_switch(key):
    precision = Formats(**{key.lower(): FloatFormat.make(8, 23, family="plena")})
    refused(
        lambda: MachineConfig(precision=precision),
        f"PRECISION.{key}",
        "Fp sign 1 exponent 8 mantissa 23",
        r"do not unpack in the hardware model; they need Intended\(plain_formats=True\)",
    )
    assert MachineConfig(precision=precision, intended=Intended(plain_formats=True)).precision == precision


@pytest.mark.parametrize("value", [5, [1, 2], (1,), (1, 2, 3), None])
@pytest.mark.parametrize("key", LATENCY)
def test_latencies_are_pairs(key, value):
    refused(
        lambda: Latency(**{key.lower(): value}), f"LATENCY.{key}", value, r"two cycle counts \(dc_lib_en, dc_lib_dis\)"
    )


@pytest.mark.parametrize("value", [-1, 1.0, "1", True, 2**32, None])
@pytest.mark.parametrize("position, part", [(0, "dc_lib_en"), (1, "dc_lib_dis")])
def test_cycle_counts_are_32_bit_integers(value, position, part):
    pair = [3, 3]
    pair[position] = value
    refused(
        lambda: Latency(vector_add_cycles=tuple(pair)),
        f"LATENCY.VECTOR_ADD_CYCLES.{part}",
        value,
        "must be an integer from 0 to 4294967295",
    )


def test_replacing_a_field_validates_again():
    refused(lambda: dataclasses.replace(MachineConfig(), mlen=32), "VLEN", 64, "must equal MLEN")
    assert dataclasses.replace(MachineConfig(), mlen=32, vlen=32, hlen=8).mlen == 32


# -- reading settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, column", [(None, 0), ("transactional", 0), ("analytic", 1), ("active", 1)], ids=lambda x: str(x)
)
def test_every_mode_reads_its_tree(mode, column):
    config = MachineConfig.from_toml(settings(), mode)
    for key, row in CONFIG.items():
        assert field_of(config, key) == row[column], key
    assert config.precision == MachineConfig().precision
    assert config.latency == MachineConfig().latency


def test_active_may_name_either_mode():
    text = settings({"MODE": '{ active = "transactional" }'})
    assert MachineConfig.from_toml(text, "active") == MachineConfig()


def test_the_published_settings_are_the_defaults():
    assert MachineConfig.from_toml(settings()) == MachineConfig()
    assert MachineConfig.from_toml(settings(), "analytic") != MachineConfig()


def test_settings_are_read_from_files(tmp_path):
    path = tmp_path / "plena_settings.toml"
    path.write_text(settings())
    assert MachineConfig.from_toml(path) == MachineConfig.from_toml(str(path)) == MachineConfig()


def test_changes_replace_what_the_settings_say():
    config = MachineConfig.from_toml(settings(), vector_sram_size=17, intended=Intended(c_break=True))
    assert config == MachineConfig(vector_sram_size=17, intended=Intended(c_break=True))
    refused(lambda: MachineConfig.from_toml(settings(), blen=5), "MLEN", 64, "multiple of BLEN")


def test_other_tables_are_left_alone():
    text = settings({"BEHAVIOR.CONFIG.MLEN": "{ value = 1 }", "ANALYTIC.CONFIG.MLEN": "{ value = 1 }"})
    assert MachineConfig.from_toml(text) == MachineConfig()


def test_the_style_of_tables_does_not_matter():
    text = settings({"TRANSACTIONAL.CONFIG.MLEN": None}) + "[TRANSACTIONAL.CONFIG.MLEN]\nvalue = 0x40 # hexadecimal\n"
    assert MachineConfig.from_toml(text) == MachineConfig()


@pytest.mark.parametrize(
    "key", ["CONFIG.HBM_WIDTH", "LATENCY.VECTOR_LONGEST_OPERATE_CYCLES", "LATENCY.VECTOR_BASIC_CYCLES"]
)
def test_keys_that_the_emulator_does_not_read_may_be_missing(key):
    assert MachineConfig.from_toml(settings({f"TRANSACTIONAL.{key}": None})) == MachineConfig()


@pytest.mark.parametrize(
    "key",
    [
        *(f"CONFIG.{key}" for key in CONFIG if key != "HBM_WIDTH"),
        *(f"PRECISION.{key}" for key in PRECISION),
        *("LATENCY.VECTOR_ADD_CYCLES", "LATENCY.SCALAR_INT_BASIC_CYCLES", "LATENCY.SYSTOLIC_PROCESSING_OVERHEAD"),
    ],
)
def test_missing_keys_are_named(key):
    text = settings({f"TRANSACTIONAL.{key}": None})
    error = refused(lambda: MachineConfig.from_toml(text), f"TRANSACTIONAL.{key}", "missing", "required key")
    assert error.source == "<settings text>"
    assert MachineConfig.from_toml(text, "analytic").mlen == 2048


@pytest.mark.parametrize(
    "key, value", [("CONFIG.CLEN", {"value": 3}), ("PRECISION.FOO", {"x": 1}), ("LATENCY.VECTOR_ADD", {"dc_lib_en": 1})]
)
def test_unknown_keys_are_named_with_the_known_ones(key, value):
    inside = ", ".join(f"{name} = {number}" for name, number in value.items())
    text = settings({f"TRANSACTIONAL.{key}": f"{{ {inside} }}"})
    refused(lambda: MachineConfig.from_toml(text), f"TRANSACTIONAL.{key}", value, r"unknown key; allowed: \w+, \w+")


def test_unknown_tables_are_named():
    refused(
        lambda: MachineConfig.from_toml(settings({"OTHER.X": "1"})),
        "OTHER",
        "...",
        "unknown table; allowed: MODE, TRANS",
    )
    text = settings({"TRANSACTIONAL.EXTRA.X": "1"})
    refused(lambda: MachineConfig.from_toml(text), "TRANSACTIONAL.EXTRA", "...", "unknown table; allowed: CONFIG, PREC")


@pytest.mark.parametrize("section", ["CONFIG", "PRECISION", "LATENCY"])
def test_missing_sections_are_named(section):
    dropped = {
        f"TRANSACTIONAL.{section}.{k}": None for k in {"CONFIG": CONFIG, "LATENCY": LATENCY}.get(section, PRECISION)
    }
    refused(lambda: MachineConfig.from_toml(settings(dropped)), f"TRANSACTIONAL.{section}", None, "missing table")


@pytest.mark.parametrize(
    "key, text, path, value, rule",
    [
        ("CONFIG.MLEN", "64", "CONFIG.MLEN", 64, "must be a table with value"),
        ("CONFIG.MLEN", "{ value = 64.0 }", "CONFIG.MLEN.value", 64.0, "must be an integer"),
        ("CONFIG.MLEN", '{ value = "64" }', "CONFIG.MLEN.value", "64", "must be an integer"),
        ("CONFIG.MLEN", "{ value = true }", "CONFIG.MLEN.value", True, "must be an integer"),
        ("CONFIG.MLEN", "{ values = 64 }", "CONFIG.MLEN.values", 64, "unknown key; allowed: value"),
        ("CONFIG.MLEN", "{ }", "CONFIG.MLEN.value", "missing", "required key"),
        (
            "LATENCY.VECTOR_ADD_CYCLES",
            "1",
            "LATENCY.VECTOR_ADD_CYCLES",
            1,
            "must be a table with dc_lib_dis, dc_lib_en",
        ),
        (
            *("LATENCY.VECTOR_ADD_CYCLES", "{ dc_lib_en = 1 }", "LATENCY.VECTOR_ADD_CYCLES.dc_lib_dis"),
            *("missing", "required key"),
        ),
        (
            *("LATENCY.VECTOR_ADD_CYCLES", "{ dc_lib_en = 1.5, dc_lib_dis = 1 }"),
            *("LATENCY.VECTOR_ADD_CYCLES.dc_lib_en", 1.5, "must be an integer"),
        ),
        ("PRECISION.SCALAR_FP", "3", "PRECISION.SCALAR_FP", 3, "must be a table"),
        ("PRECISION.SCALAR_FP", '{ type = "Float" }', "PRECISION.SCALAR_FP.type", "Float", "must be Fp or Int"),
        ("PRECISION.SCALAR_FP", "{ exponent = 8 }", "PRECISION.SCALAR_FP.type", None, "must be Fp or Int"),
        (
            *("PRECISION.SCALAR_FP", '{ type = "Fp", sign = 1, exponent = 8, mantissa = 7 }'),
            *("PRECISION.SCALAR_FP.sign", 1, "must be true or false"),
        ),
        (
            *("PRECISION.SCALAR_FP", '{ type = "Fp", sign = true, exponent = "8", mantissa = 7 }'),
            *("PRECISION.SCALAR_FP.exponent", "8", "must be an integer"),
        ),
        (
            *("PRECISION.SCALAR_FP", '{ type = "Fp", sign = true, exponent = 8 }'),
            *("PRECISION.SCALAR_FP.mantissa", "missing", "required key"),
        ),
        (
            *("PRECISION.SCALAR_FP", '{ type = "Fp", sign = true, exponent = 9, mantissa = 7 }'),
            "PRECISION.SCALAR_FP",
            {"type": "Fp", "sign": True, "exponent": 9, "mantissa": 7},
            r"e9m7: a float format has 1\.\.8 exponent",
        ),
        (
            *("PRECISION.HBM_V_INT_TYPE", '{ DATA_TYPE = { type = "Int", width = 33 } }'),
            *("PRECISION.HBM_V_INT_TYPE.DATA_TYPE", {"type": "Int", "width": 33}, r"int33.*1\.\.32 bits"),
        ),
        (
            *("PRECISION.HBM_V_INT_TYPE", '{ DATA_TYPE = { type = "Int", bits = 3 } }'),
            *("PRECISION.HBM_V_INT_TYPE.DATA_TYPE.bits", 3, "unknown key; allowed: type, width"),
        ),
        (
            *("PRECISION.VECTOR_SRAM_TYPE", f"{{ DATA_TYPE = {BF16}, width = 3 }}"),
            *("PRECISION.VECTOR_SRAM_TYPE.width", 3, "unknown key; allowed: DATA_TYPE, format"),
        ),
        (
            *("PRECISION.HBM_M_KV_TYPE", f"{{ ELEM = {BF16}, SCALE = {BF16} }}"),
            *("PRECISION.HBM_M_KV_TYPE.block", "missing", "required key"),
        ),
        (
            *("PRECISION.HBM_M_KV_TYPE", f"{{ block = 0, ELEM = {BF16}, SCALE = {BF16} }}"),
            *("PRECISION.HBM_M_KV_TYPE.block", 0, "must be 1 or more"),
        ),
        (
            *("PRECISION.HBM_M_KV_TYPE", f'{{ block = 8, ELEM = {BF16}, SCALE = {{ type = "Int", width = 8 }} }}'),
            *("PRECISION.HBM_M_KV_TYPE.SCALE.type", "Int", "must be Fp"),
        ),
    ],
)
def test_wrong_entries_are_named_with_their_path(key, text, path, value, rule):
    error = refused(
        lambda: MachineConfig.from_toml(settings({f"TRANSACTIONAL.{key}": text})), f"TRANSACTIONAL.{path}", value, rule
    )
    assert "in <settings text>" in str(error)


def test_values_out_of_range_are_refused_as_in_python():
    text = settings({"TRANSACTIONAL.CONFIG.BLEN": "{ value = 0 }"})
    refused(lambda: MachineConfig.from_toml(text), "BLEN", 0, "must be an integer from 1")
    text = settings({"TRANSACTIONAL.LATENCY.VECTOR_ADD_CYCLES": "{ dc_lib_en = -1, dc_lib_dis = 1 }"})
    refused(
        lambda: MachineConfig.from_toml(text), "LATENCY.VECTOR_ADD_CYCLES.dc_lib_en", -1, "must be an integer from 0"
    )


@pytest.mark.parametrize("name, value", [("MODE", 3), ("TRANSACTIONAL", "x"), ("BEHAVIOR", 1.5)])
def test_top_level_values_are_not_tables(name, value):
    refused(lambda: MachineConfig.from_toml(f"{name} = {value!r}\n"), name, value, "must be a table")


def test_missing_modes_are_named():
    text = settings(modes=("ANALYTIC",))
    refused(lambda: MachineConfig.from_toml(text), "TRANSACTIONAL", "missing", r"no \[TRANSACTIONAL\.\*\] tables")


@pytest.mark.parametrize("mode", ["TRANSACTIONAL", "fast", ""])
def test_unknown_modes_are_refused(mode):
    if mode:
        rule = "must be one of transactional, analytic, active"
        refused(lambda: MachineConfig.from_toml(settings(), mode), "mode", mode, rule)
    rule = "must be one of transactional, analytic"
    text = settings({"MODE": f'{{ active = "{mode}" }}'})
    refused(lambda: MachineConfig.from_toml(text, "active"), "MODE.active", mode, rule)


def test_active_needs_a_mode():
    text = settings({"MODE": None})
    refused(lambda: MachineConfig.from_toml(text, "active"), "MODE.active", None, "must be one of")


def test_text_that_is_no_toml_is_refused():
    error = refused(lambda: MachineConfig.from_toml("[TRANSACTIONAL\n"), "TOML", "<settings text>", "cannot be parsed")
    assert "line 1" in str(error)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    missing = tmp_path / "none.toml"
    refused(lambda: MachineConfig.from_toml(missing), "settings", str(missing), "cannot be read.*No such file")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    refused(lambda: MachineConfig.from_toml(binary), "settings", str(binary), "cannot be read")


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "plena_settings.toml"
    path.write_text(settings({"TRANSACTIONAL.CONFIG.MLEN": None}))
    error = refused(lambda: MachineConfig.from_toml(path), "TRANSACTIONAL.CONFIG.MLEN", "missing", "required key")
    assert str(path) in str(error)


# -- writing settings -------------------------------------------------------------------------------------------------

OTHER = MachineConfig(
    mlen=32,
    vlen=32,
    blen=8,
    hlen=4,
    broadcast_amount=8,
    hbm_size=1 << 20,
    hbm_width=0,
    matrix_sram_size=96,
    vector_sram_size=33,
    hbm_m_prefetch_amount=5,
    hbm_v_prefetch_amount=7,
    hbm_v_writeback_amount=9,
    dc_en=0,
    max_loop_instructions=77,
    precision=Formats(
        vector_sram_type=FloatFormat.make(8, 10, family="plena"),
        hbm_m_kv_type=FloatFormat.make(5, 10, family="plena"),
        hbm_v_act_type=MXFormat(
            IntFormat(8, family="plena"), FloatFormat.make(5, 0, sign=False, family="plena"), 16, "plena"
        ),
        hbm_v_int_type=IntFormat(9, family="plena"),
        scalar_fp=FloatFormat.make(5, 10, sign=False, family="plena"),
    ),
    latency=Latency(vector_add_cycles=(11, 22), scalar_fp_exp_cycles=(0, 2**32 - 1)),
)


@pytest.mark.parametrize("config", [MachineConfig(), OTHER], ids=["default", "other"])
@pytest.mark.parametrize("mode", ["transactional", "analytic"])
def test_what_is_written_reads_back(config, mode):
    text = config.to_toml(mode=mode)
    assert MachineConfig.from_toml(text, mode) == config
    assert MachineConfig.from_toml(text, "active") == config
    other = "analytic" if mode == "transactional" else "transactional"
    refused(lambda: MachineConfig.from_toml(text, other), other.upper(), "missing", "no .* tables")


def test_every_field_of_the_other_config_differs():
    # Else the round trip above would not see it lost.
    for item in dataclasses.fields(MachineConfig):
        if item.name not in ("intended", "partial_heads"):
            assert getattr(OTHER, item.name) != getattr(MachineConfig(), item.name), item.name


def test_settings_are_written_to_files(tmp_path):
    path = tmp_path / "out.toml"
    text = OTHER.to_toml(path)
    assert path.read_text() == text
    assert MachineConfig.from_toml(path) == OTHER
    assert [p.name for p in tmp_path.iterdir()] == ["out.toml"]


def test_switches_are_not_part_of_the_schema():
    config = MachineConfig(intended=Intended(c_break=True))
    assert config.to_toml() == MachineConfig().to_toml()


def test_unknown_modes_are_not_written():
    refused(lambda: MachineConfig().to_toml(mode="active"), "mode", "active", "must be one of transactional, analytic")


def test_every_key_of_the_schema_is_written():
    text = MachineConfig().to_toml()
    for section, keys in (("CONFIG", CONFIG), ("PRECISION", PRECISION), ("LATENCY", LATENCY)):
        for key in keys:
            assert re.search(rf"^\[TRANSACTIONAL\.{section}\.{key}[\].]", text, re.MULTILINE), key


# -- as a value -------------------------------------------------------------------------------------------------------


def test_configurations_are_immutable_and_hashable():
    config = MachineConfig()
    assert hash(config) == hash(MachineConfig())
    assert {config: 1}[MachineConfig()] == 1
    assert hash(OTHER) == hash(MachineConfig.from_toml(OTHER.to_toml()))
    assert config != MachineConfig(dc_en=0)
    assert config != MachineConfig(intended=Intended(m_bmv=True))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.mlen = 32  # type: ignore[misc]


def test_a_configuration_is_a_static_argument():
    traced = []

    def lanes(x, config):
        traced.append(config)
        return x * config.mlen + jnp.zeros(config.vlen)

    compiled = jax.jit(lanes, static_argnames="config")
    assert compiled(2.0, MachineConfig()).tolist() == [128.0] * 64
    assert compiled(3.0, MachineConfig()).tolist() == [192.0] * 64
    assert compiled(2.0, OTHER).tolist() == [64.0] * 32
    assert traced == [MachineConfig(), OTHER]


def test_formats_by_name_are_accepted():
    config = MachineConfig(precision=Formats(hbm_m_weight_type=formats.named("mxfp4_e2m1", block=16)))
    assert config.precision.hbm_m_weight_type.block == 16


def test_the_default_path_type_is_any_path(tmp_path):
    path = tmp_path / "a.toml"
    MachineConfig().to_toml(path)
    assert MachineConfig.from_toml(Path(path)) == MachineConfig()


@pytest.mark.parametrize("name", ["precision", "latency", "intended"])
@pytest.mark.parametrize("value", [None, True, {}])
def test_a_table_that_is_something_else_is_refused(name: str, value: Any):
    with pytest.raises(ConfigError, match=rf"^{name.upper()} = .*: must be a (Formats|Latency|Intended)$"):
        MachineConfig(**{name: value})


@pytest.mark.parametrize(
    ("source", "rule"),
    [("a\0b", "cannot be read: .*null"), ("", "must be the path"), (None, "must be the path"), (3, "must be the path")],
)
def test_sources_that_are_no_settings(source: Any, rule: str):
    with pytest.raises(ConfigError, match=rule):
        MachineConfig.from_toml(source)


def test_settings_with_a_byte_order_mark_are_accepted(tmp_path):
    text = MachineConfig().to_toml()
    (tmp_path / "a.toml").write_text(text, encoding="utf-8-sig")
    assert MachineConfig.from_toml(tmp_path / "a.toml") == MachineConfig()
    assert MachineConfig.from_toml("\ufeff" + text) == MachineConfig()


def test_a_configuration_keeps_its_hash_but_in_no_copy_for_others() -> None:
    config = MachineConfig(mlen=32, vlen=32, hlen=8)
    assert hash(config) == hash(config) == hash(MachineConfig(mlen=32, vlen=32, hlen=8))
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    # Strings hash otherwise in another process.
    assert "_hash" in config.__dict__
    assert "_hash" not in copy.__dict__
    assert hash(copy) == hash(config)
    assert hash(dataclasses.replace(config, blen=8)) != hash(config)
