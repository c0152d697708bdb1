"""What `fix` proposes, as text: what is wrong, the std of each role before and after, what stays."""

from __future__ import annotations

import math
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from initlab.judge.rules import Finding
from initlab.judge.words import plural, trimmed
from initlab.report.verdict import GLYPHS, coverage
from initlab.rundir import Run

AS_FOUND, CHANGED = "as found", "changed"  # what a report calls the two

_MOST = 100  # columns, on a wider terminal too
_MOST_REFUSED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A proposal as it is shown; `rows` are those of `Proposal.rows`."""

    model: str
    problems: Sequence[Finding]
    rows: Sequence[dict[str, Any]]
    left: Sequence[Finding]
    notes: Sequence[Finding]
    refused: Sequence[dict[str, Any]]
    wired: Sequence[Finding]
    before: Run
    after: Run | None
    applied: bool


def proposal_text(proposal: Shown) -> str:
    """At most 100 columns, without colour."""
    part = f" ({covered})" if (covered := coverage(proposal.before)) else ""
    if not proposal.problems:
        verdict = f"{proposal.model}: no weight to change; every check that applies to one fresh model passes{part}."
        if any(note.severity != "info" for note in proposal.notes):
            verdict = (
                f"{proposal.model}: no weight to change{part}; what follows is to be mended in the code, as it says."
            )
        return "\n".join([_filled(verdict), *map(_note, proposal.notes)])
    lines = [f"{proposal.model} as found{part}", ""]
    lines += [_finding(finding) for finding in proposal.problems]
    if not proposal.rows:
        lines += ["", *_refused(proposal), _unchanged(proposal), *_hints(proposal.left)]
        return "\n".join(lines)
    lines += ["", "changed" if proposal.applied else "proposed", "", *_table(proposal), "", *_reasons(proposal), ""]
    known = {finding.code for finding in proposal.problems}
    for head, some in (
        ("afterwards, on a copy, there stays", [each for each in proposal.left if each.code in known]),
        ("afterwards, on a copy, there is, which wasn't before", [e for e in proposal.left if e.code not in known]),
    ):
        lines += [head, "", *map(_finding, some), *_hints(some)] if some else []
    if not proposal.left:
        lines.append(_filled(f"Afterwards, measured on a copy: {_passes(proposal)}."))
    lines += [*_refused(proposal), *map(_note, proposal.notes)]
    if not proposal.applied:
        how = "proposal.apply(), fix(model, apply=True) or, in a shell, --save changes it"
        lines += ["", _filled(f"The model is as it was; {how}.")]
    return "\n".join(lines)


def _unchanged(proposal: Shown) -> str:
    if proposal.wired:
        codes = ", ".join(finding.code for finding in proposal.wired)
        return _filled(
            f"No weight is at fault and none is changed: {codes} {_is(proposal.wired)} a matter of the code."
        )
    return "No change of the init that was tried clears that."


def _is(several: Sequence[object]) -> str:
    return "are" if len(several) > 1 else "is"


def _refused(proposal: Shown) -> list[str]:
    """What was tried and isn't proposed."""
    return [
        _filled(f"not proposed: {row['role']} {row['how']}, by {row['evidence']}: {row['reason']}.", "  ", "    ")
        for row in proposal.refused[:_MOST_REFUSED]
    ]


def _table(proposal: Shown) -> list[str]:
    stacks = len({row["stack"] for row in proposal.rows if row["stack"]}) > 1
    table = [("role", "of", "n", "std found", "std proposed", "how")]
    for row in proposal.rows:
        how = row["how"] + (f" from {row['recipe']}" if row["recipe"] else "")
        found, proposed = (_number(row[key]) for key in ("found", "proposed"))
        table.append((row["role"], row["stack"] if stacks else "", str(row["n"]), found, proposed, how))
    table = [line if stacks else (line[0], *line[2:]) for line in table]  # type: ignore[misc]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table)
    return [f"  {line.rstrip()}" for line in padded]


def _reasons(proposal: Shown) -> list[str]:
    """Every reason once, with the roles that it is for."""
    roles: dict[tuple[str, str], list[str]] = {}
    for row in proposal.rows:
        roles.setdefault((row["code"], row["why"]), []).append(row["role"])
    return [
        _filled(f"{code}  {' and '.join(dict.fromkeys(names))}: {why}", "  ", "          ")
        for (code, why), names in roles.items()
    ]


def _finding(finding: Finding) -> str:
    head = f"{GLYPHS[finding.severity]} {finding.code} {finding.name}: {finding.message}"
    lines = [_filled(head, "  ", "    ")]
    lines += [_filled(f"drawn at {finding.drawn_at}", "    ", "      ")] * bool(finding.drawn_at)
    return "\n".join(lines)


def _note(finding: Finding) -> str:
    word = "note" if finding.severity == "info" else f"{finding.severity} {finding.code}"
    return _filled(f"{word}: {finding.message}; {finding.advice}.", "  ", "    ")


def _hints(findings: Sequence[Finding]) -> list[str]:
    return [_filled(f"{finding.code}: {finding.advice}", "  help: ", "        ") for finding in findings]


def _passes(proposal: Shown) -> str:
    """What the problem was measured by, before and after."""
    assert proposal.after is not None  # there are changes
    tables = [each.tables for each in (proposal.before, proposal.after)]
    parts = ["every check passes"]
    for column, name in (("loss", "first loss"), ("token_position_ratio", "token ÷ position")):
        parts += _moved(name, [float(each.summary[column].iloc[0]) for each in tables])
    parts += _moved("variance after the last block", [_last_variance(each.records) for each in tables])
    return "; ".join(parts)


def _moved(name: str, values: list[float]) -> list[str]:
    old, new = (f"{trimmed(value)}" for value in values)
    return [f"{name} {old} → {new}"] if not math.isnan(values[1]) and old != new else []


def _last_variance(records: pd.DataFrame) -> float:
    stream = records[(records["site"] == "resid_post") & (records["kind"] == "activation")]
    return float(stream.loc[stream["layer"].idxmax(), "var"]) if len(stream) else math.nan


def _number(std: float) -> str:
    return f"{trimmed(std)}" if math.isfinite(std) else "not finite"


def _filled(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text,
        min(shutil.get_terminal_size((_MOST, 24)).columns, _MOST),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def changes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each change what it does and why, in a sentence.

    Args:
        rows: of `Proposal.rows`.
    """
    return [
        f"{row['role']} of {plural(row['n'], 'parameter')} ({row['names'][0]}{', …' if row['n'] > 1 else ''}) "
        f"{row['how']}, std {_number(row['found'])} → {_number(row['proposed'])}; {row['code']}: {row['why']}"
        for row in rows
    ]
