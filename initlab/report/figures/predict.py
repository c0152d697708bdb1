"""The expected profile of a model that isn't built yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from initlab.judge.theory import Prediction, Setting
from initlab.judge.words import number
from initlab.report.theme import Label, block_axis, log_axis, log_limits, new_figure, place_labels, style, unlabelled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Line = tuple[str, str, np.ndarray, np.ndarray]  # token of its colour, text of its label, x, y


def draw_profile(recipe: str, setting: Setting, expected: Prediction, theme: str) -> Figure:
    """Variance of the stream, of what the branches write, and of the gradient, by block."""
    L = len(setting.blocks)
    after = np.arange(L + 1)
    stream = _along(expected.var, L)
    gradient = _along(expected.grad, L)
    block = np.arange(1, L + 1)
    writes = {site: np.array([expected.var[site, layer] for layer in range(L)]) for site in ("attn_out", "mlp_out")}
    relative = gradient / gradient[-1] if gradient[-1] > 0 else gradient * np.nan
    panels: list[tuple[str, list[Line]]] = [
        ("residual stream, variance", [("s1", _times(stream), after, stream)]),
        (
            "branch writes, variance",
            [("s2", "attention", block, writes["attn_out"]), ("s3", "MLP", block, writes["mlp_out"])],
        ),
        ("gradient variance ÷ last block's", [("s4", _times(relative[::-1]), after[::-1], relative[::-1])]),
    ]
    title = f"{recipe}: expected at init, {L} blocks of {setting.n_embd}, T = {setting.text.block_size}"
    with style(theme) as palette:
        figure = new_figure(3.6, title)
        labelled = []
        for axes, (name, lines) in zip(figure.subplots(1, 3), panels, strict=True):
            limits = log_limits(np.concatenate([line[3] for line in lines]))
            labelled.append((axes, [_draw(axes, line, palette, limits[0]) for line in lines]))
            axes.set_title(name, fontsize=9)
            log_axis(axes, "y", limits)
            block_axis(axes, 0, L, most=4)
            axes.xaxis.set_inverted(bool(lines[0][2][0] > lines[0][2][-1]))
        about = "after block (0 = embedding); the gradient from the output back"
        figure.supxlabel(about, fontsize=9.5, color=palette["muted"])
        place_labels(figure, labelled, palette)
    return figure


def _along(values: dict[tuple[str, int | None], float], L: int) -> np.ndarray:
    return np.array([values["embed", None], *(values["resid_post", layer] for layer in range(L))])


def _times(values: np.ndarray) -> str:
    """How much larger the last value is than the first."""
    return f"×{number(values[-1] / values[0], 3)}" if values[0] > 0 and np.isfinite(values[0]) else ""


def _draw(axes: Axes, line: Line, palette: dict[str, str], low: float) -> Label:
    """One line, and the label of its last point; a value that a log axis can't show is named at the axis' low end."""
    import seaborn as sns

    token, text, x, y = line
    shown = np.where(np.isfinite(y) & (y > 0), y, np.nan)
    with unlabelled(axes):
        sns.lineplot(
            x=x,
            y=shown,
            estimator=None,
            color=palette[token],
            marker="o" if len(x) <= 25 else None,
            markersize=4.2,
            markeredgecolor=palette["bg"],
            markeredgewidth=0.4,
            ax=axes,
        )
    if np.isfinite(shown[-1]):
        return Label(float(x[-1]), float(y[-1]), text, token)
    return Label(float(x[-1]), low, f"{text} ({number(y[-1])})", token)
