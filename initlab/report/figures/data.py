"""From tables to the few numbers a picture shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from initlab.report.digest import View


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line: median over seeds, the seeds' range, and the closed form where there is one.

    `seeds`, a row each, are drawn thin in place of the range; `marks`, (x, y), are measured in another way than the
    line, which has no markers of its own then.
    """

    x: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    expected: np.ndarray
    seeds: np.ndarray | None = None
    marks: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def drawable(self) -> np.ndarray:
        """Points that a log axis can show."""
        return np.isfinite(self.median) & (self.median > 0)

    @property
    def spanned(self) -> np.ndarray:
        """All values that the axis has to cover."""
        marks = self.marks[1] if self.marks else np.array([])
        return np.concatenate([self.low[self.drawable], self.high[self.drawable], self.expected, marks])

    def only(self) -> str:
        """What all values are when a log axis can show none of them."""
        if self.drawable.any():
            return ""
        return "0" if (self.median == 0).all() else "not finite"

    def end(self) -> tuple[float, float] | None:
        """The last drawable point in the order of drawing."""
        shown = np.flatnonzero(self.drawable)
        return (float(self.x[shown[-1]]), float(self.median[shown[-1]])) if len(shown) else None


def curve(frame: pd.DataFrame, x: str, *, descending: bool = False) -> Curve | None:
    """Collapse rows of one recipe over seeds. A value is not finite as soon as one seed's is."""
    if frame.empty:
        return None
    points = {}
    for at, group in frame.groupby(x, observed=True):
        values = group["var"].to_numpy(float)
        expected = group["expected_var"].dropna()
        points[at] = (np.median(values), values.min(), values.max(), expected.median() if len(expected) else np.nan)
    order = sorted(points, reverse=descending)
    columns = np.array([points[at] for at in order], dtype=float).T
    return Curve(np.array(order, dtype=float), *columns)


Curves = dict[str, Curve]


def by_recipe(shown: View, frame: pd.DataFrame, x: str, *, descending: bool = False) -> Curves:
    """A curve per recipe that has rows, in the run's order."""
    found = {recipe: curve(frame[frame["recipe"] == recipe], x, descending=descending) for recipe in shown.recipes}
    return {recipe: line for recipe, line in found.items() if line is not None}


def stream(shown: View, kind: str, n_layer: int) -> pd.DataFrame:
    """The residual stream with column `after`: 0 at the embedding, l + 1 after block l."""
    rows = shown.rows(kind, ["embed", "resid_post"], n_layer)
    return rows.assign(after=rows["layer"].astype("float64").fillna(-1.0) + 1)


def some_positive(values: pd.Series) -> bool:
    """Whether a log axis would show anything."""
    numbers = values.to_numpy(float)
    return bool((np.isfinite(numbers) & (numbers > 0)).any())


def missing(frame: pd.DataFrame, what: str, column: str = "var") -> str:
    """Why a figure of `column` can't be drawn; empty if it can."""
    if frame.empty:
        return f"no {what} was recorded"
    if not some_positive(frame[column]):
        return f"every {what} is zero or not finite"
    return ""


def grid_of(
    frame: pd.DataFrame, rows: list[str], row: str, columns: int, value: np.ndarray | pd.Series
) -> np.ndarray | None:
    """Rows × blocks of the median of `value`, NaN where nothing was recorded; None if that is everywhere."""
    table = frame.assign(value=np.asarray(value, dtype=float))
    table = table[table["layer"].notna() & np.isfinite(table["value"])]
    grid = np.full((len(rows), columns), np.nan)
    for (name, layer), middle in table.groupby([row, "layer"], observed=True)["value"].median().items():
        if name in rows and 0 <= int(layer) < columns:
            grid[rows.index(name), int(layer)] = middle
    return grid if np.isfinite(grid).any() else None
