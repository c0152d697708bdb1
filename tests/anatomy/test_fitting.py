"""Sums of tensors, recognised from samples."""

import numpy as np
import pytest
import torch

from initlab.anatomy.fitting import CHANNELS, SAMPLE, fit_channels, fit_scaled_sum, fit_sum, sample

EPS = 2.0**-23


def normal(seed, scale=1.0):
    values = np.random.default_rng(seed).normal(0, scale, (64, 64))
    return values.astype(np.float32).astype(np.float64)


def rounded(values):
    return values.astype(np.float32).astype(np.float64)


X, A, B, C = (normal(seed) for seed in range(4))


@pytest.mark.parametrize("shape", [(2, 3, 8), (64, 64, 768), (5, 7), (3,), (), (0, 4)])
def test_a_sample_takes_the_same_elements_of_every_tensor_of_a_shape(shape):
    ones, twos = (
        torch.arange(float(np.prod(shape))).reshape(shape),
        torch.arange(2.0, 2 + np.prod(shape)).reshape(shape),
    )
    first, second = sample(ones), sample(twos)
    assert first.ndim == 2 and first.size <= SAMPLE and first.shape[1] <= CHANNELS
    assert np.array_equal(first + 2, second)


def test_a_large_sample_sees_each_of_its_channels_in_many_rows():
    values = sample(torch.arange(1024.0).expand(256, 1024))
    assert values.shape == (64, 64) and (values == values[0]).all()


def test_plain_sums_take_the_fewest_and_latest_terms():
    assert fit_sum(rounded(X + A), X, [A, B], EPS).terms == (0,)
    assert fit_sum(rounded(X + A), X, [A, B, A], EPS).terms == (2,)
    found = fit_sum(rounded(X + A + 0.5 * C), X, [A, B, C], EPS)
    assert dict(zip(found.terms, found.scales, strict=True)) == {0: 1.0, 2: pytest.approx(0.5)}
    assert sorted(fit_sum(rounded(X + A + B + C), X, [A, B, C], EPS).terms) == [0, 1, 2]
    assert found.keep == 1 and not found.per_channel


@pytest.mark.parametrize("target", [rounded(X + 0.9 * A + 1e-4 * normal(9)), rounded(2 * X + A), A, X * np.nan])
def test_what_is_no_plain_sum(target):
    assert fit_sum(target, X, [A, B], EPS) is None


def test_a_write_below_rounding_explains_nothing():
    assert fit_sum(rounded(X + 1e-9 * A), X, [B, C], EPS) is None


def test_zero_and_non_finite_outputs_are_no_terms():
    assert fit_sum(rounded(X + A), X, [np.zeros_like(X), X * np.inf, A], EPS).terms == (2,)
    assert fit_sum(rounded(X + A), X, [np.zeros_like(X)], EPS) is None


def test_scaled_skip():
    found = fit_scaled_sum(rounded(0.9 * X + 0.4 * A), X, [B, A], EPS, alone=False)
    assert found.terms == (1,) and found.keep == pytest.approx(0.9) and found.scales == pytest.approx((0.4,))
    assert fit_scaled_sum(rounded(0.9 * X), X, [A], EPS, alone=False) is None
    assert fit_scaled_sum(rounded(0.9 * X), X, [A], EPS, alone=True).terms == ()


@pytest.mark.parametrize("target", [rounded(0.4 * A + 0.6 * B), rounded(0.4 * A + 0.6 * B + 1e-6 * X), rounded(X * A)])
def test_a_sum_in_which_the_base_isnt_seen_is_not_the_stream(target):
    assert fit_scaled_sum(target, X, [A, B], EPS, alone=True) is None


def test_scale_per_channel():
    scale = np.linspace(0.1, 1, 64)
    found = fit_channels(rounded(X + scale * A), X, [A, B], EPS)
    assert found.terms == (0,) and found.per_channel
    assert found.scales == pytest.approx((np.sqrt((scale**2).mean()),), rel=0.05)
    assert fit_channels(rounded(X + scale * A)[:4], X[:4], [A[:4]], EPS) is None  # too few rows to prove anything
    assert fit_channels(rounded(X + A * B), X, [A, B], EPS) is None
