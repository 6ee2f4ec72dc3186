"""Mixtures of experts: the feed-forward networks of the experts that a router chooses.

S_LD_INT brings the numbers of the experts, which V_TOPK has left in INT SRAM, into addresses. A program that does that
depends on its data: it runs on the architectural engine, which :func:`plena_jax.run` chooses itself, and has no
derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels import elementwise
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.kernels.routing import check, choose, chosen, chosen_rounded, logit_rows
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.registers import Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.sequence import Compiled, Evaluated
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph

#: Activations of experts.
ACTIVATIONS = {name: elementwise.ACTIVATIONS[name] for name in ("silu", "gelu", "relu")}


# -- networks of experts ----------------------------------------------------------------------------------------------


def _expert(weights: jax.Array, number: jax.Array, rows: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(weights, number * rows, rows)


def expert_ffn_reference(
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """The sum over the best experts of each token: ``weight * (activation(x @ gate) * (x @ up)) @ down``.

    gate and up are [experts * hidden, inter], down is [experts * inter, hidden]: one expert below the other. Weights
    and experts are those of top_k. There is no gradient: addresses depend on data.
    """
    act = ACTIVATIONS[activation].reference
    weights, numbers = chosen(logits, policy)
    dot = lambda a, b: jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)

    def token(row: jax.Array, weights: jax.Array, numbers: jax.Array) -> jax.Array:
        def one(weight: jax.Array, number: jax.Array) -> jax.Array:
            g, u = (dot(row, _expert(w, number, x.shape[1])) for w in (gate, up))
            return weight * dot(act(g) * u, _expert(down, number, gate.shape[1]))

        return jnp.sum(jax.vmap(one)(weights, numbers), axis=0)

    return jax.vmap(token)(x, weights, numbers)


def expert_ffn_rounded(
    r: Rounded,
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """The rounded logits decide; products, activation, weighting and each partial sum are rounded, rank by rank."""
    weights, numbers = chosen_rounded(r, logits, policy)
    formula, hidden, inter = ACTIVATIONS[activation].formula, x.shape[1], gate.shape[1]

    def rank(total: jax.Array, inputs: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        row, weight, number = inputs
        g, u = (r.matmul(row, _expert(w, number, hidden)) for w in (gate, up))
        y = r.matmul(r.multiply(formula(Evaluated(r), g), u), _expert(down, number, inter))
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
    *,
    policy: int,
    activation: str,
) -> Shape:
    """That of x. Rows of experts are whole tiles: a transfer does not stop where an expert does."""
    check("expert_ffn", logits, policy)
    experts, (tokens, hidden), inter = TOPK_POLICIES[policy][0], x.shape, gate.shape[1]
    expect("expert_ffn", f"rows of logits ({logits.name})", tokens, logits.shape[0])
    for name, tensor, wanted in (
        ("gate", gate, (experts * hidden, inter)),
        ("up", up, (experts * hidden, inter)),
        ("down", down, (experts * inter, hidden)),
    ):
        expect("expert_ffn", f"shape of {name} ({tensor.name})", wanted, tensor.shape)
    for name, size in (("columns of x", hidden), ("columns of gate", inter)):
        if size % config.mlen:
            raise OperatorError(f"expert_ffn: {name}: expected a multiple of MLEN {config.mlen}, got {size}")
    if activation not in ACTIVATIONS:
        raise OperatorError(f"expert_ffn: activation: expected {', '.join(ACTIVATIONS)}, got {activation!r}")
    fetched = config.prefetch_m_rows // config.mlen
    if config.tiles < fetched:
        raise OperatorError(
            f"expert_ffn: tiles of matrix SRAM: expected the {fetched} of a transfer, got {config.tiles}"
        )
    return x.shape


def _activation(name: str) -> Compiled:
    return Compiled.of(ACTIVATIONS[name].formula, 1)


def expert_ffn_workspace(
    config: MachineConfig,
    x: Tensor,
    logits: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    policy: int,
    activation: str,
) -> Workspace:
    """Values of the activation, logits of a token, two rows of inter and one of hidden columns; weights in FP SRAM."""
    rows = _activation(activation).scratch + logit_rows(config, logits.shape[1])
    rows += 2 * (gate.shape[1] // config.mlen) + x.shape[1] // config.mlen
    count = TOPK_POLICIES[policy][1]
    return Workspace(rows=rows, fp=count, integers=logits.shape[0] * count)


def expert_ffn_emit(
    k: Kernel, out: Rows, x: Rows, logits: Rows, gate: Matrix, up: Matrix, down: Matrix, *, policy: int, activation: str
) -> None:
    """Token after token: V_TOPK, then a loop over its experts, with S_LD_INT, S_MUL_INT, S_ADD_INT on offsets in HBM.

    Products are of one row (M_MV). FP SRAM: 1, constants of the activation, 4 or 8 entries of workspace. Registers: 14
    gp at most.
    """
    b, lanes, compiled = k.b, out.lanes, _activation(activation)
    held = k.scratch_rows(1, logits.blocks * lanes, compiled.scratch)
    used = compiled.scratch + logit_rows(k.config, logits.shape[1])
    g = k.scratch_rows(1, gate.shape[1], used)
    u = k.scratch_rows(1, gate.shape[1], used + g.blocks)
    y = k.scratch_rows(1, x.shape[1], used + g.blocks + u.blocks)
    k.clear(out.address, out.pitch // lanes * out.blocks)
    for token in range(x.shape[0]):
        numbers = token * TOPK_POLICIES[policy][1]
        row, total = (Rows(o.name, o.at(0, token), (1, o.shape[1]), lanes, o.pitch) for o in (x, out))
        source = Rows(logits.name, logits.at(0, token), (1, logits.shape[1]), lanes, logits.pitch)
        choose(k, source, held, numbers, policy)
        with b.loop(TOPK_POLICIES[policy][1], index=True) as rank:
            assert rank is not None
            for operand, w, result in ((row, gate, g), (row, up, u)):
                Product(k, operand, w, moved=_to_expert(k, rank, numbers, w, x.shape[1])).emit(result)
            elementwise.emit_rows(k, compiled, g, g, keeps_zero=True)
            with k.each_vector(g, u) as (a, c):
                b.v_mul_vv(a, a, c)
            Product(k, g, down, moved=_to_expert(k, rank, numbers, down, gate.shape[1])).emit(y)
            with b.scope():
                weight = b.fp(purpose="weight")
                b.s_ld_fp(weight, rank, k.entry)
                with k.each_vector(y, total) as (a, c):
                    b.v_mul_vf(a, a, weight)
                    b.v_add_vv(c, c, a)


def _to_expert(k: Kernel, rank: Gp, numbers: int, w: Matrix, rows: int) -> Callable[[Gp], None]:
    """Adds to an offset where the expert of a rank begins."""

    def moved(offset: Gp) -> None:
        b = k.b
        with b.scope():
            expert, size = b.gp(purpose="expert"), b.gp(rows * w.stride, "bytes of an expert")
            b.s_ld_int(expert, rank, numbers)
            b.s_mul_int(expert, expert, size)
            b.s_add_int(offset, offset, expert)

    return moved


def routed_ffn_reference(
    x: jax.Array,
    router_w: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    experts: int,
    policy: int,
    activation: str = "silu",
) -> jax.Array:
    """A mixture of experts: logits ``x @ router_w``, then expert_ffn.

    There is no gradient: addresses depend on data, so that it runs on the architectural engine only.
    """
    logits = jnp.dot(x, router_w, precision=jax.lax.Precision.HIGHEST)
    return expert_ffn_reference(x, logits, gate, up, down, policy=policy, activation=activation)


def routed_ffn_expand(
    g: Graph,
    x: Tensor,
    router_w: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    *,
    experts: int,
    policy: int,
    activation: str,
) -> Tensor:
    """linear, then expert_ffn."""
    expect("routed_ffn", f"columns of router_w ({router_w.name})", experts, router_w.shape[1])
    logits = g.apply("linear", x, router_w)
    return g.apply("expert_ffn", x, logits, gate, up, down, policy=policy, activation=activation)


register(
    Operator(
        name="expert_ffn",
        family="experts",
        reference=expert_ffn_reference,
        rounded=expert_ffn_rounded,
        shape=expert_ffn_shape,
        emit=expert_ffn_emit,
        workspace=expert_ffn_workspace,
        places={"gate": ("hbm",), "up": ("hbm",), "down": ("hbm",)},
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
        places={"router_w": ("hbm",), "gate": ("hbm",), "up": ("hbm",), "down": ("hbm",)},
        matrix=("router_w", "gate", "up", "down"),
        cost="linear and expert_ffn",
    )
)
