"""Tensors that vector SRAM has no room for go to HBM and come back."""

from __future__ import annotations

from plena_jax.config import MachineConfig
from plena_jax.formats import MXFormat
from plena_jax.lower.graph import Graph, Node
from plena_jax.lower.memory import Plan, last_uses, plan
from plena_jax.lower.operators import find
from plena_jax.lower.tensors import CapacityError, Role, Tensor, format_of, vram_rows
from plena_jax.machine.transfer import vram_format


def plan_with_spills(graph: Graph) -> tuple[Graph, Plan]:
    """A plan, and the graph with ``store`` and ``load`` nodes for what did not fit.

    What is spilled is rounded to the format of its role in HBM: the one that keeps more of "activations" and "kv". The
    references of the graph round there too.

    Raises:
        CapacityError: what one node needs does not fit.
        OperatorError: a format that cannot be transferred.
    """
    # Tensors that must be there at once would push each other out without end.
    for _ in range(4 * len(graph.nodes) + 16):
        try:
            return graph, plan(graph)
        except CapacityError as error:
            last = error
            spilled = _spill_one(graph, error)
            if spilled is None:
                raise
            graph = spilled
    raise last


def _spill_one(graph: Graph, error: CapacityError) -> Graph | None:
    """The graph with one tensor less in vector SRAM where it was full; None if there is none to take."""
    number = error.node
    if error.memory != "VRAM" or number is None or number < 0:
        return None
    last, needed = last_uses(graph), {t.root for t in graph.nodes[number].inputs if t is not None}
    born = {node.output: i for i, node in enumerate(graph.nodes)} | {tensor: -1 for tensor in graph.inputs}
    waiting = [
        tensor
        for tensor, first in born.items()
        if tensor.place == "vram" and first < number <= last[tensor] and tensor not in needed
    ]
    if not waiting:
        return None
    # The one that is not needed for longest, and of those the largest.
    victim = max(waiting, key=lambda t: (_next_use(graph, t, number), vram_rows(graph.config, t.shape)))
    return _rewritten(graph, victim, number)


def _next_use(graph: Graph, tensor: Tensor, number: int) -> int:
    for later, node in enumerate(graph.nodes[number:], number):
        if any(t is not None and t.root is tensor for t in node.inputs):
            return later
    return len(graph.nodes)


def _rewritten(graph: Graph, victim: Tensor, number: int) -> Graph:
    """The graph in which ``victim`` is stored before node ``number`` and loaded before it is needed again."""
    there = Tensor(graph.unique(f"{victim.name}/spill"), victim.shape, "hbm", _role(graph.config))
    stored = _node(graph, "store", victim, there)
    loaded = _node(graph, "load", there, Tensor(graph.unique(f"{victim.name}/fill"), victim.shape))
    again = _next_use(graph, victim, number)
    nodes = [*graph.nodes[:number], stored]
    for later, node in enumerate(graph.nodes[number:], number):
        if later == again:
            nodes.append(loaded)
        nodes.append(_with_inputs(node, victim, loaded.output) if later >= again else node)
    if again == len(graph.nodes):
        nodes.append(loaded)
    outputs = [_moved(tensor, victim, loaded.output) for tensor in graph.outputs]
    return graph.rewritten(nodes, outputs)


def _role(config: MachineConfig) -> Role:
    """The role in HBM that keeps more of what vector SRAM holds."""
    bits: dict[Role, int] = {}
    for role in ("activations", "kv"):
        fmt = format_of(config, role, matrix_unit=False)
        bits[role] = fmt.element.bits if isinstance(fmt, MXFormat) else 1024 * (fmt.bits >= vram_format(config).bits)
    return max(bits, key=lambda role: bits[role])


def _node(graph: Graph, name: str, x: Tensor, output: Tensor) -> Node:
    attributes = {"role": output.role} if name == "store" else {}
    return Node(output.name, find(name), (x,), attributes, output)


def _with_inputs(node: Node, old: Tensor, new: Tensor) -> Node:
    inputs = tuple(None if t is None else _moved(t, old, new) for t in node.inputs)
    return Node(node.name, node.operator, inputs, node.attributes, node.output)


def _moved(tensor: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A tensor, or a view, of the new one instead of the old."""
    if tensor is old:
        return new
    if tensor.base is old:
        return Tensor(tensor.name, tensor.shape, tensor.place, tensor.role, new, tensor.start)
    return tensor
