"""Values that aren't numbers."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.remedies import Change, Described, drawn, redraw_what_is_off
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import recorded, seeds, table_of
from initlab.judge.words import trimmed
from initlab.rundir import Run

_IN_ORDER = (
    *("weight", "activation", "grad", "weight_grad", "update", "change", "effective", "propagating"),
    *("origin", "drift"),
)
_FORWARD_FIRST = {kind: place for place, kind in enumerate(_IN_ORDER)}
_BACKWARD = ("grad", "weight_grad")  # the last module of the pass has its gradient first


_SQUARES = math.sqrt(np.finfo(np.float32).max)  # beyond, a norm's or an attention's products are infinite


def measure_non_finite(run: Run) -> Rows:
    """Every record, with its largest value and the share that is no finite number.

    -infinity in a module's output, or in a parameter that isn't trained, hides keys from a softmax: no fault, as long
    as nothing else isn't finite.
    """
    records = table_of(run, "records")
    bad = records["frac_nonfinite"]
    if (hidden := records["frac_minus_inf"] > 0).any():
        trained = set(recorded(run, "weight_grad")["module"])
        weights = (records["kind"] == "weight") & ~records.among("module", trained)
        masks = hidden & ((records["kind"] == "activation") | weights)
        bad = np.where(masks, bad - records["frac_minus_inf"], bad)
    return records.assign(bad=bad)


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
    false_alarms="None known: -infinity alone is how scores are masked, and isn't counted.",
    source="IEEE 754",
    since="0.1.0",
    about_init=False,
    later=("watch", "train"),
    remedy=redraw_non_finite,
    measure=measure_non_finite,
)
def non_finite_value(case: Case, rows: Rows) -> Finding:
    """Name the first place in the order of computation."""
    bad = rows[rows["bad"] > 0]
    if bad.empty:
        return case.passed(f"All {len(rows)} measured tensors are finite", measured=0.0)
    at = np.where(rows.among("kind", _BACKWARD), -rows["position"], rows["position"])
    order = np.array([_FORWARD_FIRST[kind] for kind in rows["kind"]])
    ordered = rows[np.lexsort((at, order, rows["step"]))]
    first = ordered[ordered["bad"] > 0][0]
    layer = None if math.isnan(first["layer"]) else int(first["layer"])
    place = f"{first['kind']} at {first['site']}" + (f", layer {layer}" if layer is not None else "")
    place += f", step {first['step']}" if len(set(rows["step"])) > 1 else ""
    own = ordered[(ordered["run_id"] == first["run_id"]) & (ordered["step"] == first["step"])]
    large = own[own.among("kind", ("weight", "activation")) & (own["bad"] == 0) & np.isfinite(own["abs_max"])]
    large = large[large["abs_max"] > _SQUARES]
    cause, beside = str(first["module"]), ""
    if len(large) and first["kind"] != "weight":
        cause = str(large["module"][0])
        beside = f"; {cause} is finite but too large for its squares in float32, {trimmed(large['abs_max'][0], 2)}"
    return case.failed(
        f"{len(bad)} tensors hold NaN or infinity, first {first['module']} ({place}){beside}",
        severity="error",
        site=str(first["site"]),
        layer_first=layer,
        layer_last=layer,
        measured=float(len(bad)),
        effect=math.inf,
        advice=f"look at what {cause} is given and drawn with; everything after it follows from it",
        **seeds(rows["bad"] > 0, rows["seed"]),
    )
