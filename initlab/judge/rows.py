"""Rows of a table as arrays, column by column: a probe has hundreds, and pandas spends more on its keys and dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]

_MANY = 4096  # rows, from which pandas groups faster
_OF: dict[str, Callable[[Any], float]] = {
    "mean": np.mean,
    "median": np.median,
    "min": np.min,
    "max": np.max,
    "sum": np.sum,
}


class Rows:
    """Columns of equal length, by name. Nothing of it is changed; to pick rows costs as little as their numbers.

    `rows["std"]` is an array, `rows[mask or places]` are some rows, `rows[0]` is one of them, by column. A missing text
    is None, a missing number NaN, whatever the table's dtype.

    Args:
        columns: sequences of one length.
    """

    __slots__ = ("_columns", "_groups", "_length", "_load", "names")

    def __init__(self, columns: Mapping[str, Any]) -> None:
        length = max((len(values) for values in columns.values()), default=0)
        self._set({name: _column(values, length) for name, values in columns.items()}, length, (), _nothing)

    def _set(self, columns: dict[str, Array], length: int, names: Sequence[str], load: Callable[[str], Array]) -> Rows:
        self._columns, self._length, self._load = columns, length, load
        self.names = tuple(dict.fromkeys((*names, *columns)))
        self._groups: dict[Any, list[Array]] = {}
        return self

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Rows:
        """Read a frame; a column only once it is asked for.

        Args:
            frame: whose index doesn't count.
        """
        return cls.__new__(cls)._set({}, len(frame), list(frame.columns), lambda name: _plain(frame[name]))

    def __len__(self) -> int:
        return self._length

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not self._length

    @overload
    def __getitem__(self, key: str) -> Array: ...
    @overload
    def __getitem__(self, key: int) -> Row: ...
    @overload
    def __getitem__(self, key: Array | Sequence[int] | slice) -> Rows: ...

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._columns:
                self._columns[key] = self._load(key)
            return self._columns[key]
        if isinstance(key, int | np.integer):
            return Row(self, int(key))
        at = np.arange(self._length)[key] if isinstance(key, slice) else np.asarray(key)
        at = np.flatnonzero(at) if at.dtype == bool else at.astype(np.intp)
        return Rows.__new__(Rows)._set({}, len(at), self.names, lambda name: self[name][at])

    def __iter__(self) -> Iterator[Row]:
        return (Row(self, place) for place in range(self._length))

    def assign(self, **columns: Any) -> Rows:
        """Give them further columns, or others in place of theirs.

        Args:
            **columns: an array or a sequence each, or one value for all.
        """
        made = {name: _column(values, self._length) for name, values in columns.items()}
        return Rows.__new__(Rows)._set(made, self._length, self.names, self.__getitem__)

    def among(self, name: str, values: Collection[Any]) -> Array:
        """Tell of which rows a column has one of these values.

        Args:
            name: of the column.
            values: that it may have.
        """
        known = set(values)
        return np.fromiter((value in known for value in self[name].tolist()), bool, self._length)

    def groups(self, *by: str, sort: bool = True) -> list[Array]:
        """Find where the rows of each group are, counted from 0; those that lack a key are left out.

        Args:
            *by: columns that the rows of a group have in common.
            sort: groups by them, else in the order in which they come.
        """
        if (by, sort) not in self._groups:
            find = _by_pandas if self._length > _MANY else _by_hand
            self._groups[by, sort] = find([self[name] for name in by], sort)
        return self._groups[by, sort]

    def parts(self, *by: str, sort: bool = False) -> Iterator[Rows]:
        """Yield the rows of each group.

        Args:
            *by: as `groups` takes it.
            sort: likewise.
        """
        found = self.groups(*by, sort=sort)
        if len(found) == 1 and len(found[0]) == self._length:
            yield self
        else:
            yield from (self[at] for at in found)

    def grouped(self, by: Sequence[str], *, sort: bool = True, **made: tuple[str, str]) -> Rows:
        """Sum groups up, into a row each.

        Args:
            by: as `groups` takes it.
            sort: likewise.
            **made: column -> (column that it is made of, `first`, `mean`, `median`, `min`, `max`, `sum` or `nunique`);
                missing values don't count.
        """
        found = self.groups(*by, sort=sort)
        first = self[np.array([own[0] for own in found], dtype=np.intp)]
        return Rows(
            {name: first[name] for name in by}
            | {name: _summed(self[column], how, found) for name, (column, how) in made.items()}
        )

    def matching(self, other: Rows, *on: str) -> tuple[Array, Array]:
        """Find the pairs of a row here and one there that have columns in common: their places, by the row here.

        Args:
            other: whose rows are looked for.
            *on: the columns.
        """
        there: dict[Any, list[int]] = {}
        for place, key in enumerate(zip(*(other[name].tolist() for name in on), strict=True)):
            there.setdefault(key, []).append(place)
        keys = enumerate(zip(*(self[name].tolist() for name in on), strict=True))
        pairs = [(here, place) for here, key in keys for place in there.get(key, ())]
        both = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        return both[:, 0], both[:, 1]


class Row(Mapping[str, Any]):
    """One row, by column: numbers and texts as Python has them.

    Args:
        rows: among which it is.
        place: counted from 0, or from the end where below.
    """

    __slots__ = ("_place", "_rows")

    def __init__(self, rows: Rows, place: int) -> None:
        self._rows, self._place = rows, place

    def __getitem__(self, name: str) -> Any:
        if name not in self._rows:
            raise KeyError(name)
        value = self._rows[name][self._place]
        return value.item() if isinstance(value, np.generic) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.names)

    def __len__(self) -> int:
        return len(self._rows.names)


def largest(values: Array) -> int:
    """Find where the largest number is, the first of several; NaN is none.

    Args:
        values: of which one at least is a number.
    """
    return int(np.nanargmax(values))


def smallest(values: Array) -> int:
    """Find where the smallest number is, as `largest`."""
    return int(np.nanargmin(values))


def middle(values: Array) -> float:
    """Median of the numbers that aren't NaN; NaN where there are none."""
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


def _nothing(name: str) -> Array:
    raise KeyError(name)


def _column(values: Any, length: int) -> Array:
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, str) or not isinstance(values, Sequence):
        return np.full(length, values, dtype=object if isinstance(values, str) or values is None else None)
    texts = any(isinstance(value, str) or value is None for value in values)
    return np.array(values, dtype=object if texts else None if len(values) else float)


def _plain(values: pd.Series) -> Array:
    """A table's column as an array that nobody can write into."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = np.array([*values.cat.categories, None], dtype=object)
        return np.asarray(names[values.cat.codes.to_numpy()])  # of what is missing the code is -1
    if isinstance(values.dtype, pd.StringDtype):
        return values.to_numpy(dtype=object, na_value=None)
    if pd.api.types.is_extension_array_dtype(values.dtype):
        return values.to_numpy(dtype=float, na_value=math.nan)
    found = values.to_numpy().view()
    found.flags.writeable = False
    return found


def _by_hand(columns: Sequence[Array], sort: bool) -> list[Array]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(zip(*(values.tolist() for values in columns), strict=True)):
        groups.setdefault(key, []).append(place)
    known = [key for key in groups if not any(value is None or value != value for value in key)]  # NaN isn't itself
    return [np.array(groups[key], dtype=np.intp) for key in (sorted(known) if sort else known)]


def _by_pandas(columns: Sequence[Array], sort: bool) -> list[Array]:
    frame = pd.DataFrame(dict(enumerate(columns)))
    number = frame.groupby(list(frame.columns), sort=sort).ngroup().to_numpy()
    order = np.argsort(number, kind="stable")
    order = order[number[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1) if len(order) else []


def _summed(values: Array, how: str, groups: Sequence[Array]) -> Array:
    if how == "first" and values.dtype == object:
        return np.array([next((x for x in values[own] if x is not None), None) for own in groups], dtype=object)
    if how == "nunique":
        return np.array([len({x for x in values[own].tolist() if x is not None and x == x}) for own in groups], int)
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
    kept = [own[~missing[own]] for own in groups] if missing.any() else groups
    if how == "first" or all(len(own) == 1 for own in kept):
        if all(map(len, kept)):
            return values[np.array([own[0] for own in kept], dtype=np.intp)]
        return np.array([values[own[0]] if len(own) else math.nan for own in kept])
    return np.array([_OF[how](values[own]) if len(own) or how == "sum" else math.nan for own in kept])
