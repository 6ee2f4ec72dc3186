"""THE instruction table. Assembler, disassembler, decoder, engines, ``plena isa`` and the reference page all read it.

To add an instruction: one entry here, one semantic function in ``plena_jax/machine/semantics/``.
"""

from __future__ import annotations

from plena_jax.isa.instruction import Address, Count, Field, Instruction, Kind, Operand, Size, Space, Unit

#: Experts and selected experts of the V_TOPK policies.
TOPK_POLICIES = ((32, 4), (128, 8))


# -- what operands address --------------------------------------------------------------------------------------------


def _rows(count: Count) -> Address:
    return Address(Space.VRAM, count, rule="must be a multiple of VLEN")


_ROW = _rows(lambda c, rs3: 1)
_BLEN_ROWS = _rows(lambda c, rs3: c.blen)
_MLEN_ROWS = _rows(lambda c, rs3: c.mlen)
_LANES = Address(
    Space.VRAM, unit=lambda c: c.blen, limit=lambda c: c.mlen, rule="offset in the row must be a multiple of BLEN"
)
_TILE = Address(Space.MRAM, rule="must be a multiple of MLEN * MLEN")
_COLUMNS = Address(
    Space.MRAM,
    unit=lambda c: c.blen * c.mlen,
    limit=lambda c: c.mlen**2,
    rule="offset in the tile must be a multiple of BLEN * MLEN",
)
_COLUMN_ELEMENTS = Address(
    Space.MRAM,
    unit=lambda c: c.blen,
    limit=lambda c: c.mlen,
    rule="offset in the tile must be a multiple of BLEN below MLEN",
)
_HEAD = Address(
    Space.MRAM,
    unit=lambda c: c.hlen,
    limit=lambda c: c.mlen,
    rule="offset in the tile must be a multiple of HLEN below MLEN",
)
_FP = Address(Space.FP_SRAM)
_FP_ROW = Address(Space.FP_SRAM, lambda c, rs3: c.vlen)
_INT = Address(Space.INT_SRAM)


def _topk(rs3: int) -> tuple[int, int]:
    """Experts and selected experts of a policy; an invalid one faults before its counts matter."""
    return TOPK_POLICIES[min(rs3, len(TOPK_POLICIES) - 1)]


_LOGITS = _rows(lambda c, rs3: -(-_topk(rs3)[0] // c.vlen))
_WEIGHTS = Address(Space.FP_SRAM, lambda c, rs3: _topk(rs3)[1])
_INDICES = Address(Space.INT_SRAM, lambda c, rs3: _topk(rs3)[1])


# -- operands ---------------------------------------------------------------------------------------------------------


def _gp(name: str, field: Field, address: Address | None = None, plus: Field | None = None) -> Operand:
    return Operand(name, field, Kind.GP, address=address, plus=plus)


def _f(name: str, field: Field) -> Operand:
    return Operand(name, field, Kind.F)


def _number(name: str, field: Field, default: int | None = None, limit: int | None = None) -> Operand:
    return Operand(name, field, Kind.NUMBER, default=default, limit=limit)


RD, RS1, RS2 = Field.RD, Field.RS1, Field.RS2
_IGNORED = _number("0", RD)
_ZERO = _number("0", RD, limit=0)
_IMM18 = _number("imm", Field.IMM18)
_IMM22 = _number("imm", Field.IMM22)
_MASK = _number("mask", Field.RS3, default=0)
_D_ROW = _gp("D", RD, _ROW)
_A_ROW = _gp("A", RS1, _ROW)


# -- costs ------------------------------------------------------------------------------------------------------------


def _fixed(cycles: int) -> Count:
    return lambda c, rs3: cycles


def _latency(name: str) -> Count:
    return lambda c, rs3: c.cycles(name)


def _systolic(cycles: Size) -> Count:
    return lambda c, rs3: c.cycles("systolic_processing_overhead") + cycles(c)


_ONE = _fixed(1)
_ADD = _latency("vector_add_cycles")
_MUL = _latency("vector_mul_cycles")
_MAX = _latency("vector_max_cycles")
_FP_BASIC = _latency("scalar_fp_basic_cycles")
_INT_BASIC = _latency("scalar_int_basic_cycles")


# -- builders of families ---------------------------------------------------------------------------------------------


def _matrix(mnemonic: str, opcode: int, operands: tuple[Operand, ...], cycles: Count, doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.MATRIX, operands, cycles, doc)


def _vv(mnemonic: str, opcode: int, cycles: Count, doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.VECTOR, (_D_ROW, _A_ROW, _gp("B", RS2, _ROW), _MASK), cycles, doc)


def _vf(mnemonic: str, opcode: int, cycles: Count, doc: str, *more: Operand) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.VECTOR, (_D_ROW, _A_ROW, _f("B", RS2), _MASK, *more), cycles, doc)


def _v(mnemonic: str, opcode: int, cycles: Count, doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.VECTOR, (_D_ROW, _A_ROW, _MASK), cycles, doc)


def _reduce(mnemonic: str, opcode: int, cycles: Count, doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.VECTOR, (_f("D", RD), _A_ROW, _MASK), cycles, doc, ignores_rd_0=True)


def _fp2(mnemonic: str, opcode: int, doc: str) -> Instruction:
    operands = (_f("D", RD), _f("A", RS1), _f("B", RS2))
    return Instruction(mnemonic, opcode, Unit.SCALAR_FP, operands, _FP_BASIC, doc, ignores_rd_0=True)


def _fp1(mnemonic: str, opcode: int, latency: str, doc: str) -> Instruction:
    operands = (_f("D", RD), _f("A", RS1))
    return Instruction(mnemonic, opcode, Unit.SCALAR_FP, operands, _latency(latency), doc, ignores_rd_0=True)


def _int(mnemonic: str, opcode: int, operands: tuple[Operand, ...], doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.SCALAR_INT, operands, _INT_BASIC, doc)


def _dma(mnemonic: str, opcode: int, target: Address, doc: str) -> Instruction:
    operands = (
        _gp("D", RD, target),
        _gp("O", RS1),
        Operand("B", RS2, Kind.A),
        _number("rstride", Field.RS3),
        _number("precision", Field.FUNCT1),
    )
    return Instruction(mnemonic, opcode, Unit.MEMORY, operands, _fixed(0), doc)


def _control(mnemonic: str, opcode: int, operands: tuple[Operand, ...], doc: str) -> Instruction:
    return Instruction(mnemonic, opcode, Unit.CONTROL, operands, _ONE, doc)


_GP3 = (_gp("D", RD), _gp("A", RS1), _gp("B", RS2))
_STRIDE_REGISTER = Operand("S", RS1, Kind.GP, literal=0)


INSTRUCTIONS: tuple[Instruction, ...] = (
    # matrix
    _matrix("M_MM", 0x01, (_IGNORED, _gp("M", RS1, _COLUMNS), _gp("V", RS2, _BLEN_ROWS)),
            _systolic(lambda c: c.mlen), "m_accum += BLEN rows x BLEN columns of a tile"),
    _matrix("M_TMM", 0x02, (_IGNORED, _gp("V", RS1, _BLEN_ROWS), _gp("M", RS2, _COLUMNS)),
            _systolic(lambda c: c.mlen), "m_accum += BLEN rows x (BLEN rows of a tile) transposed"),
    _matrix("M_BMM", 0x03, (_ZERO, _gp("M", RS1, _HEAD), _gp("V", RS2, _MLEN_ROWS)),
            _systolic(lambda c: c.mlen), "hm_accum[j] += bmm_scale * (interleaved head j of MLEN rows x HLEN rows)"),
    _matrix("M_BTMM", 0x04, (_ZERO, _gp("M", RS1, _HEAD), _gp("V", RS2, _MLEN_ROWS)),
            _systolic(lambda c: c.mlen), "hm_accum[j] += bmm_scale * (head j of MLEN rows x HLEN columns transposed)"),
    _matrix("M_BMM_WO", 0x05, (_gp("D", RD, _rows(lambda c, rs3: c.broadcast_amount * c.mlen), Field.IMM18), _IMM18),
            _ONE, "write hm_accum to rows, head after head, and clear it"),
    _matrix("M_MM_WO", 0x06, (_gp("D", RD, _LANES, Field.IMM18), _STRIDE_REGISTER, _IMM18),
            _ONE, "write m_accum into BLEN lanes of BLEN rows, gp[S] rows apart (1 for gp0), and clear it"),
    _matrix("M_MV", 0x07, (_IGNORED, _gp("M", RS1, _COLUMN_ELEMENTS), _gp("V", RS2, _ROW)),
            lambda c, rs3: c.mlen, "v_accum += one row x BLEN columns of a tile"),
    _matrix("M_TMV", 0x08, (_IGNORED, _gp("M", RS1, _TILE), _gp("V", RS2, _ROW)),
            lambda c, rs3: c.mlen, "v_accum += one row x (the first BLEN rows of a tile) transposed"),
    _matrix("M_BMV", 0x09, (_gp("O", RD), _gp("M", RS1, _HEAD, RD), _gp("V", RS2, _ROW)),
            _systolic(lambda c: 1), "faults as the hardware model does; with Intended.m_bmv the one-row form of M_BMM"),
    _matrix("M_BTMV", 0x0A, (_gp("O", RD), _gp("M", RS1, _HEAD, RD), _gp("V", RS2, _ROW)),
            _systolic(lambda c: 1), "hv_accum[j] += bmm_scale * (head j of one row x HLEN columns transposed)"),
    _matrix("M_MV_WO", 0x0B, (_gp("D", RD, _LANES, Field.IMM18), _IMM18),
            _ONE, "write v_accum into BLEN lanes of one row and clear it"),
    _matrix("M_BMV_WO", 0x0C, (_gp("D", RD, _rows(lambda c, rs3: c.broadcast_amount), Field.IMM18), _IMM18),
            _ONE, "write hv_accum to BROADCAST_AMOUNT rows and clear it"),
    # vector
    _vv("V_ADD_VV", 0x0D, _ADD, "D = A + B"),
    _vf("V_ADD_VF", 0x0E, _ADD, "D = A + fB"),
    _vv("V_SUB_VV", 0x0F, _ADD, "D = A - B"),
    _vf("V_SUB_VF", 0x10, _ADD, "D = A - fB, or fB - A if order is not 0", _number("order", Field.FUNCT1, default=0)),
    _vv("V_MUL_VV", 0x11, _MUL, "D = A * B"),
    _vf("V_MUL_VF", 0x12, _MUL, "D = A * fB"),
    _v("V_EXP_V", 0x13, _latency("vector_exp_cycles"), "D = exp(A clamped to -88..88); inactive lanes: A clamped"),
    _v("V_RECI_V", 0x14, _latency("vector_reci_cycles"), "D = 1 / A"),
    _reduce("V_RED_SUM", 0x15, _latency("vector_sum_cycles"), "fD = fD + sum of the lanes of A"),
    _reduce("V_RED_MAX", 0x16, _MAX, "fD = max(fD, lanes of A)"),
    Instruction("V_SHFT_V", 0x32, Unit.VECTOR, (_D_ROW, _A_ROW, _gp("N", RS2)), _MUL,
                "D = A moved up by gp[N] lanes, zeros below"),
    _vf("V_MAX_VF", 0x35, _MAX, "D = max(A, fB)"),
    _vf("V_MIN_VF", 0x36, _MAX, "D = min(A, fB)"),
    Instruction("V_TOPK", 0x37, Unit.VECTOR, (
        _gp("W", RD, _WEIGHTS),
        _gp("L", RS1, _LOGITS),
        _gp("I", RS2, _INDICES),
        _number("policy", Field.RS3, default=0),
    ), lambda c, rs3: c.cycles("vector_max_cycles") * _topk(rs3)[0],
        "top experts: indices to INT[I], softmax weights to FP[W]; policy 0: 4 of 32, 1: 8 of 128"),
    # scalar fp
    _fp2("S_ADD_FP", 0x17, "fD = fA + fB"),
    _fp2("S_SUB_FP", 0x18, "fD = fA - fB"),
    _fp2("S_MAX_FP", 0x19, "fD = max(fA, fB); NaN in fB is ignored"),
    _fp2("S_MUL_FP", 0x1A, "fD = fA * fB"),
    _fp1("S_EXP_FP", 0x1B, "scalar_fp_exp_cycles", "fD = exp(fA clamped to -88..88)"),
    _fp1("S_RECI_FP", 0x1C, "scalar_fp_reci_cycles", "fD = 1 / fA"),
    _fp1("S_SQRT_FP", 0x1D, "scalar_fp_sqrt_cycles", "fD = sqrt(fA)"),
    Instruction("S_LD_FP", 0x1E, Unit.SCALAR_FP, (_f("D", RD), _gp("A", RS1, _FP, Field.IMM18), _IMM18), _ONE,
                "fD = FP[gp[A] + imm] (f0 too)"),
    Instruction("S_ST_FP", 0x1F, Unit.SCALAR_FP, (_f("S", RD), _gp("A", RS1, _FP, Field.IMM18), _IMM18), _ONE,
                "FP[gp[A] + imm] = fS"),
    Instruction("S_MAP_V_FP", 0x20, Unit.SCALAR_FP, (_D_ROW, _gp("A", RS1, _FP_ROW, Field.IMM18), _IMM18),
                lambda c, rs3: 2 * c.vlen, "D = VLEN entries of FP SRAM from gp[A] + imm"),
    # scalar int
    _int("S_ADD_INT", 0x21, _GP3, "gpD = gpA + gpB"),
    _int("S_ADDI_INT", 0x22, (_gp("D", RD), _gp("A", RS1), _IMM18), "gpD = gpA + imm"),
    _int("S_SUB_INT", 0x23, _GP3, "gpD = gpA - gpB"),
    _int("S_MUL_INT", 0x24, _GP3, "gpD = gpA * gpB"),
    _int("S_LUI_INT", 0x25, (_gp("D", RD), _IMM22), "gpD = imm << 12"),
    _int("S_LD_INT", 0x26, (_gp("D", RD), _gp("A", RS1, _INT, Field.IMM18), _IMM18), "gpD = INT[gp[A] + imm]"),
    _int("S_ST_INT", 0x27, (_gp("S", RD), _gp("A", RS1, _INT, Field.IMM18), _IMM18), "INT[gp[A] + imm] = gpS"),
    # memory
    _dma("H_PREFETCH_M", 0x28, Address(Space.MRAM, lambda c, rs3: c.prefetch_m_rows // c.mlen, rule=_TILE.rule),
         "matrix SRAM tiles from HBM rows at a[B] + gp[O]"),
    _dma("H_PREFETCH_V", 0x29, _ROW, "vector SRAM rows from HBM rows at a[B] + gp[O]; rows past the end are dropped"),
    _dma("H_STORE_V", 0x2A, _rows(lambda c, rs3: c.hbm_v_writeback_amount),
         "HBM rows at a[B] + gp[O] from vector SRAM rows"),
    # control
    _control("C_SET_ADDR_REG", 0x2B, (Operand("D", RD, Kind.A), _gp("Hi", RS1), _gp("Lo", RS2)),
             "aD = gpHi << 32 | gpLo"),
    _control("C_SET_SCALE_REG", 0x2C, (_gp("S", RD),), "SCALE = gpS"),
    _control("C_SET_STRIDE_REG", 0x2D, (_gp("S", RD),), "STRIDE = gpS"),
    _control("C_SET_V_MASK_REG", 0x2E, (_gp("S", RD),), "V_MASK = gpS"),
    _control("C_LOOP_START", 0x2F, (_gp("L", RD), _IMM22), "gpL = imm; the body runs until gpL has counted down"),
    _control("C_LOOP_END", 0x30, (_gp("L", RD),), "gpL -= 1 and back to the body while gpL > 1"),
    _control("C_BREAK", 0x34, (), "drop the innermost loop; continue with the next instruction"),
)  # fmt: skip

BY_MNEMONIC: dict[str, Instruction] = {entry.mnemonic: entry for entry in INSTRUCTIONS}
BY_OPCODE: dict[int, Instruction] = {entry.opcode: entry for entry in INSTRUCTIONS}
assert len(BY_MNEMONIC) == len(BY_OPCODE) == len(INSTRUCTIONS)
