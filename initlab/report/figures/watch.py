"""What training does to the scales: variances and update ratios over the steps of a watch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.updates import RULE_OF_THUMB, VECTORS, by_role, update_ratios
from initlab.report.digest import number, steps_of
from initlab.report.figures.data import Curve
from initlab.report.figures.panels import draw_curve
from initlab.report.theme import Label, block_axis, log_axis, log_limits, new_figure, place_labels, style
from initlab.rundir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELLED = 4  # blocks named at the right; the others are thin lines between them
_FAMILIES = {"s1": "embed", "s2": "attn", "s3": "mlp", "s4": ""}  # hue of a role, by its name
_MARKERS = "os^D"


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    name: str  # empty: not labelled
    token: str
    marker: str
    curve: Curve


def needs_watch(run: Run) -> str:
    if run.manifest.get("kind") != "watch":
        return "needs a training loop under `initlab.watch`"
    if len(steps_of(run)) < 2:
        return "needs two watched steps or more"
    return "" if _panels(run) else "no variance and no update was recorded"


def draw_watch(run: Run, theme: str) -> Figure:
    panels = _panels(run)
    steps = steps_of(run)
    with style(theme) as palette:
        figure = new_figure(theme, 3.3 * len(panels), "Scales over training")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        pending: list[tuple[Axes, list[Label]]] = []
        for axes, (title, unit, lines) in zip(grid, panels, strict=True):
            labels = []
            for line in lines:
                if line.name:
                    draw_curve(axes, line.curve, palette[line.token], line.marker)
                    end = line.curve.end()
                    labels += [Label(*end, line.name, line.token)] if end else []
                else:
                    between = np.where(line.curve.drawable, line.curve.median, np.nan)
                    axes.plot(line.curve.x, between, color=palette["faint"], linewidth=0.8, zorder=1)
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


def describe_watch(run: Run) -> str:
    steps = steps_of(run)
    parts = []
    for title, _, lines in _panels(run):
        named = [line for line in lines if line.name]
        ends = [f"{line.name} {number(line.curve.median[0])} to {number(line.curve.median[-1])}" for line in named]
        parts.append(f"{title}: {', '.join(ends)}")
    return f"From step {steps[0]} to step {steps[-1]}. {'. '.join(parts)}."


_UPDATES = "Update / weight, by role"


def _panels(run: Run) -> list[tuple[str, str, list[_Line]]]:
    """(title, unit, lines) of each panel that has something to show."""
    records = run.tables.records
    panels = [
        ("Residual stream, after each block", "variance", _stream(records, "activation")),
        ("Gradient of the residual stream", "variance of ∂loss/∂x", _stream(records, "grad")),
        (_UPDATES, "rms of update / rms of weight", _updates(records)),
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
        name = ("embedding" if place == 0 else f"block {int(place) - 1}") if place in named else ""
        look = next(looks) if name else 0
        lines.append(_line(own, "var", name, f"s{look + 1}", _MARKERS[look]))
    return lines


def _updates(records: pd.DataFrame) -> list[_Line]:
    """Every role of a matrix, and the gains of norms. Biases start at 0, so that their first ratios say nothing."""
    ratios = by_role(update_ratios(records)).sort_values("step")
    ratios = ratios[ratios["ratio"].notna() & ~ratios["role"].isin(set(VECTORS) - {"norm_gain"})]
    lines = []
    used: dict[str, int] = {}
    for role in ratios["role"].unique():
        token = next(token for token, family in _FAMILIES.items() if family in str(role))
        used[token] = used.get(token, -1) + 1
        own = ratios[ratios["role"] == role]
        lines.append(_line(own, "ratio", str(role), token, _MARKERS[used[token] % len(_MARKERS)]))
    return lines


def _line(rows: pd.DataFrame, column: str, name: str, token: str, marker: str) -> _Line:
    values = rows[column].to_numpy(float)
    return _Line(name, token, marker, Curve(rows["step"].to_numpy(float), values, values, values, values * np.nan))
