"""The part of a run that figures and key numbers show: one step, one width, every depth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.rules.depth import BRANCHES, depth_exponents
from initlab.judge.rules.fresh import before_training
from initlab.rundir import Run


def recipes_of(run: Run) -> list[str]:
    """Recipe ids in the order they were given, then any that the tables hold besides; the first is the baseline."""
    planned = [str(recipe) for recipe in run.manifest["config"].get("recipes", [])]
    seen = [str(recipe) for recipe in run.tables.summary["recipe"].dropna().unique()]
    return list(dict.fromkeys([*planned, *seen]))


@dataclass(frozen=True)
class View:
    """The part of a run that figures show: one step, one width, every depth."""

    recipes: list[str]
    depths: list[int]
    n_embd: int
    records: pd.DataFrame
    heads: pd.DataFrame
    summary: pd.DataFrame

    @property
    def n_layer(self) -> int:
        """The deepest model."""
        return max(self.depths, default=0)

    def rows(self, kind: str, sites: Iterable[str], n_layer: int | None = None) -> pd.DataFrame:
        """Records of a kind at some sites, of one depth or of all."""
        table = self.records
        keep = (table["kind"] == kind) & table["site"].isin(list(sites))
        if n_layer is not None:
            keep &= table["n_layer"] == n_layer
        return table[keep]


@kept
def view(run: Run) -> View:
    """Pick the first step, before training, and of the widths that were measured at the most depths the largest."""
    run = before_training(run)
    summary = run.tables.summary
    depths_at = summary.groupby("n_embd")["n_layer"].nunique()
    width = int(depths_at.index[depths_at == depths_at.max()].max()) if len(summary) else 0
    step = int(summary["step"].min()) if len(summary) else 0
    parts = {}
    for name in ("records", "heads", "summary"):
        frame = getattr(run.tables, name)
        parts[name] = frame[(frame["n_embd"] == width) & (frame["step"] == step)]
    depths = sorted(int(depth) for depth in parts["summary"]["n_layer"].unique())
    present = set(parts["summary"]["recipe"])
    return View([recipe for recipe in recipes_of(run) if recipe in present], depths, width, **parts)


@kept
def exponents(run: Run) -> pd.DataFrame:
    """Depth exponents of the branch writes; a model with a write that isn't finite takes no part in the fit."""
    shown = view(run)
    writes = shown.rows("activation", BRANCHES)
    broken = writes.loc[~np.isfinite(writes["var"]), "run_id"]
    return depth_exponents(writes[~writes["run_id"].isin(broken)])


def exponent_text(slope: float, stderr: float) -> str:
    """`L^-1.00 ± 0.02`."""
    error = f" ± {stderr:.2f}" if math.isfinite(stderr) else ""
    return f"L^{round(slope, 2) + 0.0:.2f}{error}"


@dataclass(frozen=True, slots=True)
class Overview:
    """The row of one recipe: what its deepest model does, and the exponents over all depths."""

    recipe: str
    embed_var: float | None
    last_var: float | None
    slopes: dict[str, tuple[float, float]]  # site -> slope, standard error
    grad_ratio: float | None  # variance of the gradient at the embedding / after the last block
    excess_loss: float | None


@kept
def overview(run: Run) -> list[Overview]:
    """One row per recipe, baseline first."""
    shown = view(run)
    fits = exponents(run)
    rows = []
    for recipe in recipes_of(run):
        own = shown.summary[shown.summary["recipe"] == recipe]
        deepest = int(own["n_layer"].max()) if len(own) else 0
        own = own[own["n_layer"] == deepest]
        slopes = {
            str(fit.site): (float(fit.slope), float(fit.stderr))
            for fit in fits[fits["recipe"] == recipe].itertuples(index=False)
        }
        first, last = _ends(shown, recipe, deepest, "activation")
        grad_first, grad_last = _ends(shown, recipe, deepest, "grad")
        rows.append(
            Overview(
                recipe=recipe,
                embed_var=first,
                last_var=last,
                slopes=slopes,
                grad_ratio=grad_first / grad_last if grad_first is not None and grad_last else None,
                excess_loss=middle(own["loss"] - own["ln_vocab"]),
            )
        )
    return rows


def _ends(shown: View, recipe: str, n_layer: int, kind: str) -> tuple[float | None, float | None]:
    rows = shown.rows(kind, ["embed", "resid_post"], n_layer)
    rows = rows[rows["recipe"] == recipe]
    last = rows[(rows["site"] == "resid_post") & (rows["layer"] == n_layer - 1)]
    return middle(rows.loc[rows["site"] == "embed", "var"]), middle(last["var"])


def middle(values: pd.Series) -> float | None:
    """Median over seeds; NaN as soon as one seed is NaN, None without rows."""
    return float(np.median(values.to_numpy(float))) if len(values) else None


def steps_of(run: Run) -> list[int]:
    """Steps in the tables, in order; [0] for a run without any."""
    return sorted(int(step) for step in run.tables.summary["step"].unique()) or [0]
