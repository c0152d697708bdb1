"""What was judged, as other programs read it: lines, JSON, annotations on GitHub, JUnit, SARIF, Markdown.

A finding's place is the line that drew the weights, of a model that was traced; of others it is the site.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from initlab.judge import SEVERITIES, Severity, reaches
from initlab.judge.rules import RULES, Finding
from initlab.report import markdown
from initlab.report.document import Document
from initlab.report.terminal import harmless, one_line
from initlab.report.verdict import where, worst

SCHEMA_VERSION = 1  # of `judged`; raised where a key changes its meaning or goes

_SARIF = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"error": "error", "warning": "warning", "info": "note"}  # SARIF 2.1.0, 3.27.10
_ANNOTATIONS = {"error": "error", "warning": "warning", "info": "notice"}
_LINE = re.compile(r"([^\s;]+\.py):(\d+)")
_CONTROL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 has no place for them


@dataclass(frozen=True, slots=True)
class Shown:
    """A judged run and how it was asked for.

    Attributes:
        document: of the run.
        fails: the lowest severity that fails; None: none does.
        out: the run's folder.
        summary: rows of the summary table.
    """

    document: Document
    fails: Severity | None
    out: str
    summary: list[dict[str, Any]]

    def failed(self, finding: Finding) -> bool:
        """Tell whether a failure is one that fails the command."""
        return reaches(finding.severity, self.fails)


def judged(document: Document) -> dict[str, Any]:
    """Give the verdict, counts and every finding as JSON-ready values; findings.json is that.

    Args:
        document: of a run.
    """
    failed = Counter(each.severity for each in document.failing)
    counts = {severity: failed[severity] for severity in SEVERITIES}
    others = {"pass": len(document.passed), "not_applicable": len(document.inapplicable), "known": len(document.known)}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": document.kind,
        "verdict": worst([each for each in document.findings if not document.knew(each)]),
        "sentence": document.verdict,
        "counts": {**counts, **others},
        "judging": document.run.manifest.get("judging", {}),
        "findings": [json_ready(each.as_dict() | {"known": document.knew(each)}) for each in document.findings],
    }


def json_ready(value: Any) -> Any:
    """Turn NaN and infinity into None: JSON has neither.

    Args:
        value: of dicts, lists and plain values.
    """
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _concise(shown: Shown) -> str:
    lines = []
    for each in shown.document.failing:
        place = _line(each)
        at = (
            f"{place[0]}:{place[1]}"
            if place
            else ", ".join(filter(None, (shown.document.named(each.recipe), where(each))))
        )
        lines.append(f"{at}: {each.severity} {each.code} {each.name}: {each.message}")
    return _joined(map(one_line, [*lines, shown.document.verdict]))


def _json(shown: Shown) -> str:
    found = {"out": shown.out} | judged(shown.document) | {"summary": shown.summary}
    return json.dumps(json_ready(found), ensure_ascii=False, indent=1) + "\n"


def _json_lines(shown: Shown) -> str:
    return _joined(json.dumps(json_ready(each.as_dict()), ensure_ascii=False) for each in shown.document.failing)


def _github(shown: Shown) -> str:
    lines = []
    for each in shown.document.failing:
        place = _line(each)
        fields = {"file": place[0], "line": str(place[1])} if place else {}
        fields["title"] = f"{each.code} {each.name} ({shown.document.named(each.recipe)})"
        named = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in fields.items())
        lines.append(f"::{_ANNOTATIONS[each.severity]} {named}::{_escaped(_said(each))}")
    # what begins a line is a command to GitHub, so that no name may begin one
    return _joined(map(one_line, [*lines, shown.document.verdict]))


def _escaped(text: str, more: str = "") -> str:
    for sign in f"%\r\n{more}":
        text = text.replace(sign, f"%{ord(sign):02X}")
    return text


def _junit(shown: Shown) -> str:
    document = shown.document
    suite = ElementTree.Element("testsuite", name=f"initlab {document.kind}".strip())
    failures = 0
    for each in document.findings:
        name, owner = f"{each.code} {each.name}", _xml(document.named(each.recipe))
        case = ElementTree.SubElement(suite, "testcase", classname=owner, name=name)
        if each.status == "not_applicable":
            ElementTree.SubElement(case, "skipped", message=_xml(each.message))
        elif each.status == "fail" and not document.knew(each) and shown.failed(each):
            failures += 1
            failure = ElementTree.SubElement(case, "failure", type=each.severity, message=_xml(each.message))
            failure.text = _xml(_said(each))
        elif each.status == "fail":
            ElementTree.SubElement(case, "system-out").text = _xml(f"{each.severity}: {_said(each)}")
    skipped = len(document.inapplicable)
    suite.attrib |= {"tests": str(len(document.findings)), "failures": str(failures), "skipped": str(skipped)}
    whole = ElementTree.Element("testsuites")
    whole.append(suite)
    ElementTree.indent(whole)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(whole, encoding="unicode")}\n'


def _xml(text: str) -> str:
    return _CONTROL.sub("�", text)


def _sarif(shown: Shown) -> str:
    document = shown.document
    failed = [each for each in document.findings if each.status == "fail"]
    codes = {each.code for each in failed}
    rules = [
        {
            "id": rule.code,
            "name": rule.name,
            "shortDescription": {"text": rule.measures},
            "fullDescription": {"text": rule.why},
            "help": {"text": f"{rule.advice.rstrip('.')}. Known false alarms: {rule.false_alarms}"},
            "properties": {"basis": rule.basis, "source": rule.source, "tags": [rule.question]},
        }
        for rule in RULES
        if rule.code in codes
    ]
    results = []
    for each in failed:
        result = {
            "ruleId": each.code,
            "level": _LEVELS[each.severity],
            "message": {"text": _said(each)},
            "locations": [_location(each, document.named(each.recipe))],
            "partialFingerprints": {"initlab/v1": f"{each.code}:{each.recipe}:{each.site}"},
            "properties": {"recipe": each.recipe, "measured": each.measured, "limit": each.limit, "unit": each.unit},
        }
        results.append(
            result | ({"baselineState": "unchanged" if document.knew(each) else "new"} if document.known else {})
        )
    driver = {"name": "initlab", "version": document.version, "rules": rules}
    run = {"tool": {"driver": driver}, "results": results, "properties": {"verdict": document.verdict}}
    whole = {"$schema": _SARIF, "version": "2.1.0", "runs": [run]}
    return json.dumps(json_ready(whole), ensure_ascii=False, indent=1) + "\n"


def _location(finding: Finding, owner: str) -> dict[str, Any]:
    site = where(finding) or "model"
    logical = {"name": site, "fullyQualifiedName": f"{owner}/{site}"}
    found: dict[str, Any] = {"logicalLocations": [logical]}
    if place := _line(finding):
        artifact = {"uri": Path(place[0]).as_posix()}
        found["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": place[1]}}
    return found


def _markdown(shown: Shown) -> str:
    return harmless(markdown.text(shown.document))


def _line(finding: Finding) -> tuple[str, int] | None:
    """The first line of code that a finding names."""
    found = _LINE.search(finding.drawn_at) or _LINE.search(finding.message)
    return (found[1].lstrip("("), int(found[2])) if found else None


def _said(finding: Finding) -> str:
    limit = f" (limit {finding.limit})" if finding.limit else ""
    help_ = f"\nhelp: {finding.advice}" if finding.advice and finding.severity != "info" else ""
    drawn = f"\ndrawn at {finding.drawn_at}" if finding.drawn_at else ""
    return f"{finding.message}{limit}{drawn}{help_}"


def _joined(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


FORMATS: dict[str, Callable[[Shown], str]] = {
    "concise": _concise,
    "json": _json,
    "jsonl": _json_lines,
    "github": _github,
    "junit": _junit,
    "sarif": _sarif,
    "markdown": _markdown,
}
