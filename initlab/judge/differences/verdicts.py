"""Findings of two runs beside each other: which are new, which are gone, which weigh more or less."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from initlab.judge import SEVERITIES
from initlab.judge.rules import Finding

STATES = ("new", "worse", "better", "gone", "not judged in B", "unchanged")
COLUMNS = ("code", "name", "state", "severity_a", "severity_b", "message_a", "message_b", "advice", "note")


def findings(a: Sequence[Finding], b: Sequence[Finding]) -> pd.DataFrame:
    """Make a row for each rule that failed in one of them: new ones first, the gravest first.

    Columns: code, name, state (new, worse, better, gone, unchanged), severity and message of both sides, advice (of the
    side where it fails, B's where both do), note (where one side couldn't be judged by it).

    Args:
        a: all findings of one recipe.
        b: likewise.
    """
    sides = [_by_code(each) for each in (a, b)]
    rows = []
    for code in dict.fromkeys([*sides[0], *sides[1]]):
        old, new = (side.get(code) for side in sides)
        was, is_ = (one is not None and one.status == "fail" for one in (old, new))
        if not was and not is_:
            continue
        shown = new if is_ else old
        assert shown is not None
        state = "new" if not was else "gone"
        note = ""
        if was and is_:
            assert old is not None and new is not None
            moved = SEVERITIES.index(new.severity) - SEVERITIES.index(old.severity)
            state = "unchanged" if not moved else "worse" if moved < 0 else "better"
        elif (quiet := old if is_ else new) is None or quiet.status == "not_applicable":
            note = f"not judged in {'A' if is_ else 'B'}" + (f": {quiet.message}" if quiet is not None else "")
            state = state if is_ else "not judged in B"
        rows.append(
            {
                "code": code,
                "name": shown.name,
                "state": state,
                "severity_a": old.severity if was and old else "",
                "severity_b": new.severity if is_ and new else "",
                "message_a": old.message if old else "",
                "message_b": new.message if new else "",
                "advice": shown.advice,
                "note": note,
            }
        )
    rows.sort(key=lambda row: (STATES.index(row["state"]), SEVERITIES.index(row["severity_b"] or row["severity_a"])))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_code(findings: Sequence[Finding]) -> dict[str, Finding]:
    """The gravest of each rule: a failure, then what was judged."""
    order = {"fail": 0, "pass": 1, "not_applicable": 2}
    found: dict[str, Finding] = {}
    for one in sorted(findings, key=lambda each: (order[each.status], SEVERITIES.index(each.severity))):
        found.setdefault(one.code, one)
    return found
