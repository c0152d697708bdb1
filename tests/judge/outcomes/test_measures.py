import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_training import LN_VOCAB, UNIGRAM, trained_run

from initlab.judge.outcomes import curves, regrets, run_measures
from initlab.judge.outcomes.measures import _overshoot, _spikes
from initlab.rundir import Run
from initlab.schema import Tables

RATES = (1e-3, 1e-2)
# by recipe and rate; seed s adds s/10 to every loss
GRID = {("a", 1e-3): 2.0, ("a", 1e-2): 2.4, ("b", 1e-3): 3.0, ("b", 1e-2): 3.0}


def known(recipe, n_layer, lr, warmup, seed):
    return GRID[recipe, lr] + seed / 10


def small(loss=known, recipes=("a", "b"), **more):
    usual = {"depths": (2,), "lrs": RATES, "warmups": (0,), "seeds": 2, "steps": 60, "probed": ()}
    return trained_run(recipes, loss=loss, **{**usual, **more})


def one(frame, **keys):
    rows = frame
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    (row,) = rows.to_dict("records")
    return row


def test_regret_is_the_mean_over_rates_minus_the_best_of_all_recipes():
    found = regrets(small())
    a, b = one(found, recipe="a"), one(found, recipe="b")
    # each seed's own best is 2.0 + s/10: the seeds differ in level, and their regrets don't
    assert a["regret"] == pytest.approx(0.2)
    assert b["regret"] == pytest.approx(1.0)
    assert (a["low"], a["high"]) == pytest.approx((0.2, 0.2))
    assert (a["best_lr"], a["best_loss"]) == (1e-3, pytest.approx(2.05))
    assert (a["seeds"], a["runs"], a["stuck"], a["diverged"]) == (2, 4, 0, 0)


def test_sensitivity_falls_into_its_trap_and_regret_does_not():
    found = regrets(small(lambda recipe, n, lr, w, s: UNIGRAM if recipe == "b" else known(recipe, n, lr, w, s)))
    stuck = one(found, recipe="b")
    assert stuck["sensitivity"] == pytest.approx(0.0)
    assert stuck["stuck"] == 4
    assert one(found, recipe="a")["sensitivity"] == pytest.approx(0.2)
    assert stuck["regret"] > 1.0


def test_the_interval_of_regret_is_students_t_over_seeds():
    noise = np.random.default_rng(1).normal(0, 0.1, 5)
    found = regrets(small(lambda recipe, n, lr, w, s: 2.0 if recipe == "a" else 2.5 + noise[s], seeds=5))
    told = stats.ttest_1samp(0.5 + noise, 0.0).confidence_interval(0.95)
    assert (one(found, recipe="b")["low"], one(found, recipe="b")["high"]) == pytest.approx(tuple(told))


def test_a_diverged_run_counts_as_ln_v_and_so_does_one_that_ends_above():
    def loss(recipe, n, lr, w, seed):
        return math.nan if (recipe, lr) == ("b", 1e-2) else (9.0 if recipe == "b" else 2.0)

    run = small(loss)
    runs = run_measures(run)
    b = runs[runs["recipe"] == "b"]
    assert b["loss"].tolist() == pytest.approx([LN_VOCAB] * 4)
    assert b.set_index("lr")["diverged"].groupby(level=0).all().to_dict() == {1e-3: False, 1e-2: True}
    assert not b["escaped"].any()
    row = one(regrets(run), recipe="b")
    assert (row["diverged"], row["stuck"]) == (2, 2)
    assert row["regret"] == pytest.approx(LN_VOCAB - 2.0)


def test_a_run_with_a_loss_that_is_not_finite_diverged_whatever_it_says_of_its_end():
    run = small(probed=None)
    training = run.tables.training
    at = (training["run_id"] == "a-L2-d384-s0-lr0.001-w0") & (training["step"] == 30)
    training.loc[at, "loss"] = math.inf
    # an update that float16's scaler skips has such a norm, and training goes on
    training.loc[(training["run_id"] == "a-L2-d384-s1-lr0.001-w0") & (training["step"] == 30), "grad_norm"] = math.inf
    runs = run_measures(run).set_index("run_id")
    assert bool(runs.loc["a-L2-d384-s0-lr0.001-w0", "diverged"])
    assert not runs.loc["a-L2-d384-s1-lr0.001-w0", "diverged"]
    assert runs["diverged"].sum() == 1


def test_escaped_needs_a_margin_below_the_unigram_loss():
    runs = run_measures(small(lambda recipe, n, lr, w, s: UNIGRAM - (0.11 if recipe == "a" else 0.09)))
    assert runs.groupby("recipe", observed=True)["escaped"].all().to_dict() == {"a": True, "b": False}


def test_overshoot_is_of_the_smoothed_loss():
    step = np.arange(40.0)
    assert _overshoot(np.where((step >= 10) & (step < 20), 5.0, 4.0), step) == pytest.approx(1.0)
    assert _overshoot(np.where(step == 10, 14.0, 4.0), step) == pytest.approx(1.0)  # a tenth of a single step
    assert _overshoot(4.0 - step / 40, step) == 0.0
    # logged every 5 steps, a window of 10 steps is two rows
    assert _overshoot(np.array([4.0, 4.0, 5.0, 5.0, 4.0]), np.arange(5) * 5.0) == pytest.approx(1.0)
    assert math.isnan(_overshoot(np.array([math.nan, 4.0]), np.arange(2.0)))


def test_a_spike_stands_out_of_the_twenty_before_it():
    norm = np.ones(50)
    norm[[5, 30, 40]] = [9.0, 5.5, 4.5]  # too early to judge, a spike, none
    assert _spikes(norm) == 1
    assert _spikes(np.ones(3)) == 0


def test_the_peak_of_the_gradient_norm_is_relative_to_the_first():
    run = small(seeds=1, probed=None)
    training = run.tables.training
    own = training["run_id"] == "a-L2-d384-s0-lr0.001-w0"
    training.loc[own & (training["step"] == 0), "grad_norm"] = 0.5
    training.loc[own & (training["step"] == 40), "grad_norm"] = 10.0
    row = one(run_measures(run), run_id="a-L2-d384-s0-lr0.001-w0")
    assert (row["grad_norm_peak"], row["spikes"]) == (pytest.approx(20.0), 1)


def test_a_seed_without_all_rates_takes_no_part():
    # its mean over fewer rates would be another quantity
    run = small(missing=lambda recipe, n, lr, w, s: (recipe, lr, s) == ("b", 1e-2, 1), seeds=3)
    found = regrets(run)
    assert one(found, recipe="b")["seeds"] == 2
    assert one(found, recipe="a")["seeds"] == 3
    run = small(missing=lambda recipe, n, lr, w, s: (recipe, lr) == ("b", 1e-2))
    b = one(regrets(run), recipe="b")
    assert (b["seeds"], b["runs"]) == (0, 2)
    assert math.isnan(b["regret"]) and math.isnan(b["best_lr"])


def test_one_seed_and_one_rate_have_a_regret_and_no_interval():
    row = one(regrets(small(seeds=1, lrs=(1e-3,))), recipe="b")
    assert row["regret"] == pytest.approx(1.0)
    assert math.isnan(row["low"]) and math.isnan(row["high"])
    assert row["sensitivity"] == 0.0


def test_depths_and_warmups_have_a_best_of_their_own():
    run = small(
        lambda recipe, n, lr, w, s: known(recipe, n, lr, w, s) + n - (w > 0) / 4, depths=(2, 3), warmups=(0, 10)
    )
    found = regrets(run)
    assert found[found["recipe"] == "a"]["regret"].tolist() == pytest.approx([0.2] * 4)
    assert found[["n_layer", "warmup"]].drop_duplicates().to_numpy().tolist() == [[2, 0], [2, 10], [3, 0], [3, 10]]


def test_curves_know_their_run():
    run = small()
    rows = curves(run)
    assert len(rows) == len(run.tables.training)
    assert set(rows.loc[rows["run_id"] == "b-L2-d384-s1-lr0.01-w0", "peak_lr"]) == {1e-2}
    assert {"recipe", "n_layer", "seed", "warmup", "loss", "val_loss"} <= set(rows.columns)


def test_nothing_trained_gives_empty_frames_with_their_columns():
    run = small(missing=lambda *_: True)
    for empty in (run, Run(Tables(), {"config": {}, "kind": "confirm"})):
        assert len(run_measures(empty)) == len(regrets(empty)) == len(curves(empty)) == 0
        assert {"loss", "escaped", "spikes"} <= set(run_measures(empty).columns)
        assert "regret" in regrets(empty).columns
    assert isinstance(regrets(run), pd.DataFrame)
