"""Masks of attention: what is known of them, and what depends on data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plena_jax.frontend.graph import Operation
from plena_jax.frontend.operations import seen as seen_by
from plena_jax.frontend.passes.matching import Sweep, with_number
from plena_jax.frontend.views import View

#: Known numbers up to here hide a key from a row that sees another.
HIDES = -1e4
#: The same where it is not known that the row sees another: scores vanish beside it.
HIDES_ANYWAY = -1e9
#: What hides a key on the machine: finite in all its formats with the exponent of BF16.
HIDDEN = -3e38


@dataclass
class Masks:
    """What is done to scores [batch, rows, keys] before their softmax.

    Attributes:
        scores: the view of the product.
        scale: of the product.
        seen: which keys are seen, as far as that is known.
        added: known numbers.
        erased: which scores were made zero.
        conditions: computed booleans, and whether a key is seen where they are true.
        computed: computed numbers that are added, and their factors.
        region: the operations.
    """

    scores: View
    scale: float
    seen: np.ndarray
    added: np.ndarray
    erased: np.ndarray
    conditions: list[tuple[View, bool]] = field(default_factory=list)
    computed: list[tuple[View, float]] = field(default_factory=list)
    region: list[Operation] = field(default_factory=list)

    def patterns(self) -> list[np.ndarray]:
        """Arrays that are equal for rows under the same mask."""
        views = [view for view, _ in (*self.conditions, *self.computed)]
        return [self.seen, self.added, *(view.index for view in views)]


def masks_of(sweep: Sweep, logits: View, scale: float) -> Masks | None:
    """Scores below masks and factors, or None if there is anything else."""
    none = np.zeros(logits.shape, np.float32)
    found = Masks(logits, scale, np.ones(logits.shape, bool), none, none > 0)
    while not sweep.producer(found.scores, "dot"):
        if not _peeled(sweep, found):
            return None
    hides = found.added <= HIDES
    found.seen, found.added = found.seen & ~hides, np.where(hides, np.float32(0), found.added)
    if (found.erased & found.seen).any() or not np.isfinite(found.added).all():
        return None
    return found if found.seen.any(-1).all() else None


def _peeled(sweep: Sweep, masks: Masks) -> bool:
    """Take one operation off the scores."""
    inner = sweep.peel(masks.scores, "mul", "select", "add", "sub")
    if inner is None:
        return False
    operation, operands = inner
    masks.region.append(operation)
    if operation.name == "mul":
        known = with_number(operands)
        if known is None:
            return _erased(masks, *operands)
        masks.scores, masks.scale = known[0], masks.scale * known[1]
        return True
    if operation.name == "select":
        condition, x, y = operands
        for scores, other, positive in ((x, y, True), (y, x, False)):
            hidden = other.scalar
            if hidden is not None and hidden * masks.scale <= HIDES and is_score(sweep, scores):
                masks.scores = scores
                return _condition(sweep, masks, condition, positive, hidden * masks.scale)
        return False
    if operation.name == "add" and not is_score(sweep, operands[0]):
        operands = operands[::-1]
    if not is_score(sweep, operands[0]):
        return False
    masks.scores = operands[0]
    return _added(sweep, masks, operands[1], masks.scale if operation.name == "add" else -masks.scale)


def _erased(masks: Masks, scores: View, kept: View) -> bool:
    """Scores times a known mask of ones and zeros: what else hides keys must hide those with zeros."""
    known = kept.constant
    if known is None or not np.isin(known, (0, 1)).all():
        return False
    masks.scores = scores
    masks.erased = masks.erased | (known == 0)
    return True


def is_score(sweep: Sweep, view: View) -> bool:
    """Whether a view is a product, under masks and factors."""
    if sweep.producer(view, "dot"):
        return True
    inner = sweep.peel(view, "mul", "select", "add", "sub")
    return inner is not None and any(is_score(sweep, operand) for operand in inner[1])


def _condition(sweep: Sweep, masks: Masks, condition: View, positive: bool, hidden: float) -> bool:
    """Booleans that hide keys: parts of them may be known."""
    known = condition.constant
    if known is not None:
        masks.seen = masks.seen & (known.astype(bool) == positive)
        return True
    if inner := sweep.peel(condition, "not"):
        return _condition(sweep, masks, inner[1][0], not positive, hidden)
    # All of several conditions, or none of several.
    if inner := sweep.peel(condition, "mul" if positive else "maximum"):
        return all([_condition(sweep, masks, part, positive, hidden) for part in inner[1]])
    masks.conditions.append((condition, positive))
    return hidden <= HIDES_ANYWAY


def _added(sweep: Sweep, masks: Masks, view: View, factor: float) -> bool:
    """Numbers that are added: known, chosen by conditions, or computed."""
    known = view.constant
    if known is not None:
        masks.added = masks.added + np.float32(factor) * known.astype(np.float32)
        return True
    if inner := sweep.peel(view, "add"):
        return all([_added(sweep, masks, part, factor) for part in inner[1]])
    if inner := sweep.peel(view, "select"):
        condition, x, y = inner[1]
        for zero, other, positive in ((x, y, True), (y, x, False)):
            hides = other.scalar is not None and other.scalar * factor <= HIDES_ANYWAY
            if hides and other.scalar is not None:
                if zero.scalar == 0:
                    return _condition(sweep, masks, condition, positive, other.scalar * factor)
                return _condition(sweep, masks, condition, positive, other.scalar * factor) and _added(
                    sweep, masks, zero, factor
                )
    masks.computed.append((view, factor))
    return True


# -- for the operation ------------------------------------------------------------------------------------------------


def attributes_of(seen: np.ndarray) -> dict[str, Any] | None:
    """The attributes of attention that say which keys [queries, keys] are seen, or None."""
    queries, keys = seen.shape
    for attributes in _candidates(seen):
        if np.array_equal(seen, seen_by(queries, keys, *attributes.values())):
            names = {"length": "keys"}
            return {names.get(name, name): value for name, value in attributes.items()}
    return None


def _candidates(seen: np.ndarray) -> Iterator[dict[str, Any]]:
    queries, keys = seen.shape
    any_key = seen.any(0)
    length = int(np.flatnonzero(any_key)[-1]) + 1
    lengths = [None] if length == keys else [None, length]
    for known in lengths:
        yield {"causal": False, "window": None, "offset": 0, "length": known}
    last = keys - 1 - seen[:, ::-1].argmax(1)
    first = seen.argmax(1)
    offset = int(last[0])
    # The latest row that does not begin with the first key tells the width of a window.
    window = queries - 1 + offset - int(first[-1]) + 1 if first[-1] > 0 else None
    for known in lengths:
        for width in dict.fromkeys([None, window]):
            yield {"causal": True, "window": width, "offset": offset, "length": known}


def mask_of(sweep: Sweep, masks: Masks, index: tuple[Any, ...]) -> tuple[View | None, dict[str, Any]]:
    """The additive mask [queries, keys] of rows, or None, and attributes for the rest of it."""
    seen, added = masks.seen[index], masks.added[index]
    attributes = attributes_of(seen)
    everything = {"causal": False, "window": None, "offset": 0, "keys": None}
    terms = []
    for view, positive in masks.conditions:
        part = view.moved(lambda positions: positions[index])
        zero, hidden = sweep.number(0, part.shape), sweep.number(HIDDEN, part.shape)
        terms.append(sweep.add("select", part, *((zero, hidden) if positive else (hidden, zero))))
    for view, factor in masks.computed:
        part = view.moved(lambda positions: positions[index])
        terms.append(part if factor == 1 else sweep.add("mul", part, sweep.number(factor, part.shape)))
    if attributes is None or added.any():
        hidden_too = np.where(seen, added, np.float32(HIDDEN)) if attributes is None else added
        terms.append(sweep.array(hidden_too.astype(np.float32)))
    mask: View | None = None
    for term in terms:
        mask = term if mask is None else sweep.add("add", mask, term)
    if len(terms) > 1 and mask is not None:
        # Two terms that hide must not make an infinity.
        mask = sweep.add("maximum", mask, sweep.number(HIDDEN, mask.shape))
    return mask, everything if attributes is None else attributes
