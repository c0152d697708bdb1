"""Groups of rows and what sums them up, in dicts: a probe has hundreds of rows, and pandas spends more on its keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

_MANY = 4096  # rows, from which pandas is faster
_OF: dict[str, Callable[[Any], float]] = {
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
}


def grouped(frame: pd.DataFrame, by: Sequence[str], *, sort: bool = True, **made: tuple[str, str]) -> pd.DataFrame:
    """Sum groups of rows up: `frame.groupby(by, observed=True, sort=sort).agg(**made).reset_index()`.

    Args:
        frame: rows; those without a key are left out.
        by: columns that the rows of a group have in common.
        sort: by them, else in the order in which groups come.
        **made: column -> (column that it is made of, `first`, `mean`, `median`, `min`, `max`, `sum` or `nunique`);
            missing values don't count.
    """
    if not len(frame) or len(frame) > _MANY:
        return frame.groupby(list(by), observed=True, sort=sort).agg(**made).reset_index()
    rows = list(places(frame, by, sort=sort))
    found = frame[list(by)].take([own[0] for own in rows]).reset_index(drop=True)
    summed = {name: _summed(frame[column], how, rows) for name, (column, how) in made.items()}
    return found.assign(**summed)


def places(frame: pd.DataFrame, by: Sequence[str], *, sort: bool = True) -> Iterator[list[int]]:
    """Yield where the rows of each group are, counted from 0.

    Args:
        frame: as `grouped` takes it.
        by: likewise.
        sort: likewise.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*(frame[column].tolist() for column in by), strict=True)):
        groups.setdefault(key, []).append(place)
    # NaN isn't itself, and NA is neither
    known = [key for key in groups if not any(value is pd.NA or value != value for value in key)]
    for key in sorted(known) if sort else known:
        yield groups[key]


def _summed(values: pd.Series, how: str, rows: Sequence[list[int]]) -> Any:
    missing = values.isna().to_numpy()
    some = bool(missing.any())
    kept = [[place for place in own if not missing[place]] for own in rows] if some else rows
    if how == "first":
        first = [own[0] if own else whole[0] for own, whole in zip(kept, rows, strict=True)]
        return values.take(first).reset_index(drop=True)
    if how == "nunique":
        listed = values.tolist()
        return [len({listed[place] for place in own}) for own in kept]
    whole = how in ("min", "max", "sum") and pd.api.types.is_integer_dtype(values.dtype) and not some
    numbers = values.to_numpy(dtype=np.int64 if whole else np.float64, na_value=np.nan if some else None)
    if all(len(own) == 1 for own in kept):
        return numbers[[own[0] for own in kept]]
    return np.array([_OF[how](numbers[own]) if own or how == "sum" else math.nan for own in kept])
