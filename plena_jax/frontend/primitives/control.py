"""Loops and branches: what decides them must be known, so that they can be written out."""

from __future__ import annotations

import numpy as np

from plena_jax.frontend.tracing import MOST_TURNS, Call, Entry, Unsupported, Walk, primitive
from plena_jax.frontend.views import View, concatenated


@primitive("cond")
def cond(walk: Walk, call: Call, which: Entry, *operands: Entry) -> list[Entry]:
    """The branch of a known number."""
    known = walk.known(which)
    if known is None:
        raise Unsupported("a branch that depends on data: use jnp.where, or make the condition static")
    branches = call.params["branches"]
    branch = branches[int(np.clip(int(known), 0, len(branches) - 1))]
    return walk.run(branch.jaxpr, branch.consts, operands)


@primitive("scan")
def scan(walk: Walk, call: Call, *operands: Entry) -> list[Entry]:
    """Turn after turn."""
    p = call.params
    constants, carried = p["num_consts"], p["num_carry"]
    fixed, carry = list(operands[:constants]), list(operands[constants : constants + carried])
    sequences = operands[constants + carried :]
    turns = range(p["length"])
    stacked: list[list[View]] = [[] for _ in call.shapes[carried:]]
    for turn in reversed(turns) if p["reverse"] else turns:
        parts = [_part(sequence, turn) for sequence in sequences]
        results = walk.run(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*fixed, *carry, *parts])
        carry = results[:carried]
        for found, result in zip(stacked, results[carried:], strict=True):
            view = walk.view(result)
            found.append(view.reshape(1, *view.shape))
    joined: list[Entry] = []
    for found, shape, dtype in zip(stacked, call.shapes[carried:], call.dtypes[carried:], strict=True):
        ordered = found[::-1] if p["reverse"] else found
        joined.append(concatenated(ordered, 0) if ordered else np.zeros(shape, dtype))
    return [*carry, *joined]


def _part(sequence: Entry, turn: int) -> Entry:
    return sequence[turn] if isinstance(sequence, np.ndarray) else sequence.moved(lambda index: index[turn])


@primitive("while")
def while_(walk: Walk, call: Call, *operands: Entry) -> list[Entry]:
    """As long as a known condition holds."""
    p = call.params
    condition, body = p["cond_jaxpr"], p["body_jaxpr"]
    first, second = p["cond_nconsts"], p["body_nconsts"]
    of_condition, of_body = operands[:first], operands[first : first + second]
    carry = list(operands[first + second :])
    for _ in range(MOST_TURNS):
        (goes_on,) = walk.run(condition.jaxpr, condition.consts, [*of_condition, *carry])
        known = walk.known(goes_on)
        if known is None:
            raise Unsupported("a loop whose end depends on data: give it a static number of turns")
        if not known:
            return carry
        carry = walk.run(body.jaxpr, body.consts, [*of_body, *carry])
    raise Unsupported(f"a loop of more than {MOST_TURNS:,} turns")
