"""What a notebook's cell shows of a result."""

import re
from dataclasses import replace

import pytest
from page import Page
from synthetic import synthetic_findings, synthetic_run
from variants import HOSTILE, variants

from initlab.report import console, notebook
from initlab.report.document import Document
from initlab.report.theme import DARK, LIGHT
from initlab.results import Findings, Result

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("case", variants())
def test_every_run_fits_and_asks_for_nothing(case):
    run = variants()[case]
    document = Document(run, synthetic_findings(run))
    text = notebook.of_document(document)
    assert len(text.encode()) <= notebook.MOST
    page = Page(text)
    assert not page.all("script", "link", "iframe", "object", "img")
    assert not re.search(r"\bon[a-z]+=|javascript:|(?:src|href)=|@import|url\(", text)
    assert not any("id" in attrs for _, attrs in page.tags)  # cells share a page
    assert document.verdict.split()[0] in text and "undefined" not in text.lower()


def test_names_are_escaped():
    run = synthetic_run()
    findings = [
        replace(f, message=f"{HOSTILE}<script>x</script>", recipe=f"a{HOSTILE}") for f in synthetic_findings(run)
    ]
    for text in (notebook.of_document(Document(run, findings)), notebook.of_findings(findings)):
        assert "<script" not in text and "&lt;script&gt;x" in text
    assert "&lt;b&gt;" in notebook.of_text("<b>")


def test_dark_and_light_follow_the_notebook_and_else_the_system():
    text = notebook.of_text("x")
    light, dark = (f"color-scheme:{name};--bg:{palette['bg']}" for name, palette in (("light", LIGHT), ("dark", DARK)))
    order = [text.index(f".initlab{{{light}"), text.index(f"@media (prefers-color-scheme:dark){{.initlab{{{dark}")]
    for said, colours in (
        ('[data-jp-theme-light="true"]', light),
        ('[data-jp-theme-light="false"]', dark),
        (".vscode-light", light),
        (".vscode-dark", dark),
    ):
        found = re.search(re.escape(f"{said} .initlab") + r"[^{]*\{([^}]*)", text)
        assert found and found[1].startswith(colours)
        order.append(found.start())
    assert max(order[:2]) < min(order[2:])  # what comes later wins, and it is the more specific one as well
    assert all(
        line.lstrip().startswith((".initlab", "@media", "[")) for line in text.split("style>")[1].splitlines()[1:-1]
    )


def test_what_is_too_long_is_shortened_and_says_so():
    run = synthetic_run()
    failed = next(f for f in synthetic_findings(run) if f.status == "fail")
    many = [replace(failed, recipe=f"recipe-{i}", message="m" * 400, why=f"because of {i}") for i in range(500)]
    text = notebook.of_findings(many)
    assert len(text.encode()) <= notebook.MOST
    assert "500 failures among 500 findings" in text and "470 more: .failures" in text
    assert len(notebook.of_findings([replace(failed, message="m" * 10**6)]).encode()) <= notebook.MOST
    long = notebook.of_text("\n".join(["x" * 100] * 5000))
    assert len(long.encode()) <= notebook.MOST and "more lines: print it" in long


def test_findings_are_a_list_that_shows_itself():
    run = synthetic_run()
    result = Result(run)
    result.__dict__["findings"] = Findings(synthetic_findings(run))
    failures = result.failures
    assert isinstance(failures, list) and isinstance(failures, Findings) and failures == list(failures)
    lines = repr(failures).splitlines()
    assert len(lines) == len(failures)
    assert lines[0].startswith(f"✗ {failures[0].code} {failures[0].name} ({failures[0].recipe}): ")
    assert repr(Findings()) == "no findings"
    html = result.findings._repr_html_()
    assert "Passed or not applicable" in html and failures[0].advice[:20] in html
    assert result._repr_html_().startswith('<div class="initlab">')


def test_text_stays_text_where_rich_sees_a_notebook(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    run = synthetic_run()
    assert synthetic_findings(run)[0].code in console.text(Document(run, synthetic_findings(run)))


def test_a_list_of_findings_is_a_line_each_whatever_they_are_named():
    findings = [replace(f, message=f"a\nb\x1b[2J\r{f.message}\u202e") for f in synthetic_findings(synthetic_run())]
    text = repr(Findings(findings))
    assert len(text.splitlines()) == len(findings) and not set("\x1b\r\u202e") & set(text)
