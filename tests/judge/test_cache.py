"""What is derived from a run is derived once, and again where the run is another."""

from __future__ import annotations

import pickle

import pandas as pd
import pytest
from synthetic_training import trained_run

from initlab.judge import cache
from initlab.judge.outcomes import measures
from initlab.judge.outcomes.measures import run_measures


@pytest.fixture
def run():
    return trained_run(probed=(), seeds=2, lrs=(1e-3,), warmups=(0,))


def test_the_curves_of_a_run_are_read_once(run, monkeypatch):
    read = []
    monkeypatch.setattr(measures, "_flags", lambda *_: read.append(1) or (False, 0.0, 0, 1.0))
    first, second = run_measures(run), run_measures(run)
    assert len(read) == len(run.tables.runs)
    pd.testing.assert_frame_equal(first, second)


def test_what_a_caller_writes_into_a_frame_reaches_no_other(run):
    mine = run_measures(run)
    mine.loc[:, "loss"] = 99.0
    assert run_measures(run)["loss"].max() < 99


def test_another_table_is_looked_at(run):
    before = run_measures(run)
    run.tables.runs = run.tables.runs.assign(val_loss=run.tables.runs["val_loss"] - 0.5)
    assert (run_measures(run)["loss"] < before["loss"]).all()


def test_other_limits_are_another_question(run):
    asked = []
    ask = cache.kept(lambda run, n_layer: asked.append(n_layer))
    for judging in ({}, {"ignore": ["ACT001"]}, {}):
        run.manifest["judging"] = judging
        ask(run, 4)
        ask(run, 16)
    assert asked == [4, 16, 4, 16]


def test_a_run_is_pickled_with_what_was_derived(run):
    before = run_measures(run)
    pd.testing.assert_frame_equal(run_measures(pickle.loads(pickle.dumps(run))), before)
