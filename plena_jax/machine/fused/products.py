"""Products of rows and tiles: what chains of M_MM and M_MV add up, and which of them are the same."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from plena_jax.errors import EngineError
from plena_jax.machine.fused.chains import Terms
from plena_jax.machine.fused.resources import Ints


class Products(NamedTuple):
    """Different rows of products: what a row is multiplied with, one tile after the other.

    Attributes:
        first: of each, its first term among ``rows``.
        length: its terms.
        rows, tiles: version of the row, and version of the tile times 2 plus whether it is transposed, of all terms.
        sequence: equal where the tiles are.
        key: when it can be known at the latest.
    """

    first: Ints
    length: Ints
    rows: Ints
    tiles: Ints
    sequence: Ints
    key: Ints


def _powers(count: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(1, 1 << 63, count, dtype=np.uint64) | np.uint64(1)


def _mixed(values: Ints) -> np.ndarray:
    """Well spread uint64."""
    mixed = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return mixed * np.uint64(0xBF58476D1CE4E5B9)


class ChainRows(NamedTuple):
    """Rows of chains: chain after chain, those of matrices before those of vectors."""

    first: Ints
    length: Ints
    #: Of all terms of all rows: versions of rows, and codes of tiles.
    rows: Ints
    tiles: Ints
    key: Ints
    #: The first row of each chain.
    of_chain: Ints


def chain_rows(terms: Terms, rows: Ints, tiles: Ints, chains: int) -> ChainRows:
    """``rows`` [n, r] and ``tiles`` [n] are versions of the terms."""
    each = rows.shape[1]
    length = np.bincount(terms.chain, minlength=chains)
    start = np.cumsum(length) - length
    # Row r of a chain has its terms one after the other.
    position = np.arange(len(terms.chain)) - start[terms.chain]
    place = (start[terms.chain] * each)[:, None] + np.arange(each) * length[terms.chain][:, None] + position[:, None]
    flat_rows, flat_tiles = np.zeros(rows.size, np.int64), np.zeros(rows.size, np.int64)
    flat_rows[place] = rows
    flat_tiles[place] = (tiles * 2 + terms.transposed)[:, None]
    first = (start * each)[:, None] + np.arange(each) * length[:, None]
    key = terms.key[start + length - 1] if chains else np.zeros(0, np.int64)
    return ChainRows(
        first.reshape(-1),
        np.repeat(length, each),
        flat_rows,
        flat_tiles,
        np.repeat(key, each),
        np.arange(chains) * each,
    )


def join(a: ChainRows, b: ChainRows) -> ChainRows:
    """One after the other."""
    b = b._replace(first=b.first + len(a.rows), of_chain=b.of_chain + len(a.first))
    return ChainRows(*(np.concatenate(pair) for pair in zip(a, b, strict=True)))


def distinct(rows: ChainRows, pending: Ints) -> tuple[Products, Ints]:
    """Products, and the one of each row of a chain. Rows that are ``pending`` are their own."""
    if not len(rows.first):
        empty = np.zeros(0, np.int64)
        return Products(empty, empty, empty, empty, empty, empty), empty
    position = np.arange(len(rows.rows)) - np.repeat(rows.first, rows.length)
    most = int(rows.length.max())
    total = lambda values, seed: np.add.reduceat(_mixed(values) * _powers(most, seed)[position], rows.first)
    tiles = total(rows.tiles, 1) + _mixed(rows.length)
    both = tiles ^ _mixed(total(rows.rows, 2).view(np.int64))
    both[pending] += np.uint64(1) + np.arange(len(pending), dtype=np.uint64)
    _, chosen, of = np.unique(both, return_index=True, return_inverse=True)
    sequence = np.unique(tiles[chosen], return_inverse=True)[1]
    # Equal sums of mixed numbers stand for equal sequences, which is looked at.
    like = np.repeat(rows.first[chosen][of], rows.length) + position
    if not ((rows.rows[like] == rows.rows).all() and (rows.tiles[like] == rows.tiles).all()):
        raise EngineError("fused: two different products have the same fingerprint; engine='resolved' runs this")
    key = np.full(len(chosen), np.iinfo(np.int64).max)
    np.minimum.at(key, of, rows.key)
    products = Products(rows.first[chosen], rows.length[chosen], rows.rows, rows.tiles, sequence, key)
    return products, of
