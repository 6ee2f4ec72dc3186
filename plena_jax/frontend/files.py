"""Compiled programs on disk: what ``plena run`` and the Rust emulator take, and what it takes to read results.

A folder holds ``program.mem`` and ``program.asm``, ``hbm.bin``, ``fp_sram.bin``, ``vram.bin`` and ``int_sram.bin`` as
the machine is before the run, ``plena_settings.toml``, ``manifest.json`` and ``results.npz``: where results are.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plena_jax import hbm
from plena_jax.config import MachineConfig
from plena_jax.errors import PlenaError
from plena_jax.formats import plena
from plena_jax.frontend.views import Value, View
from plena_jax.lower.builder import ProgramBuilder
from plena_jax.lower.lowered import Lowered
from plena_jax.lower.tensors import Entries, Matrix, Rows, format_of
from plena_jax.machine.images import Images
from plena_jax.machine.run import run
from plena_jax.machine.state import MachineState
from plena_jax.machine.transfer import Transfer
from plena_jax.program import Program

if TYPE_CHECKING:
    from plena_jax.frontend.compiled import CompiledProgram

VERSION = 1
#: Files of the memories, by the field of :class:`Images`.
MEMORIES = {"hbm": "hbm.bin", "fp_sram": "fp_sram.bin", "vram": "vram.bin", "int_sram": "int_sram.bin"}


class SavedProgramError(PlenaError, ValueError):
    """A folder that does not hold a compiled program: names the file and what is wrong with it."""


# -- writing ----------------------------------------------------------------------------------------------------------


def save(compiled: CompiledProgram, folder: str | os.PathLike[str], arguments: Sequence[Any]) -> None:
    """Write a program and the machine before it runs on these arguments; the folder appears when all is written.

    Raises:
        SavedProgramError: the folder exists and is not empty.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SavedProgramError(f"{target}: exists and is not an empty folder")
    program, images = _start(compiled.lowered, compiled.inputs(*arguments))
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        (work / "program.mem").write_text(program.to_mem())
        (work / "program.asm").write_text("\n".join(program.disassemble()) + "\n")
        for name, file in MEMORIES.items():
            (work / file).write_bytes(getattr(images, name))
        compiled.config.to_toml(work / "plena_settings.toml")
        manifest, arrays = _manifest(compiled, len(program) - len(compiled.program))
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1))
        np.savez_compressed(work / "results.npz", allow_pickle=False, **arrays)
        if target.exists():
            target.rmdir()
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _start(lowered: Lowered, inputs: dict[str, Any]) -> tuple[Program, Images]:
    """The program and the memories before it. Scalars that no float16 holds are made by instructions before it."""
    state, config = lowered.start(**inputs), lowered.config
    wanted = {entry: float(np.asarray(state.fp_sram)[entry]) for entry in lowered.fp_constants}
    with np.errstate(over="ignore"):
        odd = {e: x for e, x in wanted.items() if float(plena.round_scalar(np.float32(np.float16(x)))) != x}
    # Rows that hold nothing before the program starts.
    first = max((a.stop for a in lowered.plan.vram if a.first < 0), default=0)
    if first + len(odd) > config.vector_sram_size:
        raise SavedProgramError(f"{len(odd)} scalars that no float16 holds: no free rows of VRAM to bring them in")
    vram = np.asarray(state.vram)[:first]
    prologue = _prologue(config, odd, len(vram))
    rows = np.zeros((len(odd), config.vlen), np.float32)
    rows[:, 0] = list(odd.values())
    with np.errstate(over="ignore"):
        scalars = np.asarray(state.fp_sram).astype("<f2")
    scalars[list(odd)] = 0
    tensors = [m.tensor for m in lowered.plan.matrices.values()]
    tensors += [matrix.tensor for matrix, _ in lowered.constants.found.values()]
    values = state.replace(vram=np.concatenate([vram, rows]), hbm=hbm.to_bytes(config, np.asarray(state.hbm), tensors))
    images = Images.of(config, values)
    words = np.concatenate([prologue.words, lowered.program.words])
    return Program(words, "<compiled>"), Images(images.hbm, scalars.tobytes(), images.int_sram, images.vram)


def _prologue(config: MachineConfig, odd: dict[int, float], row: int) -> Program:
    """Takes scalars from the first lanes of rows of vector SRAM, from ``row`` on, to their entries of FP SRAM."""
    b = ProgramBuilder(config, "<prologue>")
    with b.scope():
        f = b.fp(purpose="scalar")
        for number, entry in enumerate(odd):
            with b.scope():
                address = b.gp((row + number) * config.vlen, "row")
                b.s_add_fp(f, b.fp_zero, b.fp_zero)
                b.v_red_sum(f, address)
                b.s_st_fp(f, b.zero, entry)
    return b.program()


def _manifest(compiled: CompiledProgram, shift: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    signature, lowered = compiled.signature, compiled.lowered
    numbers = {value: number for number, value in enumerate(compiled.results)}
    arrays: dict[str, np.ndarray] = {}
    values = []
    for value, (name, held) in compiled.results.items():
        tensor = lowered.graph.outputs[lowered.graph.names.index(name)]
        values.append({"name": name, "shape": list(value.shape), **_place(lowered.plan.located(tensor))})
        if held.order is not None:
            arrays[f"order_{numbers[value]}"] = held.order
    results = []
    for number, view in enumerate(compiled.graph.outputs):
        bases: list[Any] = []
        for base in view.bases:
            if base.constant is None:
                bases.append(numbers[base])
            else:
                bases.append(f"constant_{len(arrays)}")
                arrays[bases[-1]] = base.constant
        arrays[f"index_{number}"] = np.ascontiguousarray(view.index)
        shape, dtype = signature.result_shapes[number], signature.result_dtypes[number]
        results.append({"bases": bases, "shape": list(shape), "dtype": dtype.name})
    sections = [{"name": s.name, "start": s.start + shift, "stop": s.stop + shift} for s in compiled.program.sections]
    arguments = [
        {"name": n, "shape": list(s), "dtype": d.name}
        for n, s, d in zip(signature.names, signature.shapes, signature.dtypes, strict=True)
    ]
    manifest = {"version": VERSION, "arguments": arguments, "values": values, "results": results, "sections": sections}
    return manifest, arrays


def _place(where: Rows | Matrix | Entries) -> dict[str, Any]:
    if isinstance(where, Rows):
        return {"memory": "vram", "address": where.address, "matrix": list(where.shape), "pitch": where.pitch}
    if isinstance(where, Matrix):
        t = where.tensor
        held = {"address": t.address, "stored": list(t.shape), "role": where.role, "start": list(where.start)}
        return {"memory": "hbm", "matrix": list(where.shape), **held}
    return {"memory": "fp_sram", "address": where.first, "matrix": list(where.shape)}


# -- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class SavedProgram:
    """A compiled program from disk, with the machine before its run.

    Attributes:
        program, config, images: what runs.
        manifest: arguments, sections, and where results are.
        arrays: positions of results.
    """

    program: Program
    config: MachineConfig
    images: Images
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def run(self) -> MachineState:
        """The machine after the run."""
        return run(self.program, MachineState.from_images(self.config, self.images), self.config)

    def results(self, final: MachineState) -> list[np.ndarray]:
        """The flat results of the function in a final state."""
        values = [self._value(number, item, final) for number, item in enumerate(self.manifest["values"])]
        found = []
        for number, item in enumerate(self.manifest["results"]):
            parts = [values[base] if isinstance(base, int) else self.arrays[base] for base in item["bases"]]
            known = [Value(f"{i}", part.shape) for i, part in enumerate(parts)]
            view = View(tuple(known), self.arrays[f"index_{number}"], np.dtype(np.float32))
            x = view.evaluate(parts).reshape(item["shape"])
            found.append(x if item["dtype"].startswith(("float", "bfloat")) else np.round(x).astype(item["dtype"]))
        return found

    def _value(self, number: int, item: dict[str, Any], final: MachineState) -> np.ndarray:
        matrix = self._matrix(item, final).reshape(-1)
        order = self.arrays.get(f"order_{number}")
        if order is not None:
            moved = np.empty_like(matrix)
            moved[order.reshape(-1)] = matrix
            matrix = moved
        return matrix.reshape(item["shape"])

    def _matrix(self, item: dict[str, Any], final: MachineState) -> np.ndarray:
        rows, columns = item["matrix"]
        if item["memory"] == "fp_sram":
            return np.asarray(final.fp_sram)[None, item["address"] : item["address"] + columns]
        if item["memory"] == "vram":
            lanes, flat = self.config.vlen, np.asarray(final.vram).reshape(-1)
            starts = item["address"] + np.arange(-(-columns // lanes)) * item["pitch"]
            blocks = [flat[start : start + rows * lanes].reshape(rows, lanes) for start in starts]
            return np.concatenate(blocks, axis=1)[:, :columns]
        role = item["role"]
        fmt = Transfer.of(self.config, format_of(self.config, role, role == "weights")).fmt
        tensor = hbm.Tensor("result", (item["stored"][0], item["stored"][1]), item["address"], fmt)
        values = hbm.to_values(self.config, np.asarray(final.hbm), [tensor])
        (row, column), held = item["start"], np.asarray(hbm.read(self.config, values, tensor))
        return held[row : row + rows, column : column + columns]


def load(folder: str | os.PathLike[str]) -> SavedProgram:
    """Read what :func:`save` wrote.

    Raises:
        SavedProgramError: a file is missing, or of another version.
        ProgramError, ConfigError, ImageError: a file is damaged.
    """
    source = Path(folder)
    expected = ["program.mem", "plena_settings.toml", "manifest.json", "results.npz", *MEMORIES.values()]
    missing = [name for name in expected if not (source / name).is_file()]
    if missing:
        raise SavedProgramError(f"{source}: not a compiled program; missing {', '.join(missing)}")
    try:
        manifest = json.loads((source / "manifest.json").read_text())
    except ValueError as error:
        raise SavedProgramError(f"{source / 'manifest.json'}: {error}") from None
    if manifest.get("version") != VERSION:
        raise SavedProgramError(f"{source}: version {manifest.get('version')!r}; this release reads {VERSION}")
    with np.load(source / "results.npz") as archive:
        arrays = dict(archive)
    images = Images(**{name: (source / file).read_bytes() for name, file in MEMORIES.items()})
    config = MachineConfig.from_toml(source / "plena_settings.toml")
    return SavedProgram(Program.load(source / "program.mem"), config, images, manifest, arrays)
