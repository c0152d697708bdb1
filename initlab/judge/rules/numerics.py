"""Values that aren't numbers."""

from __future__ import annotations

import math

import pandas as pd

from initlab.judge.remedies import Change, Described, drawn, redraw_what_is_off
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import seeds
from initlab.rundir import Run

_FORWARD_FIRST = {"weight": 0, "activation": 1, "grad": 2, "weight_grad": 3, "update": 4, "change": 5}


def measure_non_finite(run: Run) -> pd.DataFrame:
    """Every record, with the share that is no finite number."""
    records = run.tables.records
    return records[["recipe", "seed", "layer", "kind", "site", "module", "position", "step", "frac_nonfinite"]]


def redraw_non_finite(finding: Finding, model: Described) -> list[Change]:
    """Draw parameters that hold NaN or infinity anew; where none does, look for what is off."""
    changes = []
    for row in model.rows:
        names = [name for name, std in row.get("stds", {}).items() if not math.isfinite(std)]
        wanted = model.wanted(row) if names else {}
        if wanted:
            changes.append(drawn(row, names, math.nan, finding, "holds NaN or infinity", model))
    return changes or redraw_what_is_off(finding, model)


@rule(
    code="NUM001",
    question="Numerics",
    measures="tensors that hold a NaN or an infinity",
    needs="records",
    unit="non-finite",
    limit="0 tensors",
    basis="derived",
    why="One NaN reaches every later value and every gradient.",
    advice="Find the first module that shows one.",
    false_alarms="none known",
    source="IEEE 754",
    since="0.1.0",
    about_init=False,
    later=("watch", "train"),
    remedy=redraw_non_finite,
    measure=measure_non_finite,
)
def non_finite_value(case: Case, rows: pd.DataFrame) -> Finding:
    """Name the first place in the order of computation."""
    bad = rows[rows["frac_nonfinite"] > 0]
    if bad.empty:
        return case.passed(f"All {len(rows)} measured tensors are finite", measured=0.0)
    order = bad["kind"].map(_FORWARD_FIRST).astype(int)
    first = bad.assign(order=order).sort_values(["step", "order", "position"]).iloc[0]
    layer = None if pd.isna(first["layer"]) else int(first["layer"])
    place = f"{first['kind']} at {first['site']}" + (f", layer {layer}" if layer is not None else "")
    place += f", step {first['step']}" if rows["step"].nunique() > 1 else ""
    return case.failed(
        f"{len(bad)} tensors hold NaN or infinity, first {first['module']} ({place})",
        severity="error",
        site=str(first["site"]),
        layer_first=layer,
        layer_last=layer,
        measured=float(len(bad)),
        effect=math.inf,
        advice=f"look at what {first['module']} is given and drawn with; everything after it follows from it",
        **seeds(rows["frac_nonfinite"] > 0, rows["seed"]),
    )
