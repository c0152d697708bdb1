"""What an init and warmup are worth: dots with intervals, a row per recipe and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.outcomes import effects, regrets
from initlab.judge.words import plural, signed
from initlab.report.figures import figure
from initlab.report.figures.data import untrained, warmup_text
from initlab.report.figures.rows import draw_dots, nested, nested_axis
from initlab.report.theme import new_figure, series, settle, style
from initlab.report.view import recipes_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = 0.1  # nats; a panel is never narrower


def needs_regret(run: Run) -> str:
    if reason := untrained(run):
        return reason
    return "" if run.manifest["kind"] == "confirm" else "needs a grid of recipes, rates and seeds: initlab confirm"


def needs_warmup(run: Run) -> str:
    if reason := needs_regret(run):
        return reason
    if run.tables.runs["warmup"].nunique() < 2:
        return "needs runs with and without warmup: --warmups 0,50"
    return "" if len(_gains(run)) else "no recipe was trained with and without warmup at the same rates"


def _ordered(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """In the order of `nested`: recipes as the run has them, the deepest model first."""
    place = {recipe: at for at, recipe in enumerate(recipes_of(run))}
    order = rows["recipe"].astype(str).map(place).astype(int)
    return rows.assign(order=order).sort_values(["order", "n_layer"], ascending=[True, False], ignore_index=True)


def describe_regret(run: Run) -> str:
    parts = []
    for (n_layer, warmup), rows in regrets(run).groupby(["n_layer", "warmup"], observed=True):
        ranked = rows.sort_values("regret")
        words = [f"{row.recipe} {_known(row.regret)}{_interval(row)}" for row in ranked.itertuples()]
        parts.append(f"{plural(int(n_layer), 'block')}, {warmup_text(int(warmup))}: {', '.join(words)}")
    return f"Regret in nats with 95 % intervals, lowest first. {'; '.join(parts)}."


@figure(
    "regret",
    place=40,
    title="Regret",
    question="How much does a recipe lose to the best one, if the rate isn't tuned? Mean over the rates of the "
    "loss, minus the lowest loss of any recipe at this depth.",
    needs=needs_regret,
    words=describe_regret,
)
def draw_regret(run: Run, theme: str) -> Figure:
    rows = regrets(run)
    warmups = sorted(int(steps) for steps in rows["warmup"].unique())
    index = _ordered(run, rows[["recipe", "n_layer"]].drop_duplicates())
    with style(theme) as palette:
        figure = _figure(index, "Regret")
        grid = figure.subplots(1, len(warmups), sharex=True, sharey=True, squeeze=False)[0]
        for axes, warmup in zip(grid, warmups, strict=True):
            own = index.merge(rows[rows["warmup"] == warmup], on=["recipe", "n_layer"], how="left")
            lost = [_lost(row) for row in own.itertuples()]
            _dots(axes, run, own, "regret", lost, palette)
            axes.set_title(warmup_text(warmup))
            axes.axvline(0, color=palette["muted"], linewidth=1)
        nested_axis(grid[0], index, palette)
        for axes in grid[1:]:
            axes.tick_params(labelleft=False)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="y", visible=False)
            axes.grid(axis="x", visible=True)
        cut = _span(grid[0], rows["regret"], rows[["low", "high"]])
        figure.supxlabel(f"regret, nats; bar: 95 % interval over seeds{cut}", fontsize=9.5, color=palette["muted"])
        settle(figure)
    return figure


def describe_warmup(run: Run) -> str:
    parts = []
    for n_layer, rows in _gains(run).groupby("n_layer", observed=True):
        words = [
            f"{row.recipe} {signed(row.difference, 3)}{_interval(row)}" + (f", {_note(row)}" if _note(row) else "")
            for row in _ordered(run, rows).itertuples()
        ]
        parts.append(f"{plural(int(n_layer), 'block')}: {'; '.join(words)}")
    return f"What warmup takes off the loss, nats, mean over rates, with intervals after Holm. {'. '.join(parts)}."


@figure(
    "warmup",
    place=50,
    title="Gain of warmup",
    question="Which recipe needs warmup, and from which depth on? An interval that crosses zero says nothing "
    "either way; it is wide enough for all recipes of a depth together.",
    needs=needs_warmup,
    words=describe_warmup,
)
def draw_warmup(run: Run, theme: str) -> Figure:
    rows = _ordered(run, _gains(run))
    with style(theme) as palette:
        figure = _figure(rows, "Gain of warmup")
        axes = figure.subplots()
        _dots(axes, run, rows, "difference", [_note(row) for row in rows.itertuples()], palette, sign=True)
        axes.axvline(0, color=palette["muted"], linewidth=1)
        nested_axis(axes, rows, palette)
        cut = _span(axes, rows["difference"], rows[["low", "high"]])
        low, high = axes.get_xlim()
        for text, side, room, gap in (("← warmup hurts", "right", -low, -5), ("warmup helps →", "left", high, 5)):
            if room > 0.2 * (high - low):
                axes.annotate(
                    text,
                    (0, -0.85),
                    xytext=(gap, 0),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    color=palette["muted"],
                    fontsize=8.5,
                )
        axes.set_xlabel(f"loss without warmup − loss with, nats, mean over rates; bar: interval (Holm) over seeds{cut}")
        settle(figure)
    return figure


def _figure(rows: pd.DataFrame, title: str) -> Figure:
    return new_figure(1.1 + 0.235 * float(nested(rows)[0][-1] + 1), title)


def _dots(
    axes: Axes,
    run: Run,
    rows: pd.DataFrame,
    column: str,
    notes: list[str],
    palette: dict[str, str],
    *,
    sign: bool = False,
) -> None:
    """One dot a row with its interval, and its number at the right edge."""
    looks = series(recipes_of(run))
    draw_dots(axes, rows, ("low", column, "high"), looks, palette, span="end of interval")
    y, leads = nested(rows)
    for row, at, main, note in zip(rows.itertuples(index=False), y, leads, notes, strict=True):
        value = getattr(row, column)
        if np.isfinite(value):
            text = signed(value) if sign else f"{value:.2f}"
        else:
            text = "no whole seed" if getattr(row, "runs", 0) > 0 else "not trained"
        axes.text(
            1.02,
            at,
            " · ".join(filter(None, (text, note))),
            transform=axes.get_yaxis_transform(),
            va="center",
            color=palette["ink" if main else "muted"],
            fontsize=9 if main else 8,
        )


def _span(axes: Axes, dots: pd.Series, ends: pd.DataFrame) -> str:
    """Zero, every dot, and intervals as far as they leave the dots apart; says in words if some are cut off.

    Two seeds have intervals 25 standard errors wide.
    """
    middle = np.append(dots[np.isfinite(dots)].to_numpy(float), 0.0)
    reach = max(np.ptp(middle), _LEAST)
    wanted = ends.to_numpy(float)
    wanted = np.append(wanted[np.isfinite(wanted)], middle)
    low, high = max(wanted.min(), middle.min() - reach), min(wanted.max(), middle.max() + reach)
    pad = max(0.06 * (high - low), (_LEAST - (high - low)) / 2)
    axes.set_xlim(low - pad, high + pad)
    return ", wider ones are cut off" if wanted.min() < low - pad or wanted.max() > high + pad else ""


def _lost(row: object) -> str:
    """`2 of 6 diverged`, `stuck`: what a mean hides."""
    parts = []
    for name in ("diverged", "stuck"):
        count, total = getattr(row, name), getattr(row, "runs", 0)
        if np.isfinite(count) and count:
            parts.append(f"{int(count)} of {int(total)} {name}")
    return ", ".join(parts)


def _gains(run: Run) -> pd.DataFrame:
    found = effects(run)
    found = found[found["question"] == "warmup"]
    return found[found["warmup"] == found["warmup"].max()]


def _known(regret: float) -> str:
    return _plain(regret) if np.isfinite(regret) else "not known"


def _note(row: object) -> str:
    verdict = str(getattr(row, "verdict", ""))
    return verdict if verdict == "not separated" else ""


def _interval(row: object) -> str:
    low, high = getattr(row, "low", np.nan), getattr(row, "high", np.nan)
    return f" ({_plain(low)} to {_plain(high)})" if np.isfinite([low, high]).all() else ""


def _plain(nats: float) -> str:
    return f"{round(nats, 3) + 0.0:.3f}"
