"""Random valid programs: every datapath instruction, masks, strides, nested loops, rows and registers reused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plena_jax import Images, MachineConfig, Program, assemble

#: Loop counters, and registers that hold addresses for the next instruction.
_LOOPS = ("gp13", "gp14", "gp15")


@dataclass(frozen=True)
class RandomProgram:
    """A program and the images it runs on."""

    program: Program
    images: Images


class _Writer:
    """Writes instructions whose operands are in range; few rows, so that they alias."""

    def __init__(
        self, config: MachineConfig, random: np.random.Generator, rows: int, hbm: int, topk: bool, tame: bool
    ) -> None:
        self.config, self.random, self.rows, self.hbm, self.tame = config, random, rows, hbm, tame
        self.topk = topk and rows * config.vlen >= 256
        self.lines: list[str] = []
        self.depth = 0

    def pick(self, stop: int, unit: int = 1) -> int:
        return int(self.random.integers(0, max(stop, 1))) * unit

    def set(self, register: str, value: int) -> str:
        if value < 1 << 18:
            self.lines.append(f"S_ADDI_INT {register}, gp0, {value}")
        else:
            self.lines += [f"S_LUI_INT {register}, {value >> 12}", f"S_ADDI_INT {register}, {register}, {value & 4095}"]
        return register

    def row(self, register: str, count: int = 1) -> str:
        return self.set(register, self.pick(self.rows - count + 1, self.config.vlen))

    def tile(self, register: str, offset: int) -> str:
        return self.set(register, self.pick(self.config.tiles, self.config.mlen**2) + offset)

    def f(self, first: int = 0) -> str:
        return f"f{self.random.integers(first, 8)}"

    def mask(self) -> int:
        return int(self.random.choice([0, 0, 1, 15]))

    def emit(self, text: str) -> None:
        self.lines.append(text)

    # one method for each family

    def matmul(self) -> None:
        c = self.config
        for _ in range(self.random.integers(1, 5)):
            m = self.tile("gp1", self.pick(c.mlen // c.blen, c.blen * c.mlen))
            v = self.row("gp2", c.blen)
            self.emit(f"M_MM 0, {m}, {v}" if self.random.random() < 0.6 else f"M_TMM 0, {v}, {m}")
        if self.random.random() < 0.9:
            stride = int(self.random.choice([0, 1, 2]))
            self.set("gp3", stride)
            self.row("gp4", c.blen * max(stride, 1))
            register = "gp0" if self.random.random() < 0.6 else "gp3"
            self.emit(f"M_MM_WO gp4, {register}, {self.pick(c.mlen // c.blen, c.blen)}")

    def batched(self) -> None:
        c = self.config
        for _ in range(self.random.integers(1, 3)):
            m = self.tile("gp1", self.pick(c.mlen // c.hlen, c.hlen))
            self.emit(f"{self.random.choice(['M_BMM', 'M_BTMM'])} 0, {m}, {self.row('gp2', c.mlen)}")
        if self.random.random() < 0.9:
            self.emit(f"M_BMM_WO {self.row('gp3', c.broadcast_amount * c.mlen)}, 0")

    def vector_products(self) -> None:
        c = self.config
        if self.random.random() < 0.5:
            m = self.tile("gp1", self.pick(c.mlen // c.hlen, c.hlen))
            self.emit(f"M_BTMV gp0, {m}, {self.row('gp2')}")
            self.emit(f"M_BMV_WO {self.row('gp3', c.broadcast_amount)}, 0")
        else:
            offset = self.pick(c.mlen // c.blen, c.blen)
            self.emit(f"M_MV 0, {self.tile('gp1', offset)}, {self.row('gp2')}")
            self.emit(f"M_TMV 0, {self.tile('gp1', 0)}, {self.row('gp2')}")
            self.emit(f"M_MV_WO {self.row('gp3')}, {self.pick(c.mlen // c.blen, c.blen)}")

    def vector(self) -> None:
        name = self.random.choice(["V_ADD_VV", "V_SUB_VV", "V_SUB_VV" if self.tame else "V_MUL_VV"])
        self.emit(f"{name} {self.row('gp1')}, {self.row('gp2')}, {self.row('gp3')}, {self.mask()}")

    def vector_scalar(self) -> None:
        name = self.random.choice(["V_ADD_VF", "V_SUB_VF", "V_MUL_VF", "V_MAX_VF", "V_MIN_VF"])
        order = f", {self.random.integers(0, 2)}" if name == "V_SUB_VF" else ""
        self.emit(f"{name} {self.row('gp1')}, {self.row('gp2')}, {self.f()}, {self.mask()}{order}")

    def vector_one(self) -> None:
        name = self.random.choice(["V_EXP_V", "V_RECI_V"])
        self.emit(f"{name} {self.row('gp1')}, {self.row('gp2')}, {self.mask()}")

    def shift(self) -> None:
        self.emit(f"V_SHFT_V {self.row('gp1')}, {self.row('gp2')}, {self.set('gp3', self.pick(self.config.vlen + 2))}")

    def reduce(self) -> None:
        name = self.random.choice(["V_RED_SUM", "V_RED_MAX"])
        self.emit(f"{name} {self.f()}, {self.row('gp1')}, {self.mask()}")

    def scalar(self) -> None:
        name = self.random.choice(["S_ADD_FP", "S_SUB_FP", "S_MAX_FP", "S_MUL_FP"])
        self.emit(f"{name} {self.f()}, {self.f()}, {self.f()}")

    def scalar_one(self) -> None:
        self.emit(f"{self.random.choice(['S_EXP_FP', 'S_RECI_FP', 'S_SQRT_FP'])} {self.f()}, {self.f()}")

    def fp_sram(self) -> None:
        self.set("gp1", self.pick(8))
        # f0 is an ordinary destination of S_LD_FP.
        self.emit(f"{self.random.choice(['S_LD_FP', 'S_ST_FP'])} {self.f(1)}, gp1, {self.pick(8)}")

    def map_fp(self) -> None:
        self.emit(f"S_MAP_V_FP {self.row('gp1')}, {self.set('gp2', self.pick(8))}, {self.pick(8)}")

    def int_sram(self) -> None:
        self.set("gp1", self.pick(8))
        self.emit(f"S_ST_INT {self.set('gp5', self.pick(1000))}, gp1, {self.pick(4)}")
        self.emit(f"S_LD_INT gp6, gp1, {self.pick(4)}")
        self.emit(f"{self.random.choice(['S_ADD_INT', 'S_SUB_INT', 'S_MUL_INT'])} gp7, gp6, gp5")

    def top(self) -> None:
        if self.topk:
            policy = int(self.random.integers(0, 2))
            rows = -(-(32, 128)[policy] // self.config.vlen)
            first = self.row("gp2", rows)
            weights, indices = self.set("gp1", 64 + self.pick(8)), self.set("gp3", 64 + self.pick(8))
            self.emit(f"V_TOPK {weights}, {first}, {indices}, {policy}")

    def registers(self) -> None:
        which = self.random.integers(0, 3)
        if which == 0:
            self.emit(f"C_SET_V_MASK_REG {self.set('gp1', self.pick(1 << (self.config.mlen // self.config.hlen)))}")
        elif which == 1:
            stride = self.config.vlen * int(self.random.integers(1, 3))
            self.emit(f"C_SET_STRIDE_REG {self.set('gp1', stride)}")
        else:
            self.emit(f"C_SET_ADDR_REG a1, gp0, {self.set('gp1', self.pick(4, 64))}")

    def transfer(self) -> None:
        c, name = self.config, self.random.choice(["H_PREFETCH_M", "H_PREFETCH_V", "H_STORE_V"])
        rows = {"H_PREFETCH_M": c.mlen, "H_PREFETCH_V": c.hbm_v_prefetch_amount}.get(name, c.hbm_v_writeback_amount)
        target = self.tile("gp1", 0) if name == "H_PREFETCH_M" else self.row("gp1", rows)
        offset = self.set("gp2", self.pick(8, 8 * c.vlen))
        self.emit(f"{name} {target}, {offset}, a{self.random.integers(0, 2)}, {self.random.integers(0, 2)}, 0")

    def loop(self) -> None:
        if self.depth == len(_LOOPS):
            return
        counter, pointer = _LOOPS[self.depth], f"gp{8 + self.depth}"
        self.depth += 1
        trips = int(self.random.integers(1, 5))
        self.row(pointer, trips)
        self.emit(f"C_LOOP_START {counter}, {trips}")
        self.some(int(self.random.integers(1, 4)))
        self.emit(f"V_ADD_VV {pointer}, {pointer}, {self.row('gp1')}")
        self.emit(f"S_ADDI_INT {pointer}, {pointer}, {self.config.vlen}")
        self.emit(f"C_LOOP_END {counter}")
        self.depth -= 1

    def some(self, count: int) -> None:
        often = [self.vector, self.reduce, self.transfer, self.loop]
        families = [
            *often,
            *often,
            *(self.matmul, self.batched, self.vector_products, self.vector_scalar, self.vector_one, self.shift),
            *(self.scalar, self.scalar_one, self.fp_sram, self.map_fp, self.int_sram, self.top, self.registers),
        ]
        if self.tame:
            families = [f for f in families if f not in (self.vector_one, self.scalar_one)]
        for _ in range(count):
            families[self.random.integers(0, len(families))]()


def random_program(
    config: MachineConfig,
    seed: int,
    size: int = 40,
    rows: int = 24,
    topk: bool = True,
    extremes: float = 0.0,
    tame: bool = False,
) -> RandomProgram:
    """A program of about ``size`` random steps on ``rows`` rows of VRAM.

    Args:
        config: the machine; MX formats of 8-bit elements, H_STORE_V among the instructions.
        seed: of everything.
        size: steps; loops multiply them.
        rows: VRAM rows in use: few, so that they are reused.
        topk: include V_TOPK (its results are not loaded as integers).
        extremes: share of VRAM words that are any bit pattern: huge, subnormal, infinite, NaN.
        tame: without what easily leaves the range of float32: exponentials, reciprocals, products of rows.
    """
    random = np.random.default_rng(seed)
    hbm = 8 * 1024
    rows = max(rows, config.broadcast_amount * config.mlen)
    writer = _Writer(config, random, min(rows, config.vector_sram_size), hbm, topk, tame)
    writer.set("gp1", 4096)
    writer.emit("C_SET_SCALE_REG gp1")
    writer.some(size)
    vram = random.normal(size=writer.rows * config.vlen).astype(np.float32)
    bits = vram.view(np.uint32) >> 16
    bits = np.where(random.random(bits.size) < extremes, random.integers(0, 1 << 16, bits.size), bits)
    image = np.zeros(hbm, np.uint8)
    image[:] = random.integers(0, 0x60, hbm)
    # Scales near one, elements without infinities; both read by anything.
    image[4096:] = random.integers(120, 130, hbm - 4096)
    fp = random.normal(size=64).astype(np.float16)
    images = Images(hbm=image.tobytes(), fp_sram=fp.tobytes(), vram=bits.astype("<u2").tobytes())
    return RandomProgram(assemble("\n".join(writer.lines)), images)
