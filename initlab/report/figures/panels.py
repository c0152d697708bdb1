"""Line panels on a shared log axis: recipes overlaid while they are few, one highlighted per panel otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from initlab.report import hover
from initlab.report.figures.data import Curve, Curves
from initlab.report.figures.lines import Palette, draw_backdrop, draw_curves
from initlab.report.theme import (
    MAX_OVERLAID,
    Label,
    Series,
    block_axis,
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


@dataclass(frozen=True, slots=True)
class Panel:
    """One axes of a line figure."""

    title: str
    curves: Curves
    width: float = 1.0
    suffix: dict[str, str] = field(default_factory=dict)  # recipe -> text behind its label
    guides: tuple[Guide, ...] = ()
    where: str = ""  # what its positions are of, if not what the figure's x axis says


@dataclass(frozen=True, slots=True)
class Guide:
    """A thin reference line from one point to another."""

    text: str
    start: tuple[float, float]
    end: tuple[float, float]
    inside: bool = False  # the panel reaches as far as it does


@dataclass(frozen=True, slots=True)
class Frame:
    """What all panels of a figure share. `dress` sets up the x axis; `unit` is of the values, where they have one.

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
    unit: str = ""

    def reading(self, panel: Panel) -> hover.Reading:
        """How a point of a panel reads that is pointed at."""
        return partial(hover.at, where=panel.where or hover.head(self.x), unit=self.unit)


def across(axes: Axes, panel: Panel) -> None:
    xs = np.concatenate([line.x for line in panel.curves.values()]) if panel.curves else np.array([0.0])
    first, last = int(xs.min()), int(xs.max())
    block_axis(axes, first, last, most=9 if panel.width > 1.5 else 5)
    pad = 0.02 * (last - first) + 0.05
    axes.set_xlim(first - pad, last + pad)


def backwards(axes: Axes, panel: Panel) -> None:
    across(axes, panel)
    axes.xaxis.set_inverted(True)


def draw_panels(panels: Sequence[Panel], frame: Frame, recipes: Sequence[str], theme: str) -> Figure:
    """Overlay the recipes of a run in every panel, or highlight one per panel when they are too many."""
    looks = series(recipes)
    with style(theme) as palette:
        shown = _overlaid if len(recipes) <= MAX_OVERLAID else _highlighted
        return shown(panels, frame, looks, palette)


def _limits(panels: Sequence[Panel], frame: Frame) -> tuple[float, float]:
    spans = [line.spanned for panel in panels for line in panel.curves.values()]
    spans += [np.array([guide.end[1]]) for panel in panels for guide in panel.guides if guide.inside]
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


def _overlaid(panels: Sequence[Panel], frame: Frame, looks: dict[str, Series], palette: Palette) -> Figure:
    figure = new_figure(frame.height, frame.title)
    columns = math.ceil(len(panels) / frame.rows)
    widths = [panel.width for panel in panels[:columns]]
    grid = figure.subplots(frame.rows, columns, sharey=True, squeeze=False, width_ratios=widths)
    limits = _limits(panels, frame)
    pending = []
    for axes, panel in zip(grid.flat, panels, strict=True):
        draw_curves(axes, panel.curves, looks, palette)
        labels = [_end_label(line, looks[recipe], panel, limits) for recipe, line in panel.curves.items()]
        labels += _draw_guides(axes, panel, palette)
        axes.set_title(panel.title)
        hover.read(axes, frame.reading(panel))
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


def _highlighted(panels: Sequence[Panel], frame: Frame, looks: dict[str, Series], palette: Palette) -> Figure:
    baseline, *others = looks
    columns = min(4, len(others))
    bands = math.ceil(len(others) / columns)
    figure = new_figure(0.4 + 2.05 * bands * len(panels), frame.title)
    grid = figure.subplots(bands * len(panels), columns, sharex=True, sharey=True, squeeze=False)
    ends, last = [], None
    for cell in range(bands * columns):
        for offset, panel in enumerate(panels):
            row = (cell // columns) * len(panels) + offset
            axes = grid[row, cell % columns]
            if cell >= len(others):
                axes.set_visible(False)
                continue
            recipe = others[cell]
            guides = _spotlight(axes, panel, baseline, recipe, looks, palette)
            hover.read(axes, frame.reading(panel))
            last = axes, panel
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
    if last:
        frame.dress(last[0], replace(last[1], width=1.0))  # the axis is one: every call would set it for all of them
    _y_axis(grid[0, 0], _limits(panels, frame), frame)
    figure.supylabel(frame.y, fontsize=9.5, color=palette["muted"])
    figure.supxlabel(_x_text(panels, frame), fontsize=9.5, color=palette["muted"])
    place_labels(figure, ends, palette, size=8.5)
    return figure


def _spotlight(
    axes: Axes, panel: Panel, baseline: str, recipe: str, looks: dict[str, Series], palette: Palette
) -> list[Label]:
    draw_backdrop(axes, {name: line for name, line in panel.curves.items() if name not in (baseline, recipe)}, palette)
    shown = {name: panel.curves[name] for name in (baseline, recipe) if name in panel.curves}
    draw_curves(axes, shown, looks, palette, thin=True)
    return _draw_guides(axes, panel, palette)


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
    expected = any(line.foreseen.any() for panel in panels for line in panel.curves.values())
    return frame.x + (" · dashed: closed form" if expected else "")
