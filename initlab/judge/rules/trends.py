"""One layer against the trend of the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEWEST = 4  # layers: of three, none can be told to be the odd one
SPREAD = 5.0  # times the median residual: layers of two kinds in turn all lie off the trend, so that none stands out


def off_trend(layers: Array, values: Array) -> Array:
    """ln(value / trend) of each layer; 0 where the layers are too few or none stands out from the rest.

    The trend is a power law of the layer's number, which holds constants and the layer-indexed inits in use
    (1/sqrt(l+1), 1/(l+1)), fitted robustly (Theil-Sen): a single layer doesn't bend it. Zeros are infinitely far off
    where others aren't 0.
    """
    out = np.zeros(len(values))
    alive = np.isfinite(values) & (values > 0)
    if len(values) < FEWEST or 2 * alive.sum() <= len(values):
        return out
    out[values == 0] = -np.inf
    if alive.sum() < FEWEST:
        return out
    x, y = np.log(layers[alive] + 1.0), np.log(values[alive])
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    slope = _middle((y[second] - y[first])[apart] / (x[second] - x[first])[apart])
    rest = y - slope * x
    rest = rest - np.median(rest)
    typical = float(np.median(np.abs(rest)))
    out[alive] = np.where(np.abs(rest) > SPREAD * typical, rest, 0.0)
    return out


def _middle(values: Array) -> float:
    """Median; of an even number, the middle value nearer 0: of four layers one odd end makes half of the slopes."""
    if not len(values):
        return 0.0
    ordered = np.sort(values)
    low, high = float(ordered[(len(values) - 1) // 2]), float(ordered[len(values) // 2])
    return low if abs(low) < abs(high) else high
