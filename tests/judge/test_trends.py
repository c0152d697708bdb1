"""The odd layer out, and layer-indexed inits that aren't."""

import math

import numpy as np
import pytest

from initlab.judge.rules.trends import off_trend

LAYERS = np.arange(12.0)


@pytest.mark.parametrize("power", [0.0, -0.5, -1.0, 0.7])
@pytest.mark.parametrize("odd", [0, 1, 6, 11])
def test_one_layer_is_off_by_its_own_factor(power, odd):
    values = 0.02 * (LAYERS + 1) ** power
    assert np.abs(off_trend(LAYERS, values)).max() < 1e-9
    values[odd] *= 5
    off = off_trend(LAYERS, values)
    assert off[odd] == pytest.approx(math.log(5), rel=0.05)
    assert np.abs(np.delete(off, odd)).max() < 0.1


def test_scatter_hides_what_is_no_larger():
    values = 0.02 * np.exp(np.random.default_rng(0).normal(0, 0.02, 12))
    values[3] *= 1.03
    assert not off_trend(LAYERS, values).any()


def test_zeros_stand_out_where_most_write():
    values = np.full(12, 0.02)
    values[4] = 0
    assert off_trend(LAYERS, values)[4] == -math.inf
    assert not off_trend(LAYERS, np.where(LAYERS % 2, 0.02, 0.0)).any()
    assert not off_trend(LAYERS, np.zeros(12)).any()


def test_too_few_layers_and_broken_values_say_nothing():
    assert not off_trend(LAYERS[:3], np.array([1.0, 1.0, 50.0])).any()
    assert not off_trend(LAYERS, np.full(12, np.nan)).any()
    assert off_trend(LAYERS[:4], np.array([1.0, 1.0, 1.0, 25.0]))[3] == pytest.approx(math.log(25))
