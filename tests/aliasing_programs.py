"""Random programs that reuse rows, tiles, registers, entries and bytes as hard as they can."""

from __future__ import annotations

import numpy as np

from plena_jax import Images, MachineConfig, assemble
from tests.random_programs import RandomProgram, _Writer

_ROWS, _TILES, _ENTRIES, _REGISTERS = 3, 2, 3, 3


class _Crowded(_Writer):
    """Everything within a few rows, tiles and registers; many products that make whole rows."""

    def row(self, register: str, count: int = 1) -> str:
        return self.set(register, self.pick(min(self.rows - count + 1, _ROWS), self.config.vlen))

    def tile(self, register: str, offset: int) -> str:
        return self.set(register, self.pick(_TILES, self.config.mlen**2) + offset)

    def f(self, first: int = 0) -> str:
        return f"f{self.random.integers(1, 1 + _REGISTERS)}"

    def fp_sram(self) -> None:
        self.set("gp1", self.pick(_ENTRIES))
        self.emit(f"{self.random.choice(['S_LD_FP', 'S_ST_FP'])} {self.f()}, gp1, 0")

    def matmul(self) -> None:
        """All blocks of some rows, or some of them; a chain now and then mixes columns."""
        c, blocks = self.config, self.config.mlen // self.config.blen
        rows, target = self.pick(_ROWS, c.vlen), self.pick(_ROWS, c.vlen)
        tiles = [self.pick(_TILES, c.mlen**2) for _ in range(self.random.integers(1, 4))]
        transposed = self.random.random(len(tiles)) < 0.3
        whole, mixed = self.random.random() < 0.6, self.random.random() < 0.2
        for block in range(blocks):
            if not whole and self.random.random() < 0.5:
                continue
            for tile, turned in zip(tiles, transposed, strict=True):
                column = self.pick(blocks) if mixed else block
                m, v = self.set("gp1", tile + column * c.blen * c.mlen), self.set("gp2", rows)
                self.emit(f"M_TMM 0, {v}, {m}" if turned else f"M_MM 0, {m}, {v}")
            if self.random.random() < 0.95:
                self.set("gp4", target)
                self.emit(f"M_MM_WO gp4, gp0, {block * c.blen}")
            if self.random.random() < 0.1:
                self.vector()

    def vector_products(self) -> None:
        """All blocks of one row, or some."""
        c, tile = self.config, self.pick(_TILES, self.config.mlen**2)
        if self.random.random() < 0.3:
            super().vector_products()
            return
        rows = [self.pick(_ROWS, c.vlen) for _ in range(self.random.integers(1, 3))]
        target = self.pick(_ROWS, c.vlen)
        for block in range(0, c.mlen, c.blen):
            for row in rows:
                self.emit(f"M_MV 0, {self.set('gp1', tile + block)}, {self.set('gp2', row)}")
            if self.random.random() < 0.9:
                self.emit(f"M_MV_WO {self.set('gp3', target)}, {block}")

    def transfer(self) -> None:
        name = self.random.choice(["H_PREFETCH_M", "H_PREFETCH_V", "H_STORE_V", "H_STORE_V"])
        rows = {"H_PREFETCH_M": 1, "H_PREFETCH_V": self.config.hbm_v_prefetch_amount}.get(name, 1)
        target = self.tile("gp1", 0) if name == "H_PREFETCH_M" else self.row("gp1", rows)
        offset = self.set("gp2", self.pick(4, 2 * self.config.vlen))
        self.emit(f"{name} {target}, {offset}, a0, 0, 0")


def aliasing_program(config: MachineConfig, seed: int, size: int = 60) -> RandomProgram:
    """A program of about ``size`` random steps; tame, so that differences do not end in infinities."""
    random = np.random.default_rng(seed)
    rows = config.broadcast_amount * config.mlen
    writer = _Crowded(config, random, rows, 8 * 1024, topk=False, tame=True)
    writer.set("gp1", 4096)
    writer.emit("C_SET_SCALE_REG gp1")
    writer.some(size)
    vram = random.normal(size=rows * config.vlen).astype(np.float32).view(np.uint32) >> 16
    image = random.integers(0, 0x60, 8 * 1024).astype(np.uint8)
    image[4096:] = random.integers(120, 130, 4096)
    fp = random.normal(size=64).astype(np.float16)
    images = Images(hbm=image.tobytes(), fp_sram=fp.tobytes(), vram=vram.astype("<u2").tobytes())
    return RandomProgram(assemble("\n".join(writer.lines)), images)
