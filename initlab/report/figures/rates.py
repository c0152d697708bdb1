"""The loss against the learning rate: how wide the valley of each recipe is, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.outcomes import regrets, run_measures
from initlab.judge.words import number, plural
from initlab.report.figures import figure
from initlab.report.figures.data import Curve, Curves, depths_of, untrained, warmup_text
from initlab.report.figures.panels import Frame, Panel, draw_panels
from initlab.report.theme import MAX_OVERLAID, log_axis, log_limits, tick_text
from initlab.report.view import recipes_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEARNED = 0.1  # nats below ln V


def needs_rates(run: Run) -> str:
    if reason := untrained(run):
        return reason
    if run.manifest["kind"] != "confirm":
        return "needs a grid of recipes, rates and seeds: initlab confirm"
    rates = run.tables.runs["lr"].nunique()
    return "" if rates > 1 else "needs two or more learning rates, this run has one: --lrs 1e-3,3e-3,1e-2"


def describe_rates(run: Run) -> str:
    best = regrets(run)
    parts = []
    for (n_layer, warmup), rows in best.groupby(["n_layer", "warmup"], observed=True):
        words = [
            f"{row.recipe} {_best(row.best_loss, row.best_lr)}"
            for recipe in recipes_of(run)
            for row in rows[rows["recipe"] == recipe].itertuples()
        ]
        parts.append(f"{plural(int(n_layer), 'block')}, {warmup_text(int(warmup))}: {', '.join(words)}")
    return f"Lowest mean loss over seeds, nats, and the rate it was reached at. {'; '.join(parts)}."


@figure(
    "rates",
    place=30,
    title="Loss against learning rate",
    question="How wide is the valley of rates that work? Thin: seeds; thick: their median. A run that "
    "diverged counts as ln V; a line that leaves at the top goes there.",
    needs=needs_rates,
    words=describe_rates,
)
def draw_rates(run: Run, theme: str) -> Figure:
    panels, warmups = _panels(run)
    few = len(recipes_of(run)) <= MAX_OVERLAID
    frame = Frame(
        "Loss against learning rate",
        "peak learning rate, log scale",
        "validation loss after the last step, nats",
        _across,
        height=0.9 + 2.5 * warmups,
        rows=warmups if few else 1,
        log=False,
        top=_top(run_measures(run)),
        unit="nats",
    )
    return draw_panels(panels, frame, recipes_of(run), theme)


def _panels(run: Run) -> tuple[list[Panel], int]:
    """Panels row by row, a row per warmup, a column per depth; and the number of rows."""
    measured = run_measures(run)
    warmups = sorted(int(steps) for steps in measured["warmup"].unique())
    depths = depths_of(run)
    panels = []
    for warmup in warmups:
        for n_layer in depths:
            own = measured[(measured["warmup"] == warmup) & (measured["n_layer"] == n_layer)]
            title = f"{plural(n_layer, 'block')}, {warmup_text(warmup)}"
            panels.append(Panel(title, _curves(own, recipes_of(run))))
    return panels, len(warmups)


def _top(measured: pd.DataFrame) -> float:
    """What learned anything fills the panels; runs at ln V leave them at the top."""
    learned = measured["loss"][measured["loss"] < measured["ln_vocab"] - _LEARNED]
    return float(learned.max()) if len(learned) else float(measured["ln_vocab"].max())


def _curves(runs: pd.DataFrame, recipes: list[str]) -> Curves:
    """A diverged run counts as ln V, as in the regret."""
    found = {}
    for recipe in recipes:
        own = runs[runs["recipe"] == recipe]
        if own.empty:
            continue
        table = own.pivot_table(index="lr", columns="seed", values="loss", observed=True)
        values = table.to_numpy(float)
        middle = np.nanmedian(values, axis=1)
        found[recipe] = Curve(table.index.to_numpy(float), middle, values.T, np.full(len(table), np.nan), apart=True)
    return found


def _across(axes: Axes, panel: Panel) -> None:
    rates = sorted({float(x) for line in panel.curves.values() for x in line.x})
    if not rates:
        return
    low, high = log_limits(rates)
    log_axis(axes, "x", (low, high))
    room = axes.get_window_extent().width / 100  # inches, before labels are placed
    if len(rates) <= max(3, 2 * room):
        axes.set_xticks(rates, labels=[tick_text(rate) for rate in rates])


def _best(loss: float, rate: float) -> str:
    return f"{number(loss, 3)} at {rate:g}" if np.isfinite(rate) else "has no seed with every rate"
