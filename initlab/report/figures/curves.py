"""Variance along the model and against its depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from initlab.judge.rules.depth import BRANCHES
from initlab.judge.words import number, plural
from initlab.report.figures import figure
from initlab.report.figures.data import MOST_DEPTHS, Curves, by_recipe, missing, stream
from initlab.report.figures.panels import Frame, Guide, Panel, across, backwards, draw_panels
from initlab.report.view import View, exponent_text, exponents, view
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BRANCH_TITLES = {"attn_out": "attention writes", "mlp_out": "MLP writes"}


def needs_residual(run: Run) -> str:
    return missing(stream(shown := view(run), "activation", shown.n_layer), "variance of the residual stream")


def needs_gradients(run: Run) -> str:
    return missing(stream(shown := view(run), "grad", shown.n_layer), "gradient of the residual stream")


def needs_branches(run: Run) -> str:
    shown = view(run)
    return missing(shown.rows("activation", BRANCHES, shown.n_layer), "branch write")


def needs_depth(run: Run) -> str:
    shown = view(run)
    if len(shown.depths) < 2:
        return f"needs models of two or more depths, this run has {plural(len(shown.depths), 'depth')}: --depths 4,8,16"
    if exponents(run).empty:
        return "no recipe has finite, non-zero branch writes at two or more depths"
    return ""


def _stream_panels(shown: View, kind: str, *, descending: bool = False) -> list[Panel]:
    depths = shown.depths[-MOST_DEPTHS:]
    if len(shown.recipes) > 4:
        depths = depths[-1:]
    panels = []
    for n_layer in depths:
        curves = by_recipe(shown, stream(shown, kind, n_layer), "after", descending=descending)
        main = n_layer == depths[-1]
        panels.append(Panel(plural(n_layer, "block"), curves, width=2.2 if main else 1.0))
    return panels


def describe_residual(run: Run) -> str:
    shown = view(run)
    return _describe_stream(shown, "activation", "Variance of the residual stream", "embedding", descending=False)


@figure(
    "residual",
    place=120,
    title="Residual stream by layer",
    question="Does the signal keep its scale from the embedding to the last block? "
    "Line: median over seeds; band: their range.",
    needs=needs_residual,
    words=describe_residual,
)
def draw_residual(run: Run, theme: str) -> Figure:
    shown = view(run)
    frame = Frame(
        "Residual stream by layer",
        "after block (0 = embedding)",
        "variance of the residual stream",
        across,
    )
    return draw_panels(_stream_panels(shown, "activation"), frame, shown.recipes, theme)


def describe_gradients(run: Run) -> str:
    shown = view(run)
    return _describe_stream(shown, "grad", "Variance of the gradient", "output end", descending=True)


@figure(
    "gradients",
    place=150,
    title="Gradient by layer",
    question="Does the gradient keep its scale on the way back? Read from left (output) to right (embedding). "
    "Its level scales as 1/(B·T)² with the batch, its shape does not.",
    needs=needs_gradients,
    words=describe_gradients,
)
def draw_gradients(run: Run, theme: str) -> Figure:
    shown = view(run)
    frame = Frame(
        "Gradient by layer",
        "after block, from the output (left) back to the embedding (0, right)",
        "variance of ∂loss/∂x, residual stream",
        backwards,
    )
    return draw_panels(_stream_panels(shown, "grad", descending=True), frame, shown.recipes, theme)


def describe_branches(run: Run) -> str:
    shown = view(run)
    parts = []
    for site in BRANCHES:
        for recipe, line in _branch_curves(shown, site).items():
            parts.append(f"{recipe} {BRANCH_TITLES[site]} {number(float(np.median(line.median)))}")
    return f"Median over blocks of the variance written in the {shown.n_layer}-block model: {'; '.join(parts)}."


@figure(
    "branches",
    place=130,
    title="Branch writes by layer",
    question="Who makes the stream grow: how much variance does each attention and each MLP add to it?",
    needs=needs_branches,
    words=describe_branches,
)
def draw_branches(run: Run, theme: str) -> Figure:
    shown = view(run)
    panels = [Panel(BRANCH_TITLES[site], _branch_curves(shown, site)) for site in BRANCHES]
    frame = Frame("Branch writes by layer", "block", "variance of the branch's write", across)
    return draw_panels([panel for panel in panels if panel.curves], frame, shown.recipes, theme)


def _branch_curves(shown: View, site: str) -> Curves:
    return by_recipe(shown, shown.rows("activation", [site], shown.n_layer).dropna(subset=["layer"]), "layer")


def describe_depth(run: Run) -> str:
    fits = exponents(run)
    parts = [
        f"{fit.recipe} {BRANCH_TITLES[str(fit.site)]} {exponent_text(fit.slope, fit.stderr)}"
        for fit in fits.itertuples(index=False)
    ]
    return (
        f"Branch-write variance against the number of blocks L: {'; '.join(parts)}. Depth-scaled is L^-1, unscaled L^0."
    )


@figure(
    "depth",
    place=140,
    title="Depth check",
    question="Does a deeper model write less per block? Depth-scaled inits fall as L^-1; unscaled ones stay "
    "flat (L^0), and their stream grows with every block added. The MLP is the clean signal: what attention "
    "writes also grows with the correlation between positions.",
    needs=needs_depth,
    words=describe_depth,
)
def draw_depth(run: Run, theme: str) -> Figure:
    shown = view(run)
    fits = exponents(run)
    panels = []
    for site in BRANCHES:
        curves = _depth_curves(shown, site)
        if not curves:
            continue
        own = fits[fits["site"] == site]
        texts = {str(fit.recipe): f"{exponent_text(fit.slope, fit.stderr)}" for fit in own.itertuples()}
        panels.append(Panel(BRANCH_TITLES[site], curves, suffix=texts, guides=_guides(curves, shown.depths)))
    frame = Frame(
        "Depth check",
        "n_layer",
        "mean variance of a branch's write",
        _over_depths,
        label_all=True,
    )
    return draw_panels(panels, frame, shown.recipes, theme)


def _depth_curves(shown: View, site: str) -> Curves:
    rows = shown.rows("activation", [site])
    means = rows.groupby(["recipe", "n_layer", "run_id"], observed=True)[["var", "expected_var"]].mean().reset_index()
    return by_recipe(shown, means, "n_layer")


def _guides(curves: Curves, depths: list[int]) -> tuple[Guide, ...]:
    """Slopes 0 and -1, from the middle of what the shallowest models show: to compare with, not a prediction."""
    starts = [line.median[0] for line in curves.values() if line.drawable[0]]
    if not starts:
        return ()
    y = float(np.sqrt(min(starts) * max(starts))) if len(starts) > 1 else starts[0] * 1.5
    first, last = depths[0], depths[-1]
    return tuple(Guide(f"slope {slope}", (first, y), (last, y * (last / first) ** slope)) for slope in (0, -1))


def _over_depths(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    depths = sorted({int(x) for line in panel.curves.values() for x in line.x})
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(depths, labels=[str(depth) for depth in depths])
    axes.set_xlim(depths[0] / 1.06, depths[-1] * 1.06)


def _describe_stream(shown: View, kind: str, what: str, start: str, *, descending: bool) -> str:
    curves = by_recipe(shown, stream(shown, kind, shown.n_layer), "after", descending=descending)
    goal = "the embedding" if descending else f"block {shown.n_layer}"
    parts = []
    for recipe, line in curves.items():
        first, last = float(line.median[0]), float(line.median[-1])
        factor = f" (×{number(last / first)})" if first > 0 and np.isfinite([first, last]).all() else ""
        parts.append(f"{recipe} {number(first)} to {number(last)}{factor}{_off_theory(curves, recipe)}")
    return f"{what} in the {shown.n_layer}-block model, from the {start} to {goal}: {'; '.join(parts)}."


def _off_theory(curves: Curves, recipe: str) -> str:
    line = curves[recipe]
    known = line.drawable & line.foreseen
    if not known.any():
        return ""
    factors = line.median[known] / line.expected[known]
    worst = float(factors[np.argmax(np.abs(np.log(factors)))])
    return f", at most ×{number(worst, 3)} of the closed form"
