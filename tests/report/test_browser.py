"""Every kind of page as a browser shows it: at a desk and on a phone, light, dark and on paper."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import AXE, CHROMIUM, Browser
from synthetic import synthetic_findings, synthetic_run
from synthetic_transfer import transfer_run
from trained_variants import single_runs, trained
from variants import NINE, variants

import initlab
from initlab.judge.differences import compared, one_recipe
from initlab.judge.rules import evaluate
from initlab.report.beside import beside
from initlab.report.document import Document
from initlab.report.html import page
from initlab.rundir import Run

ROOT = Path(__file__).parents[2]
LOOKS = [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark"), (720, "print")]
# what is folded on the screen, and must not be on paper
UNSEEN = """[...document.querySelectorAll(".fold > details > div, .card > details > div")]
  .filter(each => !each.checkVisibility({contentVisibilityAuto: true}) || !each.getBoundingClientRect().height)
  .map(each => each.id)"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


def of(run: Run) -> str:
    return page(Document(run, synthetic_findings(run)))


def changed() -> str:
    run = synthetic_run(depths=(6,), seeds=1)
    sides = [one_recipe(run, name, "it") for name in ("nanogpt", "torch-default")]
    found = compared(*sides, [], [], ("before", "after"))
    return of(beside(found, *sides, ("before", "after")))


def scaled() -> str:
    text = initlab.Text(block_size=16, batch_size=2)
    found = initlab.scale(["nanogpt", "torch-default"], widths=(16, 32), steps=1, seeds=2, text=text)
    return page(found.document())


def watched() -> str:
    torch.manual_seed(0)
    model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=2, n_embd=32, n_head=2, block_size=16, vocab_size=256))
    optimizer = torch.optim.AdamW(model.parameters())
    with initlab.watch(model, every=1) as watch:
        for _ in range(3):
            ids = torch.randint(0, 256, (2, 16))
            model(ids, ids)[1].backward()
            optimizer.step()
            optimizer.zero_grad()
            watch.step()
    return page(watch.result.document())


def claims() -> str:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from nanogpt_note.evidence import Claim
        from nanogpt_note.page import page_text
    finally:
        sys.path.remove(str(ROOT / "examples"))
    saved = json.loads((ROOT / "reports" / "nanogpt-claims" / "claims.json").read_text(encoding="utf-8"))
    about = {"environment": {"device": "cpu"}, "commit": "0" * 12, "models": 1, "trainings": 1, "seconds": 60.0}
    return page_text([Claim(**each) for each in saved], {}, **about)


PAGES = {
    "probe": lambda: of(variants()["probe"]),
    "healthy": lambda: page(Document(variants()["as found"], [])),
    "compare": lambda: of(variants()["usual"]),
    "nine recipes": lambda: of(synthetic_run(NINE, depths=(2,), seeds=1)),
    "hostile": lambda: of(variants()["hostile"]),
    "confirm": lambda: page(Document(run := trained("usual"), evaluate(run))),
    "train": lambda: of(single_runs(NINE[:2])),
    "transfer": lambda: of(transfer_run()),
    "scale": scaled,
    "watch": watched,
    "diff": changed,
    "claims": claims,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module", params=PAGES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(PAGES[request.param](), encoding="utf-8")
    return file


@pytest.mark.parametrize(("width", "look"), LOOKS)
def test_a_page_fits_and_asks_for_nothing(browser: Browser, file: Path, width: int, look: str) -> None:
    browser.open(file, width, dark=look == "dark", media="print" if look == "print" else "screen")
    assert browser.complaints == []
    assert browser.overflow == []
    if look == "print":
        assert browser.value(UNSEEN) == []
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.overflow == []


@pytest.mark.skipif(AXE is None, reason="needs axe-playwright-python, for the axe-core in it")
@pytest.mark.parametrize(("width", "look"), [each for each in LOOKS if each[1] != "print"])
def test_nothing_keeps_a_reader_out(browser: Browser, file: Path, width: int, look: str) -> None:
    browser.open(file, width, dark=look == "dark")
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.barriers == []


@pytest.mark.parametrize("width", [1280, 360])
def test_the_contents_stay_in_view_and_lead_into_what_is_folded(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width)
    links = browser.value("[...document.querySelectorAll('nav a')].map(each => each.hash.slice(1))")
    assert links
    browser.value("document.documentElement.style.scrollBehavior = 'auto'")
    for anchor in (links[0], links[-1]):
        browser.value(f"location.hash = {anchor!r}")
        assert browser.value(f"document.getElementById({anchor!r}).checkVisibility()")
        box = browser.value("document.querySelector('nav').getBoundingClientRect().toJSON()")
        assert 0 <= box["top"] < 10 and box["bottom"] > 20


def test_a_phone_shows_whose_failure_it_is(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(of(variants()["usual"]), encoding="utf-8")
    browser.open(file, 360)
    shown = "[...document.querySelectorAll('.board td.error .status, .board td.warning .status, .board th[scope=row]')]"
    edges = browser.value(
        f"{shown}.map(each => [each.getBoundingClientRect().left, each.getBoundingClientRect().right])"
    )
    assert len(edges) == 5  # three recipes, two of which fail at something
    assert all(0 <= left < right <= 360 for left, right in edges)
    heads = "[...document.querySelectorAll('.board td.error, .board td.warning')].map(each => each.dataset.head)"
    assert set(browser.value(heads)) == {"Depth", "Logits"}


def test_pointing_at_a_mark_finds_its_value(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(of(variants()["usual"]), encoding="utf-8")
    browser.open(file, 1280)
    browser.value("document.querySelectorAll('details').forEach(each => { each.open = true })")
    hit = """[...document.querySelectorAll("figure svg > g[pointer-events] > *")].filter(place => {
      place.scrollIntoView({block: "center", inline: "center", behavior: "instant"});
      const box = place.getBoundingClientRect();
      return document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2) === place;
    }).length"""
    places = browser.value('document.querySelectorAll("figure svg > g[pointer-events] > *").length')
    assert places > 300 and browser.value(hit) == places
    seen = "getComputedStyle(document.querySelector('figure svg circle')).fill"
    assert browser.value(seen) == "none" and browser.complaints == []


def test_a_click_on_a_head_sorts_and_on_an_answer_says_what_was_measured(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(of(variants()["usual"]), encoding="utf-8")
    browser.open(file, 1280)
    losses = "[...document.querySelectorAll('#numbers tbody tr')].map(row => parseFloat(row.cells[5].textContent))"
    click = "document.querySelector('#numbers th:nth-child(6) button').click()"
    sort = "document.querySelector('#numbers th:nth-child(6)').ariaSort"
    found = browser.value(losses)
    assert len(found) == 3
    for order, expected in (("ascending", sorted(found)), ("descending", sorted(found)[::-1]), (None, found)):
        browser.value(click)
        assert browser.value(sort) == order
        assert browser.value(losses) == expected
    shown = "[...document.querySelectorAll('[popover]')].filter(each => each.matches(':popover-open')).length"
    assert browser.value(shown) == 0
    browser.value("document.querySelector('.board td.pass button').click()")
    assert browser.value(shown) == 1
    assert "DEP001" in browser.value("document.querySelector(':popover-open').textContent")
    assert browser.overflow == [] and browser.complaints == []
