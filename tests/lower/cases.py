"""Operators on operands of many shapes: what tests of kernels run over."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import numpy as np

import plena_jax as pj
from plena_jax.lower import Graph, Lowered, lower

FLOAT32 = pj.formats.named("float32")


@cache
def machine(mlen: int = 16, blen: int = 4, formats: str = "published", tiles: int = 8) -> pj.MachineConfig:
    """A machine with little to compile.

    Args:
        mlen, blen: its sizes.
        formats: "published" (BF16 and MXFP8), "float32" everywhere, or "bfloat16" in HBM too.
        tiles: of matrix SRAM.
    """
    config = pj.MachineConfig(
        mlen=mlen,
        vlen=mlen,
        blen=blen,
        hlen=mlen // 4,
        broadcast_amount=4,
        matrix_sram_size=tiles * mlen,
        vector_sram_size=8192,
        hbm_m_prefetch_amount=mlen,
        hbm_v_prefetch_amount=4,
        hbm_v_writeback_amount=4,
        hbm_size=1 << 24,
    )
    if formats == "published":
        return config
    wide = FLOAT32 if formats == "float32" else pj.formats.named("bfloat16")
    names = ("hbm_m_weight_type", "hbm_m_kv_type", "hbm_v_act_type", "hbm_v_kv_type")
    changes: dict[str, Any] = dict.fromkeys(names, wide)
    if formats == "float32":
        changes |= {"vector_sram_type": FLOAT32, "scalar_fp": FLOAT32}
    intended = dataclasses.replace(config.intended, plain_formats=True, scalar_fp=formats == "float32")
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, **changes), intended=intended)


@dataclass(frozen=True)
class Case:
    """An operator with operands.

    Attributes:
        name: of the operator.
        shapes: of its tensors, by parameter.
        attributes: keywords.
        hbm: roles of those tensors that are in HBM, by parameter.
        spread: what standard normal operands are multiplied with.
        shift: what is added to them.
    """

    name: str
    shapes: dict[str, tuple[int, int]]
    attributes: dict[str, Any] = field(default_factory=dict)
    hbm: dict[str, str] = field(default_factory=dict)
    spread: float = 1.0
    shift: float = 0.0

    @property
    def id(self) -> str:
        """For the names of tests."""
        sizes = "-".join("x".join(map(str, shape)) for shape in self.shapes.values())
        words = [f"{key}={value}".replace(" ", "") for key, value in self.attributes.items()]
        places = [f"{key} in hbm" for key in self.hbm if key not in ("w", "gate", "up", "down")]
        return " ".join([self.name, sizes, *words, *places])

    def graph(self, config: pj.MachineConfig) -> Graph:
        """The operator alone."""
        g = Graph(config)
        tensors = {
            name: g.input(name, shape, "hbm", self.hbm[name]) if name in self.hbm else g.input(name, shape)  # type: ignore[arg-type]
            for name, shape in self.shapes.items()
        }
        g.output(g.apply(self.name, **tensors, **self.attributes))
        return g

    def lowered(self, config: pj.MachineConfig) -> Lowered:
        """Its program."""
        return lower(self.graph(config))

    def operands(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Normal numbers, the same for a case whenever they are made."""
        random = np.random.default_rng(zlib.crc32(self.id.encode()) + seed)
        make = lambda shape: (random.standard_normal(shape) * self.spread + self.shift).astype(np.float32)
        return {name: make(shape) for name, shape in self.shapes.items()}


def relative_l2(found: Any, wanted: Any) -> float:
    """Norm of the difference over that of what is wanted."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))


def cosine(found: Any, wanted: Any) -> float:
    """Of the angle between the two."""
    a, b = np.asarray(found, np.float64).reshape(-1), np.asarray(wanted, np.float64).reshape(-1)
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))


def only(outputs: dict[str, jax.Array]) -> np.ndarray:
    """The one output of a graph."""
    (value,) = outputs.values()
    return np.asarray(value)


def same_bits(found: Any, wanted: Any) -> bool:
    """Whether all words are equal; zeros of either sign are."""
    a, b = np.asarray(found, np.float32) + np.float32(0), np.asarray(wanted, np.float32) + np.float32(0)
    return bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))
