"""What the init code did, as text: a row for each pattern of parameters, and the findings."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.console import Console

from initlab.judge.rules import Finding
from initlab.judge.rules.drawn import writes_of
from initlab.judge.words import plural, trimmed
from initlab.report.terminal import narrowed, plain_table, print_text, wrapped
from initlab.report.verdict import GLYPHS, failing
from initlab.rundir import Run

_SHOWN = 60  # rows


def trace_text(model: str, run: Run, findings: Sequence[Finding], notes: Sequence[str]) -> str:
    """Write the last draw of every pattern of parameters, with what was done to it since, then what is wrong.

    Args:
        model: its class.
        run: with the table `writes`.
        findings: of its rules.
        notes: what couldn't be seen.
    """
    rows = writes_of(run)
    parameters = rows.loc[rows["held"] == "parameter", "parameter"].nunique()
    failed = failing(findings)

    def body(console: Console, width: int) -> None:
        printed = console.print
        printed(wrapped(f"{model}: {plural(parameters, 'parameter')}, {len(rows)} writes", width))
        printed()
        table = plain_table("parameter", "n", "drawn", "at", "by", "shape", "before")
        for column in table.columns[2:]:
            column.justify = "left"
        lines = _lines(rows)
        for line in lines[:_SHOWN]:
            table.add_row(*line)
        printed(narrowed(table, width))
        if len(lines) > _SHOWN:
            printed(f"and {len(lines) - _SHOWN} more patterns")
        for note in notes:
            printed(wrapped(f"! {note}", width, "  "))
        printed()
        for finding in failed:
            printed(
                wrapped(f"{GLYPHS[finding.severity]} {finding.code} {finding.name}: {finding.message}", width, "  ")
            )
            if finding.severity != "info":
                printed(wrapped(f"  help: {finding.advice}", width, "        "))
        if not failed:
            printed("Nothing was left out, drawn over or scaled twice.")

    return print_text(body, None, False)


def _lines(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """Cells of a row for each pattern whose parameters were drawn alike."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for (_, name), own in rows.groupby(["run_id", "parameter"], sort=False, observed=True):
        first = own.iloc[0]
        drawn, before, by, at = _history(own)
        key = (str(first["pattern"]), drawn, at.rpartition("/")[2], by, str(first["shape"]), before)
        groups.setdefault(key, []).append(str(name))
    return [(names[0] if len(names) == 1 else key[0], str(len(names)), *key[1:]) for key, names in groups.items()]


def _history(own: pd.DataFrame) -> tuple[str, str, str, str]:
    """The last draw, what it drew over, by whom, and where."""
    first = own.iloc[0]
    kept = own[(own["replaced"] == 0) & own["order"].notna()]
    if kept.empty:
        word = {"meta": "on meta", "unheard": "not seen"}.get(str(first["state"]), "never")
        return word, "", "", ""
    draws = kept[kept["factor"].isna() & (kept["share"] >= 1)]
    last = draws.iloc[-1] if len(draws) else kept.iloc[-1]
    after = kept[kept["order"] > last["order"]]
    drawn = str(last["text"])
    drawn += "".join(f" × {trimmed(factor)}" for factor in after["factor"].dropna())
    drawn += " + a part" * bool(after["factor"].isna().any())
    drawn += f"; {first['unset']:.0%} never" * bool(first["unset"] > 0)
    before = list(dict.fromkeys(str(text) for text in draws["text"].iloc[:-1]))
    return drawn, ", ".join(before[-2:]), str(last["by"]), str(last["where"])
