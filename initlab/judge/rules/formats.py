"""What 16 and 8 bits would lose, or do."""

from __future__ import annotations

import math

import numpy as np

from initlab.judge.rows import Array, Rows, largest, middle, smallest
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import CELL, recorded, seeds, table_of
from initlab.judge.words import trimmed
from initlab.rundir import Run

_HALF = np.finfo(np.float16)
_LARGEST = float(_HALF.max)
_FEW_BITS = ("bfloat16", "float16")


def measure_overflow(run: Run) -> Rows:
    """Largest |x| of every tensor that is float16, and of activations in any wider type."""
    records = table_of(run, "records")
    half = records["dtype"] == "float16"
    keep = (
        (half | (records["kind"] == "activation")) & (records["dtype"] != "bfloat16") & np.isfinite(records["abs_max"])
    )
    return records.assign(half=half)[keep]


@rule(
    code="NUM002",
    question="Numerics",
    measures="float16's largest value ÷ the largest |x| of a tensor",
    needs="records of tensors that aren't bfloat16",
    limits={"headroom": 8.0},
    unit="× headroom",
    limit="≥ {headroom} in float16; ≥ 1 for what is wider, as a note",
    basis="derived",
    why="float16 ends at 65504. A value beyond it is infinite, and NaN one step later; training moves the largest "
    "values up.",
    advice="use bfloat16, or scale down what comes before the named module",
    false_alarms="A factor of 8 is a margin by taste.",
    source="IEEE 754 binary16",
    since="0.1.0",
    measure=measure_overflow,
)
def float16_overflow(case: Case, rows: Rows) -> Finding:
    """Judge float16 tensors by their headroom, others by whether they would overflow."""
    reach = rows["abs_max"] * np.where(rows["half"], case.limits["headroom"], 1.0) / _LARGEST
    worst = rows[largest(reach)]
    headroom = _LARGEST / worst["abs_max"] if worst["abs_max"] else math.inf
    text = f"The largest value, {trimmed(worst['abs_max'])} at {worst['module']}, is {trimmed(headroom)}× below "
    text += "float16's largest"
    common = {"measured": headroom, "site": str(worst["site"])}
    if reach.max() <= 1:
        return case.passed(text, **common)
    half = bool(worst["half"])
    layer = None if math.isnan(worst["layer"]) else int(worst["layer"])
    return case.failed(
        text if half else f"{worst['module']} reaches {trimmed(worst['abs_max'])}, which float16 can't hold",
        severity="warning" if half else "info",
        effect=math.log(float(reach.max())),
        layer_first=layer,
        layer_last=layer,
        **seeds(reach > 1, rows["seed"]),
        **common,
    )


def measure_underflow(run: Run) -> Rows:
    """Per cell, share of the gradients' elements below float16's smallest normal number, and not 0.

    Column `half`: some gradient is float16 itself; then the share is of those alone. `e4m3`: the same share of the
    activations in that float8 format.
    """
    records = table_of(run, "records")
    forward = recorded(run, "activation")
    forward = forward[~np.isnan(forward["frac_under_e4m3"])]
    rows = records[~np.isnan(records["frac_under_fp16"])]
    rows = rows[rows.among("kind", ("grad", "weight_grad"))]
    found = []
    for group in rows.parts(*CELL, sort=True):
        own = group[group["dtype"] == "float16"]
        judged = own if len(own) else group
        outputs = forward[forward["run_id"] == group["run_id"][0]]
        summed = {
            "half": len(own) > 0,
            "share": float(np.average(judged["frac_under_fp16"], weights=judged["numel"])),
            "typical": _weighted_median(judged["rms"], judged["numel"]),
            "e4m3": float(np.average(outputs["frac_under_e4m3"], weights=outputs["numel"])) if len(outputs) else 0.0,
        }
        found.append({key: group[0][key] for key in CELL} | summed)
    return Rows({name: [each[name] for each in found] for name in found[0]} if found else {})


def _weighted_median(values: Array, weights: Array) -> float:
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][below >= below[-1] / 2][0])


@rule(
    code="NUM003",
    question="Numerics",
    measures="share of the gradients' elements that are below float16's smallest normal number, and not 0",
    needs="a backward pass, and --stats full",
    limits={"share": 0.05},
    unit="of the gradients",
    limit="≤ {share} of float16 gradients",
    basis="heuristic",
    why="Below 6e-5 float16 loses bits, below 6e-8 it is 0. Gradients of a mean loss shrink as 1/(B·T), so a large "
    "batch alone brings them there.",
    advice="Scale the loss, or train in bfloat16.",
    false_alarms="A loop that scales its loss isn't seen by a probe, which doesn't. Other dtypes pass, and say what "
    "float16 would lose.",
    source="IEEE 754 binary16; Micikevicius et al. 2018, 1710.03740",
    since="0.1.0",
    measure=measure_underflow,
)
def float16_gradient_underflow(case: Case, rows: Rows) -> Finding:
    """Warn of gradients that are float16; of others say what they would lose."""
    worst = rows[largest(rows["share"])]
    share, half = float(worst["share"]), bool(worst["half"])
    limit = case.limits["share"]
    common = {"measured": share}
    if not half:
        text = "No gradient is float16"
        if share > limit:
            text += (
                f"; there {share:.0%} of them would lie below the smallest normal number "
                f"({trimmed(float(_HALF.tiny), 1)}), so train with loss scaling"
            )
        if worst["e4m3"] > limit:
            text += f"; of the activations {worst['e4m3']:.0%} in float8 (e4m3), which needs a scale for each tensor"
        return case.passed(text, **common)
    text = f"{share:.0%} of the gradients lie below float16's smallest normal number ({trimmed(float(_HALF.tiny), 1)})"
    if share <= limit:
        return case.passed(text, **common)
    lift = 100 * float(_HALF.tiny) / float(worst["typical"]) if worst["typical"] > 0 else 2.0**16
    scale = 2.0 ** max(math.ceil(math.log2(lift)), 1)
    return case.failed(
        text,
        severity="warning",
        effect=math.log(share / limit),
        advice=f"scale the loss (torch.amp.GradScaler): ×{scale:.0f} lifts the rms of the typical tensor to 100 "
        "times that number; or train in bfloat16, which has float32's range",
        **seeds(rows["share"] > limit, rows["seed"]),
        **common,
    )


def measure_absorbed(run: Run) -> Rows:
    """rms of each parameter's update ÷ rms of the parameter, with its dtype; embeddings left out.

    Rows of an embedding that no token of the batch used don't move, which says nothing of rounding.
    """
    updates, weights = recorded(run, "update"), recorded(run, "weight")
    updates, weights = updates[~updates.among("role", ("token_embed", "pos_embed"))], weights[weights["rms"] > 0]
    own, beside = updates.matching(weights, "run_id", "step", "module")
    ratio = updates["rms"][own] / weights["rms"][beside]
    return updates[own].assign(ratio=ratio, dtype=weights["dtype"][beside])


@rule(
    code="NUM004",
    question="Numerics",
    measures="rms of a parameter's change in one step ÷ its rms, and the share of elements that didn't change",
    needs="updates, as `initlab.watch` records them in training",
    limits={"bfloat16": 2.0**-9, "float16": 2.0**-12},
    unit="× the weight",
    limit="≥ {bfloat16} in bfloat16, ≥ {float16} in float16, and half of the elements move",
    basis="derived",
    why="A bfloat16 weight has 8 bits: a change below 2^-9 of it rounds back to the same number, step after step, and "
    "the weight stays where its init put it.",
    advice="keep float32 master weights, or round stochastically",
    false_alarms="Elements far smaller than the rms move although the typical one doesn't. float32 weights pass.",
    source="half a unit in the last place; Zamirai et al. 2020, 2010.06192",
    since="0.1.0",
    about_init=False,
    later=("watch", "train"),
    measure=measure_absorbed,
)
def absorbed_update(case: Case, rows: Rows) -> Finding:
    """Judge the share of parameters, weighed alike, whose update is mostly rounded away."""
    ratio = middle(rows["ratio"])
    short = rows.among("dtype", _FEW_BITS)
    limit = np.array([case.limits.get(dtype, case.limits["bfloat16"]) for dtype in rows["dtype"]])
    lost = (rows["ratio"] < limit) | (rows["frac_zero"] > 0.5)
    text = f"The median update is {trimmed(ratio, 2)}× its weight, in rms"
    common = {"measured": ratio}
    if not short.any():
        small = "; bfloat16 weights would lose most of it" if ratio < case.limits["bfloat16"] else ""
        return case.passed(f"{text}, in {rows['dtype'][0]}{small}", **common)
    bad = short & lost
    if bad.sum() <= short.sum() / 2:
        return case.passed(f"{text}, of 16 bits", **common)
    worst = rows[smallest(np.where(bad, rows["ratio"], math.nan))]
    return case.failed(
        f"{int(bad.sum())} of {int(short.sum())} updates of 16-bit weights are mostly rounded away, as of "
        f"{worst['module']} ({trimmed(worst['ratio'], 1)}× the weight, step {int(worst['step'])})",
        severity="warning",
        effect=math.log(case.limits["bfloat16"] / ratio) if 0 < ratio < case.limits["bfloat16"] else 0.0,
        **seeds(bad, rows["seed"]),
        **common,
    )
