"""What is added to the token embeddings before the first block: positions of any make, told by what the sum holds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 4096  # elements that are looked at
_ROUNDING = 0.01  # of a sum in 16 bits is less


def sum_factors(total: Tensor, token: Tensor, position: Tensor) -> tuple[float, float] | None:
    """(a, b) of total = a·token + b·position, (B, T, C) each or broadcast to it; None where it isn't that.

    Elements that are 0 (dropped out) don't count. b is 0 where the positions aren't in the sum.
    """
    try:
        token, position = token.expand_as(total), position.expand_as(total)
    except RuntimeError:  # of another width, or of another order of dimensions
        return None
    flat = _sampled(total, token, position)
    kept = flat[0] != 0
    target, terms = flat[0][kept], flat[1:, kept].T
    if not _usable(target, terms):
        return None
    solved = np.linalg.lstsq(terms, target, rcond=None)[0]
    rest = target - terms @ solved
    size = _ROUNDING * np.linalg.norm(target)
    if not np.linalg.norm(rest) <= size:
        return None
    seen = np.linalg.norm(terms[:, 1] * solved[1]) > size
    return float(solved[0]), float(solved[1]) if seen else 0.0


def added(total: Tensor, token: Tensor) -> tuple[float, float] | None:
    """(a, mean square of r) of total = a·token + r, (B, T, C) each, where r is the same in every sequence.

    r is whatever says where a token stands: a table, a buffer, a sinusoid. Its mean square is 0 where nothing is added.
    Elements that are 0 (dropped out) don't count. None where it isn't such a sum, or of a single sequence.
    """
    if total.shape != token.shape or total.dim() != 3 or len(total) < 2:
        return None
    flat = _sampled(total[0], total[1], token[0], token[1])
    one, other, token_one, token_other = flat[:, (flat[0] != 0) & (flat[1] != 0)]
    if not _usable(one, flat):
        return None
    target, term = one - other, token_one - token_other
    if not term.any():
        return None
    factor = float(target @ term / (term @ term))
    if not np.linalg.norm(target - factor * term) <= _ROUNDING * np.linalg.norm(target):
        return None
    rest = one - factor * token_one
    seen = np.linalg.norm(rest) > _ROUNDING * np.linalg.norm(one)
    return factor, float(np.mean(rest**2)) if seen else 0.0


def _sampled(*values: Tensor) -> np.ndarray:
    """Elements of tensors of one shape, one row each. NumPy's arithmetic doesn't wake torch's threads."""
    stride = max(1, values[0].numel() // _SAMPLE) | 1  # odd, so that it meets all channels
    return torch.stack([value.reshape(-1)[::stride].double() for value in values]).cpu().numpy()


def _usable(target: np.ndarray, terms: np.ndarray) -> bool:
    return len(target) >= 16 and bool(np.isfinite(target).all() and np.isfinite(terms).all())
