"""Checkpoints against the files that safetensors writes; what is wrong with one is named, all together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from plena_jax.bridges import checkpoints
from plena_jax.bridges.checkpoints import CheckpointError

WEIGHTS = {
    "model.a.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "model.b.weight": np.array([1.5, -2.25], ml_dtypes.bfloat16),
    "model.c": np.array([[1, 2]], np.int64),
    "head.scale": np.array(0.5, np.float16),
    "empty": np.zeros((0, 3), np.float32),
}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "x.safetensors", WEIGHTS)
    found = checkpoints.arrays(tmp_path / "x.safetensors")
    assert list(found) == list(WEIGHTS)
    for name, array in WEIGHTS.items():
        wanted = np.float32 if array.dtype in (ml_dtypes.bfloat16, np.float16) else array.dtype
        assert found[name].dtype == wanted
        assert found.shape(name) == array.shape
        np.testing.assert_array_equal(found[name], array.astype(wanted))
    assert list(checkpoints.arrays(tmp_path / "x.safetensors", "model.")) == ["a.weight", "b.weight", "c"]


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    plain = {name: array for name, array in WEIGHTS.items() if array.dtype != ml_dtypes.bfloat16}
    checkpoints.save(tmp_path / "ours.safetensors", plain)
    theirs = safetensors.load_file(tmp_path / "ours.safetensors")
    assert all((theirs[name] == array).all() and theirs[name].dtype == array.dtype for name, array in plain.items())
    safetensors.save_file(plain, tmp_path / "theirs.safetensors")
    found = checkpoints.arrays(tmp_path / "theirs.safetensors")
    assert all((found[name] == array).all() for name, array in plain.items())


def sharded(folder: Path) -> dict[str, str]:
    places = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(WEIGHTS)}
    for file in set(places.values()):
        checkpoints.save(folder / file, {n: a for n, a in WEIGHTS.items() if places[n] == file})
    (folder / checkpoints.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    places = sharded(tmp_path)
    for path in (tmp_path, tmp_path / checkpoints.INDEX):
        found = checkpoints.arrays(path)
        assert sorted(found) == sorted(WEIGHTS)
        assert all((found[name] == WEIGHTS[name].astype(found[name].dtype)).all() for name in WEIGHTS)
    lost = places["model.a.weight"]
    (tmp_path / lost).unlink()
    with pytest.raises(CheckpointError, match=lost):
        checkpoints.arrays(tmp_path)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    checkpoints.save(file, WEIGHTS)
    content = file.read_bytes()
    for kept in (0, 5, 40, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match="truncated"):
            checkpoints.arrays(tmp_path)
    file.write_bytes((3).to_bytes(8, "little") + b"abc" * 9)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        checkpoints.arrays(file)
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoints.arrays(tmp_path / "nothing.safetensors")
    with pytest.raises(CheckpointError, match="neither"):
        checkpoints.arrays(tmp_path / "..")
    with pytest.raises(CheckpointError, match="complex"):
        checkpoints.save(file, {"a": np.zeros(2, np.complex64)})


def module() -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    made = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(2, 2, bias=False)})
    made["tied"] = torch.nn.Linear(2, 2, bias=False)
    made["tied"].weight = made["b"].weight
    return made


def test_a_module_gets_its_weights(tmp_path: Path) -> None:
    made = module()
    state = {f"net.{n}": t.numpy() + 1 for n, t in made.state_dict().items() if n != "tied.weight"}
    checkpoints.save(tmp_path / "m.safetensors", {**state, "other": np.zeros(3, np.float32)})
    checkpoints.load_into(made, tmp_path / "m.safetensors", prefix="net.")
    assert all((made.state_dict()[n.removeprefix("net.")].numpy() == a).all() for n, a in state.items())
    assert made["tied"].weight is made["b"].weight


def test_all_that_does_not_fit_a_module_is_named(tmp_path: Path) -> None:
    made = module()
    before = {n: t.clone() for n, t in made.state_dict().items()}
    wrong = {"a.weight": np.zeros((2, 3), np.float32), "b.weight": np.zeros((3, 2), np.float32)}
    checkpoints.save(tmp_path / "m.safetensors", {**wrong, "other": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_into(made, tmp_path / "m.safetensors")
    for part in ("missing: a.bias (2,)", "unexpected: other (3,)", "b.weight: shape (3, 2) in the checkpoint, (2, 2)"):
        assert part in str(caught.value)
    assert all((made.state_dict()[n] == t).all() for n, t in before.items())
