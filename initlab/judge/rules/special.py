"""What a model's code sets apart from its general init, and whether the weights still are so."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from initlab.judge.remedies import Change, Described, make_constant
from initlab.judge.rules.base import Case, Finding, rule
from initlab.judge.rules.counting import family, rows_of, seeds, table_of
from initlab.judge.rules.drawn import patterns
from initlab.judge.words import trimmed
from initlab.rundir import Run

_UNIFORM, _NORMAL = (-1.4, -1.0), (-0.7, 0.7)  # excess kurtosis of a plain draw
_SIGMAS = 5.0


def measure_zeroed(run: Run) -> pd.DataFrame:
    """Per matrix that the model's code sets to 0 by name: its largest value, and whether it is a plain draw."""
    if not (table_of(run, "declared")["kind"] == "zero").any():
        return pd.DataFrame()
    said = run.tables.declared
    said = said[said["kind"] == "zero"].rename(columns={"about": "parameter", "found": "most"})
    rows = rows_of(run, "weight")
    rows = rows[["run_id", "module", "mean", "std", "kurtosis", "numel"]].drop_duplicates(["run_id", "module"])
    found = said.merge(rows, left_on=["run_id", "parameter"], right_on=["run_id", "module"], how="left")
    shape = found["kurtosis"].between(*_UNIFORM) | found["kurtosis"].between(*_NORMAL)
    centred = found["mean"].abs() <= _SIGMAS * found["std"] / np.sqrt(found["numel"].astype(float))
    # what training made of zeros is neither centred nor of a draw's shape
    drawn = (found["most"] > 0) & shape & centred & (found["std"] > 0)
    return found.assign(drawn=drawn.astype(float), pattern=family(found["parameter"].astype(str)))


def zero_again(finding: Finding, model: Described) -> list[Change]:
    """Set to 0 what the code sets to 0."""
    wanted = dict.fromkeys(finding.site.split(" "), 0.0)
    return make_constant(finding, model, wanted, lambda _: "the model's own code sets it to 0")


@rule(
    code="INI012",
    question="Init",
    measures="matrices that the model's own code sets to 0 by name and that are a plain draw",
    needs="a probed model whose `__init__`, or a method that it calls, zeroes a matrix by name",
    unit="matrices",
    limit="0 matrices",
    basis="reference-code",
    why="adaLN-Zero's modulation, a head or an output projection that begins at 0 makes every block the identity at "
    "the start. A general init that runs afterwards draws over it, and the model is another one than its code says.",
    advice="Zero it after the general init, or let that leave it out.",
    false_alarms="Code that zeroes under a condition which can't be read from the model: it counts only where the "
    "function is called without one, or at two places. Trained matrices that still look like a draw.",
    source="SWivid/F5-TTS#793, yz93/LAVT-RIS#15, facebookresearch/DiT models.py (initialize_weights)",
    since="0.1.0",
    remedy=zero_again,
    measure=measure_zeroed,
)
def zeros_drawn_over(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge whether any is drawn."""
    bad = rows[rows["drawn"] > 0]
    if bad.empty:
        return case.passed(f"None of {len(rows)} matrices that the code sets to 0 is drawn", measured=0.0)
    first = bad.iloc[0]
    each = bad.drop_duplicates("parameter")
    return case.failed(
        f"{first['name']} sets {first['parameter']} to 0, but it is drawn with std {trimmed(first['std'])}; in all "
        f"{patterns(each)}",
        severity="warning",
        site=" ".join(each["parameter"].astype(str)),
        measured=float(len(each)),
        effect=float(len(each)),
        advice=f"find the init that runs after {first['name']}, and call that last, or leave {patterns(each)} out of "
        "the general one (initlab.trace_init shows both lines)",
        **seeds(rows["drawn"] > 0, rows["seed"]),
    )


def measure_steps(run: Run) -> pd.DataFrame:
    """Per bias of a state's steps in time: the median step, and the range that is declared."""
    if not {"least step", "most step"} <= set(table_of(run, "declared")["kind"]):
        return pd.DataFrame()
    said = run.tables.declared
    least, most = said[said["kind"] == "least step"], said[said["kind"] == "most step"]
    ends = most[["run_id", "about", "said"]].rename(columns={"said": "most"})
    found = least.merge(ends, on=["run_id", "about"]).rename(
        columns={"said": "least", "found": "step", "about": "parameter"}
    )
    off = np.maximum(found["least"] / found["step"], found["step"] / found["most"])
    return found.assign(off=off, pattern=family(found["parameter"].astype(str)))


def leave_to_the_code(finding: Finding, model: Described) -> list[Change]:
    """Propose nothing: only the model's own code knows how the steps are spread over their range."""
    return []


@rule(
    code="INI013",
    question="Init",
    measures="median step in time of a state space, softplus of its bias, beside the range that the model declares",
    needs="a probed model that declares a range of steps (time_step_min, dt_max, …) and has a bias for them",
    limits={"factor": 2.0},
    unit="× the nearer end of the range",
    limit="the median within ×{factor} of the range",
    basis="reference-code",
    why="The bias of dt_proj spreads a state's memory over 1/dt tokens, from 10 to 1000. A blanket init that zeroes "
    "all biases makes every step softplus(0) = 0.69: every state forgets within two tokens.",
    advice="Let the general init leave the bias out.",
    false_alarms="Models that declare a range and draw their steps otherwise on purpose.",
    source="athms/mad-lab#3, HazyResearch/zoology#32, state-spaces/mamba mamba_simple.py (dt_min, dt_max)",
    since="0.1.0",
    remedy=leave_to_the_code,
    measure=measure_steps,
)
def steps_out_of_range(case: Case, rows: pd.DataFrame) -> Finding:
    """Judge the bias whose steps are farthest out."""
    bad = rows[~(rows["off"] <= case.limits["factor"])]
    worst = rows.loc[rows["off"].fillna(math.inf).idxmax()]
    span = f"{trimmed(worst['least'])} to {trimmed(worst['most'])}"
    if bad.empty:
        return case.passed(f"The steps of {len(rows)} states are in their range, {span}", measured=float(worst["off"]))
    each = bad.drop_duplicates("parameter")
    return case.failed(
        f"softplus({worst['parameter']}) is {trimmed(worst['step'], 2)} in the median, but {worst['name']} declare "
        f"steps of {span}; in all {patterns(each)}",
        severity="warning",
        site=str(worst["parameter"]),
        measured=float(worst["off"]),
        effect=float(min(abs(math.log(worst["off"])), 1e6)) if worst["off"] > 0 else 0.0,
        advice=f"leave {patterns(each)} out of the init that runs last (a blanket zeros_ of biases), or draw "
        "softplus⁻¹ of steps spread evenly in logarithm over that range",
        **seeds(rows["off"] > case.limits["factor"], rows["seed"]),
    )
