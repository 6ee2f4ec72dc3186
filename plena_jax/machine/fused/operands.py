"""How semantic functions see the operands of a wide step: as private memories, of just these."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.machine.transfer import Transfers, cell_bits, slices
from plena_jax.machine.view import View


class _Places:
    """Rows of the regions that semantic functions know by name, in a private memory."""

    def __init__(self, **rows: Any) -> None:
        self.__dict__.update(rows)


@dataclass(frozen=True)
class OperandView(View):
    """A view of a private memory."""

    places: Any = None

    @property
    def layout(self) -> Any:
        """Where things are in ``cells``."""
        return self.places

    def hbm_values(self, index: jax.Array, there: jax.Array) -> jax.Array:
        """See :class:`View`; whole rows at a time where their cells lie side by side."""
        if not (self.inside and _side_by_side(self.config)):
            return super().hbm_values(index, there)
        return slices(self.hbm, index[:, 0], index.shape[1])


@lru_cache(maxsize=32)
def _side_by_side(config: MachineConfig) -> bool:
    """Whether every element that can be transferred takes one cell of the values face."""
    transfers = Transfers.of(config)
    return {t.bits for t in (*transfers.matrix, *transfers.vector) if not t.problem} <= {cell_bits(config)}


@dataclass(frozen=True)
class Machine:
    """What an operation may depend on besides its operands."""

    config: MachineConfig
    hbm: jax.Array
    careful: jax.Array | bool
    precision: Any = None
    clipped: bool = False
    inside: bool = False

    def view(self, vram: jax.Array, cells: jax.Array, **places: Any) -> OperandView:
        """A view of some rows as vector SRAM and as ``cells``."""
        none = jnp.zeros((1, 1), jnp.float32)
        known = (self.careful, self.precision, self.clipped, self.inside)
        return OperandView(self.config, vram, cells, self.hbm, none, *known, _Places(**places))
