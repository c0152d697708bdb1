"""Slopes as rows of a table: shared by the page and the terminal."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass

import pandas as pd

from initlab.judge.slopes import AXES, diverged, slopes
from initlab.judge.words import plural, signed
from initlab.report.values import Brief, Table, TableCell
from initlab.rundir import Run

# one site of each kind; q, k and v are alike, as are the states of the stream inside a block
KEY_SITES = ("embed", "q", "attn_out", "mlp_pre", "mlp_out", "resid_post", "logits")
_KEY_ROLES = ("mlp_in", "mlp_out")
_MOVED = {"change": "{} − init", "effective": "{}: ΔW·x", "propagating": "{}: W·Δx"}
_ONE_SEED = "± half the 95 % interval of the fit, which needs three sizes (--seeds 3 gives one over seeds)"
_MOST_STEPS = 4
_MOST_ROWS = 12  # of a recipe, where nobody chose


@dataclass(frozen=True, slots=True)
class Row:
    """One site of one recipe; `cells` are a slope and half its interval by step."""

    recipe: str
    name: str
    cells: dict[int, tuple[float, float]]
    expected: float  # of the closed form at step 0
    verdict: str


@dataclass(frozen=True, slots=True)
class SlopeTable:
    """The slopes over one axis."""

    axis: str
    steps: list[int]
    rows: list[Row]
    left_out: int  # rows that aren't shown

    @property
    def foresees(self) -> bool:
        """Whether there is a closed form to compare with."""
        return any(math.isfinite(row.expected) for row in self.rows)


def slope_tables(found: pd.DataFrame, modules: str | None = None, *, every: bool = False) -> list[SlopeTable]:
    """A table per axis: the sites that `modules`, a glob, names; by default a selection; with `every`, all of them."""
    tables = []
    for axis in AXES:
        own = found[found["axis"] == axis]
        if own.empty:
            continue
        steps = shown_steps(own["step"].unique())
        rows, left_out = [], 0
        for recipe, of_recipe in own.groupby("recipe", observed=True, sort=False):
            sites = [
                (str(kind), str(site), _row(str(recipe), str(kind), str(module or site), group, steps))
                for (kind, site, module), group in of_recipe.groupby(
                    ["kind", "site", "module"], observed=True, sort=False
                )
            ]
            chosen = _chosen(sites, modules, every)
            left_out += len(sites) - len(chosen)
            rows += chosen
        tables.append(SlopeTable(axis, steps, rows, left_out))
    return tables


def shown_steps(steps: object, most: int = _MOST_STEPS) -> list[int]:
    """The first step, the last, and some between."""
    found = sorted({int(step) for step in steps})  # type: ignore[attr-defined]
    if len(found) <= most:
        return found
    return [found[round(place * (len(found) - 1) / (most - 1))] for place in range(most)]


def slope_text(slope: float, half: float, decimals: int = 2) -> str:
    """`+1.98 ±0.05`, the 95 % interval's half; a dash where no slope could be fitted."""
    if not math.isfinite(slope):
        return "–"
    return signed(slope, decimals) + (f" ±{half:.{decimals}f}" if math.isfinite(half) else "")


def lost(run: Run) -> list[str]:
    """A sentence for every size at which a loss stopped being finite; those models are in no slope."""
    return [
        f"{row.recipe} at n_embd {row.n_embd}, n_layer {row.n_layer}: the loss isn't finite from step {row.step} on "
        f"({row.seeds} of {plural(row.of, 'seed')}); fitted without"
        for row in diverged(run.tables.summary).itertuples(index=False)
    ]


def _chosen(found: list[tuple[str, str, Row]], modules: str | None, every: bool) -> list[Row]:
    if every:
        return [row for _, _, row in found]
    if modules is not None:
        return [row for _, site, row in found if fnmatch.fnmatch(row.name, modules) or fnmatch.fnmatch(site, modules)]
    named = [row for kind, site, row in found if site in KEY_SITES and kind == "activation"]
    changes = [row for kind, _, row in found if kind == "change"]
    changes += [row for kind, site, row in found if kind in _MOVED and site in _KEY_ROLES]
    # a model whose sites have no names has its layers
    rest = [row for kind, site, row in found if site == "module" and kind == "activation"]
    return [*named, *rest[: max(0, _MOST_ROWS - len(named) - len(changes))], *changes]


def _row(recipe: str, kind: str, name: str, group: pd.DataFrame, steps: list[int]) -> Row:
    by_step = group.set_index("step")
    cells = {
        step: (float(by_step.loc[step, "slope"]), float(by_step.loc[step, "high"] - by_step.loc[step, "slope"]))
        for step in steps
        if step in by_step.index
    }
    last = by_step.loc[by_step.index.max()]
    expected = float(by_step.loc[0, "expected"]) if 0 in by_step.index else math.nan
    verdict = str(last["verdict"]) if math.isfinite(last["slope"]) else "not fitted"
    if last["bent"]:
        verdict += f", bends {signed(last['bend'], 2)}"
    return Row(recipe, _MOVED.get(kind, "{}").format(name), cells, expected, verdict)


def brief(run: Run, modules: str | None = None) -> Brief:
    """Make the slopes of every recipe by step, as the terminal shows them.

    Args:
        run: of kind `scale`.
        modules: glob of the sites and modules to show; None for a selection.
    """
    found = slopes(run.tables.records)
    tables = slope_tables(found, modules)
    interval = "± half their 95 % interval over seeds" if (found["seeds"] > 1).any() else _ONE_SEED
    footer = (
        f"exponents of variance (half of one is the slope of mup's l1 = mean |x|) {interval}; mean over blocks, "
        "resid_post of the last; − init: change since step 0, of a matrix's output by its own update (ΔW·x) and by "
        "what it is given (W·Δx)"
    )
    if any(", bends" in row.verdict for table in tables for row in table.rows):
        footer += "; bends: the exponent changes by so much from the smallest size to the largest, so one isn't the law"
    if not any(table.rows for table in tables):
        footer = f"no site or module is named {modules}" if modules else "no slope could be fitted"
    elif left_out := sum(table.left_out for table in tables):
        footer += f"; {left_out} more rows with --modules '*'"
    return Brief([_shown(table) for table in tables], lost(run), footer)


def _shown(table: SlopeTable) -> Table:
    heads = [f"step {step}" if step else "at init" for step in table.steps]
    if table.foresees and heads:
        heads[1:1] = ["closed\nform"]
    shown = Table((f"var ∝ {table.axis}^x", *heads, f"verdict,\nstep {table.steps[-1]}"))
    previous = None
    for row in table.rows:
        if row.recipe != previous:
            shown.add(TableCell(row.recipe, strong=True))
            previous = row.recipe
        cells = [slope_text(*row.cells[step]) if step in row.cells else "" for step in table.steps]
        if table.foresees:
            cells[1:1] = [slope_text(row.expected, float("nan")) if row.expected == row.expected else ""]
        shown.add(f"  {row.name}", *cells, row.verdict)
    return shown
