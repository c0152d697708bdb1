"""What other programs read."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from synthetic import synthetic_findings
from variants import variants

from initlab.judge import SEVERITIES
from initlab.report import formats
from initlab.report.document import Document


def shown(case="usual", fails="error", known=()):
    run = variants()[case]
    findings = synthetic_findings(run)
    document = Document(run, findings, known=[each for each in findings if each.code in known])
    return formats.Shown(document, fails, "runs/a", [{"loss": 1.5}])


def drawn(case, place):
    """The same with a line of code for every failure."""
    document = case.document
    findings = [replace(each, drawn_at=place) if each.status == "fail" else each for each in document.findings]
    return formats.Shown(Document(document.run, findings), case.fails, case.out, case.summary)


@pytest.mark.parametrize("case", list(variants()))
@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_every_run_can_be_written(case, name):
    given = shown(case)
    text = formats.FORMATS[name](given)
    assert text.endswith("\n") or not given.document.failing
    match name:
        case "json" | "sarif":
            json.loads(text, parse_constant=pytest.fail)
        case "jsonl":
            assert len([json.loads(line) for line in text.splitlines()]) == len(given.document.failing)
        case "junit":
            ElementTree.fromstring(text)
        case "github" | "concise":
            assert len(text.splitlines()) == len(given.document.failing) + 1


def test_the_top_of_json_is_the_verdict_and_counts():
    given = shown()
    top = json.loads(formats.FORMATS["json"](given))
    assert list(top)[:7] == ["out", "schema_version", "kind", "verdict", "sentence", "counts", "judging"]
    assert top["verdict"] == "error" and top["sentence"] == given.document.verdict
    failed = [each for each in top["findings"] if each["status"] == "fail"]
    assert {each: top["counts"][each] for each in SEVERITIES} == {
        each: sum(one["severity"] == each for one in failed) for each in SEVERITIES
    }
    assert sum(top["counts"].values()) == len(top["findings"])
    assert top["summary"] == [{"loss": 1.5}]


def test_what_a_baseline_has_too_is_neither_counted_nor_fails():
    codes = {each.code for each in shown().document.failing}
    given = shown(known=codes)
    top = json.loads(formats.FORMATS["json"](given))
    assert top["verdict"] == "pass" and top["counts"]["error"] == 0 and top["counts"]["known"] > 0
    assert all(each["known"] for each in top["findings"] if each["status"] == "fail")
    assert formats.FORMATS["jsonl"](given) == ""
    suite = ElementTree.fromstring(formats.FORMATS["junit"](given))[0]
    assert suite.get("failures") == "0"
    results = json.loads(formats.FORMATS["sarif"](given))["runs"][0]["results"]
    assert results and {each["baselineState"] for each in results} == {"unchanged"}


@pytest.mark.parametrize("fails", [*SEVERITIES, None])
def test_junit_fails_what_fails_the_command(fails):
    given = shown(fails=fails)
    suite = ElementTree.fromstring(formats.FORMATS["junit"](given))[0]
    failed = [each for each in given.document.failing if given.failed(each)]
    assert int(suite.get("failures")) == len(failed) == len(suite.findall("testcase/failure"))
    assert int(suite.get("tests")) == len(suite.findall("testcase")) == len(given.document.findings)
    assert (len(failed) > 0) == (fails is not None)


def test_a_line_of_code_is_the_place():
    given = drawn(shown(), "models/my model.py:57 (_init: normal_(std=0.02))")
    given = drawn(given, "models/mine.py:57 (_init: normal_(std=0.02)); other.py:3 (f: zero_())")
    assert formats.FORMATS["concise"](given).startswith("models/mine.py:57: error ")
    assert formats.FORMATS["github"](given).startswith("::error file=models/mine.py,line=57,title=")
    result = json.loads(formats.FORMATS["sarif"](given))["runs"][0]["results"][0]
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "models/mine.py"},
        "region": {"startLine": 57},
    }


def test_annotations_escape_what_would_end_them():
    given = shown()
    findings = [replace(each, message="50 %: a,\nb") for each in given.document.findings]
    text = formats.FORMATS["github"](replace(given, document=Document(given.document.run, findings)))
    assert "::50 %25: a,%0Ab" in text
    assert all(line.startswith("::") for line in text.splitlines()[:-1])


def test_sarif_describes_each_rule_that_failed():
    whole = json.loads(formats.FORMATS["sarif"](shown("probe")))
    run = whole["runs"][0]
    assert whole["version"] == "2.1.0"
    known = {each["id"] for each in run["tool"]["driver"]["rules"]}
    assert known == {each["ruleId"] for each in run["results"]} & known
    assert {each["level"] for each in run["results"]} <= {"error", "warning", "note"}


@pytest.mark.parametrize("name", ["concise", "github", "markdown"])
def test_a_name_begins_no_line_and_moves_no_cursor(name):
    given = shown()
    evil = "x\n::error file=a::made up\r\x1b[2J\u202e"
    findings = [
        replace(each, message=f"{each.message} {evil}", recipe=evil if each.recipe else "")
        for each in synthetic_findings(given.document.run)
    ]
    document = Document(given.document.run, findings)
    text = formats.FORMATS[name](replace(given, document=document))
    assert not set("\x1b\r\u202e") & set(text)
    if name != "markdown":
        begun = [line for line in text.splitlines() if line.startswith("::")]
        assert len(text.splitlines()) == len(document.failing) + 1
        assert len(begun) == (len(document.failing) if name == "github" else 0)
