"""The pictures of the note's report that no figure of initlab shows: stds against formulas, growth against depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.report.theme import Label, log_axis, log_limits, new_figure, place_labels, series, style
from nanogpt_note.evidence import OUTPUTS, Evidence, growth, stds, warmup_gains

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROLES = ("token_embed", "pos_embed", "attn_qkv", "attn_out", "mlp_in", "mlp_out")
_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0.02·√(2/n_layer)": lambda depth: 0.02 * np.sqrt(2 / depth),
    "0.02/√n_layer": lambda depth: 0.02 / np.sqrt(depth),
    "0.02/√(2·n_layer)": lambda depth: 0.02 / np.sqrt(2 * depth),
    "0.02 × 0.02": lambda depth: np.full_like(depth, 4e-4),
}


def weights(evidence: Evidence, theme: str) -> Figure:
    """std found in the weights of nanogpt, by role."""
    with style(theme) as palette:
        figure = new_figure(2.9, "What nanogpt draws")
        axes = figure.subplots()
        for run, marker, token in ((evidence.narrow, "o", "s1"), (evidence.wide, "D", "s2")):
            width = int(run.records["n_embd"].iloc[0])
            for place, role in enumerate(_ROLES):
                found = stds(run, "nanogpt", role)
                label = f"n_embd {width}" if place == 0 else None
                offset = -0.12 if token == "s1" else 0.12
                axes.plot(found["std"], np.full(len(found), place + offset), marker, color=palette[token], label=label)
        axes.axvline(0.02, color=palette["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
        axes.set_yticks(range(len(_ROLES)), labels=_ROLES)
        axes.set_ylim(len(_ROLES) - 0.5, -0.5)
        axes.set_xlim(0, 0.024)
        depths = evidence.narrow.records["n_layer"]
        axes.set_xlabel(f"std of the weights; a mark per depth, {depths.min()} to {depths.max()} blocks")
        axes.legend(frameon=False, loc="upper left", fontsize=8.5)
        return figure


def projections(evidence: Evidence, theme: str) -> Figure:
    """std of the output projections against depth, with every formula that circulates."""
    found = pd.concat([stds(run, "nanogpt", role) for run in (evidence.narrow, evidence.wide) for role in OUTPUTS])
    with style(theme) as palette:
        figure = new_figure(3.6, "Output projections against depth")
        axes = figure.subplots()
        depths = np.array(sorted(found["n_layer"].unique()), dtype=float)
        labels = []
        for name, formula in _FORMULAS.items():
            curve = formula(depths)
            ours = name == "0.02/√(2·n_layer)"
            axes.plot(depths, curve, color=palette["s1" if ours else "muted"], linewidth=1.1, linestyle=(0, (4, 2.5)))
            labels.append(Label(depths[-1], float(curve[-1]), name, "s1" if ours else "muted", muted=not ours))
        axes.plot(found["n_layer"], found["std"], "o", color=palette["s1"])
        log_axis(axes, "y", log_limits([3e-4, 0.02]))
        _depth_axis(axes, depths)
        axes.set_ylabel("std")
        axes.set_xlabel("n_layer · points: found in nanogpt's attn.c_proj and mlp.c_proj; lines: formulas")
        place_labels(figure, [(axes, labels)], palette)
        return figure


def stream_growth(evidence: Evidence, theme: str) -> Figure:
    """Variance after the last block ÷ of the embedding, against depth, at both widths."""
    runs = (evidence.narrow, evidence.wide)
    recipes = [str(recipe) for recipe in evidence.narrow.run.manifest["config"]["recipes"]]
    looks = series(recipes[:1] + [recipe for recipe in recipes[1:] if recipe in _SHOWN])
    with style(theme) as palette:
        figure = new_figure(4.0, "Growth of the stream against depth")
        grid = figure.subplots(1, 2, sharey=True)
        pending, everything = [], []
        for axes, run in zip(grid, runs, strict=True):
            found = growth(run)
            labels = []
            for recipe, look in looks.items():
                own = found[found["recipe"] == recipe].groupby("n_layer")[["var", "expected_var"]].mean()
                if own.empty:
                    continue
                everything += [*own["var"], *own["expected_var"]]
                axes.plot(own.index, own["var"], color=palette[look.token], marker=look.marker)
                axes.plot(own.index, own["expected_var"], color=palette[look.token], linestyle=(0, (4, 2.5)), lw=1.1)
                labels.append(Label(float(own.index[-1]), float(own["var"].iloc[-1]), recipe, look.token))
            _depth_axis(axes, np.array(sorted(found["n_layer"].unique()), dtype=float))
            axes.set_title(f"n_embd {int(run.records['n_embd'].iloc[0])}")
            pending.append((axes, labels))
        log_axis(grid[0], "y", log_limits(everything))
        grid[0].set_ylabel("variance after the last block ÷ of the embedding")
        figure.supxlabel("n_layer · dashed: closed form", fontsize=9.5, color=palette["muted"])
        place_labels(figure, pending[-1:] if len(looks) < 3 else pending, palette, size=8.5)
        return figure


_SHOWN = ("nanogpt-no-depth-scale", "zero-out", "torch-default")


def warmup_gain(evidence: Evidence, theme: str) -> Figure:
    """Loss without warmup − loss with, of nanogpt and others, by rate, a panel per depth."""
    assert evidence.trained is not None
    gains = warmup_gains(evidence.trained.runs)
    recipes = [str(recipe) for recipe in evidence.trained.run.manifest["config"]["recipes"]]
    shown = [recipe for recipe in recipes if recipe in ("nanogpt", *_SHOWN)]
    looks = series(shown)
    depths = sorted(gains["n_layer"].unique())
    rates = sorted(gains["lr"].unique())
    with style(theme) as palette:
        figure = new_figure(3.8, "What warmup is worth")
        grid = figure.subplots(1, len(depths), sharey=True, squeeze=False)[0]
        for axes, depth in zip(grid, depths, strict=True):
            axes.axhline(0, color=palette["muted"], linewidth=0.8)
            for place, (recipe, look) in enumerate(looks.items()):
                own = gains[(gains["recipe"] == recipe) & (gains["n_layer"] == depth)].sort_values("lr")
                x = np.array([rates.index(rate) for rate in own["lr"]]) + 0.14 * (place - (len(looks) - 1) / 2)
                bars = [own["mean"] - own["low"], own["high"] - own["mean"]]
                axes.errorbar(
                    x, own["mean"], yerr=bars, fmt=look.marker, color=palette[look.token], elinewidth=1.1, label=recipe
                )
            axes.set_xticks(range(len(rates)), labels=[f"{rate:g}" for rate in rates])
            axes.set_xlim(-0.6, len(rates) - 0.4)
            axes.set_title(f"{depth} blocks")
        grid[0].set_ylabel("validation loss without − with warmup, nats")
        grid[0].legend(frameon=False, fontsize=8.5, loc="upper left")
        figure.supxlabel("peak learning rate · bars: 95 % t-interval over seeds", fontsize=9.5, color=palette["muted"])
        return figure


def _depth_axis(axes: Axes, depths: np.ndarray) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(depths, labels=[f"{depth:g}" for depth in depths])
    axes.set_xlim(depths[0] / 1.08, depths[-1] * 1.08)


FIGURES: dict[str, Callable[[Evidence, str], Figure]] = {
    "weights": weights,
    "projections": projections,
    "growth": stream_growth,
    "warmup-gain": warmup_gain,
}
