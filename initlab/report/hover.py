"""What pointing at a figure says: a place over each point and cell that is drawn, invisible, with its value.

A browser shows an SVG element's <title> as a tooltip; it needs no script. The places lie over the drawing, where the
data says they are, and so don't depend on which elements matplotlib made of it.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.judge.words import number, trimmed

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Affine2D, Transform

_POINTS = 72  # units of an SVG to the inch
_REACH = 6.0  # points: how far from its middle a place reaches where nothing else is near
_NEAR = 2.5  # points: what is closer to each other shares a place
_DENSE = 400  # points of a series, above which it has no places
_FINE = 4000  # cells of a heatmap, above which it has no places
_MOST = 400  # points, or cells, of a figure; more are thinned out
_MOST_UNMARKED = 12  # points of a line that shows none
_MOST_LINES = 8  # of a tooltip
_NAMES = "_initlab_names"
_HEAD = re.compile(r" ?[,;·(]")  # what follows in an axis' label explains it

Reading = Callable[[float, float], str]


@dataclass(frozen=True, slots=True, eq=False)
class _Series:
    """Points of one name in data coordinates, and as they stand in the SVG."""

    name: str
    data: np.ndarray
    places: np.ndarray


def name(artist: Artist, *names: str) -> None:
    """Say what a line, dots or a grid of cells are called; without it they have matplotlib's label.

    Args:
        artist: Line2D, PathCollection, QuadMesh, or LineCollection, which takes a name for each of its lines.
        names: empty: the reading says it all.
    """
    setattr(artist, _NAMES, names)


def read(axes: Axes, reading: Reading) -> None:
    """Say how a point of some axes reads, in matplotlib's own words for it: `axes.format_coord`.

    Args:
        axes: whose default would be `position: value`, each with three digits.
        reading: (x, y) in data coordinates -> text. One that can be pickled keeps the figure so.
    """
    axes.format_coord = reading  # type: ignore[method-assign, assignment]


def at(x: float, y: float, *, where: str, unit: str = "") -> str:
    """Read a point whose value is y: `block 3: 0.0123 nats`.

    Args:
        x: position.
        y: value.
        where: what the position is of.
        unit: of the value.
    """
    position = f"{x:.0f}" if float(x).is_integer() else trimmed(x)
    return " ".join(filter(None, (where, f"{position}:", number(y, 3), unit)))


def head(label: str) -> str:
    """What an axis is of, without what its label explains.

    Args:
        label: of the axis: `learning rate, log scale`.
    """
    return _HEAD.split(label, maxsplit=1)[0]


def overlay(figure: Figure, height: float) -> str:
    """Make the places of a figure that has been drawn, to stand at the end of its SVG; empty where there are none.

    Lines have them where they have a name or a label that matplotlib would show in a legend; dots always, and cells
    unless numbers are written into them.

    Args:
        figure: as drawn.
        height: of the SVG, in inches.
    """
    from matplotlib.transforms import Affine2D

    scale = _POINTS / figure.dpi
    onto = Affine2D().scale(scale, -scale).translate(0, height * _POINTS)  # the SVG, whose y is from above
    shown = [axes for axes in figure.axes if axes.get_visible()]
    cells = _strongest([cell for axes in shown for cell in _cells(axes, onto)])
    series = [(axes, list(_series(axes, onto))) for axes in shown]
    most = _share([len(each.data) for _, found in series for each in found])
    circles = [circle for axes, found in series for circle in _circles(axes, found, most)]
    places = "".join([*cells, *circles])
    return f'<g fill="none" pointer-events="all">{places}</g>' if places else ""


def _named(artist: Artist) -> tuple[str, ...] | None:
    """The names of an artist; None where it has none."""
    given: tuple[str, ...] | None = getattr(artist, _NAMES, None)
    label = str(artist.get_label())
    return given if given is not None else (label,) if label and not label.startswith("_") else None


def _series(axes: Axes, onto: Affine2D) -> Iterator[_Series]:
    """What has points, each of which is data."""
    from matplotlib.collections import LineCollection, PathCollection

    for line in axes.lines:
        if names := _named(line):
            yield from _seen(axes, line, names[0], _marked(line), line.get_transform(), onto)
    for some in axes.collections:
        names = _named(some)
        if isinstance(some, PathCollection):
            points: np.ndarray = np.ma.asarray(some.get_offsets(), float).filled(np.nan)
            yield from _seen(axes, some, names[0] if names else "", points, some.get_offset_transform(), onto)
        elif isinstance(some, LineCollection) and names:
            lines = some.get_segments()
            for own, points in zip(names if len(names) == len(lines) else names[:1] * len(lines), lines, strict=True):
                yield from _seen(axes, some, own, _thinned(np.asarray(points)), some.get_transform(), onto)


def _marked(line: Line2D) -> np.ndarray:
    """The points of a line that are seen as such; of one without marks, some of them."""
    points = np.asarray(line.get_xydata(), float)
    if line.get_marker() in ("", " ", "None", None):
        return _thinned(points)
    every = line.get_markevery()
    return points[::every] if isinstance(every, int) else points


def _thinned(points: np.ndarray) -> np.ndarray:
    return points[:: _stride(len(points), _MOST_UNMARKED)]


def _stride(count: int, most: int) -> int:
    return max(1, math.ceil(count / most))


def _share(counts: list[int]) -> int:
    """How many points each series may have: the long ones make room first."""
    most = max(counts, default=1)
    while most > 1 and sum(math.ceil(count / _stride(count, most)) for count in counts) > _MOST:
        most -= 1
    return most


def _seen(
    axes: Axes, artist: Artist, name: str, data: np.ndarray, transform: Transform, onto: Affine2D
) -> Iterator[_Series]:
    """The points that are drawn, if they are data at all and not dense."""
    if not artist.get_visible() or transform.contains_branch_seperately(axes.transData) != (True, True):
        return
    data = data[np.isfinite(data).all(axis=1)]
    pixels, box = transform.transform(data), axes.bbox.padded(0.5)
    within = ((box.min <= pixels) & (pixels <= box.max)).all(axis=1)
    if within.any() and within.sum() <= _DENSE:
        yield _Series(name, data[within], onto.transform(pixels[within]))


def _circles(axes: Axes, series: list[_Series], most: int) -> Iterator[str]:
    """Circles around points, as large as keeps them apart; points that can't be told apart have one for all."""
    if not series:
        return
    strides = [_stride(len(each.data), most) for each in series]
    shown = [(each.name, each.data[::by], each.places[::by]) for each, by in zip(series, strides, strict=True)]
    said = [(name, _reading(axes, point)) for name, data, _ in shown for point in data]
    places = np.concatenate([own for _, _, own in shown])
    apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    groups: dict[int, np.ndarray] = {}
    left = np.ones(len(places), bool)
    for first in range(len(places)):
        if left[first]:
            groups[first] = np.flatnonzero(left & (apart[first] < _NEAR))
            left[groups[first]] = False
    between = apart[np.ix_(list(groups), list(groups))]
    np.fill_diagonal(between, np.inf)
    for (first, members), nearest in zip(groups.items(), between.min(axis=1), strict=True):
        at = zip(("cx", "cy", "r"), (*places[first], min(_REACH, nearest / 2)), strict=True)
        attributes = " ".join(f'{key}="{f"{value:.1f}".removesuffix(".0")}"' for key, value in at)
        yield f"<circle {attributes}>{_title([said[member] for member in members])}</circle>"


def _cells(axes: Axes, onto: Affine2D) -> Iterator[tuple[float, str]]:
    """How strongly each cell of a heatmap is coloured, and its place."""
    from matplotlib.collections import QuadMesh

    for mesh in axes.collections:
        if not isinstance(mesh, QuadMesh) or axes.get_label() == "<colorbar>":
            continue
        values: np.ndarray = np.ma.asarray(mesh.get_array(), float).filled(np.nan)
        corners = np.asarray(mesh.get_coordinates())  # (rows + 1, columns + 1, 2)
        if values.size > _FINE or values.shape != (len(corners) - 1, len(corners[0]) - 1):
            continue
        if len(axes.texts) >= np.isfinite(values).sum():  # its cells hold their numbers
            continue
        pixels = np.clip(mesh.get_transform().transform(corners.reshape(-1, 2)), axes.bbox.min, axes.bbox.max)
        places = onto.transform(pixels).reshape(corners.shape).round().astype(int).tolist()
        strength = np.abs(np.ma.asarray(mesh.norm(values), float).filled(0.5) - 0.5)
        names = _named(mesh)
        for row, column in np.argwhere(np.isfinite(values)).tolist():
            middle = (corners[row, column] + corners[row + 1, column + 1]) / 2
            said = _reading(axes, middle, number(float(values[row, column]), 3))
            (left, top), (right, bottom) = places[row][column], places[row + 1][column + 1]
            path = f"M{left} {top}H{right}V{bottom}H{left}"
            title = _title([(names[0] if names else "", said)])
            yield float(strength[row, column]), f'<path d="{path}">{title}</path>'


def _strongest(cells: list[tuple[float, str]]) -> list[str]:
    """All cells, or those that stand out most, in their order."""
    if len(cells) > _MOST:
        least = sorted((strength for strength, _ in cells), reverse=True)[_MOST - 1]
        cells = [cell for cell in cells if cell[0] >= least][:_MOST]
    return [place for _, place in cells]


def _reading(axes: Axes, point: np.ndarray, otherwise: str = "") -> str:
    """How a point reads, by the axes' own words where they have any."""
    x, y = (float(value) for value in point)
    if "format_coord" in vars(axes):
        return axes.format_coord(x, y)
    around: Any = axes.get_figure()
    return otherwise or at(x, y, where=head(axes.get_xlabel() or around.get_supxlabel()))


def _title(said: list[tuple[str, str]]) -> str:
    """Names and readings as a tooltip: a line each, below the position that they share."""
    positions = {reading.rpartition(": ")[0] for _, reading in said}
    shared = positions.pop() if len(said) > 1 and len(positions) == 1 else ""
    if shared:
        values = [(name, reading.rpartition(": ")[2]) for name, reading in said]
        texts = [shared, *(": ".join(filter(None, each)) for each in values)]
    else:
        texts = [" · ".join(filter(None, each)) for each in said]
    if len(texts) > _MOST_LINES:
        texts = [*texts[: _MOST_LINES - 1], f"and {len(texts) - _MOST_LINES + 1} more"]
    lines = "\n".join(texts)
    return f"<title>{html.escape(lines, quote=False)}</title>"
