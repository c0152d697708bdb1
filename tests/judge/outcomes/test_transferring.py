import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_transfer import RATES, transfer_run, valley

from initlab.judge.outcomes import optima, transfers
from initlab.judge.outcomes.transferring import MOST_SEEDS, TELLS, _cost, _judged, _needed, best_rate, drift_of
from initlab.judge.students import Mean


def only(frame, **keys):
    for name, value in keys.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


@pytest.mark.parametrize("best", [2**-8, 2**-7.6, 2**-6.5, 0.005])
@pytest.mark.parametrize("rates", [RATES, (1e-3, 3e-3, 4e-3, 1e-2, 2e-2)])
def test_the_best_rate_of_a_parabola_is_its_vertex(best, rates):
    losses = (np.log2(rates) - math.log2(best)) ** 2
    assert best_rate(np.array(rates), losses) == (pytest.approx(best), 0)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], (1e-3, -1)),
        ([4.0, 3.0, 2.0, 1.0], (8e-3, 1)),
        ([2.0, 1.0, 2.0, 0.5], (8e-3, 1)),
        ([3.0, 3.0, 3.0, 3.0], (1e-3, -1)),
        ([3.0, 2.0, 2.0, 3.0], (math.sqrt(8) * 1e-3, 0)),
    ],
)
def test_a_best_rate_at_an_end_is_said_to_be_there(losses, expected):
    rate, edge = best_rate(np.array([1e-3, 2e-3, 4e-3, 8e-3]), np.array(losses))
    assert (rate, edge) == (pytest.approx(expected[0]), expected[1])


def test_a_rate_that_falls_with_width_drifts_and_one_that_doesnt_holds():
    found = transfers(transfer_run())
    falls, holds = only(found, recipe="nanogpt"), only(found, recipe="mup")
    assert falls["drift"] == pytest.approx(-1, abs=0.3)
    assert (falls["verdict"], falls["low"] < -1 < falls["high"]) == ("drifts", True)
    assert (holds["verdict"], holds["low"] < 0 < holds["high"]) == ("holds", True)
    assert (falls["small_lr"] / falls["large_lr"]) == pytest.approx(4, rel=0.3)
    assert holds["cost"] == pytest.approx(0, abs=0.02)
    assert falls["cost"] == pytest.approx(0.05 * 4, abs=0.08)  # two octaves off
    assert math.isnan(falls["seeds_needed"]) and math.isnan(holds["seeds_needed"])


def test_depth_is_an_axis_of_its_own_at_the_smallest_width():
    run = transfer_run(("a",), valley(-0.5, noise=0.02, depth_drift=0.4), depths=(2, 4, 16))
    found = transfers(run)
    assert only(found, axis="n_embd")["drift"] == pytest.approx(-0.5, abs=0.05)
    assert only(found, axis="n_layer")["drift"] == pytest.approx(0.4, abs=0.05)
    assert set(optima(run)["size"][optima(run)["axis"] == "n_layer"]) == {2, 4, 16}


def test_what_seeds_share_is_no_noise():
    """All sizes of a seed are off by the same octaves: the fit gives each seed a level of its own."""
    run = transfer_run(("a",), lambda r, n, d, lr, s: valley(-1.0, at=2.0 ** (-6 - s))(r, n, d, lr, s), seeds=3)
    row = only(transfers(run))
    assert row["drift"] == pytest.approx(-1)
    assert row["high"] - row["low"] < 1e-6


def test_the_interval_covers_the_drift_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        places = [(size, seed) for size in (64, 128, 256) for seed in range(3)]
        levels = rng.normal(0, 1, 3)
        own = pd.DataFrame(places, columns=["size", "seed"])
        octaves = [levels[seed] - 0.3 * math.log2(size) + rng.normal(0, 0.4) for size, seed in places]
        _, low, high, freedom = drift_of(own.assign(best_lr=np.exp2(octaves)))
        covered += low <= -0.3 <= high
    assert freedom == 5
    assert 933 <= covered <= 967  # 95 % of 1000, and two and a half standard errors


def test_scatter_that_hides_the_answer_says_how_many_seeds_would_show_it():
    row = only(transfers(transfer_run(("a",), valley(0.0, noise=0.7, at=2**-7.5), seeds=3)))
    assert row["verdict"] == "not resolved"
    assert max(-row["low"], row["high"]) > TELLS["n_embd"]
    assert 3 < row["seeds_needed"] < 30
    assert row["why"] == "the interval holds 0 and reaches beyond ±0.5"


def test_two_seeds_at_two_sizes_have_an_interval_and_one_has_none():
    pair = only(transfers(transfer_run(("a",), valley(0.0, noise=0.1), widths=(64, 128), seeds=2)))
    assert math.isfinite(pair["low"])
    alone = only(transfers(transfer_run(("a",), valley(0.0), widths=(64, 128), seeds=1)))
    assert math.isnan(alone["low"])
    assert (alone["verdict"], alone["why"]) == ("not resolved", "an interval needs two seeds, or three sizes")


def test_a_best_rate_beyond_the_swept_ones_resolves_only_what_it_can_make_larger():
    lower = only(transfers(transfer_run(("a",), valley(-1.0, at=2**-9, noise=0.05), widths=(64, 128, 512))))
    assert (lower["verdict"], lower["drift"] > -1) == ("drifts", True)
    assert lower["why"] == "at least so: at n_embd 512 the best is at the end of the swept rates"
    held = only(transfers(transfer_run(("a",), valley(0.0, at=2**-11.5, noise=0.05))))
    assert held["verdict"] == "not resolved"
    assert held["why"] == "at n_embd 64 and 128 and 256 the lowest swept rate is the best of a seed: sweep further"


def optima_of(edges: list[list[int]]) -> pd.DataFrame:
    """Rows of `optima`, of one recipe: for each size in turn the edge of each seed."""
    rows = [(2**at, seed, edge) for at, own in enumerate(edges) for seed, edge in enumerate(own)]
    return pd.DataFrame(rows, columns=["size", "seed", "edge"])


@pytest.mark.parametrize(
    ("low", "high", "verdict", "why"),
    [
        (0.01, 0.5, "drifts", "the interval leaves out 0"),
        (-0.5, -0.01, "drifts", "the interval leaves out 0"),
        (0.0, 0.1, "holds", "the interval holds 0 and is within ±0.25"),
        (-0.1, 0.0, "holds", "the interval holds 0 and is within ±0.25"),
        (-0.25, 0.25, "holds", "the interval holds 0 and is within ±0.25"),
        (-0.26, 0.1, "not resolved", "the interval holds 0 and reaches beyond ±0.25"),
        (-0.1, 0.26, "not resolved", "the interval holds 0 and reaches beyond ±0.25"),
        (math.nan, math.nan, "not resolved", "an interval needs two seeds, or three sizes"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, verdict, why):
    assert _judged(optima_of([[0, 0], [0, 0]]), [1, 2], "n_layer", low, high) == (verdict, why)


@pytest.mark.parametrize(
    ("edges", "interval", "further"),
    [
        # a best rate that falls with size is cut at the upper end of the rates while small, at the lower while large
        ([[0, 0], [0, 0], [0, -1]], (-2.0, -0.1), True),
        ([[1, 0], [0, 0], [0, 0]], (-2.0, -0.1), True),
        ([[1, 0], [0, 0], [-1, -1]], (-2.0, -0.1), True),
        ([[-1, 0], [0, 0], [0, 0]], (-2.0, -0.1), False),
        ([[0, 0], [0, 0], [0, 1]], (-2.0, -0.1), False),
        ([[0, 0], [0, -1], [0, 0]], (-2.0, -0.1), False),  # in the middle it may be either
        ([[0, 0], [0, -1], [0, -1]], (-2.0, -0.1), False),
        ([[0, 0], [0, 0], [0, -1]], (-2.0, 0.0), False),
        ([[0, 0], [0, 0], [0, -1]], (-2.0, 0.5), False),
        # and one that rises the other way round
        ([[0, 0], [0, 0], [0, 1]], (0.1, 2.0), True),
        ([[-1, 0], [0, 0], [0, 0]], (0.1, 2.0), True),
        ([[1, 0], [0, 0], [0, 0]], (0.1, 2.0), False),
        ([[0, 0], [0, 0], [0, -1]], (0.1, 2.0), False),
        ([[0, 0], [0, 0], [0, 1]], (0.0, 2.0), False),
    ],
)
def test_a_best_at_an_end_of_the_rates_leaves_the_verdict_only_what_it_makes_surer(edges, interval, further):
    verdict, why = _judged(optima_of(edges), [1, 2, 4], "n_embd", *interval)
    assert verdict == ("drifts" if further else "not resolved")
    assert why.startswith("at least so: at n_embd " if further else "at n_embd ")


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([[0, -1], [0, 0], [0, -1]], "at n_embd 1 and 4 the lowest swept rate is the best of a seed: sweep further"),
        ([[0, 0], [0, 1], [0, 0]], "at n_embd 2 the highest swept rate is the best of a seed: sweep further"),
        ([[0, -1], [0, 1], [0, 1]], "at n_embd 1 and 2 and 4 the lowest or highest swept rate is the best of a seed"),
        ([[-1, 1], [0, 0], [0, 0]], "at n_embd 1 the lowest or highest swept rate is the best of a seed"),
    ],
)
def test_the_end_at_which_a_best_lies_is_named(edges, said):
    assert _judged(optima_of(edges), [1, 2, 4], "n_embd", -0.1, 0.1)[1].startswith(said)


@pytest.mark.parametrize(
    ("drift", "half", "needed"),
    [
        # 3 sizes, 2 seeds have 3 degrees of freedom, n seeds 2n − 1; worked out with scipy's t below
        (0.0, 0.6, 3.0),
        (0.0, 1.2, 6.0),
        (0.45, 1.2, 7.0),  # 0.45 from 0, 0.05 from the limit
        (-0.1, 1.2, 9.0),  # 0.1 from 0, 0.4 from the limit
        (0.0, 20.0, math.inf),
        (0.0, math.nan, math.nan),
    ],
)
def test_the_seeds_that_would_tell_make_half_the_interval_smaller_than_the_larger_room(drift, half, needed):
    own = optima_of([[0, 0]] * 3)
    assert _needed(own, "n_embd", drift, drift - half, drift + half, 3) == pytest.approx(needed, nan_ok=True)
    room = max(abs(drift), 0.5 - abs(drift))
    scatter = half / stats.t.ppf(0.975, 3)
    widths = [scatter * stats.t.ppf(0.975, 2 * n - 1) * math.sqrt(2 / n) for n in range(3, MOST_SEEDS + 1)]
    enough = [n for n, width in zip(range(3, MOST_SEEDS + 1), widths, strict=True) if width < room]
    if math.isfinite(needed):
        assert enough[0] == needed
    assert math.isnan(_needed(optima_of([[0, 1], [0, 0]]), "n_embd", 0.0, -0.6, 0.6, 1))  # sweep further first


def test_one_hundred_seeds_are_the_most_that_are_named():
    own = optima_of([[0, 0]] * 3)
    scatter = 0.5 / (stats.t.ppf(0.975, 2 * MOST_SEEDS - 1) * math.sqrt(2 / MOST_SEEDS))
    for slack, needed in ((0.9999, MOST_SEEDS), (1.0001, math.inf)):
        half = slack * scatter * stats.t.ppf(0.975, 3)
        assert _needed(own, "n_embd", 0.0, -half, half, 3) == needed


def test_the_cost_is_read_between_the_swept_rates():
    table = pd.DataFrame({2**-4: [3.0, 3.1], 2**-2: [2.0, 2.3], 1.0: [4.0, 4.0]})
    # halfway between two rates, on a logarithmic axis
    lost = [2.5 - 2.0, 2.7 - 2.3]
    found = _cost(table, 2**-3, 2**-2)
    assert (found.value, found.n) == (pytest.approx(0.45), 2)
    assert found.interval() == pytest.approx(Mean.of(lost).interval())
    assert _cost(table, 2**-2, 2**-2).value == 0
    assert _cost(table, 2**-1, 2**-2).value == pytest.approx((1.0 + 0.85) / 2)


def test_a_run_that_diverged_counts_as_ln_v_and_a_seed_without_a_rate_takes_no_part():
    level = valley(0.0)
    broken = transfer_run(("a",), lambda r, n, d, lr, s: math.nan if lr > 0.03 else level(r, n, d, lr, s))
    assert only(transfers(broken))["verdict"] == "holds"
    partly = transfer_run(("a",), level, missing=lambda r, n, d, lr, s: s == 2 and d == 256 and lr == RATES[0])
    found = optima(partly)
    assert found.groupby("size")["seed"].nunique().to_dict() == {64: 3, 128: 3, 256: 2}
    nothing = transfer_run(("a",), level, missing=lambda r, n, d, lr, s: d > 64 and lr == RATES[0])
    assert set(optima(nothing)["size"]) == {64} and transfers(nothing).empty


def test_recipes_are_in_the_order_they_were_given_whichever_run_ended_first():
    run = transfer_run()
    run.tables.runs = run.tables.runs.iloc[::-1]
    assert list(transfers(run)["recipe"]) == ["nanogpt", "mup"]
    assert list(optima(run).query("recipe == 'mup'")["size"].unique()) == [64, 128, 256]
