"""The matrix unit (docs/machine.md 4.2) on the machine of section 11: tiles of 8 x 8, BLEN 2, two head slots of 4."""

from __future__ import annotations

import numpy as np
import pytest

import plena_jax
from plena_jax import Fault, ProgramError

from .machine_helpers import F32, INF, NAN, Machine, at, bf16, covers, hexes, misuses, row, same, word

#: Rows and a tile of small integers: every product and sum of them is exact.
X = np.array([[(5 * r + 3 * c) % 9 - 4 for c in range(8)] for r in range(48)], F32)
W = np.array([[(4 * r + 7 * c) % 11 - 5 for c in range(8)] for r in range(8)], F32)
W2 = W[::-1] + 1
VRAM = {r: X[r] for r in range(48)}
TILES = {0: W, 3: W2}
OUTSIDE = "up to 376 (1 of 48 rows from there)"
ROW = "a multiple of 8"


# -- M_MM and M_TMM ---------------------------------------------------------------------------------------------------


@covers("M_MM")
@pytest.mark.parametrize("block", range(4))
def test_m_mm_multiplies_two_rows_with_two_columns_and_adds(machine: Machine, block: int) -> None:
    start = np.array([[1, 2], [3, 4]])
    state = machine.run("M_MM 0, gp1, gp2", vram=VRAM, mram=TILES, gp={1: 16 * block, 2: 8 * 5}, m_accum=start)
    same(state.m_accum, start + X[5:7] @ W[:, 2 * block : 2 * block + 2])
    assert machine.written(state) == {"m_accum"}


@covers("M_MM")
def test_m_mm_by_hand(machine: Machine) -> None:
    # Rows [1 .. 8] and [11 .. 18] times columns 2, 3 of the unit matrix with 10 at (0, 3).
    tile = np.eye(8)
    tile[0, 3] = 10
    vram = {0: range(1, 9), 1: range(11, 19)}
    state = machine.run("M_MM 0, gp1, gp0", vram=vram, mram={0: tile}, gp={1: 16})
    same(state.m_accum, [[3, 14], [13, 124]])


@covers("M_MM")
def test_m_mm_reaches_the_last_tile_column_and_rows(machine: Machine) -> None:
    state = machine.run("M_MM 0, gp1, gp2", vram=VRAM, mram=TILES, gp={1: 3 * 64 + 48, 2: 46 * 8})
    same(state.m_accum, X[46:48] @ W2[:, 6:8])


@covers("M_MM")
def test_m_mm_ignores_rd(machine: Machine) -> None:
    state = machine.run("M_MM 15, gp1, gp2", vram=VRAM, mram=TILES, gp={1: 16, 2: 8, 15: 7})
    same(state.m_accum, X[1:3] @ W[:, 2:4])


@covers("M_MM")
def test_m_mm_may_use_one_register_for_both_operands(machine: Machine) -> None:
    state = machine.run("M_MM 0, gp1, gp1", vram=VRAM, mram=TILES, gp={1: 192})
    same(state.m_accum, X[24:26] @ W2[:, 0:2])


@covers("M_MM", "M_TMM")
@pytest.mark.parametrize("line", ["M_MM 0, gp2, gp1", "M_TMM 0, gp1, gp2"])
def test_products_are_not_rounded(machine: Machine, line: str) -> None:
    tile = np.eye(8)
    tile[0, 0] = 1 + 2.0**-20
    state = machine.run(f"{line}\n{line}\n{_other(line)}", vram={0: [3] + [0] * 7}, mram={0: tile}, gp={1: 0, 2: 0})
    same(state.m_accum, [[3 * 3 * (1 + 2.0**-20), 0], [0, 0]])


def _other(line: str) -> str:
    return "M_TMM 0, gp1, gp2" if line.startswith("M_MM") else "M_MM 0, gp2, gp1"


@covers("M_MM")
def test_m_mm_keeps_subnormal_numbers(machine: Machine) -> None:
    tile = np.zeros((8, 8), F32)
    tile[0, 0], tile[1, 1] = 2.0**-40, 1
    vram = {0: [2.0**-100, 0, 0, 0, 0, 0, 0, 0], 1: [0, 2.0**-130, 0, 0, 0, 0, 0, 0]}
    state = machine.run("M_MM 0, gp1, gp0", vram=vram, mram={0: tile})
    same(state.m_accum, np.array([[2.0**-140, 0], [0, 2.0**-130]]))


@covers("M_TMM")
def test_m_tmm_keeps_subnormal_elements_of_the_tile(machine: Machine) -> None:
    tile = np.zeros((8, 8), F32)
    tile[0, 3] = 2.0**-140
    state = machine.run("M_TMM 0, gp0, gp1", vram={0: [0, 0, 0, 2, 0, 0, 0, 0]}, mram={0: tile})
    same(state.m_accum, np.array([[2.0**-139, 0], [0, 0]]))


@covers("M_MM")
def test_m_mm_with_infinity_nan_and_overflow(machine: Machine) -> None:
    tile = np.zeros((8, 8), F32)
    tile[0, 0], tile[1, 1] = 1, 2
    top = bf16("7F7F")[0]
    state = machine.run("M_MM 0, gp1, gp0", vram={0: [-INF, 1] + [0] * 6, 1: [1, top] + [0] * 6}, mram={0: tile})
    accum = np.asarray(state.m_accum)
    assert accum[0, 0] == -INF  # -inf * 1
    assert np.isnan(accum[0, 1])  # -inf * 0
    assert accum[1, 0] == 1
    assert accum[1, 1] == INF  # twice the largest BF16 number
    state = machine.run("M_MM 0, gp1, gp0", vram={0: [NAN] + [0] * 7}, mram={0: tile})
    assert np.isnan(np.asarray(state.m_accum)[0]).all()
    same(state.m_accum[1], [0, 0])


@covers("M_MM")
def test_m_mm_comes_back_from_overflow_in_another_product(machine: Machine) -> None:
    # What overflowed stays infinite however much is taken off again.
    tile = np.zeros((8, 8), F32)
    tile[0, 0], tile[0, 2] = 3e38, -3e38
    text = "M_MM 0, gp0, gp0\nM_MM 0, gp0, gp0\nM_MM 0, gp1, gp0"
    state = machine.run(text, vram={0: [1] + [0] * 7}, mram={0: tile}, gp={1: 16})
    same(state.m_accum, [[INF, 0], [0, 0]])
    # In the other order there is no overflow.
    state = machine.run(
        "M_MM 0, gp0, gp0\nM_MM 0, gp1, gp0\nM_MM 0, gp0, gp0", vram={0: [1] + [0] * 7}, mram={0: tile}, gp={1: 16}
    )
    same(state.m_accum, np.array([[3e38, 0], [0, 0]]))


@covers("M_TMM")
@pytest.mark.parametrize("block", range(4))
def test_m_tmm_multiplies_with_two_rows_of_the_tile_and_adds(machine: Machine, block: int) -> None:
    start = np.array([[1, -2], [3, -4]])
    gp = {1: 8 * 5, 2: 16 * block}
    state = machine.run("M_TMM 0, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, m_accum=start)
    same(state.m_accum, start + X[5:7] @ W[2 * block : 2 * block + 2].T)
    assert machine.written(state) == {"m_accum"}


@covers("M_TMM")
def test_m_tmm_by_hand(machine: Machine) -> None:
    # Rows [1 .. 8] and [11 .. 18] times rows 2, 3 of the unit matrix with 10 at (3, 0).
    tile = np.eye(8)
    tile[3, 0] = 10
    vram = {0: range(1, 9), 1: range(11, 19)}
    state = machine.run("M_TMM 0, gp0, gp1", vram=vram, mram={0: tile}, gp={1: 16})
    same(state.m_accum, [[3, 14], [13, 124]])


@covers("M_TMM")
def test_m_tmm_reaches_the_last_tile_row_and_rows_and_ignores_rd(machine: Machine) -> None:
    state = machine.run("M_TMM 9, gp1, gp2", vram=VRAM, mram=TILES, gp={1: 46 * 8, 2: 3 * 64 + 48})
    same(state.m_accum, X[46:48] @ W2[6:8].T)


@covers("M_TMM")
def test_m_tmm_may_use_one_register_for_both_operands(machine: Machine) -> None:
    state = machine.run("M_TMM 0, gp1, gp1", vram=VRAM, mram=TILES, gp={1: 192 + 16})
    same(state.m_accum, X[26:28] @ W2[2:4].T)


COLUMNS = "offset in the tile must be a multiple of BLEN * MLEN (multiples of 16 below 64 in a block of 64)"


@misuses("M_MM", "M_TMM")
@pytest.mark.parametrize(
    "matrix, vector, code, operand, value, limit",
    [
        (0, 4, Fault.MISALIGNED, "gp2", 4, ROW),
        (0, 47 * 8, Fault.OUT_OF_RANGE, "gp2", 376, "up to 368 (2 of 48 rows from there)"),
        (0, 48 * 8, Fault.OUT_OF_RANGE, "gp2", 384, "up to 368 (2 of 48 rows from there)"),
        (0, 0xFFFFFFF8, Fault.OUT_OF_RANGE, "gp2", 0xFFFFFFF8, "up to 368 (2 of 48 rows from there)"),
        (2, 0, Fault.MISALIGNED, "gp1", 2, COLUMNS),
        (8, 0, Fault.MISALIGNED, "gp1", 8, COLUMNS),
        (64 + 24, 0, Fault.MISALIGNED, "gp1", 88, COLUMNS),
        (256, 0, Fault.OUT_OF_RANGE, "gp1", 256, "up to 255 (1 of 4 tiles from there)"),
    ],
)
def test_bad_addresses_of_m_mm_and_m_tmm(
    machine: Machine, matrix: int, vector: int, code: Fault, operand: str, value: int, limit: str
) -> None:
    contents = {"vram": VRAM, "mram": TILES, "gp": {1: matrix, 2: vector}, "m_accum": [[1, 2], [3, 4]]}
    space = "VRAM" if operand == "gp2" else "MRAM"
    rule = f"misaligned {space} address" if code is Fault.MISALIGNED else f"{space} address out of range"
    for line in ("M_MM 0, gp1, gp2", "M_TMM 0, gp2, gp1"):
        machine.fault(line, code, operand=operand, value=value, limit=limit, rule=rule, **contents)


@misuses("M_MM")
def test_products_in_front_of_a_fault_are_done(machine: Machine) -> None:
    text = "M_MM 0, gp1, gp2\nS_ADDI_INT gp1, gp1, 16\nM_MM 0, gp1, gp2\nS_ADDI_INT gp1, gp1, 1\nM_MM 0, gp1, gp2"
    fault = machine.fault(
        text, Fault.MISALIGNED, operand="gp1", value=17, limit=COLUMNS, vram=VRAM, mram=TILES, gp={2: 8}
    )
    assert fault.pc == 4
    same(fault.state.m_accum, X[1:3] @ W[:, :2] + X[1:3] @ W[:, 2:4])


# -- M_MM_WO ----------------------------------------------------------------------------------------------------------

ACCUM = [[1, 2], [3, 4]]


@covers("M_MM_WO")
@pytest.mark.parametrize("offset", [0, 2, 4, 6])
def test_m_mm_wo_writes_two_lanes_of_two_rows_and_clears(machine: Machine, offset: int) -> None:
    state = machine.run("M_MM_WO gp1, 0, 5", vram=VRAM, gp={1: 8 * 20 + offset - 5}, m_accum=ACCUM)
    expected = X.copy()
    expected[20:22, offset : offset + 2] = ACCUM
    same(state.vram, expected)
    same(state.m_accum, np.zeros((2, 2)))
    assert machine.written(state) == {"vram[20]", "vram[21]", "m_accum"}


@covers("M_MM_WO")
def test_m_mm_wo_strides_over_rows(machine: Machine) -> None:
    state = machine.run("M_MM_WO gp1, gp2, 0", vram=VRAM, gp={1: 8 * 20, 2: 7}, m_accum=ACCUM)
    same(row(state, 20)[:2], [1, 2])
    same(row(state, 27)[:2], [3, 4])
    assert machine.written(state) == {"vram[20]", "vram[27]", "m_accum"}


@covers("M_MM_WO")
def test_m_mm_wo_with_field_0_has_stride_1_whatever_gp0_holds(machine: Machine) -> None:
    state = machine.run("M_MM_WO gp1, gp0, 0", vram=VRAM, gp={0: 5, 1: 8 * 20}, m_accum=ACCUM)
    assert machine.written(state) == {"vram[20]", "vram[21]", "m_accum"}


@covers("M_MM_WO")
def test_m_mm_wo_with_a_register_of_0_writes_one_row_and_the_last_result_wins(machine: Machine) -> None:
    state = machine.run("M_MM_WO gp1, gp2, 2", vram=VRAM, gp={1: 8 * 20, 2: 0}, m_accum=ACCUM)
    same(row(state, 20), [*X[20, :2], 3, 4, *X[20, 4:]])
    assert machine.written(state) == {"vram[20]", "m_accum"}


@covers("M_MM_WO")
def test_m_mm_wo_addresses_wrap_at_32_bits(machine: Machine) -> None:
    # gp1 + imm = 2**32 + 8, and a stride of 2**32 - 1 rows steps one row back.
    state = machine.run("M_MM_WO gp1, gp2, 24", vram=VRAM, gp={1: 0xFFFFFFF0, 2: 0xFFFFFFFF}, m_accum=ACCUM)
    same(row(state, 1)[:2], [1, 2])
    same(row(state, 0)[:2], [3, 4])
    assert machine.written(state) == {"vram[0]", "vram[1]", "m_accum"}
    # 2**29 rows of 8 elements are 2**32 elements: no step at all.
    state = machine.run("M_MM_WO gp1, gp2, 0", vram=VRAM, gp={1: 8, 2: 1 << 29}, m_accum=ACCUM)
    assert machine.written(state) == {"vram[1]", "m_accum"}


@covers("M_MM_WO")
def test_m_mm_wo_reaches_the_last_rows_and_lanes(machine: Machine) -> None:
    state = machine.run("M_MM_WO gp1, 0, 6", vram=VRAM, gp={1: 46 * 8}, m_accum=ACCUM)
    same(row(state, 47), [*X[47, :6], 3, 4])
    state = machine.run("M_MM_WO gp1, gp2, 6", vram=VRAM, gp={1: 0, 2: 47}, m_accum=ACCUM)
    same(row(state, 47), [*X[47, :6], 3, 4])
    same(row(state, 0), [*X[0, :6], 1, 2])


@covers("M_MM_WO")
def test_m_mm_wo_rounds_to_nearest_even(machine: Machine) -> None:
    accum = np.array([[1.00390625, 1.01171875], [3.4e38, -1e-40]])
    state = machine.run("M_MM_WO gp0, 0, 0", m_accum=accum)
    assert hexes(row(state, 0)[:2]) == "3F80 3F82"
    assert hexes(row(state, 1)[:2]) == "7F80 8001"


@covers("M_MM_WO")
def test_m_mm_wo_keeps_nan_payloads_of_the_other_lanes(machine: Machine) -> None:
    state = machine.run("M_MM_WO gp0, 0, 0", vram={0: bf16("0000 0000 7FC1 FFFF 8000 0001 7F81 7F80")}, m_accum=ACCUM)
    assert hexes(row(state, 0)) == "3F80 4000 7FC1 FFFF 8000 0001 7F81 7F80"


LANES = "offset in the row must be a multiple of BLEN (multiples of 2 below 8 in a block of 8)"


@misuses("M_MM_WO")
@pytest.mark.parametrize(
    "gp, code, operand, value, limit",
    [
        ({1: 160, 2: 1}, Fault.MISALIGNED, "gp1 + imm", 161, LANES),
        ({1: 383, 2: 1}, Fault.OUT_OF_RANGE, "gp1 + imm", 384, "up to 383 (1 of 48 rows from there)"),
        ({1: 0xFFFFFFF7, 2: 1}, Fault.OUT_OF_RANGE, "gp1 + imm", 0xFFFFFFF8, "up to 383 (1 of 48 rows from there)"),
        ({1: 159, 2: 28}, Fault.OUT_OF_RANGE, "gp2", 28, "48 rows (VECTOR_SRAM_SIZE)"),
        ({1: 7, 2: 0xFFFFFFFE}, Fault.OUT_OF_RANGE, "gp2", 0xFFFFFFFE, "48 rows (VECTOR_SRAM_SIZE)"),
    ],
)
def test_bad_addresses_of_m_mm_wo(
    machine: Machine, gp: dict[int, int], code: Fault, operand: str, value: int, limit: str
) -> None:
    text = "M_MM_WO gp1, gp2, 1"
    machine.fault(text, code, operand=operand, value=value, limit=limit, vram=VRAM, m_accum=ACCUM, gp=gp)


@misuses("M_MM_WO")
def test_m_mm_wo_without_stride_register_runs_past_the_last_row(machine: Machine) -> None:
    # The stride is the fixed 1 here: what is wrong is the destination, not gp0.
    machine.fault(
        "M_MM_WO gp1, gp0, 2",
        Fault.OUT_OF_RANGE,
        operand="gp1 + imm",
        value=378,
        limit="48 rows (VECTOR_SRAM_SIZE)",
        rule="out of range",
        vram=VRAM,
        m_accum=ACCUM,
        gp={0: 3, 1: 376},
    )


# -- M_MV, M_TMV, M_MV_WO ---------------------------------------------------------------------------------------------


@covers("M_MV")
@pytest.mark.parametrize("column", [0, 2, 4, 6])
def test_m_mv_multiplies_a_row_with_two_columns_and_adds(machine: Machine, column: int) -> None:
    gp = {1: 3 * 64 + column, 2: 8 * 9}
    state = machine.run("M_MV 0, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, v_accum=[10, 20])
    same(state.v_accum, [10, 20] + X[9] @ W2[:, column : column + 2])
    assert machine.written(state) == {"v_accum"}


@covers("M_MV")
def test_m_mv_by_hand_at_the_last_row_with_one_register_and_any_rd(machine: Machine) -> None:
    tile = np.zeros((8, 8))
    tile[1, 0], tile[7, 1] = 2, -1
    state = machine.run("M_MV 3, gp1, gp1", vram={8: range(1, 9)}, mram={1: tile}, gp={1: 64})
    same(state.v_accum, [4, -8])
    state = machine.run("M_MV 0, gp1, gp2", vram={47: range(1, 9)}, mram={1: tile}, gp={1: 64, 2: 376})
    same(state.v_accum, [4, -8])


@covers("M_MV", "M_TMV")
def test_m_mv_and_m_tmv_with_special_numbers(machine: Machine) -> None:
    tile = np.zeros((8, 8), F32)
    tile[0, 0] = tile[1, 1] = 1
    for line in ("M_MV 0, gp0, gp1", "M_TMV 0, gp0, gp1"):
        state = machine.run(line, vram={0: [2.0**-130, 2.0**-133, 0, 0, 0, 0, 0, 0]}, mram={0: tile})
        same(state.v_accum, np.array([2.0**-130, 2.0**-133]))
        state = machine.run(line, vram={0: [INF] + [0] * 7}, mram={0: tile})
        assert np.asarray(state.v_accum)[0] == INF
        assert np.isnan(np.asarray(state.v_accum)[1])
        state = machine.run(line, vram={0: [1 + 2.0**-7, 1] + [0] * 6}, mram={0: tile * F32(1 + 2.0**-16)})
        same(state.v_accum, np.array([(1 + 2.0**-7) * (1 + 2.0**-16), 1 + 2.0**-16]))


@misuses("M_MV")
@pytest.mark.parametrize(
    "matrix, vector, code, operand, value, limit",
    [
        (1, 0, Fault.MISALIGNED, "gp1", 1, "BLEN below MLEN (multiples of 2 below 8 in a block of 64)"),
        (8, 0, Fault.MISALIGNED, "gp1", 8, "BLEN below MLEN (multiples of 2 below 8 in a block of 64)"),
        (64 + 16, 0, Fault.MISALIGNED, "gp1", 80, "BLEN below MLEN (multiples of 2 below 8 in a block of 64)"),
        (256, 0, Fault.OUT_OF_RANGE, "gp1", 256, "up to 199 (1 of 4 tiles from there)"),
        (0, 7, Fault.MISALIGNED, "gp2", 7, ROW),
        (0, 384, Fault.OUT_OF_RANGE, "gp2", 384, OUTSIDE),
    ],
)
def test_bad_addresses_of_m_mv(
    machine: Machine, matrix: int, vector: int, code: Fault, operand: str, value: int, limit: str
) -> None:
    limit = f"offset in the tile must be a multiple of {limit}" if limit.startswith("BLEN") else limit
    contents = {"vram": VRAM, "mram": TILES, "gp": {1: matrix, 2: vector}, "v_accum": [1, 2]}
    machine.fault("M_MV 0, gp1, gp2", code, operand=operand, value=value, limit=limit, **contents)


@covers("M_TMV")
def test_m_tmv_multiplies_a_row_with_the_first_two_rows_of_a_tile_and_adds(machine: Machine) -> None:
    gp = {1: 3 * 64, 2: 8 * 9}
    state = machine.run("M_TMV 0, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, v_accum=[10, 20])
    same(state.v_accum, [10, 20] + X[9] @ W2[:2].T)
    assert machine.written(state) == {"v_accum"}


@covers("M_TMV")
def test_m_tmv_by_hand_at_the_last_row_with_one_register_and_any_rd(machine: Machine) -> None:
    tile = np.zeros((8, 8))
    tile[0, 1], tile[1, 7] = 2, -1
    state = machine.run("M_TMV 3, gp1, gp1", vram={8: range(1, 9)}, mram={1: tile}, gp={1: 64})
    same(state.v_accum, [4, -8])
    state = machine.run("M_TMV 0, gp1, gp2", vram={47: range(1, 9)}, mram={1: tile}, gp={1: 64, 2: 376})
    same(state.v_accum, [4, -8])


@misuses("M_TMV")
@pytest.mark.parametrize(
    "matrix, vector, code, operand, value, limit",
    [
        (2, 0, Fault.MISALIGNED, "gp1", 2, "a multiple of 64"),
        (8, 0, Fault.MISALIGNED, "gp1", 8, "a multiple of 64"),
        (256, 0, Fault.OUT_OF_RANGE, "gp1", 256, "up to 192 (1 of 4 tiles from there)"),
        (0, 7, Fault.MISALIGNED, "gp2", 7, ROW),
        (0, 384, Fault.OUT_OF_RANGE, "gp2", 384, OUTSIDE),
    ],
)
def test_bad_addresses_of_m_tmv(
    machine: Machine, matrix: int, vector: int, code: Fault, operand: str, value: int, limit: str
) -> None:
    contents = {"vram": VRAM, "mram": TILES, "gp": {1: matrix, 2: vector}, "v_accum": [1, 2]}
    machine.fault("M_TMV 0, gp1, gp2", code, operand=operand, value=value, limit=limit, **contents)


@covers("M_MV_WO")
@pytest.mark.parametrize("offset", [0, 2, 4, 6])
def test_m_mv_wo_writes_two_lanes_of_a_row_and_clears(machine: Machine, offset: int) -> None:
    state = machine.run("M_MV_WO gp1, 9", vram=VRAM, gp={1: 8 * 47 + offset - 9}, v_accum=[1.00390625, 1.01171875])
    expected = X[47].copy()
    expected[offset : offset + 2] = bf16("3F80 3F82")
    same(row(state, 47), expected)
    same(state.v_accum, [0, 0])
    assert machine.written(state) == {"vram[47]", "v_accum"}


@covers("M_MV_WO")
def test_m_mv_wo_address_wraps_and_other_lanes_stay(machine: Machine) -> None:
    vram = {0: bf16("7F81 FFFF 8000 0001 0000 0000 7F80 FF80")}
    state = machine.run("M_MV_WO gp1, 20", vram=vram, gp={1: 0xFFFFFFF0}, v_accum=[-1, 2])
    assert hexes(row(state, 0)) == "7F81 FFFF 8000 0001 BF80 4000 7F80 FF80"


@misuses("M_MV_WO")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (160, Fault.MISALIGNED, LANES),
        (0xFFFFFFFE, Fault.MISALIGNED, LANES),
        (381, Fault.OUT_OF_RANGE, "up to 383 (1 of 48 rows from there)"),
    ],
)
def test_bad_addresses_of_m_mv_wo(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    text = "M_MV_WO gp1, 3"
    contents = {"vram": VRAM, "v_accum": [1, 2], "gp": {1: gp1}}
    machine.fault(text, code, operand="gp1 + imm", value=(gp1 + 3) % 2**32, limit=limit, **contents)


# -- head slots -------------------------------------------------------------------------------------------------------


def _interleaved(x: np.ndarray, head: int) -> np.ndarray:
    return x[..., [head, head + 2, head + 4, head + 6]]


def _contiguous(x: np.ndarray, head: int) -> np.ndarray:
    return x[..., 4 * head : 4 * head + 4]


HEADS = np.arange(128).reshape(2, 8, 8) - 60


@covers("M_BMM")
@pytest.mark.parametrize("h", [0, 4])
def test_m_bmm_adds_a_quarter_of_interleaved_heads_times_tile_rows(machine: Machine, h: int) -> None:
    gp = {1: 3 * 64 + h, 2: 8 * 5}
    state = machine.run("M_BMM 0, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, hm_accum=HEADS)
    same(state.hm_accum, [HEADS[j] + 0.25 * (_interleaved(X[5:13], j) @ W2[h : h + 4]) for j in range(2)])
    assert machine.written(state) == {"hm_accum"}


@covers("M_BTMM")
@pytest.mark.parametrize("h", [0, 4])
def test_m_btmm_adds_a_quarter_of_contiguous_heads_times_transposed_tile_columns(machine: Machine, h: int) -> None:
    gp = {1: 3 * 64 + h, 2: 8 * 5}
    state = machine.run("M_BTMM 0, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, hm_accum=HEADS)
    same(state.hm_accum, [HEADS[j] + 0.25 * (_contiguous(X[5:13], j) @ W2[:, h : h + 4].T) for j in range(2)])
    assert machine.written(state) == {"hm_accum"}


@covers("M_BMM", "M_BTMM")
def test_m_bmm_and_m_btmm_by_hand(machine: Machine) -> None:
    # One row 1 .. 8. M_BMM with rows 0 .. 3 of the unit matrix: heads 1 3 5 7 and 2 4 6 8, a quarter of each.
    vram = {0: range(1, 9)}
    state = machine.run("M_BMM 0, gp0, gp0", vram=vram, mram={0: np.eye(8)})
    same(state.hm_accum[:, 0], [[0.25, 0.75, 1.25, 1.75, 0, 0, 0, 0], [0.5, 1, 1.5, 2, 0, 0, 0, 0]])
    # M_BTMM with columns 4 .. 7: heads 1 2 3 4 and 5 6 7 8.
    state = machine.run("M_BTMM 0, gp1, gp0", vram=vram, mram={0: np.eye(8)}, gp={1: 4})
    same(state.hm_accum[:, 0], [[0, 0, 0, 0, 0.25, 0.5, 0.75, 1], [0, 0, 0, 0, 1.25, 1.5, 1.75, 2]])


@covers("mnemonic")
@pytest.mark.parametrize("mnemonic", ["M_BMM", "M_BTMM"])
def test_m_bmm_and_m_btmm_at_the_last_rows_accumulate(machine: Machine, mnemonic: str) -> None:
    line = f"{mnemonic} 0, gp1, gp2"
    contents = {"vram": VRAM, "mram": TILES, "gp": {1: 0, 2: 40 * 8}}
    once = np.asarray(machine.run(line, **contents).hm_accum)
    slot, w = (_interleaved, W[:4]) if mnemonic == "M_BMM" else (_contiguous, W[:, :4].T)
    same(once, [0.25 * (slot(X[40:48], j) @ w) for j in range(2)])
    same(machine.run(f"{line}\n{line}\n{line}", **contents).hm_accum, 3 * once)


@covers("M_BMM", "M_BTMM")
def test_m_bmm_and_m_btmm_are_not_rounded_and_keep_subnormal_numbers(machine: Machine) -> None:
    for line in ("M_BMM 0, gp0, gp0", "M_BTMM 0, gp0, gp0"):
        vram = {0: [1 + 2.0**-7] + [0] * 7, 1: [2.0**-132] + [0] * 7}
        tile = np.eye(8, dtype=F32) * F32(1 + 2.0**-16)
        state = machine.run(line, vram=vram, mram={0: tile})
        # 2**-132 (1 + 2**-16) / 4: the product has 17 significant bits from 2**-132 down, half a unit of 2**-149 too
        # many after the quarter is taken; ties go to the even 2**-134.
        expected = np.array([(1 + 2.0**-7) * (1 + 2.0**-16) / 4, 2.0**-134], F32)
        same(state.hm_accum[0, :2, 0], expected)


@misuses("M_BMM", "M_BTMM")
@pytest.mark.parametrize(
    "matrix, vector, code, operand, value, limit",
    [
        (2, 0, Fault.MISALIGNED, "gp1", 2, "HLEN"),
        (8, 0, Fault.MISALIGNED, "gp1", 8, "HLEN"),
        (64 + 16, 0, Fault.MISALIGNED, "gp1", 80, "HLEN"),
        (260, 0, Fault.OUT_OF_RANGE, "gp1", 260, "up to 199 (1 of 4 tiles from there)"),
        (0, 12, Fault.MISALIGNED, "gp2", 12, ROW),
        (0, 41 * 8, Fault.OUT_OF_RANGE, "gp2", 328, "up to 320 (8 of 48 rows from there)"),
    ],
)
def test_bad_addresses_of_m_bmm_and_m_btmm(
    machine: Machine, matrix: int, vector: int, code: Fault, operand: str, value: int, limit: str
) -> None:
    if limit == "HLEN":
        limit = "offset in the tile must be a multiple of HLEN below MLEN (multiples of 4 below 8 in a block of 64)"
    contents = {"vram": VRAM, "mram": TILES, "gp": {1: matrix, 2: vector}, "hm_accum": HEADS}
    for line in ("M_BMM 0, gp1, gp2", "M_BTMM 0, gp1, gp2"):
        machine.fault(line, code, operand=operand, value=value, limit=limit, **contents)


@pytest.mark.parametrize("opcode, name", [(3, "M_BMM"), (4, "M_BTMM")])
def test_m_bmm_and_m_btmm_with_rd_are_refused_before_anything_runs(machine: Machine, opcode: int, name: str) -> None:
    program = plena_jax.assemble(f"S_ADDI_INT gp1, gp0, 1\n{word(opcode, rd=2, rs1=1, rs2=3)}")
    with pytest.raises(ProgramError, match=rf"pc 1: word 0x.* \({name} 2, gp1, gp3\): the rd field must be 0"):
        machine.run(program)


@misuses("M_BMM", "M_BTMM", "M_BTMV")
def test_head_instructions_need_head_slots_that_fill_a_row(wide: Machine) -> None:
    sizes = "(HLEN 1, BROADCAST_AMOUNT 64, MLEN 64)"
    for line in ("M_BMM 0, gp1, gp2", "M_BTMM 0, gp1, gp2", "M_BTMV gp0, gp1, gp2"):
        limit = "HLEN x BROADCAST_AMOUNT = MLEN and HLEN > 1"
        wide.fault(line, Fault.HEADS, limit=limit, rule=f"head slots do not fill a row {sizes}")


@covers("M_BMM_WO")
def test_m_bmm_wo_writes_head_after_head_and_clears(machine: Machine) -> None:
    heads = HEADS + 2.0**-12
    state = machine.run("M_BMM_WO gp1, 24", vram=VRAM, gp={1: 16 * 8}, hm_accum=heads)
    expected = X.copy()
    # The small addend rounds away except where it is all there is.
    expected[19:35] = np.where(HEADS == 0, 2.0**-12, HEADS).reshape(16, 8)
    same(state.vram, expected)
    same(state.hm_accum, np.zeros((2, 8, 8)))
    assert machine.written(state) == at("vram", range(19, 35)) | {"hm_accum"}


@covers("M_BMM_WO")
def test_m_bmm_wo_reaches_the_last_rows_and_wraps(machine: Machine) -> None:
    state = machine.run("M_BMM_WO gp1, 0", gp={1: 32 * 8}, hm_accum=HEADS)
    same(state.vram[32:48], HEADS.reshape(16, 8))
    state = machine.run("M_BMM_WO gp1, 16", gp={1: 0xFFFFFFF8}, hm_accum=HEADS)
    same(state.vram[1:17], HEADS.reshape(16, 8))


@misuses("M_BMM_WO")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (4, Fault.MISALIGNED, ROW),
        (33 * 8 - 8, Fault.OUT_OF_RANGE, "up to 256 (16 of 48 rows from there)"),
    ],
)
def test_bad_addresses_of_m_bmm_wo(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    contents = {"vram": VRAM, "hm_accum": HEADS, "gp": {1: gp1}}
    machine.fault("M_BMM_WO gp1, 8", code, operand="gp1 + imm", value=gp1 + 8, limit=limit, **contents)


@covers("M_BTMV")
@pytest.mark.parametrize("h", [0, 4])
def test_m_btmv_adds_a_quarter_of_the_heads_of_a_row_times_transposed_columns(machine: Machine, h: int) -> None:
    # The matrix address is gp[rs1] + gp[rd].
    gp = {1: 3 * 64, 2: 8 * 47, 3: h}
    start = HEADS[:, 0]
    state = machine.run("M_BTMV gp3, gp1, gp2", vram=VRAM, mram=TILES, gp=gp, hv_accum=start)
    same(state.hv_accum, [start[j] + 0.25 * (_contiguous(X[47], j) @ W2[:, h : h + 4].T) for j in range(2)])
    assert machine.written(state) == {"hv_accum"}


@covers("M_BTMV")
def test_m_btmv_by_hand_and_its_address_wraps(machine: Machine) -> None:
    gp = {1: 0xFFFFFFFC, 2: 0, 3: 8}
    state = machine.run("M_BTMV gp3, gp1, gp2", vram={0: range(1, 9)}, mram={0: np.eye(8)}, gp=gp)
    same(state.hv_accum, [[0, 0, 0, 0, 0.25, 0.5, 0.75, 1], [0, 0, 0, 0, 1.25, 1.5, 1.75, 2]])
    # rd and rs1 may be the same register: twice its value.
    state = machine.run("M_BTMV gp3, gp3, gp2", vram={0: range(1, 9)}, mram={1: np.eye(8)}, gp={3: 32})
    same(state.hv_accum, [[0.25, 0.5, 0.75, 1, 0, 0, 0, 0], [1.25, 1.5, 1.75, 2, 0, 0, 0, 0]])


HEAD = "offset in the tile must be a multiple of HLEN below MLEN (multiples of 4 below 8 in a block of 64)"


@misuses("M_BTMV")
@pytest.mark.parametrize(
    "gp, code, operand, value, limit",
    [
        ({1: 0, 2: 0, 3: 2}, Fault.MISALIGNED, "gp1 + gp3", 2, HEAD),
        ({1: 64, 2: 0, 3: 8}, Fault.MISALIGNED, "gp1 + gp3", 72, HEAD),
        ({1: 0xFFFFFFFF, 2: 0, 3: 3}, Fault.MISALIGNED, "gp1 + gp3", 2, HEAD),
        ({1: 192, 2: 0, 3: 64}, Fault.OUT_OF_RANGE, "gp1 + gp3", 256, "up to 199 (1 of 4 tiles from there)"),
        ({1: 0, 2: 4, 3: 0}, Fault.MISALIGNED, "gp2", 4, ROW),
        ({1: 0, 2: 384, 3: 0}, Fault.OUT_OF_RANGE, "gp2", 384, OUTSIDE),
    ],
)
def test_bad_addresses_of_m_btmv(
    machine: Machine, gp: dict[int, int], code: Fault, operand: str, value: int, limit: str
) -> None:
    contents = {"vram": VRAM, "mram": TILES, "gp": gp, "hv_accum": HEADS[:, 0]}
    machine.fault("M_BTMV gp3, gp1, gp2", code, operand=operand, value=value, limit=limit, **contents)


@covers("M_BMV")
@misuses("M_BMV")
def test_m_bmv_always_faults_and_does_nothing(machine: Machine) -> None:
    limit, rule = "MachineConfig(intended=Intended(m_bmv=True))", "M_BMV does not work in the hardware model"
    contents = {"vram": VRAM, "mram": TILES, "hv_accum": HEADS[:, 0]}
    machine.fault("M_BMV gp3, gp1, gp2", Fault.M_BMV, limit=limit, rule=rule, gp={1: 64}, **contents)
    # Good or bad addresses make no difference.
    machine.fault("M_BMV gp3, gp1, gp2", Fault.M_BMV, limit=limit, rule=rule, gp={1: 3, 2: 5, 3: 7}, **contents)


@covers("M_BMV_WO")
def test_m_bmv_wo_writes_a_row_for_each_head_and_clears(machine: Machine) -> None:
    heads = HEADS[:, 3] + 1 / 1024
    state = machine.run("M_BMV_WO gp1, 8", vram=VRAM, gp={1: 45 * 8}, hv_accum=heads)
    expected = X.copy()
    # -36 .. -29 and 28 .. 35: a thousandth rounds away.
    expected[46:48] = [range(-36, -28), range(28, 36)]
    same(state.vram, expected)
    same(state.hv_accum, np.zeros((2, 8)))
    assert machine.written(state) == {"vram[46]", "vram[47]", "hv_accum"}
    state = machine.run("M_BMV_WO gp1, 16", gp={1: 0xFFFFFFF0}, hv_accum=HEADS[:, 3])
    same(state.vram[:2], [range(-36, -28), range(28, 36)])


@misuses("M_BMV_WO")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [(1, Fault.MISALIGNED, ROW), (39 * 8, Fault.OUT_OF_RANGE, "up to 368 (2 of 48 rows from there)")],
)
def test_bad_addresses_of_m_bmv_wo(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    contents = {"vram": VRAM, "hv_accum": HEADS[:, 0], "gp": {1: gp1}}
    machine.fault("M_BMV_WO gp1, 64", code, operand="gp1 + imm", value=gp1 + 64, limit=limit, **contents)


# -- the four accumulators --------------------------------------------------------------------------------------------

FULL = {"m_accum": ACCUM, "v_accum": [5, 6], "hm_accum": HEADS, "hv_accum": HEADS[:, 0]}
ADD = {
    "m_accum": ("M_MM 0, gp1, gp2", "M_TMM 0, gp2, gp1"),
    "v_accum": ("M_MV 0, gp1, gp2", "M_TMV 0, gp1, gp2"),
    "hm_accum": ("M_BMM 0, gp1, gp2", "M_BTMM 0, gp1, gp2"),
    "hv_accum": ("M_BTMV gp4, gp1, gp2",),
}
DRAIN = {
    "m_accum": "M_MM_WO gp3, 0, 0",
    "v_accum": "M_MV_WO gp3, 0",
    "hm_accum": "M_BMM_WO gp3, 0",
    "hv_accum": "M_BMV_WO gp3, 0",
}
CONTENTS = {"vram": VRAM, "mram": TILES, "gp": {1: 192, 2: 16, 3: 240}}


@pytest.mark.parametrize("name", ADD)
def test_an_accumulator_is_added_to_and_drained_on_its_own(machine: Machine, name: str) -> None:
    for line in ADD[name]:
        assert machine.written(machine.run(line, **CONTENTS, **FULL)) == {name}
    state = machine.run(DRAIN[name], **CONTENTS, **FULL)
    assert {place for place in machine.written(state) if "vram" not in place} == {name}
    assert not np.asarray(getattr(state, name)).any()


@covers("M_MM", "M_TMM", "M_MV", "M_TMV", "M_BMM", "M_BTMM", "M_BTMV")
def test_mixed_instructions_accumulate_independently(machine: Machine) -> None:
    alone = {name: machine.run("\n".join(lines), **CONTENTS) for name, lines in ADD.items()}
    every = [line for lines in ADD.values() for line in lines]
    mixed = machine.run("\n".join(every[::2] + every[1::2]), **CONTENTS)
    for name, state in alone.items():
        assert np.asarray(getattr(state, name)).any()
        same(getattr(mixed, name), getattr(state, name))


@pytest.mark.parametrize("name", DRAIN)
def test_a_drained_accumulator_starts_from_zero(machine: Machine, name: str) -> None:
    add, drain = ADD[name][0], DRAIN[name]
    fresh = machine.run(f"{add}\n{drain}", **CONTENTS)
    again = machine.run(f"{drain}\n{drain}\n{add}\n{drain}", **CONTENTS, **FULL)
    same(again.vram, fresh.vram)
    # Draining twice writes zeros the second time.
    zeros = machine.run(f"{add}\n{drain}\n{drain}", **CONTENTS, **FULL)
    lanes = slice(0, 2) if name in ("m_accum", "v_accum") else slice(0, 8)
    rows = {"m_accum": 2, "v_accum": 1, "hm_accum": 16, "hv_accum": 2}[name]
    same(zeros.vram[30 : 30 + rows, lanes], np.zeros((rows, 8))[:, lanes])


@pytest.mark.parametrize("name", DRAIN)
def test_accumulators_outlive_a_program(machine: Machine, name: str) -> None:
    add, drain = ADD[name][0], DRAIN[name]
    whole = machine.run(f"{add}\n{add}\n{drain}", **CONTENTS)
    part = machine.run(add, **CONTENTS)
    part = machine.run(add, part.replace(pc=part.pc * 0))
    part = machine.run(drain, part.replace(pc=part.pc * 0))
    same(part.vram, whole.vram)
