"""A sum of embeddings, taken apart."""

import pytest
import torch

from initlab.measure.positions import added, sum_factors


def test_factors_of_a_sum():
    torch.manual_seed(0)
    token, position = torch.randn(2, 16, 8), torch.randn(16, 8)
    assert sum_factors(3 * token - 2 * position, token, position) == pytest.approx((3, -2), rel=1e-5)
    assert sum_factors(torch.randn(2, 16, 8), token, position) is None
    assert sum_factors(token, token, torch.randn(16, 4)) is None  # of another width
    assert sum_factors(torch.zeros(2, 16, 8), token, position) is None
    half = (3 * token - 2 * position).bfloat16()
    assert sum_factors(half, token, position) == pytest.approx((3, -2), rel=1e-2)


def test_what_is_the_same_in_every_sequence():
    torch.manual_seed(0)
    token, position = torch.randn(3, 16, 8), torch.randn(16, 8)
    expected = position.square().mean().item()
    assert added(3 * token - 2 * position, token) == pytest.approx((3, 4 * expected), rel=1e-4)
    assert added(2 * token, token) == pytest.approx((2, 0))
    half = (3 * token - 2 * position).bfloat16()
    assert added(half, token) == pytest.approx((3, 4 * expected), rel=2e-2)
    dropped = torch.nn.functional.dropout(token + position, 0.1)
    factor, square = added(dropped, token)
    assert factor == pytest.approx(1 / 0.9, rel=1e-4) and square == pytest.approx(expected / 0.81, rel=0.2)
    assert added(torch.randn(3, 16, 8), token) is None
    assert added(token[:1], token[:1]) is None  # a single sequence can't tell
    assert added(token, torch.randn(3, 16, 4)) is None
    assert added(torch.zeros(3, 16, 8), token) is None
