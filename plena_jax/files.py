"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

_ZEROS = bytes(1 << 20)


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview, size: int | None = None) -> None:
    """Write ``data`` to a new file beside ``path`` and rename it into place.

    Args:
        path: the file to write or replace, the one it names if it is a symbolic link; a device or a pipe is written to.
        data: its content.
        size: bytes of the whole file; those behind ``data`` are zero and take no space on disk.
    """
    if _is_special(path):
        # A device or a pipe cannot be replaced by a file, and has no holes.
        with open(path, "wb") as stream:
            stream.write(data)
            for start in range(memoryview(data).nbytes, size or 0, len(_ZEROS)):
                stream.write(_ZEROS[: (size or 0) - start])
        return
    # What a symbolic link names is replaced, not the link.
    target = Path(os.path.realpath(path))
    name = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    # The umask, which all threads of the process share, is applied here without having to be known.
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if size is not None:
                stream.truncate(size)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _is_special(path: str | os.PathLike[str]) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


def refuse_to_overwrite(target: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Raise FileExistsError if writing ``target`` would replace one of the files that are being read."""
    if not os.path.isfile(target):
        return
    for source in inputs:
        if source is not None and os.path.exists(source) and os.path.samefile(target, source):
            raise FileExistsError(f"{os.fspath(target)}: is an input file; it will not be overwritten")
