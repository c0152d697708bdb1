"""Values that aren't numbers."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from initlab.judge.rules.base import Finding, Rule
from initlab.schema import Tables

_FORWARD_FIRST = {"weight": 0, "activation": 1, "grad": 2, "weight_grad": 3, "update": 4}


def check_non_finite(tables: Tables, manifest: dict[str, Any]) -> list[Finding]:
    """One finding per recipe, over all steps, naming the first place in the order of computation."""
    findings = []
    for recipe, rows in tables.records.groupby("recipe", observed=True):
        bad = rows[rows["frac_nonfinite"] > 0]
        common = {"recipe": str(recipe), "unit": "non-finite", "measured": float(len(bad))}
        if bad.empty:
            findings.append(NON_FINITE.passed(f"All {len(rows)} measured tensors are finite", **common))
            continue
        order = bad["kind"].map(_FORWARD_FIRST).astype(int)
        first = bad.assign(order=order).sort_values(["step", "order", "position"]).iloc[0]
        layer = None if pd.isna(first["layer"]) else int(first["layer"])
        place = f"{first['kind']} at {first['site']}" + (f", layer {layer}" if layer is not None else "")
        place += f", step {first['step']}" if rows["step"].nunique() > 1 else ""
        findings.append(
            NON_FINITE.failed(
                f"{len(bad)} tensors hold NaN or infinity, first {first['module']} ({place})",
                severity="error",
                site=str(first["site"]),
                layer_first=layer,
                layer_last=layer,
                seeds_failing=int(bad["seed"].nunique()),
                seeds_total=int(rows["seed"].nunique()),
                effect=math.inf,
                advice=f"look at what {first['module']} is given and drawn with; everything after it follows from it",
                **common,
            )
        )
    return findings


NON_FINITE = Rule(
    code="NUM001",
    name="non-finite-value",
    question="Numerics",
    measures="tensors that hold a NaN or an infinity",
    needs="records",
    limit="0 tensors",
    basis="derived",
    why="One NaN reaches every later value and every gradient.",
    advice="Find the first module that shows one.",
    false_alarms="none known",
    source="IEEE 754",
    since="0.1.0",
    check=check_non_finite,
)
NUMERIC_RULES = (NON_FINITE,)
