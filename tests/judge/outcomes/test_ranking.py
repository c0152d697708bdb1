import math

import numpy as np
import pytest
from scipy import stats
from synthetic_training import trained_run

from initlab.judge.outcomes import METRICS, rankings
from initlab.judge.outcomes.ranking import interval
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
    writes = [
        math.log(by_site[write, layer] / by_site[stream, layer])
        for write, stream in (("attn_out", "resid_pre"), ("mlp_out", "resid_mid"))
        for layer in (0, 1)
    ]
    assert measures["largest write"](probed)["nanogpt", 2, 0] == pytest.approx(max(writes))


def test_nothing_trained_ranks_nothing():
    assert rankings(planted(missing=lambda *_: True)).empty
