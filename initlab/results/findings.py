"""What a run's findings are given back as."""

from __future__ import annotations

from initlab.judge.rules import Finding
from initlab.report import notebook
from initlab.report.terminal import one_line
from initlab.report.verdict import GLYPHS


class Findings(list[Finding]):
    """A list of findings that a terminal shows one a line, and a notebook in full."""

    def __repr__(self) -> str:
        return "\n".join(_line(each) for each in self) or "no findings"

    def _repr_html_(self) -> str:
        return notebook.of_findings(self)


def _line(finding: Finding) -> str:
    glyph = GLYPHS[finding.severity if finding.status == "fail" else finding.status]
    return one_line(f"{glyph} {finding.code} {finding.name} ({finding.recipe or 'every recipe'}): {finding.message}")
