import math
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_training import trained_run

from initlab.judge.outcomes import FAMILY, effects
from initlab.judge.outcomes.effects import judged
from initlab.judge.students import Mean, holm

RATES = (1e-3, 1e-2)


def run_of(loss, recipes=("base", "other"), **more):
    usual = {"depths": (2,), "lrs": RATES, "warmups": (0,), "steps": 20, "probed": ()}
    return trained_run(recipes, loss=loss, **{**usual, **more})


def only(frame, **keys):
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def test_differences_are_paired_over_seeds():
    rng = np.random.default_rng(0)
    level, shift = rng.normal(0, 1, 4), rng.normal(0.1, 0.01, 4)  # seeds far apart, differences close
    run = run_of(lambda r, n, lr, w, s: 3 + level[s] / 10 + (shift[s] if r == "other" else 0), seeds=4)
    row = only(effects(run), question="recipe")
    told = stats.ttest_1samp(shift, 0.0)
    assert row["difference"] == pytest.approx(shift.mean())
    assert row["p"] == row["p_holm"] == pytest.approx(told.pvalue)
    assert (row["low"], row["high"]) == pytest.approx(tuple(told.confidence_interval(0.95)))
    assert (row["verdict"], row["versus"], row["seeds"]) == ("worse", "base", 4)
    assert math.isnan(row["seeds_needed"])


def test_the_best_rate_is_each_ones_own():
    losses = {("base", 1e-3): 2.0, ("base", 1e-2): 3.0, ("other", 1e-3): 3.2, ("other", 1e-2): 2.1}
    noise = np.random.default_rng(0).normal(0, 0.001, (2, 3))
    run = run_of(lambda r, n, lr, w, s: losses[r, lr] + noise[int(r == "other"), s])
    found = effects(run)
    assert only(found, question="best rate")["difference"] == pytest.approx(0.1, abs=0.005)
    assert only(found, question="recipe")["difference"] == pytest.approx(0.15, abs=0.005)


def test_warmup_is_better_where_it_gains():
    noise = np.random.default_rng(0).normal(0, 0.001, 100)
    run = run_of(
        lambda r, n, lr, w, s: 2.5 + (0.3 if r == "other" else -0.3) * (w == 0) + noise[s + 10 * (w > 0)],
        warmups=(0, 5),
    )
    found = effects(run)
    other, base = (only(found, question="warmup", recipe=recipe) for recipe in ("other", "base"))
    assert (other["difference"], other["verdict"]) == (pytest.approx(0.3, abs=0.01), "better")
    assert (base["difference"], base["verdict"]) == (pytest.approx(-0.3, abs=0.01), "worse")
    assert other["versus"] == "warmup 0" and other["warmup"] == 5


def test_families_by_hand():
    # paired differences with p of .0041 and .0343 beside one baseline: 2 comparisons, held to .025 and .05
    shift = {"x": [0.10, 0.11, 0.12], "y": [0.10, 0.13, 0.19]}
    run = run_of(lambda r, n, lr, w, s: 2.5 + (shift[r][s] if r in shift else 0), recipes=("base", "x", "y"))
    found = effects(run)
    p = {name: stats.ttest_1samp(values, 0).pvalue for name, values in shift.items()}
    x, y = (only(found, question="recipe", recipe=name) for name in ("x", "y"))
    assert (x["p_holm"], y["p_holm"]) == pytest.approx((2 * p["x"], p["y"]))
    assert 0.025 < p["y"] < 0.05
    assert x["verdict"] == y["verdict"] == "worse"
    assert (x["low"], x["high"]) == pytest.approx(
        tuple(stats.ttest_1samp(shift["x"], 0).confidence_interval(1 - 0.025))
    )
    assert (y["low"], y["high"]) == pytest.approx(tuple(stats.ttest_1samp(shift["y"], 0).confidence_interval(0.95)))


@pytest.mark.parametrize("seed", range(12))
def test_a_verdict_is_given_exactly_where_the_interval_leaves_out_zero(seed):
    rng = np.random.default_rng(seed)
    recipes = ["base", *"abcdef"[: rng.integers(1, 7)]]
    shift = dict(zip(recipes, rng.choice([0, 0.02, 0.1, 0.5], len(recipes)), strict=True))
    noise = rng.normal(0, rng.choice([0.01, 0.05, 0.1]), 100_000)
    run = run_of(
        lambda r, n, lr, w, s: (
            2.5 + shift[r] + noise[zlib.crc32(f"{r}{n}{lr}{w}{s}".encode()) % 100_000] + 0.1 * (w == 0)
        ),
        recipes=tuple(recipes),
        seeds=int(rng.integers(2, 6)),
        warmups=(0, 5),
    )
    found = effects(run)
    assert len(found) == 4 * (len(recipes) - 1) + len(recipes)
    leaves_out = (found["low"] > 0) | (found["high"] < 0)
    assert leaves_out.tolist() == (found["verdict"] != "not separated").tolist() == (found["p_holm"] <= 0.05).tolist()
    assert found["seeds_needed"].isna().tolist() == leaves_out.tolist()
    needed = found.loc[~leaves_out, "seeds_needed"]
    assert (needed > found.loc[~leaves_out, "seeds"]).all()
    gains = found["question"] == "warmup"
    signs = np.sign(found["difference"]) * np.where(gains, 1, -1)
    words = found["verdict"].map({"better": 1, "worse": -1, "not separated": 0})
    assert (words[leaves_out] == signs[leaves_out]).all()


def test_a_recipe_as_bad_as_the_facts_say_is_separated_with_three_seeds():
    # scatter of .1 without warmup and .02 with it, as measured on a GPU grid; 5 recipes, 2 depths, 3 rates
    found = {(0, "bad"): 0, (5, "bad"): 0, (5, "slightly"): 0}
    shift = {"bad": 0.6, "slightly": 0.085}
    times = 5
    for seed in range(times):
        rng = np.random.default_rng(seed)
        run = run_of(
            lambda r, n, lr, w, s, rng=rng: 2.5 + shift.get(r, 0.0) + rng.normal(0, 0.02 if w else 0.1),
            recipes=("base", "bad", "slightly", "same", "other"),
            depths=(2, 3),
            lrs=(1e-3, 3e-3, 1e-2),
            warmups=(0, 5),
        )
        rows = effects(run).query("question == 'recipe' and verdict == 'worse'")
        for warmup, recipe in found:
            found[warmup, recipe] += ((rows["warmup"] == warmup) & (rows["recipe"] == recipe)).sum() / 2 / times
    assert found[5, "bad"] == 1.0
    assert found[0, "bad"] > 0.7
    assert found[5, "slightly"] > 0.4


def test_one_family_for_each_depth_and_warmup_finds_what_one_for_all_misses():
    # the numbers of the comment at FAMILY: 5 recipes, 2 depths, scatter of .1 without warmup, .01 with it
    rng, hits = np.random.default_rng(0), {"all": 0.0, "each": 0.0}
    times = 300
    for _ in range(times):
        p = {}
        for warmup, sd in ((0, 0.1), (5, 0.01)):
            for depth in (2, 3):
                means = rng.normal(0, sd, (5, 3, 3)).mean(axis=1)
                means[1] += 0.6
                means[2] += 0.044
                p[warmup, depth] = [Mean.of(row - means[0]).p for row in means[1:]]
        hits["each"] += sum(holm(p[0, depth])[0][0] <= 0.05 for depth in (2, 3)) / 2 / times
        whole = holm(np.concatenate(list(p.values())))[0]
        hits["all"] += (int(whole[0] <= 0.05) + int(whole[4] <= 0.05)) / 2 / times
    assert hits["each"] == pytest.approx(0.86, abs=0.05)
    assert hits["all"] == pytest.approx(0.47, abs=0.06)
    assert FAMILY == ("question", "n_layer", "warmup")


def test_no_difference_at_all_gives_few_verdicts():
    rng, families = np.random.default_rng(0), 150
    losses = rng.normal(2.5, 0.05, (families, 4, 3))  # of a baseline and 3 others, at 3 seeds
    rows = [("recipe", family, Mean.of(other - group[0])) for family, group in enumerate(losses) for other in group[1:]]
    found = judged(pd.DataFrame(rows, columns=["question", "family", "mean"]), ["family"])
    wrong = (found["verdict"] != "not separated").groupby(found["family"]).any().mean()
    assert 0 < wrong <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


def test_one_seed_gives_differences_and_no_verdict():
    row = only(effects(run_of(lambda r, n, lr, w, s: 2.5 + (r == "other"), seeds=1)), question="recipe")
    assert row["difference"] == pytest.approx(1.0)
    assert row["verdict"] == "not separated"
    assert all(math.isnan(row[name]) for name in ("low", "high", "p", "p_holm", "seeds_needed"))


def test_runs_that_all_diverge_are_not_told_apart():
    found = effects(run_of(lambda *_: math.nan))
    assert set(found["verdict"]) == {"not separated"}
    assert found["difference"].tolist() == [0.0, 0.0]
    assert found["seeds_needed"].tolist() == [math.inf, math.inf]


def test_without_the_baselines_runs_nothing_is_compared_with_another():
    run = run_of(lambda *_: 2.5, recipes=("base", "a", "b"), missing=lambda r, *_: r == "base")
    assert effects(run).empty


def test_empty_has_its_columns():
    found = effects(run_of(lambda *_: 2.5, missing=lambda *_: True))
    assert found.empty
    assert list(found.columns) == [
        *("question", "recipe", "versus", "n_layer", "warmup", "seeds", "difference", "low", "high", "p", "p_holm"),
        *("verdict", "seeds_needed"),
    ]
    assert judged(found.assign(mean=[]), ["question"]).empty


def test_warmup_alone_is_not_compared_with_nothing():
    assert not (effects(run_of(lambda *_: 2.5, warmups=(5,)))["question"] == "warmup").any()
