"""The residual stream and its gradient, block by block, at init and after training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from initlab.judge.words import number, plural
from initlab.report.figures import figure
from initlab.report.figures.data import Curves, best_runs, by_recipe, missing, stream, untrained
from initlab.report.figures.panels import Frame, Panel, across, backwards, draw_panels
from initlab.report.view import recipes_of, view
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WHAT = {"activation": "variance of the residual stream", "grad": "variance of ∂loss/∂x, residual stream"}


def needs_residual(run: Run) -> str:
    return _needs(run, "activation")


def needs_gradient(run: Run) -> str:
    return _needs(run, "grad")


def _needs(run: Run, kind: str) -> str:
    if reason := untrained(run):
        return reason
    records = run.tables.records
    return missing(
        records[_of_stream(records, kind)],
        f"{'gradient' if kind == 'grad' else 'variance'} of the residual stream after training",
    )


def describe_residual(run: Run) -> str:
    return _describe(run, "activation", "Variance of the residual stream after the last block ÷ at the embedding")


@figure(
    "trained-residual",
    place=80,
    title="Residual stream, before and after",
    question="Does training keep the scales of the init, or bring all recipes to the same ones? The deepest "
    "model, at each recipe's best rate.",
    needs=needs_residual,
    words=describe_residual,
)
def draw_residual(run: Run, theme: str) -> Figure:
    frame = Frame("Residual stream, before and after", "after block (0 = embedding)", _WHAT["activation"], across)
    return draw_panels(_panels(run, "activation"), frame, recipes_of(run), theme)


def describe_gradient(run: Run) -> str:
    return _describe(run, "grad", "Variance of the gradient at the embedding ÷ after the last block")


@figure(
    "trained-gradient",
    place=90,
    title="Gradient, before and after",
    question="Does a gradient that was uneven over the blocks even out? Read from left (output) to right (embedding).",
    needs=needs_gradient,
    words=describe_gradient,
)
def draw_gradient(run: Run, theme: str) -> Figure:
    x = "after block, from the output (left) back to the embedding (0, right)"
    frame = Frame("Gradient, before and after", x, _WHAT["grad"], backwards)
    return draw_panels(_panels(run, "grad"), frame, recipes_of(run), theme)


def _after(run: Run, kind: str) -> tuple[pd.DataFrame, int]:
    """Rows of the deepest trained model's stream at its last step, and its depth."""
    runs = best_runs(run)
    if runs.empty:
        return run.tables.records.iloc[:0], 0
    n_layer = int(runs["n_layer"].max())
    records = run.tables.records
    rows = records[records["run_id"].isin(runs.loc[runs["n_layer"] == n_layer, "run_id"]) & _of_stream(records, kind)]
    return rows.assign(after=rows["layer"].astype("float64").fillna(-1.0) + 1), n_layer


def _of_stream(records: pd.DataFrame, kind: str) -> pd.Series:
    """Which rows are of the trained stream, at its ends and after every block."""
    return (records["step"] > 0) & (records["kind"] == kind) & records["site"].isin(["embed", "resid_post"])


def _curves(run: Run, kind: str) -> tuple[Curves, Curves, int]:
    after, n_layer = _after(run, kind)
    shown, down = view(run), kind == "grad"
    return (
        by_recipe(shown, stream(shown, kind, n_layer), "after", descending=down),
        by_recipe(shown, after, "after", descending=down),
        n_layer,
    )


def _panels(run: Run, kind: str) -> list[Panel]:
    before, after, n_layer = _curves(run, kind)
    blocks, steps = plural(n_layer, "block"), plural(int(run.tables.runs["steps"].max()), "step")
    return [Panel(f"{blocks}, at init", before), Panel(f"after {steps}", after)]


def _describe(run: Run, kind: str, what: str) -> str:
    before, after, n_layer = _curves(run, kind)
    parts = [
        f"{recipe} {_growth(before.get(recipe))} at init, {_growth(line)} after training"
        for recipe, line in after.items()
    ]
    return f"{what}, {plural(n_layer, 'block')}, at each recipe's best rate: {'; '.join(parts)}."


def _growth(line: object) -> str:
    median = getattr(line, "median", None)
    if median is None or not median[0] > 0:
        return "not known"
    return f"×{number(float(median[-1] / median[0]))}"
