"""What `fix` proposes, as text: what is wrong, the std of each role before and after, what stays."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

from initlab.judge.rules import Finding
from initlab.report.digest import GLYPHS

if TYPE_CHECKING:
    from initlab.results import Proposal

_WIDTH = 100


def proposal_text(proposal: Proposal) -> str:
    """At most 100 columns, without colour."""
    if not proposal.problems:
        verdict = f"{proposal.model}: nothing to change; every check that applies to one fresh model passes."
        return "\n".join([_filled(verdict), *map(_note, proposal.notes)])
    lines = [f"{proposal.model} as found", ""]
    lines += [_finding(finding) for finding in proposal.problems]
    if not proposal.changes:
        return "\n".join([*lines, "", "No change of the init that was tried clears that.", *_hints(proposal.left)])
    lines += ["", "changed" if proposal.applied else "proposed", "", *_table(proposal), "", *_reasons(proposal), ""]
    if proposal.left:
        lines += ["afterwards, on a copy, there stays", "", *map(_finding, proposal.left), *_hints(proposal.left)]
    else:
        lines.append(_filled(f"Afterwards, measured on a copy: {_passes(proposal)}."))
    if not proposal.applied:
        lines += ["", _filled("The model is as it was; proposal.apply() or fix(model, apply=True) changes it.")]
    return "\n".join(lines)


def _table(proposal: Proposal) -> list[str]:
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


def _reasons(proposal: Proposal) -> list[str]:
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
    return _filled(head, "  ", "    ")


def _note(finding: Finding) -> str:
    return _filled(f"note: {finding.message}; {finding.advice}.", "  ", "    ")


def _hints(findings: list[Finding]) -> list[str]:
    return [_filled(f"{finding.code}: {finding.advice}", "  help: ", "        ") for finding in findings]


def _passes(proposal: Proposal) -> str:
    """What the problem was measured by, before and after."""
    assert proposal.after is not None  # there are changes
    parts = ["every check passes"]
    for column, name, digits in (("loss", "first loss", 2), ("token_position_ratio", "token ÷ position", 3)):
        old, new = (float(each.summary[column].iloc[0]) for each in (proposal.before, proposal.after))
        if not math.isnan(new) and f"{old:.{digits}g}" != f"{new:.{digits}g}":
            parts.append(f"{name} {old:.3g} → {new:.3g}")
    stream = [each.at("resid_post", -1)["var"] for each in (proposal.before, proposal.after)]
    if not stream[0].empty and not stream[1].empty:
        parts.append(f"variance after the last block {float(stream[0].max()):.3g} → {float(stream[1].max()):.3g}")
    return "; ".join(parts)


def _number(std: float) -> str:
    return f"{std:.3g}" if math.isfinite(std) else "not finite"


def _filled(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
