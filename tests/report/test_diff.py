"""What differs between two inits, as text and as tables of a page."""

from __future__ import annotations

import dataclasses
import re

import pandas as pd
import pytest
from synthetic import synthetic_run

from initlab.judge.differences import Compared, compared, one_recipe
from initlab.judge.differences.verdicts import COLUMNS
from initlab.report.beside import again, beside
from initlab.report.diff import diff_text, tables
from initlab.report.document import Document
from initlab.report.html import page
from initlab.report.markdown import text as markdown
from initlab.rundir import Run

pytestmark = pytest.mark.integration

NEW = ("EMB001", "drowned", "new", "", "error", "was fine", "It is <drowned>", "draw it", "")


@pytest.fixture(scope="module")
def sides() -> tuple[Run, Run]:
    run = synthetic_run(depths=(6,), seeds=1)
    return one_recipe(run, "nanogpt", "it"), one_recipe(run, "torch-default", "it")


@pytest.fixture(scope="module")
def found(sides: tuple[Run, Run]) -> Compared:
    made = compared(*sides, [], [], ("runs/before", "runs/after"))
    return dataclasses.replace(made, findings=pd.DataFrame([NEW], columns=list(COLUMNS)))


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_text_keeps_to_its_width_and_says_everything(found: Compared, width: int) -> None:
    text = diff_text(found, width=width)
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert "A runs/before · B runs/after" in " ".join(text.split())
    assert re.search(r"block 5 +×", text)
    assert "+ new error EMB001 drowned: It is <drowned>" in " ".join(text.split())
    assert "help: draw it" in text
    assert "one draw each" in text


def test_nothing_that_differs_is_said_in_a_sentence(sides: tuple[Run, Run]) -> None:
    text = diff_text(compared(sides[0], sides[0], [], [], ("a", "b")), width=80)
    assert "Nothing differs" in text
    assert "*" not in text.replace("(* beyond chance)", "")
    assert "No finding in A or in B" in text


def test_a_page_shows_the_two_beside_each_other_and_what_differs_above(found: Compared, sides: tuple[Run, Run]) -> None:
    run = beside(found, *sides, ("before", "after"), ["mlp_out by hand"])
    document = Document(run, [])
    assert document.recipes == ["before", "after"]
    assert [table.title for table in document.changes] == [table.title for table in tables(found)]
    html = page(document)
    assert 'href="#changed"' in html
    assert html.index('id="changed"') < html.index('id="numbers"')
    assert "A is runs/before, B is runs/after." in html
    assert "It is &lt;drowned&gt;" in html
    assert "mlp_out by hand" in html
    assert "## What changed" in markdown(document)


def test_what_differs_is_found_again_in_the_run_that_a_page_is_of(found: Compared, sides: tuple[Run, Run]) -> None:
    back = again(beside(found, *sides, ("before", "after")))
    assert back is not None
    assert back.verdict == found.verdict
    pd.testing.assert_frame_equal(back.sites, found.sites)
    assert again(sides[0]) is None
    assert Document(sides[0], []).changes == []
