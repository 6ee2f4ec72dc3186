"""A typed method for each instruction. Made by ``python -m plena_jax.lower.generate``; do not edit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from plena_jax.lower.registers import Ar, Fp, Gp


class Instructions:
    """Emits instructions; arguments are in the order of assembly text, register fields by their names."""

    #: Appends a word.
    emit: Callable[[int], None]

    def refuse(self, mnemonic: str, **operands: object) -> NoReturn:
        """Raise the error about operands that do not fit."""
        raise NotImplementedError

    def m_mm(self, rs1: Gp, rs2: Gp) -> None:
        """``m_accum += BLEN rows x BLEN columns of a tile``.

        M is rs1, V is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_MM", rs1=rs1, rs2=rs2)
        self.emit(0x01 | rs1 << 10 | rs2 << 14)

    def m_tmm(self, rs1: Gp, rs2: Gp) -> None:
        """``m_accum += BLEN rows x (BLEN rows of a tile) transposed``.

        V is rs1, M is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_TMM", rs1=rs1, rs2=rs2)
        self.emit(0x02 | rs1 << 10 | rs2 << 14)

    def m_bmm(self, rs1: Gp, rs2: Gp) -> None:
        """``hm_accum[j] += bmm_scale * (interleaved head j of MLEN rows x HLEN rows)``.

        M is rs1, V is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_BMM", rs1=rs1, rs2=rs2)
        self.emit(0x03 | rs1 << 10 | rs2 << 14)

    def m_btmm(self, rs1: Gp, rs2: Gp) -> None:
        """``hm_accum[j] += bmm_scale * (head j of MLEN rows x HLEN columns transposed)``.

        M is rs1, V is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_BTMM", rs1=rs1, rs2=rs2)
        self.emit(0x04 | rs1 << 10 | rs2 << 14)

    def m_bmm_wo(self, rd: Gp, imm: int) -> None:
        """Write hm_accum to rows, head after head, and clear it.

        D is rd.
        """
        if not (rd.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("M_BMM_WO", rd=rd, imm=imm)
        self.emit(0x05 | rd << 6 | imm << 14)

    def m_mm_wo(self, rd: Gp, rs1: Gp, imm: int) -> None:
        """Write m_accum into BLEN lanes of BLEN rows, gp[S] rows apart (1 for gp0), and clear it.

        D is rd, S is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("M_MM_WO", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x06 | rd << 6 | rs1 << 10 | imm << 14)

    def m_mv(self, rs1: Gp, rs2: Gp) -> None:
        """``v_accum += one row x BLEN columns of a tile``.

        M is rs1, V is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_MV", rs1=rs1, rs2=rs2)
        self.emit(0x07 | rs1 << 10 | rs2 << 14)

    def m_tmv(self, rs1: Gp, rs2: Gp) -> None:
        """``v_accum += one row x (the first BLEN rows of a tile) transposed``.

        M is rs1, V is rs2.
        """
        if not (rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_TMV", rs1=rs1, rs2=rs2)
        self.emit(0x08 | rs1 << 10 | rs2 << 14)

    def m_bmv(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """Faults as the hardware model does; with Intended.m_bmv the one-row form of M_BMM.

        O is rd, M is rs1, V is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_BMV", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x09 | rd << 6 | rs1 << 10 | rs2 << 14)

    def m_btmv(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """``hv_accum[j] += bmm_scale * (head j of one row x HLEN columns transposed)``.

        O is rd, M is rs1, V is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("M_BTMV", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x0A | rd << 6 | rs1 << 10 | rs2 << 14)

    def m_mv_wo(self, rd: Gp, imm: int) -> None:
        """Write v_accum into BLEN lanes of one row and clear it.

        D is rd.
        """
        if not (rd.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("M_MV_WO", rd=rd, imm=imm)
        self.emit(0x0B | rd << 6 | imm << 14)

    def m_bmv_wo(self, rd: Gp, imm: int) -> None:
        """Write hv_accum to BROADCAST_AMOUNT rows and clear it.

        D is rd.
        """
        if not (rd.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("M_BMV_WO", rd=rd, imm=imm)
        self.emit(0x0C | rd << 6 | imm << 14)

    def v_add_vv(self, rd: Gp, rs1: Gp, rs2: Gp, mask: int = 0) -> None:
        """``D = A + B``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_ADD_VV", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x0D | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_add_vf(self, rd: Gp, rs1: Gp, rs2: Fp, mask: int = 0) -> None:
        """``D = A + fB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Fp and 0 <= mask <= 15):
            self.refuse("V_ADD_VF", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x0E | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_sub_vv(self, rd: Gp, rs1: Gp, rs2: Gp, mask: int = 0) -> None:
        """``D = A - B``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_SUB_VV", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x0F | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_sub_vf(self, rd: Gp, rs1: Gp, rs2: Fp, mask: int = 0, order: int = 0) -> None:
        """``D = A - fB, or fB - A if order is not 0``.

        D is rd, A is rs1, B is rs2.
        """
        if not (
            rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Fp and 0 <= mask <= 15 and 0 <= order <= 15
        ):
            self.refuse("V_SUB_VF", rd=rd, rs1=rs1, rs2=rs2, mask=mask, order=order)
        self.emit(0x10 | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18 | order << 22)

    def v_mul_vv(self, rd: Gp, rs1: Gp, rs2: Gp, mask: int = 0) -> None:
        """``D = A * B``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_MUL_VV", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x11 | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_mul_vf(self, rd: Gp, rs1: Gp, rs2: Fp, mask: int = 0) -> None:
        """``D = A * fB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Fp and 0 <= mask <= 15):
            self.refuse("V_MUL_VF", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x12 | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_exp_v(self, rd: Gp, rs1: Gp, mask: int = 0) -> None:
        """``D = exp(A clamped to -88..88); inactive lanes: A clamped``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_EXP_V", rd=rd, rs1=rs1, mask=mask)
        self.emit(0x13 | rd << 6 | rs1 << 10 | mask << 18)

    def v_reci_v(self, rd: Gp, rs1: Gp, mask: int = 0) -> None:
        """``D = 1 / A``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_RECI_V", rd=rd, rs1=rs1, mask=mask)
        self.emit(0x14 | rd << 6 | rs1 << 10 | mask << 18)

    def v_red_sum(self, rd: Fp, rs1: Gp, mask: int = 0) -> None:
        """``fD = fD + sum of the lanes of A``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_RED_SUM", rd=rd, rs1=rs1, mask=mask)
        self.emit(0x15 | rd << 6 | rs1 << 10 | mask << 18)

    def v_red_max(self, rd: Fp, rs1: Gp, mask: int = 0) -> None:
        """``fD = max(fD, lanes of A)``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Gp and 0 <= mask <= 15):
            self.refuse("V_RED_MAX", rd=rd, rs1=rs1, mask=mask)
        self.emit(0x16 | rd << 6 | rs1 << 10 | mask << 18)

    def v_shft_v(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """``D = A moved up by gp[N] lanes, zeros below``.

        D is rd, A is rs1, N is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("V_SHFT_V", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x32 | rd << 6 | rs1 << 10 | rs2 << 14)

    def v_max_vf(self, rd: Gp, rs1: Gp, rs2: Fp, mask: int = 0) -> None:
        """``D = max(A, fB)``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Fp and 0 <= mask <= 15):
            self.refuse("V_MAX_VF", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x35 | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_min_vf(self, rd: Gp, rs1: Gp, rs2: Fp, mask: int = 0) -> None:
        """``D = min(A, fB)``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Fp and 0 <= mask <= 15):
            self.refuse("V_MIN_VF", rd=rd, rs1=rs1, rs2=rs2, mask=mask)
        self.emit(0x36 | rd << 6 | rs1 << 10 | rs2 << 14 | mask << 18)

    def v_topk(self, rd: Gp, rs1: Gp, rs2: Gp, policy: int = 0) -> None:
        """Top experts: indices to INT[I], softmax weights to FP[W]; policy 0: 4 of 32, 1: 8 of 128.

        W is rd, L is rs1, I is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp and 0 <= policy <= 15):
            self.refuse("V_TOPK", rd=rd, rs1=rs1, rs2=rs2, policy=policy)
        self.emit(0x37 | rd << 6 | rs1 << 10 | rs2 << 14 | policy << 18)

    def s_add_fp(self, rd: Fp, rs1: Fp, rs2: Fp) -> None:
        """``fD = fA + fB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp and rs2.__class__ is Fp):
            self.refuse("S_ADD_FP", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x17 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_sub_fp(self, rd: Fp, rs1: Fp, rs2: Fp) -> None:
        """``fD = fA - fB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp and rs2.__class__ is Fp):
            self.refuse("S_SUB_FP", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x18 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_max_fp(self, rd: Fp, rs1: Fp, rs2: Fp) -> None:
        """``fD = max(fA, fB); NaN in fB is ignored``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp and rs2.__class__ is Fp):
            self.refuse("S_MAX_FP", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x19 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_mul_fp(self, rd: Fp, rs1: Fp, rs2: Fp) -> None:
        """``fD = fA * fB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp and rs2.__class__ is Fp):
            self.refuse("S_MUL_FP", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x1A | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_exp_fp(self, rd: Fp, rs1: Fp) -> None:
        """``fD = exp(fA clamped to -88..88)``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp):
            self.refuse("S_EXP_FP", rd=rd, rs1=rs1)
        self.emit(0x1B | rd << 6 | rs1 << 10)

    def s_reci_fp(self, rd: Fp, rs1: Fp) -> None:
        """``fD = 1 / fA``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp):
            self.refuse("S_RECI_FP", rd=rd, rs1=rs1)
        self.emit(0x1C | rd << 6 | rs1 << 10)

    def s_sqrt_fp(self, rd: Fp, rs1: Fp) -> None:
        """``fD = sqrt(fA)``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Fp):
            self.refuse("S_SQRT_FP", rd=rd, rs1=rs1)
        self.emit(0x1D | rd << 6 | rs1 << 10)

    def s_ld_fp(self, rd: Fp, rs1: Gp, imm: int) -> None:
        """``fD = FP[gp[A] + imm] (f0 too)``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_LD_FP", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x1E | rd << 6 | rs1 << 10 | imm << 14)

    def s_st_fp(self, rd: Fp, rs1: Gp, imm: int) -> None:
        """``FP[gp[A] + imm] = fS``.

        S is rd, A is rs1.
        """
        if not (rd.__class__ is Fp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_ST_FP", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x1F | rd << 6 | rs1 << 10 | imm << 14)

    def s_map_v_fp(self, rd: Gp, rs1: Gp, imm: int) -> None:
        """``D = VLEN entries of FP SRAM from gp[A] + imm``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_MAP_V_FP", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x20 | rd << 6 | rs1 << 10 | imm << 14)

    def s_add_int(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """``gpD = gpA + gpB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("S_ADD_INT", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x21 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_addi_int(self, rd: Gp, rs1: Gp, imm: int) -> None:
        """``gpD = gpA + imm``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_ADDI_INT", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x22 | rd << 6 | rs1 << 10 | imm << 14)

    def s_sub_int(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """``gpD = gpA - gpB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("S_SUB_INT", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x23 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_mul_int(self, rd: Gp, rs1: Gp, rs2: Gp) -> None:
        """``gpD = gpA * gpB``.

        D is rd, A is rs1, B is rs2.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("S_MUL_INT", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x24 | rd << 6 | rs1 << 10 | rs2 << 14)

    def s_lui_int(self, rd: Gp, imm: int) -> None:
        """``gpD = imm << 12``.

        D is rd.
        """
        if not (rd.__class__ is Gp and 0 <= imm <= 4194303):
            self.refuse("S_LUI_INT", rd=rd, imm=imm)
        self.emit(0x25 | rd << 6 | imm << 10)

    def s_ld_int(self, rd: Gp, rs1: Gp, imm: int) -> None:
        """``gpD = INT[gp[A] + imm]``.

        D is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_LD_INT", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x26 | rd << 6 | rs1 << 10 | imm << 14)

    def s_st_int(self, rd: Gp, rs1: Gp, imm: int) -> None:
        """``INT[gp[A] + imm] = gpS``.

        S is rd, A is rs1.
        """
        if not (rd.__class__ is Gp and rs1.__class__ is Gp and 0 <= imm <= 262143):
            self.refuse("S_ST_INT", rd=rd, rs1=rs1, imm=imm)
        self.emit(0x27 | rd << 6 | rs1 << 10 | imm << 14)

    def h_prefetch_m(self, rd: Gp, rs1: Gp, rs2: Ar, rstride: int, precision: int) -> None:
        """Matrix SRAM tiles from HBM rows at a[B] + gp[O].

        D is rd, O is rs1, B is rs2.
        """
        if not (
            rd.__class__ is Gp
            and rs1.__class__ is Gp
            and rs2.__class__ is Ar
            and 0 <= rstride <= 15
            and 0 <= precision <= 15
        ):
            self.refuse("H_PREFETCH_M", rd=rd, rs1=rs1, rs2=rs2, rstride=rstride, precision=precision)
        self.emit(0x28 | rd << 6 | rs1 << 10 | rs2 << 14 | rstride << 18 | precision << 22)

    def h_prefetch_v(self, rd: Gp, rs1: Gp, rs2: Ar, rstride: int, precision: int) -> None:
        """Vector SRAM rows from HBM rows at a[B] + gp[O]; rows past the end are dropped.

        D is rd, O is rs1, B is rs2.
        """
        if not (
            rd.__class__ is Gp
            and rs1.__class__ is Gp
            and rs2.__class__ is Ar
            and 0 <= rstride <= 15
            and 0 <= precision <= 15
        ):
            self.refuse("H_PREFETCH_V", rd=rd, rs1=rs1, rs2=rs2, rstride=rstride, precision=precision)
        self.emit(0x29 | rd << 6 | rs1 << 10 | rs2 << 14 | rstride << 18 | precision << 22)

    def h_store_v(self, rd: Gp, rs1: Gp, rs2: Ar, rstride: int, precision: int) -> None:
        """HBM rows at a[B] + gp[O] from vector SRAM rows.

        D is rd, O is rs1, B is rs2.
        """
        if not (
            rd.__class__ is Gp
            and rs1.__class__ is Gp
            and rs2.__class__ is Ar
            and 0 <= rstride <= 15
            and 0 <= precision <= 15
        ):
            self.refuse("H_STORE_V", rd=rd, rs1=rs1, rs2=rs2, rstride=rstride, precision=precision)
        self.emit(0x2A | rd << 6 | rs1 << 10 | rs2 << 14 | rstride << 18 | precision << 22)

    def c_set_addr_reg(self, rd: Ar, rs1: Gp, rs2: Gp) -> None:
        """``aD = gpHi << 32 | gpLo``.

        D is rd, Hi is rs1, Lo is rs2.
        """
        if not (rd.__class__ is Ar and rs1.__class__ is Gp and rs2.__class__ is Gp):
            self.refuse("C_SET_ADDR_REG", rd=rd, rs1=rs1, rs2=rs2)
        self.emit(0x2B | rd << 6 | rs1 << 10 | rs2 << 14)

    def c_set_scale_reg(self, rd: Gp) -> None:
        """``SCALE = gpS``.

        S is rd.
        """
        if rd.__class__ is not Gp:
            self.refuse("C_SET_SCALE_REG", rd=rd)
        self.emit(0x2C | rd << 6)

    def c_set_stride_reg(self, rd: Gp) -> None:
        """``STRIDE = gpS``.

        S is rd.
        """
        if rd.__class__ is not Gp:
            self.refuse("C_SET_STRIDE_REG", rd=rd)
        self.emit(0x2D | rd << 6)

    def c_set_v_mask_reg(self, rd: Gp) -> None:
        """``V_MASK = gpS``.

        S is rd.
        """
        if rd.__class__ is not Gp:
            self.refuse("C_SET_V_MASK_REG", rd=rd)
        self.emit(0x2E | rd << 6)

    def c_loop_start(self, rd: Gp, imm: int) -> None:
        """``gpL = imm; the body runs until gpL has counted down``.

        L is rd.
        """
        if not (rd.__class__ is Gp and 0 <= imm <= 4194303):
            self.refuse("C_LOOP_START", rd=rd, imm=imm)
        self.emit(0x2F | rd << 6 | imm << 10)

    def c_loop_end(self, rd: Gp) -> None:
        """``gpL -= 1 and back to the body while gpL > 1``.

        L is rd.
        """
        if rd.__class__ is not Gp:
            self.refuse("C_LOOP_END", rd=rd)
        self.emit(0x30 | rd << 6)

    def c_break(self) -> None:
        """Drop the innermost loop; continue with the next instruction."""
        self.emit(0x34)
