"""What the rules about behaviour share: the rows of one check, and what can be told from them."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from initlab.judge.cache import kept
from initlab.judge.rules.base import Case, Finding
from initlab.judge.rules.bodies import told_apart
from initlab.judge.words import trimmed
from initlab.rundir import Run


def measured_by(check: str, meaning: str) -> Callable[[Run], pd.DataFrame]:
    """Make a rule's measure: the rows of one check, with what its stack's wiring and the loss say.

    Args:
        check: of the table `behaviour`.
        meaning: what `initlab rules` shows.
    """

    def measure(run: Run) -> pd.DataFrame:
        rows = _checks(run)
        return rows[rows["check"] == check] if len(rows) else rows

    measure.__doc__ = meaning
    return measure


@kept
def _checks(run: Run) -> pd.DataFrame:
    """The table `behaviour`, each row with what its stack's wiring and the loss say."""
    rows = run.tables.behaviour
    if rows.empty:
        return rows
    cells = rows["run_id"].astype(str)
    targets = run.tables.summary.drop_duplicates("run_id").set_index("run_id")["targets"]
    facts = {str(run_id): _facts(own) for run_id, own in run.tables.wiring.groupby("run_id", observed=True)}
    unread = _facts(run.tables.wiring[:0])
    wired = pd.DataFrame([facts.get(cell, unread) for cell in cells], index=rows.index)
    return rows.assign(
        targets=cells.map(targets.astype(str).to_dict()),
        aim=rows["aim"].astype("string").fillna(""),
        routed=rows["routed"].fillna(0),
    ).join(wired)


def _facts(rows: pd.DataFrame) -> dict[str, object]:
    """What was read of the wiring of the last stack: attentions that see all or those before, and positions."""
    last = rows[rows["stack"] == rows["stack"].max()]
    own = last[(last["kind"] == "attention") & last["cross"].isna()]
    return {
        "open": int((own["causal"] == 0).sum()),
        "masked": int((own["causal"] == 1).sum()),
        "placed": told_apart(last) is not False if len(last) else True,
    }


def untold(case: Case, rows: pd.DataFrame) -> Finding | None:
    """Give the reason where there is no number to judge.

    Args:
        case: the recipe before the rule.
        rows: of it.
    """
    if rows["value"].notna().any():
        return None
    notes = [note for note in rows["note"] if note]
    return case.not_applicable(f"It couldn't be told: {notes[0]}" if notes else f"Needs {case.rule.needs}")


def moves(row: pd.Series, limit: float) -> bool:
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


def ratio(row: pd.Series) -> float:
    """Divide what moves by what rounding does.

    Args:
        row: of the table.
    """
    return float(row["value"] / row["noise"])
