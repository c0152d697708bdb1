"""The rules as text: nothing is written twice, so what is checked is that nothing gets lost."""

from initlab.judge.rules import RULES, named
from initlab.report import rules
from initlab.report.verdict import QUESTIONS


def test_every_question_is_a_known_column():
    assert {rule.question for rule in RULES} == set(QUESTIONS)


def test_limits_and_how_to_change_them_are_shown():
    text = rules.sections(named("EMB001"))["Limit"]
    assert "≥ 0.1; below 0.01 an error. Basis: heuristic." in text
    assert "--limit EMB001.NAME=x (warning 0.1, error 0.01; in token / position)" in text
    assert "--limit" not in rules.sections(named("NUM001"))["Limit"]


def test_measuring_is_told_by_the_code_that_does_it():
    rule = named("RES002")
    assert rules.sections(rule)["How it is measured"] == " ".join((rule.measure.__doc__ or "").split())


def test_colour_is_optional():
    assert "\x1b" not in rules.rule_text(named("RES001")) and "\x1b[1m" in rules.rule_text(named("RES001"), color=True)
