"""Draws that were made once and stand in a model twice: matrices alike but for their scale, and rows of one matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_NUMBERS = 256  # of a matrix, its first ones: a draw from the same seed begins alike, whatever the shape
_LEAST = 64  # fewer say too little
_TAILS = 12.0  # kurtosis from which a few numbers decide what is alike, as of an identity
_CHUNK = 1024  # matrices that are compared with all others at once
_PICKED = 16  # numbers of a row that tell it from any other
_WEIGHTS = np.arange(3, 3 + 2 * _PICKED, 2, dtype=np.int64) ** 9  # of their bits, in the key of a row
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def sketch(matrix: Tensor) -> Tensor | None:
    """Take the first numbers of a matrix, standardised; None where they are no random draw (an identity, zeros).

    Args:
        matrix: of two dimensions.
    """
    rows = -(-_NUMBERS // max(1, matrix.shape[1]))
    numbers = matrix[:rows].reshape(-1)[:_NUMBERS].float().cpu()
    if len(numbers) < _LEAST or not bool(numbers.isfinite().all()):
        return None
    # half of them different: neither an identity nor a pattern of a few values, which are alike on purpose
    if 2 * len(numbers[numbers != 0].unique()) < len(numbers):
        return None
    centred = (numbers - numbers.mean()).double()
    squares = centred.square()
    if bool(squares.square().mean() > _TAILS * squares.mean().square()):
        return None
    return torch.nn.functional.pad(centred / squares.sum().sqrt(), (0, _NUMBERS - len(numbers))).float()


def likest(sketches: Sequence[Tensor]) -> list[tuple[int, float]]:
    """Find for each matrix the one before it that it is most alike, and their correlation; (-1, 0) for the first.

    Of several as alike, the first. Matrices that were drawn apart correlate within 0.35, whatever their number.

    Args:
        sketches: of `sketch`, of matrices of one size or of any.
    """
    if not sketches:
        return []
    every = torch.stack(list(sketches))
    found: list[tuple[int, float]] = []
    for first in range(0, len(every), _CHUNK):
        part = every[first : first + _CHUNK]
        alike = (part @ every[: first + len(part)].T).tril(first - 1)
        best = alike.max(1).values
        places = (alike >= best[:, None] - 1e-3).int().argmax(1)
        found += zip(places.tolist(), best.tolist(), strict=True)
    return [(place, value) if place < at else (-1, 0.0) for at, (place, value) in enumerate(found)]


def repeated(rows: Tensor) -> tuple[int, float, str]:
    """Find rows of a matrix that are other rows of it over again.

    Compared bit by bit, in 16 places of each row. Rows that are zero in a quarter of them, or constant, are left out:
    an identity that is stacked is no draw.

    Args:
        rows: of two dimensions; the transposed matrix, to find columns.

    Returns:
        how many equal blocks the matrix is made of (1 for none); the share of its rows that repeat an earlier one;
        and the first of them in words (`32 to 63 are 0 to 31`).
    """
    count, width = rows.shape
    none = (1, 0.0, "")
    if count < 2 or width < _PICKED:
        return none
    places = torch.linspace(0, width - 1, _PICKED).long()
    picked = rows[:, places.to(rows.device)].contiguous().cpu()
    if len(picked[:4].unique()) < _PICKED:
        return none
    bits = picked.view(_WHOLE[picked.element_size()]).numpy().astype(np.int64)
    keys = bits @ _WEIGHTS  # wraps around, and is exact
    if len(set(keys.tolist())) == count:
        return none
    drawn = (((picked != 0).sum(1) > 0.75 * _PICKED) & (picked.amax(1) > picked.amin(1))).numpy()
    known = keys[drawn]
    again = len(known) - len(np.unique(known))
    if not again:
        return none
    blocks = 1
    for size in (each for each in range(1, count // 2 + 1) if count % each == 0):
        if bool((keys[size:] == keys[:-size]).all()):
            blocks = count // size
            break
    return blocks, again / count, _first(keys, drawn)


def _first(keys: np.ndarray, drawn: np.ndarray) -> str:
    """The first rows that repeat others, in words."""
    listed, seen = keys.tolist(), dict[int, int]()
    kept = drawn.tolist()
    for row, key in enumerate(listed):
        if kept[row] and key in seen:
            start, length = seen[key], 1
            while row + length < len(listed) and listed[row + length] == listed[start + length] and kept[row + length]:
                length += 1
            if length == 1:
                return f"{row} is {start}"
            return f"{row} to {row + length - 1} are {start} to {start + length - 1}"
        seen.setdefault(key, row)
    return ""
