"""What is static in one attention: heads in lanes, groups of queries, tiles of keys, and which of them are seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from plena_jax.config import MachineConfig
from plena_jax.lower.kernel import Kernel, constant_rows
from plena_jax.lower.tensors import Rows, Tensor, round_up, row_unit, vram_rows

#: The most query rows whose running values FP SRAM holds at once.
_MOST_ROWS = 256
#: What M_BTMM multiplies products with: a state register that no instruction writes.
BMM_SCALE = 0.25
#: Head slots that V_MASK has bits for.
_MASKED_SLOTS = 32


@dataclass(frozen=True)
class Lanes:
    """Where the columns of a head lie in blocks of lanes.

    Attributes:
        start, size: first column and number of columns.
        width: lanes of a block.
    """

    start: int
    size: int
    width: int

    @property
    def block(self) -> int:
        """The first block."""
        return self.start // self.width

    @property
    def lane(self) -> int:
        """The lane of the first column."""
        return self.start % self.width

    @property
    def blocks(self) -> int:
        """Blocks that hold columns of the head."""
        return -(-(self.lane + self.size) // self.width)

    @property
    def whole(self) -> bool:
        """Whether the head has its blocks for itself."""
        return self.lane == 0 and self.size % self.width == 0

    @property
    def columns(self) -> slice:
        """The columns."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Geometry:
    """What is static in one attention.

    Attributes:
        config: the machine.
        rows, keys: query rows, keys that count.
        size: columns of a head.
        heads, kv_heads: of queries; of keys and values.
        scale: of scores.
        causal, window, offset: which keys a query sees.
        masked: whether a mask is added to scores.
    """

    config: MachineConfig
    rows: int
    keys: int
    size: int
    heads: int
    kv_heads: int
    scale: float
    causal: bool
    window: int | None
    offset: int
    masked: bool

    @classmethod
    def of(cls, config: MachineConfig, q: Any, k: Any, masked: bool = False, **attributes: Any) -> Geometry:
        """From matrices, or whatever else has a shape, and the attributes of the operator."""
        heads = attributes["heads"]
        size = q.shape[1] // heads
        scale, kv_length = attributes["scale"], attributes["kv_length"]
        return cls(
            config,
            q.shape[0],
            k.shape[0] if kv_length is None else kv_length,
            size,
            heads,
            attributes["kv_heads"] or heads,
            1 / math.sqrt(size) if scale is None else scale,
            attributes["causal"],
            attributes["window"],
            attributes["query_offset"],
            masked,
        )

    @cached_property
    def group(self) -> int:
        """Query rows whose keys are looked at together."""
        unit = row_unit(self.config)
        return max(unit, min(self.config.mlen, _MOST_ROWS) // unit * unit)

    @cached_property
    def stacked(self) -> int:
        """Query heads that are taken as more rows of one, as they have the same keys: products take BLEN rows at once.

        With a mask, which would have to be repeated, one; also where M_BTMM takes the heads of a block together.
        """
        shared = 1 if self.batched else self.heads // self.kv_heads
        return shared if not self.masked and shared * self.rows <= self.group else 1

    @cached_property
    def _in_slots(self) -> bool:
        """Whether each head is some head slots of one block: V_MASK selects them, and M_MM_WO writes them alone."""
        config = self.config
        heads = [place(head) for head in range(self.heads) for place in (self.query, self.key)]
        fits = self.size < config.mlen and not self.size % math.lcm(config.hlen, config.blen)
        return fits and config.mlen // config.hlen <= _MASKED_SLOTS and all(head.blocks == 1 for head in heads)

    @cached_property
    def batched(self) -> bool:
        """Whether a head is a head slot: M_BTMM makes the scores of all query heads of a block with one head of keys.

        Those are multiplied with ``BMM_SCALE`` already.
        """
        return self._in_slots and self.size == self.config.hlen and self.config.heads_match

    @property
    def direct(self) -> bool:
        """Whether results of a head are made where they belong, among those of other heads."""
        return self._in_slots and self.stacked == 1

    @property
    def factor(self) -> float:
        """What scores of products are multiplied with."""
        return self.scale / BMM_SCALE if self.batched else self.scale

    @property
    def stack(self) -> int:
        """Rows of the largest group, of all heads that are taken together."""
        return min(self.group, self.rows) * self.stacked

    @property
    def groups(self) -> list[tuple[int, int]]:
        """First row and number of rows of each group."""
        return [(first, min(self.group, self.rows - first)) for first in range(0, self.rows, self.group)]

    def seen(self, first: int, rows: int, start: int, stop: int) -> np.ndarray:
        """bool [rows, stop - start]: which keys queries from row ``first`` on see."""
        positions, keys = self.offset + first + np.arange(rows)[:, None], np.arange(start, stop)[None]
        seen = np.broadcast_to(keys < self.keys, (rows, stop - start))
        if self.causal:
            seen = seen & (keys <= positions)
        if self.window is not None:
            seen = seen & (keys > positions - self.window)
        return seen

    def tiles(self, first: int, rows: int) -> list[tuple[int, np.ndarray | None]]:
        """Tiles of keys that some query of a group sees, with what it sees of them unless that is all."""
        lanes = self.config.mlen
        found = ((t, self.seen(first, rows, t * lanes, (t + 1) * lanes)) for t in range(-(-self.keys // lanes)))
        return [(tile, None if seen.all() else seen) for tile, seen in found if seen.any()]

    def query(self, head: int) -> Lanes:
        """Columns of a query head, and of its result."""
        return Lanes(head * self.size, self.size, self.config.mlen)

    def key(self, head: int) -> Lanes:
        """Columns of the keys and values of a query head."""
        return Lanes(head // (self.heads // self.kv_heads) * self.size, self.size, self.config.mlen)


@dataclass(frozen=True)
class Room:
    """Rows of the workspace; each field is where that part begins.

    Attributes:
        held: rows that a group takes.
        scores: of a group of queries and a tile of keys; then their shares. Of each head slot, if M_BTMM makes them.
        part: what a tile adds to the result; then the result in the lanes of its head.
        query, result: in the lanes of the head of keys. For M_BTMM queries of a block, with rows up to MLEN.
        lanes: ones in the lanes of a head.
        mask: a tile of a mask that is in HBM.
        patterns: which keys are seen, and what is added to scores for that.
        end: the size of all.
    """

    held: int
    scores: int
    part: int
    query: int
    result: int
    lanes: int
    mask: int
    patterns: int
    end: int

    @classmethod
    def of(cls, g: Geometry, has_mask: bool, sinks: Tensor | None) -> Room:
        """The parts that an attention needs."""
        unit = row_unit(g.config)
        # Whole transfers and products write behind the last head.
        rows = min(g.group, g.rows)
        held = round_up(g.stack - rows + round_up(rows, unit), unit)
        heads = [place(head) for head in range(g.heads) for place in (g.query, g.key)]
        blocks = max(head.blocks for head in heads)
        apart = 0 if g.stacked == 1 and all(head.whole for head in heads) else held * blocks
        scores, query, result, lanes = held, apart, 0 if g.direct else apart, unit * blocks if apart else 0
        if g.batched:
            scores, lanes = g.config.broadcast_amount * g.config.mlen, 0
            query = 0 if all(rows == g.config.mlen for _, rows in g.groups) else g.config.mlen
        patterns = max(sum(2 * rows for rows in _pattern_rows(g, first, count)) for first, count in g.groups)
        sizes = [scores, held * blocks, query, result, lanes, held if has_mask else 0, patterns]
        if sinks is not None:
            # Before anything else: a product, a mask of one lane, and the sinks if they are in HBM.
            more = vram_rows(g.config, sinks.shape) if sinks.place == "hbm" else 0
            sizes[-1] = max(sizes[-1], 1 + unit + more)
        starts = np.cumsum([0, *sizes]).tolist()
        return cls(held, *starts)

    def rows(self, k: Kernel, first: int, rows: int, blocks: int = 1, held: int | None = None) -> Rows:
        """A matrix in the workspace, from its row ``first`` on; ``held`` rows from block to block."""
        lanes = k.config.mlen
        pitch = (self.held if held is None else held) * lanes
        return Rows("workspace", k.scratch + first * lanes, (rows, blocks * lanes), lanes, pitch)


def _pattern_rows(g: Geometry, first: int, count: int) -> list[int]:
    """Rows of vector SRAM of each pattern of a group."""
    return [constant_rows(g.config, len(pattern)) for pattern in patterns_of(g, first, count).values()]


def patterns_of(g: Geometry, first: int, count: int) -> dict[bytes, np.ndarray]:
    """What a group sees of tiles that it does not see wholly, equal ones once; one row if it is the same for all."""
    found = [pattern_of(g, seen) for _, seen in g.tiles(first, count) if seen is not None]
    return {key_of(pattern): pattern for pattern in found}


def pattern_of(g: Geometry, seen: np.ndarray) -> np.ndarray:
    """What queries see of a tile, of all heads that are taken together: one row if it is the same for all."""
    return seen[:1] if (seen == seen[:1]).all() else np.tile(seen, (g.stacked, 1))


def key_of(pattern: np.ndarray) -> bytes:
    """The same for equal patterns."""
    return repr(pattern.shape).encode() + pattern.tobytes()
