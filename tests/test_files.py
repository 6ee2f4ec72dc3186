"""Writing files: whole or not at all, with the permissions that files have, and never over something special."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from plena_jax.files import refuse_to_overwrite, write_atomically


@pytest.fixture
def mask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_file_gets_the_permissions_of_the_umask(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without setting the umask, not even for a moment: other threads would make files with it."""
    path = tmp_path / "x"
    with monkeypatch.context() as patch:
        patch.setattr(os, "umask", lambda _: pytest.fail("sets the umask"))
        write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_file_is_replaced_and_grows_to_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old and longer")
    write_atomically(path, b"new", 8)
    assert path.read_bytes() == b"new" + bytes(5)
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_one(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x", tmp_path / "link"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("size", [None, 5, (1 << 20) + 7])
def test_a_pipe_is_written_to(size: int | None, tmp_path: Path) -> None:
    path, received = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    write_atomically(path, b"new", size)
    reader.join(20)
    assert received == [b"new".ljust(size or 0, b"\0")]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_device_is_written_to(tmp_path: Path) -> None:
    """Through a link, because a process that may replace /dev/null must not in a test that fails."""
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write_atomically(link, b"new", 1000)
    assert link.is_symlink()
    assert stat.S_ISCHR(link.stat().st_mode)


def test_inputs_are_refused_under_any_name(tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    path.write_bytes(b"")
    link.symlink_to(path)
    with pytest.raises(FileExistsError, match="is an input file"):
        refuse_to_overwrite(link, [None, "nothing", path])
    refuse_to_overwrite(tmp_path / "other", [path])


def test_a_device_may_be_read_and_written() -> None:
    refuse_to_overwrite("/dev/null", ["/dev/null"])
