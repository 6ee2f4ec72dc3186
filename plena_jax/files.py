"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], data: bytes | memoryview, size: int | None = None) -> None:
    """Write ``data`` to a new file beside ``path`` and rename it into place.

    Args:
        path: the file to write or replace.
        data: its content.
        size: bytes of the whole file; those behind ``data`` are zero and take no space on disk.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if size is not None:
                stream.truncate(size)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def refuse_to_overwrite(target: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str] | None]) -> None:
    """Raise FileExistsError if writing ``target`` would replace one of the files that are being read."""
    for source in inputs:
        if (
            source is not None
            and os.path.exists(target)
            and os.path.exists(source)
            and os.path.samefile(target, source)
        ):
            raise FileExistsError(f"{os.fspath(target)}: is an input file; it will not be overwritten")
