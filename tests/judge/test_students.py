import math

import numpy as np
import pytest
from scipy import stats

from initlab.judge.students import MOST_SEEDS, Mean, holm, t_quantile


def test_quantiles_of_students_t():
    # Abramowitz and Stegun, table 26.10
    for freedom, value in ((1, 12.706), (2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (120, 1.980)):
        assert t_quantile(freedom) == pytest.approx(value, rel=1e-3)


def test_interval_and_p_are_those_of_scipys_t_test():
    values = np.random.default_rng(0).normal(0.1, 0.2, 5)
    found, told = Mean.of(values), stats.ttest_1samp(values, 0.0)
    assert found.p == pytest.approx(told.pvalue, rel=1e-12)
    for level in (0.05, 0.01):
        assert found.interval(level) == pytest.approx(tuple(told.confidence_interval(1 - level)), rel=1e-12)


def test_a_single_seed_has_a_mean_and_no_interval():
    one = Mean.of([0.3, math.nan])
    assert (one.n, one.value) == (1, 0.3)
    assert math.isnan(one.p)
    assert all(math.isnan(end) for end in one.interval())
    assert math.isnan(one.seeds_needed())
    none = Mean.of([])
    assert none.n == 0 and math.isnan(none.value) and math.isnan(none.sd)


def test_what_is_missing_is_no_value_whatever_it_is_written_as():
    assert Mean.of([0.1, None, 0.3]) == Mean.of([0.1, 0.3])
    assert holm([0.01, None])[0] == pytest.approx([0.01, math.nan], nan_ok=True)


def test_no_scatter_at_all_is_certain_unless_the_mean_is_zero():
    assert Mean.of([0.2, 0.2, 0.2]).p < 1e-12
    assert Mean.of([0.25, 0.25]).p == 0.0
    assert Mean.of([0.25, 0.25]).interval() == (0.25, 0.25)
    assert Mean.of([0.0, 0.0, 0.0]).p == 1.0
    assert Mean.of([0.0, 0.0]).seeds_needed() == math.inf
    assert Mean.of([0.25, 0.25]).seeds_needed() == 2


def test_seeds_needed_is_the_first_count_whose_interval_leaves_out_zero():
    found = Mean(3, 0.1, 0.2)
    needed = found.seeds_needed()
    assert Mean(int(needed), 0.1, 0.2).interval()[0] > 0
    assert Mean(int(needed) - 1, 0.1, 0.2).interval()[0] <= 0
    assert found.seeds_needed(0.001) > needed
    assert Mean(3, 0.001, 0.2).seeds_needed() == math.inf


@pytest.mark.parametrize("count", [2, 3, 4, 10, MOST_SEEDS, MOST_SEEDS + 1])
def test_seeds_needed_at_the_edge(count):
    edge = t_quantile(count - 1) / math.sqrt(count)  # a mean, in sd, that so many seeds just don't separate from 0
    assert Mean(2, edge * 1.0001, 1.0).seeds_needed() == (count if count <= MOST_SEEDS else math.inf)
    assert Mean(2, -edge * 0.9999, 1.0).seeds_needed() == (count + 1 if count < MOST_SEEDS else math.inf)


def test_holm_by_hand():
    # 4 tests at .05: .01 <= .0125, .014 <= .0167, .03 > .025: there it stops, and .04 (< .05) is held to .025 too
    adjusted, levels = holm([0.04, 0.01, math.nan, 0.03, 0.014])
    assert adjusted == pytest.approx([0.06, 0.04, math.nan, 0.06, 0.042], nan_ok=True)
    assert levels == pytest.approx([0.025, 0.0125, math.nan, 0.025, 0.05 / 3], nan_ok=True)


def test_a_p_that_is_its_level_is_below_it_and_none_is_above_one():
    adjusted, levels = holm([0.025, 0.05])
    assert adjusted.tolist() == [0.05, 0.05] and levels.tolist() == [0.025, 0.05]
    assert holm([0.9, 0.8])[0].tolist() == [1.0, 1.0]


def test_holm_of_one_and_of_none():
    assert holm([0.03])[0] == pytest.approx([0.03])
    assert holm([])[0].size == 0
    assert np.isnan(holm([math.nan])[0]).all()
