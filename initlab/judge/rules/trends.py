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
    if alive.sum() < FEWEST or 2 * alive.sum() < len(values):
        return out
    x, y = np.log(layers[alive] + 1.0), np.log(values[alive])
    first, second = np.triu_indices(len(x), 1)
    apart = x[first] != x[second]
    slope = float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart])) if apart.any() else 0.0
    rest = y - slope * x
    rest = rest - np.median(rest)
    typical = float(np.median(np.abs(rest)))
    out[alive] = np.where(np.abs(rest) > SPREAD * typical, rest, 0.0)
    out[values == 0] = -np.inf
    return out
