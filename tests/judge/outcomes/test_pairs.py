import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from initlab.judge.outcomes.pairs import PAIRS_DEFINITION, Pair, pairs
from initlab.judge.students import LEVEL, Mean

GRIDS = 250
NOISES = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(2, size=shape),
}


def of(grid):
    return pairs(pd.DataFrame(grid, columns=[f"r{place}" for place in range(grid.shape[1])]))


def falsely(recipes, seeds, noise, grids=GRIDS, scale=1.0):
    """Share of grids of equal recipes in which one is said to train worse than another."""
    rng = np.random.default_rng([recipes, seeds])
    return sum(any(p.separated for p in of(noise(rng, (seeds, recipes)) * scale)) for _ in range(grids)) / grids


def most(grids):
    """The largest share that chance leaves a procedure which keeps the level: 3 standard errors."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / grids)


@pytest.mark.parametrize("noise", NOISES)
def test_equal_recipes_are_rarely_told_apart_whatever_their_number(noise):
    shares = {
        (recipes, seeds): falsely(recipes, seeds, NOISES[noise])
        for recipes, seeds in itertools.product((2, 4, 6), (2, 3, 5))
    }
    assert max(shares.values()) <= most(GRIDS), shares
    # a bias that all of them have would hide in the errors of each
    assert np.mean(list(shares.values())) <= most(GRIDS * len(shares)), shares


def test_equal_recipes_of_unequal_scatter_are_rarely_told_apart():
    scale = np.geomspace(1, 10, 6)
    assert falsely(6, 3, NOISES["normal"], grids=600, scale=scale) <= most(600)


def test_the_best_of_the_same_runs_is_not_picked_for_nothing():
    # what comparing with the winner alone does, so that the simulation is known to see it
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(600):
        grid = rng.normal(size=(5, 6))
        best = grid.mean(axis=0).argmin()
        p = [stats.ttest_rel(grid[:, place], grid[:, best]).pvalue for place in range(6) if place != best]
        found += min(p) <= LEVEL / 5
    assert found / 600 > most(600)


@pytest.mark.parametrize(("recipes", "seeds", "size"), [(2, 3, 6), (4, 3, 9), (4, 5, 4), (6, 5, 4), (9, 4, 7)])
def test_a_real_difference_is_found(recipes, seeds, size):
    """In four of five grids, one recipe is worse than all others by `size` times the scatter of a recipe."""
    rng = np.random.default_rng(0)
    shift = size * (np.arange(recipes) == recipes - 1)
    found = 0
    for _ in range(100):
        told = of(rng.normal(size=(seeds, recipes)) + shift)
        found += any(pair.separated and pair.worse == f"r{recipes - 1}" for pair in told)
    assert found >= 80


def test_pairs_by_hand():
    grid = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.5, 2.6, 3.4], "c": [1.3, 2.2, 3.4]})
    told = {(each.worse, each.better): each for each in pairs(grid)}
    assert set(told) == {("b", "a"), ("c", "a"), ("b", "c")}
    p = {key: stats.ttest_rel(grid[key[0]], grid[key[1]]).pvalue for key in told}
    order = sorted(p, key=p.get)
    adjusted = np.minimum(1, np.maximum.accumulate([p[key] * left for key, left in zip(order, (3, 2, 1), strict=True)]))
    assert [told[key].p_holm for key in order] == pytest.approx(list(adjusted))
    assert told["b", "a"].difference.value == pytest.approx(0.5)
    assert told["b", "a"].separated == (adjusted[order.index(("b", "a"))] <= LEVEL)


def test_a_pair_is_of_the_seeds_that_both_have():
    grid = pd.DataFrame({"a": [1.0, 2.0, math.nan], "b": [1.2, 2.3, 9.0], "c": [math.nan, math.nan, 3.0]})
    told = {(each.worse, each.better): each.difference.n for each in pairs(grid)}
    assert told == {("b", "a"): 2, ("b", "c"): 1}


def test_a_single_seed_separates_nothing():
    (pair,) = pairs(pd.DataFrame({"a": [1.0], "b": [5.0]}))
    assert math.isnan(pair.p_holm) and not pair.separated
    assert pairs(pd.DataFrame({"a": [1.0]})) == pairs(pd.DataFrame()) == []


def test_seeds_needed_are_at_the_level_of_the_pair():
    pair = Pair("a", "b", Mean(3, 0.1, 0.02), 0.1, LEVEL / 6)
    assert pair.seeds_needed == Mean(3, 0.1, 0.02).seeds_needed(LEVEL / 6) > Mean(3, 0.1, 0.02).seeds_needed()
    assert "all pairs" in PAIRS_DEFINITION
