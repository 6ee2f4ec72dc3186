"""HBM transfers (docs/machine.md section 4.6): rows of 8 E4M3 elements with one E8M0 scale byte each.

One H_PREFETCH_V moves 2 rows, one H_PREFETCH_M 8, one H_STORE_V 1.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest

from plena_jax import Fault, MachineState, assemble, run

from .machine_helpers import F32, NAN, RAMP, Machine, at, bf16, covers, hexes, misuses, row, same, section_11

#: E4M3 codes of 1 .. 8, and of their negatives.
UP = bytes([0x38, 0x40, 0x44, 0x48, 0x4A, 0x4C, 0x4E, 0x50])
DOWN = bytes(code | 0x80 for code in UP)
ONE = [1, 2, 3, 4, 5, 6, 7, 8]
#: E8M0 codes of 1, 2, 4, ...
SCALES = bytes(range(0x7F, 0x9F))


def times(values: list[float], factor: float) -> list[float]:
    return [v * factor for v in values]


# -- H_PREFETCH_V -----------------------------------------------------------------------------------------------------


@covers("H_PREFETCH_V")
def test_h_prefetch_v_reads_rows_and_their_scales(machine: Machine) -> None:
    hbm = {0: UP + DOWN, 64: SCALES}
    state = machine.run(
        "H_PREFETCH_V gp1, gp0, a0, 0, 0", vram={20: [9] * 8, 22: [9] * 8}, hbm=hbm, gp={1: 160}, scale=65
    )
    same(row(state, 20), times(ONE, 2))
    same(row(state, 21), times(ONE, -4))
    assert machine.written(state) == {"vram[20]", "vram[21]"}
    assert state.hbm_traffic == (256, 0)


@covers("H_PREFETCH_V")
def test_h_prefetch_v_adds_base_and_offset(machine: Machine) -> None:
    # Elements at 1024 + 16, scales at 1024 + 512 + 16 / 8.
    hbm = {1040: UP + DOWN, 1536: SCALES}
    text = "H_PREFETCH_V gp1, gp2, a15, 0, 0"
    state = machine.run(text, hbm=hbm, gp={1: 8, 2: 16}, a={15: 1024}, scale=512)
    same(state.vram[1:3], [times(ONE, 4), times(ONE, -8)])


@covers("H_PREFETCH_V")
def test_h_prefetch_v_rounds_the_scale_offset_down(machine: Machine) -> None:
    # Offset 15: elements from byte 15, which is no multiple of anything, scale 15 // 8 = 1.
    hbm = {15: UP + DOWN, 64: SCALES}
    state = machine.run("H_PREFETCH_V gp1, gp2, a1, 0, 0", hbm=hbm, gp={1: 8, 2: 15}, scale=64)
    same(state.vram[1:3], [times(ONE, 2), times(ONE, -4)])


@covers("H_PREFETCH_V")
@pytest.mark.parametrize("offset", [56, 57, 60, 63, 64])
def test_h_prefetch_v_reads_elements_across_64_byte_lines(machine: Machine, offset: int) -> None:
    hbm = {offset: UP + DOWN, 512: SCALES}
    state = machine.run("H_PREFETCH_V gp1, gp0, a1, 0, 0", hbm=hbm, gp={1: 8}, a={1: offset}, scale=512 - offset)
    same(state.vram[1:3], [ONE, times(ONE, -2)])
    # Four blocks, and one more if a row lies across the line at byte 64.
    assert state.hbm_traffic[0] == (320 if offset in (57, 60, 63) else 256)


@covers("H_PREFETCH_V")
def test_h_prefetch_v_strides_if_the_flag_is_1(machine: Machine) -> None:
    # Stride 24: the second row's scale is 3 further.
    hbm = {0: UP, 8: DOWN, 24: DOWN[::-1], 64: SCALES}
    contents = {"hbm": hbm, "gp": {1: 160}, "scale": 64, "stride": 24}
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 1, 0", **contents)
    same(state.vram[20:22], [ONE, times(ONE[::-1], -8)])
    for flag in (0, 2, 3, 7, 15):
        state = machine.run(f"H_PREFETCH_V gp1, gp0, a0, {flag}, 0", **contents)
        same(state.vram[20:22], [ONE, times(ONE, -2)])


@covers("H_PREFETCH_V")
@pytest.mark.parametrize("stride, scale", [(1, 0), (7, 0), (8, 1), (12, 1), (15, 1), (16, 2)])
def test_h_prefetch_v_truncates_the_scale_step(machine: Machine, stride: int, scale: int) -> None:
    hbm = {0: bytes(64), stride: UP, 64: SCALES}
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 1, 0", hbm=hbm, gp={1: 160}, scale=64, stride=stride)
    same(row(state, 21), times(ONE, 2**scale))


@covers("H_PREFETCH_V")
def test_h_prefetch_v_drops_rows_behind_the_last(machine: Machine) -> None:
    contents = {"vram": {46: [9] * 8}, "hbm": {0: UP + DOWN, 64: SCALES}, "scale": 64}
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", gp={1: 376}, **contents)
    same(row(state, 47), ONE)
    assert machine.written(state) == {"vram[47]"}
    # What is dropped is read all the same.
    assert state.hbm_traffic[0] == 256
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", gp={1: 368}, **contents)
    same(state.vram[46:], [ONE, times(ONE, -2)])


@covers("H_PREFETCH_V")
def test_h_prefetch_v_reads_zeros_beyond_hbm(machine: Machine) -> None:
    # Rows at 65523 and 65531, of which the second has five bytes left. The scale bytes are elements at the same time:
    # the last of the first row, 66, is 2**-25, the first of the second, 38, is 2**-71.
    contents = {"vram": {20: [9] * 8, 21: [9] * 8}, "gp": {1: 160}, "a": {1: 65523}}
    hbm = {65523: UP[:7] + b"\x66" + UP[:5]}
    state = machine.run("H_PREFETCH_V gp1, gp0, a1, 0, 0", hbm=hbm, scale=7, **contents)
    same(row(state, 20), times([1, 2, 3, 4, 5, 6, 7, 56], 2.0**-25))
    same(row(state, 21), times([1, 2, 3, 4, 5, 0, 0, 0], 2.0**-71))
    assert machine.written(state) == {"vram[20]", "vram[21]"}
    # The second scale beyond HBM, then both.
    state = machine.run("H_PREFETCH_V gp1, gp0, a1, 0, 0", hbm=hbm, scale=12, **contents)
    same(row(state, 20), times([1, 2, 3, 4, 5, 6, 7, 56], 2.0 ** (0x4A - 127)))
    same(row(state, 21), [0] * 8)
    state = machine.run("H_PREFETCH_V gp1, gp0, a1, 0, 0", hbm=hbm, scale=13, **contents)
    same(state.vram[20:22], np.zeros((2, 8)))


@covers("H_PREFETCH_V", "C_SET_ADDR_REG")
def test_h_prefetch_v_addresses_have_64_bits(machine: Machine) -> None:
    contents = {"vram": {20: [9] * 8, 21: [9] * 8}, "hbm": {0: UP + DOWN + SCALES}, "scale": 16}
    # High word 1.
    state = machine.run("C_SET_ADDR_REG a2, gp2, gp3\nH_PREFETCH_V gp1, gp3, a2, 0, 0", gp={1: 160, 2: 1}, **contents)
    same(state.vram[20:22], np.zeros((2, 8)))
    # The sum of base and offset carries: 0xFFFFFFF0 + 16 is not 0.
    state = machine.run("H_PREFETCH_V gp1, gp2, a2, 0, 0", gp={1: 160, 2: 16}, a={2: 0xFFFFFFF0}, **contents)
    same(state.vram[20:22], np.zeros((2, 8)))
    state = machine.run("H_PREFETCH_V gp1, gp2, a2, 0, 0", gp={1: 160, 2: 0}, a={2: 0}, **contents)
    same(state.vram[20:22], [ONE, times(ONE, -2)])


@covers("H_PREFETCH_V")
def test_h_prefetch_v_rounds_to_bf16(machine: Machine) -> None:
    # Scale 2**-126 times 7, 5, 4, 1, -5 * 2**-10, 1.5 * 2**-6, 1, -1: units of 2**-133 are 2**7 * 2**-10 = 1/8.
    hbm = {0: [0x07, 0x05, 0x04, 0x01, 0x85, 0x0C, 0x38, 0xB8], 8: [0x77, 0x3F, 0xB8, 0x40, 0x78, 0xF8, 0, 0x80]}
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm | {16: [1, 254]}, gp={1: 8}, scale=16)
    assert hexes(row(state, 1)) == "0001 0001 0000 0000 8001 0003 0080 8080"
    # Scale 2**127 times 240, 1.875, -1, 2, inf, -inf, 0, -0
    assert hexes(row(state, 2)) == "7F80 7F70 FF00 7F80 7F80 FF80 0000 8000"


@covers("H_PREFETCH_V")
def test_h_prefetch_v_scale_bytes_0_and_255(machine: Machine) -> None:
    hbm = {0: [0x38, 0xB8, 0x00, 0x80, 0x77, 0x01, 0x78, 0x7F] * 2, 16: [0, 255]}
    state = machine.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 8}, scale=16)
    assert hexes(row(state, 1)[:6]) == "0000 8000 0000 8000 0000 0000"
    assert np.isnan(row(state, 1)[6:]).all()  # inf * 0, NaN * 0
    assert hexes(row(state, 2)[[0, 1, 4, 5, 6]]) == "7F80 FF80 7F80 7F80 7F80"
    assert np.isnan(row(state, 2)[[2, 3, 7]]).all()  # +-0 * inf, NaN


@covers("H_PREFETCH_V")
@pytest.mark.parametrize("precision", [1, 2, 7, 15])
def test_h_prefetch_v_any_other_precision_is_the_kv_type(plain: Machine, precision: int) -> None:
    # The KV type of this machine is plain BF16; in strides of 16 bytes rows do not overlap.
    data = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x8000, 0x4049, 0x7FC1, 0xFFFF] + [0x4000] * 8, "<u2")
    contents = {"hbm": data.tobytes(), "gp": {1: 160}, "stride": 16, "scale": 7}
    state = plain.run(f"H_PREFETCH_V gp1, gp0, a0, 1, {precision}", **contents)
    assert hexes(state.vram[20:22]) == "3F80 C000 7F80 0001 8000 4049 7FC1 FFFF" + " 4000" * 8
    assert state.hbm_traffic == (128, 0)
    # Precision 0 takes the same bytes for E4M3 elements.
    other = plain.run("H_PREFETCH_V gp1, gp0, a0, 1, 0", **contents)
    assert not np.array_equal(np.asarray(other.vram[20]), np.asarray(state.vram[20]))


@misuses("H_PREFETCH_V")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (4, Fault.MISALIGNED, "a multiple of 8"),
        (384, Fault.OUT_OF_RANGE, "up to 376 (1 of 48 rows from there)"),
        (0xFFFFFFF8, Fault.OUT_OF_RANGE, "up to 376 (1 of 48 rows from there)"),
    ],
)
def test_bad_rows_of_h_prefetch_v(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    contents = {"vram": RAMP, "hbm": {0: UP + DOWN, 64: SCALES}, "scale": 64, "gp": {1: gp1}}
    text = "H_PREFETCH_V gp1, gp0, a0, 0, 0"
    machine.fault(text, code, operand="gp1", value=gp1, limit=limit, **contents)


# -- H_PREFETCH_M -----------------------------------------------------------------------------------------------------

TILE = bytes(range(0x38, 0x40)) * 8


def _tile_bytes() -> tuple[bytes, np.ndarray]:
    """64 codes, and their values under scales 1, 2, 4, ... a row: 1 + k/8 at (r, c) with k = (r + c) mod 8."""
    codes = np.array([[0x38 + (r + c) % 8 for c in range(8)] for r in range(8)], np.uint8)
    values = np.array([[(1 + (r + c) % 8 / 8) * 2.0**r for c in range(8)] for r in range(8)], F32)
    return codes.tobytes(), values


@covers("H_PREFETCH_M")
@pytest.mark.parametrize("tile", range(4))
def test_h_prefetch_m_row_r_of_hbm_is_row_r_of_the_tile(machine: Machine, tile: int) -> None:
    data, values = _tile_bytes()
    text = "H_PREFETCH_M gp1, gp0, a0, 0, 0"
    state = machine.run(text, mram={tile: np.full((8, 8), 9)}, hbm={0: data, 64: SCALES}, gp={1: 64 * tile}, scale=64)
    same(state.mram[tile], values)
    assert machine.written(state) == {f"mram[{tile}]"}
    # Eight times a block of elements and one of scales.
    assert state.hbm_traffic == (1024, 0)


@covers("H_PREFETCH_M")
def test_h_prefetch_m_base_offset_and_stride(machine: Machine) -> None:
    # Elements at 1024 + 40 + 24 r; scales at 1024 + 2048 + 5 + 3 r.
    data, values = _tile_bytes()
    hbm = {1064 + 24 * r: data[8 * r : 8 * r + 8] for r in range(8)}
    hbm |= {3077 + 3 * r: SCALES[r : r + 1] for r in range(8)}
    contents = {"hbm": hbm, "gp": {1: 128, 2: 40}, "a": {3: 1024}, "scale": 2048, "stride": 24}
    state = machine.run("H_PREFETCH_M gp1, gp2, a3, 1, 0", **contents)
    same(state.mram[2], values)


@covers("H_PREFETCH_M")
def test_h_prefetch_m_scale_of_row_i_is_at_the_truncated_product(machine: Machine) -> None:
    # Stride 12: steps of 1.5 scales, at 0 1 3 4 6 7 9 10.
    hbm = {12 * r: UP for r in range(8)} | {128: SCALES}
    state = machine.run("H_PREFETCH_M gp1, gp0, a0, 1, 0", hbm=hbm, gp={1: 64}, scale=128, stride=12)
    expected = [times(ONE, 2.0**e) for e in (0, 1, 3, 4, 6, 7, 9, 10)]
    # Rows are 8 bytes in steps of 12, so that nothing overlaps.
    same(state.mram[1], expected)


@covers("H_PREFETCH_M")
def test_h_prefetch_m_decodes_every_element_code(machine: Machine) -> None:
    text = "\n".join(f"H_PREFETCH_M gp{i}, gp{i}, a0, 0, 0" for i in range(4))
    gp = {i: 64 * i for i in range(4)}
    state = machine.run(text, hbm={0: bytes(range(256)), 256: [0x7F] * 32}, gp=gp, scale=256)
    got = np.asarray(state.mram).reshape(-1)
    for code in range(256):
        sign, e, m = (-1 if code & 0x80 else 1), code >> 3 & 15, code & 7
        if e == 15 and m:
            assert np.isnan(got[code])
            continue
        value = m / 8 * 2.0**-7 if e == 0 else np.inf if e == 15 else (1 + m / 8) * 2.0 ** (e - 7)
        same(got[code], np.copysign(F32(value), F32(sign)))


@covers("H_PREFETCH_M")
def test_h_prefetch_m_decodes_scale_codes(machine: Machine) -> None:
    for first in (0, 60, 120, 247):
        hbm = {0: bytes([0x38, 0xB8, 0x01, 0x07, 0x08, 0x3F, 0x40, 0x77]) * 8, 64: bytes(range(first, first + 8))}
        state = machine.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", hbm=hbm, scale=64)
        element = np.array([1, -1, 2.0**-10, 7 * 2.0**-10, 2.0**-6, 1.875, 2, 240])
        scale = np.array([0.0 if b == 0 else 2.0 ** (b - 127) for b in range(first, first + 8)])
        # Exact in double precision; 2**127 * 2 and more is beyond float32.
        with np.errstate(over="ignore"):
            same(state.mram[0], (element * scale[:, None]).astype(F32))


@covers("H_PREFETCH_M", "M_TMM")
def test_h_prefetch_m_does_not_round(machine: Machine) -> None:
    # 2**-126 * 2**-10: BF16 would make it 0.
    hbm = {0: [0x01] * 64, 64: [1] * 8}
    state = machine.run("H_PREFETCH_M gp0, gp0, a0, 0, 0\nM_TMM 0, gp0, gp0", hbm=hbm, scale=64, vram={0: [8] * 8})
    same(state.mram[0], np.full((8, 8), 2.0**-136))
    # And the product reads it as it is: 8 * 8 * 2**-136.
    same(state.m_accum, [[2.0**-130] * 2, [0, 0]])


@covers("H_PREFETCH_M")
def test_h_prefetch_m_beyond_hbm_and_beyond_32_bits_reads_zeros(machine: Machine) -> None:
    contents = {"mram": {0: np.full((8, 8), 9)}, "hbm": {0: bytes([0x38]) * 65536}}
    # Rows at 65512, 65520, 65528, then beyond. All scale bytes are 38 = 2**-71.
    state = machine.run("H_PREFETCH_M gp0, gp0, a1, 0, 0", a={1: 65512}, **contents)
    expected = np.zeros((8, 8))
    expected[:3] = 2.0**-71
    same(state.mram[0], expected)
    state = machine.run("H_PREFETCH_M gp0, gp0, a1, 0, 0", a={1: 1 << 32}, **contents)
    same(state.mram[0], np.zeros((8, 8)))
    state = machine.run("H_PREFETCH_M gp0, gp0, a1, 0, 0", a={1: 0xFFFFFFFF << 32}, **contents)
    same(state.mram[0], np.zeros((8, 8)))


@covers("H_PREFETCH_M")
def test_h_prefetch_m_fills_as_many_tiles_as_the_rows_make(plain: Machine) -> None:
    # 9 rows are rounded up to 16: two tiles.
    data = _tile_bytes()[0]
    hbm = {0: data + data[::-1], 128: [0x7F] * 16}
    state = plain.run("H_PREFETCH_M gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 128}, scale=128)
    codes = np.frombuffer(data, np.uint8).reshape(8, 8)
    unscaled = 1 + (codes - 0x38) / 8
    same(state.mram[2], unscaled)
    same(state.mram[3], unscaled[::-1, ::-1])
    assert plain.written(state) == at("mram", 2, 3)


@covers("H_PREFETCH_M")
def test_h_prefetch_m_of_the_plain_kv_type(plain: Machine) -> None:
    data = (np.arange(16 * 8) + 0x3F80).astype("<u2")
    state = plain.run("H_PREFETCH_M gp0, gp0, a0, 1, 3", hbm=data.tobytes(), stride=16)
    same(np.asarray(state.mram[:2]).reshape(-1), (data.astype(np.uint32) << 16).view(F32))
    assert state.hbm_traffic == (16 * 64, 0)


@misuses("H_PREFETCH_M")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (8, Fault.MISALIGNED, "a multiple of 64"),
        (63, Fault.MISALIGNED, "a multiple of 64"),
        (256, Fault.OUT_OF_RANGE, "up to 192 (1 of 4 tiles from there)"),
        (0xFFFFFFC0, Fault.OUT_OF_RANGE, "up to 192 (1 of 4 tiles from there)"),
    ],
)
def test_bad_tiles_of_h_prefetch_m(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    contents = {"mram": {3: np.eye(8)}, "hbm": {0: TILE, 64: SCALES}, "scale": 64, "gp": {1: gp1}}
    text = "H_PREFETCH_M gp1, gp0, a0, 0, 0"
    machine.fault(text, code, operand="gp1", value=gp1, limit=limit, **contents)


@misuses("H_PREFETCH_M")
def test_h_prefetch_m_whose_second_tile_does_not_exist_writes_none(plain: Machine) -> None:
    plain.fault(
        "H_PREFETCH_M gp1, gp0, a0, 0, 0",
        Fault.OUT_OF_RANGE,
        operand="gp1",
        value=192,
        limit="up to 128 (2 of 4 tiles from there)",
        hbm={0: TILE, 64: SCALES},
        gp={1: 192},
    )


# -- H_STORE_V --------------------------------------------------------------------------------------------------------


def _bytes(machine: Machine, lanes: list[float], expected: str, scale: str) -> None:
    state = machine.run("H_STORE_V gp1, gp0, a0, 0, 0", vram={5: lanes}, hbm={0: [0xAA] * 64}, gp={1: 40}, scale=32)
    assert np.asarray(state.hbm[:8]).tobytes().hex(" ").upper() == expected
    assert f"{int(state.hbm[32]):02X}" == scale
    # Nothing else, on both sides of both.
    assert np.asarray(state.hbm[8:32]).tobytes() == b"\xaa" * 24
    assert np.asarray(state.hbm[33:64]).tobytes() == b"\xaa" * 31


@covers("H_STORE_V")
def test_h_store_v_shares_the_exponent_of_the_largest(machine: Machine) -> None:
    _bytes(machine, [0.5, 1, 2, 4, -4, -2, -1, 0], "20 28 30 38 B8 B0 A8 00", "81")
    _bytes(machine, [11, 12, 13, 14, 15, 16, 17, 18], "33 34 35 36 37 38 38 39", "83")
    _bytes(machine, [100, 1e-3, 0, 0, 0, 0, 0, -0.0], "3C 00 00 00 00 00 00 00", "85")
    _bytes(machine, [2.0**127, -(2.0**127), 2.0**126] + [0] * 5, "38 B8 30 00 00 00 00 00", "FE")


@covers("H_STORE_V")
def test_h_store_v_truncates_to_quarters_and_then_rounds_to_even(machine: Machine) -> None:
    lanes = [1.0625, 1.0859375, 1.09375, 1.1875, 1.328125, 1.34375, 1.9375, 1.9921875]
    _bytes(machine, lanes, "38 38 39 3A 3A 3B 3F 3F", "7F")
    _bytes(machine, [-v for v in lanes], "B8 B8 B9 BA BA BB BF BF", "7F")


@covers("H_STORE_V")
def test_h_store_v_small_elements(machine: Machine) -> None:
    lanes = [1, -(2.0**-11), 2.0**-11, 1.5 * 2.0**-11, 2.0**-10, 2.0**-8, 2.0**-7, 2.0**-6]
    _bytes(machine, lanes, "38 80 00 01 01 04 07 08", "7F")
    _bytes(machine, [1, 1.5 * 2.0**-7, 2.0**-133, -(2.0**-133), 0, -0.0, 0, 0], "38 07 00 80 00 00 00 00", "7F")


@covers("H_STORE_V")
def test_h_store_v_zeros_nan_and_infinity(machine: Machine) -> None:
    _bytes(machine, [0, -0.0] * 4, "00 00 00 00 00 00 00 00", "00")
    _bytes(machine, [NAN] * 8, "00 00 00 00 00 00 00 00", "00")
    _bytes(machine, [NAN, 2, -2, 4, -NAN, 0, 1, 1], "38 30 B0 38 38 00 28 28", "81")
    _bytes(machine, [np.inf, -np.inf, 1, 0, 2.0**127, -(2.0**127), NAN, 2.0**121], "77 F7 00 00 38 B8 38 08", "FE")


@covers("H_STORE_V")
def test_h_store_v_has_a_smallest_scale(machine: Machine) -> None:
    # log2(2**-133 + 1e-9) is about log2(1e-9) = -29.9: scale byte 97, elements far below.
    _bytes(machine, [2.0**-133] * 8, "00 00 00 00 00 00 00 00", "61")
    # 2**-29 is 1.86e-9; with 1e-9 more it is still below 2**-28.
    _bytes(machine, [2.0**-29, 2.0**-30, 0, 0, 0, 0, 0, 0], "38 30 00 00 00 00 00 00", "62")


@covers("H_STORE_V")
def test_h_store_v_adds_base_and_offset(machine: Machine) -> None:
    contents = {"vram": {47: ONE}, "gp": {1: 376, 2: 24}, "a": {9: 4096}, "scale": 512}
    state = machine.run("H_STORE_V gp1, gp2, a9, 0, 0", **contents)
    # 1 .. 8 under scale 8: 0.125 0.25 0.375 0.5 0.625 0.75 0.875 1
    assert np.asarray(state.hbm[4120:4128]).tobytes() == bytes([0x20, 0x28, 0x2C, 0x30, 0x32, 0x34, 0x36, 0x38])
    assert int(state.hbm[4096 + 512 + 3]) == 0x82
    assert machine.written(state) == at("hbm", range(4120, 4128), 4611)
    assert state.hbm_traffic == (128, 128)


@covers("H_STORE_V")
@pytest.mark.parametrize("address", [57, 60, 63])
def test_h_store_v_across_64_byte_lines_keeps_the_neighbours(machine: Machine, address: int) -> None:
    state = machine.run(
        "H_STORE_V gp0, gp0, a1, 0, 0", vram={0: [1] * 8}, hbm={0: [0xAA] * 256}, a={1: address}, scale=128
    )
    expected = bytearray([0xAA] * 256)
    expected[address : address + 8] = [0x38] * 8
    expected[address + 128] = 0x7F
    assert np.asarray(state.hbm[:256]).tobytes() == bytes(expected)
    assert state.hbm_traffic == (192, 192)


@covers("H_STORE_V")
def test_h_store_v_writes_scales_after_elements(machine: Machine) -> None:
    state = machine.run("H_STORE_V gp0, gp0, a0, 0, 0", vram={0: [1] * 8}, scale=3)
    assert np.asarray(state.hbm[:8]).tobytes().hex() == "3838387f38383838"


@covers("H_STORE_V")
def test_h_store_v_reaches_the_last_byte(machine: Machine) -> None:
    state = machine.run("H_STORE_V gp0, gp0, a1, 0, 0", vram={0: [1] * 8}, a={1: 65520}, scale=15)
    assert np.asarray(state.hbm[65520:65528]).tobytes() == b"\x38" * 8
    assert int(state.hbm[65535]) == 0x7F
    state = machine.run("H_STORE_V gp0, gp0, a1, 0, 0", vram={0: [1] * 8}, a={1: 65528}, scale=0)
    assert np.asarray(state.hbm[65528:]).tobytes() == b"\x7f" + b"\x38" * 7


@covers("H_STORE_V")
def test_h_store_v_stores_as_many_rows_as_configured(plain: Machine) -> None:
    vram = {3: [1] * 8, 4: [-2] * 8, 5: [4] * 8}
    state = plain.run("H_STORE_V gp1, gp0, a0, 0, 0", vram=vram, gp={1: 24}, scale=64)
    assert np.asarray(state.hbm[:16]).tobytes() == b"\x38" * 8 + b"\xb8" * 8
    assert np.asarray(state.hbm[64:66]).tobytes() == b"\x7f\x80"
    assert plain.written(state) == at("hbm", range(16), 64, 65)
    # In steps of 24 bytes, and 3 scales.
    state = plain.run("H_STORE_V gp1, gp0, a0, 1, 0", vram=vram, gp={1: 24}, scale=64, stride=24)
    assert plain.written(state) == at("hbm", range(8), range(24, 32), 64, 67)


@covers("H_STORE_V")
def test_h_store_v_of_the_plain_kv_type_keeps_every_bit(plain: Machine) -> None:
    x = "3F80 C000 7F80 0001 8000 4049 7FC1 FFFF"
    contents = {"vram": {3: bf16(x), 4: bf16("FF80 007F 8001 7F7F 4000 4040 4080 40A0")}, "gp": {1: 24}, "stride": 16}
    state = plain.run("H_STORE_V gp1, gp0, a0, 1, 1", **contents)
    words = np.asarray(state.hbm[:32]).view("<u2")
    assert " ".join(f"{w:04X}" for w in words) == f"{x} FF80 007F 8001 7F7F 4000 4040 4080 40A0"
    assert plain.written(state) <= at("hbm", range(32))
    assert state.hbm_traffic == (128, 128)


@covers("H_STORE_V", "H_PREFETCH_V", "H_PREFETCH_M")
def test_a_row_of_e4m3_values_comes_back(machine: Machine) -> None:
    lanes = [1.875, -1.0, 0.5, 0.0, 0.0625, -1.25, 2.0**-6, 1.125]
    text = """
        H_STORE_V gp1, gp0, a0, 0, 0
        H_PREFETCH_V gp2, gp0, a0, 0, 0
        H_PREFETCH_M gp0, gp0, a0, 0, 0
    """
    state = machine.run(text, vram={1: lanes}, gp={1: 8, 2: 80}, scale=512)
    same(row(state, 10), lanes)
    same(state.mram[0, 0], lanes)


@misuses("H_STORE_V")
@pytest.mark.parametrize(
    "gp1, code, limit",
    [
        (4, Fault.MISALIGNED, "a multiple of 8"),
        (384, Fault.OUT_OF_RANGE, "up to 376 (1 of 48 rows from there)"),
        (0xFFFFFFF8, Fault.OUT_OF_RANGE, "up to 376 (1 of 48 rows from there)"),
    ],
)
def test_bad_rows_of_h_store_v(machine: Machine, gp1: int, code: Fault, limit: str) -> None:
    contents = {"vram": RAMP, "scale": 64, "gp": {1: gp1}}
    machine.fault("H_STORE_V gp1, gp0, a0, 0, 0", code, operand="gp1", value=gp1, limit=limit, **contents)


@misuses("H_STORE_V")
@pytest.mark.parametrize(
    "offset, base, scale",
    [
        (65529, 0, 0),  # the last element byte
        (65536, 0, 0),
        (0xFFFFFFFF, 0, 0),
        (0, 1 << 32, 0),
        (0, 0xFFFFFFFF << 32, 0),
        (0, 0, 65536),  # elements fit, the scale does not
        (0, 0, 0xFFFFFFFF),
        (8, 65000, 535),
        (16, 0xFFFFFFF0, 0),  # the sum carries into the high word
        (0, (1 << 64) - 4, 1024),  # the row ends behind the last address there is; its scale wraps around
        (7, (1 << 64) - 8, 1024),
        (0, (1 << 64) - 64, 1024),
    ],
)
def test_h_store_v_beyond_hbm_writes_nothing(machine: Machine, offset: int, base: int, scale: int) -> None:
    machine.fault(
        "H_STORE_V gp1, gp2, a3, 0, 0",
        Fault.HBM_RANGE,
        operand="gp2",
        value=offset,
        limit="65536 bytes (HBM_SIZE)",
        rule="stores beyond the end of HBM",
        vram=RAMP,
        hbm={0: [0xAA] * 64},
        gp={1: 8, 2: offset},
        a={3: base},
        scale=scale,
    )


@misuses("H_STORE_V")
def test_h_store_v_whose_second_row_is_bad_writes_none(plain: Machine) -> None:
    limit = "up to 368 (2 of 48 rows from there)"
    plain.fault(
        "H_STORE_V gp1, gp0, a0, 0, 0",
        Fault.OUT_OF_RANGE,
        operand="gp1",
        value=376,
        limit=limit,
        vram={47: ONE},
        gp={1: 376},
    )
    plain.fault(
        "H_STORE_V gp1, gp2, a0, 1, 0",
        Fault.HBM_RANGE,
        operand="gp2",
        value=0,
        limit="65536 bytes (HBM_SIZE)",
        vram={3: ONE, 4: ONE},
        gp={1: 24, 2: 0},
        stride=65529,
    )


@misuses("H_STORE_V")
def test_scales_that_end_behind_the_last_address(wide: Machine) -> None:
    # Elements wrap around to byte 0 as a whole, where they may be; the eight scales begin four bytes before.
    wide.fault(
        "H_STORE_V gp0, gp2, a3, 0, 0",
        Fault.HBM_RANGE,
        operand="gp2",
        value=64,
        limit="65536 bytes (HBM_SIZE)",
        hbm={0: [0xAA] * 128},
        gp={2: 64},
        a={3: (1 << 64) - 64},
        scale=52,
    )


@pytest.mark.parametrize("base", [(1 << 64) - 4, (1 << 64) - 64, (1 << 64) - 1])
def test_the_last_address_inside_jit(base: int) -> None:
    config = section_11()
    start = MachineState.create(config, vram=np.ones(8, F32), hbm=bytes([0xAA] * 64))
    start = start.replace(a=start.a.at[0].set(np.array([base & 0xFFFFFFFF, base >> 32], np.uint32)))
    start = start.replace(scale=np.uint32(1024))
    final = jax.jit(lambda s: run(assemble("H_STORE_V gp0, gp0, a0, 0, 0"), s, config))(start)
    assert (final.fault, final.instructions) == (Fault.HBM_RANGE, 0)
    assert bytes(np.asarray(final.hbm)[:64]) == bytes([0xAA] * 64)


@covers("H_STORE_V", "H_PREFETCH_V", "V_ADD_VV")
def test_transfers_see_what_came_before_them(machine: Machine) -> None:
    text = """
        V_ADD_VV gp1, gp1, gp1
        H_STORE_V gp1, gp0, a0, 0, 0
        V_ADD_VV gp1, gp1, gp1
        H_STORE_V gp1, gp2, a0, 0, 0
        H_PREFETCH_V gp3, gp0, a0, 0, 0
    """
    state = machine.run(text, vram={1: [1] * 8}, gp={1: 8, 2: 8, 3: 160}, scale=64)
    same(state.vram[20:22], [[2] * 8, [4] * 8])
