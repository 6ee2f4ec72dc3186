"""Drawings with matplotlib, which is optional."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from plena_jax.errors import PlenaError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        PlenaError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlenaError("a plot needs matplotlib: pip install 'plena-jax[docs]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(drawn: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure: PNG, PDF or SVG by the file's ending.

    Raises:
        PlenaError: matplotlib does not know the ending.
    """
    try:
        drawn.savefig(path, dpi=150)
    except ValueError as error:
        raise PlenaError(f"{os.fspath(path)}: {error}") from None
