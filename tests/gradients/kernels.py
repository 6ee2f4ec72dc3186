"""Small programs that compute something known, as assembly text."""

from __future__ import annotations

from plena_jax import MachineConfig

#: Elements from one tensor in HBM to the next.
SPACING = 1024


def constant(register: str, value: int) -> str:
    """Any 18-bit constant."""
    return f"S_ADDI_INT {register}, gp0, {value}"


class Kernel:
    """Writes instructions for one machine; rows are numbers of VRAM rows."""

    def __init__(self, config: MachineConfig) -> None:
        self.config = config
        self.lines: list[str] = []

    @property
    def text(self) -> str:
        """The program so far."""
        return "\n".join(self.lines)

    def at(self, register: str, row: int) -> str:
        """A register that holds the address of a row."""
        self.lines.append(constant(register, row * self.config.vlen))
        return register

    def emit(self, text: str) -> None:
        """One instruction."""
        self.lines.append(text)

    def fetch_tiles(self, tensor: int, count: int) -> None:
        """Matrix ``tensor`` of HBM [count * MLEN, MLEN] to matrix SRAM, from tile 0 on."""
        side = self.config.mlen
        self.lines += [constant("gp3", side), "C_SET_STRIDE_REG gp3"]
        for tile in range(count):
            self.lines += [constant("gp1", tile * side**2), constant("gp2", tensor * SPACING + tile * side**2)]
            self.emit("H_PREFETCH_M gp1, gp2, a0, 1, 0")

    def fetch_rows(self, tensor: int, row: int, count: int) -> None:
        """Rows of ``tensor`` to VRAM."""
        self._move("H_PREFETCH_V", tensor, row, count, self.config.hbm_v_prefetch_amount)

    def store_rows(self, tensor: int, row: int, count: int) -> None:
        """Rows of VRAM to ``tensor``."""
        self._move("H_STORE_V", tensor, row, count, self.config.hbm_v_writeback_amount)

    def _move(self, mnemonic: str, tensor: int, row: int, count: int, step: int) -> None:
        width = self.config.vlen
        self.lines += [constant("gp3", width), "C_SET_STRIDE_REG gp3"]
        for i in range(0, count, step):
            self.lines += [self.set("gp2", tensor * SPACING + i * width)]
            self.emit(f"{mnemonic} {self.at('gp1', row + i)}, gp2, a0, 1, 0")

    def set(self, register: str, value: int) -> str:
        """The instruction that sets a register."""
        return constant(register, value)

    def matmul(self, out: int, x: int, rows: int, tiles: int = 1, transposed: bool = False) -> None:
        """``tiles`` blocks of MLEN columns at ``x``, one below the other, times as many tiles, or one transposed."""
        side, small = self.config.mlen, self.config.blen
        for column in range(0, side, small):
            for row in range(0, rows, small):
                for tile in range(tiles):
                    vector = self.at("gp2", x + tile * rows + row)
                    offset = tile * side**2 + column * (side if transposed else 1)
                    self.lines.append(constant("gp1", offset if transposed else tile * side**2 + column * side))
                    self.emit(f"M_TMM 0, {vector}, gp1" if transposed else f"M_MM 0, gp1, {vector}")
                self.emit(f"M_MM_WO {self.at('gp4', out + row)}, gp0, {column}")

    def softmax(self, row: int, count: int) -> None:
        """Softmax of each row; f7 is minus a large number, f0 zero."""
        for i in range(row, row + count):
            r = self.at("gp1", i)
            self.lines += [
                "S_ADD_FP f1, f7, f0",
                f"V_RED_MAX f1, {r}, 0",
                f"V_SUB_VF {r}, {r}, f1, 0, 0",
                f"V_EXP_V {r}, {r}, 0",
                "S_ADD_FP f2, f0, f0",
                f"V_RED_SUM f2, {r}, 0",
                "S_RECI_FP f2, f2",
                f"V_MUL_VF {r}, {r}, f2, 0",
            ]

    def rms_norm(self, row: int, count: int, scratch: int) -> None:
        """Each row over its root mean square; f5 is 1 / VLEN, f6 epsilon."""
        for i in range(row, row + count):
            r, s = self.at("gp1", i), self.at("gp2", scratch)
            self.lines += [
                f"V_MUL_VV {s}, {r}, {r}, 0",
                "S_ADD_FP f2, f0, f0",
                f"V_RED_SUM f2, {s}, 0",
                "S_MUL_FP f2, f2, f5",
                "S_ADD_FP f2, f2, f6",
                "S_SQRT_FP f2, f2",
                "S_RECI_FP f2, f2",
                f"V_MUL_VF {r}, {r}, f2, 0",
            ]

    def silu(self, row: int, count: int, scratch: int) -> None:
        """x / (1 + exp(-x)); f4 is 1."""
        for i in range(row, row + count):
            r, s = self.at("gp1", i), self.at("gp2", scratch)
            self.lines += [
                f"V_SUB_VF {s}, {r}, f0, 0, 1",
                f"V_EXP_V {s}, {s}, 0",
                f"V_ADD_VF {s}, {s}, f4, 0",
                f"V_RECI_V {s}, {s}, 0",
                f"V_MUL_VV {r}, {r}, {s}, 0",
            ]
