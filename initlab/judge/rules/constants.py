"""What a class makes of one number, gates, multipliers and gains, and whether it still is that number."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from initlab.judge.remedies import Change, Described, make_constant
from initlab.judge.rows import Rows
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import family, recorded, seeds, table_of
from initlab.judge.rules.drawn import patterns
from initlab.judge.words import trimmed
from initlab.recipes import Role
from initlab.rundir import Run


def measure_constants(run: Run) -> Rows:
    """Per parameter that its class makes of one number: that number, the value farthest from it, its std now."""
    said, gains, rows = table_of(run, "declared"), table_of(run, "draws"), recorded(run, "weight")
    said = said[said["kind"] == "constant"]
    gains = gains[(gains["role"] == Role.NORM_GAIN) & ~(gains["spread"] == 0)]
    said = said[~said.among("run_id", set(gains["run_id"]))]  # trained, or what INI011 judges
    stds = dict(zip(zip(rows["run_id"], rows["module"], strict=True), rows["std"], strict=True))
    std = [stds.get(key, math.nan) for key in zip(said["run_id"], said["about"], strict=True)]
    return said.assign(std=std, parameter=said["about"], pattern=family(said["about"]))


def as_its_class_makes_it(finding: Finding, model: Described) -> list[Change]:
    """Give each parameter the number that its class makes it of."""
    return make_constant(finding, model, model.meant, lambda value: f"its class makes it {trimmed(value)}")


@rule(
    code="INI014",
    question="Init",
    measures="parameters that the `__init__` of their class makes of one number (torch.zeros, torch.ones, torch.full), "
    "and that have another value",
    needs="a probed model with such parameters, which no later init code of its classes names",
    limits={"slack": 0.01},
    unit="parameters",
    limit="0 parameters farther than {slack} of the number from it",
    basis="reference-code",
    why="A gate of 0 makes its branch the identity, a multiplier of 0.2 is a design. `to_empty` after construction on "
    "the meta device leaves memory in its place, 0 by luck, and a blanket init over all parameters a draw: the model "
    "is another one than its class says, and nothing else shows it.",
    advice="Give the parameter its number in the init that runs last.",
    false_alarms="A script that sets single gates or gains otherwise than their class does, on purpose.",
    source="karpathy/nanochat#686, mosaicml/llm-foundry#1745",
    since="0.1.0",
    remedy=as_its_class_makes_it,
    measure=measure_constants,
)
def constants_lost(case: Case, rows: Rows) -> Finding:
    """Judge whether any is another number."""
    off = ~(np.abs(rows["found"] - rows["said"]) <= case.limits["slack"] * np.abs(rows["said"]) + 1e-6)  # NaN is off
    if not off.any():
        return case.passed(f"All {len(rows)} parameters that classes make of one number have it", measured=0.0)
    bad = rows[off]
    first, name = bad[0], str(bad[0]["name"])
    each = pd.DataFrame({key: bad[key] for key in ("parameter", "pattern")}).drop_duplicates("parameter")
    now = f"has std {trimmed(first['std'])}" if first["std"] > 0 else f"is {trimmed(first['found'])}"
    if math.isnan(first["found"]):
        now = "holds NaN"
    return case.failed(
        f"{name} makes {first['parameter']} {trimmed(first['said'])}, but it {now}; in all {patterns(each)}",
        severity="warning",
        site=" ".join(each["parameter"]),
        measured=float(len(each)),
        effect=float(len(each)),
        advice=f"set {patterns(each)} in the init that runs last (to_empty keeps nothing of what {name} wrote, a "
        "blanket init draws over it), or change what the class says",
        **seeds(off, rows["seed"]),
    )
