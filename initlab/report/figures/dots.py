"""Dots where a line would join what has no order: recipes, and attention heads."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.words import number, signed
from initlab.report import hover
from initlab.report.figures import figure
from initlab.report.figures.rows import draw_dots, nested, nested_axis
from initlab.report.theme import block_axis, new_figure, series, settle, short, style, unlabelled
from initlab.report.view import view
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_BLOCK_WIDTH = 0.5  # of the dots of a block, its heads from left to right


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


def describe_first_loss(run: Run) -> str:
    losses = _losses(run)
    parts = []
    for _, own in losses.groupby("order"):
        row = own.iloc[0]
        predicted = f" (closed form {signed(row['expected'], 3)})" if math.isfinite(row["expected"]) else ""
        parts.append(f"{row['recipe']} {signed(row['middle'], 3)}{predicted}")
    return f"First loss above ln V, nats, deepest model: {'; '.join(parts)}. 0 is a model that knows nothing."


@figure(
    "first-loss",
    place=170,
    title="First loss",
    question="Does the model start out knowing nothing, or confidently wrong? "
    "Line: range over seeds; lighter: shallower models.",
    needs=needs_first_loss,
    words=describe_first_loss,
)
def draw_first_loss(run: Run, theme: str) -> Figure:
    losses = _losses(run)
    looks = series(view(run).recipes)
    y, deepest = nested(losses)
    with style(theme) as palette:
        figure = new_figure(0.9 + 0.235 * float(y[-1] + 1), "First loss")
        axes = figure.subplots()
        axes.axvline(0, color=palette["muted"], linewidth=1)
        draw_dots(axes, losses, ("low", "middle", "high"), looks, palette, span="end of range over seeds")
        draw_dots(axes, losses, ("expected",), looks, palette, hollow=True, kind="closed form")
        for row, at in zip(losses[deepest].itertuples(index=False), y[deepest], strict=True):
            right = np.nanmax([row.high, row.expected])
            text = signed(row.middle, 3 if abs(row.middle) < 1 else 1)
            axes.annotate(text, (right, at), xytext=(9, 0), textcoords="offset points", va="center", fontsize=9)
        nested_axis(axes, losses, palette)
        axes.annotate(
            "knows nothing",
            (0, -0.75),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=palette["muted"],
            fontsize=8.5,
        )
        _loss_scale(axes, losses)
        hollow = "; hollow: closed form" if np.isfinite(losses["expected"]).any() else ""
        axes.set_xlabel(f"loss − ln V before the first update, nats{hollow}")
        settle(figure)
    return figure


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


def _heads(run: Run) -> tuple[pd.DataFrame, int]:
    shown = view(run)
    rows = shown.heads[(shown.heads["n_layer"] == shown.n_layer) & np.isfinite(shown.heads["entropy_frac"])]
    keys = ["recipe", "layer", "head"]
    heads = rows.groupby(keys, observed=True)["entropy_frac"].median().reset_index()
    place = heads["head"].astype(float) / _last_head(heads) - 0.5
    return heads.assign(beside=heads["layer"].astype(float) + _BLOCK_WIDTH * place), shown.n_layer


def _last_head(heads: pd.DataFrame) -> int:
    return max(1, int(heads["head"].max()) if len(heads) else 1)


def _of_head(x: float, y: float, *, last: int) -> str:
    """How a dot reads that is pointed at: its place says which head it is of."""
    block = round(x)
    return f"block {block}, head {round(((x - block) / _BLOCK_WIDTH + 0.5) * last)}: {number(y, 4)}"


def needs_attention(run: Run) -> str:
    return "" if len(_heads(run)[0]) else "no attention pattern was recorded"


def describe_attention(run: Run) -> str:
    heads, n_layer = _heads(run)
    parts = []
    for recipe in view(run).recipes:
        own = heads.loc[heads["recipe"] == recipe, "entropy_frac"]
        if len(own):
            parts.append(f"{recipe} {number(float(own.min()), 3)} to {number(float(own.max()), 3)}")
    return f"Entropy over ln(visible keys), heads of the {n_layer}-block model (1 = uniform): {'; '.join(parts)}."


@figure(
    "attention",
    place=180,
    title="Attention entropy",
    question="Does attention start out looking everywhere, or has any head collapsed onto a few tokens?",
    needs=needs_attention,
    words=describe_attention,
)
def draw_attention(run: Run, theme: str) -> Figure:
    import seaborn as sns

    heads, n_layer = _heads(run)
    looks = series(view(run).recipes)
    present = [recipe for recipe in looks if (heads["recipe"] == recipe).any()]
    columns = min(3 if len(present) in (3, 5, 6, 9) else 4, len(present))
    lines = math.ceil(len(present) / columns)
    lowest = float(heads["entropy_frac"].min())
    with style(theme) as palette:
        figure = new_figure(0.55 + 2.3 * lines, "Attention entropy")
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(present) :]:
            axes.set_visible(False)
        for axes, recipe in zip(grid.flat, present, strict=False):
            own, look = heads[heads["recipe"] == recipe], looks[recipe]
            axes.axhline(1, color=palette["muted"], linewidth=1)
            with unlabelled(axes):
                sns.scatterplot(
                    own,
                    x="beside",
                    y="entropy_frac",
                    color=palette[look.token],
                    marker=look.marker,
                    s=16,
                    linewidth=0,
                    alpha=0.6,
                    legend=False,
                    ax=axes,
                )
            hover.read(axes, partial(_of_head, last=_last_head(heads)))
            axes.set_title(short(recipe))
        block_axis(grid[0, 0], 0, n_layer - 1, most=8)
        grid[0, 0].set_ylim(*_entropy_limits(lowest))
        grid[0, 0].text(n_layer - 1, 1.002, "uniform", color=palette["muted"], fontsize=8.5, ha="right", va="bottom")
        figure.supxlabel("block; one dot per head, from left to right", fontsize=9.5, color=palette["muted"])
        figure.supylabel("entropy / ln(visible keys)", fontsize=9.5, color=palette["muted"])
        settle(figure)
    return figure


def _entropy_limits(lowest: float) -> tuple[float, float]:
    """At least 0.1 high: heads that differ by 0.001 are all uniform, and should look it."""
    low = max(0.0, min(0.9, math.floor(lowest * 20 - 0.2) / 20))
    return low, 1 + 0.16 * (1 - low)
