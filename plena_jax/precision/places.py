"""The places of the machine that formats are tried in, and which formats each of them can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from plena_jax.errors import FormatError
from plena_jax.formats import NAMES, FloatFormat, IntFormat, MXFormat, Quantizer, named
from plena_jax.formats.mx import ScaleRule
from plena_jax.formats.named import Format

Place = Literal["weights", "activations", "kv", "matrix_sram", "vector_sram", "scalar"]
#: Every place, in the order of reports.
PLACES: tuple[Place, ...] = ("weights", "activations", "kv", "matrix_sram", "vector_sram", "scalar")
#: Those of HBM, whose tensors are rounded when they are staged.
HBM_PLACES: tuple[Place, ...] = PLACES[:3]
#: The name of all places of HBM at once.
TOGETHER = "hbm"
#: Block sizes that are tried where none are given.
BLOCKS = (8, 16, 32, 64)
#: Scale rules that do not need codes; "plena" is one of the hardware model's codec.
RULES: tuple[ScaleRule, ...] = ("floor", "ceil", "even", "rceil")

#: The entries of :class:`~plena_jax.config.Formats` that a place is.
FIELDS: dict[Place, tuple[str, ...]] = {
    "weights": ("hbm_m_weight_type",),
    "activations": ("hbm_v_act_type",),
    "kv": ("hbm_m_kv_type", "hbm_v_kv_type"),
    "matrix_sram": ("matrix_sram_type",),
    "vector_sram": ("vector_sram_type",),
    "scalar": ("scalar_fp",),
}


@dataclass(frozen=True)
class Candidate:
    """A format under test.

    Attributes:
        name: as reports show it; block formats of different block sizes share it.
        format: with codes; rounded through its quantizer.
    """

    name: str
    format: Format

    @property
    def block(self) -> int | None:
        """Elements of a block, None of plain formats."""
        return self.format.block if isinstance(self.format, MXFormat) else None

    @property
    def rule(self) -> ScaleRule | None:
        """The scale rule, None of plain formats."""
        return self.format.rule if isinstance(self.format, MXFormat) else None

    @property
    def bits(self) -> int:
        """Width of an element."""
        bits: int = self.format.element.bits if isinstance(self.format, MXFormat) else self.format.bits
        return bits

    @property
    def bits_per_value(self) -> float:
        """Width of an element with its share of the scale."""
        return self.bits + (self.format.scale.bits / self.format.block if isinstance(self.format, MXFormat) else 0)

    @property
    def described(self) -> str:
        """Name and block, for messages."""
        return self.name if self.block is None else f"{self.name} in blocks of {self.block}"

    @cached_property
    def quantizer(self) -> Any:
        """The quantizer, or the block format with a quantizer as element; a millisecond to make.

        Raises:
            FormatError: there is none.
        """
        return self.format.quantizer() if isinstance(self.format, MXFormat) else Quantizer.of(self.format)


def candidates(
    formats: Iterable[str | Format] | Mapping[str, Format], blocks: Sequence[int], rule: ScaleRule
) -> list[Candidate]:
    """The formats that are asked for, each block format once for each block size.

    Args:
        formats: names or format objects, or a mapping from names of your own to objects. A block format that is an
            object has its block size and rule.
        blocks, rule: of the block formats that are names.

    Raises:
        FormatError: an unknown name or rule, or nothing at all.
    """
    if rule not in RULES:
        raise FormatError(f"scale rule {rule!r}; allowed in a sweep: {', '.join(RULES)}")
    found: dict[Candidate, None] = {}
    pairs = formats.items() if isinstance(formats, Mapping) else [(None, one) for one in _listed(formats)]
    for name, one in pairs:
        for fmt in _variants(one, blocks, rule):
            found[Candidate(name or (one if isinstance(one, str) else describe(fmt)), fmt)] = None
    if not found:
        raise FormatError("no format to sweep; allowed: at least one, and for block formats at least one block size")
    return list(found)


def _listed(formats: Iterable[str | Format]) -> Iterable[str | Format]:
    # One name would be taken for a list of letters.
    return [formats] if isinstance(formats, str) else formats


def _variants(one: str | Format, blocks: Sequence[int], rule: ScaleRule) -> list[Format]:
    if not isinstance(one, str):
        if not isinstance(one, FloatFormat | IntFormat | MXFormat):
            raise FormatError(f"format {one!r}; allowed: a name, a FloatFormat, an IntFormat or an MXFormat")
        return [one]
    fmt = named(one)
    return [named(one, block=block, rule=rule) for block in blocks] if isinstance(fmt, MXFormat) else [fmt]


def describe(fmt: Format) -> str:
    """The name of a format: one that :func:`~plena_jax.formats.named` knows, else its bit counts."""
    block, rule = (fmt.block, fmt.rule) if isinstance(fmt, MXFormat) else (1, "floor")
    for name in NAMES:
        if named(name, block=block, rule=rule) == fmt:
            return name
    if isinstance(fmt, MXFormat):
        return f"mx({describe(fmt.element)})"
    if isinstance(fmt, IntFormat):
        return f"{'' if fmt.sign else 'u'}int{fmt.width}" + (f"f{fmt.fraction}" if fmt.fraction else "")
    usual = FloatFormat.make(fmt.exponent, fmt.mantissa, sign=bool(fmt.sign), family=fmt.family)
    parts = [f"bias {fmt.bias}"] if fmt.bias != usual.bias else []
    parts += [] if fmt.sign else ["unsigned"]
    parts += [f"largest 0x{fmt.largest:x}"] if fmt.largest != usual.largest else []
    parts += ["saturating"] if fmt.overflow == fmt.largest else []
    return f"e{fmt.exponent}m{fmt.mantissa}" + (f" ({', '.join(parts)})" if parts else "")


def objection(place: Place, candidate: Candidate, mlen: int) -> str | None:
    """Why a place cannot hold a format, with what it can hold; None if it can."""
    fmt = candidate.format
    element = fmt.element if isinstance(fmt, MXFormat) else fmt
    if isinstance(element, FloatFormat) and not element.zero:
        return "it has no zero, it is for scales; allowed: formats with a zero"
    if element.family != "ieee" or candidate.rule == "plena":
        return f"it is of the hardware model's family; allowed: the 'ieee' family and the rules {', '.join(RULES)}"
    if place in ("vector_sram", "scalar") and not isinstance(fmt, FloatFormat):
        kind = "block format" if isinstance(fmt, MXFormat) else "integer format"
        return f"it is {'an' if kind[0] == 'i' else 'a'} {kind}; allowed: floats (eXmY)"
    if isinstance(fmt, MXFormat) and mlen % fmt.block:
        return f"rows of {mlen} elements are not whole blocks; allowed: block sizes that divide {mlen}"
    try:
        _ = candidate.quantizer
    except FormatError as error:
        return str(error)
    return None
