"""How the pictures look: palette, matplotlib settings, ticks, and labels at line ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from initlab.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Checked numerically in the tests: text >= 4.5:1, lines >= 3:1, series apart under simulated colour blindness.
LIGHT = {
    "bg": "#ffffff",
    "card": "#f5f7f8",
    "ink": "#1d2329",
    "muted": "#55606a",
    "grid": "#dfe4e8",
    "faint": "#8a949c",
    "s1": "#0072b2",
    "s2": "#d55e00",
    "s3": "#009e73",
    "s4": "#882255",
    "error": "#b3261e",
    "warning": "#8a5a00",
    "ok": "#1b6e3c",
}
# Both ends of the diverging scale are seen against both pages; see `diverging`.
LESS, MORE, ON_CELL = "#c8660a", "#7b5fc7", "#14171a"
STRONG = 0.95  # share of it from which on a cell takes ON_CELL; below, the page shines through and its ink is readable
DARK = {
    "bg": "#14171a",
    "card": "#1c2125",
    "ink": "#e6e9ec",
    "muted": "#a9b2ba",
    "grid": "#2c3339",
    "faint": "#6f7982",
    "s1": "#5c9df5",
    "s2": "#f28e2b",
    "s3": "#b5f5dc",
    "s4": "#b5608f",
    "error": "#ff8a80",
    "warning": "#ffc24d",
    "ok": "#6fd08c",
}
THEMES = {"light": LIGHT, "dark": DARK}

WIDTH = 9.6  # inches; every figure fills the same column
HEADING_HEIGHT = 0.35  # inches above the drawing, for its title
HEADING = "heading"  # gid of that title
MAX_OVERLAID = 4  # hues that stay apart for everyone; more recipes become small multiples, not a fifth hue
_MARKERS = (
    ("o", "●"),
    ("s", "■"),
    ("^", "▲"),
    ("D", "◆"),
    ("v", "▼"),
    ("P", "✚"),
    ("X", "✖"),
    ("<", "◄"),
    (">", "►"),
)


@dataclass(frozen=True, slots=True)
class Series:
    """The look that one recipe keeps in every figure, table and chip."""

    recipe: str
    token: str
    marker: str
    glyph: str


def series(recipes: Sequence[str]) -> dict[str, Series]:
    """Give every recipe its look, by position; the first one is the baseline."""
    few = len(recipes) <= MAX_OVERLAID
    return {
        recipe: Series(recipe, f"s{index + 1}" if few else ("s2" if index else "s1"), *_MARKERS[index % len(_MARKERS)])
        for index, recipe in enumerate(recipes)
    }


def colours(theme: str) -> dict[str, str]:
    """Palette of a theme. Raises ConfigError on an unknown one."""
    if theme not in THEMES:
        raise ConfigError(f"unknown theme {theme!r}; themes: {', '.join(THEMES)}")
    return THEMES[theme]


@contextmanager
def style(theme: str) -> Iterator[dict[str, str]]:
    """Draw in a theme, leaving the user's matplotlib settings alone."""
    import matplotlib

    from initlab.report.importing import seaborn

    palette = colours(theme)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change a report
        # seaborn's colour codes («b» for its blue) would outlive the context
        seaborn().set_theme("paper", "whitegrid", color_codes=False, rc=_rc(palette))
        yield palette


def _rc(palette: dict[str, str]) -> dict[str, Any]:
    ink, muted = palette["ink"], palette["muted"]
    return {
        "figure.facecolor": palette["bg"],
        "savefig.facecolor": palette["bg"],
        "axes.facecolor": "none",
        "axes.edgecolor": muted,
        "axes.labelcolor": muted,
        "axes.titlecolor": ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlepad": 8,
        "axes.titley": 1.0,  # else it is looked for anew, above all that might reach into it, whenever axes are drawn
        "axes.labelsize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.grid.axis": "y",
        "axes.unicode_minus": False,
        "grid.color": palette["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "xtick.bottom": True,
        "text.color": ink,
        "font.size": 9.5,
        "font.family": ["DejaVu Sans"],
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "text.parse_math": False,  # a recipe id may hold a dollar sign
        "figure.constrained_layout.w_pad": 0.08,
        "svg.fonttype": "none",
        "svg.hashsalt": "initlab",
    }


def new_figure(height: float, title: str) -> Figure:
    """Make an empty figure of the common width; its title stands above the drawing, where a page can cut it off.

    Args:
        height: of the drawing, in inches.
        title: a page has it as its own heading, and leaves it away here.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    whole = height + HEADING_HEIGHT
    layout = ConstrainedLayoutEngine(rect=(0, 0, 1, height / whole))
    figure = Figure(figsize=(WIDTH, whole), layout=layout)
    heading = figure.suptitle(title, x=0.01, y=1 - 0.08 / whole, ha="left", va="top", fontsize=13, fontweight="bold")
    heading.set_in_layout(False)
    heading.set_gid(HEADING)
    return figure


@contextmanager
def unlabelled(axes: Axes) -> Iterator[Axes]:
    """Let seaborn draw without naming the axes by their columns; asking whether it may takes it a third of its time."""
    axes.set(xlabel=" ", ylabel=" ")
    yield axes
    axes.set(xlabel="", ylabel="")


def short(name: str, most: int = 32) -> str:
    """A name that leaves room for the drawing."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def tick_text(value: float) -> str:
    """A tick as a plain number, or as a power of ten where that would be long."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{value:.10f}".rstrip("0").rstrip(".")
    mantissa = round(value / 10**exponent)
    power = "10" + str(exponent).translate(_SUPERSCRIPT)
    return power if mantissa == 1 else f"{mantissa}·{power}"


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between two positive limits: 1-2-5 or 1-3 steps where few decades are shown, else decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps: list[tuple[int, ...]] = [(1, 2, 5), (1, 3), (1,)]
    if high < 8 * low:  # 1-2-5 can leave a single one
        steps.insert(0, (1, 2, 3, 5, 7))
    for mantissas in steps:
        ticks = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            return ticks
    stride = math.ceil(len(ticks) / most)
    return [tick for tick in ticks if round(math.log10(tick)) % stride == 0]


def log_limits(values: Any) -> tuple[float, float]:
    """Limits for a log axis. Never closer than a factor 4: seed noise must not fill the panel."""
    values = np.asarray(values, dtype=float)
    logs = np.log10(values[np.isfinite(values) & (values > 0)])
    if not len(logs):
        return 0.1, 10.0
    low, high = float(logs.min()), float(logs.max())
    pad = max(0.06 * (high - low), (math.log10(4) - (high - low)) / 2)
    return 10 ** (low - pad), 10 ** (high + pad)


def log_axis(axes: Axes, which: str, limits: tuple[float, float]) -> None:
    """Make one axis logarithmic with ticks a person can read."""
    from matplotlib.ticker import NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
    ticks = log_ticks(*limits)
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, labels=[tick_text(tick) for tick in ticks])


def block_axis(axes: Axes, first: int, last: int, *, most: int = 9, offset: float = 0.0) -> None:
    """Set whole-numbered ticks over blocks, the last one always among them; `offset`: where a cell's middle is."""
    span = max(last - first, 1)
    smallest = math.ceil(span / most)
    step = next((step for step in range(smallest, 2 * smallest + 1) if span % step == 0), smallest)
    # Where no step divides the span, the tick before the last one makes room for it.
    ticks = [tick for tick in range(first, last, step) if last - tick >= 0.75 * step] + [last]
    axes.set_xticks([tick + offset for tick in ticks], labels=[str(tick) for tick in ticks])


def diverging() -> Colormap:
    """Purple-orange whose middle is transparent: an image that sits on a light page as well as on a dark one."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    less, more = to_rgb(LESS), to_rgb(MORE)
    stops = [(0.0, (*less, 1.0)), (0.5, (*less, 0.0)), (0.5, (*more, 0.0)), (1.0, (*more, 1.0))]
    return LinearSegmentedColormap.from_list("puor", stops, N=255)


@dataclass(frozen=True, slots=True)
class Label:
    """Text at the right end of a line that ends at (x, y), in data coordinates."""

    x: float
    y: float
    text: str
    token: str
    muted: bool = False


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """The nearest centres to those wanted that keep their order, don't overlap, and stay within the limits."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Centre of each label if all were stacked from `low`; what is left to find is a non-decreasing shift.
    stacked, edge = {}, low
    for index in order:
        stacked[index] = edge + heights[index] / 2
        edge += heights[index]
    blocks: list[tuple[float, int]] = []  # isotonic regression: (mean shift, members)
    for index in order:
        mean, members = wanted[index] - stacked[index], 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, members = (before * count + mean * members) / (count + members), count + members
        blocks.append((mean, members))
    shifts = [mean for mean, members in blocks for _ in range(members)]
    room = max(0.0, high - edge)
    placed = {index: stacked[index] + min(max(shift, 0.0), room) for index, shift in zip(order, shifts, strict=True)}
    return [placed[index] for index in range(len(wanted))]


def place_labels(
    figure: Figure, labelled: Sequence[tuple[Axes, Sequence[Label]]], palette: dict[str, str], *, size: float = 9.5
) -> None:
    """Write labels to the right of axes, dodging each other, each tied to its line by a leader of its colour.

    Fixes the figure's layout, so it comes last.
    """
    from matplotlib.transforms import ScaledTranslation

    shift = ScaledTranslation(14 / 72, 0, figure.dpi_scale_trans)
    written = []
    for axes, labels in labelled:
        place = axes.transAxes + shift
        for label in labels:
            colour = palette["muted" if label.muted else "ink"]
            written.append(axes.text(1, 0.5, label.text, transform=place, va="center", color=colour, fontsize=size))
    settle(figure)  # makes room for the texts; only then are pixels known
    texts = iter(written)
    point = figure.dpi / 72
    for axes, labels in labelled:
        box = axes.get_window_extent()
        ends = [axes.transAxes.inverted().transform(axes.transData.transform((at.x, at.y))) for at in labels]
        heights = [size * 1.3 * point / box.height * (1 + label.text.count("\n")) for label in labels]
        placed = spread([float(end[1]) for end in ends], heights, 0, 1)
        reach = 1 + 11 * point / box.width
        for label, end, y in zip(labels, ends, placed, strict=True):
            next(texts).set_y(y)
            colour = palette["muted" if label.muted else label.token]
            # A line that stops early must not seem to go on to its label.
            dashes = "-" if end[0] > 0.9 else (0, (1, 3))
            axes.plot(
                [end[0], reach],
                [end[1], y],
                color=colour,
                linewidth=0.8,
                linestyle=dashes,
                transform=axes.transAxes,
                clip_on=False,
                zorder=1,
            )


def settle(figure: Figure) -> None:
    """Lay a figure out once and for all: saving it lays it out again otherwise, which is most of the time it takes."""
    engine = figure.get_layout_engine()
    if engine is not None:
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.get_label_text():  # else its place is looked for, and again for every file
                    axis.set_label_coords(0, 0)
        engine.execute(figure)
    figure.set_layout_engine(None)  # "none" leaves a placeholder, for which every file is drawn twice
