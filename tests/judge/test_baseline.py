"""What is new since another judgement."""

import json
from dataclasses import replace

import pytest
from synthetic import synthetic_findings, synthetic_run

from initlab.errors import ConfigError
from initlab.judge.baseline import known_among
from initlab.results import Comparison


@pytest.fixture(scope="module")
def findings():
    return synthetic_findings(synthetic_run())


def written(path, findings):
    path.write_text(json.dumps({"findings": [each.as_dict() for each in findings]}))
    return path


def test_the_same_failures_are_known(findings, tmp_path):
    failed = [each for each in findings if each.status == "fail"]
    base = written(tmp_path / "findings.json", findings)
    assert failed and known_among(findings, base) == failed == known_among(findings, tmp_path)
    other = [replace(each, message="another number", measured=7.0) for each in findings]
    assert len(known_among(other, base)) == len(failed)


def test_another_site_recipe_or_a_worse_severity_is_new(findings, tmp_path):
    lead = next(each for each in findings if each.status == "fail")
    base = written(tmp_path / "base.json", [replace(lead, severity="warning")])
    assert known_among([replace(lead, severity="info")], base)
    twice = written(tmp_path / "twice.json", [replace(lead, severity=each) for each in ("warning", "error", "info")])
    assert known_among([replace(lead, severity="error")], twice)  # the gravest that it had counts
    for new in (replace(lead, site="q"), replace(lead, recipe="other"), replace(lead, severity="error")):
        assert known_among([new], base) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"findings": 3}', '{"findings": [{}]}', "\x00"])
def test_what_is_no_baseline_is_one_sentence(findings, tmp_path, text):
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no findings"):
        known_among(findings, path)


def test_a_baseline_that_is_not_there(findings, tmp_path):
    with pytest.raises(ConfigError, match=r"findings\.json can't be read: .*; `initlab report` writes it into a run's"):
        known_among(findings, tmp_path)
    with pytest.raises(ConfigError, match=r"base\.json can't be read: [^;]*$"):
        known_among(findings, tmp_path / "base.json")


def test_a_severity_of_no_version(findings, tmp_path):
    lead = next(each for each in findings if each.status == "fail")
    with pytest.raises(ConfigError, match=r"severity 'fatal'; known: error, warning, info$"):
        known_among([lead], written(tmp_path / "base.json", [replace(lead, severity="fatal")]))


def test_a_result_counts_what_is_new_until_it_is_judged_again(tmp_path):
    result = Comparison(synthetic_run())
    result.findings.append(replace(result.findings[0], code="XYZ001", status="fail", severity="error", site="q"))
    failures = result.failures
    assert failures and result.worst == "error"
    base = written(tmp_path / "base.json", [each for each in failures if each.code == "XYZ001"])
    left = result.against(base)
    assert [each.code for each in left] == [each.code for each in failures if each.code != "XYZ001"]
    assert "1 failed in the baseline too" in " ".join(repr(result).split())
    result.judge()
    assert not result.known
