import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import synthetic_run
from synthetic_training import trained_run

from initlab.judge.outcomes import METRICS, PROBE, compared_text, rankings
from initlab.judge.outcomes.ranking import behind, interval
from initlab.judge.rules import evaluate
from initlab.rundir import Run
from initlab.schema import Tables

SIX = ("nanogpt", "nanogpt-no-depth-scale", "torch-default", "kaiming", "small-init", "tlens-gpt2")


def planted(recipes=SIX, depths=(2, 4), turned=(), **more):
    """Recipes whose loss and logits rise with their place, and whose token cosines have nothing to do with it."""
    place = {recipe: index for index, recipe in enumerate(recipes)}
    run = trained_run(
        recipes,
        depths,
        (1e-3,),
        (0,),
        seeds=2,
        steps=20,
        loss=lambda r, n, lr, w, s: 2 + (-1 if n in turned else 1) * place[r] / 10 + s / 100,
        **more,
    )
    summary = run.tables.summary.copy()
    order = summary["recipe"].astype(str).map(place)
    summary["logit_std"] = 0.1 + order / 10
    summary["token_cosine"] = order.map(dict(enumerate((0.3, 0.1, 0.5, 0.2, 0.6, 0.4))))
    summary["dead_frac"] = 0.0
    return Run(Tables(**{**dict(run.tables.items()), "summary": summary}), run.manifest)


def of(frame, metric):
    return frame[frame["metric"] == metric].set_index("depth")


@pytest.fixture(scope="module")
def found():
    return rankings(planted())


def test_a_planted_metric_is_found_on_held_out_depths(found):
    rows = of(found, "logit std")
    assert rows["spearman"].tolist() == pytest.approx([1.0, 1.0])
    assert rows["sign"].tolist() == [1.0, 1.0]
    assert rows["recipes"].tolist() == [6, 6]
    assert (rows["low"] > 0).all() and (rows["low"] < 0.9).all()


def test_a_metric_that_predicts_nothing_is_reported_as_such(found):
    rows = of(found, "token cosine")
    known = stats.spearmanr(range(6), (0.3, 0.1, 0.5, 0.2, 0.6, 0.4)).statistic
    assert rows["spearman"].tolist() == pytest.approx([known] * 2)
    assert (rows["low"] < 0).all() and (rows["high"] > 0).all()
    constant = of(found, "dead units")
    assert constant["spearman"].isna().all() and constant["low"].isna().all()
    assert set(found["metric"]) == {metric.name for metric in METRICS}
    assert len(found) == 2 * len(METRICS)


def test_a_sign_that_turns_round_counts_against_the_metric():
    rows = of(rankings(planted(turned=(4,))), "logit std")
    assert rows["spearman"].tolist() == pytest.approx([-1.0, -1.0])
    assert rows["sign"].to_dict() == {2: -1.0, 4: 1.0}


def test_one_depth_has_no_sign_to_learn():
    rows = of(rankings(planted(depths=(2,))), "logit std")
    assert rows["spearman"].tolist() == pytest.approx([1.0])
    assert rows["sign"].isna().all()


def test_four_recipes_give_no_interval():
    rows = of(rankings(planted(SIX[:4])), "logit std")
    assert rows["spearman"].tolist() == pytest.approx([1.0, 1.0])
    assert rows["low"].isna().all() and rows["high"].isna().all()


def test_the_interval_by_hand_and_no_certainty_at_one():
    half = 1.959964 * math.sqrt((1 + 0.25 / 2) / 7)
    assert interval(0.5, 10) == pytest.approx((math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half)))
    low, high = interval(1.0, 5)
    assert low < 0.3 and high < 1
    assert interval(-1.0, 5) == pytest.approx((-high, -low))
    assert all(math.isnan(end) for end in (*interval(0.9, 4), *interval(math.nan, 9)))


@pytest.mark.parametrize(("rho", "n"), [(0.0, 6), (0.0, 12), (0.6, 12)])
def test_the_interval_covers_about_what_it_says(rho, n):
    rng = np.random.default_rng(0)
    # of a bivariate normal with Pearson r, Spearman's is 6/π asin(r/2)
    pearson = 2 * math.sin(math.pi * rho / 6)
    covered = 0
    for _ in range(400):
        x = rng.normal(size=n)
        y = pearson * x + math.sqrt(1 - pearson**2) * rng.normal(size=n)
        low, high = interval(float(stats.spearmanr(x, y).statistic), n)
        covered += low <= rho <= high
    assert covered / 400 > 0.9


def test_metrics_are_of_the_probed_cells_and_what_was_not_recorded_is_nan():
    run = planted()
    everything = run.tables
    bare = Run(Tables(summary=everything.summary, runs=everything.runs, training=everything.training), run.manifest)
    found = rankings(bare)
    assert of(found, "logit std")["spearman"].tolist() == pytest.approx([1.0, 1.0])
    for metric in ("stream growth", "gradient growth", "mlp_pre variance", "largest write", "attention sharpness"):
        assert of(found, metric)["spearman"].isna().all()
        assert (of(found, metric)["recipes"] == 0).all()


def test_growth_and_writes_are_what_the_records_hold():
    run = planted(recipes=SIX[:2], depths=(2,))
    records = run.tables.records
    cell = records[(records["run_id"] == "nanogpt-L2-d384-s0") & (records["kind"] == "activation")]
    by_site = {(row.site, row.layer): row.var for row in cell.itertuples() if row.layer is not None}
    measures = {metric.name: metric.measure for metric in METRICS}
    from initlab.judge.rules.fresh import before_training

    probed = before_training(run)
    growth = measures["stream growth"](probed)["nanogpt", 2, 0]
    first = float(cell.loc[cell["site"] == "embed", "var"].iloc[0])
    assert growth == pytest.approx(abs(math.log(by_site["resid_post", 1] / first)))
    assert set(measures["stream growth"](probed).index) == {(r, 2, s) for r in SIX[:2] for s in (0, 1)}
    grads = records[(records["run_id"] == "nanogpt-L2-d384-s0") & (records["kind"] == "grad")]
    ends = {row.site: row.var for row in grads.itertuples() if row.layer is pd.NA or row.layer == 1}
    assert measures["gradient growth"](probed)["nanogpt", 2, 0] == pytest.approx(
        abs(math.log(ends["resid_post"] / ends["embed"]))
    )
    mlp_pre = [math.log(by_site["mlp_pre", layer]) for layer in (0, 1)]
    assert measures["mlp_pre variance"](probed)["nanogpt", 2, 0] == pytest.approx(abs(sum(mlp_pre) / 2))
    writes = [
        math.log(by_site[write, layer] / by_site[stream, layer])
        for write, stream in (("attn_out", "resid_pre"), ("mlp_out", "resid_mid"))
        for layer in (0, 1)
    ]
    assert measures["largest write"](probed)["nanogpt", 2, 0] == pytest.approx(max(writes))


def series(values):
    return pd.Series(list(values), index=[f"r{place}" for place in range(len(values))], dtype=float)


def test_behind_is_the_difference_of_two_correlations_over_the_recipes_that_have_both():
    regret, probe = series(range(8)), series([0, 0, 0, 0, 1, 1, 2, 2])
    metric = series([3, 1, 2, 0, 7, 4, 6, 5])
    value, low, high = behind(probe, metric.drop("r3"), regret)
    seven = regret.drop("r3")
    known = stats.spearmanr(probe.drop("r3"), seven).statistic - stats.spearmanr(metric.drop("r3"), seven).statistic
    assert value == pytest.approx(known)
    assert low < value < high
    assert behind(probe, probe, regret) == (0, 0, 0)
    assert all(map(math.isnan, behind(probe[:4], metric[:4], regret[:4])))
    assert all(map(math.isnan, behind(probe * math.nan, metric, regret)))


def test_a_metric_that_misleads_is_behind_and_one_that_leads_is_ahead():
    rng = np.random.default_rng(0)
    regret = series(range(12))
    good, bad = series(np.arange(12) + rng.normal(size=12) / 2), series(rng.normal(size=12))
    assert behind(good, bad, regret)[1] > 0
    assert behind(bad, good, regret)[2] < 0


@pytest.mark.parametrize("steps", [None, [0.5, 1.2]])
def test_of_two_metrics_that_rank_alike_none_is_behind(steps):
    """Also where one is a count, as the probe's: constant in many resamples, and full of ties."""
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        regret = rng.normal(size=9)
        one, other = (rng.normal(size=9) for _ in range(2))
        one = one if steps is None else np.digitize(one, steps)
        _, low, high = behind(series(one), series(other), series(regret))
        found += low > 0 or high < 0
    assert found / 150 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_the_sentence_follows_from_the_intervals():
    quiet = rankings(planted([recipe for recipe in SIX if recipe not in ("nanogpt-no-depth-scale", "kaiming")]))
    assert compared_text(quiet) == ""  # no recipe draws anything that the probe counts, so nothing is compared
    assert quiet["behind"].isna().all()
    rows = [
        ("a", 4, 0.1, 0.9),
        ("a", 24, 0.2, 0.9),
        ("b", 4, -0.1, 0.9),
        ("b", 24, -0.9, -0.1),
        (PROBE, 4, *[math.nan] * 2),
    ]
    frame = pd.DataFrame(rows, columns=["metric", "depth", "behind_low", "behind_high"])
    assert compared_text(frame) == (
        "By these intervals the number of errors and warnings ranks recipes better than a (4 and 24 blocks) and worse "
        "than b (24 blocks); in 1 of 4 comparisons these recipes can't tell."
    )
    assert "better than no single metric and worse than no single metric" in compared_text(frame[2:3])
    at_zero = pd.DataFrame([("a", 4, 0.0, 0.9), ("b", 4, -0.9, 0.0)], columns=frame.columns)
    assert compared_text(at_zero).endswith("in 2 of 2 comparisons these recipes can't tell.")
    others = pd.DataFrame([("b", depth, 0.1, 0.9) for depth in range(7, 0, -1)], columns=frame.columns)
    one = pd.DataFrame([("a", 4, 0.1, 0.9)], columns=frame.columns)
    assert compared_text(pd.concat([others, one], ignore_index=True)) == (
        "By these intervals the number of errors and warnings ranks recipes better than "
        "b (7, 6, 5, 4, 3 and 2 more blocks), a (4 blocks) and worse than no single metric."
    )


def test_nothing_trained_ranks_nothing():
    assert rankings(planted(missing=lambda *_: True)).empty


def test_the_probes_own_metric_counts_errors_and_warnings_at_a_depth_and_over_the_depths():
    run = synthetic_run(("nanogpt", "nanogpt-no-depth-scale"), (2, 4, 8), seeds=2)
    summary = run.tables.summary
    summary.loc[(summary["recipe"] == "nanogpt") & (summary["n_layer"] == 4), "loss"] += 8.0
    counted = next(metric.measure for metric in METRICS if metric.name == PROBE)(run)
    # one warning of the trend over the depths, at each of them; and two of the first loss, of which one depth is enough
    failed = [f for f in evaluate(run) if f.status == "fail" and f.severity != "info"]
    assert sorted((f.recipe, f.code) for f in failed) == [
        ("nanogpt", "LOG001"),
        ("nanogpt", "LOG002"),
        ("nanogpt-no-depth-scale", "RES001"),
    ]
    assert counted.droplevel("seed").to_dict() == {
        **{("nanogpt", depth): 2.0 * (depth == 4) for depth in (2, 4, 8)},
        **{("nanogpt-no-depth-scale", depth): 1.0 for depth in (2, 4, 8)},
    }


def test_every_metric_is_larger_where_it_should_be_worse():
    run = synthetic_run(("nanogpt",), (2,), seeds=2)
    measures = {metric.name: metric.measure for metric in METRICS}
    run.tables.summary["token_position_ratio"] = [0.25, 4.0]
    run.tables.summary["own_logit"] = [-0.5, 0.25]
    run.tables.summary["loss"] = run.tables.summary["ln_vocab"] + [-0.5, 0.25]
    run.tables.heads["entropy_frac"] = 0.75
    cells = [("nanogpt", 2, seed) for seed in (0, 1)]
    expected = {
        "position / token": [math.log(4), -math.log(4)],
        "own-token logit": [0.5, 0.25],
        "excess first loss": [0.5, 0.25],
        "attention sharpness": [0.25, 0.25],
    }
    for name, values in expected.items():
        assert measures[name](run).to_dict() == pytest.approx(dict(zip(cells, values, strict=True))), name
    records = run.tables.records
    attention = (records["site"] == "attn_out") & (records["layer"] == 1) & (records["kind"] == "activation")
    records.loc[attention, "var"] *= 1e6
    own = records[records["layer"] == 1].query("kind == 'activation' and seed == 0").set_index("site")["var"]
    assert measures["largest write"](run)["nanogpt", 2, 0] == pytest.approx(
        math.log(own["attn_out"] / own["resid_pre"])
    )
    records.loc[attention, "var"] = 0.0  # no logarithm: the others are left
    assert (measures["largest write"](run) > 0).all()


def test_a_metric_of_two_values_ranks_recipes_and_one_of_a_single_value_doesnt():
    run = planted(depths=(2,))
    summary = run.tables.summary
    summary["dead_frac"] = (summary["recipe"].astype(str).isin(SIX[3:])).astype(float)
    (rho,) = of(rankings(run), "dead units")["spearman"]
    assert rho == pytest.approx(stats.spearmanr(range(6), [0, 0, 0, 1, 1, 1]).statistic)
