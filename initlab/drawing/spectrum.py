"""How many directions a matrix has: its stable rank, beside that of independent entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MOST = 256  # rows, and columns, that are looked at, evenly spaced
_STEPS = 4  # of the power iteration: it reaches a largest singular value that stands out, and never overshoots


def stable_rank(matrix: Tensor) -> tuple[float, float]:
    """Estimate ||W||_F^2 / ||W||_2^2, from above, and what independent entries would give.

    Of an n x m matrix of independent entries the largest singular value is about (√n + √m) standard deviations, which
    makes n·m / (√n + √m)^2; of one that is the product of two vectors it is 1. A larger matrix is judged by 256 rows
    and columns of it.

    Args:
        matrix: of two dimensions.

    Returns:
        both; NaN of one that is all zeros, or not finite.
    """
    rows, columns = (max(1, -(-size // _MOST)) for size in matrix.shape)
    part = matrix[::rows, ::columns].detach().float()
    n, m = part.shape
    usual = n * m / (math.sqrt(n) + math.sqrt(m)) ** 2
    largest = float(part.abs().max())
    if not 0 < largest < math.inf:
        return math.nan, math.nan
    part = part / largest
    vector = torch.arange(1, m + 1, device=part.device).mul(1.7).cos()  # no global random state, and no pattern's own
    for _ in range(_STEPS):
        vector = part.T @ (part @ vector)
        length = vector.norm()
        if not float(length) > 0:
            return math.nan, usual
        vector = vector / length
    return float(part.square().sum() / (part @ vector).square().sum()), usual
