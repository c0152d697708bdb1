"""Mean squares and mean products of positions, through sums, matrices, norms and embeddings."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from initlab.judge.theory.positions import Grid
from initlab.judge.theory.settings import Linear, Norm, Stack, Term
from initlab.judge.theory.states import State, embedding, normalised

GRID = Grid(np.array([1.0, 3.0]))
Q, BETWEEN = np.array([2.0, 3.0]), np.array([[0.5, 0.25], [0.25, 0.75]])


def equal(found: State, q: object, o: object, mean: object = None) -> None:
    np.testing.assert_allclose(found.q, q)
    np.testing.assert_allclose(found.o, o)
    assert (found.mean is None) == (mean is None)
    if mean is not None:
        np.testing.assert_allclose(found.mean, mean)


def test_a_variance_is_over_all_positions_and_features() -> None:
    assert State(Q, BETWEEN).var(GRID) == pytest.approx((2 + 9) / 4)
    assert State(Q, BETWEEN, np.array([1.0, 0.2])).var(GRID) == pytest.approx(11 / 4 - 0.4**2)


def test_products_and_dropout() -> None:
    mean = np.array([1.0, 0.5])
    equal(State(Q, BETWEEN).times(4.0), 4 * Q, 4 * BETWEEN)
    equal(State(Q, BETWEEN, mean).times(4.0, 0.5), 8 * Q, 4 * BETWEEN, 2 * mean)


def test_sums_of_what_is_independent() -> None:
    mean = np.array([1.0, 0.5])
    equal(State(Q, BETWEEN).plus(State(2 * Q, 3 * BETWEEN)), 3 * Q, 4 * BETWEEN)
    equal(State(Q, BETWEEN, mean).plus(State(Q, BETWEEN)), 2 * Q, 2 * BETWEEN, mean)
    equal(State(Q, BETWEEN).plus(State(Q, BETWEEN, mean)), 2 * Q, 2 * BETWEEN, mean)
    equal(State(Q, BETWEEN, mean).plus(State(Q, BETWEEN, 2 * mean)), 2 * Q, 2 * BETWEEN, 3 * mean)


def test_a_matrix_gives_what_it_multiplies_and_its_bias_at_every_position() -> None:
    matrix = Linear(square=0.5, fan_in=6, fan_out=4, bias=0.5)
    equal(State(Q, BETWEEN, np.ones(2)).through(matrix), 3 * Q + 0.5, 3 * BETWEEN + 0.5)


@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_divides_by_what_came_in(centred: bool) -> None:
    norm = Norm(gain=4.0, bias=0.5, eps=0.1, centred=centred)
    mean = np.array([1.0, 0.5])
    q = Q - mean**2 if centred else Q
    o = BETWEEN - np.outer(mean, mean) if centred else BETWEEN
    found, back = normalised(State(Q, BETWEEN, mean), norm)
    scale = 4.0 / (q + 0.1)
    equal(found, scale * q + 0.5, o * np.sqrt(np.outer(scale, scale)) + 0.5, None if centred else mean * np.sqrt(scale))
    np.testing.assert_allclose(back, scale)
    plain, back = normalised(State(Q, BETWEEN), norm)
    equal(plain, 4 * Q / (Q + 0.1) + 0.5, BETWEEN * np.sqrt(np.outer(4 / (Q + 0.1), 4 / (Q + 0.1))) + 0.5)
    unknown, _ = normalised(State(np.array([math.nan, 3.0]), BETWEEN), norm)
    np.testing.assert_allclose(unknown.q, [4.5, 4 * 3 / 3.1 + 0.5])  # whatever came in
    same = State(Q, BETWEEN, mean)
    assert normalised(same, None) == (same, 1.0)


TOKEN, POSITION = Term(kind="token", square=0.5), Term(kind="position", square=0.25, scale=2.0)
TWO = Grid.exact(2)


def begun(grid: Grid, *terms: Term, same: float = 0.1, **changes: object) -> State:
    stack = Stack(positions=2, n_embd=8, blocks=(), terms=terms)
    return embedding(replace(stack, **changes), grid, same)[0]  # type: ignore[arg-type]


def test_an_embedding_sums_tables_and_equal_tokens_share_a_row() -> None:
    both = begun(TWO, TOKEN, POSITION)
    equal(both, [1.5, 1.5], np.full((2, 2), 0.05))  # 0.5 + 0.25 · 2²; of a pair a tenth holds the same token
    equal(begun(TWO, TOKEN, Term(kind="constant", square=0.2)), [0.7, 0.7], np.full((2, 2), 0.25))
    equal(begun(TWO, TOKEN, embed_scale=3.0), [4.5, 4.5], np.full((2, 2), 0.45))
    equal(begun(TWO, TOKEN, dropout=0.2), [0.625, 0.625], np.full((2, 2), 0.05))
    same = np.array([[0.3, 0.4], [0.4, 0.3]])
    found, back = embedding(Stack(positions=2, n_embd=8, blocks=(), terms=(TOKEN,)), TWO, same)
    equal(found, [0.5, 0.5], 0.5 * same)
    assert back == 1.0
    normed = Stack(positions=2, n_embd=8, blocks=(), terms=(TOKEN,), embed_norm=Norm(gain=2.0), embed_scale=3.0)
    found, back = embedding(normed, TWO, 0.1)
    equal(found, [2.0, 2.0], np.full((2, 2), 0.2))
    np.testing.assert_allclose(back, 2.0 / 4.5)


def test_without_terms_a_stack_begins_as_it_was_measured() -> None:
    stack = Stack(positions=2, n_embd=8, blocks=(), begun=(3.0, 0.25))
    found, back = embedding(stack, TWO, 0.1)
    equal(found, [3.0, 3.0], np.full((2, 2), 0.75))
    assert back == 1.0


def test_sinusoids_are_alike_as_their_products_say() -> None:
    d, square = 8, 0.5
    grid = Grid.exact(5)
    at = np.arange(5)[:, None]
    angles = at * 10000.0 ** (-np.arange(0, d, 2) / d)
    rows = np.concatenate([np.sin(angles), np.cos(angles)], axis=1) * math.sqrt(2 * 0.7**2 * square)
    found = begun(grid, Term(kind="position", square=square, scale=0.7, sinusoid=True))
    together = rows @ rows.T / d
    others = (together.sum(1) - np.diag(together)) / 4
    np.fill_diagonal(together, others)
    equal(found, np.full(5, 0.7**2 * square), together, rows.mean(1))
    np.testing.assert_allclose(found.q, (rows**2).mean(1))
    one = begun(Grid.exact(1), Term(kind="position", square=square, sinusoid=True))
    equal(one, [square], [[square]], [math.sqrt(2 * square) / 2])
    after = begun(grid, TOKEN, Term(kind="position", square=square, scale=0.7, sinusoid=True))
    equal(after, found.q + 0.5, found.o + 0.05, found.mean)
