"""Line panels on a shared log axis: recipes overlaid while they are few, one highlighted per panel otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from initlab.report.figures.data import Curve, Curves
from initlab.report.theme import (
    MAX_OVERLAID,
    Label,
    Series,
    log_axis,
    log_limits,
    new_figure,
    place_labels,
    series,
    short,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Palette = dict[str, str]
_FAINT_POINTS = 12  # of a line in the background
_MOST_MARKERS = 12  # of a line that is drawn over steps


@dataclass(frozen=True, slots=True)
class Panel:
    """One axes of a line figure."""

    title: str
    curves: Curves
    width: float = 1.0
    suffix: dict[str, str] = field(default_factory=dict)  # recipe -> text behind its label
    guides: tuple[Guide, ...] = ()


@dataclass(frozen=True, slots=True)
class Guide:
    """A thin reference line from one point to another."""

    text: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """What all panels of a figure share. `dress` sets up the x axis.

    A linear y axis is cut off at `top`, and never spans less than `least`, so that seed noise doesn't fill the panel.
    """

    title: str
    x: str
    y: str
    dress: Callable[[Axes, Panel], None]
    height: float = 4.2
    label_all: bool = False
    rows: int = 1  # of panels, filled row by row
    log: bool = True
    top: float = math.inf
    least: float = 0.1


def draw_panels(panels: Sequence[Panel], frame: Frame, recipes: Sequence[str], theme: str) -> Figure:
    """Overlay the recipes of a run in every panel, or highlight one per panel when they are too many."""
    looks = series(recipes)
    with style(theme) as palette:
        if len(recipes) <= MAX_OVERLAID:
            return _overlaid(panels, frame, looks, palette, theme)
        return _highlighted(panels, frame, looks, palette, theme)


def _limits(panels: Sequence[Panel], frame: Frame) -> tuple[float, float]:
    spans = [line.spanned for panel in panels for line in panel.curves.values()]
    values = np.concatenate(spans) if spans else np.array([])
    if not frame.log:
        return _linear_limits(values, frame)
    low, high = log_limits(values)
    medians = np.concatenate([line.median for panel in panels for line in panel.curves.values()])
    strip = (high / low) ** 0.1  # room for the marks of what a log axis can't show
    return low / strip if (medians == 0).any() else low, high if np.isfinite(medians).all() else high * strip


def _linear_limits(values: np.ndarray, frame: Frame) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), min(float(values.max()), frame.top)
    pad = max(0.04 * (high - low), (frame.least - (high - low)) / 2)
    return low - pad, high + pad


def _y_axis(axes: Axes, limits: tuple[float, float], frame: Frame) -> None:
    if frame.log:
        log_axis(axes, "y", limits)
    else:
        axes.set_ylim(*limits)


def _overlaid(panels: Sequence[Panel], frame: Frame, looks: dict[str, Series], palette: Palette, theme: str) -> Figure:
    figure = new_figure(theme, frame.height, frame.title)
    columns = math.ceil(len(panels) / frame.rows)
    widths = [panel.width for panel in panels[:columns]]
    grid = figure.subplots(frame.rows, columns, sharey=True, squeeze=False, width_ratios=widths)
    limits = _limits(panels, frame)
    pending = []
    for axes, panel in zip(grid.flat, panels, strict=True):
        labels = []
        for recipe, line in panel.curves.items():
            look = looks[recipe]
            draw_curve(axes, line, palette[look.token], look.marker)
            labels.append(_end_label(line, look, panel, limits))
        labels += _draw_guides(axes, panel, palette)
        axes.set_title(panel.title)
        frame.dress(axes, panel)
        if axes in grid[:, -1] or frame.label_all:
            pending.append((axes, labels))
    _y_axis(grid[0, 0], limits, frame)
    if frame.rows == 1:
        grid[0, 0].set_ylabel(frame.y)
    else:
        figure.supylabel(frame.y, fontsize=9.5, color=palette["muted"])
    figure.supxlabel(_x_text(panels, frame), fontsize=9.5, color=palette["muted"])
    place_labels(figure, pending, palette)
    return figure


def _highlighted(
    panels: Sequence[Panel], frame: Frame, looks: dict[str, Series], palette: Palette, theme: str
) -> Figure:
    baseline, *others = looks
    columns = min(4, len(others))
    bands = math.ceil(len(others) / columns)
    figure = new_figure(theme, 0.4 + 2.05 * bands * len(panels), frame.title)
    grid = figure.subplots(bands * len(panels), columns, sharex=True, sharey=True, squeeze=False)
    _y_axis(grid[0, 0], _limits(panels, frame), frame)
    ends = []
    for cell in range(bands * columns):
        for offset, panel in enumerate(panels):
            row = (cell // columns) * len(panels) + offset
            axes = grid[row, cell % columns]
            if cell >= len(others):
                axes.set_visible(False)
                continue
            recipe = others[cell]
            guides = _spotlight(axes, panel, baseline, recipe, looks, palette)
            frame.dress(axes, replace(panel, width=1.0))
            # One heading per recipe; the panels below it are told apart at the left edge.
            suffix = panel.suffix.get(recipe, "")
            heading = short(recipe, 24) if offset == 0 else ""
            axes.set_title(f"{heading}\n" if suffix and heading else heading, fontsize=8.5)
            axes.set_title(suffix, loc="right", fontsize=8.5, fontweight="normal")
            if len(panels) > 1 and cell % columns == 0:
                axes.set_ylabel(panel.title)
            axes.tick_params(labelbottom=row == grid.shape[0] - 1 or cell + columns >= len(others))
            end = panel.curves[baseline].end() if baseline in panel.curves else None
            if cell == columns - 1:
                named = [Label(*end, short(baseline), looks[baseline].token)] if end else []
                ends.append((axes, [*named, *guides]))
    figure.supylabel(frame.y, fontsize=9.5, color=palette["muted"])
    figure.supxlabel(_x_text(panels, frame), fontsize=9.5, color=palette["muted"])
    place_labels(figure, ends, palette, size=8.5)
    return figure


def _spotlight(
    axes: Axes, panel: Panel, baseline: str, recipe: str, looks: dict[str, Series], palette: Palette
) -> list[Label]:
    for other, line in panel.curves.items():
        if other not in (baseline, recipe):
            keep = np.flatnonzero(line.drawable)
            keep = keep[:: -(-len(keep) // _FAINT_POINTS) or 1]  # a backdrop: its points would fill the page
            axes.plot(line.x[keep], line.median[keep], color=palette["faint"], linewidth=0.7, alpha=0.6)
    for shown in (baseline, recipe):
        if shown in panel.curves:
            look = looks[shown]
            draw_curve(axes, panel.curves[shown], palette[look.token], look.marker, thin=True)
    return _draw_guides(axes, panel, palette)


def draw_curve(axes: Axes, line: Curve, colour: str, marker: str, *, thin: bool = False) -> None:
    """Median, seed range, closed form; exact zeros and non-finite values as marks at the edges."""
    keep = line.drawable
    gapped = np.where(keep, line.median, np.nan)
    size = 3.0 if thin else max(2.6, 4.8 - len(line.x) / 40)
    low = np.where(keep & (line.low > 0), line.low, gapped)
    high = np.where(keep & np.isfinite(line.high), line.high, gapped)
    if line.seeds is not None:
        if len(line.seeds) > 1:
            axes.plot(line.x, line.seeds.T, color=colour, linewidth=0.6, alpha=0.6)
    elif (high > low).any():
        axes.fill_between(line.x, low, high, color=colour, alpha=0.25, linewidth=0)
    own, width = "None" if line.marks else marker, 1.3 if thin else 1.8
    every = 1 if line.seeds is None and not thin else math.ceil(len(line.x) / _MOST_MARKERS)
    axes.plot(line.x, gapped, color=colour, marker=own, markersize=size, markevery=every, linewidth=width)
    if line.marks:
        axes.plot(*line.marks, marker, color=colour, markersize=3.6 if thin else 5.5, clip_on=False)
    theory = np.where(line.expected > 0, line.expected, np.nan)
    if np.isfinite(theory).any():
        axes.plot(line.x, theory, color=colour, linestyle=(0, (4, 2.5)), linewidth=1.1)
    edge = axes.get_xaxis_transform()
    for where, y, text in ((line.median == 0, 0.015, "0"), (~np.isfinite(line.median), 0.985, "not finite")):
        if where.any():
            x = line.x[where]
            axes.plot(x, np.full(len(x), y), "|", color=colour, markersize=7, transform=edge, clip_on=False)
            if line.only():
                continue  # its label at the right says so
            side = "bottom" if y < 0.5 else "top"
            axes.text(x[0], y + (0.025 if y < 0.5 else -0.025), text, transform=edge, ha="left", va=side, fontsize=8.5)


def _end_label(line: Curve, look: Series, panel: Panel, limits: tuple[float, float]) -> Label:
    """The recipe's name at the end of its line, or at the edge where its marks are."""
    text = "\n".join(filter(None, (short(look.recipe), panel.suffix.get(look.recipe))))
    end = line.end()
    if end:
        x, y = end
        return Label(x, min(max(y, limits[0]), limits[1]), text, look.token)
    return Label(float(line.x[-1]), limits[0 if line.only() == "0" else 1], f"{text} ({line.only()})", look.token)


def _draw_guides(axes: Axes, panel: Panel, palette: Palette) -> list[Label]:
    labels = []
    for guide in panel.guides:
        x, y = zip(guide.start, guide.end, strict=True)
        axes.plot(x, y, color=palette["muted"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        labels.append(Label(*guide.end, guide.text, "muted", muted=True))
    return labels


def _x_text(panels: Sequence[Panel], frame: Frame) -> str:
    expected = any(np.isfinite(line.expected).any() for panel in panels for line in panel.curves.values())
    return frame.x + (" · dashed: closed form" if expected else "")
