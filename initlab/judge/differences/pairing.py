"""Which parameter of one model is which of another: by name, and where names differ by role, block and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from initlab.judge.rows import Rows
from initlab.rundir import Run

NAME, ROLE, PART = "name", "role and block", "part of a fused matrix"
_MOMENTS = ("mean", "kurtosis", "abs_max", "frac_nonfinite", "frac_zero")
# how a matrix was drawn beside its scale: columns of the table `draws`
_STRUCTURE = (
    *("rows", "columns", "stable_rank", "usual_rank", "odd", "like", "likeness", "row_copies", "row_which"),
    *("column_copies", "column_which", "shared", "shared_as", "parts"),
)


@dataclass(frozen=True, slots=True)
class Held:
    """A parameter, or a part of a fused one, as a run has measured it, all its seeds together.

    Attributes:
        name: dotted, of a part with its role: `c_attn.weight[attn_q]`.
        role: of it.
        layer: its block, None outside the blocks.
        numel: its elements, of one draw.
        draws: different ones that were measured.
        std: over the elements of every draw.
        moments: mean, kurtosis, abs_max, frac_nonfinite, frac_zero.
        structure: of a matrix, columns of the table `draws` as the first draw has them; empty of what isn't there.
        fused: of a fused matrix its parts, each a role with its elements, mean and std.
        whole: of a part, the name of the matrix.
    """

    name: str
    role: str
    layer: int | None
    numel: int
    draws: int
    std: float
    moments: dict[str, float]
    structure: dict[str, Any]
    fused: tuple[tuple[str, int, float, float], ...] = ()
    whole: str = ""

    @property
    def parts(self) -> list[Held]:
        """Its parts, of a fused matrix."""
        blank = dict.fromkeys(_MOMENTS, math.nan) | {"frac_nonfinite": 0.0}
        return [
            Held(
                f"{self.name}[{role}]",
                role,
                self.layer,
                numel,
                self.draws,
                std,
                blank | {"mean": mean},
                {},
                whole=self.name,
            )
            for role, numel, mean, std in self.fused
        ]


@dataclass(frozen=True, slots=True)
class Pair:
    """A parameter of A and the same of B; None on the side that has no such."""

    a: Held | None
    b: Held | None
    how: str = ""


def held(run: Run) -> list[Held]:
    """List the parameters of a run of one recipe and one size, in the model's order.

    Args:
        run: such a run.
    """
    rows = run.tables.records
    rows = rows[rows["kind"] == "weight"].sort_values("position", kind="stable")
    structures: dict[str, list[dict[str, Any]]] = {}
    for row in run.tables.draws[[*_STRUCTURE, "module"]].to_dict("records"):
        structures.setdefault(str(row["module"]), []).append(row)
    found = []
    for at in Rows.of(rows).groups("module", sort=False):
        own = rows.iloc[at]
        first = own.iloc[0]
        mean = own["mean"].to_numpy(float)
        squares = own["var"].to_numpy(float) + (mean - mean.mean()) ** 2
        moments = {name: float(own[name].mean()) for name in _MOMENTS}
        known = structures.get(str(first["module"]), [])
        found.append(
            Held(
                str(first["module"]),
                str(first["role"]),
                None if pd.isna(first["layer"]) else int(first["layer"]),
                int(first["numel"]),
                own["std"].nunique(dropna=False),  # a function may ignore its seed
                float(np.sqrt(squares.mean())),
                moments,
                known[0] if known else {},
                _fused([str(row["parts"] or "") for row in known]),
            )
        )
    return found


def _fused(texts: Sequence[str]) -> tuple[tuple[str, int, float, float], ...]:
    """Parts of a fused matrix, as the table `draws` has them, over its draws."""
    draws = [[part.split() for part in text.split("; ")] for text in texts if text]
    found = []
    for own in zip(*draws, strict=True) if len({len(parts) for parts in draws}) == 1 else ():
        role, numel, *_ = own[0]
        mean, std = (np.array([float(part[at]) for part in own]) for at in (2, 3))
        found.append(
            (role, int(numel), float(mean.mean()), float(np.sqrt((std**2 + (mean - mean.mean()) ** 2).mean())))
        )
    return tuple(found)


def pairs(a: Sequence[Held], b: Sequence[Held]) -> list[Pair]:
    """Match parameters: equal names first; then equal role and block, those of equal size before others.

    Where one model has a fused matrix and the other its parts apart, the parts are matched.

    Args:
        a: of one model, in its order.
        b: of the other.
    """
    found, left = _matched(a, b, lambda one: one.name, NAME)
    more, left = _matched(*left, lambda one: (one.role, one.layer, one.numel), ROLE)
    found += more
    more, left = _matched(*left, lambda one: (one.role, one.layer), ROLE)
    found += more
    apart = _apart(*left), _apart(left[1], left[0])
    more, left = _matched(*apart, lambda one: (one.role, one.layer, one.numel), PART)
    more2, left = _matched(*left, lambda one: (one.role, one.layer), PART)
    found += more + more2
    found += [Pair(one, None) for one in left[0]] + [Pair(None, one) for one in left[1]]
    order = {one.name: at for at, one in enumerate(a)}
    other = {one.name: at for at, one in enumerate(b)}
    last = max(len(order), 1)

    def place(pair: Pair) -> tuple[float, float]:
        if pair.a is not None:
            return (order[pair.a.whole or pair.a.name], 0)
        assert pair.b is not None
        return (last, other[pair.b.whole or pair.b.name])

    return sorted(found, key=place)


def _matched(
    a: Iterable[Held], b: Iterable[Held], key: Callable[[Held], Any], how: str
) -> tuple[list[Pair], tuple[list[Held], list[Held]]]:
    """Pairs of equal key, in order, and what is left; of a key that one side has more often, none is matched."""
    a, b = list(a), list(b)
    groups: dict[Any, tuple[list[Held], list[Held]]] = {}
    for side, each in enumerate((a, b)):
        for one in each:
            groups.setdefault(key(one), ([], []))[side].append(one)
    alike = {known: group for known, group in groups.items() if len(group[0]) == len(group[1])}
    found = [Pair(x, y, how) for mine, theirs in alike.values() for x, y in zip(mine, theirs, strict=True)]
    left = ([one for one in a if key(one) not in alike], [one for one in b if key(one) not in alike])
    return found, left


def _apart(own: Sequence[Held], other: Sequence[Held]) -> list[Held]:
    """What is left of one side, a fused matrix in its parts where the other side has all of them in that block."""
    places = {(one.role, one.layer) for one in other}
    found = []
    for one in own:
        parts = one.parts
        wanted = parts and all((part.role, part.layer) in places for part in parts)
        found += parts if wanted else [one]
    return found
