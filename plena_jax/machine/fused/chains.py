"""Chains of M_MM, M_TMM and M_MV: what adds up in m_accum and v_accum between two write-outs.

A chain whose terms all take the same columns of their tiles is a block of a *product*: whole rows times whole tiles,
one after the other. Its other columns belong to other chains, or are computed for nothing. What is written out are
blocks of such rows. Chains that mix columns, or go on from a sum that is there already, are run one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plena_jax.machine.fused.accesses import Accesses, single_blocks, single_vectors
from plena_jax.machine.fused.families import Family
from plena_jax.machine.fused.resources import Ints
from plena_jax.machine.record import Record


class Terms(NamedTuple):
    """Records that add to products, ordered by chain.

    Attributes:
        chain: number of the chain.
        key: of the record.
        row: [n, rows], VRAM rows; of vectors the same row is there once.
        tile: resources.
        transposed: 0 or 1.
    """

    chain: Ints
    key: Ints
    row: Ints
    tile: Ints
    transposed: Ints


class Blocks(NamedTuple):
    """What write-outs put into vector SRAM: blocks of BLEN lanes, one row each, in order.

    Attributes:
        resource: of the row.
        key: of the record.
        block: which lanes.
        chain: of products, -1 of anything else.
        row: of the chain's rows, or of the accumulator's.
        column: block of the product's columns.
        held: whether the accumulator itself is written (else zeros, where ``chain`` is -1).
        vector: whether that is v_accum.
    """

    resource: Ints
    key: Ints
    block: Ints
    chain: Ints
    row: Ints
    column: Ints
    held: Ints
    vector: Ints


@dataclass(frozen=True)
class Chains:
    """All chains that are products, and all write-outs.

    Attributes:
        matrix, vector: terms of chains of BLEN rows, and of one row. Numbers of chains are counted apart.
        matrix_column, vector_column: the block of columns of each chain.
        blocks: of both, chains of vectors behind those of matrices.
        pending: for m_accum and v_accum the chain that is not written out, -1 if none.
    """

    matrix: Terms
    vector: Terms
    matrix_column: Ints
    vector_column: Ints
    blocks: Blocks
    pending: tuple[int, int]


def chains(a: Accesses) -> Chains:
    """Find the chains of a trace, and add the operations of those that are run one by one."""
    matrix, matrix_column, first, matrix_pending = _matrix(a)
    vector, vector_column, second, vector_pending = _vector(a)
    count = len(matrix_column)
    second = second._replace(chain=np.where(second.chain < 0, -1, second.chain + count))
    both = Blocks(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
    order = np.argsort(both.key, kind="stable")
    blocks = Blocks(*(column[order] for column in both))
    pending = matrix_pending, vector_pending + count if vector_pending >= 0 else -1
    return Chains(matrix, vector, matrix_column, vector_column, blocks, pending)


class _Found(NamedTuple):
    """Terms and write-outs by chain: which chains are products."""

    terms: Ints
    outs: Ints
    #: Chain of each.
    of_terms: Ints
    of_outs: Ints
    #: For each chain its number among products, or -1; and its terms.
    product: Ints
    length: Ints


def _find(a: Accesses, terms: Ints, outs: Ints, column: Ints, can_be: Ints) -> _Found:
    """Chains of ``terms``, which lie between ``outs``; indices of records, ascending."""
    of_terms = np.searchsorted(outs, terms)
    count = len(outs) + 1
    length = np.bincount(of_terms, minlength=count)
    first = np.cumsum(length) - length
    some = np.nonzero(length)[0]
    good = np.zeros(count, bool)
    if len(some):
        starts = first[some]
        same = np.minimum.reduceat(column, starts) == np.maximum.reduceat(column, starts)
        good[some] = same & np.logical_and.reduceat(can_be, starts) & (a.column(Record.FRESH, terms[starts]) == 1)
    return _Found(terms, outs, of_terms, np.arange(len(outs)), np.where(good, np.cumsum(good) - 1, -1), length)


def _sorted(*parts: Ints) -> Ints:
    return np.sort(np.concatenate(parts))


def _none() -> Ints:
    return np.zeros(0, np.int64)


def _matrix(a: Accesses) -> tuple[Terms, Ints, Blocks, int]:
    config = a.config
    plain, turned, outs = (a.of.get(name, _none()) for name in ("m_mm", "m_tmm", "m_mm_wo"))
    terms = _sorted(plain, turned)
    transposed = np.isin(terms, turned)
    rs1, rs2 = a.column(Record.RS1, terms), a.column(Record.RS2, terms)
    cell, x = np.where(transposed, rs2, rs1), np.where(transposed, rs1, rs2)
    column = cell % config.mlen
    found = _find(a, terms, outs, column, column % config.blen == 0)
    in_product = found.product[found.of_terms] >= 0
    alone = ~in_product
    for family, which in ((Family.MM, alone & ~transposed), (Family.TMM, alone & transposed)):
        if which.any():
            single_blocks(a, family, terms[which])
    rows = x[in_product, None] + np.arange(config.blen)
    result = _terms(a, found, in_product, rows, cell, transposed)
    columns = _columns(found, in_product, column, config.blen)
    return result, columns, _blocks(a, found, config.blen, columns, vector=False), _pending(found)


def _vector(a: Accesses) -> tuple[Terms, Ints, Blocks, int]:
    config = a.config
    plain, turned, outs = (a.of.get(name, _none()) for name in ("m_mv", "m_tmv", "m_mv_wo"))
    terms = _sorted(plain, turned)
    is_turned = np.isin(terms, turned)
    column = a.column(Record.RS1_LANE, terms)
    # M_TMV adds in another order.
    found = _find(a, terms, outs, column, ~is_turned)
    in_product = found.product[found.of_terms] >= 0
    alone = ~in_product
    for family, which in ((Family.MV, alone & ~is_turned), (Family.TMV, alone & is_turned)):
        if which.any():
            single_vectors(a, family, terms[which])
    rows = a.column(Record.RS2, terms)[in_product, None]
    result = _terms(a, found, in_product, rows, a.column(Record.RS1, terms), np.zeros(len(terms), bool))
    columns = _columns(found, in_product, column, config.blen)
    return result, columns, _blocks(a, found, 1, columns, vector=True), _pending(found)


def _terms(a: Accesses, found: _Found, which: Ints, rows: Ints, cell: Ints, transposed: Ints) -> Terms:
    return Terms(
        chain=found.product[found.of_terms[which]],
        key=found.terms[which],
        row=rows + a.resources.vram,
        tile=a.tile(cell[which]),
        transposed=transposed[which].astype(np.int64),
    )


def _columns(found: _Found, which: Ints, column: Ints, size: int) -> Ints:
    """The block of columns of each product."""
    columns = np.zeros(int(found.product.max(initial=-1)) + 1, np.int64)
    columns[found.product[found.of_terms[which]]] = column[which] // size
    return columns


def _pending(found: _Found) -> int:
    """The product that is not written out, or -1."""
    return int(found.product[-1]) if found.length[-1] else -1


def _blocks(a: Accesses, found: _Found, rows: int, columns: Ints, vector: bool) -> Blocks:
    """The rows of write-outs."""
    config = a.config
    index, row = np.repeat(found.outs, rows), np.tile(np.arange(rows), len(found.outs))
    target = a.column(Record.RD, index)
    if not vector:
        # Addresses wrap at 2**32 elements (see ``written_row``).
        stride = a.column(Record.MASK, index) & 0xFFFFFFFF
        stride = np.where(a.column(Record.PARTS, index) == 1, 1, stride)
        target = ((target + row * stride) * config.mlen & 0xFFFFFFFF) // config.mlen
    chain = np.repeat(found.product[found.of_outs], rows)
    # A chain without terms writes zeros, or what has been there from the start.
    held = np.repeat((found.length[found.of_outs] > 0) | (a.column(Record.FRESH, found.outs) == 0), rows)
    return Blocks(
        resource=a.resources.vram + target,
        key=index,
        block=a.column(Record.RD_LANE, index) // config.blen,
        chain=chain,
        row=row,
        column=np.where(chain >= 0, columns[np.maximum(chain, 0)] if len(columns) else 0, 0),
        held=held & (chain < 0),
        vector=np.full(len(index), vector),
    )
