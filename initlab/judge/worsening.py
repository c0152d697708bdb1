"""What a change made worse, by every measure whose better side is known: checks, records, heads, the first loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from initlab.judge import SEVERITIES
from initlab.judge.rules import Finding
from initlab.rundir import Run

# column -> what it may rise by beside the scatter of seeds, which two probes tell but roughly
_RECORDS = {"frac_nonfinite": 0.0, "frac_over_fp16": 0.001, "frac_over_bf16": 0.0, "frac_zero": 0.05}
_SUMMARY = {"loss": 0.35, "dead_frac": 0.02}
_ENTROPY = 0.1  # of uniform, that a head may lose
_WIDE = 0.8  # of uniform, that queries and keys of unit variance leave, as of QK-norm: what is wider isn't narrow
_TIMES = 3.0  # the difference of two seeds
_ROW = ["kind", "site", "module", "role", "layer", "call"]
_SHOWN = 3


def worse(before: Run, after: Run, again: Run, found: Sequence[Finding], now: Sequence[Finding]) -> list[str]:
    """Say what is worse after a change, in sentences; nothing where nothing is.

    A check is worse when it fails and didn't, fails harder, or no longer applies though it failed; one that couldn't be
    judged before says nothing. A number is worse beyond three times what another seed changes it by. Where an error is
    cleared (a branch that was shut, numbers that weren't finite), warnings that the sound part now gives were only
    hidden; and beside what isn't finite no number says anything.

    Args:
        before: as found.
        after: as changed.
        again: as found, with another seed.
        found: findings of `before`.
        now: of `after`.
    """
    errors, left = ({f.code for f in each if f.status == "fail" and f.severity == "error"} for each in (found, now))
    broken = before.tables.records["frac_nonfinite"].gt(0).any()
    said = _checks(found, now, hidden=bool(errors - left) or bool(broken))
    if broken:
        return said
    said += [*_records(before, after, again), *_heads(before, after, again)]
    return said if errors - left else [*said, *_start(before, after, again)]


def _checks(found: Sequence[Finding], now: Sequence[Finding], *, hidden: bool) -> list[str]:
    after = {finding.code: finding for finding in now}
    said = []
    for old in found:
        new = after.get(old.code)
        if new is None or old.status == "not_applicable":
            continue
        if new.status == "not_applicable" and old.status == "fail" and old.severity != "info":
            said.append(f"{old.code} no longer applies, so that nothing tells whether it is cleared")
        if new.status == "fail" and new.severity != "info":
            passed = old.status == "pass" or old.severity == "info"
            harder = SEVERITIES.index(new.severity) < SEVERITIES.index(old.severity)
            if (passed or harder) and not (hidden and new.severity == "warning"):
                said.append(f"{new.code} {'fails' if passed else 'is an ' + new.severity} then: {new.message}")
    return said


def _records(before: Run, after: Run, again: Run) -> list[str]:
    moved = [run.tables.records.query("kind != 'weight'") for run in (before, after, again)]  # what the weights do
    tables = [_indexed(records) for records in moved]
    said = []
    for column, slack in _RECORDS.items():
        old, new, other = (table[column].astype(float) for table in tables)
        scatter = (other.reindex(old.index) - old).abs().fillna(0.0)
        risen = (new.reindex(old.index) - old).fillna(0.0)
        bad = risen[risen > slack + _TIMES * scatter]
        if column == "frac_zero":  # a gradient is 0 at what a router left out, whichever that is
            bad = bad[bad.index.get_level_values("kind") != "grad"]
        if len(bad):
            kind, site, module, *_ = bad.index[int(np.argmax(bad.to_numpy()))]
            said.append(f"{column} of {module} ({kind} at {site}) rises by {bad.max():.2g}, of {len(bad)} records")
    return said[:_SHOWN]


def _indexed(frame: pd.DataFrame) -> pd.DataFrame:
    """Records by what they are of; of several of one place, by their order."""
    texts = frame[_ROW].astype(str)
    place = texts.groupby(_ROW, dropna=False).cumcount()  # an activation has no role
    numbered = texts.assign(place=place, **{column: frame[column] for column in _RECORDS})
    return numbered.set_index([*_ROW, "place"])


def _start(before: Run, after: Run, again: Run) -> list[str]:
    old, new, other = (run.tables.summary.iloc[0] for run in (before, after, again))
    said = []
    for column, slack in _SUMMARY.items():
        values = [float(each[column]) for each in (old, new, other)]
        scatter = abs(values[2] - values[0])
        if values[1] - values[0] > slack + _TIMES * (scatter if math.isfinite(scatter) else 0.0):
            said.append(f"{column} rises from {values[0]:.3g} to {values[1]:.3g}")
    ratios = [float(each["token_position_ratio"]) for each in (old, new, other)]
    logs = [abs(math.log(ratio)) if ratio > 0 else math.nan for ratio in ratios]
    if logs[1] - logs[0] > math.log(2) + _TIMES * abs(logs[2] - logs[0]):
        said.append(f"token ÷ position goes from {ratios[0]:.2g} to {ratios[1]:.2g}")
    return said


def _heads(before: Run, after: Run, again: Run) -> list[str]:
    old, new, other = (run.tables.heads.groupby("layer")["entropy_frac"].mean() for run in (before, after, again))
    new = new.reindex(old.index)
    lost = (old - new).fillna(0.0) - _TIMES * (other.reindex(old.index) - old).abs().fillna(0.0)
    bad = lost[(lost > _ENTROPY) & (new < _WIDE)]
    return [f"attention of block {bad.idxmax()} narrows by {bad.max():.0%} of uniform"] if len(bad) else []
