"""A row for each recipe and depth: where it goes, what it is called, and a dot with a bar on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.words import number, plural
from initlab.report import hover
from initlab.report.theme import Series, short, unlabelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def nested(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Where each row (recipe, n_layer, order; deepest first) goes on a y axis, and whether it leads its recipe.

    A gap between recipes, none between the depths of one.
    """
    leads = rows.groupby("recipe", observed=True)["n_layer"].transform("max") == rows["n_layer"]
    return np.arange(len(rows)) + 0.7 * rows["order"].to_numpy(float), leads.to_numpy(bool)


def nested_axis(axes: Axes, rows: pd.DataFrame, palette: dict[str, str]) -> None:
    """Name the rows that `nested` placed: the recipe at its deepest model, then the other depths, lighter."""
    y, leads = nested(rows)
    texts = [
        f"{short(str(row.recipe))} · {plural(row.n_layer, 'block')}" if main else f"{row.n_layer}"
        for row, main in zip(rows.itertuples(index=False), leads, strict=True)
    ]
    axes.set_yticks(y, labels=texts)
    for label, main in zip(axes.get_yticklabels(), leads, strict=True):
        label.set_color(palette["ink" if main else "muted"])
        label.set_fontsize(9.5 if main else 8)
    axes.set_ylim(y[-1] + 0.8, -1.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.spines["left"].set_visible(False)


def draw_dots(
    axes: Axes,
    rows: pd.DataFrame,
    columns: Sequence[str],
    looks: Mapping[str, Series],
    palette: dict[str, str],
    *,
    hollow: bool = False,
    kind: str = "",
    span: str = "",
) -> None:
    """Draw each row's dot, at the median of its columns, and its bar, from the lowest of them to the highest.

    Args:
        axes: whose scales are still linear.
        rows: as `nested` takes them.
        columns: of the values; those that aren't finite are left out.
        looks: by recipe.
        palette: of the theme.
        hollow: a larger ring, as around a dot of another kind.
        kind: word for that other kind.
        span: words for what a bar is.
    """
    import seaborn as sns

    y, leads = nested(rows)
    names = [f"{short(str(row.recipe))} · {plural(row.n_layer, 'block')}" for row in rows.itertuples(index=False)]
    hover.read(axes, partial(_of_row, rows=dict(zip(y.tolist(), names, strict=True))))
    before = len(axes.lines)
    values = rows.assign(y=y, leads=leads).melt(["recipe", "y", "leads"], list(columns), value_name="x")
    values = values[np.isfinite(values["x"])].astype({"recipe": str})
    for main, own in values.groupby("leads"):
        recipes = [recipe for recipe in looks if recipe in set(own["recipe"])]
        faint = {"alpha": 1.0 if main or hollow else 0.5}
        with unlabelled(axes):
            sns.pointplot(
                own,
                x="x",
                y="y",
                hue="recipe",
                hue_order=recipes,
                palette=[palette[looks[recipe].token] for recipe in recipes],
                markers=[looks[recipe].marker for recipe in recipes],
                markersize=(10 if main else 7.5) if hollow else (7 if main else 5),
                markeredgewidth=1.0 if hollow else 0,
                fillstyle="none" if hollow else "full",
                linestyle="none",
                estimator="median",
                errorbar=None if hollow or len(columns) == 1 else ("pi", 100),
                err_kws={"linewidth": 2.2, **faint},
                orient="y",
                native_scale=True,
                legend=False,
                ax=axes,
                **faint,
            )
    for line in axes.lines[before:]:
        if line.get_marker() != "None":
            hover.name(line, kind)
        elif np.ptp(line.get_xdata()) > 0:  # else all are one
            hover.name(line, span)


def _of_row(x: float, y: float, *, rows: Mapping[float, str]) -> str:
    """How a dot reads that is pointed at, which says whose it is by the row that it is in."""
    row = min(rows, key=lambda at: abs(at - y))
    return f"{rows[row]}: {number(x, 3)} nats"
