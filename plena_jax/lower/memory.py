"""Planning: which tensor is where, and when."""

from __future__ import annotations

from dataclasses import dataclass

from plena_jax.config import MachineConfig
from plena_jax.isa.instruction import SRAM_ENTRIES
from plena_jax.lower.graph import Graph, Node
from plena_jax.lower.operators import Workspace
from plena_jax.lower.tensors import (
    SCALARS,
    CapacityError,
    Entries,
    Matrix,
    OperatorError,
    Rows,
    Tensor,
    place_matrix,
    round_up,
    row_unit,
    vram_rows,
)
from plena_jax.machine.transfer import BLOCK


@dataclass(frozen=True)
class Allocation:
    """A range of a memory for a time.

    Attributes:
        name: of a tensor, or of the node whose workspace it is.
        start, size: in VRAM rows, HBM bytes, or FP SRAM entries.
        first, last: numbers of the nodes from which and to which it is in use; -1 is before the first.
    """

    name: str
    start: int
    size: int
    first: int
    last: int

    @property
    def stop(self) -> int:
        """One past its end."""
        return self.start + self.size


class Pool:
    """A memory in which ranges come and go. The lowest gap that fits best is taken."""

    def __init__(self, what: str, size: int, unit: str) -> None:
        self.what, self.size, self.unit = what, size, unit
        self.live: dict[str, tuple[int, int]] = {}

    def take(self, name: str, size: int) -> int:
        """The start of a free range.

        Raises:
            CapacityError: no gap is large enough; names what is live.
        """
        best = None
        start = 0
        for first, stop in [*sorted(self.live.values()), (self.size, self.size)]:
            gap = first - start
            if gap >= size and (best is None or gap < best[0]):
                best = gap, start
            start = max(start, stop)
        if best is None:
            live = ", ".join(f"{n} ({b - a:,})" for n, (a, b) in sorted(self.live.items(), key=lambda i: i[1]))
            free = self.size - sum(b - a for a, b in self.live.values())
            raise CapacityError(
                f"{self.what}: {name} needs {size:,} {self.unit}; {free:,} of {self.size:,} are free"
                + (f", live are {live}" if live else ""),
                self.what,
            )
        self.live[name] = best[1], best[1] + size
        return best[1]

    def give(self, name: str) -> None:
        """The range of ``name`` is free again."""
        del self.live[name]

    def rename(self, old: str, new: str) -> int:
        """``new`` takes the range of ``old``."""
        self.live[new] = self.live.pop(old)
        return self.live[new][0]


@dataclass(frozen=True)
class Plan:
    """Where everything is.

    Attributes:
        config: the machine.
        vram, hbm, fp_sram, int_sram: what is where, when.
        rows: of tensors in VRAM, by name.
        matrices: of tensors in HBM, by name.
        entries: of tensors in FP SRAM and INT SRAM, by name.
        workspace: first VRAM row and first FP SRAM entry of each node's workspace, by node.
        hbm_bytes: up to the last tensor.
    """

    config: MachineConfig
    vram: tuple[Allocation, ...]
    hbm: tuple[Allocation, ...]
    fp_sram: tuple[Allocation, ...]
    int_sram: tuple[Allocation, ...]
    rows: dict[str, Rows]
    matrices: dict[str, Matrix]
    entries: dict[str, Entries]
    workspace: dict[str, tuple[int, int]]
    hbm_bytes: int

    def located(self, tensor: Tensor) -> Rows | Matrix | Entries:
        """Where a tensor, or a view of one, is.

        Raises:
            OperatorError: a view in FP SRAM, behind which there are no zeros, or in INT SRAM.
        """
        row, column = tensor.start
        if tensor.place in SCALARS:
            entries = self.entries[tensor.root.name]
            if tensor.shape != entries.shape:
                raise OperatorError(f"{tensor.name}: a view in {tensor.place}; expected all {entries.shape[1]} columns")
            return entries
        if tensor.place == "hbm":
            matrix = self.matrices[tensor.root.name]
            return Matrix(tensor.shape, matrix.tensor, matrix.role, tensor.start)
        base = self.rows[tensor.root.name]
        return Rows(tensor.name, base.at(column // base.lanes, row), tensor.shape, base.lanes, base.pitch)


def last_uses(graph: Graph) -> dict[Tensor, int]:
    """The number of the last node that needs a tensor; of outputs one past the last node."""
    last = {tensor: -1 for tensor in graph.inputs}
    for number, node in enumerate(graph.nodes):
        last[node.output] = number
        for tensor in node.inputs:
            if tensor is not None:
                last[tensor.root] = number
    return last | {tensor.root: len(graph.nodes) for tensor in graph.outputs}


def rows_read(graph: Graph) -> dict[Tensor, int]:
    """Rows of each tensor in HBM that kernels read, those behind the last one included."""
    read: dict[Tensor, int] = {}
    for node in graph.nodes:
        more = node.operator.reads(graph.config, *node.inputs, **node.attributes)
        for name, tensor in zip(node.operator.tensors, node.inputs, strict=True):
            if tensor is not None and tensor.place == "hbm":
                count = more.get(name, round_up(tensor.shape[0], graph.config.mlen))
                read[tensor.root] = max(read.get(tensor.root, 0), tensor.start[0] + count)
    return read


def plan(graph: Graph) -> Plan:
    """Plan the memories of a graph.

    Raises:
        CapacityError: tensors that are needed at once do not fit.
        OperatorError: a format that cannot be transferred.
    """
    return _Planner(graph).run()


class _Planner:
    def __init__(self, graph: Graph) -> None:
        self.graph, self.config = graph, graph.config
        self.last, self.read = last_uses(graph), rows_read(graph)
        # Products of views read whole groups of rows: a few behind the last one exist too.
        self.pool = Pool("VRAM", self.config.vector_sram_size - row_unit(self.config), "rows")
        self.found: list[Allocation] = []
        self.hbm: list[Allocation] = []
        self.matrices: dict[str, Matrix] = {}
        self.entries: dict[str, Entries] = {}
        #: FP SRAM below this entry is free for constants and workspace, INT SRAM below this for workspace.
        self.fp_end = self.int_end = SRAM_ENTRIES
        self.address = 0
        self.fp: list[Allocation] = []
        self.integers: list[Allocation] = []
        self.rows: dict[str, Rows] = {}
        self.workspace: dict[str, tuple[int, int]] = {}

    def run(self) -> Plan:
        """All allocations."""
        for tensor in self.graph.inputs:
            self._take(tensor, -1)
        for number, node in enumerate(self.graph.nodes):
            try:
                self._node(number, node)
            except CapacityError as error:
                error.node = number
                raise
        return Plan(
            self.config,
            tuple(self.found),
            tuple(self.hbm),
            tuple(self.fp),
            tuple(self.integers),
            self.rows,
            self.matrices,
            self.entries,
            self.workspace,
            self.address,
        )

    def _take_hbm(self, tensor: Tensor, number: int) -> None:
        """HBM is not used again: what is there at the end can be looked at."""
        matrix = place_matrix(self.config, tensor, self.address, self.read.get(tensor, 0))
        end = matrix.tensor.end
        if round_up(end, BLOCK) > self.config.hbm_size:
            raise CapacityError(
                f"HBM: {tensor.name} needs {end - self.address:,} bytes from {self.address:,} on; "
                f"there are {self.config.hbm_size:,}",
                "HBM",
            )
        self.matrices[tensor.name] = matrix
        self.hbm.append(Allocation(tensor.name, self.address, end - self.address, number, len(self.graph.nodes)))
        self.address = round_up(end, BLOCK)

    def _node(self, number: int, node: Node) -> None:
        tensors = node.inputs
        needed: Workspace = node.operator.workspace(self.config, *tensors, **node.attributes)
        donor = self._donor(number, node)
        if donor is None:
            self._take(node.output, number)
        elif donor.place == "hbm":
            self.matrices[node.output.name] = self.matrices[donor.name]
        else:
            start = self.pool.rename(donor.name, node.output.name)
            self._locate(node.output, start, number)
        first = fp = 0
        if needed.rows:
            first = self.pool.take(f"workspace of {node.name}", needed.rows)
            self.found.append(Allocation(f"workspace of {node.name}", first, needed.rows, number, number))
        if needed.fp:
            # From the end: constants come from the beginning.
            fp = self.fp_end - needed.fp
            if fp < 0:
                raise CapacityError(
                    f"FP SRAM: {node.name} needs {needed.fp:,} entries; {self.fp_end:,} are free", "FP SRAM"
                )
            self.fp.append(Allocation(f"workspace of {node.name}", fp, needed.fp, number, number))
        if needed.integers > self.int_end:
            raise CapacityError(
                f"INT SRAM: {node.name} needs {needed.integers:,} entries; {self.int_end:,} are free", "INT SRAM"
            )
        if needed.integers:
            self.integers.append(Allocation(f"workspace of {node.name}", 0, needed.integers, number, number))
        self.workspace[node.name] = first, fp
        if needed.rows:
            self.pool.give(f"workspace of {node.name}")
        for tensor in {tensor.root for tensor in tensors if tensor is not None} | {node.output}:
            if self.last[tensor] <= number and tensor.name in self.pool.live:
                self.pool.give(tensor.name)

    def _donor(self, number: int, node: Node) -> Tensor | None:
        """An input whose memory the output may take."""
        for name, tensor in zip(node.operator.tensors, node.inputs, strict=True):
            if name not in node.operator.shares or tensor is None or tensor.base is not None:
                continue
            same = tensor.shape == node.output.shape and tensor.place == node.output.place
            if same and self.last[tensor] == number:
                return tensor
            if same and tensor.place == "hbm":
                raise OperatorError(
                    f"{node.name}: {name} ({tensor.name}) is changed in place, but it is needed later, or an output"
                )
        return None

    def _take(self, tensor: Tensor, number: int) -> None:
        if tensor.place == "hbm":
            self._take_hbm(tensor, number)
            return
        if tensor.place == "fp_sram":
            self._take_fp_sram(tensor, number)
            return
        if tensor.place == "int_sram":
            self._take_int_sram(tensor, number)
            return
        self._locate(tensor, self.pool.take(tensor.name, vram_rows(self.config, tensor.shape)), number)

    def _take_fp_sram(self, tensor: Tensor, number: int) -> None:
        """From the end; not used again. With zeros behind, so that whole rows can be made of it."""
        size = round_up(tensor.shape[1], self.config.mlen)
        self.fp_end -= size
        if self.fp_end < 0:
            raise CapacityError(
                f"FP SRAM: {tensor.name} needs {size:,} entries; {self.fp_end + size:,} of {SRAM_ENTRIES:,} are free",
                "FP SRAM",
            )
        self.entries[tensor.name] = Entries(tensor.name, self.fp_end, tensor.shape)
        self.fp.append(Allocation(tensor.name, self.fp_end, size, number, len(self.graph.nodes)))

    def _take_int_sram(self, tensor: Tensor, number: int) -> None:
        """From the end; not used again."""
        size = tensor.shape[1]
        self.int_end -= size
        if self.int_end < 0:
            raise CapacityError(
                f"INT SRAM: {tensor.name} needs {size:,} entries; {self.int_end + size:,} of {SRAM_ENTRIES:,} are free",
                "INT SRAM",
            )
        self.entries[tensor.name] = Entries(tensor.name, self.int_end, tensor.shape)
        self.integers.append(Allocation(tensor.name, self.int_end, size, number, len(self.graph.nodes)))

    def _locate(self, tensor: Tensor, start: int, number: int) -> None:
        lanes = self.config.mlen
        pitch = round_up(tensor.shape[0], row_unit(self.config)) * lanes
        self.rows[tensor.name] = Rows(tensor.name, start * lanes, tensor.shape, lanes, pitch)
        size = vram_rows(self.config, tensor.shape)
        self.found.append(Allocation(tensor.name, start, size, number, self.last[tensor]))
