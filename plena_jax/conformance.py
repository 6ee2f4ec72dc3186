"""Recorded runs: a program, its inputs and the memories that another machine ended with, compared word by word."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.errors import ConfigError, ImageError, MachineFault
from plena_jax.machine.images import Images
from plena_jax.machine.run import Engine, engine_for, run
from plena_jax.machine.state import MachineState
from plena_jax.program import Program

#: What a memory may differ by where only the order of float32 sums can make a difference.
SUM_ORDER_SHARE, SUM_ORDER_RELATIVE_L2 = 0.005, 1e-3
_INPUTS = {"program": np.uint32, "hbm": np.uint8, "fp_sram": np.float16}
_OPTIONAL = {"int_sram": np.uint32, "vram": np.uint16}
#: Memories that are compared, by the key of their recorded content: field of Images, word type, whether words are BF16.
_MEMORIES = {
    "out_vram": ("VRAM", "vram", np.uint16, True),
    "out_mram": ("MRAM", "mram", np.uint16, True),
    "out_fp_sram": ("FP SRAM", "fp_sram", np.uint16, True),
    "out_int_sram": ("INT SRAM", "int_sram", np.uint32, False),
    "out_hbm": ("HBM", "hbm", np.uint8, False),
}
#: Single numbers; of VRAM's size, in elements, nothing depends.
_NUMBERS = ("latency_ns", "out_vram_size")
_KEYS = ("settings", *_INPUTS, *_OPTIONAL, *_MEMORIES, *_NUMBERS)


@dataclass(frozen=True)
class Case:
    """One recorded run.

    Attributes:
        name: of the file, without its ending.
        program, config, images: what to run.
        recorded: final memories by key (``out_vram`` ...); empty where the program must stop with a fault.
        latency_ns: modelled time, if recorded.

    Raises:
        ImageError: a recorded memory that there is not, or of another type.
    """

    name: str
    program: Program
    config: MachineConfig
    images: Images
    recorded: dict[str, np.ndarray]
    latency_ns: float | None

    def __post_init__(self) -> None:
        _check_keys(self.name, self.recorded, tuple(_MEMORIES))
        _check_arrays(self.name, self.recorded, {key: memory[2] for key, memory in _MEMORIES.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Case:
        """Read an ``.npz`` case: keys program, settings, hbm, fp_sram, and int_sram, vram, out_*, latency_ns if known.

        No other keys, so that a record with a misspelt name is not one that is not compared.

        Raises:
            ImageError: not such a file; names it, the key and what is allowed.
            ConfigError: the settings are wrong; names the file.
        """
        data = _arrays(path)
        config = _settings(path, data)
        name = os.path.basename(os.fspath(path)).removesuffix(".npz")
        images = Images(*(data[k].tobytes() if k in data else b"" for k in ("hbm", "fp_sram", "int_sram", "vram")))
        try:
            images.contents(config)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None
        return cls(
            name=name,
            program=Program(data["program"], name),
            config=config,
            images=images,
            recorded={key: data[key] for key in _MEMORIES if key in data},
            latency_ns=float(data["latency_ns"]) if "latency_ns" in data else None,
        )

    def state(self, **allocation: int) -> MachineState:
        """The machine at reset with the case's memory images."""
        return MachineState.from_images(self.config, self.images, **allocation)


def _arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            data = dict(file)
    except OSError:
        raise
    except Exception as error:
        raise ImageError(f"{path}: not an .npz file of arrays: {error}") from None
    _check_keys(path, data, _KEYS)
    for key in ("settings", *_INPUTS):
        if key not in data:
            what = "the text of a plena_settings.toml" if key == "settings" else _one_dimensional(_INPUTS[key])
            raise ImageError(f"{path}: {key!r} is missing; it must hold {what}")
    _check_arrays(path, data, _INPUTS | _OPTIONAL | {key: memory[2] for key, memory in _MEMORIES.items()})
    for key in _NUMBERS:
        if key in data and (data[key].shape or data[key].dtype.kind not in "iuf" or not 0 <= data[key] < np.inf):
            raise ImageError(f"{path}: {key!r} holds {_described(data[key])}; allowed: a single number, 0 or more")
    return data


def _settings(path: str | os.PathLike[str], data: dict[str, np.ndarray]) -> MachineConfig:
    text = data["settings"]
    if text.shape or text.dtype.kind != "U":
        raise ImageError(f"{path}: 'settings' holds {_described(text)}; allowed: the text of a plena_settings.toml")
    try:
        return MachineConfig.from_toml(f"{text}\n", partial_heads=True)
    except ConfigError as error:
        raise ConfigError(error.key, error.value, error.rule, f"{path}: settings") from None


def _check_keys(source: object, data: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in data:
        if key not in allowed:
            raise ImageError(f"{source}: {key!r} is not a key of a case; allowed: {', '.join(allowed)}")


def _check_arrays(source: object, data: Mapping[str, np.ndarray], types: Mapping[str, type]) -> None:
    for key, dtype in types.items():
        if key in data and (data[key].dtype != dtype or data[key].ndim != 1):
            raise ImageError(f"{source}: {key!r} holds {_described(data[key])}; allowed: {_one_dimensional(dtype)}")


def _one_dimensional(dtype: type) -> str:
    return f"one-dimensional {np.dtype(dtype)}"


def _described(value: np.ndarray) -> str:
    shown = f" {value}" if not value.shape else ""
    return f"{value.dtype} {value.shape}{shown}"


@dataclass(frozen=True)
class Comparison:
    """How one memory compares with its record.

    Attributes:
        case, engine, memory: what was compared; ``memory`` is "fault" for a program that had to stop, or one that did,
            and "case" or "engine" for a run that there was not, because one of them cannot do it.
        words: words of the record. What lies behind them must be zero, but does not count as compared.
        differing: words that are not equal in every bit.
        max_ulp: largest distance: units in the last place for BF16, difference of values for integers and bytes; of NaN
            to a number, all codes.
        relative_l2: norm of the difference over the norm of the record.
        message: the fault or the error, if there was one.
    """

    case: str
    engine: str
    memory: str
    words: int
    differing: int
    max_ulp: int
    relative_l2: float
    message: str = ""

    @property
    def equal(self) -> bool:
        """Whether every word is."""
        return self.differing == 0

    @property
    def within_sum_order(self) -> bool:
        """Whether the order of float32 sums can explain the difference."""
        few = self.differing < SUM_ORDER_SHARE * max(self.words, 1)
        return self.equal or (few and self.memory != "fault" and self.relative_l2 <= SUM_ORDER_RELATIVE_L2)


def verify(case: Case, engine: Engine = "auto", progress: Callable[[int], None] | None = None) -> list[Comparison]:
    """Run a case and compare every recorded memory.

    Raises:
        EngineError: the engine asked for cannot run the program.
    """
    state = case.state()
    used = engine_for(case.program, state, case.config, engine).name
    blank = Comparison(case.name, used, "fault", 1, 0, 0, 0.0)
    try:
        # Every word counts: products add up in the machine's order on every engine.
        final = run(case.program, state, case.config, engine=engine, donate=True, progress=progress, strict=True)
    except MachineFault as fault:
        return [replace(blank, differing=int(bool(case.recorded)), message=str(fault))]
    if not case.recorded:
        return [replace(blank, differing=1, message="ran to its end where it had to stop with a fault")]
    images = final.dump(case.config)
    return [_compare(case, used, key, getattr(images, _MEMORIES[key][1])) for key in case.recorded]


def _compare(case: Case, engine: str, key: str, data: bytes) -> Comparison:
    name, _, dtype, is_bf16 = _MEMORIES[key]
    got, expected = np.frombuffer(data, dtype), case.recorded[key]
    # HBM is recorded over the preload image; of other memories trailing zeros are cut.
    size = len(expected) if key == "out_hbm" else max(len(got), len(expected))
    got, expected = (np.pad(a[:size], (0, max(size - len(a), 0))) for a in (got, expected))
    differs = got != expected
    distance, relative = _distance(got[differs], expected[differs], is_bf16), 0.0
    if differs.any():
        a, b = (_values(x, is_bf16) for x in (got, expected))
        with np.errstate(invalid="ignore", over="ignore"):
            relative = float(np.sqrt(np.sum(np.square(a - b))) / max(np.sqrt(np.sum(np.square(b))), 1e-300))
    return Comparison(case.name, engine, name, len(case.recorded[key]), int(differs.sum()), distance, relative)


def _values(words: np.ndarray, is_bf16: bool) -> np.ndarray:
    return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64) if is_bf16 else words.astype(np.float64)


def _distance(a: np.ndarray, b: np.ndarray, is_bf16: bool) -> int:
    if not len(a):
        return 0
    if not is_bf16:
        return int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max())
    nan = [(x & 0x7FFF) > 0x7F80 for x in (a, b)]
    # Sign and magnitude to a line of integers; both zeros are 0.
    lines = [np.where(x & 0x8000, -(x & 0x7FFF).astype(np.int64), (x & 0x7FFF).astype(np.int64)) for x in (a, b)]
    distance = np.abs(lines[0] - lines[1])
    return int(np.where(nan[0] & nan[1], 0, np.where(nan[0] | nan[1], 0xFFFF, distance)).max())


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Plain data."""
    finite = np.isfinite(comparison.relative_l2)
    return {**comparison.__dict__, "relative_l2": comparison.relative_l2 if finite else str(comparison.relative_l2)}
