"""A plain NumPy interpreter of PLENA programs: the third opinion.

It shares nothing with ``plena_jax``: it decodes words by itself, keeps its memories as NumPy arrays and executes one
instruction per Python step. Tests compare the engines with it and the benchmark measures against it. It covers the
shipped kind of configuration only (BF16 on chip; MX of byte elements, or plain BF16, in HBM).
"""

import tomllib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

F32 = np.float32
M32 = 0xFFFFFFFF


class Fault(Exception):
    """The hardware model would stop here."""


def to_bf16(x: np.ndarray) -> np.ndarray:
    """Round float32 to BF16 as VRAM does (no case for NaN), kept as float32."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    rounded = magnitude + np.uint32(0x7FFF) + (magnitude >> np.uint32(16) & np.uint32(1)) & np.uint32(0xFFFF0000)
    # A NaN keeps its rounded mantissa; a carry out of it gives infinity.
    rounded = np.where(rounded >= 0x80000000, np.uint32(0x7F800000), rounded)
    return (rounded | bits & np.uint32(0x80000000)).view(F32)


def scalar_bf16(x: Any) -> np.float32:
    """Round one float32 to BF16 as the scalar unit does (quiet NaN)."""
    value = np.asarray(x, F32)
    if np.isnan(value):
        return ((value.view(np.uint32) & 0xFFFF0000) | 0x400000).astype(np.uint32).view(F32)[()]
    return to_bf16(value.reshape(1))[0]


def decode_table(exponent: int, mantissa: int, sign: bool) -> np.ndarray:
    """float32 value of every code of a float type (docs/machine.md 5.1)."""
    table = []
    bias = 2 ** (exponent - 1) - 1
    for code in range(2 ** (exponent + mantissa + sign)):
        m, e = code % 2**mantissa, (code >> mantissa) % 2**exponent
        negative = sign and code >> (exponent + mantissa)
        if e == 2**exponent - 1:
            bits = np.uint32(0x7F800000 | m << (23 - mantissa))  # a NaN keeps its payload
            value = bits.view(F32)
        elif e == 0:
            value = m / 2**mantissa * 2.0 ** (-126 if exponent == 8 else -bias)
        else:
            value = (1 + m / 2**mantissa) * 2.0 ** (e - bias)
        table.append(F32(value).view(np.uint32) | np.uint32(0x80000000 if negative else 0))
    return np.array(table, np.uint32).view(F32)


def quarter_round(v: np.ndarray) -> np.ndarray:
    """Truncate to quarters, then nearest even (docs/machine.md 5.4, HW)."""
    quarters = np.floor(v.astype(np.float64) * 4).astype(np.int64)
    whole, rest = quarters >> 2, quarters & 3
    return whole + ((rest == 3) | ((rest == 2) & (whole & 1 == 1)))


def floor_log2(a: np.ndarray) -> np.ndarray:
    """floor(log2f(fl32(a + 1e-9))) with log2f rounded to float32, as the hardware model computes it."""
    total = (a.astype(F32) + F32(1e-9)).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.floor(np.log2(total).astype(F32))


def mx_encode(row: np.ndarray, exponent: int, mantissa: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Element codes and scale bytes of one row (docs/machine.md 5.4)."""
    x = row.reshape(-1, block)
    largest = np.max(np.where(np.isnan(x), 0, np.abs(x)), axis=1)
    e = np.where(np.isinf(largest), 127, np.clip(floor_log2(largest), -127, 127)).astype(np.int64)
    y = x.astype(np.float64) / 2.0 ** e[:, None]
    y32 = np.clip(y, -3e38, 3e38).astype(F32)
    y32 = np.where(np.isfinite(x), y32, x)
    a = np.where(np.isnan(y32), F32(np.nan), np.abs(y32))
    bias = 2 ** (exponent - 1) - 1
    emax = 2**exponent - 2 - bias
    r = np.where(np.isnan(a), 0, np.where(np.isinf(a), 999, floor_log2(np.where(np.isfinite(a), a, 1))))
    k = np.clip(r, -bias, emax).astype(np.int64)
    with np.errstate(invalid="ignore"):
        fraction = a.astype(np.float64) / 2.0**k - (k > -bias)
    fraction = np.where(np.isnan(a), 0, fraction) * 2**mantissa
    negative_fraction = fraction < 0
    q = np.where(np.isinf(fraction), 2**mantissa, quarter_round(np.where(np.isfinite(fraction), fraction, 0)))
    q = np.where(negative_fraction, 1, q)
    q = np.clip(q, 0, 2**mantissa - 1)
    q = np.where(r > emax, 2**mantissa - 1, q)
    code = (np.where(y32 < 0, 1, 0) << (exponent + mantissa)) | ((k + bias) << mantissa) | q
    code = np.where(y32 == 0, 0, code)
    zero = largest == 0
    code = np.where(zero[:, None], 0, code)
    return code.reshape(-1).astype(np.uint8), np.where(zero, 0, e + 127).astype(np.uint8)


def row_max(row: np.ndarray) -> np.float32:
    """Largest lane, NaN if any is; of +0 and -0 the one that an 8-lane maximum in program order returns."""
    if np.isnan(row).any():
        return F32(np.nan)
    lanes = np.full(8, -np.inf, F32)
    for start in range(0, len(row), 8):
        part = row[start : start + 8]
        lanes[: len(part)] = np.where(lanes[: len(part)] > part, lanes[: len(part)], part)
    for order in ([4, 5, 6, 7, 0, 1, 2, 3], [2, 3, 0, 1, 6, 7, 4, 5], [1, 0, 3, 2, 5, 4, 7, 6]):
        lanes = np.where(lanes > lanes[order], lanes, lanes[order])
    return lanes[0]


@dataclass
class Format:
    """One HBM format: an MX type or plain BF16."""

    exponent: int
    mantissa: int
    block: int  # 0 for plain
    table: np.ndarray = field(repr=False)

    @classmethod
    def read(cls, entry: dict[str, Any]) -> "Format":
        element = entry.get("ELEM", entry.get("DATA_TYPE"))
        e, m = element["exponent"], element["mantissa"]
        return cls(e, m, entry["block"] if "ELEM" in entry else 0, decode_table(e, m, element["sign"]))


E8M0 = decode_table(8, 0, False)


class NumpyMachine:
    """One machine: construct it from settings and images, then :meth:`run`."""

    def __init__(self, settings: str, program, hbm, fp_sram, int_sram=None, vram=None, vram_rows=None):
        tree = tomllib.loads(settings)["TRANSACTIONAL"]
        c = {k: v["value"] for k, v in tree["CONFIG"].items()}
        self.mlen, self.blen, self.hlen, self.heads = c["MLEN"], c["BLEN"], c["HLEN"], c["BROADCAST_AMOUNT"]
        self.tile = self.mlen**2
        self.rows_m = max(self.mlen, -(-c["HBM_M_Prefetch_Amount"] // self.mlen) * self.mlen)
        self.rows_v, self.rows_s = c["HBM_V_Prefetch_Amount"], c["HBM_V_Writeback_Amount"]
        self.loop_limit, self.depth, self.hbm_size = c["MAX_LOOP_INSTRUCTIONS"], c["VECTOR_SRAM_SIZE"], c["HBM_SIZE"]
        p = tree["PRECISION"]
        keys = ("HBM_M_WEIGHT_TYPE", "HBM_M_KV_TYPE", "HBM_V_ACT_TYPE", "HBM_V_KV_TYPE")
        self.m_types = [Format.read(p[k]) for k in keys[:2]]
        self.v_types = [Format.read(p[k]) for k in keys[2:]]
        self.words = [int(w) for w in program]
        self.hbm = np.zeros(max(len(hbm) * 2, 1 << 16), np.uint8)
        self.hbm[: len(hbm)] = hbm
        self.fp = np.zeros(1024, F32)
        self.fp[: len(fp_sram)] = to_bf16(np.asarray(fp_sram, np.float16).astype(F32))
        self.ints = np.zeros(1024, np.uint32)
        if int_sram is not None:
            self.ints[: len(int_sram)] = int_sram
        self.vram = np.zeros((vram_rows or self.depth, self.mlen), F32)
        if vram is not None:
            flat = self.vram.reshape(-1)
            flat[: len(vram)] = (np.asarray(vram).astype(np.uint32) << 16).view(F32)[: flat.size]
        self.mram = np.zeros((c["MATRIX_SRAM_SIZE"] // self.mlen, self.mlen, self.mlen), F32)
        self.gp, self.f, self.a = [0] * 16, np.zeros(8, F32), [0] * 16
        self.scale, self.stride, self.mask, self.pc = 0, 1, 0, 0
        self.loops: list[list[int]] = []  # start pc, register, instructions since the last jump back
        self.acc = np.zeros((self.blen, self.blen), F32)
        self.hm = np.zeros((self.heads, self.mlen, self.mlen), F32)
        self.hv = np.zeros((self.heads, self.mlen), F32)
        self.v_acc = np.zeros(self.blen, F32)
        self.executed = 0

    # -- memories ---------------------------------------------------------------------------------------------------

    def row_index(self, address: int) -> int:
        if address % self.mlen or address // self.mlen >= self.depth:
            raise Fault(f"VRAM address {address}")
        return address // self.mlen

    def row(self, address: int) -> np.ndarray:
        return self.vram[self.row_index(address)]

    def rows(self, address: int, count: int) -> np.ndarray:
        first = self.row_index(address)
        if first + count > self.depth:
            raise Fault(f"VRAM rows {first} + {count}")
        return self.vram[first : first + count]

    def put(self, address: int, x: np.ndarray) -> None:
        self.vram[self.row_index(address)] = to_bf16(x)

    def split(self, address: int) -> tuple[np.ndarray, int]:
        index = address // self.tile
        if index >= len(self.mram):
            raise Fault(f"MRAM address {address}")
        return self.mram[index], address % self.tile

    def column(self, address: int) -> tuple[np.ndarray, int]:
        tile, offset = self.split(address)
        if offset % (self.mlen * self.blen):
            raise Fault(f"MRAM offset {offset}")
        return tile, offset // self.mlen

    def head(self, address: int) -> tuple[np.ndarray, int]:
        tile, offset = self.split(address)
        if offset >= self.mlen or offset % self.hlen or self.hlen * self.heads != self.mlen:
            raise Fault(f"MRAM offset {offset}")
        return tile, offset

    def sram(self, register: int, imm: int, count: int = 1) -> int:
        address = (self.gp[register] + imm) & M32
        if address + count > 1024:
            raise Fault(f"SRAM entry {address}")
        return address

    # -- HBM --------------------------------------------------------------------------------------------------------

    def transfer(self, rs1: int, rs2: int, rstride: int, fmt: Format, count: int) -> tuple[list[int], list[int]]:
        ratio = fmt.block if fmt.block else 1
        stride = self.stride if rstride == 1 else self.mlen
        e0 = self.a[rs2] + self.gp[rs1]
        s0 = self.a[rs2] + self.scale + self.gp[rs1] // ratio
        step = F32(stride) / F32(ratio)
        return (
            [e0 + (i * stride & M32) for i in range(count)],
            [s0 + int(F32(i) * step) for i in range(count)],
        )

    def read_bytes(self, address: int, count: int) -> np.ndarray:
        out = np.zeros(count, np.uint8)
        part = self.hbm[address : address + count]
        out[: len(part)] = part
        return out

    def fetch(self, e: int, s: int, fmt: Format) -> np.ndarray:
        if not fmt.block:
            return (self.read_bytes(e, 2 * self.mlen).view("<u2").astype(np.uint32) << 16).view(F32)
        count = self.mlen // fmt.block
        scales = np.zeros(count, np.uint8)
        inside = min(count, 64 - s % 64)  # one block read only: what lies beyond counts as 0
        scales[:inside] = self.read_bytes(s, inside)
        with np.errstate(invalid="ignore"):
            return fmt.table[self.read_bytes(e, self.mlen)] * np.repeat(E8M0[scales], fmt.block)

    def store_bytes(self, address: int, data: np.ndarray) -> None:
        if address + len(data) > self.hbm_size:
            raise Fault(f"HBM address {address}")
        if address + len(data) > len(self.hbm):
            self.hbm = np.concatenate([self.hbm, np.zeros(address + len(data), np.uint8)])
        self.hbm[address : address + len(data)] = data

    # -- execution --------------------------------------------------------------------------------------------------

    def run(self) -> "NumpyMachine":
        decoded = [
            (w & 63, w >> 6 & 15, w >> 10 & 15, w >> 14 & 15, w >> 18 & 15, w >> 22 & 15, w >> 14, w >> 10)
            for w in self.words
        ]
        handlers = [getattr(self, f"op_{code:02x}", None) for code in range(64)]
        with np.errstate(all="ignore"):
            while self.pc < len(decoded):
                op, *fields = decoded[self.pc]
                for entry in self.loops:
                    entry[2] += 1
                    if entry[2] > self.loop_limit:
                        raise Fault("loop guard")
                handler = handlers[op]
                if handler is None:
                    raise Fault(f"invalid opcode at pc {self.pc}")
                handler(*fields)
                self.pc += 1
                self.executed += 1
        return self

    # sums, in whatever order NumPy takes; OrderedNumpyMachine takes the hardware model's
    def matmul(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return x @ w

    def dots(self, rows: np.ndarray, x: np.ndarray) -> np.ndarray:
        return rows @ x

    def sums(self, rows: np.ndarray) -> np.ndarray:
        return rows.sum(axis=1, dtype=F32)

    # matrix
    def product(self, matrix: int, vector: int, transposed: bool) -> np.ndarray:
        tile, c = self.column(matrix)
        x = self.rows(vector, self.blen)
        return self.matmul(x, tile[c : c + self.blen].T if transposed else tile[:, c : c + self.blen])

    def op_01(self, rd, rs1, rs2, *_):
        self.acc = self.acc + self.product(self.gp[rs1], self.gp[rs2], False)

    def op_02(self, rd, rs1, rs2, *_):
        self.acc = self.acc + self.product(self.gp[rs2], self.gp[rs1], True)

    def head_product(self, matrix: int, x: np.ndarray, transposed: bool) -> np.ndarray:
        tile, h = self.head(matrix)
        w = tile[:, h : h + self.hlen].T if transposed else tile[h : h + self.hlen]
        if transposed:
            slices = [x[:, j * self.hlen : (j + 1) * self.hlen] for j in range(self.heads)]
        else:
            slices = [x[:, j :: self.heads] for j in range(self.heads)]
        return np.stack([self.matmul(s, w) * F32(0.25) for s in slices])

    def op_03(self, rd, rs1, rs2, *_):
        self.hm = self.hm + self.head_product(self.gp[rs1], self.rows(self.gp[rs2], self.mlen), False)

    def op_04(self, rd, rs1, rs2, *_):
        self.hm = self.hm + self.head_product(self.gp[rs1], self.rows(self.gp[rs2], self.mlen), True)

    def op_0a(self, rd, rs1, rs2, *_):
        tile, h = self.head((self.gp[rs1] + self.gp[rd]) & M32)
        slots = self.row(self.gp[rs2]).reshape(self.heads, self.hlen)
        self.hv = self.hv + np.stack([self.dots(tile[:, h : h + self.hlen], s) * F32(0.25) for s in slots])

    def op_05(self, rd, rs1, rs2, rs3, f1, imm, _):
        base = (self.gp[rd] + imm) & M32
        self.rows(base, self.heads * self.mlen)[:] = to_bf16(self.hm.reshape(-1, self.mlen))
        self.hm = np.zeros_like(self.hm)

    def op_06(self, rd, rs1, rs2, rs3, f1, imm, _):
        address = (self.gp[rd] + imm) & M32
        o = address % self.mlen
        if o % self.blen:
            raise Fault(f"write-out offset {o}")
        step = self.gp[rs1] if rs1 else 1
        for i in range(self.blen):
            where = (address - o + i * self.mlen * step) & M32
            row = self.row(where).copy()
            row[o : o + self.blen] = self.acc[i]
            self.put(where, row)
        self.acc = np.zeros_like(self.acc)

    def op_07(self, rd, rs1, rs2, *_):
        tile, o = self.split(self.gp[rs1])
        if o >= self.mlen or o % self.blen:
            raise Fault(f"M_MV offset {o}")
        self.v_acc = self.v_acc + self.matmul(self.row(self.gp[rs2])[None], tile[:, o : o + self.blen])[0]

    def op_08(self, rd, rs1, rs2, *_):
        tile, o = self.split(self.gp[rs1])
        if o:
            raise Fault(f"M_TMV offset {o}")
        self.v_acc = self.v_acc + self.dots(tile[: self.blen], self.row(self.gp[rs2]))

    def op_0b(self, rd, rs1, rs2, rs3, f1, imm, _):
        address = (self.gp[rd] + imm) & M32
        o = address % self.mlen
        if o % self.blen:
            raise Fault(f"write-out offset {o}")
        row = self.row(address - o).copy()
        row[o : o + self.blen] = self.v_acc
        self.put(address - o, row)
        self.v_acc = np.zeros_like(self.v_acc)

    def op_0c(self, rd, rs1, rs2, rs3, f1, imm, _):
        base = (self.gp[rd] + imm) & M32
        self.rows(base, self.heads)[:] = to_bf16(self.hv)
        self.hv = np.zeros_like(self.hv)

    # vector
    def lanes(self, rmask: int) -> np.ndarray:
        if rmask == 0:
            return np.ones(self.mlen, bool)
        slots = [(self.mask >> (h % 32)) & 1 for h in range(self.mlen // self.hlen)]
        return np.repeat(np.array(slots, bool), self.hlen)

    def vector(self, rd, rs1, rmask, result, inactive=None) -> None:
        a = self.row(self.gp[rs1]) if inactive is None else inactive
        self.put(self.gp[rd], np.where(self.lanes(rmask), result, a))

    def op_0d(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, self.row(self.gp[rs1]) + self.row(self.gp[rs2]))

    def op_0e(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, self.row(self.gp[rs1]) + self.f[rs2])

    def op_0f(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, self.row(self.gp[rs1]) - self.row(self.gp[rs2]))

    def op_10(self, rd, rs1, rs2, m, order, *_):
        a = self.row(self.gp[rs1])
        self.vector(rd, rs1, m, -(a - self.f[rs2]) if order else a - self.f[rs2])

    def op_11(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, self.row(self.gp[rs1]) * self.row(self.gp[rs2]))

    def op_12(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, self.row(self.gp[rs1]) * self.f[rs2])

    def op_13(self, rd, rs1, rs2, m, *_):
        a = self.row(self.gp[rs1])
        clamped = np.where(np.isnan(a), a, np.clip(a, F32(-88), F32(88)))
        self.vector(rd, rs1, m, np.exp(clamped.astype(np.float64)).astype(F32), clamped)

    def op_14(self, rd, rs1, rs2, m, *_):
        self.vector(rd, rs1, m, F32(1) / self.row(self.gp[rs1]))

    def op_15(self, rd, rs1, rs2, m, *_):
        if rd:
            row = self.row(self.gp[rs1]).copy()
            if m:
                slots = row.reshape(-1, self.hlen)
                active = self.lanes(m).reshape(-1, self.hlen)[:, 0]
                slots[active] = self.sums(slots[active])[:, None]
            self.f[rd] = scalar_bf16(self.f[rd] + self.sums(row[None])[0])

    def op_16(self, rd, rs1, rs2, m, *_):
        if rd:
            m, f = row_max(self.row(self.gp[rs1])), self.f[rd]
            self.f[rd] = m if m >= f or np.isnan(f) else f

    def op_35(self, rd, rs1, rs2, m, *_):
        a, f = self.row(self.gp[rs1]), self.f[rs2]
        self.vector(rd, rs1, m, np.full_like(a, np.nan) if np.isnan(f) else np.where(a < f, f, a))

    def op_36(self, rd, rs1, rs2, m, *_):
        a, f = self.row(self.gp[rs1]), self.f[rs2]
        self.vector(rd, rs1, m, np.full_like(a, np.nan) if np.isnan(f) else np.where(a > f, f, a))

    def op_32(self, rd, rs1, rs2, *_):
        n = min(self.gp[rs2], self.mlen)
        self.put(self.gp[rd], np.concatenate([np.zeros(n, F32), self.row(self.gp[rs1])[: self.mlen - n]]))

    def op_37(self, rd, rs1, rs2, policy, *_):
        if policy > 1:
            raise Fault(f"policy {policy}")
        experts, k = ((32, 4), (128, 8))[policy]
        logits = self.rows(self.gp[rs1], -(-experts // self.mlen)).reshape(-1)[:experts].copy()
        logits[np.isnan(logits)] = -np.inf
        keys = logits.view(np.int32).astype(np.int64)
        keys = np.where(keys < 0, -1 - (keys & 0x7FFFFFFF), keys)  # the IEEE total order
        chosen = np.argsort(-keys, kind="stable")[:k]
        picked = logits[chosen]
        w = np.exp((picked - picked[0]).astype(np.float64)).astype(F32)
        total = F32(0)
        for x in w:
            total = F32(total + x)
        first_int, first_fp = self.sram(rs2, 0, k), self.sram(rd, 0, k)
        good = np.isfinite(total) and total > 0
        for r in range(k):
            self.ints[first_int + r] = chosen[r]
            self.fp[first_fp + r] = scalar_bf16(w[r] / total) if good else F32(0)

    # scalar
    def set_f(self, rd, value) -> None:
        if rd:
            self.f[rd] = scalar_bf16(value)

    def op_17(self, rd, rs1, rs2, *_):
        self.set_f(rd, self.f[rs1] + self.f[rs2])

    def op_18(self, rd, rs1, rs2, *_):
        self.set_f(rd, self.f[rs1] - self.f[rs2])

    def op_19(self, rd, rs1, rs2, *_):
        self.set_f(rd, self.f[rs2] if self.f[rs2] > self.f[rs1] else self.f[rs1])

    def op_1a(self, rd, rs1, rs2, *_):
        self.set_f(rd, self.f[rs1] * self.f[rs2])

    def op_1b(self, rd, rs1, *_):
        x = self.f[rs1]
        self.set_f(rd, x if np.isnan(x) else F32(np.exp(np.float64(np.clip(x, F32(-88), F32(88))))))

    def op_1c(self, rd, rs1, *_):
        self.set_f(rd, F32(1) / self.f[rs1])

    def op_1d(self, rd, rs1, *_):
        self.set_f(rd, np.sqrt(self.f[rs1]))

    def op_1e(self, rd, rs1, rs2, rs3, f1, imm, _):
        self.f[rd] = self.fp[self.sram(rs1, imm)]

    def op_1f(self, rd, rs1, rs2, rs3, f1, imm, _):
        self.fp[self.sram(rs1, imm)] = self.f[rd]

    def op_20(self, rd, rs1, rs2, rs3, f1, imm, _):
        first = self.sram(rs1, imm, self.mlen)
        self.put(self.gp[rd], self.fp[first : first + self.mlen])

    def op_21(self, rd, rs1, rs2, *_):
        self.gp[rd] = self.gp[rs1] + self.gp[rs2] & M32

    def op_22(self, rd, rs1, rs2, rs3, f1, imm, _):
        self.gp[rd] = self.gp[rs1] + imm & M32

    def op_23(self, rd, rs1, rs2, *_):
        self.gp[rd] = self.gp[rs1] - self.gp[rs2] & M32

    def op_24(self, rd, rs1, rs2, *_):
        self.gp[rd] = self.gp[rs1] * self.gp[rs2] & M32

    def op_25(self, rd, rs1, rs2, rs3, f1, imm, imm22):
        self.gp[rd] = imm22 << 12 & M32

    def op_26(self, rd, rs1, rs2, rs3, f1, imm, _):
        self.gp[rd] = int(self.ints[self.sram(rs1, imm)])

    def op_27(self, rd, rs1, rs2, rs3, f1, imm, _):
        self.ints[self.sram(rs1, imm)] = self.gp[rd]

    # memory
    def op_28(self, rd, rs1, rs2, rstride, precision, *_):
        if self.gp[rd] % self.tile:
            raise Fault(f"MRAM address {self.gp[rd]}")
        fmt = self.m_types[precision != 0]
        elements, scales = self.transfer(rs1, rs2, rstride, fmt, self.rows_m)
        for i, (e, s) in enumerate(zip(elements, scales, strict=True)):
            self.split(self.gp[rd] + i // self.mlen * self.tile)[0][i % self.mlen] = self.fetch(e, s, fmt)

    def op_29(self, rd, rs1, rs2, rstride, precision, *_):
        first = self.row_index(self.gp[rd])
        fmt = self.v_types[precision != 0]
        elements, scales = self.transfer(rs1, rs2, rstride, fmt, self.rows_v)
        for i, (e, s) in enumerate(zip(elements, scales, strict=True)):
            if first + i < self.depth:
                self.vram[first + i] = to_bf16(self.fetch(e, s, fmt))

    def op_2a(self, rd, rs1, rs2, rstride, precision, *_):
        fmt = self.v_types[precision != 0]
        elements, scales = self.transfer(rs1, rs2, rstride, fmt, self.rows_s)
        for i, (e, s) in enumerate(zip(elements, scales, strict=True)):
            x = self.row(self.gp[rd] + i * self.mlen)
            if not fmt.block:
                self.store_bytes(e, (x.view(np.uint32) >> 16).astype("<u2").view(np.uint8))
                continue
            codes, scale = mx_encode(x, fmt.exponent, fmt.mantissa, fmt.block)
            self.store_bytes(e, codes)
            self.store_bytes(s, scale)

    # control
    def op_2b(self, rd, rs1, rs2, *_):
        self.a[rd] = self.gp[rs1] << 32 | self.gp[rs2]

    def op_2c(self, rd, *_):
        self.scale = self.gp[rd]

    def op_2d(self, rd, *_):
        self.stride = self.gp[rd]

    def op_2e(self, rd, *_):
        self.mask = self.gp[rd]

    def op_2f(self, rd, rs1, rs2, rs3, f1, imm, imm22):
        if imm22 == 0:
            raise Fault("loop of 0 iterations")
        self.gp[rd] = imm22
        self.loops.append([self.pc, rd, 0])

    def op_30(self, rd, *_):
        for index in reversed(range(len(self.loops))):
            if self.loops[index][1] == rd:
                break
        else:
            raise Fault("no such loop")
        if self.gp[rd] > 1:
            self.gp[rd] -= 1
            self.loops[index][2] = 0
            self.pc = self.loops[index][0]
        else:
            self.gp[rd] = 0
            del self.loops[index]

    def op_34(self, *_):
        if not self.loops:
            raise Fault("no loop to leave")
        self.gp[self.loops.pop()[1]] = 0


class OrderedNumpyMachine(NumpyMachine):
    """The same with every float32 sum in the order of the hardware model (docs/numerics.md): equal to the last bit."""

    def matmul(self, x, w):
        total = None
        for start in range(0, len(w), 128):
            part = x[:, start, None] * w[start]
            for k in range(start + 1, min(start + 128, len(w))):
                part = part + x[:, k, None] * w[k]
            total = part if total is None else total + part
        return total

    def dots(self, rows, x):
        products = rows * x
        if len(x) % 8:
            return in_sequence(products.T)
        lanes = in_sequence(products.reshape(len(rows), -1, 8).swapaxes(0, 1))
        lanes = lanes[:, :4] + lanes[:, 4:]
        return (lanes[:, 0] + lanes[:, 1]) + (lanes[:, 2] + lanes[:, 3])

    def sums(self, rows):
        m, n = rows.shape
        total = np.zeros(m, F32)
        for lane in range(n // 8 * 8, n):
            total = total + rows[:, lane]
        vectors = rows[:, : n // 8 * 8].reshape(m, n // 8, 8).swapaxes(0, 1)
        if not len(vectors):
            return total
        turns = len(vectors) // 4
        groups = [in_sequence(vectors[g : turns * 4 : 4]) for g in range(4)] if turns else [np.zeros((m, 8), F32)]
        first = groups[0]
        for vector in [*vectors[turns * 4 :], *groups[1:]]:
            first = first + vector
        for lane in range(8):
            total = total + first[:, lane]
        return total


def in_sequence(terms: np.ndarray) -> np.ndarray:
    """Sum over the first axis, one after the other."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
