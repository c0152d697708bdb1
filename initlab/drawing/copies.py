"""Draws that were made once and stand in a model twice: matrices alike but for their scale, and rows of one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from initlab.anatomy.look import Anatomy
from initlab.anatomy.parameters import Parameter
from initlab.recipes import Role
from initlab.recipes.base import INNER, OUTPUTS

_DRAWN = (*INNER, *OUTPUTS, Role.ROUTER, Role.TOKEN_EMBED, Role.UNEMBED)
_NUMBERS = 256  # of a matrix, its first ones: a draw from the same seed begins alike, whatever the shape
_LEAST = 64  # fewer say too little
_TAILS = 12.0  # kurtosis from which a few numbers decide what is alike, as of an identity
_CHUNK = 1024  # matrices that are compared with all others at once
COPY = 0.9  # correlation of copies
_PICKED = 16  # numbers of a row that tell it from any other
_WEIGHTS = np.arange(3, 3 + 2 * _PICKED, 2, dtype=np.int64) ** 9  # of their bits, in the key of a row
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def drawn_matrices(anatomy: Anatomy) -> Iterator[tuple[Parameter, str, Tensor]]:
    """Yield what is drawn at random in all models that anyone trains, one of a stack of experts at a time.

    These are the matrices of attention, MLPs, routers, the token table and the head, and of layers whose class is
    nn.Linear. Positions, gates, convolutions and state matrices often hold a pattern that is meant.

    Args:
        anatomy: of the model.

    Yields:
        the parameter, the name of the matrix (`mlp.experts.up[3]` of one expert), and its values.
    """
    modules = dict(anatomy.model.named_modules())
    for name, parameter in anatomy.model.named_parameters():
        place = anatomy.places.get(name)
        if place is None or not parameter.requires_grad or parameter.dim() not in (2, 3) or not parameter.numel():
            continue
        if place.role not in _DRAWN and not isinstance(modules[name.rpartition(".")[0]], nn.Linear):
            continue
        values = parameter.detach()
        if values.dim() == 2:
            yield place, name, values
        else:
            yield from ((place, f"{name}[{number}]", each) for number, each in enumerate(values))


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
    told = _told(rows)
    if told is None:
        return (1, 0.0, "")
    keys, drawn = told
    known = keys[drawn]
    count = len(rows)
    blocks = 1
    for size in (each for each in range(1, count // 2 + 1) if count % each == 0):
        if bool((keys[size:] == keys[:-size]).all()):
            blocks = count // size
            break
    (start, end, of), *_ = _ranges(keys, drawn)
    several = f"{start} to {end - 1} are {of} to {of + end - start - 1}"
    which = several if end > start + 1 else f"{start} is {of}"
    return blocks, (len(known) - len(np.unique(known))) / count, which


def repeats(rows: Tensor) -> list[tuple[int, int, int]]:
    """List the ranges of rows that repeat earlier ones: first, last + 1, and the first of those that they repeat.

    Args:
        rows: as `repeated` takes them.
    """
    told = _told(rows)
    return [] if told is None else list(_ranges(*told))


def copies_in(anatomy: Anatomy) -> dict[str, list[dict[str, Any]]]:
    """Find by parameter what holds the numbers of an earlier draw, so that drawing it anew leaves no two alike.

    Keys: which and like (in words: what, and what it repeats), rows (axis, first, last + 1; None of a whole matrix),
    std (of these).

    Args:
        anatomy: of the model.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    kept: list[tuple[Parameter, str, Tensor]] = []
    sketches: list[Tensor] = []
    for place, name, matrix in drawn_matrices(anatomy):
        if (drawn := sketch(matrix)) is not None:
            kept.append((place, name, matrix))
            sketches.append(drawn)
        if name == place.name:  # of an expert's rows nothing can be said that is narrower than the expert
            found.setdefault(name, []).extend(_inside(name, matrix))
    for (place, name, matrix), (other, value) in zip(kept, likest(sketches), strict=True):
        if value < COPY:
            continue
        entry = {"which": name, "like": kept[other][1], "rows": None, "std": float(matrix.float().std())}
        if name == place.name:
            found[name] = [entry]
        else:
            number = int(name[len(place.name) + 1 : -1])
            found.setdefault(place.name, []).append(entry | {"rows": (0, number, number + 1)})
    return {name: each for name, each in found.items() if each}


def _inside(name: str, matrix: Tensor) -> Iterator[dict[str, Any]]:
    for axis, rows, word in ((0, matrix, "row"), (1, matrix.T, "column")):
        for first, end, of in repeats(rows):
            spans = ((first, end - 1), (of, of + end - first - 1))
            each, like = (f"{word} {a}" if a == b else f"{word}s {a}–{b}" for a, b in spans)
            std = float(rows[first:end].float().std())
            yield {"which": f"{each} of {name}", "like": like, "rows": (axis, first, end), "std": std}


def _told(rows: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """A key of each row, and whether it is a draw; None where no two of these are alike."""
    count, width = rows.shape
    if count < 2 or width < _PICKED:
        return None
    places = torch.linspace(0, width - 1, _PICKED).long()
    picked = rows[:, places.to(rows.device)].contiguous().cpu()
    if len(picked[:4].unique()) < _PICKED:
        return None
    bits = picked.view(_WHOLE[picked.element_size()]).numpy().astype(np.int64)
    keys = bits @ _WEIGHTS  # wraps around, and is exact
    if len(set(keys.tolist())) == count:
        return None
    drawn = (((picked != 0).sum(1) > 0.75 * _PICKED) & (picked.amax(1) > picked.amin(1))).numpy()
    return (keys, drawn) if len(np.unique(keys[drawn])) < int(drawn.sum()) else None


def _ranges(keys: np.ndarray, drawn: np.ndarray) -> Iterator[tuple[int, int, int]]:
    listed, kept, seen = keys.tolist(), drawn.tolist(), dict[int, int]()
    row = 0
    while row < len(listed):
        start = seen.setdefault(listed[row], row) if kept[row] else row
        length = 1
        if start < row:
            while row + length < len(listed) and listed[row + length] == listed[start + length] and kept[row + length]:
                length += 1
            yield row, row + length, start
        row += length
