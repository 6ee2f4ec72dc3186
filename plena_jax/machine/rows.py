"""The rows of HBM that a resolved program transfers, and whether it uses every byte in one way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from plena_jax.disassembler import describe_word
from plena_jax.errors import EngineError
from plena_jax.machine.record import Record
from plena_jax.machine.resolved import Trace
from plena_jax.machine.semantics import SEMANTICS, Stage, branch_index
from plena_jax.machine.semantics.matrix import wide_rows
from plena_jax.machine.transfer import BLOCK, Transfer, Transfers, element_address, scale_address

#: Transfers and what they are in :class:`Transfers`.
_MNEMONICS = {"H_PREFETCH_M": "matrix", "H_PREFETCH_V": "vector", "H_STORE_V": "vector"}


@dataclass(frozen=True)
class TransferredRows:
    """Rows that H_* instructions move, each distinct one once.

    Attributes:
        trace: of what program.
        formats: the four transfers of the configuration: weight, KV, activation, KV.
        which: int [n], index in ``formats``.
        elements, scales: int64 [n], addresses in bytes.
        pc: int [n], of the first instruction that moves the row.
        stored: bool [n].
    """

    trace: Trace
    formats: tuple[Transfer, ...]
    which: np.ndarray
    elements: np.ndarray
    scales: np.ndarray
    pc: np.ndarray
    stored: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> TransferredRows:
        """The rows of a resolved program."""
        transfers, pieces = Transfers.of(trace.config), []
        formats = (*transfers.matrix, *transfers.vector)
        for mnemonic, unit in _MNEMONICS.items():
            (semantic,) = SEMANTICS[mnemonic]
            records = trace.records
            here = records[:, Record.STAGE] == semantic.stage
            records = records[here & (records[:, Record.BRANCH] == branch_index(semantic))]
            if len(records):
                pieces.append(_expanded(records, semantic.stage, unit == "vector", formats, trace))
        table = np.concatenate(pieces) if pieces else np.zeros((0, 5), np.int64)
        # Sorted by pc within equal rows, so that the first is kept.
        table = table[np.argsort(table[:, 4], kind="stable")]
        _, first = np.unique(table[:, :4], axis=0, return_index=True)
        which, stored, elements, scales, pc = table[np.sort(first)].T
        return cls(trace, formats, which, elements, scales, pc, stored.astype(bool))

    def by_format(self) -> Iterator[tuple[Transfer, np.ndarray, np.ndarray]]:
        """Each format with the byte addresses int64 [n, bytes] of its rows' elements and scales."""
        for index, transfer in enumerate(self.formats):
            here = self.which == index
            elements = self.elements[here][:, None] + np.arange(transfer.element_bytes)
            yield transfer, elements, self.scales[here][:, None] + np.arange(transfer.scale_bytes)

    def check(self) -> None:
        """Whether values can stand for the bytes.

        Raises:
            EngineError: a byte is an element here and a scale there, or an element of two formats or with two scales;
                or scales go beyond the 64-byte block that a prefetch reads. Names the instruction.
        """
        for index in range(len(self.formats)):
            transfer, here = self.formats[index], (self.which == index) & ~self.stored
            crossing = here & (self.scales % BLOCK + transfer.scale_bytes > BLOCK)
            if crossing.any():
                self._refuse(int(np.argmax(crossing)), "reads scales across a 64-byte block, where they are lost")
        uses = [self._uses(index) for index in range(len(self.formats))]
        table = np.concatenate(uses) if uses else np.zeros((0, 3), np.int64)
        distinct, first = np.unique(table[:, :2], axis=0, return_index=True)
        again = np.nonzero(distinct[1:, 0] == distinct[:-1, 0])[0]
        if len(again):
            row = int(table[first[again[0] + 1], 2])
            address = int(distinct[again[0], 0])
            self._refuse(row, f"uses byte 0x{address:X} in another way than the program does elsewhere")

    def _uses(self, index: int) -> np.ndarray:
        """int64 [n, 3]: bytes that rows of one format take, what each is used as, and the number of the row."""
        transfer = self.formats[index]
        here = np.nonzero(self.which == index)[0]
        fmt = [t.fmt for t in self.formats].index(transfer.fmt)
        offset = np.arange(transfer.element_bytes)
        elements = (self.elements[here][:, None] + offset).reshape(-1)
        # An element is known by format, place in the element, and where its scale is.
        scale = (
            self.scales[here][:, None] + offset // transfer.ratio if transfer.scale_bytes else np.zeros((len(here), 1))
        )
        phase = offset % max(transfer.bits // 8, 1)
        use = 1 + fmt + 4 * phase + 16 * (1 + np.broadcast_to(scale, (len(here), len(offset))))
        rows = np.repeat(here, transfer.element_bytes)
        table = np.stack([elements, use.reshape(-1).astype(np.int64), rows], axis=1)
        scales = (self.scales[here][:, None] + np.arange(transfer.scale_bytes)).reshape(-1)
        return np.concatenate(
            [table, np.stack([scales, np.zeros_like(scales), np.repeat(here, transfer.scale_bytes)], axis=1)]
        )

    def _refuse(self, row: int, what: str) -> None:
        pc = int(self.pc[row])
        text = describe_word(int(self.trace.program.words[pc]))
        raise EngineError(f"values face: pc {pc}: {text}: {what}; only bytes can hold this")


def _expanded(
    records: np.ndarray, stage: Stage, is_vector: bool, formats: tuple[Transfer, ...], trace: Trace
) -> np.ndarray:
    """int64 [n, 5]: format, stored, element and scale address, and pc of each row of some records."""
    per_part = wide_rows(trace.config) if stage is Stage.WIDE else 1
    counts = np.maximum(records[:, Record.PARTS], 1) * per_part
    of = np.repeat(np.arange(len(records)), counts)
    row = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    unsigned = records.view(np.uint32)
    column = lambda name: unsigned[of, name]
    which = np.where(records[of, Record.ARGUMENT] != 0, 1, 0) + 2 * is_vector
    ratio = np.array([t.ratio for t in formats], np.uint32)[which]
    with np.errstate(over="ignore"):
        stride, number = column(Record.MASK), row.astype(np.int32)
        low, high = element_address(column(Record.RS1), column(Record.RS1_LANE), stride, number)
        scale_low, scale_high = scale_address(column(Record.RS2), column(Record.RS2_LANE), stride, number, ratio)
    wide = lambda low, high: low.astype(np.int64) | high.astype(np.int64) << 32
    stored = np.full(len(of), stage is Stage.STORE)
    return np.stack([which, stored, wide(low, high), wide(scale_low, scale_high), records[of, Record.PC]], axis=1)
