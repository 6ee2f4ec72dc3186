"""How far a result is from its float32 reference (docs/precision.md section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distance:
    """The distance of a result from its reference; plain Python numbers.

    Where the result is not finite, no number says how far it is: relative L2 and largest error are infinite, the ratio
    of signal to noise is minus infinity, and the cosine, of no direction, is 0.

    Attributes:
        relative_l2: norm of the error over that of the reference; of a zero reference 0 or infinite.
        cosine: of the angle between the two; 0 where one of them is zero.
        max_error: largest magnitude of an error.
        snr_db: ``-20 log10(relative_l2)``; infinite without any error.
        non_finite: elements of the result that are infinite or NaN.
    """

    relative_l2: float
    cosine: float
    max_error: float
    snr_db: float
    non_finite: int


def distance(result: np.ndarray, reference: np.ndarray) -> Distance:
    """The distance of a float32 result from a finite reference of the same shape; sums in float64."""
    non_finite = int(np.sum(~np.isfinite(result)))
    if non_finite:
        return Distance(math.inf, 0.0, math.inf, -math.inf, non_finite)
    a, b = (np.asarray(x, np.float64).reshape(-1) for x in (result, reference))
    error = a - b
    noise, signal, power = (math.sqrt(float(v @ v)) for v in (error, b, a))
    relative = noise / signal if signal else math.inf if noise else 0.0
    cosine = float(a @ b) / (signal * power) if signal and power else 0.0
    return Distance(
        relative_l2=relative,
        # Rounding may leave the range.
        cosine=max(-1.0, min(1.0, cosine)),
        max_error=float(np.max(np.abs(error), initial=0.0)),
        snr_db=20 * math.log10(signal / noise) if signal and noise else -math.inf if noise else math.inf,
        non_finite=0,
    )
