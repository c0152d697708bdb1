"""From tables to the few numbers a picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from initlab.judge.outcomes import run_measures
from initlab.report.theme import MAX_OVERLAID
from initlab.report.view import View, recipes_of
from initlab.rundir import Run

MOST_DEPTHS = 4  # panels in a row


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A line: median over seeds, the seeds themselves (a row each), and the closed form where there is one.

    The seeds are shown as the range they span, or, of runs that have a course of their own, `apart`: as thin lines.
    `marks`, (x, y), are measured in another way than the line, which has no markers of its own then; `kinds` are the
    words for the line's way and for theirs.
    """

    x: np.ndarray
    median: np.ndarray
    seeds: np.ndarray
    expected: np.ndarray
    apart: bool = False
    marks: tuple[np.ndarray, np.ndarray] | None = None
    kinds: tuple[str, str] = ("", "")

    @property
    def drawable(self) -> np.ndarray:
        """Points that a log axis can show."""
        return np.isfinite(self.median) & (self.median > 0)

    @property
    def spanned(self) -> np.ndarray:
        """All values that the axis has to cover."""
        marks = self.marks[1] if self.marks else np.array([])
        return np.concatenate([self.seeds[:, self.drawable].ravel(), self.expected, marks])

    @property
    def foreseen(self) -> np.ndarray:
        """Points for which a log axis can show a closed form."""
        return np.isfinite(self.expected) & (self.expected > 0)

    def only_at(self, at: np.ndarray) -> Curve:
        """The part of the line at some of its points."""
        return replace(self, x=self.x[at], median=self.median[at], seeds=self.seeds[:, at], expected=self.expected[at])

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
    xs, var, expected = (frame[column].to_numpy(float, na_value=np.nan) for column in (x, "var", "expected_var"))
    order = np.unique(xs[~np.isnan(xs)])[:: -1 if descending else 1]
    values = [var[xs == at] for at in order]
    foreseen = [expected[(xs == at) & ~np.isnan(expected)] for at in order]
    return Curve(
        order,
        np.array([np.median(each) for each in values]),
        beside(values),
        np.array([np.median(each) if len(each) else np.nan for each in foreseen]),
    )


def beside(values: Sequence[np.ndarray]) -> np.ndarray:
    """Columns of different lengths as one table, NaN below the shorter ones."""
    table = np.full((max(map(len, values)), len(values)), np.nan)
    for place, column in enumerate(values):
        table[: len(column), place] = column
    return table


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


def best_runs(run: Run) -> pd.DataFrame:
    """The runs to show: at each recipe's best rate with the longest warmup; of kind `train`, all.

    Columns as `run_measures`. A best rate is one with the lowest mean loss over the seeds that there are.
    """
    runs = run_measures(run).astype({"run_id": str, "recipe": str})
    if run.manifest.get("kind") != "confirm" or runs.empty:
        return runs
    runs = runs[runs["warmup"] == runs["warmup"].max()]
    keys = ["recipe", "n_layer"]
    means = runs.groupby([*keys, "lr"])["loss"].mean().reset_index()
    best = means.loc[means.groupby(keys)["loss"].idxmin(), [*keys, "lr"]]
    return runs.merge(best, on=[*keys, "lr"])


def untrained(run: Run) -> str:
    """Why nothing of training can be drawn; empty if it can."""
    if run.manifest.get("kind") not in ("confirm", "train"):
        return "needs training runs: initlab confirm, or initlab train"
    return "" if len(run.tables.runs) and len(run.tables.training) else "no training run has finished"


def depths_of(run: Run) -> list[int]:
    """Depths that were trained and fit a row of panels: the deepest where recipes are many."""
    depths = sorted(int(depth) for depth in run.tables.runs["n_layer"].unique())
    return depths[-1:] if len(recipes_of(run)) > MAX_OVERLAID else depths[-MOST_DEPTHS:]


def warmup_text(steps: int) -> str:
    return f"warmup {steps}" if steps else "no warmup"
