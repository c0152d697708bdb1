"""Lines of recipes in one axes: medians, seeds, closed forms, and the marks of what a log axis can't show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from initlab.report import hover
from initlab.report.figures.data import Curve, Curves
from initlab.report.theme import Series, short, unlabelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Palette = dict[str, str]
_FAINT_POINTS = 12  # of a line in the background
_MOST_MARKERS = 12  # of a line that is drawn over steps


def draw_backdrop(axes: Axes, curves: Curves, palette: Palette, *, named: bool = False) -> None:
    """Draw thin lines without labels, of few points each: all of them would fill the page.

    Args:
        axes: that are drawn on.
        curves: by name.
        palette: of the theme.
        named: pointing at them says their names, which no other panel does.
    """
    drawn = [piece for whole in curves.items() for piece in _pieces(*whole)]
    every = [max(1, -(-len(curve.x) // _FAINT_POINTS)) for _, curve in drawn]
    points = [(curve.x[::step], curve.median[::step]) for (_, curve), step in zip(drawn, every, strict=True)]
    names = [line.partition(" ")[2] for line, _ in drawn] if named else []
    _draw_threads(axes, points, [palette["faint"]] * len(points), names, linewidth=0.8, alpha=0.8)


def draw_curves(
    axes: Axes, curves: Curves, looks: Mapping[str, Series], palette: Palette, *, thin: bool = False
) -> None:
    """Draw medians, seeds and closed forms; exact zeros and non-finite values as marks at the edges.

    Args:
        axes: whose scales are still linear, so that medians are those of the values.
        curves: by recipe.
        looks: token of the colour and marker of each.
        palette: of the theme.
        thin: beside a backdrop, or in a small panel.
    """
    lines = [line for recipe, curve in curves.items() for line in _pieces(recipe, curve)]
    if lines:
        with unlabelled(axes):
            _draw_lines(axes, curves, lines, looks, palette, thin)
    for recipe, curve in curves.items():
        colour, marker = palette[looks[recipe].token], looks[recipe].marker
        if curve.marks:
            (marks,) = axes.plot(*curve.marks, marker, color=colour, markersize=3.6 if thin else 5.5, clip_on=False)
            hover.name(marks, _said(recipe, curve.kinds[1]))
        _mark_edges(axes, curve, colour)


def _draw_lines(
    axes: Axes,
    curves: Curves,
    lines: Sequence[tuple[str, Curve]],
    looks: Mapping[str, Series],
    palette: Palette,
    thin: bool,
) -> None:
    import seaborn as sns

    recipes = {line: line.partition(" ")[2] for line, _ in lines}
    hues = {line: palette[looks[recipe].token] for line, recipe in recipes.items()}
    longest = max(len(curve.x) for curve in curves.values())
    apart = any(curve.apart for curve in curves.values())
    marked = any(curve.marks for curve in curves.values())
    if apart:
        seeds = [(recipe, curve.x, seed) for recipe, curve in curves.items() for seed in curve.seeds]
        if len({at for curve in curves.values() for at in np.flatnonzero(np.isfinite(curve.seeds).any(axis=1))}) > 1:
            own = [palette[looks[recipe].token] for recipe, _, _ in seeds]
            _draw_threads(axes, [(x, y) for _, x, y in seeds], own, linewidth=0.6, alpha=0.6)
    else:
        for line, curve in lines:
            _draw_band(axes, curve, hues[line])
    before = len(axes.lines)
    sns.lineplot(
        _tidy((line, curve.x, curve.median) for line, curve in lines),
        x="x",
        y="y",
        hue="line",
        palette=hues,
        style=None if marked else "line",
        markers=False if marked else {line: looks[recipe].marker for line, recipe in recipes.items()},
        dashes=False,
        estimator=None,
        linewidth=1.3 if thin else 1.8,
        markersize=4.4 if thin else max(3.4, 6.6 - longest / 40),
        markeredgecolor=palette["bg"],
        markeredgewidth=0.4,
        markevery=math.ceil(longest / _MOST_MARKERS) if apart or thin else 1,
        legend=False,
        ax=axes,
    )
    for drawn, (line, curve) in zip(axes.lines[before:], lines, strict=True):
        hover.name(drawn, _said(recipes[line], curve.kinds[0]))
    foreseen = [(curve.x, np.where(curve.foreseen, curve.expected, np.nan)) for _, curve in lines]
    names = [_said(recipe, "closed form") for recipe in recipes.values()]
    _draw_threads(axes, foreseen, list(hues.values()), names, linestyle=(0, (4, 2.5)), linewidth=1.1)


def _said(recipe: str, kind: str) -> str:
    """What a line is called where it is pointed at."""
    return ", ".join(filter(None, (short(recipe), kind)))


def _draw_threads(
    axes: Axes,
    lines: Sequence[tuple[np.ndarray, np.ndarray]],
    colours: Sequence[str],
    names: Sequence[str] = (),
    **look: Any,
) -> None:
    """Draw lines that carry no mark, through the points that are known, as one artist: their number is what costs."""
    from matplotlib.collections import LineCollection

    points = [np.column_stack([x, y])[np.isfinite(y)] for x, y in lines]
    known = [at for at, own in enumerate(points) if len(own)]
    if known:
        own = [colours[at] for at in known]
        threads = LineCollection([points[at] for at in known], colors=own, zorder=2, **look)
        hover.name(threads, *(names[at] for at in known if names))
        axes.add_collection(threads, autolim=False)


def _draw_band(axes: Axes, curve: Curve, colour: str) -> None:
    """Draw the range from the lowest seed to the highest, where seeds differ."""
    low, high = np.nanmin(curve.seeds, axis=0), np.nanmax(curve.seeds, axis=0)
    if (low < high).any():
        axes.fill_between(curve.x, low, high, color=colour, alpha=0.25, linewidth=0)


def _pieces(recipe: str, curve: Curve) -> list[tuple[str, Curve]]:
    """The stretches of a line between the points that a log axis can't show, by name; seaborn would join them."""
    keep = curve.drawable
    if keep.all():
        return [(f"0 {recipe}", curve)]
    stretch = np.cumsum(~keep)
    places = {f"{number} {recipe}": keep & (stretch == number) for number in np.unique(stretch[keep])}
    return [(name, curve.only_at(at)) for name, at in places.items()]


def _tidy(lines: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> pd.DataFrame:
    """One row per line and point that is known."""
    names, xs, ys = zip(*((line, x[known := np.isfinite(y)], y[known]) for line, x, y in lines), strict=True)
    line = np.repeat(np.array(names, dtype=object), [len(x) for x in xs])
    return pd.DataFrame({"line": line, "x": np.concatenate(xs), "y": np.concatenate(ys)})


def _mark_edges(axes: Axes, curve: Curve, colour: str) -> None:
    edge = axes.get_xaxis_transform()
    for where, y, text in ((curve.median == 0, 0.015, "0"), (~np.isfinite(curve.median), 0.985, "not finite")):
        if where.any():
            x = curve.x[where]
            axes.plot(x, np.full(len(x), y), "|", color=colour, markersize=7, transform=edge, clip_on=False)
            if curve.only():
                continue  # its label at the right says so
            side = "bottom" if y < 0.5 else "top"
            axes.text(x[0], y + (0.025 if y < 0.5 else -0.025), text, transform=edge, ha="left", va=side, fontsize=8.5)
