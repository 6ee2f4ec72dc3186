"""Where the hardware model is not what one would expect: docs/machine.md sections 8 and 9.

Each name says what the machine does. The tests of the units check much of this in more detail.
"""

from __future__ import annotations

import numpy as np
import pytest

import plena_jax
from plena_jax import AssemblyError, ConfigError, Fault, MachineConfig, MachineFault, ProgramError
from plena_jax.config import E8M0, Formats
from plena_jax.formats import FloatFormat, MXFormat

from .machine_helpers import (
    F32,
    INF,
    NAN,
    RAMP,
    Machine,
    at,
    bf16,
    covers,
    hex32,
    hexes,
    misuses,
    row,
    same,
    section_11,
    word,
)

#: A tile in which every element is another number: 1 .. 64.
TILE = np.arange(1, 65).reshape(8, 8)
X = np.arange(1, 9)


# -- section 8: documents and the machine disagree --------------------------------------------------------------------


def test_gp0_is_an_ordinary_register(machine: Machine) -> None:
    """Disagreement 1: the documents have it hardwired to 0."""
    state = machine.run("S_ADDI_INT gp0, gp0, 7\nS_ADDI_INT gp1, gp0, 1")
    assert np.asarray(state.gp)[:2].tolist() == [7, 8]


def test_f0_ignores_arithmetic_but_s_ld_fp_writes_it(machine: Machine) -> None:
    """Disagreement 2: the documents have it hardwired to 0.0."""
    text = "S_ADD_FP f0, f1, f1\nV_RED_SUM f0, gp0\nV_RED_MAX f0, gp0"
    assert machine.written(machine.run(text, vram=RAMP, f={1: 3})) == set()
    state = machine.run("S_LD_FP f0, gp0, 1\nS_ADD_FP f1, f0, f0", fp_sram=[1, 5])
    same(state.f[:2], [5, 10])


def test_there_are_sixteen_hbm_address_registers(machine: Machine) -> None:
    """Disagreement 3: the documents have eight."""
    text = "\n".join(f"S_ADDI_INT gp1, gp1, 1\nC_SET_ADDR_REG a{i}, gp0, gp1" for i in range(16))
    assert np.asarray(machine.run(text).a)[:, 0].tolist() == list(range(1, 17))


@pytest.mark.parametrize("text", ["S_ADD_INT gp16, gp0, gp0", "S_ADD_FP f8, f0, f0", "C_SET_ADDR_REG a16, gp0, gp0"])
def test_registers_out_of_range_are_assembly_errors(text: str) -> None:
    """Disagreement 4: the published assembler lets them bleed into the next field."""
    with pytest.raises(AssemblyError, match="there is no register"):
        plena_jax.assemble(text)


def test_m_mm_offset_of_block_k_is_k_times_blen_times_mlen(machine: Machine) -> None:
    """Disagreement 5: the documents count in steps of BLEN, which is how it was before July 2026."""
    contents = {"vram": {0: X}, "mram": {0: TILE}}
    for k in range(4):
        state = machine.run("M_MM 0, gp1, gp0", gp={1: k * 2 * 8}, **contents)
        same(state.m_accum[0], X @ TILE[:, 2 * k : 2 * k + 2])
        if k:
            with pytest.raises(MachineFault) as caught:
                machine.run("M_MM 0, gp1, gp0", gp={1: k * 2}, **contents)
            assert caught.value.code is Fault.MISALIGNED


def test_m_bmm_takes_its_matrix_from_rs1_alone(machine: Machine) -> None:
    """Disagreement 6: the documents add gp[rd]; here gp0 = 64 counts nowhere, and rd must be 0."""
    state = machine.run("M_BMM 0, gp1, gp2", vram={8: X}, mram={0: TILE}, gp={0: 64, 1: 0, 2: 64})
    same(state.hm_accum[:, 0], [0.25 * (X[0::2] @ TILE[:4]), 0.25 * (X[1::2] @ TILE[:4])])
    for opcode in (0x03, 0x04):
        with pytest.raises(ProgramError, match="the rd field must be 0"):
            machine.run(plena_jax.assemble(word(opcode, rd=1, rs1=2, rs2=3)))


def test_m_bmm_and_m_btmm_accumulate(machine: Machine) -> None:
    """Disagreement 7: the documents assign."""
    for line in ("M_BMM 0, gp0, gp0", "M_BTMM 0, gp0, gp0"):
        once = machine.run(line, vram={0: X}, mram={0: TILE})
        twice = machine.run(f"{line}\n{line}", vram={0: X}, mram={0: TILE})
        same(twice.hm_accum, 2 * np.asarray(once.hm_accum))


def test_m_btmm_transposes_the_matrix_and_not_the_product(machine: Machine) -> None:
    """Disagreement 8."""
    vram = {r: X + r for r in range(8)}
    rows = np.array([vram[r] for r in range(8)])
    state = machine.run("M_BTMM 0, gp0, gp0", vram=vram, mram={0: TILE})
    same(state.hm_accum[1], 0.25 * (rows[:, 4:] @ TILE[:, :4].T))


def test_bmm_scale_is_fixed_at_a_quarter(machine: Machine) -> None:
    """Disagreement 9, quirk 10: neither 1 nor 1 / sqrt(HLEN), which is 0.5 here; no instruction changes it."""
    tile = np.eye(8)
    for line, name in (
        ("M_BMM 0, gp0, gp0", "hm_accum"),
        ("M_BTMM 0, gp0, gp0", "hm_accum"),
        ("M_BTMV gp0, gp0, gp0", "hv_accum"),
    ):
        state = machine.run(line, vram={0: [8] * 8}, mram={0: tile})
        assert set(np.asarray(getattr(state, name)).reshape(-1).tolist()) == {0.0, 2.0}
        assert float(state.bmm_scale) == 0.25


def test_m_bmm_heads_are_interleaved_and_m_btmm_heads_contiguous(machine: Machine) -> None:
    """Disagreement 10, quirk 9."""
    contents = {"vram": {0: X}, "mram": {0: 4 * np.eye(8)}}
    state = machine.run("M_BMM 0, gp0, gp0", **contents)
    same(state.hm_accum[:, 0, :4], [[1, 3, 5, 7], [2, 4, 6, 8]])
    state = machine.run("M_BTMM 0, gp0, gp0", **contents)
    same(state.hm_accum[:, 0, :4], [[1, 2, 3, 4], [5, 6, 7, 8]])


def test_m_mv_and_m_tmv_have_the_matrix_in_rs1_and_the_vector_in_rs2(machine: Machine) -> None:
    """Disagreement 11, quirk 18: the documents, and a compiler template, have them the other way round."""
    # gp1 = 128 is tile 2 and row 16, gp2 = 8 is row 1 and the middle of tile 0.
    contents = {"vram": {1: X}, "mram": {2: TILE}, "gp": {1: 128, 2: 8}}
    same(machine.run("M_MV 0, gp1, gp2", **contents).v_accum, X @ TILE[:, :2])
    same(machine.run("M_TMV 0, gp1, gp2", **contents).v_accum, TILE[:2] @ X)
    for line in ("M_MV 0, gp2, gp1", "M_TMV 0, gp2, gp1"):
        with pytest.raises(MachineFault) as caught:
            machine.run(line, **contents)
        assert (caught.value.code, caught.value.operand) == (Fault.MISALIGNED, "gp2")


def test_m_mv_and_m_tmv_give_blen_results_and_accumulate(machine: Machine) -> None:
    """Disagreement 12: the documents have MLEN results that overwrite."""
    contents = {"vram": {0: X}, "mram": {0: TILE}}
    state = machine.run("M_MV 0, gp0, gp0\nM_MV 0, gp0, gp0", **contents)
    same(state.v_accum, 2 * (X @ TILE[:, :2]))
    state = machine.run("M_TMV 0, gp0, gp0\nM_TMV 0, gp0, gp0", **contents)
    same(state.v_accum, 2 * (TILE[:2] @ X))


@misuses("M_TMV")
def test_m_tmv_reaches_the_first_blen_rows_only_while_m_mv_counts_elements(machine: Machine) -> None:
    """Disagreement 12, quirk 9."""
    contents = {"vram": {0: X}, "mram": {0: TILE}}
    same(machine.run("M_MV 0, gp1, gp0", gp={1: 6}, **contents).v_accum, X @ TILE[:, 6:8])
    for offset in (2, 8, 16):
        text = "M_TMV 0, gp1, gp0"
        machine.fault(text, Fault.MISALIGNED, operand="gp1", value=offset, limit="a multiple of 64", gp={1: offset})


@misuses("M_BMV")
def test_m_bmv_always_faults_while_m_btmv_and_m_bmv_wo_work(machine: Machine) -> None:
    """Disagreement 13, quirk 9."""
    limit = "MachineConfig(intended=Intended(m_bmv=True))"
    machine.fault("M_BMV gp0, gp0, gp0", Fault.M_BMV, limit=limit, vram={0: X}, mram={0: TILE})
    state = machine.run("M_BTMV gp0, gp0, gp0\nM_BMV_WO gp1, 0", vram={0: X}, mram={0: 4 * np.eye(8)}, gp={1: 8})
    same(state.vram[1:3], [[1, 2, 3, 4, 0, 0, 0, 0], [5, 6, 7, 8, 0, 0, 0, 0]])


def test_m_mm_wo_middle_operand_is_a_row_stride_register_and_0_means_1(machine: Machine) -> None:
    """Disagreement 14: the documented literal 0 does not assemble with the published assembler."""
    contents = {"m_accum": [[1, 1], [2, 2]], "gp": {1: 64, 2: 3}}
    literal = plena_jax.assemble("M_MM_WO gp1, 0, 4")
    assert literal == plena_jax.assemble("M_MM_WO gp1, gp0, 4")
    assert literal.words.tolist() == [0x00010046]
    assert machine.written(machine.run(literal, **contents)) == at("vram", 8, 9) | {"m_accum"}
    state = machine.run("M_MM_WO gp1, gp2, 4", **contents)
    assert machine.written(state) == at("vram", 8, 11) | {"m_accum"}


def test_m_bmm_wo_writes_contiguous_rows_head_after_head(machine: Machine) -> None:
    """Disagreement 15: the documents speak of a stride MLEN / HLEN."""
    heads = np.arange(128).reshape(2, 8, 8)
    state = machine.run("M_BMM_WO gp1, 0", hm_accum=heads, gp={1: 160})
    same(state.vram[20:36], heads.reshape(16, 8))


def test_write_out_immediates_are_read_from_bit_14(machine: Machine) -> None:
    """Disagreement 16: the published assembler puts them at bit 10, so that the machine sees a sixteenth of them."""
    contents = {"vram": {}, "hm_accum": np.ones((2, 8, 8)), "v_accum": [3, 4], "hv_accum": np.ones((2, 8))}
    for opcode, mnemonic, rows in ((0x05, "M_BMM_WO", 16), (0x0B, "M_MV_WO", 1), (0x0C, "M_BMV_WO", 2)):
        published = f".word 0x{128 << 10 | 1 << 6 | opcode:08X}"
        state = machine.run(published, gp={1: 80}, **contents)
        assert machine.written(state) >= at("vram", range(11, 11 + rows))
        # Here the number in the text is the number that the machine adds.
        assert int(plena_jax.assemble(f"{mnemonic} gp1, 8").words[0]) == 8 << 14 | 1 << 6 | opcode
        other = machine.run(f"{mnemonic} gp1, 8", gp={1: 80}, **contents)
        same(other.vram, state.vram)


def test_v_sub_vv_is_rs1_minus_rs2(machine: Machine) -> None:
    """Disagreement 17: the documents have rs2 - rs1."""
    state = machine.run("V_SUB_VV gp1, gp2, gp3", vram={1: [5] * 8, 2: [3] * 8}, gp={1: 24, 2: 8, 3: 16})
    same(row(state, 3), [2] * 8)


def test_rmask_is_a_flag_and_inactive_slots_pass_rs1_through(machine: Machine) -> None:
    """Disagreement 18: neither a register of lanes, nor zeros, nor what the destination held."""
    vram = {1: [5] * 8, 2: [3] * 8, 3: [9] * 8}
    contents = {"vram": vram, "gp": {1: 24, 2: 8, 3: 16, 4: 0xFF}, "v_mask": 2}
    for flag in (1, 4, 15):
        state = machine.run(f"V_ADD_VV gp1, gp2, gp3, {flag}", **contents)
        same(row(state, 3), [5] * 4 + [8] * 4)
    # No slot at all: a copy.
    state = machine.run("V_ADD_VV gp1, gp2, gp3, 1", **contents | {"v_mask": 0})
    same(row(state, 3), [5] * 8)


def test_the_published_third_operand_of_v_exp_v_and_its_like_is_no_mask(machine: Machine) -> None:
    """Disagreement 19: `V_EXP_V gp1, gp2, 1` is 00004853, whose mask field is 0; 16 gives 00040853, where it is 1."""
    contents = {"vram": {1: [0] * 8}, "gp": {1: 16, 2: 8}, "v_mask": 1}
    same(row(machine.run(".word 0x00004853", **contents), 2), [1] * 8)
    same(row(machine.run(".word 0x00040853", **contents), 2), [1] * 4 + [0] * 4)
    # Here the number in the text is the mask.
    assert plena_jax.assemble("V_EXP_V gp1, gp2, 1").words.tolist() == [0x00040853]
    # `V_RED_SUM f1, gp2, 1` loses its mask altogether: 00000855.
    contents["vram"] = {1: X}
    same(machine.run(".word 0x00000855", **contents).f[1], 36)
    same(machine.run("V_RED_SUM f1, gp2, 1", **contents).f[1], 66)


def test_the_third_operand_of_v_red_max_is_the_mask_field() -> None:
    """Disagreement 20: the documents have a reserved immediate."""
    assert plena_jax.assemble("V_RED_MAX f1, gp2, 1").words.tolist() == [1 << 18 | 2 << 10 | 1 << 6 | 0x16]


def test_v_shft_v_moves_to_higher_lanes(machine: Machine) -> None:
    """Disagreement 21: the documents shift the other way."""
    state = machine.run("V_SHFT_V gp1, gp0, gp2", vram={0: X}, gp={1: 8, 2: 3})
    same(row(state, 1), [0, 0, 0, 1, 2, 3, 4, 5])


def test_c_set_addr_reg_has_the_high_word_in_rs1(machine: Machine) -> None:
    """Disagreement 22."""
    state = machine.run("C_SET_ADDR_REG a1, gp1, gp2", gp={1: 1, 2: 2})
    assert np.asarray(state.a[1]).tolist() == [2, 1]


def test_h_prefetch_m_is_row_major(machine: Machine) -> None:
    """Disagreement 23: the documents transpose."""
    # Row 0 of HBM is 1 2 4 8 ..., all else 0.
    hbm = {0: [0x38, 0x40, 0x48, 0x50, 0x58, 0x60, 0x68, 0x70], 64: [0x7F] * 8}
    state = machine.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", hbm=hbm, scale=64)
    expected = np.zeros((8, 8))
    expected[0] = 2.0 ** np.arange(8)
    same(state.mram[0], expected)


def test_rstride_counts_only_if_it_is_exactly_1(machine: Machine) -> None:
    """Disagreement 24: 2 to 15 act like 0."""
    contents = {"hbm": {0: [0x38] * 8 + [0x40] * 8 + [0x48] * 8, 64: [0x7F] * 3}, "scale": 64, "stride": 16}
    second = {f: float(machine.run(f"H_PREFETCH_V gp0, gp0, a0, {f}, 0", **contents).vram[1, 0]) for f in range(16)}
    assert second == dict.fromkeys(range(16), 2.0) | {1: 4.0}


def test_h_prefetch_v_moves_the_prefetch_amount_of_rows_and_not_blen(wide: Machine) -> None:
    """Disagreement 25: here 1 row, with a BLEN of 4."""
    state = wide.run("H_PREFETCH_V gp0, gp0, a0, 0, 0", hbm=bytes([0x38] * 1024))
    assert wide.written(state) == {"vram[0]"}


@misuses("C_LOOP_END", "C_BREAK")
def test_c_break_pops_a_loop_and_goes_on_with_the_next_instruction(machine: Machine) -> None:
    """Disagreement 26, quirk 12: not a breakpoint, nor a jump behind the loop."""
    state = machine.run("C_LOOP_START gp1, 3\nC_BREAK\nS_ADDI_INT gp2, gp2, 1")
    assert (state.loops.entries(), np.asarray(state.gp)[1:3].tolist()) == ([], [0, 1])
    machine.fault("C_LOOP_START gp1, 3\nC_BREAK\nC_LOOP_END gp1", Fault.LOOP_UNMATCHED, operand="gp1")
    machine.fault("C_BREAK", Fault.LOOP_UNMATCHED)


def test_c_loop_end_jumps_while_its_register_is_above_1(machine: Machine) -> None:
    """Disagreement 27: with "above 0" a loop of 3 would run four times."""
    state = machine.run("C_LOOP_START gp1, 3\nS_ADDI_INT gp2, gp2, 1\nC_LOOP_END gp1")
    assert int(state.gp[2]) == 3


@pytest.mark.parametrize("opcode", [0x31, 0x33])
def test_opcodes_31_and_33_are_invalid(machine: Machine, opcode: int) -> None:
    """Disagreement 28: V_PS_V and C_HADAMARD_TRANSFORM stand in the header only."""
    with pytest.raises(MachineFault) as caught:
        machine.run(word(opcode, rd=1, rs1=1, rs2=1))
    assert caught.value.code is Fault.INVALID_OPCODE
    for name in ("V_PS_V", "C_HADAMARD_TRANSFORM"):
        with pytest.raises(AssemblyError, match="there is no instruction"):
            plena_jax.assemble(f"{name} gp1, gp1, gp1")


def test_tile_n_is_at_n_times_mlen_squared(machine: Machine) -> None:
    """Disagreement 29: the documents have it at n * MLEN."""
    for n in range(4):
        state = machine.run("H_PREFETCH_M gp1, gp0, a0, 0, 0", hbm={0: [0x38] * 72}, gp={1: 64 * n})
        assert machine.written(state) == {f"mram[{n}]"}
    with pytest.raises(MachineFault):
        machine.run("H_PREFETCH_M gp1, gp0, a0, 0, 0", gp={1: 8})


def test_matrix_sram_is_not_rounded_and_vector_sram_is_on_every_write(machine: Machine) -> None:
    """Disagreement 30, quirk 1: the same element and scale, 2**-136, in both."""
    text = "H_PREFETCH_M gp0, gp0, a0, 0, 0\nH_PREFETCH_V gp0, gp0, a0, 0, 0"
    state = machine.run(text, vram={0: [9] * 8}, hbm={0: [0x01] * 64, 64: [1] * 8}, scale=64)
    same(state.mram[0], np.full((8, 8), 2.0**-136))
    same(row(state, 0), [0] * 8)
    # A write-out rounds the lanes that it does not write as well, which changes nothing in them.
    lanes = "7F81 FFFF 7FC1 0001 8001 7F80"
    state = machine.run("M_MV_WO gp0, 0", vram={0: bf16(f"0000 0000 {lanes}")}, v_accum=[1 + 2.0**-8, 1])
    assert hexes(row(state, 0)) == f"3F80 3F80 {lanes}"


def test_broadcast_amount_is_the_number_of_head_slots(machine: Machine) -> None:
    """Disagreement 31: not a fan-out of scalar operands."""
    assert machine.config.broadcast_amount == 2
    state = machine.run("M_BMV_WO gp0, 0", vram={0: X, 1: X, 2: X})
    assert machine.written(state) == at("vram", 0, 1)
    state = machine.run("V_ADD_VF gp0, gp0, f1", vram={0: [0] * 8}, f={1: 3})
    same(row(state, 0), [3] * 8)


def test_fp_sram_and_int_sram_have_1024_entries(machine: Machine) -> None:
    """Disagreement 32: the headers have 512 and 32."""
    state = machine.run("S_ST_FP f1, gp0, 1023\nS_ST_INT gp1, gp0, 1023", f={1: 2}, gp={1: 3})
    assert machine.written(state) == {"fp_sram[1023]", "int_sram[1023]"}
    for text in ("S_ST_FP f1, gp0, 1024", "S_ST_INT gp1, gp0, 1024"):
        with pytest.raises(MachineFault, match="1024 entries"):
            machine.run(text)


def test_published_defaults() -> None:
    """Disagreements 32 to 35 and 39: the settings file and not the headers or the help text."""
    config = MachineConfig()
    assert (config.mlen, config.vlen, config.blen, config.hlen, config.broadcast_amount) == (64, 64, 4, 16, 4)
    assert (config.hbm_size, config.matrix_sram_size, config.vector_sram_size) == (16 << 30, 4096, 4194304)
    assert (config.hbm_m_prefetch_amount, config.hbm_v_prefetch_amount, config.hbm_v_writeback_amount) == (64, 4, 4)
    assert (config.dc_en, config.max_loop_instructions, config.tiles) == (1, 100000, 64)
    assert config.cycles("vector_add_cycles") == 1
    mxfp8 = MXFormat(FloatFormat.make(4, 3, family="plena"), E8M0, 8, "plena")
    places = ("hbm_m_weight_type", "hbm_m_kv_type", "hbm_v_act_type", "hbm_v_kv_type")
    assert {getattr(config.precision, place) for place in places} == {mxfp8}


def test_scales_are_at_base_plus_scale_register_plus_offset_over_ratio(machine: Machine) -> None:
    """Disagreement 36: not at a distance from the elements at gp[rs1]."""
    hbm = {1024 + 24: [0x38] * 16, 1024 + 100 + 3: [0x80, 0x81]}
    text = "H_PREFETCH_V gp1, gp2, a1, 0, 0"
    state = machine.run(text, hbm=hbm, gp={1: 8, 2: 24}, a={1: 1024}, scale=100)
    same(state.vram[1:3], [[2] * 8, [4] * 8])


def test_e4m3_subnormals_are_worth_2_to_the_minus_bias(machine: Machine) -> None:
    """Disagreement 41, quirk 8: half of the IEEE value, with a hole below the smallest normal number."""
    hbm = {0: [0x01, 0x04, 0x07, 0x08, 0x81, 0x84, 0x87, 0x88], 64: [0x7F] * 2}
    state = machine.run("H_PREFETCH_V gp0, gp0, a0, 0, 0", hbm=hbm, scale=64)
    values = [0.0009765625, 0.00390625, 0.0068359375, 0.015625]
    same(row(state, 0), [*values, *[-v for v in values]])


def test_the_matrix_unit_is_a_plain_float32_product(machine: Machine) -> None:
    """Disagreement 42: no systolic bit patterns; 2**24 + 1 is what float32 makes of it."""
    tile = np.zeros((8, 8))
    tile[0, 0], tile[1, 0], tile[2, 0] = 2.0**24, 1, 1
    state = machine.run("M_MM 0, gp0, gp0", vram={0: [1] * 8}, mram={0: tile})
    # One after the other along k: each 1 is lost.
    same(state.m_accum[0, 0], 2.0**24)


# -- section 9: quirks ------------------------------------------------------------------------------------------------


@covers("M_MM_WO")
def test_nan_with_a_small_payload_becomes_infinity_in_vector_sram(machine: Machine) -> None:
    """Quirk 2."""
    accum = np.array([[0x7F800001, 0x7FFFFFFF], [0x7FC00000, 0xFF800001]], np.uint32).view(F32)
    state = machine.run("M_MM_WO gp0, 0, 0", m_accum=accum)
    assert hexes(row(state, 0)[:2]) + " " + hexes(row(state, 1)[:2]) == "7F80 7F80 7FC0 FF80"


def test_nan_from_the_scalar_unit_stays_nan(machine: Machine) -> None:
    """Quirk 2 is of vector SRAM alone: scalar results have the quiet bit set."""
    state = machine.run("S_ADD_FP f2, f1, f1\nS_ST_FP f2, gp0, 0", f={1: bf16("7F81")[0]})
    assert hexes(state.f[2]) == hexes(state.fp_sram[0]) == "7FC1"


def test_masked_exp_clamps_inactive_lanes(machine: Machine) -> None:
    """Quirk 3."""
    vram = {1: [INF, 100, -100, 5, 0, 0, 0, 0]}
    state = machine.run("V_EXP_V gp1, gp2, 1", vram=vram, gp={1: 16, 2: 8}, v_mask=2)
    same(row(state, 2), [88, 88, -88, 5, 1, 1, 1, 1])


def test_masked_sum_replicates_slot_sums(machine: Machine) -> None:
    """Quirk 4: inactive lanes count, and active slots HLEN times."""
    state = machine.run("V_RED_SUM f1, gp0, 1", vram={0: X}, v_mask=2)
    same(state.f[1], 1 + 2 + 3 + 4 + 4 * (5 + 6 + 7 + 8))


def test_masked_max_is_the_unmasked_one(machine: Machine) -> None:
    """Quirk 4."""
    for mask in range(4):
        same(machine.run("V_RED_MAX f1, gp0, 1", vram={0: X}, v_mask=mask).f[1], 8)


@covers("H_PREFETCH_V", "H_PREFETCH_M")
@pytest.mark.parametrize("start", [56, 57, 60, 63, 64])
def test_scale_bytes_past_a_64_byte_line_read_as_zero(wide: Machine, start: int) -> None:
    """Quirk 5: rows of 64 lanes have 8 scale bytes."""
    inside = min(64 - start % 64, 8)
    contents = {"hbm": {0: [0x38] * 64, 4096 + start: [0x80] * 8}, "scale": 4096 + start}
    state = wide.run("H_PREFETCH_V gp0, gp0, a0, 0, 0", **contents)
    same(row(state, 0), [2] * 8 * inside + [0] * 8 * (8 - inside))
    assert state.hbm_traffic == (128, 0)
    state = wide.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", **contents)
    same(state.mram[0, 0], [2] * 8 * inside + [0] * 8 * (8 - inside))


@covers("H_STORE_V")
def test_scale_bytes_past_a_64_byte_line_are_stored(wide: Machine) -> None:
    """Quirk 5 is of prefetches alone."""
    state = wide.run("H_STORE_V gp0, gp0, a0, 0, 0", vram={0: [1] * 64}, scale=4096 + 60)
    assert wide.written(state) == at("hbm", range(64), range(4156, 4164))
    assert np.asarray(state.hbm[4156:4164]).tolist() == [0x7F] * 8
    assert state.hbm_traffic == (192, 192)


@covers("H_PREFETCH_V", "H_STORE_V", "H_PREFETCH_M")
def test_plain_16_bit_rows_overlap(plain: Machine) -> None:
    """Quirk 6: contiguous rows are VLEN bytes apart although they are twice as long."""
    data = (np.arange(1, 200).astype(F32).view(np.uint32) >> 16).astype("<u2").tobytes()
    state = plain.run("H_PREFETCH_V gp0, gp0, a0, 0, 1\nH_PREFETCH_M gp0, gp0, a0, 0, 1", hbm=data)
    same(state.vram[:2], [range(1, 9), range(5, 13)])
    same(state.mram[0], [range(1 + 4 * r, 9 + 4 * r) for r in range(8)])
    # The second row overwrites half of the first.
    state = plain.run("H_STORE_V gp0, gp0, a0, 0, 1", vram={0: [1] * 8, 1: [2] * 8})
    words = np.asarray(state.hbm[:24]).view("<u2").tolist()
    assert words == [0x3F80] * 4 + [0x4000] * 8
    # With a stride of twice VLEN all is well.
    state = plain.run("H_PREFETCH_V gp0, gp0, a0, 1, 1", hbm=data, stride=16)
    same(state.vram[:2], [range(1, 9), range(9, 17)])


def test_vector_sram_of_fewer_exponent_bits_is_unusable(odd: Machine) -> None:
    """Quirk 7: binary16 stores 1.0 as infinity, 1.5 as NaN, and next to nothing as itself."""
    contents = {"gp": {1: 8, 2: 16, 3: 24}, "f": {1: 1, 2: 1.5, 3: 1.5 * 2.0**-117}}
    text = "V_ADD_VF gp1, gp0, f1\nV_ADD_VF gp2, gp0, f2\nV_ADD_VF gp3, gp0, f3"
    state = odd.run(text, **contents)
    same(row(state, 1), [INF] * 8)
    assert np.isnan(row(state, 2)).all()
    # Fraction 0200 of 1024 without an exponent: half of 2**-15.
    same(row(state, 3), [2.0**-16] * 8)


@covers("H_STORE_V")
def test_mx_elements_are_truncated_to_quarters_and_never_carry(machine: Machine) -> None:
    """Quirk 8: .6875 of a step counts as a half, NaN becomes 1, the largest fraction stays where it would carry."""
    x = [1.0625, 1.0859375, 1.09375, 1.9921875, NAN, -(2.0**-11), 2.0**-7, 0]
    state = machine.run("H_STORE_V gp0, gp0, a0, 0, 0", vram={0: x}, scale=64)
    assert np.asarray(state.hbm[:8]).tobytes().hex(" ").upper() == "38 38 39 3F 38 80 07 00"


def test_s_map_v_fp_costs_2_vlen_and_v_shft_v_a_multiplication(odd: Machine) -> None:
    """Quirk 11."""
    assert odd.run("S_MAP_V_FP gp0, gp0, 0").latency_cycles == 16
    assert odd.run("V_SHFT_V gp0, gp0, gp0").latency_cycles == odd.run("V_MUL_VV gp0, gp0, gp0").latency_cycles == 13


def test_m_mv_has_no_systolic_overhead(odd: Machine) -> None:
    """Quirk 11: here the overhead is 3."""
    assert odd.run("M_MM 0, gp0, gp0").latency_cycles == 11
    assert odd.run("M_BTMV gp0, gp0, gp0").latency_cycles == 4
    assert odd.run("M_MV 0, gp0, gp0").latency_cycles == odd.run("M_TMV 0, gp0, gp0").latency_cycles == 8


def test_unmatched_loops_may_stay_open(machine: Machine) -> None:
    """Quirk 12."""
    state = machine.run("C_LOOP_START gp1, 3\nC_LOOP_START gp2, 3\nS_ADDI_INT gp3, gp0, 1")
    assert state.fault is Fault.OK
    assert [entry["register"] for entry in state.loops.entries()] == [1, 2]


def test_configuration_errors_are_errors() -> None:
    """Quirk 13, not kept: the hardware model goes on as another machine, 32 lanes wide."""
    with pytest.raises(ConfigError):
        MachineConfig.from_toml("[TRANSACTIONAL.CONFIG.MLEN]\nvalue = -1\n")
    with pytest.raises(ConfigError):
        MachineConfig.from_toml("/nowhere/plena_settings.toml")
    with pytest.raises(ConfigError, match="VLEN = 16: must equal MLEN"):
        section_11(vlen=16)
    with pytest.raises(ConfigError, match="must be a float"):
        section_11(precision=Formats(vector_sram_type=Formats().hbm_v_int_type))


def test_v_mask_bit_index_wraps_at_32(wide: Machine) -> None:
    """Quirk 15: slot h looks at bit h modulo 32; here there are 64 slots of one lane."""
    vram = {0: np.arange(64)}
    state = wide.run("V_ADD_VF gp0, gp0, f1, 1", vram=vram, f={1: 100}, v_mask=1 << 31 | 1 << 3)
    expected = np.arange(64)
    expected[[3, 31, 35, 63]] += 100
    same(row(state, 0), expected)


def test_m_btmm_with_a_number_in_the_rd_slot_is_refused() -> None:
    """Quirk 17: `M_BTMM 16, gp0, gp3` comes from the published compiler; its assembler makes gp1 of gp0."""
    with pytest.raises(AssemblyError, match="out of range"):
        plena_jax.assemble("M_BTMM 16, gp0, gp3")
    assert plena_jax.assemble("M_BTMM 0, gp1, gp3").words.tolist() == [3 << 14 | 1 << 10 | 0x04]


def test_vector_sram_addresses_wrap_at_32_bits(machine: Machine) -> None:
    """Quirk 19."""
    state = machine.run("M_MM_WO gp1, gp2, 16", m_accum=[[1, 2], [3, 4]], gp={1: 0xFFFFFFF8, 2: 0xFFFFFFFF})
    assert machine.written(state) == at("vram", 0, 1) | {"m_accum"}
    same(state.vram[:2, :2], [[3, 4], [1, 2]])


def test_hbm_row_offsets_wrap_at_32_bits(plain: Machine) -> None:
    """Quirk 19: with a stride of 2**31 bytes every other row is the first one again; those between are beyond HBM."""
    data = (np.arange(1, 9).astype(F32).view(np.uint32) >> 16).astype("<u2").tobytes()
    state = plain.run("H_PREFETCH_M gp0, gp0, a0, 1, 1", hbm=data, stride=1 << 31)
    expected = np.zeros((16, 8))
    expected[::2] = X
    same(np.asarray(state.mram[:2]).reshape(16, 8), expected)


def test_hbm_rows_do_not_step_backwards(machine: Machine) -> None:
    """Quirk 19: the product wraps, the sum with the 64-bit base does not."""
    hbm = {0: [0x38] * 64, 128: [0x7F] * 64}
    state = machine.run("H_PREFETCH_V gp0, gp1, a0, 1, 0", hbm=hbm, gp={1: 8}, scale=128, stride=0xFFFFFFF8)
    same(state.vram[:2], [[1] * 8, [0] * 8])


# -- choices where the specification leaves one -----------------------------------------------------------------------


def test_v_sub_vf_reversed_gives_negative_zero_where_both_are_equal(machine: Machine) -> None:
    """Recorded: it is computed as -(a - f)."""
    state = machine.run("V_SUB_VF gp1, gp0, f1, 0, 1", vram={0: [2] * 8}, gp={1: 8}, f={1: 2})
    assert hexes(row(state, 1)) == "8000 " * 7 + "8000"


def test_what_arithmetic_makes_of_nan_is_what_x86_does(machine: Machine) -> None:
    """The sign of a new NaN is set, and the first NaN operand passes its payload on."""
    state = machine.run("V_SUB_VV gp1, gp0, gp0", vram={0: [INF] * 8}, gp={1: 8})
    assert hex32(row(state, 1)) == "FFC00000 " * 7 + "FFC00000"


def test_prefetch_amount_of_matrix_rows_is_rounded_up_to_whole_tiles(plain: Machine) -> None:
    """Section 2.2: 9 rows make two tiles of 8."""
    assert plain.config.hbm_m_prefetch_amount == 9
    state = plain.run("H_PREFETCH_M gp0, gp0, a0, 0, 0", hbm={0: [0x38] * 256})
    assert plain.written(state) == at("mram", 0, 1)
