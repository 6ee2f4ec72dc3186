"""Weights from safetensors files: one file, or many with an index, as Hugging Face publishes them.

Half precisions (bfloat16, float16) become float32. Tensors are read when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from plena_jax.errors import PlenaError

Array = np.ndarray[Any, Any]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

#: Data types of the format, and what they become.
_DTYPES: dict[str, tuple[Any, Any]] = {
    "F64": (np.float64, np.float32),
    "F32": (np.float32, np.float32),
    "F16": (np.float16, np.float32),
    "BF16": (ml_dtypes.bfloat16, np.float32),
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, np.float32),
    "F8_E5M2": (ml_dtypes.float8_e5m2, np.float32),
    "I64": (np.int64, np.int64),
    "I32": (np.int32, np.int32),
    "I16": (np.int16, np.int16),
    "I8": (np.int8, np.int8),
    "U8": (np.uint8, np.uint8),
    "BOOL": (np.bool_, np.bool_),
}
_NAMES = {np.dtype(stored): name for name, (stored, _) in _DTYPES.items()}


class CheckpointError(PlenaError, ValueError):
    """A checkpoint that cannot be read, or does not have the tensors that are asked for; names all of them."""


class Checkpoint(Mapping[str, Array]):
    """Tensors by name, read from their files when they are asked for.

    Args:
        path: a ``.safetensors`` file, an index file, or a folder with ``model.safetensors`` or an index.
        prefix: only tensors whose names begin so; it is left out of the names.

    Raises:
        CheckpointError: files are missing, truncated, or not in the format.
    """

    def __init__(self, path: str | Path, prefix: str = "") -> None:
        self.path, self.prefix = Path(path), prefix
        self._tensors: dict[str, tuple[Path, str, tuple[int, ...], int, int]] = {}
        for file, names in _files(self.path).items():
            header, start = _header(file)
            lost = sorted(set(names or ()) - set(header))
            if lost:
                raise CheckpointError(f"{file} does not have {', '.join(lost)}, which the index says it has")
            for name in names or header:
                if name.startswith(prefix):
                    entry = header[name]
                    first, last = entry["data_offsets"]
                    place = file, entry["dtype"], tuple(entry["shape"]), start + first, last - first
                    self._tensors[name.removeprefix(prefix)] = place

    def __getitem__(self, name: str) -> Array:
        if name not in self._tensors:
            raise KeyError(name)
        file, kind, shape, offset, size = self._tensors[name]
        if kind not in _DTYPES:
            raise CheckpointError(f"{file}: {name} has data type {kind}; there are {', '.join(_DTYPES)}")
        stored, wanted = _DTYPES[kind]
        with file.open("rb") as opened:
            opened.seek(offset)
            content = opened.read(size)
        return np.frombuffer(content, stored).reshape(shape).astype(wanted)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._tensors[name][2]


def _files(path: Path) -> dict[Path, list[str] | None]:
    """The files of a checkpoint, with the names that an index says are in them."""
    if path.is_dir():
        index, single = path / INDEX, path / SINGLE
        if not index.exists() and not single.exists():
            raise CheckpointError(f"{path} has neither {INDEX} nor {SINGLE}")
        path = index if index.exists() else single
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file")
    if path.suffix != ".json":
        return {path: None}
    try:
        places = json.loads(path.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an index of a checkpoint: {error!r}") from None
    files: dict[Path, list[str] | None] = {}
    for name, file in places.items():
        names = files.setdefault(path.parent / file, [])
        assert names is not None
        names.append(name)
    missing = sorted(file.name for file in files if not file.exists())
    if missing:
        raise CheckpointError(f"{path} names files that are not there: {', '.join(missing)}")
    return files


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """What a file says of its tensors, and where their bytes begin."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is no safetensors file, or truncated: it has {size} bytes")
        try:
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            ends = [entry["data_offsets"][1] for entry in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} is no safetensors file: {error!r}") from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise CheckpointError(f"{file} is truncated: it has {size} bytes of {expected}")
    return header, 8 + length


def arrays(path: str | Path, prefix: str = "") -> Checkpoint:
    """The tensors of a checkpoint as a mapping that reads them when they are asked for; see :class:`Checkpoint`."""
    return Checkpoint(path, prefix)


def save(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays to one safetensors file.

    Raises:
        CheckpointError: a data type that the format does not have.
    """
    header: dict[str, Any] = {}
    content: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        values = np.asarray(array)
        if values.dtype not in _NAMES:
            raise CheckpointError(f"{name} has data type {values.dtype}, which safetensors has not")
        content.append(values.tobytes())
        places = [offset, offset + len(content[-1])]
        header[name] = {"dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": places}
        offset = places[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path(path).write_bytes(b"".join([len(text).to_bytes(8, "little"), text, *content]))


def load_into(module: Any, path: str | Path, prefix: str = "") -> Any:
    """Set the parameters and persistent buffers of a ``torch.nn.Module`` from a checkpoint; the module again.

    Tied parameters need be there under one of their names.

    Raises:
        CheckpointError: naming all tensors that are missing, unexpected, or of another shape. Nothing is changed then.
    """
    import torch

    found, wanted = Checkpoint(path, prefix), module.state_dict()
    tied: dict[Any, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        tied.setdefault(id(tensor), []).append(name)
    sources = {name: next((n for n in (name, *names) if n in found), None) for names in tied.values() for name in names}
    problems = [f"missing: {name} {tuple(wanted[name].shape)}" for name, source in sources.items() if source is None]
    problems += [f"unexpected: {name} {found.shape(name)}" for name in found if name not in wanted]
    problems += [
        f"{name}: shape {found.shape(source)} in the checkpoint, {tuple(wanted[name].shape)} in the module"
        for name, source in sources.items()
        if source is not None and found.shape(source) != tuple(wanted[name].shape)
    ]
    if problems:
        begin = f" (prefix {prefix!r})" if prefix else ""
        raise CheckpointError(f"{path}{begin} does not fit {type(module).__name__}:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, source in sources.items():
            assert source is not None
            wanted[name].copy_(torch.from_numpy(found[source]))
    return module
