"""A report as Markdown, and that all three renderers write one document."""

import re

import pytest
from synthetic import synthetic_findings
from synthetic_training import trained_run
from variants import HOSTILE, variants

from initlab.judge.rules import evaluate
from initlab.report import console, drawings, html, markdown
from initlab.report.document import Document
from initlab.results import Comparison

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def usual():
    run = variants()["usual"]
    return Document(run, synthetic_findings(run))


def test_it_holds_verdict_tables_findings_and_figures(usual):
    text = markdown.text(usual)
    assert text.startswith("# 1 of 3 recipes fails: nanogpt-no-depth-scale (depth); ")
    assert "| recipe | residual var embed → last | depth exp. attn   mlp |".replace("   ", " ") in text
    assert "| nanogpt (baseline) |" in text
    assert "| nanogpt-no-depth-scale | ✗ error" in text  # of the scoreboard
    assert "### ✗ error DEP001 " in text and "- do: **Scale the std of attn.c_proj.weight" in text
    assert "![Depth check](figures/depth.png)" in text and usual.drawings[0].words[:40] in text
    assert text.count("\n# ") == 0 and text.endswith("\n") and "\n\n\n" not in text


@pytest.mark.parametrize("case", list(variants()))
def test_every_table_is_one(case):
    run = variants()[case]
    text = markdown.text(Document(run, synthetic_findings(run)))
    tables = re.findall(r"(?:^\|.*\|\n)+", text, re.M)
    assert tables
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_a_recipe_id_is_text_and_never_markup():
    run = variants()["hostile"]
    text = markdown.text(Document(run, synthetic_findings(run))).partition("```")[0]  # code is code
    assert HOSTILE not in text
    assert not re.search(r"(?<!\\)<", text)


def test_a_confirmation_says_what_training_did():
    run = trained_run(depths=(2, 3), lrs=(1e-3, 1e-2), steps=20)
    document = Document(run, evaluate(run))
    text = markdown.text(document)
    assert "**2 layers: " in text and "| the probe said | training | grade |" in text
    assert document.brief.closing[:40] in text


def test_one_document_is_read_by_page_terminal_and_markdown(usual):
    written = {"page": html.page(usual), "terminal": console.text(usual, width=1000), "markdown": markdown.text(usual)}
    for name, text in written.items():
        words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", text))
        assert usual.verdict in words, name
        assert usual.counted in words, name
        assert all(finding.code in words for finding in usual.failing), name


def test_neither_terminal_nor_markdown_draws_a_figure(usual, monkeypatch):
    def never(*_):
        raise AssertionError("drawn")

    monkeypatch.setattr(drawings.Drawing, "_files", property(never))
    fresh = Comparison(usual.run)
    assert repr(fresh) and fresh.markdown().startswith("# ")
