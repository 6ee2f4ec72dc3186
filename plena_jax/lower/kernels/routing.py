"""Mixtures of experts: the best experts of each token, and their feed-forward networks.

V_TOPK leaves the weights in FP SRAM and the numbers of the experts in INT SRAM, from where S_LD_INT brings them into
addresses. A program that does that depends on its data: it runs on the architectural engine, which
:func:`plena_jax.run` chooses itself, and has no derivative. V_TOPK alone runs on both engines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from plena_jax import arithmetic
from plena_jax.bits import is_nan
from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.isa.instruction import SRAM_ENTRIES
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.kernels import elementwise
from plena_jax.lower.kernels.matmul import Product
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.registers import Gp
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.sequence import Compiled, Evaluated
from plena_jax.lower.tensors import Matrix, OperatorError, Rows, Shape, Tensor, round_up

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph

#: Activations of experts: the machine's formula and the model's.
ACTIVATIONS: dict[str, tuple[Callable[..., Any], Callable[..., jax.Array]]] = {
    "silu": (elementwise.silu, elementwise.silu_reference),
    "gelu": (elementwise.gelu, elementwise.gelu_reference),
    "relu": (elementwise.relu, elementwise.relu_reference),
}


# -- the best experts -------------------------------------------------------------------------------------------------


def chosen(logits: jax.Array, policy: int) -> tuple[jax.Array, jax.Array]:
    """Weights and numbers of the best experts, [tokens, count] each, in float32: softmax over their logits.

    The lower number is first where logits are equal.
    """
    values, numbers = jax.lax.top_k(logits, TOPK_POLICIES[policy][1])
    return jax.nn.softmax(values, axis=1), numbers


def chosen_rounded(r: Rounded, logits: jax.Array, policy: int) -> tuple[jax.Array, jax.Array]:
    """The same as V_TOPK does it: NaN is minus infinity, -0 below 0; all weights are 0 if their sum is no number."""
    logits = jnp.where(is_nan(logits), -jnp.inf, logits)
    # From the highest on; equal ones stay in order.
    order = jnp.argsort(~arithmetic.total_order(logits), axis=1, stable=True)[:, : TOPK_POLICIES[policy][1]]
    best = jnp.take_along_axis(logits, order, axis=1)
    weights = arithmetic.exp_below_one(arithmetic.subtract(best, jnp.broadcast_to(best[:, :1], best.shape)))
    total = weights[:, :1]
    for rank in range(1, weights.shape[1]):
        total = total + weights[:, rank : rank + 1]
    good = jnp.isfinite(total) & (total > 0)
    shares = arithmetic.divide(weights, jnp.broadcast_to(total, weights.shape))
    return r.scalar(jnp.where(good, shares, jnp.float32(0))), order


def top_k_reference(logits: jax.Array, *, policy: int) -> jax.Array:
    """Weights of the best experts of each token, the best first: softmax over their logits, [tokens, 4 or 8].

    Policy 0 takes 4 of 32 experts, policy 1 takes 8 of 128; of equal logits the lower number comes first. The numbers
    of the experts are left in INT SRAM: that of rank r of token t in entry ``t * (4 or 8) + r``, until another operator
    of this file runs.
    """
    return chosen(logits, policy)[0]


def top_k_rounded(r: Rounded, logits: jax.Array, *, policy: int) -> jax.Array:
    """Weights are rounded to scalars."""
    return r.vector(chosen_rounded(r, logits, policy)[0])


def _check(operator: str, config: MachineConfig, logits: Tensor, policy: int) -> None:
    if policy not in range(len(TOPK_POLICIES)) or isinstance(policy, bool):
        raise OperatorError(f"{operator}: policy: expected 0 (4 of 32 experts) or 1 (8 of 128), got {policy!r}")
    experts, count = TOPK_POLICIES[policy]
    expect(operator, f"columns of logits ({logits.name})", experts, logits.shape[1])
    if logits.shape[0] * count > SRAM_ENTRIES:
        raise OperatorError(
            f"{operator}: rows of logits ({logits.name}): expected at most {SRAM_ENTRIES // count}, whose experts INT "
            f"SRAM holds, got {logits.shape[0]}"
        )


def top_k_shape(config: MachineConfig, logits: Tensor, *, policy: int) -> Shape:
    """A row for each token, a column for each rank."""
    _check("top_k", config, logits, policy)
    return logits.shape[0], TOPK_POLICIES[policy][1]


def top_k_workspace(config: MachineConfig, logits: Tensor, *, policy: int) -> Workspace:
    """The logits of a token, if they take several rows; rows of weights in FP SRAM."""
    fp = round_up(TOPK_POLICIES[policy][1], config.mlen)
    return Workspace(rows=_logit_rows(config, logits.shape[1]), fp=fp)


def _logit_rows(config: MachineConfig, experts: int) -> int:
    return -(-experts // config.mlen) if experts > config.mlen else 0


def top_k_emit(k: Kernel, out: Rows, logits: Rows, *, policy: int) -> None:
    """For each token V_TOPK, then S_MAP_V_FP of the weights.

    V_TOPK reads consecutive rows; blocks of columns are not, so that those of a token are copied to the workspace.
    FP SRAM: 1 if there are several blocks, a row of workspace. Registers: f for the one.
    """
    b, count = k.b, TOPK_POLICIES[policy][1]
    with b.scope():
        k.clear_entries(k.entry, out.blocks * out.lanes)
        weights, numbers = b.gp(k.entry, "weights"), b.gp(0, "numbers of experts")
        held = k.scratch_rows(logits.blocks, logits.lanes)
        with k.each_row(logits.shape[0], logits, out) as at:
            first = at(logits)
            if logits.blocks > 1:
                with b.scope():
                    first, one = b.gp(purpose="logits"), b.fp(1.0)
                    for block in range(logits.blocks):
                        b.set(first, held.at(0, block))
                        b.v_mul_vf(first, at(logits, block), one)
                    b.set(first, held.address)
                    b.v_topk(weights, first, numbers, policy)
            else:
                b.v_topk(weights, first, numbers, policy)
            for block in range(out.blocks):
                b.s_map_v_fp(at(out, block), b.zero, k.entry + block * out.lanes)
            b.add(numbers, numbers, count)


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
    act = ACTIVATIONS[activation][1]
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
    formula, hidden, inter = ACTIVATIONS[activation][0], x.shape[1], gate.shape[1]

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
    _check("expert_ffn", config, logits, policy)
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
    if config.tiles < config.prefetch_m_rows // config.mlen:
        raise OperatorError(
            f"expert_ffn: matrix SRAM of {config.tiles} tiles; a transfer brings {config.prefetch_m_rows // config.mlen}"
        )
    return x.shape


def _activation(name: str) -> Compiled:
    return Compiled.of(ACTIVATIONS[name][0], 1)


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
    rows = _activation(activation).scratch + _logit_rows(config, logits.shape[1])
    rows += 2 * (gate.shape[1] // config.mlen) + x.shape[1] // config.mlen
    return Workspace(rows=rows, fp=TOPK_POLICIES[policy][1])


def expert_ffn_emit(
    k: Kernel, out: Rows, x: Rows, logits: Rows, gate: Matrix, up: Matrix, down: Matrix, *, policy: int, activation: str
) -> None:
    """Token after token: V_TOPK, then a loop over its experts, with S_LD_INT, S_MUL_INT, S_ADD_INT on offsets in HBM.

    Products are of one row (M_MV). FP SRAM: 1, constants of the activation, 4 or 8 entries of workspace. Registers: 14
    gp at most.
    """
    b, lanes, compiled = k.b, out.lanes, _activation(activation)
    held = k.scratch_rows(1, logits.blocks * lanes, compiled.scratch)
    used = compiled.scratch + _logit_rows(k.config, logits.shape[1])
    g = k.scratch_rows(1, gate.shape[1], used)
    u = k.scratch_rows(1, gate.shape[1], used + g.blocks)
    y = k.scratch_rows(1, x.shape[1], used + g.blocks + u.blocks)
    k.clear(out.address, out.pitch // lanes * out.blocks)
    for token in range(x.shape[0]):
        numbers = token * TOPK_POLICIES[policy][1]
        row, total = (Rows(o.name, o.at(0, token), (1, o.shape[1]), lanes, o.pitch) for o in (x, out))
        source = Rows(logits.name, logits.at(0, token), (1, logits.shape[1]), lanes, logits.pitch)
        _choose(k, source, held, numbers, policy)
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


def _choose(k: Kernel, logits: Rows, held: Rows, numbers: int, policy: int) -> None:
    """V_TOPK of one token, whose logits are copied to consecutive rows if they take several."""
    b = k.b
    with b.scope():
        first = logits.address
        if logits.blocks > 1:
            first = held.address
            with b.scope():
                one = b.fp(1.0)
                with k.each_vector(logits, held) as (source, target):
                    b.v_mul_vf(target, source, one)
        rows, weights = b.gp(first, "logits"), b.gp(k.entry, "weights")
        b.v_topk(weights, rows, b.gp(numbers, "numbers of experts"), policy)


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


# -- made of others ---------------------------------------------------------------------------------------------------


def router_reference(x: jax.Array, w: jax.Array, *, policy: int) -> jax.Array:
    """Weights of the best experts of each token: top_k of ``x @ w``."""
    return chosen(jnp.dot(x, w, precision=jax.lax.Precision.HIGHEST), policy)[0]


def router_expand(g: Graph, x: Tensor, w: Tensor, *, policy: int) -> Tensor:
    """linear, then top_k."""
    return g.apply("top_k", g.apply("linear", x, w), policy=policy)


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
    """A mixture of experts: logits ``x @ router_w``, then expert_ffn. There is no gradient: addresses depend on data."""
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
        name="top_k",
        family="routing",
        reference=top_k_reference,
        rounded=top_k_rounded,
        shape=top_k_shape,
        emit=top_k_emit,
        workspace=top_k_workspace,
        cost="tokens * 6, and 2 for each of several blocks; 3 * MLEN to clear FP SRAM",
    )
)
register(
    Operator(
        name="expert_ffn",
        family="routing",
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
        name="router",
        family="routing",
        reference=router_reference,
        expand=router_expand,
        places={"w": ("hbm",)},
        matrix=("w",),
        cost="linear and top_k",
    )
)
register(
    Operator(
        name="routed_ffn",
        family="routing",
        reference=routed_ffn_reference,
        expand=routed_ffn_expand,
        places={"router_w": ("hbm",), "gate": ("hbm",), "up": ("hbm",), "down": ("hbm",)},
        matrix=("router_w", "gate", "up", "down"),
        cost="linear and expert_ffn",
    )
)
