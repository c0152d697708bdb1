"""The benchmark of public reports: how it grades, and that every report is made and measured."""

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import public_reports
from public_cases import REPORTS

pytestmark = pytest.mark.integration


def test_every_report_is_there_once_and_links_to_its_source():
    sources = [report.source for report in REPORTS]
    assert len(set(sources)) == len(sources) and all(report.url.startswith("https://github.com/") for report in REPORTS)


@pytest.mark.parametrize("source", ["d2l-ai/d2l-en#1564", "openai/CLIP#15"])
def test_a_report_is_graded_by_what_names_cause_and_place(source):
    report = next(each for each in REPORTS if each.source == source)
    row = public_reports.grade(report)
    assert (row["grade"], row["alarms"]) == ("caught", "")
    page = public_reports.page(pd.DataFrame([row]))
    assert "1 reports: caught 1, partly 0" in page and report.url in page
