"""What the rules about behaviour share: the rows of one check, and what can be told from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from initlab.judge.cache import kept
from initlab.judge.rows import Row, Rows
from initlab.judge.rules.base import Case, Finding
from initlab.judge.rules.bodies import last_stacks, own_attentions, told_apart
from initlab.judge.rules.counting import table_of
from initlab.judge.rules.faults import targets_of
from initlab.judge.words import trimmed
from initlab.rundir import Run


def measured_by(check: str, meaning: str) -> Callable[[Run], Rows]:
    """Make a rule's measure: the rows of one check, with what its stack's wiring and the loss say.

    Args:
        check: of the table `behaviour`.
        meaning: what `initlab rules` shows.
    """

    def measure(run: Run) -> Rows:
        rows = _checks(run)
        return rows[rows["check"] == check]

    measure.__doc__ = meaning
    return measure


@kept
def _checks(run: Run) -> Rows:
    """The table `behaviour`, each row with what its stack's wiring and the loss say."""
    rows, targets = table_of(run, "behaviour"), targets_of(run)
    if rows.empty:
        return rows
    facts = {own["run_id"][0]: _facts(own) for own in last_stacks(table_of(run, "wiring")).parts("run_id")}
    found = [facts.get(run_id, (0, 0, True)) for run_id in rows["run_id"]]
    wired = dict(zip(("open", "masked", "placed"), zip(*found, strict=True), strict=True))
    asked = rows[(rows["check"] == "targets") & (rows["value"] == 1)]
    asking = {
        run_id for run_id, where in zip(asked["run_id"], asked["where"], strict=True) if "caller" in (where or "")
    }
    asks = [run_id in asking for run_id in rows["run_id"]]
    return rows.assign(targets=[targets.get(run_id) for run_id in rows["run_id"]], asks=asks, **wired)


def _facts(last: Rows) -> tuple[int, int, bool]:
    """How many attentions of the last stack see all, and those before; whether positions are told apart."""
    own = own_attentions(last)
    return int((own["causal"] == 0).sum()), int((own["causal"] == 1).sum()), told_apart(last) is not False


def untold(case: Case, rows: Rows) -> Finding | None:
    """Give the reason where there is no number to judge.

    Args:
        case: the recipe before the rule.
        rows: of it.
    """
    if not np.isnan(rows["value"]).all():
        return None
    notes = [note for note in rows["note"] if note]
    return case.not_applicable(f"It couldn't be told: {notes[0]}" if notes else f"Needs {case.rule.needs}")


def moves(row: Row, limit: float) -> bool:
    """Tell whether more moves than rounding does.

    Args:
        row: of the table.
        limit: times what rounding moves.
    """
    return bool(row["value"] > limit * row["noise"])


def percent(value: float) -> str:
    """Write a share in words.

    Args:
        value: of 1.
    """
    return f"{trimmed(100 * value, 2)} %"


def ratio(row: Row) -> float:
    """Divide what moves by what rounding does.

    Args:
        row: of the table.
    """
    return float(row["value"] / row["noise"])
