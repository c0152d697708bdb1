import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_training import UNIGRAM, trained_run

from initlab.judge.outcomes import GRADE_DEFINITIONS, OUTCOME_DEFINITIONS, grading, outcomes
from initlab.judge.outcomes.grading import _pair_text, _seeds, at_depth, graded, predicted, trained_text
from initlab.judge.outcomes.pairs import Pair
from initlab.judge.rules import evaluate
from initlab.judge.rules.fresh import before_training
from initlab.judge.students import Mean

BAD = ("diverges", "stuck", "trains worse")


@pytest.mark.parametrize(
    ("prediction", "outcome", "grade"),
    [
        *((word, bad, "agreed") for word in ("error", "warning") for bad in BAD),
        *(("healthy", bad, "missed") for bad in BAD),
        *((word, "trains", "false alarm") for word in ("error", "warning")),
        ("healthy", "trains", "agreed"),
        *((word, "undecided", "undecided") for word in ("error", "warning", "healthy", "not probed")),
        *(("not probed", outcome, "undecided") for outcome in (*BAD, "trains")),
        ("error", "not trained", "undecided"),
        ("healthy", "not trained", "undecided"),
    ],
)
def test_every_prediction_and_outcome_has_its_grade(prediction, outcome, grade):
    assert graded(prediction, outcome) == grade
    assert grade in GRADE_DEFINITIONS
    assert outcome in {*OUTCOME_DEFINITIONS, "not trained"}


@pytest.mark.parametrize(
    ("said", "grades"),
    [
        # what all have may cost all alike: nothing here trains without it
        ({"base": "ACT001", "other": "ACT001"}, {"base": "undecided", "other": "undecided", "bad": "agreed"}),
        ({"base": "", "other": "ACT001"}, {"base": "agreed", "other": "false alarm", "bad": "agreed"}),
        ({"base": "ACT001", "other": "RES001 ACT001"}, {"base": "undecided", "other": "false alarm", "bad": "agreed"}),
        # and it doesn't say which of them is worse
        ({"base": "ACT001", "other": "ACT001", "bad": "ACT001"}, {"bad": "missed"}),
        ({"base": "ACT001", "other": "", "bad": "ACT001"}, {"bad": "agreed", "base": "false alarm"}),
    ],
)
def test_a_warning_that_every_good_recipe_draws_tells_nothing(monkeypatch, said, grades):
    codes = {"bad": "EMB001", **said}
    word = {"": "healthy", "EMB001": "error"}
    monkeypatch.setattr(grading, "predicted", lambda *_: {r: (word.get(c, "warning"), c) for r, c in codes.items()})
    run = run_of(lambda r, n, lr, w, s: noisy(2.5 + 0.3 * (r == "bad"), s), recipes=("base", "other", "bad"))
    found = outcomes(run, []).set_index("recipe")
    assert grades.items() <= found["grade"].to_dict().items()
    untold = [recipe for recipe, grade in grades.items() if grade == "undecided"]
    assert all("No other recipe here trains well without ACT001" in found.loc[recipe, "why"] for recipe in untold)
    assert all(why.startswith("Regret ") for why in found["why"])


def test_rates_at_which_every_recipe_diverges_prove_no_warning_right(monkeypatch):
    monkeypatch.setattr(grading, "predicted", lambda *_: dict.fromkeys(("base", "other"), ("warning", "ACT001")))
    found = outcomes(run_of(lambda r, n, lr, w, s: math.nan if lr > 5e-3 else noisy(2.5, s)), [])
    assert found["why"].str.count("add one without").eq(1).all()
    assert set(found["outcome"]) == {"diverges"}
    assert set(found["grade"]) == {"undecided"}


def test_an_error_is_held_to_its_word_also_where_all_draw_it(monkeypatch):
    monkeypatch.setattr(grading, "predicted", lambda *_: dict.fromkeys(("base", "other"), ("error", "EMB001")))
    assert set(outcomes(run_of(lambda r, n, lr, w, s: noisy(2.5, s)), [])["grade"]) == {"false alarm"}


def run_of(loss, recipes=("base", "other"), **more):
    usual = {"depths": (2,), "lrs": (1e-3, 1e-2), "warmups": (0,), "steps": 20, "probed": ()}
    return trained_run(recipes, loss=loss, **{**usual, **more})


def outcome_of(loss, recipe="other", **more):
    found = outcomes(run_of(loss, **more), [])
    (row,) = found[found["recipe"] == recipe].to_dict("records")
    return row


def noisy(mean, seed, scale=0.002):
    return mean + scale * (-1, 0.5, 0.7, 0.1)[seed]


def test_half_of_the_runs_diverged_is_diverges():
    row = outcome_of(lambda r, n, lr, w, s: math.nan if (r, lr) == ("other", 1e-2) else 2.5)
    assert row["outcome"] == "diverges"
    assert "3 of 6 runs diverged" in row["why"]


def test_a_rate_that_diverges_of_three_is_regret():
    lrs = (1e-3, 3e-3, 1e-2)
    row = outcome_of(lambda r, n, lr, w, s: math.nan if (r, lr) == ("other", 1e-2) else noisy(2.5, s), lrs=lrs)
    assert row["outcome"] == "trains worse"
    assert "3 of 9 runs diverged" in row["why"]


def test_stuck_is_no_rate_at_which_most_seeds_escape():
    def mostly(escaping):
        return lambda r, n, lr, w, s: 2.5 if r == "base" or (lr == 1e-2 and s < escaping) else UNIGRAM

    assert outcome_of(mostly(1))["outcome"] == "stuck"
    assert outcome_of(mostly(2))["outcome"] != "stuck"
    assert "6 of 6 runs stuck" in outcome_of(mostly(0))["why"]


def test_where_no_recipe_learns_anything_training_has_told_nothing():
    row = outcome_of(lambda *_: UNIGRAM)
    assert (row["outcome"], row["grade"]) == ("undecided", "undecided")
    assert "no recipe came 0.1 nats below the 3.35 of token frequencies" in row["why"]
    # but a run that ended in NaN is a result by itself
    assert outcome_of(lambda r, *_: math.nan if r == "other" else UNIGRAM)["outcome"] == "diverges"


def test_worse_needs_a_margin_and_separation():
    assert outcome_of(lambda r, n, lr, w, s: noisy(2.5 + 0.06 * (r == "other"), s))["outcome"] == "trains worse"
    assert outcome_of(lambda r, n, lr, w, s: noisy(2.5 + 0.04 * (r == "other"), s))["outcome"] == "trains"
    scattered = outcome_of(lambda r, n, lr, w, s: noisy(2.5 + 0.2 * (r == "other"), s, 0.3 * (r == "other")))
    assert scattered["outcome"] == scattered["grade"] == "undecided"
    one = outcome_of(lambda r, n, lr, w, s: 2.5 + (r == "other") / 2, seeds=1)
    assert (one["outcome"], one["grade"]) == ("undecided", "undecided")


def test_the_best_recipe_trains_whichever_it_is():
    found = outcomes(run_of(lambda r, n, lr, w, s: noisy(2.5 + 0.3 * (r == "base"), s)), [])
    assert found.set_index("recipe")["outcome"].to_dict() == {"base": "trains worse", "other": "trains"}
    why = found.set_index("recipe")["why"]
    assert why["base"] == (
        "Regret 0.300 ± 0.000, other's is 0.000 ± 0.000; 0.300 more than other's (p < 0.0001, Holm over 1 pair); "
        "20 steps at 2 rates (0.001 to 0.01), no warmup, 3 seeds."
    )
    assert why["other"] == (
        "Regret 0.000 ± 0.000, the lowest here; 20 steps at 2 rates (0.001 to 0.01), no warmup, 3 seeds."
    )


def test_regret_is_said_with_its_interval():
    row = outcome_of(lambda r, n, lr, w, s: 2.5 + (r == "other") * (0.1, 0.2, 0.4)[s])
    half = stats.t.ppf(0.975, 2) * np.std([0.1, 0.2, 0.4], ddof=1) / math.sqrt(3)
    assert row["why"].startswith(f"Regret 0.233 ± {half:.3f}, base's is 0.000 ± 0.000; ")
    alone = outcome_of(lambda r, n, lr, w, s: 2.5 + (r == "other") * 0.1, seeds=1)
    assert alone["why"].startswith("Regret 0.100, base's is 0.000; 0.100 more than base's, of a single seed; 20 steps")
    assert alone["why"].endswith(", no warmup, 1 seed.")


def test_what_runs_have_in_common_is_said():
    runs = pd.DataFrame({"lr": [1e-3, 3e-3], "warmup": [0, 40], "seed": [0, 0], "steps": [150, 150]})
    assert trained_text(runs) == "150 steps at 2 rates (0.001 to 0.003), no warmup and 40 steps of warmup, 1 seed"
    assert trained_text(runs.assign(lr=0.01, warmup=5, seed=[0, 1])) == (
        "150 steps at rate 0.01, 5 steps of warmup, 2 seeds"
    )


def test_half_of_the_seeds_are_not_most():
    def escaping(r, n, lr, w, s):
        return 2.5 if r == "base" or s % 2 else UNIGRAM

    assert outcome_of(escaping, seeds=2)["outcome"] == "stuck"
    assert outcome_of(escaping, seeds=4)["outcome"] == "stuck"
    assert outcome_of(lambda r, n, lr, w, s: 2.5 if r == "base" or s else UNIGRAM)["outcome"] != "stuck"


def test_of_single_seeds_the_largest_difference_speaks_and_else_the_surest():
    shift = {"base": 0.0, "near": 0.3, "far": 0.5}
    row = outcome_of(lambda r, *_: 2.5 + shift[r], "far", recipes=tuple(shift), seeds=1)
    assert "0.500 more than base's, of a single seed" in row["why"]
    # 0.5 more than what scatters, and 0.2 more than what doesn't
    runs = {"wild": (-0.5, 0.3, 0.1), "calm": (0.0, 0.0, 0.001), "bad": (0.2, 0.2, 0.202)}
    row = outcome_of(lambda r, n, lr, w, s: 2.5 + runs[r][s], "bad", recipes=tuple(runs))
    assert "0.200 more than calm's" in row["why"]


def test_how_sure_a_pair_is_is_said_in_two_digits():
    def said(p):
        return _pair_text(Pair("bad", "good", Mean.of([0.25, 0.27]), p, 0.05), 2)

    assert said(0.0123) == "0.260 more than good's (p 0.012, Holm over 2 pairs)"
    assert said(1e-4) == "0.260 more than good's (p 0.0001, Holm over 2 pairs)"
    assert said(9.9e-5) == "0.260 more than good's (p < 0.0001, Holm over 2 pairs)"
    assert said(math.nan) == "0.260 more than good's, of a single seed"
    assert _seeds(1.0) == "1 seed" and _seeds(7.0) == "7 seeds" and _seeds(math.inf) == "not even 100 seeds"


def test_recipes_are_in_the_order_in_which_they_were_planned():
    run = run_of(lambda *_: 2.5)
    run.manifest["config"]["recipes"] = ["other", "never", "base"]
    found = outcomes(run, []).set_index("recipe")
    assert list(found.index) == ["other", "never", "base"]
    assert found.loc["never", "outcome"] == "not trained"
    assert found.loc["never", "why"] == "No seed of it is finished at every rate."
    del run.manifest["config"]["recipes"]
    assert set(outcomes(run, [])["recipe"]) == {"base", "other"}


def test_worse_than_any_recipe_is_worse_also_where_the_best_one_scatters():
    # `lucky` has the lowest mean, and scatters too much to be told from any other
    shift = {"lucky": (-0.5, 0.3, 0.1), "good": (0.0, 0.001, 0.002), "bad": (0.2, 0.2015, 0.2019)}
    found = outcomes(run_of(lambda r, n, lr, w, s: 2.5 + shift[r][s], recipes=tuple(shift)), []).set_index("recipe")
    assert found["outcome"].to_dict() == {"lucky": "trains", "good": "trains", "bad": "trains worse"}
    assert "0.200 more than good's (p < 0.0001, Holm over 3 pairs)" in found.loc["bad", "why"]


def test_what_is_not_separated_says_how_many_seeds_would_tell():
    row = outcome_of(lambda r, n, lr, w, s: 2.5 + (r == "other") * (0.1, 0.2, 0.3)[s], recipes=("base", "other", "x"))
    assert row["outcome"] == "undecided"
    assert "(p 0.22, Holm over 3 pairs: not separated, 5 seeds would tell)" in row["why"]
    row = outcome_of(lambda r, n, lr, w, s: 2.5 + (r == "other") / 2, seeds=1)
    assert "0.500 more than base's, of a single seed" in row["why"]


def test_outcomes_are_of_the_longest_warmup():
    row = outcome_of(lambda r, n, lr, w, s: UNIGRAM if w < 10 else 2.5, warmups=(0, 5, 10))
    assert row["outcome"] == "trains"
    assert "10 steps of warmup" in row["why"]


def test_a_recipe_without_a_finished_seed_is_not_trained():
    row = outcome_of(lambda *_: 2.5, missing=lambda r, n, lr, w, s: r == "other" and lr == 1e-2)
    assert (row["outcome"], row["grade"]) == ("not trained", "undecided")
    assert outcomes(run_of(lambda *_: 2.5, missing=lambda *_: True), []).empty


@pytest.fixture(scope="module")
def usual():
    return trained_run(depths=(2, 4, 8), lrs=(1e-3,), warmups=(0,), steps=20)


def test_predictions_are_of_a_depth_and_of_trends_over_depths(usual):
    findings = evaluate(usual)
    trends = [f for f in findings if f.status == "fail" and f.severity != "info"]
    assert {(f.code, f.recipe) for f in trends} == {("RES001", "nanogpt-no-depth-scale")}
    assert predicted(usual, 2, findings)["nanogpt-no-depth-scale"] == ("warning", "RES001")
    assert predicted(usual, 2, findings)["nanogpt"] == ("healthy", "")
    # at one depth by itself the trend can't be seen
    assert predicted(usual, 2, [])["nanogpt-no-depth-scale"] == ("healthy", "")


def test_a_fault_of_one_depth_is_predicted_for_that_depth_alone(usual):
    summary = usual.tables.summary.copy()
    loud = (summary["recipe"] == "nanogpt") & (summary["n_layer"] == 4) & (summary["step"] == 0)
    summary.loc[loud, "loss"] += 8.0
    tables = type(usual.tables)(**{**dict(usual.tables.items()), "summary": summary})
    run = type(usual)(tables, usual.manifest)
    found = outcomes(run, evaluate(run)).query("recipe == 'nanogpt'").set_index("n_layer")
    assert found["predicted"].to_dict() == {2: "healthy", 4: "error", 8: "healthy"}
    assert found.loc[4, "codes"].split()[0].startswith("LOG")
    codes = {f.code for f in at_depth(run, 2, evaluate(run)) if f.recipe == "nanogpt"}
    assert codes == {f.code for f in evaluate(run) if f.recipe == "nanogpt"}


def test_limits_in_force_hold_for_predictions(usual):
    run = type(usual)(usual.tables, {**usual.manifest, "judging": {"ignore": ["RES001"]}})
    found = outcomes(run, evaluate(run, ignore=["RES001"]))
    assert set(found["predicted"]) == {"healthy"}


def test_what_training_did_is_no_prediction(usual):
    # the trained models' records, tenfold in variance, are in the same tables
    probes = before_training(usual)
    assert set(probes.tables.summary["step"]) == {0}
    assert len(probes.tables.training) == len(probes.tables.runs) == 0
    assert evaluate(probes) == evaluate(usual)
    broken = usual.tables.records.copy()
    broken.loc[broken["step"] > 0, ["var", "std", "rms"]] = math.nan
    broken.loc[broken["step"] > 0, "frac_nonfinite"] = 1.0
    tables = type(usual.tables)(**{**dict(usual.tables.items()), "records": broken})
    assert evaluate(type(usual)(tables, usual.manifest)) == evaluate(usual)


def test_a_recipe_that_was_not_probed_says_so():
    run = trained_run(("nanogpt", "torch-default"), (2,), (1e-3,), (0,), steps=20, probed=("nanogpt",))
    row = outcomes(run, evaluate(run)).set_index("recipe").loc["torch-default"]
    assert (row["predicted"], row["grade"]) == ("not probed", "undecided")
