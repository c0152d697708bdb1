"""Layer × role and layer × site, one panel per recipe on one shared colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from initlab.judge.words import number
from initlab.report import hover
from initlab.report.figures import figure
from initlab.report.figures.data import grid_of
from initlab.report.theme import ON_CELL, STRONG, block_axis, diverging, new_figure, settle, short, style, unlabelled
from initlab.report.view import View, view
from initlab.rundir import Run
from initlab.schema import SITES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = (
    "attn_qkv",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_out",
    "mlp_in",
    "mlp_gate",
    "mlp_out",
    "norm_gain",
    "norm_bias",
    "bias",
)
# Ends of the site map's scale, in factors of 2: the first that holds every cell. Beyond 16 times the prediction, how
# far doesn't matter.
_SITE_LIMITS = (1.0, 2.0, 4.0)
Grids = dict[str, np.ndarray]


def _role_grids(shown: View) -> tuple[list[str], Grids, float]:
    """log10 of gradient rms / weight rms, relative to the median over all cells; that median is returned too."""
    keys = ["recipe", "run_id", "layer", "module"]
    sides = [
        shown.records[(shown.records["kind"] == kind) & (shown.records["n_layer"] == shown.n_layer)]
        .dropna(subset=["layer"])
        .drop_duplicates(keys)
        for kind in ("weight_grad", "weight")
    ]
    both = sides[0].merge(sides[1][[*keys, "rms"]], on=keys, suffixes=("", "_weight"))
    grad, weight = both["rms"].to_numpy(float), both["rms_weight"].to_numpy(float)
    # A parameter that starts at zero (a bias) has no ratio; its cell stays empty.
    usable = (grad > 0) & (weight > 0) & np.isfinite(grad) & np.isfinite(weight)
    both, ratio = both[usable], np.log10(grad[usable] / weight[usable])
    if both.empty:
        return [], {}, math.nan
    roles = [role for role in ROLES if (both["role"] == role).any()]
    roles += sorted(str(role) for role in set(both["role"].dropna()) - set(roles))
    centre = float(np.median(ratio))
    return roles, _grids(shown, both, roles, "role", ratio - centre), 10**centre


def _site_grids(shown: View) -> tuple[list[str], Grids]:
    rows = shown.records[(shown.records["kind"] == "activation") & (shown.records["n_layer"] == shown.n_layer)]
    usable = (rows["expected_var"] > 0) & (rows["var"] > 0) & np.isfinite(rows["var"]) & rows["layer"].notna()
    rows = rows[usable]
    sites = [site for site in SITES if (rows["site"] == site).any()]
    return sites, _grids(shown, rows, sites, "site", np.log2(rows["var"] / rows["expected_var"]))


def _grids(shown: View, rows: pd.DataFrame, names: list[str], by: str, values: np.ndarray | pd.Series) -> Grids:
    rows = rows.assign(value=np.asarray(values, dtype=float))
    found = {}
    for recipe in shown.recipes:
        own = rows[rows["recipe"] == recipe]
        grid = grid_of(own, names, by, shown.n_layer, own["value"])
        if grid is not None:
            found[recipe] = grid
    return found


def needs_gradient_roles(run: Run) -> str:
    return "" if _role_grids(view(run))[1] else "no weight has both a non-zero value and a non-zero gradient on record"


def needs_site_map(run: Run) -> str:
    return "" if _site_grids(view(run))[1] else "no activation has a closed-form prediction to compare with"


def describe_gradient_roles(run: Run) -> str:
    shown = view(run)
    roles, grids, centre = _role_grids(shown)
    parts = []
    for recipe, grid in grids.items():
        low, high = np.unravel_index(np.nanargmin(grid), grid.shape), np.unravel_index(np.nanargmax(grid), grid.shape)
        parts.append(
            f"{recipe} from ×{number(10 ** float(grid[low]))} ({roles[low[0]]}, block {low[1]}) "
            f"to ×{number(10 ** float(grid[high]))} ({roles[high[0]]}, block {high[1]})"
        )
    return (
        f"Gradient rms over weight rms in the {shown.n_layer}-block model, relative to the median "
        f"{number(centre)} of all cells: {'; '.join(parts)}."
    )


@figure(
    "gradient-roles",
    place=160,
    title="Gradient by role",
    question="Does any kind of weight get a gradient out of proportion to its own size? "
    "A small dot: weights that start at zero.",
    needs=needs_gradient_roles,
    words=describe_gradient_roles,
)
def draw_gradient_roles(run: Run, theme: str) -> Figure:
    shown = view(run)
    roles, grids, centre = _role_grids(shown)
    reach = max(float(np.nanmax(np.abs(grid))) for grid in grids.values())
    limit = min(max(math.ceil(reach), 1), 4)
    ticks = {float(tick): _times(10.0**tick) for tick in range(-limit, limit + 1)}
    bar = f"gradient rms / weight rms, relative to the median {number(centre)}"
    return _draw(grids, roles, 10, limit, ticks, bar, "Gradient by role", theme)


def describe_site_map(run: Run) -> str:
    shown = view(run)
    sites, grids = _site_grids(shown)
    parts = []
    for recipe, grid in grids.items():
        at = np.unravel_index(np.nanargmax(np.abs(grid)), grid.shape)
        parts.append(f"{recipe} ×{number(2 ** float(grid[at]))} at {sites[at[0]]}, block {at[1]}")
    return f"Furthest from the closed form in the {shown.n_layer}-block model: {'; '.join(parts)}."


@figure(
    "site-map",
    place=190,
    title="Site map",
    question="Where does the model not behave as its weights imply? "
    "Uncoloured: as the closed form says; a small dot: nothing to compare.",
    needs=needs_site_map,
    words=describe_site_map,
)
def draw_site_map(run: Run, theme: str) -> Figure:
    sites, grids = _site_grids(view(run))
    farthest = max(float(np.nanmax(np.abs(grid))) for grid in grids.values())
    limit = next((limit for limit in _SITE_LIMITS if farthest <= limit), _SITE_LIMITS[-1])
    ticks = {share * limit: _times(2.0 ** (share * limit)) for share in (-1, -0.5, 0, 0.5, 1)}
    return _draw(grids, sites, 2, limit, ticks, "measured variance / closed form", "Site map", theme)


def _times(factor: float) -> str:
    times, size = ("×", factor) if factor >= 1 else ("÷", 1 / factor)
    return f"{times}{size:.0f}" if size >= 100 else f"{times}{size:.3g}"


def _draw(
    grids: Grids,
    rows: Sequence[str],
    base: int,
    limit: float,
    ticks: dict[float, str],
    bar: str,
    title: str,
    theme: str,
) -> Figure:
    import seaborn as sns

    columns = min(3, len(grids))
    lines = math.ceil(len(grids) / columns)
    with style(theme) as palette:
        figure = new_figure(lines * (0.55 + 0.185 * len(rows)) + 0.95, title)
        axes_grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
        for axes in axes_grid.flat[len(grids) :]:
            axes.set_visible(False)
        for index, (axes, (recipe, grid)) in enumerate(zip(axes_grid.flat, grids.items(), strict=False)):
            known = np.isfinite(grid)
            with unlabelled(axes):
                sns.heatmap(
                    grid,
                    mask=~known,
                    cmap=diverging(),
                    vmin=-limit,
                    vmax=limit,
                    cbar=False,
                    annot=_texts(grid, base) if columns * grid.shape[1] <= 18 else None,
                    fmt="",
                    annot_kws={"fontsize": 7},
                    rasterized=True,  # as paths it is seven times as large
                    xticklabels=False,
                    yticklabels=False,
                    ax=axes,
                )
            hover.read(axes, partial(_of_cell, grid=grid, rows=rows, base=base))
            for text, value in zip(axes.texts, grid[known], strict=False):
                text.set_color(ON_CELL if abs(value) > STRONG * limit else palette["ink"])
            axes.set_title(short(recipe))
            axes.grid(False)
            axes.spines[:].set(visible=True, color=palette["grid"])
            holes = np.argwhere(~known) + 0.5
            axes.plot(holes[:, 1], holes[:, 0], ".", color=palette["faint"], markersize=2.5)
            axes.tick_params(length=0)
            axes.set_yticks(np.arange(len(rows)) + 0.5, labels=rows, fontsize=8.5)
            block_axis(axes, 0, grid.shape[1] - 1, most=8, offset=0.5)
            if index >= len(grids) - columns:
                axes.set_xlabel("block")
        _colour_bar(figure, axes_grid, limit, ticks, bar, palette)
        settle(figure)
    return figure


def _of_cell(x: float, y: float, *, grid: np.ndarray, rows: Sequence[str], base: int) -> str:
    """How a cell reads that is pointed at."""
    row, block = int(y), int(x)
    return f"{rows[row]}, block {block}: ×{number(base ** float(grid[row, block]), 3)}"


def _texts(grid: np.ndarray, base: int) -> np.ndarray:
    """What each cell says: how many times as large."""
    return np.array([[number(base ** float(value)) for value in row] for row in grid])


def _colour_bar(
    figure: Figure, axes_grid: np.ndarray, limit: float, ticks: dict[float, str], text: str, palette: dict[str, str]
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(-limit, limit), diverging()),
        ax=axes_grid,
        orientation="horizontal",
        shrink=0.5,
        aspect=45,
        pad=0.04,
    )
    # The bar's own mesh would be 256 paths in the SVG; one image row says the same.
    if bar.solids is not None:
        bar.solids.remove()
    bar.ax.imshow(
        np.linspace(-limit, limit, 256)[None],
        cmap=diverging(),
        aspect="auto",
        extent=(-limit, limit, *bar.ax.get_ylim()),
    )
    bar.outline.set_visible(False)
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.set_label(text, color=palette["muted"], fontsize=9)
