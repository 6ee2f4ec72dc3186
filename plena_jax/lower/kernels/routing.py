"""The best experts of each token.

V_TOPK leaves the weights in FP SRAM and the numbers of the experts in INT SRAM. V_TOPK alone runs on both engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from plena_jax import arithmetic
from plena_jax.bits import is_nan
from plena_jax.config import MachineConfig
from plena_jax.isa import TOPK_POLICIES
from plena_jax.isa.instruction import SRAM_ENTRIES
from plena_jax.lower.kernel import Kernel
from plena_jax.lower.operators import Operator, Workspace, expect, register
from plena_jax.lower.rounded import Rounded
from plena_jax.lower.tensors import OperatorError, Rows, Shape, Tensor, round_up

if TYPE_CHECKING:
    from plena_jax.lower.graph import Graph

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


def check(operator: str, logits: Tensor, policy: int) -> None:
    """Check policy and logits of an operator.

    Raises:
        OperatorError: another policy, number of experts, or more tokens than INT SRAM holds experts of.
    """
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
    check("top_k", logits, policy)
    return logits.shape[0], TOPK_POLICIES[policy][1]


def top_k_workspace(config: MachineConfig, logits: Tensor, *, policy: int) -> Workspace:
    """The logits of a token, if they take several rows; rows of weights in FP SRAM; experts in INT SRAM."""
    fp = round_up(TOPK_POLICIES[policy][1], config.mlen)
    integers = logits.shape[0] * TOPK_POLICIES[policy][1]
    return Workspace(rows=logit_rows(config, logits.shape[1]), fp=fp, integers=integers)


def logit_rows(config: MachineConfig, experts: int) -> int:
    """Rows of workspace for the logits of a token, if they take several."""
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


def choose(k: Kernel, logits: Rows, held: Rows, numbers: int, policy: int) -> None:
    """V_TOPK of one token, whose logits are copied to consecutive rows if they take several."""
    b = k.b
    with b.scope():
        first = logits.address
        if logits.blocks > 1:
            first = held.address
            k.copy(logits, held)
        rows, weights = b.gp(first, "logits"), b.gp(k.entry, "weights")
        b.v_topk(weights, rows, b.gp(numbers, "numbers of experts"), policy)


# -- made of others ---------------------------------------------------------------------------------------------------


def router_reference(x: jax.Array, w: jax.Array, *, policy: int) -> jax.Array:
    """Weights of the best experts of each token: top_k of ``x @ w``."""
    return chosen(jnp.dot(x, w, precision=jax.lax.Precision.HIGHEST), policy)[0]


def router_expand(g: Graph, x: Tensor, w: Tensor, *, policy: int) -> Tensor:
    """linear, then top_k."""
    return g.apply("top_k", g.apply("linear", x, w), policy=policy)


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
        name="router",
        family="routing",
        reference=router_reference,
        expand=router_expand,
        places={"w": ("hbm",)},
        matrix=("w",),
        cost="linear and top_k",
    )
)
