"""Mixtures of experts: the feed-forward networks of the experts that a router chooses.

S_LD_INT brings the numbers of the experts, which V_TOPK has left in INT SRAM, into addresses. A program that does that
depends on its data: it runs on the architectural engine, which :func:`plena_jax.run` chooses itself, and has no
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels import gates
from plena_jax.lower.kernels.gates import GATES
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.kernels.routing import check, choose, chosen, chosen_rounded, logit_rows
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.registers import Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.sequence import Compiled, Evaluated
from plena_jax.lower.tensors import Matrix, OperatorError, Place, Rows, Shape, Tensor, round_up

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph

# -- networks of experts ----------------------------------------------------------------------------------------------


def _expert(weights: jax.Array, number: jax.Array, rows: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(weights, number * rows, rows)


def expert_ffn_reference(
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    gate_bias: jax.Array | None = None,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """The sum over the best experts of each token: ``weight * (activation(x @ gate) * (x @ up)) @ down``.

    gate and up are [experts * hidden, inter], down is [experts * inter, hidden]: one expert below the other. Biases
    have a row for each expert and are added to the product they are named after. The activation "clamped_swiglu" is
    GPT-OSS's, ``(clamp(u, -7, 7) + 1) * h * sigmoid(1.702 * h)`` of ``h = min(g, 7)``. Weights and experts are those of
    top_k. There is no gradient: addresses depend on data.
    """
    weights, numbers = chosen(logits, policy)

    def dot(x: jax.Array, w: jax.Array, bias: jax.Array | None, number: jax.Array) -> jax.Array:
        y = jnp.dot(x, _expert(w, number, x.shape[0]), precision=jax.lax.Precision.HIGHEST)
        return y if bias is None else y + _expert(bias, number, 1)[0]

    def token(row: jax.Array, weights: jax.Array, numbers: jax.Array) -> jax.Array:
        def one(weight: jax.Array, number: jax.Array) -> jax.Array:
            g, u = (dot(row, w, bias, number) for w, bias in ((gate, gate_bias), (up, up_bias)))
            return weight * dot(GATES[activation].reference(g, u), down, down_bias, number)

        return jnp.sum(jax.vmap(one)(weights, numbers), axis=0)

    return jax.vmap(token)(x, weights, numbers)


def expert_ffn_rounded(
    r: Rounded,
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    gate_bias: jax.Array | None = None,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    *,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """The rounded logits decide; each step of the formula and each partial sum is rounded, rank by rank."""
    weights, numbers = chosen_rounded(r, logits, policy)
    hidden = x.shape[1]

    def product(x: jax.Array, w: jax.Array, bias: jax.Array | None, number: jax.Array) -> jax.Array:
        y = r.matmul(x, _expert(w, number, x.shape[1]))
        return y if bias is None else r.add(y, _expert(bias, number, 1))

    def rank(total: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        row, weight, number = inputs
        g, u = (product(row, w, bias, number) for w, bias in ((gate, gate_bias), (up, up_bias)))
        y = product(GATES[activation].formula(Evaluated(r), g, u), down, down_bias, number)
        return r.add(total, r.multiply(y, weight)), None

    def token(_: None, inputs: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        row, weights, numbers = inputs
        rows = jnp.broadcast_to(row[None, None], (numbers.shape[0], 1, hidden))
        total, _ = jax.lax.scan(rank, jnp.zeros((1, hidden), jnp.float32), (rows, weights, numbers))
        return None, total[0]

    result: jax.Array = jax.lax.scan(token, None, (x, weights, numbers))[1]
    return result


def expert_ffn_shape(
    config: MachineConfig,
    x: Tensor,
    logits: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    *,
    policy: int,
    activation: str,
) -> Shape:
    """That of x."""
    check("expert_ffn", logits, policy)
    experts, (tokens, hidden), inter = TOPK_POLICIES[policy][0], x.shape, gate.shape[1]
    expect("expert_ffn", f"rows of logits ({logits.name})", tokens, logits.shape[0])
    for name, tensor, wanted in (
        ("gate", gate, (experts * hidden, inter)),
        ("up", up, (experts * hidden, inter)),
        ("down", down, (experts * inter, hidden)),
        ("gate_bias", gate_bias, (experts, inter)),
        ("up_bias", up_bias, (experts, inter)),
        ("down_bias", down_bias, (experts, hidden)),
    ):
        if tensor is not None:
            expect("expert_ffn", f"shape of {name} ({tensor.name})", wanted, tensor.shape)
    if activation not in GATES:
        raise OperatorError(f"expert_ffn: activation: expected {', '.join(GATES)}, got {activation!r}")
    fetched = config.prefetch_m_rows // config.mlen
    if config.tiles < fetched:
        raise OperatorError(
            f"expert_ffn: tiles of matrix SRAM: expected the {fetched} of a transfer, got {config.tiles}"
        )
    return x.shape


def expert_ffn_reads(
    config: MachineConfig, x: Tensor, logits: Tensor, gate: Tensor, *others: Tensor | None, policy: int, activation: str
) -> dict[str, int]:
    """Whole tiles of the last expert, wherever it begins; whole transfers from its row of a bias."""
    last, behind = TOPK_POLICIES[policy][0] - 1, TOPK_POLICIES[policy][0] - 1 + config.hbm_v_prefetch_amount
    tall = lambda rows: last * rows + round_up(rows, config.mlen)
    weights = {"gate": tall(x.shape[1]), "up": tall(x.shape[1]), "down": tall(gate.shape[1])}
    return weights | dict.fromkeys(("gate_bias", "up_bias", "down_bias"), behind)


def expert_ffn_workspace(
    config: MachineConfig,
    x: Tensor,
    logits: Tensor,
    gate: Tensor,
    *others: Tensor | None,
    policy: int,
    activation: str,
) -> Workspace:
    """Values of the activation, a transfer of a bias, logits of a token, two rows of inter and one of hidden columns.

    Weights of a token in FP SRAM.
    """
    blocks = lambda columns: -(-columns // config.mlen)
    rows = gates.compiled(activation).scratch + config.hbm_v_prefetch_amount + logit_rows(config, logits.shape[1])
    rows += 2 * blocks(gate.shape[1]) + blocks(x.shape[1])
    count = TOPK_POLICIES[policy][1]
    return Workspace(rows=rows, fp=count, integers=logits.shape[0] * count)


@dataclass(frozen=True)
class _Chosen:
    """The expert of the current rank.

    Attributes:
        k: the kernel.
        rank: register with the rank.
        numbers: entry of INT SRAM with the number of the first expert of the token.
        fetched: where a transfer of a bias goes.
    """

    k: Kernel
    rank: Gp
    numbers: int
    fetched: Rows

    def moved(self, size: int) -> Callable[[Gp], None]:
        """Adds to a register where the expert begins, if each takes ``size``."""

        def moved(start: Gp) -> None:
            b = self.k.b
            with b.scope():
                expert, each = b.gp(purpose="expert"), b.gp(size, "size of an expert")
                b.s_ld_int(expert, self.rank, self.numbers)
                b.s_mul_int(expert, expert, each)
                b.s_add_int(start, start, expert)

        return moved

    def product(self, x: Rows, w: Matrix, bias: Rows | Matrix | None, out: Rows) -> None:
        """``out = x @ w + bias`` of one row."""
        Product(self.k, x, w, moved=self.moved(x.shape[1] * w.stride)).emit(out)
        if isinstance(bias, Matrix):
            self._add_fetched(out, bias)
        elif bias is not None:
            self._add(out, bias)

    def _add(self, out: Rows, bias: Rows) -> None:
        """A row of a bias in vector SRAM."""
        b = self.k.b
        with b.scope():
            row, target = b.gp(bias.address, bias.name), b.gp(out.address, out.name)
            self.moved(bias.lanes)(row)
            with b.loop(out.blocks, (row, bias.pitch), (target, out.pitch)):
                b.v_add_vv(target, target, row)

    def _add_fetched(self, out: Rows, bias: Matrix) -> None:
        """A row of a bias in HBM."""
        b = self.k.b
        with self.k.opened(bias) as base, b.scope():
            offset, target = b.gp(bias.offset(0, 0), bias.name), b.gp(out.address, out.name)
            row = b.gp(self.fetched.address, "bias")
            self.moved(bias.stride)(offset)
            with b.loop(out.blocks, (offset, out.lanes * bias.bits // 8), (target, out.pitch)):
                b.h_prefetch_v(row, offset, base, 1, bias.precision)
                b.v_add_vv(target, target, row)


def expert_ffn_emit(
    k: Kernel,
    out: Rows,
    x: Rows,
    logits: Rows,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    gate_bias: Rows | Matrix | None,
    up_bias: Rows | Matrix | None,
    down_bias: Rows | Matrix | None,
    *,
    policy: int,
    activation: str,
) -> None:
    """Token after token: V_TOPK, then a loop over its experts, with S_LD_INT, S_MUL_INT, S_ADD_INT on addresses.

    Products are of one row (M_MV). The last tile of an expert may end in the next one's weights, which meet the zeros
    behind the last column of x. FP SRAM: 1, constants of the activation, 4 or 8 entries of workspace. Registers: 14 gp
    at most.
    """
    b, lanes, compiled = k.b, out.lanes, gates.compiled(activation)
    sizes = compiled.scratch, k.config.hbm_v_prefetch_amount, logit_rows(k.config, logits.shape[1])
    fetched, held = k.scratch_rows(1, lanes, sizes[0]), k.scratch_rows(1, logits.blocks * lanes, sum(sizes[:2]))
    g = k.scratch_rows(1, gate.shape[1], sum(sizes))
    u = k.scratch_rows(1, gate.shape[1], sum(sizes) + g.blocks)
    y = k.scratch_rows(1, x.shape[1], sum(sizes) + g.blocks + u.blocks)
    k.clear(out.address, out.pitch // lanes * out.blocks)
    for token in range(x.shape[0]):
        numbers = token * TOPK_POLICIES[policy][1]
        row, total = (Rows(o.name, o.at(0, token), (1, o.shape[1]), lanes, o.pitch) for o in (x, out))
        source = Rows(logits.name, logits.at(0, token), (1, logits.shape[1]), lanes, logits.pitch)
        choose(k, source, held, numbers, policy)
        with b.loop(TOPK_POLICIES[policy][1], index=True) as rank:
            assert rank is not None
            expert = _Chosen(k, rank, numbers, fetched)
            expert.product(row, gate, gate_bias, g)
            expert.product(row, up, up_bias, u)
            _gate(k, compiled, g, u)
            expert.product(g, down, down_bias, y)
            with b.scope():
                weight = b.fp(purpose="weight")
                b.s_ld_fp(weight, rank, k.entry)
                with k.each_vector(y, total) as (a, c):
                    b.v_mul_vf(a, a, weight)
                    b.v_add_vv(c, c, a)


def _gate(k: Kernel, compiled: Compiled, g: Rows, u: Rows) -> None:
    """The activation, in the place of gate."""
    b = k.b
    with b.scope():
        scratch = [b.gp(k.scratch + i * g.lanes, "intermediate value") for i in range(compiled.scratch)]
        loaded = compiled.load(b)
        with k.each_vector(g, u) as (a, c):
            compiled.emit(b, a, [a, c], scratch, loaded)


def routed_ffn_reference(
    x: jax.Array,
    router_w: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    gate_bias: jax.Array | None = None,
    up_bias: jax.Array | None = None,
    down_bias: jax.Array | None = None,
    router_bias: jax.Array | None = None,
    *,
    experts: int,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """A mixture of experts: logits ``x @ router_w + router_bias``, then expert_ffn.

    There is no gradient: addresses depend on data, so that it runs on the architectural engine only.
    """
    logits = jnp.dot(x, router_w, precision=jax.lax.Precision.HIGHEST)
    logits = logits if router_bias is None else logits + router_bias
    biases = gate_bias, up_bias, down_bias
    return expert_ffn_reference(x, logits, gate, up, down, *biases, policy=policy, activation=activation)


def routed_ffn_expand(
    g: Graph,
    x: Tensor,
    router_w: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    router_bias: Tensor | None,
    *,
    experts: int,
    policy: int,
    activation: str,
) -> Tensor:
    """linear, then expert_ffn."""
    expect("routed_ffn", f"columns of router_w ({router_w.name})", experts, router_w.shape[1])
    logits = g.apply("linear", x, router_w, router_bias)
    biases = gate_bias, up_bias, down_bias
    return g.apply("expert_ffn", x, logits, gate, up, down, *biases, policy=policy, activation=activation)


_WEIGHTS: dict[str, tuple[Place, ...]] = dict.fromkeys(("gate", "up", "down"), ("hbm",))
_BIASES: dict[str, tuple[Place, ...]] = dict.fromkeys(("gate_bias", "up_bias", "down_bias"), ("vram", "hbm"))

register(
    Operator(
        name="expert_ffn",
        family="experts",
        reference=expert_ffn_reference,
        rounded=expert_ffn_rounded,
        shape=expert_ffn_shape,
        emit=expert_ffn_emit,
        workspace=expert_ffn_workspace,
        reads=expert_ffn_reads,
        places=_WEIGHTS | _BIASES,
        matrix=("gate", "up", "down"),
        cost="for each token and expert three products of one row (see linear), and 5 for each block",
    )
)
register(
    Operator(
        name="routed_ffn",
        family="experts",
        reference=routed_ffn_reference,
        expand=routed_ffn_expand,
        places=_WEIGHTS | _BIASES | {"router_w": ("hbm",), "router_bias": ("vram", "hbm")},
        matrix=("router_w", "gate", "up", "down"),
        cost="linear and expert_ffn",
    )
)
