"""Dots where a line would join what has no order: recipes, and attention heads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.report.digest import number, plural, signed, view
from initlab.report.theme import block_axis, new_figure, series, settle, short, style
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _losses(run: Run) -> pd.DataFrame:
    """Per recipe and depth: median, range and prediction of loss - ln V; deepest model first."""
    shown = view(run)
    table = shown.summary.assign(
        excess=shown.summary["loss"] - shown.summary["ln_vocab"],
        expected=shown.summary["expected_loss"] - shown.summary["ln_vocab"],
    )
    table = table[np.isfinite(table["excess"])]
    grouped = table.groupby(["recipe", "n_layer"], observed=True)
    found = grouped.agg(
        middle=("excess", "median"), low=("excess", "min"), high=("excess", "max"), expected=("expected", "median")
    ).reset_index()
    found["order"] = found["recipe"].map({recipe: index for index, recipe in enumerate(shown.recipes)}).astype(int)
    return found.sort_values(["order", "n_layer"], ascending=[True, False], ignore_index=True)


def needs_first_loss(run: Run) -> str:
    return "" if len(_losses(run)) else "no finite loss was recorded"


def draw_first_loss(run: Run, theme: str) -> Figure:
    losses = _losses(run)
    looks = series(view(run).recipes)
    y, deepest = nested(losses)
    with style(theme) as palette:
        figure = new_figure(theme, 0.9 + 0.235 * float(y[-1] + 1), "First loss")
        axes = figure.subplots()
        axes.axvline(0, color=palette["muted"], linewidth=1)
        for row, at, main in zip(losses.itertuples(index=False), y, deepest, strict=True):
            look, alpha = looks[str(row.recipe)], 1.0 if main else 0.45
            colour = palette[look.token]
            axes.plot([row.low, row.high], [at, at], color=colour, linewidth=2.2, alpha=alpha)
            axes.plot(
                row.middle, at, look.marker, color=colour, markersize=7 if main else 5, alpha=alpha, markeredgewidth=0
            )
            if math.isfinite(row.expected):
                axes.plot(row.expected, at, look.marker, markersize=10 if main else 7.5, color=colour, fillstyle="none")
            if main:
                right = np.nanmax([row.high, row.expected])
                text = signed(row.middle, 3 if abs(row.middle) < 1 else 1)
                axes.annotate(text, (right, at), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9)
        nested_axis(axes, losses, palette)
        axes.text(0, -0.75, " knows nothing", color=palette["muted"], fontsize=8.5)
        _loss_scale(axes, losses)
        hollow = "; hollow: closed form" if np.isfinite(losses["expected"]).any() else ""
        axes.set_xlabel(f"loss − ln V before the first update, nats{hollow}")
        settle(figure)
    return figure


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


def _loss_scale(axes: Axes, losses: pd.DataFrame) -> None:
    """Linear, unless a broken init is so far out that it would flatten the others."""
    from matplotlib.ticker import NullLocator

    values = np.concatenate([losses[column].dropna() for column in ("low", "high", "expected")])
    top, least = float(np.abs(values).max()), float(np.abs(losses["middle"]).min())
    if top <= max(2.0, 8 * least):
        low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
        pad = 0.08 * max(high - low, 0.02)
        axes.set_xlim(low - pad, high + 2.5 * pad)
        return
    axes.set_xscale("symlog", linthresh=0.1, linscale=0.6)
    last = math.ceil(math.log10(top))
    ticks = [0.0, 0.1, *(10.0**exponent for exponent in range(0, last + 1))]
    if values.min() < -0.02:
        ticks.insert(0, -0.1)
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(min(float(values.min()) * 1.3, -0.02), top * 3)


def describe_first_loss(run: Run) -> str:
    losses = _losses(run)
    parts = []
    for _, own in losses.groupby("order"):
        row = own.iloc[0]
        predicted = f" (closed form {signed(row['expected'], 3)})" if math.isfinite(row["expected"]) else ""
        parts.append(f"{row['recipe']} {signed(row['middle'], 3)}{predicted}")
    return f"First loss above ln V, nats, deepest model: {'; '.join(parts)}. 0 is a model that knows nothing."


def _heads(run: Run) -> tuple[pd.DataFrame, int]:
    shown = view(run)
    rows = shown.heads[(shown.heads["n_layer"] == shown.n_layer) & np.isfinite(shown.heads["entropy_frac"])]
    keys = ["recipe", "layer", "head"]
    return rows.groupby(keys, observed=True)["entropy_frac"].median().reset_index(), shown.n_layer


def needs_attention(run: Run) -> str:
    return "" if len(_heads(run)[0]) else "no attention pattern was recorded"


def draw_attention(run: Run, theme: str) -> Figure:
    heads, n_layer = _heads(run)
    looks = series(view(run).recipes)
    present = [recipe for recipe in looks if (heads["recipe"] == recipe).any()]
    columns = min(3 if len(present) in (3, 5, 6, 9) else 4, len(present))
    lines = math.ceil(len(present) / columns)
    lowest = float(heads["entropy_frac"].min())
    with style(theme) as palette:
        figure = new_figure(theme, 0.55 + 2.3 * lines, "Attention entropy")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(present) :]:
            axes.set_visible(False)
        for axes, recipe in zip(grid.flat, present, strict=False):
            own, look = heads[heads["recipe"] == recipe], looks[recipe]
            axes.axhline(1, color=palette["muted"], linewidth=1)
            axes.plot(
                own["layer"].astype(float),
                own["entropy_frac"],
                look.marker,
                color=palette[look.token],
                markersize=4,
                alpha=0.55,
                markeredgewidth=0,
            )
            axes.set_title(short(recipe))
        block_axis(grid[0, 0], 0, n_layer - 1, most=8)
        grid[0, 0].set_ylim(*_entropy_limits(lowest))
        grid[0, 0].text(n_layer - 1, 1.002, "uniform", color=palette["muted"], fontsize=8.5, ha="right", va="bottom")
        figure.supxlabel("block; one dot per head", fontsize=9.5, color=palette["muted"])
        figure.supylabel("entropy / ln(visible keys)", fontsize=9.5, color=palette["muted"])
        settle(figure)
    return figure


def _entropy_limits(lowest: float) -> tuple[float, float]:
    """At least 0.1 high: heads that differ by 0.001 are all uniform, and should look it."""
    low = max(0.0, min(0.9, math.floor(lowest * 20 - 0.2) / 20))
    return low, 1 + 0.16 * (1 - low)


def describe_attention(run: Run) -> str:
    heads, n_layer = _heads(run)
    parts = []
    for recipe in view(run).recipes:
        own = heads.loc[heads["recipe"] == recipe, "entropy_frac"]
        if len(own):
            parts.append(f"{recipe} {number(float(own.min()), 3)} to {number(float(own.max()), 3)}")
    return f"Entropy over ln(visible keys), heads of the {n_layer}-block model (1 = uniform): {'; '.join(parts)}."
