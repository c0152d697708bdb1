"""What initlab says of faults that people reported in public, and of the same models mended.

    python benchmarks/public_reports.py [--write] [--only "openai*"]

Each report is a small model of our own with the reported fault (`public_cases.py`). It is measured as a user would,
`initlab.probe(factory, batch)`, and graded by regular expressions that were written before it was first measured (but
for one, see there): caught, where one warning or error names the cause and the place; partly, where only a note does,
or warnings that the mended model doesn't draw name something else; missed. Warnings and errors of a mended model are
its alarms.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
import warnings
from pathlib import Path

import pandas as pd
import torch
from public_cases import REPORTS
from public_inits import INITS
from public_models import Report, batch

import initlab
from initlab.judge.rules import Finding
from initlab.judge.rules.selecting import judged_by

LOUD = ("warning", "error")


def found(factory: object, name: str) -> list[Finding]:
    """The findings against a model, or that it couldn't be measured."""
    torch.manual_seed(0)
    assert callable(factory)
    return [each for each in initlab.probe(factory, batch(name)).findings if each.status == "fail"]


def names(finding: Finding, report: Report) -> bool:
    """Whether a finding names the cause and the place."""
    said = f"{finding.message} {finding.advice}"
    return bool(re.search(report.cause, said, re.I) and re.search(report.place, f"{said} {finding.site}", re.I))


def grade(report: Report) -> dict[str, str]:
    """Measure both models of a report.

    Args:
        report: any of REPORTS or INITS.

    Returns:
        its row of the table.
    """
    row = {"source": report.source, "url": report.url, "fault": report.fault, "first": report.first}
    try:
        broken, mended = found(report.broken, report.batch), found(report.mended, report.mended_batch or report.batch)
    except Exception as error:
        return row | {"grade": "raised", "by": "", "loud": f"{type(error).__name__}: {error}"[:150], "alarms": ""}
    naming = [each for each in broken if names(each, report)]
    loud = [each for each in broken if each.severity in LOUD]
    alarms = {each.code for each in mended if each.severity in LOUD}
    by = next((each for each in naming if each.severity in LOUD), None)
    told = "caught" if by else "partly" if naming or {each.code for each in loud} - alarms else "missed"
    if not report.cause:
        by, told = None, "alarm" if loud else "quiet"
    return row | {
        "grade": told,
        "by": by.code if by else "",
        "loud": " ".join(f"{each.code}:{each.severity}" for each in loud),
        "alarms": " ".join(sorted(alarms)),
    }


def page(table: pd.DataFrame) -> str:
    """The Markdown page.

    Args:
        table: a row per report.
    """
    counts = table["grade"].value_counts()
    total = ", ".join(
        f"{name} {counts.get(name, 0)}" for name in ("caught", "partly", "missed", "raised", "quiet", "alarm")
    )
    rows = [
        f"| [{row.source}]({row.url}) | {row.fault} | {row.first} | {row.grade} "
        f"| {row.by} | {row.loud} | {row.alarms} |"
        for row in table.itertuples()
    ]
    head = [
        "| report | fault | first grade | grade | by | warnings and errors | alarms, mended |",
        "|---|---|---|---|---|---|---|",
    ]
    alarms = f"{int((table['alarms'] != '').sum())} of {len(table)} mended models draw a warning or an error."
    lines = ["# Public reports", "", f"{len(table)} reports: {total}. {alarms}", "", judged_by(), "", *head, *rows, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="of owner/repository#number")
    parser.add_argument("--write", action="store_true", help="into public_reports.md beside this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = [report for report in [*REPORTS, *INITS] if fnmatch.fnmatchcase(report.source, options.only)]
    table = pd.DataFrame([grade(report) for report in chosen])
    text = page(table)
    if options.write:
        Path(__file__).with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
