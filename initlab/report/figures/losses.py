"""Training over its steps: loss, gradient norm and learning rate of the runs at each recipe's best rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.words import number, plural
from initlab.report.figures import figure
from initlab.report.figures.data import Curve, Curves, best_runs, depths_of, untrained
from initlab.report.figures.panels import Frame, Guide, Panel, draw_panels
from initlab.report.theme import block_axis
from initlab.report.view import recipes_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 80  # of a drawn line
_SMOOTHED = 0.04  # of a run's rows are averaged into one point
_OVERSHOOT = 1.0  # nats above ln V that a panel still shows


def needs_losses(run: Run) -> str:
    return untrained(run) or _no_curve(run, "loss")


def needs_grad_norms(run: Run) -> str:
    return untrained(run) or _no_curve(run, "grad_norm")


def needs_schedule(run: Run) -> str:
    if reason := untrained(run):
        return reason
    return "" if run.manifest["kind"] == "train" else "of single runs: initlab train"


def _no_curve(run: Run, column: str) -> str:
    return "" if np.isfinite(run.tables.training[column]).any() else f"every {column} is NaN"


def describe_losses(run: Run) -> str:
    parts, shown = [], best_runs(run)
    for n_layer in depths_of(run):
        own = shown[shown["n_layer"] == n_layer]
        words = [f"{recipe} {_ending(runs)}" for recipe in recipes_of(run) if len(runs := own[own["recipe"] == recipe])]
        parts.append(f"{plural(n_layer, 'block')}: {'; '.join(words)}")
    levels = ", ".join(f"{text} {number(level, 3)}" for text, level in _levels(run))
    kind = "at each recipe's best rate, median over seeds" if run.manifest.get("kind") == "confirm" else "of each run"
    return f"Validation loss after the last step, nats, {kind}. {'. '.join(parts)}. For comparison: {levels}."


@figure(
    "losses",
    place=20,
    title="Loss curves",
    question="Does it train, and how fast? Of a grid: each recipe's best rate, with the longest warmup. "
    "Thin: seeds; thick: their median. «ln V»: knows nothing; «unigram»: knows how often tokens come, and "
    "no context. What rises more than 1 nat above ln V leaves the panel.",
    needs=needs_losses,
    words=describe_losses,
)
def draw_losses(run: Run, theme: str) -> Figure:
    panels = _panels(run, "loss")
    ceiling = float(run.tables.runs["ln_vocab"].max()) + _OVERSHOOT
    frame = Frame(
        "Loss curves",
        f"step (updates done) · line: training loss{_smoothed(run)} · mark: validation loss",
        "loss, nats per token",
        _over_steps(run),
        log=False,
        top=ceiling,
        unit="nats per token",
    )
    return draw_panels(panels, frame, recipes_of(run), theme)


def describe_grad_norms(run: Run) -> str:
    panel = _panels(run, "grad_norm")[-1]
    parts = []
    for recipe, line in panel.curves.items():
        shown = line.median[line.drawable]
        if len(shown):
            ends = f"{number(shown[0])} at the start, {number(shown[-1])} at the end"
            parts.append(f"{recipe} {ends}, {number(np.nanmax(line.seeds))} at most")
    words = "; ".join(parts) or "none is finite"
    return f"Gradient norm before clipping, {panel.title}, median over seeds, and the largest of any: {words}."


@figure(
    "grad-norms",
    place=60,
    title="Gradient norm",
    question="Does the gradient settle, or spike? Runs as in the loss curves. Thin: peaks of each seed; thick: "
    "the median of their means.",
    needs=needs_grad_norms,
    words=describe_grad_norms,
)
def draw_grad_norms(run: Run, theme: str) -> Figure:
    x, y = "step (updates done)", "2-norm before clipping"
    frame = Frame("Gradient norm", x, y, _over_steps(run), height=2.9)
    return draw_panels(_panels(run, "grad_norm"), frame, recipes_of(run), theme)


def describe_schedule(run: Run) -> str:
    runs, different = run.tables.runs, _schedules(run)
    rows = runs.drop_duplicates(["recipe", "lr", "warmup", "steps"]) if len(different) > 1 else different
    parts = [
        f"{row.recipe if len(different) > 1 else 'every run'} {row.lr:g}, {plural(int(row.warmup), 'step')} of warmup, "
        f"{plural(int(row.steps), 'step')}"
        for row in rows.itertuples()
    ]
    return f"Peak learning rate: {'; '.join(parts)}."


@figure(
    "schedule",
    place=70,
    title="Learning rate",
    question="Which rate was each step made at?",
    needs=needs_schedule,
    words=describe_schedule,
)
def draw_schedule(run: Run, theme: str) -> Figure:
    top = float(run.tables.training["lr"].max())
    x, y = "step (updates done)", "learning rate"
    frame = Frame("Learning rate", x, y, _over_steps(run), height=2.2, log=False, least=top)
    panels, recipes = _panels(run, "lr"), recipes_of(run)
    if len(recipes) > 1 and len(_schedules(run)) == 1:
        recipes = [str(_schedules(run)["recipe"].iloc[0])]
        panels = [
            replace(panel, curves={recipes[0]: panel.curves[recipes[0]]}, suffix={recipes[0]: "and all others"})
            for panel in panels
        ]
    return draw_panels(panels, frame, recipes, theme)


def _schedules(run: Run) -> pd.DataFrame:
    """The runs whose rates differ in their peak, warmup or length."""
    return run.tables.runs.drop_duplicates(["lr", "warmup", "steps"])


def _over_steps(run: Run) -> Callable[[Axes, Panel], None]:
    last = _last(run)

    def dress(axes: Axes, panel: Panel) -> None:
        block_axis(axes, 0, last, most=6)
        axes.set_xlim(-0.015 * last, 1.015 * last)

    return dress


def _last(run: Run) -> int:
    return max(1, int(run.tables.runs["steps"].max()))


def _smoothed(run: Run) -> str:
    """`, mean over 8 steps`: how far the drawn lines average."""
    gaps = run.tables.training.groupby("run_id", observed=True)["step"].diff()
    steps = _window(run) * int(gaps.median()) if gaps.notna().any() else 1
    return f", mean over {plural(steps, 'step')}" if steps > 1 else ""


def _panels(run: Run, column: str) -> list[Panel]:
    shown = best_runs(run)
    known = _levels(run) if column == "loss" else ()
    panels = []
    for n_layer in depths_of(run):
        own = shown[shown["n_layer"] == n_layer]
        curves: Curves = {}
        texts = {}
        for recipe in recipes_of(run):
            runs = own[own["recipe"] == recipe]
            line = _curve(run, runs, column)
            if line is not None:
                curves[recipe] = line
                rates = sorted(runs["lr"].unique())
                texts[recipe] = f"lr {', '.join(f'{rate:g}' for rate in rates)}" if column != "lr" else ""
        guides = tuple(Guide(text, (0.0, level), (float(_last(run)), level)) for text, level in known)
        panels.append(Panel(plural(n_layer, "block"), curves, suffix=texts, guides=guides))
    return panels


def _levels(run: Run) -> list[tuple[str, float]]:
    """What a model that knows nothing loses, and one that knows the tokens' frequencies and no context."""
    runs = run.tables.runs
    levels = [("ln V", float(runs["ln_vocab"].median())), ("unigram", float(runs["unigram_loss"].median()))]
    return [(text, level) for text, level in levels if math.isfinite(level)]


def _window(run: Run) -> int:
    rows = run.tables.training.groupby("run_id", observed=True).size()
    return max(1, round(_SMOOTHED * int(rows.max()))) if len(rows) else 1


def _curve(run: Run, runs: pd.DataFrame, column: str) -> Curve | None:
    """Median over the seeds of a column of `training`; NaN from where half of them have ended."""
    training = run.tables.training
    rows = training[training["run_id"].isin(runs["run_id"])].astype({"run_id": str})
    closing = rows["loss"].isna() & rows["val_loss"].notna()  # the last evaluation: no batch, no update
    table = rows[~closing].pivot_table(index="step", columns="run_id", values=column, dropna=False, observed=True)
    if table.empty:
        return None
    smooth = table if column == "lr" else _smooth(table, _window(run))
    thin = _peaks(table) if column == "grad_norm" else smooth
    picked = np.unique(np.linspace(0, len(table) - 1, min(_POINTS, len(table))).round().astype(int))
    x, seeds, lines = table.index.to_numpy(float)[picked], thin.to_numpy(float)[picked], smooth.to_numpy(float)[picked]
    middle = np.median(np.where(np.isfinite(lines), lines, np.inf), axis=1)
    middle[~np.isfinite(middle)] = np.nan
    nothing = np.full(len(x), np.nan)
    if column != "loss":
        return Curve(x, middle, seeds.T, nothing, apart=True)
    return Curve(x, middle, seeds.T, nothing, apart=True, marks=_evaluations(rows), kinds=("training", "validation"))


def _smooth(table: pd.DataFrame, window: int) -> pd.DataFrame:
    """Means of each run by itself, none beyond where it ended."""
    return table.rolling(window, center=True, min_periods=1).mean().where(table.notna())


def _peaks(table: pd.DataFrame) -> pd.DataFrame:
    """The largest value between two drawn points, so that thinning out loses no spike."""
    return table.rolling(math.ceil(len(table) / _POINTS), center=True, min_periods=1).max().where(table.notna())


def _evaluations(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Steps and medians of the validation loss."""
    middle = rows[rows["val_loss"].notna()].groupby("step")["val_loss"].median()
    return middle.index.to_numpy(float), middle.to_numpy(float)


def _ending(runs: pd.DataFrame) -> str:
    lost = int(runs["diverged"].sum())
    finite = runs.loc[~runs["diverged"], "val_loss"]
    rate = f"at {', '.join(f'{lr:g}' for lr in sorted(runs['lr'].unique()))}"
    if finite.empty:
        return f"diverged {rate}"
    gone = f" ({lost} of {plural(len(runs), 'run')} diverged)" if lost else ""
    return f"{number(float(finite.median()), 3)} {rate}{gone}"
