"""Slopes as rows of a table: shared by the page and the terminal."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass

import pandas as pd

from initlab.judge.slopes import AXES, diverged
from initlab.report.digest import plural, signed
from initlab.rundir import Run

# one site of each kind; q, k and v are alike, as are the states of the stream inside a block
KEY_SITES = ("embed", "q", "attn_out", "mlp_pre", "mlp_out", "resid_post", "logits")
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


def slope_tables(slopes: pd.DataFrame, modules: str | None = None, *, every: bool = False) -> list[SlopeTable]:
    """A table per axis: the sites that `modules`, a glob, names; by default a selection; with `every`, all of them."""
    tables = []
    for axis in AXES:
        own = slopes[slopes["axis"] == axis]
        if own.empty:
            continue
        steps = shown_steps(own["step"].unique())
        rows, left_out = [], 0
        for recipe, of_recipe in own.groupby("recipe", observed=True, sort=False):
            found = [
                (str(kind), str(site), _row(str(recipe), str(kind), str(module or site), group, steps))
                for (kind, site, module), group in of_recipe.groupby(
                    ["kind", "site", "module"], observed=True, sort=False
                )
            ]
            chosen = _chosen(found, modules, every)
            left_out += len(found) - len(chosen)
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
    named = [row for kind, site, row in found if site in KEY_SITES and kind != "change"]
    changes = [row for kind, _, row in found if kind == "change"]
    # a model whose sites have no names has its layers
    rest = [row for kind, site, row in found if site == "module" and kind != "change"]
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
    return Row(recipe, f"{name} − init" if kind == "change" else name, cells, expected, verdict)
