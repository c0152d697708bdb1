"""Variance against width or depth, step by step: equal slopes look equal in every panel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.slopes import along, points, slopes
from initlab.judge.words import plural, signed
from initlab.report.figures import figure
from initlab.report.figures.data import Curve, beside
from initlab.report.figures.lines import draw_curves
from initlab.report.scale import shown_steps, slope_text
from initlab.report.theme import (
    MAX_OVERLAID,
    Label,
    log_axis,
    log_limits,
    new_figure,
    place_labels,
    series,
    short,
    style,
)
from initlab.report.view import recipes_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str, str]  # kind, site, module: what one row of panels shows

# the clean signals: a hidden layer, where all layers' changes add up, and the output
_ROWS: dict[str, tuple[tuple[str, str], ...]] = {
    "n_embd": (("activation", "mlp_pre"), ("activation", "resid_post"), ("activation", "logits")),
    "n_layer": (("activation", "resid_post"), ("change", "resid_post"), ("change", "logits")),
}
_TITLES = {"n_embd": "Coord check", "n_layer": "Depth check after steps"}
_MOST_MODULES = 3


def needs_coord(run: Run) -> str:
    return _needs(run, "n_embd", "widths", "--widths 64,128,256")


def needs_coord_depth(run: Run) -> str:
    return _needs(run, "n_layer", "depths", "--depths 2,4,8")


def _needs(run: Run, axis: str, what: str, option: str) -> str:
    summary = run.tables.summary
    if summary[axis].nunique() < 2:
        return f"needs models of two or more {what}, this run has one: {option}"
    shown = _points(run, axis)
    finite = shown[np.isfinite(shown["log_var"])]
    return "" if len(finite) else "every variance is zero or not finite"


def describe_coord(run: Run) -> str:
    return _describe(run, "n_embd")


@figure(
    "coord",
    place=100,
    title="Coord check",
    question="Does a wider model stay on the scale of a narrow one, before and after each step? Where lines "
    "are flat, a learning rate found on a small model holds for a large one. A point is the median over seeds "
    "of the mean over blocks; resid_post is the last block's.",
    kinds=("scale",),
    otherwise="needs models of several widths, measured after optimizer steps: initlab scale --widths 64,128,256",
    needs=needs_coord,
    words=describe_coord,
)
def draw_coord(run: Run, theme: str) -> Figure:
    return _draw(run, "n_embd", theme)


def describe_coord_depth(run: Run) -> str:
    return _describe(run, "n_layer")


@figure(
    "coord-depth",
    place=110,
    title="Depth check after steps",
    question="Does a step move a deep model as far as a shallow one? The change is x after the steps minus x "
    "at init, on the same batch; where it is flat, a learning rate holds at every depth.",
    kinds=("scale",),
    otherwise="needs models of several depths, measured after optimizer steps: initlab scale --depths 2,4,8",
    needs=needs_coord_depth,
    words=describe_coord_depth,
)
def draw_coord_depth(run: Run, theme: str) -> Figure:
    return _draw(run, "n_layer", theme)


def _points(run: Run, axis: str) -> pd.DataFrame:
    records = run.tables.records
    return along(points(records), axis)


def _lines(shown: pd.DataFrame, axis: str) -> list[Line]:
    """The rows of the figure that the run can fill."""
    present = shown[["kind", "site", "module"]].drop_duplicates()
    found = [
        (kind, site, str(module))
        for kind, site in _ROWS[axis]
        for module in present[(present["kind"] == kind) & (present["site"] == site)]["module"]
    ]
    if not {"mlp_pre", "mlp_out"} & {site for _, site, _ in found} and axis == "n_embd":
        found = [("activation", site, "") for site in ("attn_out", "mlp_out") if site in set(present["site"])] + found
    layers = [str(m) for m in present[(present["site"] == "module") & (present["kind"] == "activation")]["module"]]
    free = _MOST_MODULES - len(found)
    if free > 0 and layers:
        # first, last, and between
        places = sorted({round(i * (len(layers) - 1) / max(free - 1, 1)) for i in range(free)})
        found = [("activation", "module", layers[place]) for place in places] + found
    return found


def _shown_recipes(run: Run) -> list[str]:
    return recipes_of(run)[:MAX_OVERLAID]


def _curve(rows: pd.DataFrame, axis: str) -> Curve | None:
    if rows.empty:
        return None
    groups = dict(iter(rows.groupby(axis)))
    sizes = sorted(groups)
    values = [np.exp(groups[size]["log_var"].to_numpy(float)) for size in sizes]
    expected = [np.exp(groups[size]["log_expected"].median()) for size in sizes]
    middle = np.array([np.median(each) for each in values])
    return Curve(np.array(sizes, dtype=float), middle, beside(values), np.array(expected))


def _draw(run: Run, axis: str, theme: str) -> Figure:
    shown, recipes = _points(run, axis), _shown_recipes(run)
    lines, steps = _lines(shown, axis), shown_steps(run.tables.summary["step"])
    looks = series(recipes)
    fits = slopes(run.tables.records)
    fits = fits[fits["axis"] == axis]
    curves = {
        (line, step, recipe): curve
        for line in lines
        for step in steps
        for recipe in recipes
        if (curve := _curve(_select(shown, line, step, recipe), axis)) is not None
    }
    limits = _limits(lines, curves)
    pending = []
    with style(theme) as palette:
        figure = new_figure(0.5 + 1.95 * len(lines), _TITLES[axis])
        grid = figure.subplots(len(lines), len(steps), sharey="row", squeeze=False)
        for row, line in enumerate(lines):
            for column, step in enumerate(steps):
                axes: Axes = grid[row, column]
                here = {recipe: curves[key] for recipe in recipes if (key := (line, step, recipe)) in curves}
                if not here:  # nothing has changed at step 0
                    axes.set_visible(False)
                    continue
                labels = []
                draw_curves(axes, here, looks, palette)
                for recipe, curve in here.items():
                    look = looks[recipe]
                    labels.append(
                        _label(
                            axes,
                            curve,
                            recipe,
                            _slope(fits, line, step, recipe),
                            look.token,
                            limits[line],
                            column == len(steps) - 1,
                        )
                    )
                _sizes(axes, axis, shown)
                if row == 0:
                    axes.set_title(plural(step, "step") if step else "at init", fontsize=9.5)
                below = [(lower, step, recipe) in curves for lower in lines[row + 1 :] for recipe in recipes]
                axes.tick_params(labelbottom=not any(below))
                _guides(axes, next(iter(here.values())), palette["muted"])
                pending.append((axes, labels))
            first = next(axes for axes in grid[row] if axes.get_visible())
            log_axis(first, "y", limits[line])
            first.set_ylabel(_title(line))
            first.tick_params(labelleft=True)
        dashed = " · dashed: closed form" if any(curve.foreseen.any() for curve in curves.values()) else ""
        figure.supxlabel(
            f"{axis}, log scale · number: exponent of the variance · dotted: exponents 0 and 1{dashed}",
            fontsize=9.5,
            color=palette["muted"],
        )
        figure.supylabel("variance", fontsize=9.5, color=palette["muted"])
        place_labels(figure, pending, palette, size=8.5)
    return figure


def _select(shown: pd.DataFrame, line: Line, step: int, recipe: str) -> pd.DataFrame:
    kind, site, module = line
    return shown[
        (shown["kind"] == kind)
        & (shown["site"] == site)
        & (shown["module"] == module)
        & (shown["step"] == step)
        & (shown["recipe"] == recipe)
    ]


def _slope(fits: pd.DataFrame, line: Line, step: int, recipe: str) -> float:
    found = _select(fits, line, step, recipe)["slope"]
    return float(found.iloc[0]) if len(found) else math.nan


def _label(
    axes: Axes, curve: Curve, recipe: str, slope: float, token: str, limits: tuple[float, float], named: bool
) -> Label:
    number = signed(slope, 1) if math.isfinite(slope) else curve.only()
    text = f"{short(recipe, 18)} {number}" if named else number
    end = curve.end() or (float(curve.x[-1]), limits[0 if curve.only() == "0" else 1])
    return Label(*end, text, token)


def _limits(lines: list[Line], curves: dict[tuple[Line, int, str], Curve]) -> dict[Line, tuple[float, float]]:
    """The same number of decades in every row of panels."""
    found = {}
    for line in lines:
        spans = [curve.spanned for (of, _, _), curve in curves.items() if of == line]
        found[line] = log_limits(np.concatenate(spans) if spans else [])
    decades = max(math.log10(high / low) for low, high in found.values())
    middles = {line: math.log10(low * high) / 2 for line, (low, high) in found.items()}
    return {line: (10 ** (middle - decades / 2), 10 ** (middle + decades / 2)) for line, middle in middles.items()}


def _guides(axes: Axes, curve: Curve, colour: str) -> None:
    """Exponents 0 and 1 from where the first recipe starts: to compare with, not a prediction."""
    if not curve.drawable[0]:
        return
    y, growth = curve.median[0], curve.x / curve.x[0]
    for exponent in (0, 1):
        axes.plot(curve.x, y * growth**exponent, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def _sizes(axes: Axes, axis: str, shown: pd.DataFrame) -> None:
    from matplotlib.ticker import NullLocator

    sizes = sorted(int(size) for size in shown[axis].unique())
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, labels=[str(size) for size in sizes])
    axes.set_xlim(sizes[0] / 1.12, sizes[-1] * 1.12)


def _title(line: Line) -> str:
    kind, site, module = line
    name = short(module or site, 24)
    return f"{name}\n− init" if kind == "change" else name


def _describe(run: Run, axis: str) -> str:
    fits = slopes(run.tables.records)
    lines = _lines(_points(run, axis), axis)
    steps = sorted(int(step) for step in run.tables.summary["step"].unique())
    last = steps[-1]
    recipes = _shown_recipes(run)
    parts = []
    for recipe in recipes:
        for line in lines:
            found = _select(fits[fits["axis"] == axis], line, last, recipe)
            if len(found):
                row = found.iloc[0]
                text = slope_text(float(row["slope"]), float(row["high"] - row["slope"]))
                parts.append(f"{recipe} {_title(line).replace(chr(10), ' ')} {axis}^{text}")
    rest = len(recipes_of(run)) - len(recipes)
    more = f" {plural(rest, 'further recipe')} not drawn." if rest else ""
    return f"Exponents of variance after {plural(last, 'step')}, with 95 % intervals: {'; '.join(parts)}.{more}"
