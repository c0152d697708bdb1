"""What a confirmation gives back, from memory and from a folder."""

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic import synthetic_run
from synthetic_training import trained_run

import initlab
from initlab.judge import judging
from initlab.judge.rules import evaluate
from initlab.results import Comparison, Confirmation
from initlab.rundir import Run

pytestmark = pytest.mark.integration

REPORTS = Path(__file__).parents[1] / "reports"


@pytest.fixture(scope="module")
def confirmation():
    return Confirmation(trained_run(depths=(2, 3), lrs=(1e-3, 1e-2), steps=20))


FRAMES = ("runs", "curves", "regrets", "effects", "outcomes", "rankings")


def test_a_confirmation_comes_back_from_its_folder_with_the_same_frames(confirmation, tmp_path):
    folder = Confirmation(confirmation.run).save(tmp_path / "run")
    loaded = initlab.load(folder)
    assert isinstance(loaded, Confirmation)
    for name in FRAMES:
        # 9 digits are written; a p-value of a small difference of losses loses some
        pd.testing.assert_frame_equal(
            getattr(loaded, name), getattr(confirmation, name), rtol=1e-4, atol=1e-8, check_categorical=False
        )
    assert [(f.code, f.recipe, f.status) for f in loaded.findings] == [
        (f.code, f.recipe, f.status) for f in confirmation.findings
    ]
    assert repr(loaded) == repr(confirmation)
    assert len(loaded.summary) == len(confirmation.summary)


def test_a_folder_is_saved_once_and_resumed(confirmation, tmp_path):
    first = Confirmation(confirmation.run).save(tmp_path / "run")
    size = (first / "training.csv").stat().st_size
    Confirmation(confirmation.run).save(tmp_path / "run")
    assert (first / "training.csv").stat().st_size == size


def test_frames_are_made_once_and_grades_follow_the_rules(confirmation):
    fresh = Confirmation(confirmation.run)
    assert fresh.regrets is fresh.regrets
    assert "warning" in set(fresh.outcomes["predicted"])
    kept = fresh.effects
    document = fresh.document()
    assert fresh.document() is document  # page and terminal share it
    fresh.judge(ignore=["RES001"])
    assert fresh.document() is not document
    assert set(fresh.outcomes["predicted"]) == {"healthy"}
    assert fresh.effects is kept
    fresh.judge()
    assert "warning" in set(fresh.outcomes["predicted"])


def test_the_report_comes_with_the_tables_of_training(confirmation, tmp_path):
    page = Confirmation(confirmation.run).report(tmp_path / "run")
    for name in ("regrets", "effects", "outcomes", "rankings"):
        written = pd.read_csv(page.parent / f"{name}.csv")
        assert list(written.columns) == list(getattr(confirmation, name).columns)
        assert len(written) == len(getattr(confirmation, name))
    assert json.loads((page.parent / "run.json").read_text())["kind"] == "confirm"
    # what is derived is no table of the run, and isn't read back
    assert len(initlab.load(page.parent).runs) == len(confirmation.runs)


def test_curves_and_runs_are_joined_by_run(confirmation):
    assert set(confirmation.curves["run_id"]) == set(confirmation.runs["run_id"].astype(str))
    assert confirmation.kind == "confirm"


def test_a_run_is_judged_when_asked_and_once_for_each_choice(monkeypatch):
    judged = []

    def counted(run, **choice):
        judged.append(choice)
        return evaluate(run, **choice)

    monkeypatch.setattr(judging, "evaluate", counted)
    result = Comparison(synthetic_run(("nanogpt",), depths=(2,), seeds=1))
    assert not judged
    assert result.worst is None and repr(result) and result.findings is result.findings
    assert len(judged) == 1
    assert {finding.code for finding in result.judge(select=["NUM"])} == {f"NUM00{at}" for at in range(1, 5)}
    assert result.worst is None and len(judged) == 2


def test_a_confirmation_is_judged_as_a_whole_once_and_once_at_each_depth(confirmation, monkeypatch):
    judged = []

    def counted(run, **choice):
        judged.append(sorted(run.tables.summary["n_layer"].unique()))
        return evaluate(run, **choice)

    monkeypatch.setattr(judging, "evaluate", counted)
    result = Confirmation(Run(confirmation.run.tables, confirmation.run.manifest))
    assert len(result.findings) and len(result.outcomes) and len(result.rankings) and result.markdown()
    assert sorted(judged) == [[2], [2, 3], [3]]


def committed(name):
    return sorted(str(path.parent.relative_to(REPORTS)) for path in REPORTS.rglob(name))


@pytest.mark.parametrize("name", committed("run.json"))
def test_a_committed_run_loads(name):
    result = initlab.load(REPORTS / name)
    assert result.run.complete
    assert set(result.records["run_id"]) <= set(result.summary["run_id"])
    assert len(result.findings) > 0


@pytest.mark.parametrize("name", committed("findings.json"))
def test_a_committed_run_is_judged_as_it_was(name):
    result = initlab.load(REPORTS / name)
    before = json.loads((REPORTS / name / "findings.json").read_text())["findings"]
    assert [(f.code, f.recipe, f.status) for f in result.findings] == [
        (f["code"], f["recipe"], f["status"]) for f in before
    ]


def test_there_are_committed_runs():
    assert len(committed("run.json")) > 10
    assert len(committed("findings.json")) > 4
