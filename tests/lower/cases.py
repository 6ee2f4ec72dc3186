"""Operators on operands of many shapes: what tests of kernels run over."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np

import plena_jax as pj
from plena_jax.lower import Graph, Lowered, Tensor, lower

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
        place: memories of those tensors that are neither there nor in VRAM, by parameter.
        spread: what standard normal operands are multiplied with.
        shift: what is added to them.
    """

    name: str
    shapes: dict[str, tuple[int, int]]
    attributes: dict[str, Any] = field(default_factory=dict)
    hbm: dict[str, str] = field(default_factory=dict)
    place: dict[str, Any] = field(default_factory=dict)
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
        tensors = {name: g.input(name, shape, *self._where(name)) for name, shape in self.shapes.items()}
        g.output(g.apply(self.name, **tensors, **self.attributes))
        return g

    def apply(self, g: Graph, known: dict[Any, Tensor] | None = None) -> None:
        """Its operands as inputs of a graph, its result as an output.

        Args:
            g: the graph.
            known: inputs that are there, by :meth:`key`; those of equal keys are shared.
        """
        known = {} if known is None else known
        tensors = {}
        for name, shape in self.shapes.items():
            if self.key(name) not in known:
                known[self.key(name)] = g.input(f"{name} {len(known)}" if known else name, shape, *self._where(name))
            tensors[name] = known[self.key(name)]
        g.output(g.apply(self.name, **tensors, **self.attributes))

    def key(self, name: str) -> Any:
        """What operands of several cases have in common that may be one."""
        return name, self.shapes[name], self._where(name), self.spread, self.shift

    def _where(self, name: str) -> tuple[Any, ...]:
        return ("hbm", self.hbm[name]) if name in self.hbm else (self.place.get(name, "vram"),)

    def lowered(self, config: pj.MachineConfig) -> Lowered:
        """Its program."""
        return lower(self.graph(config))

    def operands(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Normal numbers, the same for a case whenever they are made."""
        random = np.random.default_rng(zlib.crc32(self.id.encode()) + seed)
        make = lambda shape: (random.standard_normal(shape) * self.spread + self.shift).astype(np.float32)
        return {name: make(shape) for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class Together:
    """Cases that follow each other in one program, with shared operands: to compile is what takes time.

    Attributes:
        cases: in order.
        config: the machine.
    """

    cases: tuple[Case, ...]
    config: pj.MachineConfig

    @cached_property
    def lowered(self) -> Lowered:
        """One output for each case, in order."""
        g = Graph(self.config)
        for case in self.cases:
            case.apply(g, self._inputs)
        return lower(g)

    @cached_property
    def _inputs(self) -> dict[Any, Tensor]:
        return {}

    def operands(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Those of all cases; cases with the same kind of operand share it."""
        inputs = self.lowered and self._inputs
        found = {case.key(name): value for case in self.cases for name, value in case.operands(seed).items()}
        return {tensor.name: found[key] for key, tensor in inputs.items()}

    def in_order(self, outputs: dict[str, jax.Array]) -> list[np.ndarray]:
        """The results of the cases."""
        return [np.asarray(outputs[tensor.name]) for tensor in self.lowered.graph.outputs]

    @cached_property
    def final(self) -> pj.MachineState:
        """The machine after the program."""
        lowered = self.lowered
        return pj.run(
            lowered.program, jax.jit(lambda operands: lowered.start(**operands))(self.operands()), self.config
        )

    @cached_property
    def found(self) -> list[np.ndarray]:
        """What the machine computes."""
        return self.in_order(self.lowered.read(self.final))

    @cached_property
    def _rounded(self) -> Any:
        # Compiled as a whole: operation by operation takes longer.
        lowered = self.lowered
        return jax.jit(lambda operands: lowered.rounded(**operands))

    @cached_property
    def rounded(self) -> list[np.ndarray]:
        """The rounded references."""
        return self.in_order(self._rounded(self.operands()))

    @cached_property
    def stale(self) -> list[np.ndarray]:
        """The rounded references of other operands."""
        return self.in_order(self._rounded(self.operands(seed=1)))

    @cached_property
    def exact(self) -> list[np.ndarray]:
        """The formulas."""
        lowered = self.lowered
        return self.in_order(jax.jit(lambda operands: lowered.exact(**operands))(self.operands()))


def fits(found: Any, wanted: Any) -> bool:
    """The gate: relative L2 and cosine."""
    return relative_l2(found, wanted) <= 1e-3 and cosine(found, wanted) >= 0.9999


def check_bits(run: Together) -> None:
    """The machine gives the rounded reference of each case."""
    for case, found, rounded in zip(run.cases, run.found, run.rounded, strict=True):
        assert same_bits(found, rounded), f"{case.id}: {relative_l2(found, rounded)}"


def check_case(run: Together, number: int) -> None:
    """The machine gives the rounded reference, and what is wrong fails the gate."""
    found, rounded = run.found[number], run.rounded[number]
    assert same_bits(found, rounded), f"{run.cases[number].id}: {relative_l2(found, rounded)}"
    assert np.isfinite(rounded).all()
    assert fits(found, rounded)
    assert not fits(np.zeros_like(found), rounded)
    assert not fits(np.roll(found, 1, axis=int(found.shape[1] > 1)), rounded)
    assert not fits(run.stale[number], rounded)


def check_formula(run: Together, number: int) -> None:
    """On a machine of float32 the rounded reference is the formula."""
    assert_formula(run.rounded[number], run.exact[number])


def assert_formula(rounded: Any, exact: Any) -> None:
    """A rounded reference of float32 is the formula, which a little less would not be."""
    assert relative_l2(rounded, exact) <= 1e-5
    assert relative_l2(rounded * np.float32(1.0001), exact) > 1e-5


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
