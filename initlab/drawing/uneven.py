"""Rows of one matrix that were drawn otherwise than its others: added tokens, a head, the queries of a fused one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from initlab.anatomy.parameters import Parameter
from initlab.recipes import Role
from initlab.recipes.base import QKV

_SIGMAS = 6.0  # of chance; fifty thousand rows reach 4.4
_LEAST = 0.1  # relative difference of rms that is worth a word
_NUMBERS = 16  # fewer in a block, and its mean square says too little
_RANGES = 4  # more, and it is no block but the way of the whole matrix, as of a trained one
TABLES = (Role.TOKEN_EMBED, Role.POS_EMBED, Role.UNEMBED)


def odd_rows(values: Tensor, place: Parameter, padding: int | None = None) -> list[dict[str, Any]]:
    """Find the rows, heads or parts of a matrix whose scale chance doesn't explain beside the others'.

    Args:
        values: of the matrix.
        place: what it is.
        padding: a row of zeros that is meant.

    Returns:
        for each: name of the parameter, which rows in words, `rows` (axis, first, last + 1), their rms, that of the
        others, and whether it is a whole part of a fused matrix, for which a recipe may have a reason.
    """
    if values.dim() != 2 or place.role == Role.OTHER:
        return []
    axis = _axis(place, values.shape)
    squares = values.detach().float().square().mean(1 - axis).double()
    length = values.shape[1 - axis]
    if not bool(torch.isfinite(squares).all()):
        return []
    if padding is not None:
        squares[padding] = squares.median()
    found = _odd_parts(squares, length, place, axis)
    if found:
        return found
    n_head = place.dims.n_head
    heads = place.role in (Role.ATTN_QKV, *QKV) and n_head > 1 and not place.parts and len(squares) % n_head == 0
    for size in ([len(squares) // n_head] if heads else []) + [1]:
        ranges = _odd_ranges(squares.view(-1, size).mean(1), size * length)
        if ranges:
            return [_entry(place, squares, range(a * size, b * size), axis) for a, b in ranges]
    return []


def _axis(place: Parameter, shape: torch.Size) -> int:
    """The dimension along which output features stand, or a table's rows."""
    if place.parts:
        return place.axis
    rows = place.dims.fan_in if place.role in TABLES[:2] else place.dims.fan_out
    return 1 if shape[0] != rows and shape[1] == rows else 0


def _odd_parts(squares: Tensor, length: int, place: Parameter, axis: int) -> list[dict[str, Any]]:
    """Queries, keys or values that differ from the rest of the fused matrix."""
    held: dict[Role, list[int]] = {}
    start = 0
    for size, role, _ in place.parts:
        held.setdefault(role, []).extend(range(start, start + size))
        start += size
    if len(held) < 2 or start != len(squares):
        return []
    found = {role: _Mean.of(squares[rows], length) for role, rows in held.items()}
    out = []
    for role, own in found.items():
        beside = [mean for other, mean in found.items() if other != role]
        # the odd one among three: the other two are alike
        if all(own.differs(each) for each in beside) and not (len(beside) > 1 and beside[0].differs(beside[1])):
            rest = math.sqrt(sum(each.square for each in beside) / len(beside))
            which = f"the {role} rows of {place.name}"
            entry = {"name": place.name, "which": which, "rms": math.sqrt(own.square), "rest": rest, "part": True}
            out.append(entry | {"rows": (axis, min(held[role]), max(held[role]) + 1)})
    return out[:1]


def _odd_ranges(squares: Tensor, numbers: int) -> list[tuple[int, int]]:
    """First and last + 1 of the rows that are far from the median one, as ranges."""
    usual = float(squares.median())
    if numbers < _NUMBERS or usual == 0 or len(squares) < 3:
        return []
    # a mean of n squares over its expectation: its cube root is almost normal (Wilson and Hilferty)
    spread = 2 / (9 * numbers)
    far = ((squares / usual) ** (1 / 3) - (1 - spread)).abs() / math.sqrt(spread) > _SIGMAS
    far &= (squares.sqrt() / math.sqrt(usual) - 1).abs() > _LEAST
    at = far.nonzero().flatten().tolist()
    if not at or 2 * len(at) > len(squares):
        return []
    ranges: list[list[int]] = []
    for row in at:
        if ranges and ranges[-1][1] == row:
            ranges[-1][1] = row + 1
        else:
            ranges.append([row, row + 1])
    return [(a, b) for a, b in ranges] if len(ranges) <= _RANGES else []


@dataclass(frozen=True, slots=True)
class _Mean:
    """Mean square of some rows, and its standard error: of equal normal rows at the least, more where they scatter."""

    square: float
    error: float

    @classmethod
    def of(cls, squares: Tensor, length: int) -> _Mean:
        mean = float(squares.mean())
        scatter = float(squares.std(correction=0)) / math.sqrt(len(squares))
        return cls(mean, max(scatter, mean * math.sqrt(2 / (len(squares) * length))))

    def differs(self, other: _Mean) -> bool:
        high = max(self.square, other.square)
        far = abs(self.square - other.square) > _SIGMAS * math.hypot(self.error, other.error)
        return far and math.sqrt(min(self.square, other.square) / high) < 1 - _LEAST


def _entry(place: Parameter, squares: Tensor, rows: range, axis: int) -> dict[str, Any]:
    inside = torch.zeros(len(squares), dtype=torch.bool)
    inside[rows.start : rows.stop] = True
    inside = inside.to(squares.device)
    first, last = rows.start, rows.stop - 1
    which = f"row {first}" if first == last else f"rows {first}–{last}"
    return {
        "name": place.name,
        "which": f"{which} of {place.name}",
        "rows": (axis, rows.start, rows.stop),
        "rms": math.sqrt(float(squares[inside].mean())),
        "rest": math.sqrt(float(squares[~inside].median())),
        "part": False,
    }
