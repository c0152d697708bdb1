"""Loss against the learning rate at every size, and where the best rate goes as the model grows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from initlab.judge.outcomes import optima, run_measures, transfers
from initlab.judge.slopes import AXES, along
from initlab.judge.words import number, plural
from initlab.report.figures import figure
from initlab.report.figures.data import Curve, Curves
from initlab.report.figures.panels import Frame, Guide, Panel, draw_panels
from initlab.report.theme import MAX_OVERLAID, log_axis, log_limits, tick_text
from initlab.report.transfer import drift_text
from initlab.report.view import recipes_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEARNED = 0.1  # nats below ln V
_ABREAST = 3  # panels in a row
_OTHERWISE = "needs runs at several rates and sizes: initlab transfer"


def needs_widths(run: Run) -> str:
    return _needs(run, "n_embd", "widths")


def needs_depths(run: Run) -> str:
    return _needs(run, "n_layer", "depths")


def needs_drift(run: Run) -> str:
    return "" if len(transfers(run)) else "needs a seed that is finished at every rate, at two sizes"


def describe_widths(run: Run) -> str:
    return _describe(run, "n_embd")


def describe_depths(run: Run) -> str:
    return _describe(run, "n_layer")


def describe_drift(run: Run) -> str:
    words = [
        f"{row['recipe']} over {row['axis']}: {drift_text(row)}, {row['verdict']}"
        for row in transfers(run).to_dict("records")
    ]
    return f"Exponent of the best rate, with 95 % interval. {'; '.join(words)}."


@figure(
    "transfer-width",
    place=32,
    title="Loss against learning rate, by width",
    question="Is the valley of a wide model where that of a narrow one is? A line is a width: the median over seeds, "
    "seeds thin. A run that diverged counts as ln V; a line that leaves at the top goes there.",
    kinds=("transfer",),
    otherwise=_OTHERWISE,
    needs=needs_widths,
    words=describe_widths,
)
def draw_widths(run: Run, theme: str) -> Figure:
    return _valleys(run, "n_embd", theme)


@figure(
    "transfer-depth",
    place=34,
    title="Loss against learning rate, by depth",
    question="Is the valley of a deep model where that of a shallow one is? A line is a depth, as by width.",
    kinds=("transfer",),
    otherwise=_OTHERWISE,
    needs=needs_depths,
    words=describe_depths,
)
def draw_depths(run: Run, theme: str) -> Figure:
    return _valleys(run, "n_layer", theme)


@figure(
    "transfer",
    place=30,
    title="Best rate against size",
    question="Where a line is flat, a rate that was tuned on the smallest model is the best for the largest. A point "
    "is the geometric mean over seeds, thin lines are seeds; dotted: as 1/size.",
    kinds=("transfer",),
    otherwise=_OTHERWISE,
    needs=needs_drift,
    words=describe_drift,
)
def draw_drift(run: Run, theme: str) -> Figure:
    found, recipes = optima(run), recipes_of(run)
    panels = []
    for axis in [axis for axis in AXES if axis in set(found["axis"])]:
        curves: Curves = {}
        for recipe in recipes:
            own = found[(found["axis"] == axis) & (found["recipe"] == recipe)]
            sizes = sorted(own["size"].unique())
            if len(sizes) < 2:
                continue
            table = own.pivot_table(index="seed", columns="size", values="best_lr").to_numpy(float)
            middle = np.exp(np.nanmean(np.log(table), axis=0))
            curves[recipe] = Curve(np.array(sizes, float), middle, table, np.full(len(sizes), np.nan), apart=True)
        title = {"n_embd": "over width", "n_layer": "over depth"}[axis]
        panels.append(Panel(title, curves, guides=_inverse(curves), where=axis))
    axes = " and ".join(axis for axis in AXES if axis in set(found["axis"]))
    frame = Frame("Best rate against size", f"{axes}, log scale", "best peak learning rate", _by_size)
    return draw_panels(panels, frame, recipes, theme)


def _inverse(curves: Curves) -> tuple[Guide, ...]:
    """From where the first recipe starts."""
    if not curves:
        return ()
    first = next(iter(curves.values()))
    (x, *_, last), y = first.x, first.median[0]
    return (Guide("1/size", (float(x), float(y)), (float(last), float(y * x / last)), inside=True),)


def _needs(run: Run, axis: str, what: str) -> str:
    runs = run.tables.runs
    if runs.empty:
        return "no training run has finished"
    return "" if runs[axis].nunique() > 1 else f"needs models of two or more {what}, this run has one"


def _valleys(run: Run, axis: str, theme: str) -> Figure:
    measured = run_measures(run)
    shown = along(measured.assign(recipe=measured["recipe"].astype(str)), axis)
    sizes = sorted(int(size) for size in shown[axis].unique())
    if len(sizes) > MAX_OVERLAID:
        ends = len(sizes) - 1
        sizes = [sizes[round(place * ends / (MAX_OVERLAID - 1))] for place in range(MAX_OVERLAID)]
    names = [f"{axis} {size}" for size in sizes]
    panels = []
    for recipe in recipes_of(run):
        own, curves = shown[shown["recipe"] == recipe], Curves()
        for name, size in zip(names, sizes, strict=True):
            table = own[own[axis] == size].pivot_table(index="lr", columns="seed", values="loss", observed=True)
            if len(table):
                values, nothing = table.to_numpy(float), np.full(len(table), np.nan)
                rates = table.index.to_numpy(float)
                curves[name] = Curve(rates, np.nanmedian(values, axis=1), values.T, nothing, apart=True)
        panels.append(Panel(recipe, curves))
    rows = math.ceil(len(panels) / _ABREAST)
    learned = shown["loss"][shown["loss"] < shown["ln_vocab"] - _LEARNED]
    frame = Frame(
        f"Loss against learning rate, by {'width' if axis == 'n_embd' else 'depth'}",
        "peak learning rate, log scale",
        "validation loss after the last step, nats",
        _by_rate,
        height=1.4 + 2.6 * rows,
        rows=rows,
        log=False,
        top=float(learned.max()) if len(learned) else float(shown["ln_vocab"].max()),
        unit="nats",
    )
    return draw_panels(_filled(panels, rows), frame, names, theme)


def _filled(panels: list[Panel], rows: int) -> list[Panel]:
    """As many as there are places for."""
    columns = math.ceil(len(panels) / rows)
    return [*panels, *(Panel("", {}) for _ in range(columns * rows - len(panels)))]


def _by_rate(axes: Axes, panel: Panel) -> None:
    rates = sorted({float(x) for line in panel.curves.values() for x in line.x})
    if not rates:
        axes.set_visible(False)
        return
    log_axis(axes, "x", log_limits(rates))


def _by_size(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    sizes = sorted({int(x) for line in panel.curves.values() for x in line.x})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(sizes, labels=[tick_text(size) for size in sizes])
    axes.set_xlim(sizes[0] / 1.12, sizes[-1] * 1.12)


def _describe(run: Run, axis: str) -> str:
    found = transfers(run)
    words = [
        f"{row['recipe']}: best rate {number(row['small_lr'])} at the smallest and {number(row['large_lr'])} at the "
        f"largest of {plural(row['sizes'], 'size')}"
        for row in found[found["axis"] == axis].to_dict("records")
    ]
    return f"{'; '.join(words)}." if words else "No recipe is finished at two sizes."
