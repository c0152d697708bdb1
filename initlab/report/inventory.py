"""What was measured, as tables of the page: the recipes' draws, the sites that were seen, the models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from initlab import schema
from initlab.judge.words import number, trimmed
from initlab.report.view import view
from initlab.rundir import Run

_MOST_ROWS = 200  # of the summary table; the CSV file has them all


def recipe_table(run: Run, recipes: Sequence[str]) -> dict[str, Any]:
    """role -> recipe -> what its weights are drawn from, at the width the figures show."""
    shown = [recipe for recipe in recipes if (run.manifest.get("recipes") or {}).get(recipe, {}).get("rows")]
    n_embd = view(run).n_embd
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    widths, depths = set(), set()
    for recipe in shown:
        for row in run.manifest["recipes"][recipe]["rows"]:
            widths.add(row["n_embd"])
            depths.add(row["n_layer"])
            if row["n_embd"] == n_embd:
                rows.setdefault(row["role"], {}).setdefault(recipe, []).append(row)
    table = {role: {recipe: _draws(found) for recipe, found in cells.items()} for role, cells in rows.items()}
    return {
        "recipes": shown,
        "rows": table,
        "n_embd": n_embd,
        "one_width": len(widths) < 2,
        "depths": ", ".join(map(str, sorted(depths))),
    }


def _draws(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Distribution, formulas and values of one role: values once if they don't depend on depth."""
    kinds = dict.fromkeys(str(row["distribution"]) for row in rows)
    formulas = dict.fromkeys(str(row["formula"]) for row in rows)
    key = "mean" if set(kinds) == {"constant"} else "std"
    by_depth: dict[int, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["n_layer"]):
        by_depth.setdefault(row["n_layer"], []).append(float(row[key]))
    texts = [_value_range(values) for values in by_depth.values()]
    return {
        "kind": ", ".join(kinds),
        "formula": "; ".join(formulas),
        "value": texts[0] if len(set(texts)) == 1 else " · ".join(texts),
    }


def _value_range(values: Sequence[float]) -> str:
    low, high = trimmed(min(values)), trimmed(max(values))
    return low if low == high else f"{low}–{high}"


def coverage_table(coverage: pd.DataFrame) -> dict[str, Any]:
    """Sites over all cells; those that were seen less often than expected first."""
    rows = []
    for (kind, site), group in coverage.groupby(["kind", "site"], observed=True, sort=False, dropna=False):
        notes = [str(note) for note in group["note"].dropna().unique() if note]
        rows.append(
            {
                "kind": kind,
                "site": site,
                "expected": int(group["expected"].sum()),
                "fired": int(group["fired"].sum()),
                "note": "; ".join(notes),
            }
        )
    short = [row for row in rows if row["fired"] < row["expected"]]
    return {"rows": short + [row for row in rows if row not in short], "short": short}


_CELL_COLUMNS = (
    "recipe",
    "n_layer",
    "n_embd",
    "seed",
    "step",
    "n_params",
    "loss",
    "ln_vocab",
    "expected_loss",
    "logit_std",
    "own_logit",
    "token_cosine",
    "token_position_ratio",
    "dead_frac",
    "seconds",
)
_LOSSES = ("loss", "ln_vocab", "expected_loss")


def cell_table(summary: pd.DataFrame) -> dict[str, Any]:
    """The summary's columns that a reader wants, with their meanings; the first rows of many."""
    rows = []
    columns = _CELL_COLUMNS if summary["step"].nunique() < 2 else ("step", *_CELL_COLUMNS)
    for row in summary[list(columns)].head(_MOST_ROWS).itertuples(index=False):
        rows.append([_shown(name, value) for name, value in zip(columns, row, strict=True)])
    meanings = [schema.SUMMARY[name].meaning for name in columns]
    return {"heads": list(zip(columns, meanings, strict=True)), "rows": rows}


def _shown(name: str, value: Any) -> str:
    if isinstance(value, float | np.floating):
        # what inits differ by is the third decimal of a loss
        return f"{value:.3f}" if name in _LOSSES and math.isfinite(value) else number(float(value), 3)
    return f"{value:,}".replace(",", " ") if isinstance(value, int | np.integer) else str(value)


def pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values as texts, without what is empty."""
    return [
        (key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, list) else str(value))
        for key, value in values.items()
        if value not in (None, "")
    ]
