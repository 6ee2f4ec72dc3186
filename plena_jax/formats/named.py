"""Formats by name: those of ml_dtypes, the OCP block formats, and any ``eXmY``."""

from __future__ import annotations

import re

from plena_jax.errors import FormatError
from plena_jax.formats.floats import FloatFormat
from plena_jax.formats.integers import IntFormat
from plena_jax.formats.mx import MXFormat, ScaleRule

Format = FloatFormat | IntFormat | MXFormat

FLOATS: dict[str, FloatFormat] = {
    "float32": FloatFormat.make(8, 23),
    "tf32": FloatFormat.make(8, 10),
    "bfloat16": FloatFormat.make(8, 7),
    "float16": FloatFormat.make(5, 10),
    "float8_e3m4": FloatFormat.make(3, 4),
    "float8_e4m3": FloatFormat.make(4, 3),
    "float8_e4m3b11fnuz": FloatFormat.make(4, 3, specials="fnuz", bias=11),
    "float8_e4m3fn": FloatFormat.make(4, 3, specials="fn"),
    "float8_e4m3fnuz": FloatFormat.make(4, 3, specials="fnuz"),
    "float8_e5m2": FloatFormat.make(5, 2),
    "float8_e5m2fnuz": FloatFormat.make(5, 2, specials="fnuz"),
    "float8_e8m0fnu": FloatFormat.exponent_only(8),
    "float6_e2m3fn": FloatFormat.make(2, 3, specials="finite"),
    "float6_e3m2fn": FloatFormat.make(3, 2, specials="finite"),
    "float4_e2m1fn": FloatFormat.make(2, 1, specials="finite"),
}

_MX_ELEMENTS: dict[str, FloatFormat | IntFormat] = {
    "mxfp8_e4m3": FLOATS["float8_e4m3fn"].saturating(),
    "mxfp8_e5m2": FLOATS["float8_e5m2"].saturating(),
    "mxfp6_e2m3": FLOATS["float6_e2m3fn"],
    "mxfp6_e3m2": FLOATS["float6_e3m2fn"],
    "mxfp4_e2m1": FLOATS["float4_e2m1fn"],
    "mxint8": IntFormat(8, fraction=6),
    "mxint4": IntFormat(4, fraction=2),
}

NAMES: tuple[str, ...] = (*FLOATS, *_MX_ELEMENTS)


def named(name: str, *, block: int = 32, rule: ScaleRule = "floor") -> Format:
    """The format called ``name``.

    Args:
        name: a name of ml_dtypes (``"float8_e4m3fn"``), ``"float32"``, ``"float16"``, ``"tf32"``, an OCP block format
            (``"mxfp8_e4m3"``, ``"mxfp6_e2m3"``, ``"mxfp4_e2m1"``, ``"mxint8"``, ...), ``"eXmY"`` for any float with
            IEEE specials, ``"intN"`` or ``"uintN"``.
        block, rule: for the block formats only.

    Raises:
        FormatError: no such name.
    """
    if not isinstance(name, str):
        raise FormatError(f"the name of a format is a text, got {name!r}; known: {', '.join(NAMES)}, eXmY, intN, uintN")
    if name in FLOATS:
        return FLOATS[name]
    if name in _MX_ELEMENTS:
        return MXFormat(_MX_ELEMENTS[name], FloatFormat.exponent_only(8), block, rule)
    if match := re.fullmatch(r"e(\d+)m(\d+)", name):
        return FloatFormat.make(int(match[1]), int(match[2]))
    if match := re.fullmatch(r"(u?)int(\d+)", name):
        return IntFormat(int(match[2]), sign=int(not match[1]))
    raise FormatError(f"no format is called {name!r}; known: {', '.join(NAMES)}, eXmY, intN, uintN")
