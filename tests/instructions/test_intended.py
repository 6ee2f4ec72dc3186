"""Each switch of plena_jax.Intended, off and on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import plena_jax
from plena_jax import ConfigError, Fault, Intended
from plena_jax.config import E8M0, Formats
from plena_jax.formats import FloatFormat, IntFormat, MXFormat

from .machine_helpers import INF, NAN, RAMP, Machine, bf16, compiled, covers, hexes, misuses, row, same, section_11


@pytest.fixture
def sums(engine: str) -> Machine:
    return compiled(section_11(intended=Intended(masked_reductions=True)), engine)


@pytest.fixture
def breaks(engine: str) -> Machine:
    return compiled(section_11(intended=Intended(c_break=True)), engine)


@pytest.fixture
def bmv(engine: str) -> Machine:
    return compiled(section_11(intended=Intended(m_bmv=True)), engine)


def test_all_switches_are_off_unless_asked_for() -> None:
    assert dataclasses.asdict(Intended()) == {
        "masked_reductions": False,
        "c_break": False,
        "m_bmv": False,
        "sub_byte_formats": False,
        "plain_formats": False,
        "scalar_fp": False,
        "matrix_sram_type": False,
    }
    assert plena_jax.MachineConfig().intended == Intended()


# -- masked_reductions ------------------------------------------------------------------------------------------------


@covers("V_RED_SUM")
@pytest.mark.parametrize("mask, off, on", [(0, 36, 0), (1, 66, 10), (2, 114, 26), (3, 144, 36)])
def test_masked_v_red_sum(machine: Machine, sums: Machine, mask: int, off: float, on: float) -> None:
    contents = {"vram": RAMP, "v_mask": mask, "f": {1: 0.5}}
    text = "V_RED_SUM f1, gp0, 1"
    for each, total in ((machine, off), (sums, on)):
        state = each.run(text, **contents)
        # BF16 has steps of 1 from 128 on, and ties go to the even number.
        same(state.f[1], 144 if total == 144 else total + 0.5)
        assert each.written(state) <= {"f[1]"}
        assert state.latency_cycles == 8
        # Without the mask there is no difference.
        same(each.run("V_RED_SUM f1, gp0", **contents).f[1], 36.5)


@covers("V_RED_MAX")
@pytest.mark.parametrize("mask, off, on", [(0, 8, -INF), (1, 8, 4), (2, 8, 8), (3, 8, 8)])
def test_masked_v_red_max(machine: Machine, sums: Machine, mask: int, off: float, on: float) -> None:
    contents = {"vram": RAMP, "v_mask": mask}
    for each, most in ((machine, off), (sums, on)):
        same(each.run("V_RED_MAX f1, gp0, 1", f={1: -INF}, **contents).f[1], most)
        same(each.run("V_RED_MAX f1, gp0, 1", f={1: 6}, **contents).f[1], max(most, 6))
        same(each.run("V_RED_MAX f1, gp0", f={1: 6}, **contents).f[1], 8)


@covers("V_RED_SUM", "V_RED_MAX")
def test_nan_and_infinity_in_slots_that_are_not_selected(machine: Machine, sums: Machine) -> None:
    contents = {"vram": {0: [1, 2, 3, 4, NAN, INF, -INF, 5]}, "v_mask": 1, "f": {1: 0, 2: -9}}
    text = "V_RED_SUM f1, gp0, 1\nV_RED_MAX f2, gp0, 1"
    state = machine.run(text, **contents)
    assert np.isnan(float(state.f[1]))
    same(state.f[2], -9)
    state = sums.run(text, **contents)
    same(state.f[1:3], [10, 4])


@covers("V_RED_SUM", "V_RED_MAX")
def test_intended_masked_reductions_keep_subnormal_numbers(sums: Machine) -> None:
    x = bf16("8001 8002 8003 8004 0010 0010 0010 0010")
    state = sums.run("V_RED_SUM f1, gp0, 1\nV_RED_MAX f2, gp0, 1", vram={0: x}, v_mask=1, f={2: -1})
    assert hexes(state.f[1:3]) == "800A 8001"


# -- c_break ----------------------------------------------------------------------------------------------------------

BREAK = """
    C_LOOP_START gp1, 5
    S_ADDI_INT gp2, gp2, 1
    C_BREAK
    S_ADDI_INT gp3, gp3, 1
    C_LOOP_END gp1
    S_ADDI_INT gp4, gp4, 1
"""


def _gp(state: plena_jax.MachineState, *registers: int) -> list[int]:
    return [int(state.gp[r]) for r in registers]


@misuses("C_LOOP_END")
def test_c_break_off_goes_on_with_the_next_instruction(machine: Machine) -> None:
    fault = machine.fault(BREAK, Fault.LOOP_UNMATCHED, pc=4, operand="gp1")
    assert _gp(fault.state, 1, 2, 3, 4) == [0, 1, 1, 0]


@covers("C_BREAK")
def test_c_break_on_goes_on_behind_the_loop(breaks: Machine) -> None:
    state = breaks.run(BREAK)
    assert _gp(state, 1, 2, 3, 4) == [0, 1, 0, 1]
    assert state.loops.entries() == []
    assert (state.instructions, state.latency_cycles) == (4, 4)


@covers("C_BREAK")
def test_c_break_on_leaves_the_innermost_of_nested_loops(breaks: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        C_LOOP_START gp2, 7
        S_ADDI_INT gp3, gp3, 1
        C_BREAK
        C_LOOP_END gp2
        C_LOOP_START gp2, 2
        S_ADDI_INT gp4, gp4, 1
        C_LOOP_END gp2
        C_LOOP_END gp1
    """
    state = breaks.run(text)
    assert _gp(state, 1, 2, 3, 4) == [0, 0, 3, 6]
    assert state.loops.entries() == []


@covers("C_BREAK")
def test_c_break_on_skips_loops_inside_what_it_skips(breaks: Machine) -> None:
    text = """
        C_LOOP_START gp1, 3
        C_BREAK
        C_LOOP_START gp1, 2
        S_ADDI_INT gp4, gp4, 1
        C_LOOP_END gp1
        C_LOOP_END gp1
        S_ADDI_INT gp5, gp5, 1
    """
    state = breaks.run(text)
    assert _gp(state, 1, 4, 5) == [0, 0, 1]
    assert int(state.pc) == 7


@misuses("C_BREAK")
def test_c_break_on_needs_the_end_of_the_innermost_loop_behind_it(breaks: Machine) -> None:
    rule = "the innermost open loop is not the one that the C_LOOP_END behind this instruction closes"
    breaks.fault("C_LOOP_START gp1, 3\nC_BREAK", Fault.BREAK_UNMATCHED, rule=rule)
    text = "C_LOOP_START gp1, 3\nC_LOOP_START gp2, 3\nC_BREAK\nC_LOOP_END gp1\nC_LOOP_END gp2"
    breaks.fault(text, Fault.BREAK_UNMATCHED, pc=2, rule=rule)
    breaks.fault("C_BREAK", Fault.LOOP_UNMATCHED, rule="no loop is open")
    breaks.fault("C_BREAK\nC_LOOP_END gp1", Fault.LOOP_UNMATCHED, pc=0, rule="no loop is open")


# -- m_bmv ------------------------------------------------------------------------------------------------------------

TILE = np.array([[(4 * r + 7 * c) % 11 - 5 for c in range(8)] for r in range(8)])


@misuses("M_BMV")
def test_m_bmv_off_faults(machine: Machine) -> None:
    limit = "MachineConfig(intended=Intended(m_bmv=True))"
    machine.fault("M_BMV gp3, gp1, gp2", Fault.M_BMV, limit=limit, vram=RAMP, mram={1: TILE}, gp={1: 64})


@covers("M_BMV", "M_BMV_WO")
@pytest.mark.parametrize("h", [0, 4])
def test_m_bmv_on_is_m_bmm_of_one_row(bmv: Machine, h: int) -> None:
    contents = {"vram": RAMP, "mram": {1: TILE}, "gp": {1: 64, 2: 8, 3: h, 4: 160}}
    state = bmv.run("M_BMV gp3, gp1, gp2", hv_accum=np.ones((2, 8)), **contents)
    # Interleaved heads of 11 .. 18: 11 13 15 17 and 12 14 16 18.
    x = np.array([[11, 13, 15, 17], [12, 14, 16, 18]])
    same(state.hv_accum, 1 + 0.25 * (x @ TILE[h : h + 4]))
    assert bmv.written(state) == {"hv_accum"}
    assert state.latency_cycles == 1
    state = bmv.run("M_BMV gp3, gp1, gp2\nM_BMV gp3, gp1, gp2\nM_BMV_WO gp4, 0", **contents)
    same(state.vram[20:22], np.asarray(0.5 * (x @ TILE[h : h + 4]), np.float32))
    assert not np.asarray(state.hv_accum).any()


@covers("M_BMV", "M_BMM")
def test_m_bmv_on_agrees_with_the_first_row_of_m_bmm(bmv: Machine) -> None:
    contents = {"vram": RAMP, "mram": {1: TILE}, "gp": {1: 68, 2: 8}}
    state = bmv.run("M_BMV gp0, gp1, gp2\nM_BMM 0, gp1, gp2", **contents)
    same(state.hv_accum, np.asarray(state.hm_accum)[:, 0])


@misuses("M_BMV")
def test_m_bmv_on_checks_its_addresses(bmv: Machine) -> None:
    text = "M_BMV gp3, gp1, gp2"
    rule = "offset in the tile must be a multiple of HLEN below MLEN (multiples of 4 below 8 in a block of 64)"
    cases = (
        ({1: 64, 3: 2}, Fault.MISALIGNED, "gp1 + gp3", 66, rule),
        ({1: 252, 3: 4}, Fault.OUT_OF_RANGE, "gp1 + gp3", 256, "up to 199 (1 of 4 tiles from there)"),
        ({2: 3}, Fault.MISALIGNED, "gp2", 3, "a multiple of 8"),
        ({2: 384}, Fault.OUT_OF_RANGE, "gp2", 384, "up to 376 (1 of 48 rows from there)"),
    )
    for gp, code, operand, value, limit in cases:
        bmv.fault(text, code, operand=operand, value=value, limit=limit, vram=RAMP, gp=gp)


# -- sub_byte_formats -------------------------------------------------------------------------------------------------

MX = Formats(
    hbm_m_weight_type=MXFormat(FloatFormat.make(5, 2, family="plena"), E8M0, 4, "plena"),
    hbm_m_kv_type=MXFormat(FloatFormat.make(3, 2, family="plena"), E8M0, 8, "plena"),
    hbm_v_act_type=MXFormat(IntFormat(8, family="plena"), E8M0, 8, "plena"),
    hbm_v_kv_type=MXFormat(FloatFormat.make(2, 1, family="plena"), E8M0, 8, "plena"),
)


@pytest.fixture
def mx(engine: str) -> Machine:
    return compiled(section_11(precision=MX), engine)


@pytest.fixture
def packed(engine: str) -> Machine:
    return compiled(section_11(precision=MX, intended=Intended(sub_byte_formats=True)), engine)


@misuses("H_PREFETCH_M", "H_PREFETCH_V", "H_STORE_V")
def test_sub_byte_elements_off_fault(mx: Machine) -> None:
    cases = (("H_PREFETCH_M", 6), ("H_PREFETCH_V", 4), ("H_STORE_V", 4))
    for name, bits in cases:
        rule = f"MX elements of {bits} bits do not work in the hardware model (Intended.sub_byte_formats makes them)"
        for precision in (1, 15):
            text = f"{name} gp0, gp0, a0, 0, {precision}"
            mx.fault(text, Fault.FORMAT, operand="precision", value=precision, rule=rule, vram=RAMP)
    # Their neighbours in the same table work.
    mx.run("H_PREFETCH_M gp0, gp0, a0, 0, 0\nH_PREFETCH_V gp0, gp0, a0, 0, 0\nH_STORE_V gp0, gp0, a0, 0, 0")


@covers("H_PREFETCH_V", "H_STORE_V")
def test_sub_byte_elements_on_are_packed_from_the_lowest_bit(packed: Machine) -> None:
    # Shared exponent 2: 1 .5 .25 1.5 -1 -1.5 0 .125. E2M1 has 0, .25, 1, 1.5; both .5 and .25 are code 1.
    x = [4, 2, 1, 6, -4, -6, 0, 0.5]
    state = packed.run("H_STORE_V gp1, gp0, a0, 0, 1", vram={1: x}, gp={1: 8}, scale=64)
    assert np.asarray(state.hbm[:5]).tobytes().hex() == "1231ba0000"
    assert int(state.hbm[64]) == 0x81
    # Two rows of 4 bytes each, one scale for 4 bytes of elements.
    hbm = {0: bytes.fromhex("1231ba00 22222233"), 64: [0x81, 0x7F]}
    state = packed.run("H_PREFETCH_V gp1, gp0, a0, 0, 1", hbm=hbm, gp={1: 160}, scale=64)
    same(state.vram[20:22], [[4, 1, 1, 6, -4, -6, 0, 0], [1, 1, 1, 1, 1, 1, 1.5, 1.5]])
    # And from an offset: 4 bytes are one row.
    state = packed.run("H_PREFETCH_V gp1, gp2, a0, 0, 1", hbm=hbm, gp={1: 160, 2: 4}, scale=64)
    same(row(state, 20), [1, 1, 1, 1, 1, 1, 1.5, 1.5])


@covers("H_PREFETCH_M")
def test_six_bit_elements_on(packed: Machine) -> None:
    # E3M2, bias 3: 1.0 is 0C, 1.25 0D, 2 10, -1 2C, 0.25 04, subnormal 03 is 3/4 * 2**-3.
    codes = [0x0C, 0x0D, 0x10, 0x2C, 0x04, 0x03, 0x00, 0x0F]
    values = np.array([1, 1.25, 2, -1, 0.25, 0.09375, 0, 1.75])
    data = b""
    for r in range(8):
        turned = codes[r:] + codes[:r]
        data += sum(code << 6 * i for i, code in enumerate(turned)).to_bytes(6, "little")
    state = packed.run("H_PREFETCH_M gp0, gp0, a0, 0, 1", hbm={0: data, 64: [0x80] * 8}, scale=64)
    same(state.mram[0], [2 * np.roll(values, -r) for r in range(8)])


@covers("H_PREFETCH_V", "H_STORE_V")
def test_integer_elements_off_are_truncated_and_read_unsigned(mx: Machine) -> None:
    # Shared exponent 2: 1 -1 1.5 -1.75 .5 -.5 0 .96875
    x = [4, -4, 6, -7, 2, -2, 0, 3.875]
    state = mx.run("H_STORE_V gp1, gp0, a0, 0, 0", vram={1: x}, gp={1: 8}, scale=64)
    assert np.asarray(state.hbm[:8]).tobytes().hex() == "01ff01ff00000000"
    assert int(state.hbm[64]) == 0x81
    hbm = {0: [1, 255, 0, 127, 128, 2, 3, 4], 64: [0x80]}
    state = mx.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 160}, scale=64)
    same(row(state, 20), [2, 510, 0, 254, 256, 4, 6, 8])


@covers("H_PREFETCH_V", "H_STORE_V")
def test_integer_elements_on_are_signed_fractions(packed: Machine) -> None:
    x = [4, -4, 6, -7, 2, -2, 0, 3.875]
    state = packed.run("H_STORE_V gp1, gp0, a0, 0, 0", vram={1: x}, gp={1: 8}, scale=64)
    assert np.asarray(state.hbm[:8]).tobytes().hex() == "40c0609020e0003e"
    hbm = {0: [1, 255, 0, 127, 128, 64, 192, 32], 64: [0x80]}
    state = packed.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 160}, scale=64)
    same(row(state, 20), [2 / 64, -2 / 64, 0, 3.96875, -4, 2, -2, 1])


@covers("H_PREFETCH_M")
def test_byte_elements_are_the_same_off_and_on(mx: Machine, packed: Machine) -> None:
    # E5M2 in blocks of 4: 1.0 is 3C, 1.75 3F, -2 C0, 2**-17 (a quarter of 2**-15) 01. Two scale bytes a row.
    hbm = {0: bytes([0x3C, 0x3F, 0xC0, 0x01] * 16), 64: bytes([0x7F, 0x80] * 8)}
    line = [1, 1.75, -2, 2.0**-17, 2, 3.5, -4, 2.0**-16]
    for machine in (mx, packed):
        state = machine.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", hbm=hbm, scale=64)
        same(state.mram[0], [line] * 8)


# -- plain_formats ----------------------------------------------------------------------------------------------------

F16 = FloatFormat.make(5, 10, family="plena")
F32_TYPE = FloatFormat.make(8, 23, family="plena")
PLAIN = Formats(
    hbm_m_weight_type=F32_TYPE,
    hbm_m_kv_type=IntFormat(16, family="plena"),
    hbm_v_act_type=F16,
    hbm_v_kv_type=IntFormat(8, family="plena"),
)


@pytest.fixture
def off(engine: str) -> Machine:
    return compiled(section_11(precision=PLAIN), engine)


@pytest.fixture
def on(engine: str) -> Machine:
    return compiled(section_11(precision=PLAIN, intended=Intended(plain_formats=True)), engine)


def _f16(*words: int) -> bytes:
    return np.array(words, "<u2").tobytes()


@covers("H_PREFETCH_V")
def test_rows_of_plain_elements_overlap_off_and_follow_each_other_on(off: Machine, on: Machine) -> None:
    # 1 .. 16 as binary16: two rows of 16 bytes.
    data = np.arange(1, 17).astype("<f2").tobytes()
    text = "H_PREFETCH_V gp1, gp0, a0, 0, 0"
    state = off.run(text, hbm=data, gp={1: 160})
    same(state.vram[20:22], [range(1, 9), range(5, 13)])
    state = on.run(text, hbm=data, gp={1: 160})
    same(state.vram[20:22], [range(1, 9), range(9, 17)])
    # With a stride they agree.
    text = "H_PREFETCH_V gp1, gp0, a0, 1, 0"
    for machine in (off, on):
        same(machine.run(text, hbm=data, gp={1: 160}, stride=16).vram[20:22], [range(1, 9), range(9, 17)])


@covers("H_PREFETCH_V", "H_STORE_V")
def test_binary16_off_has_the_defects_of_the_hardware_model(off: Machine) -> None:
    # Subnormal numbers are worth half; what is stored is infinity, NaN or next to nothing.
    hbm = _f16(0x3C00, 0xC100, 0x0001, 0x8200, 0x7C00, 0x7BFF, 0, 0x0400)
    state = off.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 160})
    same(row(state, 20), [1, -2.5, 2.0**-25, -(2.0**-16), INF, 65536, 0, 2.0**-14])
    x = [1, 1.5, -2, 0.5, 0, 1.5 * 2.0**-117, -(2.0**-100), 1.75]
    state = off.run("H_STORE_V gp1, gp0, a0, 0, 0", vram={1: x}, gp={1: 8})
    words = np.asarray(state.hbm[:16]).view("<u2").tolist()
    assert words == [0x7C00, 0x7E00, 0xFC00, 0x7C00, 0, 0x0200, 0x8000, 0x7F00]


@covers("H_PREFETCH_V", "H_STORE_V")
def test_binary16_on_is_ieee(on: Machine) -> None:
    hbm = _f16(0x3C00, 0xC100, 0x0001, 0x8200, 0x7C00, 0x7BFF, 0, 0x0400)
    state = on.run("H_PREFETCH_V gp1, gp0, a0, 0, 0", hbm=hbm, gp={1: 160})
    same(row(state, 20), [1, -2.5, 2.0**-24, -(2.0**-15), INF, 65536, 0, 2.0**-14])
    x = [1, 1.5, -2, 0.5, 0, 2.0**-24, -(2.0**-26), 1e30]
    state = on.run("H_STORE_V gp1, gp0, a0, 0, 0", vram={1: x}, gp={1: 8})
    words = np.asarray(state.hbm[:16]).view("<u2").tolist()
    assert words == [0x3C00, 0x3E00, 0xC000, 0x3800, 0, 0x0001, 0x8000, 0x7C00]


@covers("H_PREFETCH_V", "H_STORE_V")
def test_plain_integers_off_are_truncated_and_read_unsigned(off: Machine) -> None:
    x = [3.875, -1.5, 300, NAN, 1e10, -1e10, INF, -300]
    state = off.run("H_STORE_V gp1, gp0, a0, 0, 1", vram={1: x}, gp={1: 8})
    # 3, -1, 300 = 012C, 0, 7FFFFFFF, 80000000, 7FFFFFFF, -300 = FFFFFED4
    assert np.asarray(state.hbm[:8]).tobytes().hex() == "03ff2c00ff00ffd4"
    state = off.run("H_PREFETCH_V gp1, gp0, a0, 0, 1", hbm={0: range(124, 132), 8: range(248, 256)}, gp={1: 160})
    same(state.vram[20:22], [range(124, 132), range(248, 256)])


@covers("H_PREFETCH_V", "H_STORE_V")
def test_plain_integers_on_are_rounded_saturated_and_signed(on: Machine) -> None:
    x = [3.875, -1.5, 300, NAN, 2.5, -1e10, INF, -300]
    state = on.run("H_STORE_V gp1, gp0, a0, 0, 1", vram={1: x}, gp={1: 8})
    assert np.asarray(state.hbm[:8]).tobytes().hex() == "04fe7f0002807f80"
    state = on.run("H_PREFETCH_V gp1, gp0, a0, 0, 1", hbm={0: range(124, 132), 8: range(248, 256)}, gp={1: 160})
    same(state.vram[20:22], [[124, 125, 126, 127, -128, -127, -126, -125], range(-8, 0)])


@covers("H_PREFETCH_M")
def test_16_bit_integers(off: Machine, on: Machine) -> None:
    data = np.array([*range(65530, 65536), 0, 1, 32767, 32768] + [7] * 54, "<u2")
    text = "H_PREFETCH_M gp0, gp0, a0, 0, 1"
    state = off.run(text, hbm=data.tobytes())
    same(state.mram[0, 0], [*range(65530, 65536), 0, 1])
    same(state.mram[0, 1], [65534, 65535, 0, 1, 32767, 32768, 7, 7])
    state = on.run(text, hbm=data.tobytes())
    same(state.mram[0, 0], [*range(-6, 0), 0, 1])
    same(state.mram[0, 1], [32767, -32768, 7, 7, 7, 7, 7, 7])


@misuses("H_PREFETCH_M")
def test_32_bit_elements_off_fault(off: Machine) -> None:
    rule = "32-bit elements do not unpack in the hardware model (Intended.plain_formats makes them)"
    off.fault("H_PREFETCH_M gp0, gp0, a0, 0, 0", Fault.FORMAT, operand="precision", value=0, rule=rule)


@covers("H_PREFETCH_M")
def test_32_bit_elements_on(on: Machine) -> None:
    data = (np.arange(64) + np.float32(2.0**-16)).astype("<f4")
    data[:4] = [INF, -0.0, 2.0**-149, -1e38]
    state = on.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", hbm=data.tobytes())
    same(np.asarray(state.mram[0]).reshape(-1), data)


def test_32_bit_sram_types_are_refused_unless_on() -> None:
    for name in ("vector_sram_type", "matrix_sram_type"):
        precision = Formats(**{name: F32_TYPE})
        with pytest.raises(ConfigError, match=rf"PRECISION.{name.upper()} = .*plain_formats=True"):
            section_11(precision=precision)
        config = section_11(precision=precision, intended=Intended(plain_formats=True))
        assert getattr(config.precision, name) == F32_TYPE
