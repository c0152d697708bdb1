"""What training does to the scales: variances and update ratios over the steps of a watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.updates import RULE_OF_THUMB, VECTORS, by_role, drift_by_role, drifts, update_ratios
from initlab.judge.words import number
from initlab.report.figures import figure
from initlab.report.figures.data import Curve
from initlab.report.figures.lines import draw_backdrop, draw_curves
from initlab.report.theme import Label, Series, block_axis, log_axis, log_limits, new_figure, place_labels, style
from initlab.report.view import steps_of
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED = 4  # blocks named at the right; the others are thin lines between them
_FAMILIES = {"s1": "embed", "s2": "attn", "s3": "mlp", "s4": ""}  # hue of a role, by its name
_MARKERS = "os^D"


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    name: str
    look: Series | None  # None: one of the thin lines, which have no label
    curve: Curve


def needs_watch(run: Run) -> str:
    if len(steps_of(run)) < 2:
        return "needs two watched steps or more"
    return "" if _panels(run) else "no variance and no update was recorded"


def describe_watch(run: Run) -> str:
    steps = steps_of(run)
    parts = []
    for title, _, lines in _panels(run):
        named = [(line.look.recipe, line.curve.median) for line in lines if line.look]
        ends = [f"{name} {number(median[0])} to {number(median[-1])}" for name, median in named]
        parts.append(f"{title}: {', '.join(ends)}")
    return f"From step {steps[0]} to step {steps[-1]}. {'. '.join(parts)}."


@figure(
    "watch",
    place=10,
    title="Scales over training",
    question="Do the stream, its gradient and the size of the updates settle, or drift away? "
    "Thin lines: the blocks between those named.",
    kinds=("watch",),
    otherwise="needs a training loop under `initlab.watch`",
    needs=needs_watch,
    words=describe_watch,
)
def draw_watch(run: Run, theme: str) -> Figure:
    panels = _panels(run)
    steps = steps_of(run)
    with style(theme) as palette:
        figure = new_figure(3.3 * len(panels), "Scales over training")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        pending: list[tuple[Axes, list[Label]]] = []
        for axes, (title, unit, lines) in zip(grid, panels, strict=True):
            named = {line.look.recipe: line for line in lines if line.look}
            looks = {name: line.look for name, line in named.items() if line.look}
            draw_curves(axes, {name: line.curve for name, line in named.items()}, looks, palette)
            draw_backdrop(axes, {line.name: line.curve for line in lines if not line.look}, palette, named=True)
            ends = {name: line.curve.end() for name, line in named.items()}
            labels = [Label(*end, name, looks[name].token) for name, end in ends.items() if end]
            drawn = np.concatenate([line.curve.median[line.curve.drawable] for line in lines])
            if title == _UPDATES:
                axes.axhline(RULE_OF_THUMB, color=palette["muted"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
                labels.append(Label(float(steps[-1]), RULE_OF_THUMB, "10⁻³, a rule of thumb", "muted", muted=True))
                drawn = np.append(drawn, RULE_OF_THUMB)
            log_axis(axes, "y", log_limits(drawn))
            axes.set_title(title)
            axes.set_ylabel(unit)
            pad = 0.02 * (steps[-1] - steps[0])
            axes.set_xlim(steps[0] - pad, steps[-1] + pad)
            pending.append((axes, labels))
        block_axis(grid[-1], steps[0], steps[-1])
        figure.supxlabel("step (updates done)", fontsize=9.5, color=palette["muted"])
        place_labels(figure, pending, palette, size=9)
    return figure


_UPDATES = "Update / weight, by role"
_DRIFT = "Distance from the init, by role"


def _panels(run: Run) -> list[tuple[str, str, list[_Line]]]:
    """(title, unit, lines) of each panel that has something to show."""
    records = run.tables.records
    panels = [
        ("Residual stream, after each block", "variance", _stream(records, "activation")),
        ("Gradient of the residual stream", "variance of ∂loss/∂x", _stream(records, "grad")),
        (_UPDATES, "rms of update / rms of weight", _roles(by_role(update_ratios(records)), "ratio")),
        (_DRIFT, "rms of W − W₀ / rms of W₀", _roles(drift_by_role(drifts(records)), "distance")),
    ]
    return [panel for panel in panels if any(line.curve.drawable.any() for line in panel[2])]


def _stream(records: pd.DataFrame, kind: str) -> list[_Line]:
    """The embedding and every block; four of them by name."""
    rows = records[
        (records["kind"] == kind) & records["site"].isin(["embed", "resid_post"]) & (records["call"] == 0)
    ].sort_values("step")
    rows = rows.assign(after=rows["layer"].astype("float64").fillna(-1.0) + 1)
    places = sorted(rows["after"].unique())
    named = {places[round(at)] for at in np.linspace(0, len(places) - 1, min(_LABELLED, len(places)))} if places else ()
    lines, looks = [], iter(range(_LABELLED))
    for place in places:
        own = rows[rows["after"] == place]
        name = "embedding" if place == 0 else f"block {int(place) - 1}"
        lines.append(_line(own, "var", name, _look(name, next(looks)) if place in named else None))
    return lines


def _look(name: str, at: int) -> Series:
    return Series(name, f"s{at + 1}", _MARKERS[at], "")


def _roles(found: pd.DataFrame, column: str) -> list[_Line]:
    """Every role of a matrix, and the gains of norms. Biases start at 0, so that their first ratios say nothing."""
    ratios = found.sort_values("step")
    ratios = ratios[ratios[column].notna() & ~ratios["role"].isin(set(VECTORS) - {"norm_gain"})]
    lines = []
    used: dict[str, int] = {}
    for role in ratios["role"].unique():
        token = next(token for token, family in _FAMILIES.items() if family in str(role))
        used[token] = used.get(token, -1) + 1
        own = ratios[ratios["role"] == role]
        look = Series(str(role), token, _MARKERS[used[token] % len(_MARKERS)], "")
        lines.append(_line(own, column, str(role), look))
    return lines


def _line(rows: pd.DataFrame, column: str, name: str, look: Series | None) -> _Line:
    values = rows[column].to_numpy(float)
    return _Line(name, look, Curve(rows["step"].to_numpy(float), values, values[None], values * np.nan))
