"""The benchmark of planted faults: that each is planted where it says, and that its grading can fail."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import detection
import detection_page
from detection_bases import subject
from detection_faults import FAULTS, NotHere, Planted
from detection_wirings import edit

pytestmark = pytest.mark.integration

BASE = "own-llama"
# these write more than is wrong afterwards
OVER_MORE = ("blanket init after a special one", "blocks are copies of one")
BY_NAME = {each.name: each for each in FAULTS}


def said(text, code="ABC001", severity="warning"):
    return SimpleNamespace(code=code, severity=severity, status="fail", site="mlp_out", message=text, advice="")


def test_names_are_told_apart():
    assert len(BY_NAME) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda each: each.name)
def test_fault_changes_what_it_says(fault):
    made, clean = subject(BASE), dict(subject(BASE).model.named_parameters())
    try:
        planted = fault.plant(made)
    except NotHere:
        return
    after = dict(made.model.named_parameters())
    kept = {name for name in clean if name in after and after[name].dtype == clean[name].dtype}
    changed = {name for name in kept if not torch.equal(after[name], clean[name])}
    assert planted.where
    if planted.weights:
        assert set(planted.weights) & kept <= changed
        assert changed <= set(planted.weights) or fault.name in OVER_MORE
    elif fault.name != "one block in every place":
        assert not changed - {planted.where.replace("\\", "")}


@pytest.mark.parametrize(
    ("text", "located", "advice"),
    [
        ("layers.2.feed_forward isn't added to the stream", True, True),
        ("block 2 isn't added to the stream", True, True),
        ("layers.2.feed_forward has std 4", True, False),
        ("layers.1.feed_forward isn't added to the stream", False, False),
        ("layers.20.feed_forward isn't added to the stream", False, False),
        ("blocks 2-4 aren't added to the stream", False, False),
    ],
)
def test_grade_asks_for_place_and_cause(text, located, advice):
    fault = BY_NAME["residual missing, one MLP"]
    where = fault.plant(subject(BASE)).where
    row = detection.grade([said(text)], {}, where, fault.cause)
    assert (row["any"], row["located"], row["advice"]) == (True, located, advice)


@pytest.mark.parametrize(
    ("severity", "known", "loud", "note"),
    [
        ("warning", {}, True, False),
        ("info", {}, False, True),
        ("warning", {"ABC001": "warning"}, False, False),
        ("error", {"ABC001": "warning"}, True, False),
    ],
)
def test_only_what_is_new_counts(severity, known, loud, note):
    row = detection.grade([said("layers.2", severity=severity)], known, "layers", "std")
    assert (row["any"], row["note"]) == (loud, note)


@pytest.fixture(scope="module")
def rows():
    names = ("residual missing, one MLP", "one matrix × 8", "embedding multiplier lost")
    return [detection.graded(detection.Cell(BASE, BY_NAME[name], {})) for name in names]


def test_cell_is_graded(rows):
    wired, scaled, absent = rows
    assert (wired["any"], wired["located"], wired["advice"], wired["mended"]) == (True, True, True, "")
    assert (scaled["any"], scaled["mended"]) == (True, "yes")
    assert absent["planted"] == "not here"


def test_page_counts(rows):
    table = pd.DataFrame(rows).reindex(columns=detection.COLUMNS)
    healthy = pd.DataFrame([{"base": BASE, "seed": 0, "raised": "", "found": {"RES003": "warning"}}])
    text = detection_page.page(table, healthy, None, 60.0)
    assert "| one matrix × 8 | harmful | A+ |" in text
    assert "0 with an error, 1 with a warning, 0 raised. Warnings: RES003 own-llama ×1." in text


def test_mending_something_else_is_none(monkeypatch):
    made = subject(BASE)

    def apply():
        with torch.no_grad():
            made.model.layers[0].attention.wq.weight.mul_(2)

    monkeypatch.setattr(detection.initlab, "fix", lambda _: SimpleNamespace(changes=[1], apply=apply))
    clean = dict(subject(BASE).model.named_parameters())
    name = "layers.0.attention.wq.weight"
    assert detection.mended(made.model, Planted("", ("norm.weight",)), clean) == f"also changed 1: {name}"
    assert detection.mended(made.model, Planted("", (name,)), clean) == f"1 not restored: {name}"


def test_text_that_is_not_there_is_said():
    with pytest.raises(NotHere, match=r"no 'x \+ y' in Layer\.forward"):
        edit(subject(BASE).model.layers[0], "x + y", "x")


@pytest.mark.parametrize("base", ["nanogpt-4", "own-llama", "dit"])
def test_the_lines_that_faults_change_are_in_the_code(base):
    """A line that was written anew would leave its faults out, with no more than "not here"."""
    found = subject(base, 0)
    classes = {type(module) for module in found.model.modules() if not type(module).__module__.startswith("torch.")}
    code = "".join(inspect.getsource(each) for each in classes)
    assert [old for old, _ in found.lines.values() if old not in code] == []
