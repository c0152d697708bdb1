"""Results that hold findings were made with the limits of now."""

import re
from pathlib import Path

import pytest

from initlab.judge.rules.selecting import judged_by

ROOT = Path(__file__).parents[2]
FILES = [
    "benchmarks/rules_against_training.md",
    "benchmarks/rule_false_alarms.md",
    "benchmarks/public_reports.md",
    "benchmarks/detection.md",
]
LIMITS = re.compile(r"Judged by limits `([0-9a-f]{12})`, rules `[0-9a-f]{12}`\.")


@pytest.mark.parametrize("name", FILES)
def test_results_are_of_the_limits_of_now(name):
    found = LIMITS.search((ROOT / name).read_text(encoding="utf-8"))
    assert found and found[1] == LIMITS.fullmatch(judged_by())[1], "a limit was changed since: make it again"


def test_another_limit_is_told(monkeypatch):
    from initlab.judge.rules import RULES

    before = judged_by()
    rule = next(each for each in RULES if each.limits)
    object.__setattr__(rule, "limits", limits := dict(rule.limits))
    monkeypatch.setitem(limits, next(iter(limits)), 1234.5)
    assert LIMITS.fullmatch(judged_by())[1] != LIMITS.fullmatch(before)[1]
