"""What attention does to means over positions, against sums over every pair of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from initlab.judge.theory.positions import Grid, View, peakedness

T = 9


def visible(queries: int, keys: int, causal: bool, window: int | None) -> np.ndarray:
    """Which key each query sees, one by one."""
    at, other = np.arange(queries)[:, None], np.arange(keys)[None, :]
    if window is None:
        return (other <= at) if causal else np.ones((queries, keys), bool)
    if causal:
        return (other <= at) & (other > at - window)
    return np.abs(other - at) <= (window - 1) // 2


MASKS = [(True, None), (True, 1), (True, 4), (True, T), (True, 100), (False, None), (False, 3), (False, 100)]


@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("kept", [1.0, 0.8])
def test_attention_averages_what_each_query_sees(causal: bool, window: int | None, kept: float) -> None:
    rng = np.random.default_rng(0)
    view = View(Grid.exact(T), causal=causal, window=window)
    seen = visible(T, T, causal, window if window is not None and window < T else None)
    n = seen.sum(1)
    assert view.seen.tolist() == seen.astype(float).tolist() and view.keys.tolist() == n.tolist()
    v, between, squares = rng.uniform(1, 2, T), rng.uniform(0, 0.5, (T, T)), rng.uniform(0.2, 1, T)
    between = between + between.T  # of two positions the mean product is at most the mean square
    mean_square, together = view.attend(v, between, squares, kept)
    for q in range(T):
        own = seen[q]
        # weights of mean 1/n whose squares sum to a given number, and a dropout of each
        even = (between * np.outer(own, own)).sum() / n[q] ** 2
        alone = squares[q] * ((v - np.diag(between)) * own).sum() / n[q]
        dropped = (1 / kept - 1) * squares[q] * (v * own).sum() / n[q]
        assert mean_square[q] == pytest.approx(even + alone + dropped)
        for other in range(T):
            both = (between * np.outer(own, seen[other])).sum() + ((v - np.diag(between)) * own * seen[other]).sum()
            assert together[q, other] == pytest.approx(both / n[q] / n[other])
            shared = (own & seen[other]).sum() / n[q] / n[other]
            assert view.shared[q, other] == pytest.approx(shared)


@pytest.mark.parametrize(("causal", "window"), MASKS)
@pytest.mark.parametrize("kept", [1.0, 0.8])
def test_gradients_go_back_to_what_was_seen(causal: bool, window: int | None, kept: float) -> None:
    rng = np.random.default_rng(0)
    view = View(Grid.exact(T), causal=causal, window=window)
    seen = visible(T, T, causal, window if window is not None and window < T else None)
    n = seen.sum(1)
    g, between, squares = rng.uniform(1, 2, T), rng.uniform(0, 0.5, (T, T)), rng.uniform(0.2, 1, T)
    between = between + between.T  # of two positions the mean product is at most the mean square
    mean_square, together = view.attend_back(g, between, squares, kept)
    excess = g - np.diag(between)
    for k in range(T):
        by = seen[:, k]
        even = (between * np.outer(by / n, by / n)).sum()
        alone = ((excess + (1 / kept - 1) * g) * squares / n * by).sum()
        assert mean_square[k] == pytest.approx(even + alone)
        for other in range(T):
            both = (between * np.outer(by / n, seen[:, other] / n)).sum() + (excess / n**2 * by * seen[:, other]).sum()
            assert together[k, other] == pytest.approx(both)


def test_queries_of_one_sequence_look_at_all_of_another() -> None:
    view = View(Grid.exact(3), Grid.exact(5), causal=False)
    assert view.seen.tolist() == np.ones((3, 5)).tolist()
    rng = np.random.default_rng(0)
    v, between = rng.uniform(1, 2, 5), np.full((5, 5), 0.3)
    mean_square, together = view.attend(v, between, np.full(3, 1 / 5))
    even = 0.3 + (v - 0.3).sum() / 25
    assert mean_square == pytest.approx([even] * 3) and together == pytest.approx(np.full((3, 3), even))
    back, _ = view.attend_back(np.ones(3), np.zeros((3, 3)), np.full(3, 1 / 5))
    assert back == pytest.approx([3 / 25] * 5)
    assert view.over_queries(np.array([1.0, 2.0, 4.0])).tolist() == [7.0] * 5


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 40), (False, None), (False, 41)])
def test_groups_of_positions_change_little(causal: bool, window: int | None) -> None:
    length = 300
    exact, grouped = Grid.exact(length), Grid.of(length, window)
    assert len(grouped.size) < length

    def at(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        place = grid.typical / length
        together = 0.2 + 0.3 * np.exp(-((place[:, None] - place[None, :]) ** 2))
        return 1 + place, together

    found = []
    for grid in (exact, grouped):
        view = View(grid, causal=causal, window=window)
        v, between = at(grid)
        for own, pairs in (view.attend(v, between, 2 / view.keys), view.attend_back(v, between, 2 / view.keys)):
            found.append((grid.mean(own), grid.mean_between(pairs)))
    half = len(found) // 2
    for one, other in zip(found[:half], found[half:], strict=True):
        assert other == pytest.approx(one, rel=0.02)


def test_groups_hold_every_position_once_and_the_first_ones_alone() -> None:
    for length in (1, 5, 40, 41, 1024, 100_000):
        size = Grid.of(length).size
        assert size.sum() == length and (size[: min(length, 32)] == 1).all() and (size >= 1).all()
    assert 90 < len(Grid.of(1024).size) < 130
    ratio = np.diff(np.cumsum(Grid.of(100_000).size))[60:-1] / (np.cumsum(Grid.of(100_000).size)[60:-2] - 16)
    assert ratio == pytest.approx(0.06, rel=0.2)
    assert Grid.of(1000, 80).size.max() == 10 and Grid.of(1000, 8).size.max() == 2
    assert Grid.of(100, 4).size.tolist() == [1.0] * 100
    assert Grid.exact(4).size.tolist() == [1.0] * 4 and Grid.alike(4).size.tolist() == [4.0]


def test_means_over_positions_are_weighed_by_groups() -> None:
    grid = Grid(np.array([1.0, 2.0, 3.0]))
    assert grid.typical.tolist() == [1.0, 2.5, 5.0]
    assert grid.mean(np.array([6.0, 3.0, 1.0])) == pytest.approx((6 + 6 + 3) / 6)
    values = np.arange(9.0).reshape(3, 3)
    pairs = np.array([[0, 2, 3], [2, 2, 6], [3, 6, 6]])  # of different positions
    assert grid.mean_between(values) == pytest.approx((values * pairs).sum() / 30)
    assert math.isnan(Grid.exact(1).mean_between(np.ones((1, 1))))


def test_a_softmax_is_as_peaked_as_its_scores_are_wide() -> None:
    keys = np.array([1.0, 4.0, 100.0])
    assert peakedness(np.zeros(3), keys) == pytest.approx(1 / keys)
    assert peakedness(np.ones(3), keys) == pytest.approx([1.0, math.e / (3 + math.e), math.e / (99 + math.e)])
    assert peakedness(np.array([-1.0, 1e9]), np.array([4.0, 4.0])) == pytest.approx([0.25, 1.0])
    rng = np.random.default_rng(0)
    scores = rng.normal(0, math.sqrt(0.3), (20_000, 200))
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert peakedness(np.array([0.3]), np.array([200.0]))[0] == pytest.approx((weights**2).sum(1).mean(), rel=0.01)
