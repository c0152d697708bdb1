import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from functools import cache

import pytest
from page import Page
from synthetic import synthetic_findings, synthetic_run
from variants import HOSTILE, variants

from initlab.errors import RunError
from initlab.judge.rules import evaluate
from initlab.report.document import Document
from initlab.report.figures import FIGURES
from initlab.report.files import write_report
from initlab.report.html import page as written

pytestmark = pytest.mark.integration

# the other tests here render these, or draw their figures
DRAWN_ELSEWHERE = {"usual", "nine recipes", "five recipes, one depth", "two widths", "deep probe"}
TRANSFER = {"transfer", "transfer-width", "transfer-depth"}
TRAINED = {"losses", "rates", "regret", "warmup", "grad-norms", "schedule", "trained-residual", "trained-gradient"}


@cache
def render(case):
    run = variants()[case]
    return written(Document(run, synthetic_findings(run)))


@pytest.fixture(scope="module")
def usual():
    return render("usual")


@pytest.fixture(scope="module")
def page(usual):
    return Page(usual)


@pytest.mark.parametrize("case", [case for case in variants() if case not in DRAWN_ELSEWHERE])
def test_every_run_renders(case):
    text = render(case)
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert "undefined" not in text.lower()
    assert len(page.all("h1")) == 1


def test_no_request_can_leave_the_page(usual, page):
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    inline = usual[usual.index("<script>") + len("<script>") : usual.index("</script>")]
    hashed = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{hashed}'"
    assert len(page.all("script")) == 1 and len(inline) < 3000
    assert not page.all("link", "iframe", "object")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", usual)
    assert "@import" not in usual and "url(http" not in usual and "//" not in re.sub(r"data:[^\"]+", "", usual)


def test_headings_are_ordered_and_landmarks_are_there(page):
    levels = [int(tag[1]) for tag, _ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.all("main") and page.all("nav")
    assert page.tags[[tag for tag, _ in page.tags].index("html")][1]["lang"] == "en"
    skip = next(attrs for tag, attrs in page.tags if attrs.get("class") == "skip")
    assert skip["href"] == "#main"


def test_links_and_labels_resolve(page):
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")} <= ids
    for _, attrs in page.tags:
        assert set(attrs.get("aria-labelledby", "").split()) <= ids


def test_every_figure_says_what_it_shows(page):
    images = [attrs for tag, attrs in page.tags if attrs.get("role") == "img"]
    shown = {spec.name: spec for spec in FIGURES if not spec.needs(variants()["usual"])}
    assert {spec.name for spec in FIGURES} - set(shown) == {"watch", "coord", "coord-depth", *TRAINED, *TRANSFER}
    assert len(images) == len(shown)
    for name, spec in shown.items():
        assert spec.words(variants()["usual"]) in "".join(page.words), name


def test_a_recipe_id_is_text_and_never_markup():
    text = render("hostile")
    assert "<script>alert" not in text and text.count("<script") == 1
    assert "{{ 7 * 7 }}" in text
    assert HOSTILE in "".join(Page(text).words)


def test_the_verdict_is_the_headline(page, usual):
    headline = re.sub(r"<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", usual)[1])
    assert headline == (
        "1 of 3 recipes fails: nanogpt-no-depth-scale (depth); "
        "1 draws warnings: torch-default (logits); nanogpt passes."
    )


def test_findings_come_before_figures_and_name_the_line_to_change(usual):
    assert usual.index("DEP001") < usual.index('id="fig-residual"')
    assert "Scale the std of attn.c_proj.weight" in usual


def test_recipes_that_fail_alike_share_a_card():
    text = render("nine recipes")
    cards = re.findall(r'<article class="card (\w+)"', text)
    assert cards == ["error", "warning"]
    assert len(text.encode()) < 1.5 * 2**20


def test_size_of_a_typical_page(usual):
    assert len(usual.encode()) < 600 * 2**10


def test_what_to_do_comes_before_why_and_false_alarms_are_named(usual):
    card = re.search(r'<article class="card error">(.*?)</article>', usual, re.DOTALL)[1]
    said = re.findall(r"<dt>(.*?)</dt>", card)
    assert said[:2] == ["do", "why"]
    run = variants()["usual"]
    page = written(Document(run, evaluate(run)))
    assert "<dt>false alarms</dt>" in page


def test_sections_without_a_finding_are_a_line(usual):
    folds = re.findall(r'<details( open)?><summary><h2>(.*?)</h2> <span class="gist">(.*?)</span>', usual)
    assert all(gist for _, _, gist in folds)
    figures = re.findall(r'<div id="fig-(.*?)">', usual)
    cited = set(re.findall(r'href="#fig-([^"]+)">see the figure', usual))
    assert {name for name, (is_open, *_) in zip(figures, folds, strict=False) if is_open} == cited
    assert [title for _, title, _ in folds[-5:]] == ["Coverage", "Data", "Method", "Glossary", "Not here"]


def test_one_model_has_no_tables_of_its_own_dashes():
    text = render("probe")
    assert 'class="board' not in text
    assert not re.search(r"<t[dh][^>]*>–</t[dh]>", text)


def test_an_incomplete_run_says_so():
    text = render("incomplete")
    assert "Incomplete: 4 of 6 cells" in text
    assert "So far, 4 of 6 cells:" in re.sub(r"<[^>]+>", "", text)
    assert "could not be measured: RuntimeError: out of memory" in text


def test_what_is_not_here_is_said():
    text = render("probe")
    assert "Depth check: needs models of two or more depths" in text
    assert "No training" in text
    assert text.count("needs training runs: initlab confirm, or initlab train") == 1  # of eight figures


def test_missing_sites_are_said():
    run = synthetic_run(("nanogpt",), depths=(2,), seeds=1)
    run.tables.coverage.loc[0, ["fired", "note"]] = [0, "activation checkpointing hides it"]
    text = written(Document(run, []))
    assert "resid_pre (activation) 0 of 2" in text
    assert "activation checkpointing hides it" in text


def test_files(tmp_path):
    run = variants()["one block"]
    stale = tmp_path / "figures" / "depth.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier run")
    findings = synthetic_findings(run)
    assert write_report(Document(run, findings), tmp_path) == tmp_path / "report.html"
    drawn = {f"{spec.name}.png" for spec in FIGURES if not spec.needs(run)}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in (tmp_path / "figures").iterdir())
    saved = json.loads((tmp_path / "findings.json").read_text(encoding="utf-8"))
    assert saved["judging"] == {}
    assert [item["code"] for item in saved["findings"]] == [finding.code for finding in findings]
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"report folder .* can't be written"):
        write_report(Document(variants()["probe"], []), tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("blocked", "module"),
    [("torch", "initlab.report.html"), ("torch", "initlab.report.console"), ("matplotlib", "initlab.report.console")],
)
def test_imports(blocked, module):
    code = f"import sys; sys.modules['{blocked}'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
