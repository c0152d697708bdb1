"""Exponents recovered from frames that were made with them."""

import math

import numpy as np
import pandas as pd
import pytest

from initlab import schema
from initlab.judge.slopes import diverged, points, slopes, verdict


def frame(exponents, sizes=(64, 128, 256), axis="n_embd", site="mlp_pre", step=0, kind="activation", **more):
    """Records with var = size^exponent, one exponent a seed, in two blocks."""
    fixed = {"n_embd": 64, "n_layer": 2}
    rows = [
        {
            **fixed,
            axis: size,
            "run_id": f"r-{axis}{size}-s{seed}",
            "recipe": "r",
            "seed": seed,
            "step": step,
            "site": site,
            "kind": kind,
            "layer": layer,
            "module": f"h.{layer}.mlp.0",
            "position": layer,
            "call": 0,
            "n_tokens": 4,
            "numel": 4,
            "var": float(size) ** exponent * (1.0 if layer else 4.0),
            "expected_var": float(size) ** 0.5,
            "frac_nonfinite": 0.0,
            **more,
        }
        for size in sizes
        for seed, exponent in enumerate(exponents)
        for layer in range(2)
    ]
    return schema.table("records", rows)


def only(found):
    assert len(found) == 1
    return found.iloc[0]


def test_several_seeds_give_their_mean_and_students_interval():
    row = only(slopes(frame([0.9, 1.0, 1.1])))
    assert (row["slope"], row["stderr"]) == pytest.approx((1.0, 0.1 / math.sqrt(3)))
    assert row["high"] - row["slope"] == pytest.approx(4.30265 * 0.1 / math.sqrt(3))
    assert (row["n"], row["sizes"], row["seeds"], row["axis"]) == (9, 3, 3, "n_embd")
    assert row["expected"] == pytest.approx(0.5)


@pytest.mark.parametrize(("sizes", "quantile"), [((64, 128, 256), 12.7062), ((64, 128, 256, 1024), 4.30265)])
def test_one_seed_is_judged_by_the_fits_residuals(sizes, quantile):
    records = frame([1.0], sizes=sizes)
    records.loc[records["n_embd"] == 128, "var"] *= 1.1
    x, y = np.log(sizes), np.log([size * (1.1 if size == 128 else 1.0) for size in sizes])
    (slope, _), covariance = np.polyfit(x, y, 1, cov="unscaled")
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    row = only(slopes(records))
    assert row["slope"] == pytest.approx(slope)
    assert row["stderr"] == pytest.approx(math.sqrt(covariance[0, 0] * (residual @ residual) / (len(sizes) - 2)))
    assert row["high"] - row["slope"] == pytest.approx(quantile * row["stderr"])


def test_two_sizes_and_one_seed_have_no_interval_and_separate_nothing():
    row = only(slopes(frame([3.0], sizes=(64, 128))))
    assert row["slope"] == pytest.approx(3.0)
    assert np.isnan([row["stderr"], row["low"], row["high"]]).all()
    assert row["verdict"] == "not separated"


@pytest.mark.parametrize(
    ("exponents", "said"),
    [
        ([0.01, 0.0, -0.01], "flat"),
        ([1.0, 1.01, 0.99], "grows"),
        ([-1.0, -1.01, -0.99], "shrinks"),
        ([0.2, 0.21, 0.19], "not separated"),
        ([1.0, -1.0, 0.9], "not separated"),
    ],
)
def test_verdicts(exponents, said):
    assert only(slopes(frame(exponents)))["verdict"] == said
    assert only(slopes(frame(exponents), flat=10.0))["verdict"] == "flat"


def test_a_curve_is_told_from_a_line():
    """Of exponents that fall from 2 to 0 over the sizes, the line through them is 1 and their change -2."""
    sizes = np.array([64.0, 128.0, 256.0])
    records = frame([1.0, 1.01, 0.99])
    line = only(slopes(records))
    assert line["bend"] == pytest.approx(0, abs=1e-9) and not line["bent"]
    x = np.log(records["n_embd"] / sizes[0]) / np.log(4)
    records["var"] *= np.exp(np.log(4) * (x - x**2))
    row = only(slopes(records))
    assert (row["slope"], row["bend"]) == pytest.approx((1.0, -2.0))
    assert row["bent"] and row["verdict"] == "grows"
    assert np.isnan(only(slopes(frame([1.0, 1.0], sizes=(64, 128))))["bend"])


@pytest.mark.parametrize("bend", [0.5, -0.5, 0.2, -0.2])
def test_a_curve_is_bent_either_way_once_it_is_more_than_flat(bend):
    records = frame([1.0, 1.01, 0.99])
    x = np.log(records["n_embd"] / 64) / np.log(4)
    records["var"] *= np.exp(np.log(4) * bend / 2 * (x**2 - x))
    row = only(slopes(records, flat=0.3))
    assert row["bend"] == pytest.approx(bend)
    assert row["bent"] == (abs(bend) > 0.3)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_curve_whose_interval_holds_none_is_not_told(sign):
    """Bends of 0.2, 0.4 and 0.6: 0.4 ± 0.497."""
    records = frame([1.0, 1.0, 1.0])
    x = np.log(records["n_embd"] / 64) / np.log(4)
    bend = sign * (0.2 + 0.2 * records["seed"])
    records["var"] *= np.exp(np.log(4) * bend / 2 * (x**2 - x))
    row = only(slopes(records, flat=0.3))
    assert row["bend"] == pytest.approx(sign * 0.4) and not row["bent"]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.25, 0.5, "not separated"),
        (0.26, 0.5, "grows"),
        (-0.5, -0.25, "not separated"),
        (-0.5, -0.26, "shrinks"),
        (-0.25, 0.25, "flat"),
        (-0.25, 0.26, "not separated"),
    ],
)
def test_an_interval_that_ends_at_the_limit_is_within_it(low, high, said):
    assert verdict(low, high, 0.25) == said


def test_scatter_is_no_curve():
    """The bend's interval holds 0 in about 95 of 100 tables of scatter; beyond `flat` it is then rarer still."""
    draws, quiet, tables = np.random.default_rng(0), frame([1.0, 1.0, 1.0]), []
    model = quiet.groupby(["n_embd", "seed"], sort=False).ngroup()
    for number in range(200):
        noise = np.exp(draws.normal(0, 0.2, model.nunique()))
        tables.append(quiet.assign(recipe=f"r{number}", var=quiet["var"] * noise[model]))
    bent = slopes(pd.concat(tables, ignore_index=True))["bent"].sum()
    assert 1 <= bent <= 20


def test_values_that_are_not_finite_or_zero_take_no_part():
    records = frame([1.0, 1.0, 1.0])
    records.loc[(records["n_embd"] == 256) & (records["seed"] == 0) & (records["layer"] == 1), "var"] = math.inf
    records.loc[(records["n_embd"] == 256) & (records["seed"] == 1), "var"] = 0.0
    row = only(slopes(records))
    assert row["slope"] == pytest.approx(1.0)
    assert row["n"] == 7
    records["var"] = math.nan
    row = only(slopes(records))
    assert np.isnan(row["slope"]) and row["n"] == 0 and row["verdict"] == "not separated"


def test_a_point_is_missing_as_soon_as_one_block_is():
    records = frame([1.0])
    records.loc[(records["n_embd"] == 64) & (records["layer"] == 0), ["var", "expected_var"]] = 0.0
    records.loc[(records["n_embd"] == 128) & (records["layer"] == 1), "var"] = math.inf
    found = points(records).set_index("n_embd")
    assert found["log_var"].isna().tolist() == [True, True, False]
    assert found["log_expected"].isna().tolist() == [True, False, False]


@pytest.mark.parametrize("kind", ["activation", "change", "effective", "propagating", "grad", "weight"])
def test_activations_and_what_moved_them_have_slopes(kind):
    found = slopes(frame([1.0], kind=kind))
    assert found["kind"].tolist() == ([] if kind in ("grad", "weight") else [kind])
    assert found["module"].tolist() == [""] * len(found)  # a site has a name


def test_recipes_come_as_measured_those_of_one_size_are_left_out_and_those_that_nobody_measured_too():
    """Also where recipes are a category that has more of them than are there."""
    recipes = ["a", "none", "one", "z"]
    one = frame([1.0], sizes=(64,), recipe="one")
    records = pd.concat([one, frame([1.0], recipe="z"), frame([2.0], recipe="a")], ignore_index=True)
    records["recipe"] = pd.Categorical(records["recipe"], categories=recipes)
    found = slopes(records)
    assert found["recipe"].tolist() == ["z", "a"]
    assert found["slope"].tolist() == pytest.approx([1.0, 2.0])
    assert points(records)["recipe"].unique().tolist() == ["one", "z", "a"]


def test_each_axis_is_fitted_where_the_other_is_smallest():
    wide = frame([1.0, 1.0], sizes=(64, 128))
    deep = frame([-1.0, -1.0], sizes=(4, 8), axis="n_layer")
    both = frame([5.0, 5.0], sizes=(128,), n_layer=8)  # on neither axis
    found = slopes(pd.concat([wide, deep, both], ignore_index=True)).set_index("axis")
    assert found.loc["n_embd", "slope"] == pytest.approx(1.0)
    assert found.loc["n_layer", "n"] == 6
    assert found.loc["n_embd", "n"] == 4


def test_the_stream_is_that_of_the_last_block_and_layers_go_by_name():
    stream = frame([1.0], site="resid_post")
    stream.loc[stream["layer"] == 0, "var"] = 1.0
    assert only(slopes(stream))["slope"] == pytest.approx(1.0)
    layers = frame([1.0], site="module")
    assert only(slopes(layers))["module"] == "h.*.mlp.0"
    layers["layer"] = pd.NA
    assert set(slopes(layers)["module"]) == {"h.0.mlp.0", "h.1.mlp.0"}


def test_diverged_names_the_first_step_and_how_many_seeds():
    keys = {"run_id": "r", "recipe": "r", "n_layer": 2, "n_embd": 64, "n_head": 1, "block_size": 4, "vocab_size": 4}
    rows = [
        keys | {"seed": seed, "step": step, "loss": math.inf if (seed, step) >= (1, 1) else 1.0, "n_params": 1}
        for seed in range(2)
        for step in range(3)
    ]
    table = schema.table("summary", [row | {"n_tokens": 1} for row in rows])
    table["recipe"] = pd.Categorical(table["recipe"], categories=["r", "none"])
    found = only(diverged(table))
    assert (found["step"], found["seeds"], found["of"]) == (1, 1, 2)
