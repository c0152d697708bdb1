"""What follows from the last state: logits, first loss, entropies, of models small enough to be worked out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from initlab.errors import ConfigError
from initlab.judge.theory.backward import _at_logits
from initlab.judge.theory.forward import follow
from initlab.judge.theory.losses import first_loss
from initlab.judge.theory.positions import Grid
from initlab.judge.theory.predicting import Prediction, _entropy, _equal, _grid, _ratio, predict
from initlab.judge.theory.settings import (
    Attention,
    Block,
    Branch,
    Linear,
    Norm,
    Setting,
    Stack,
    Term,
    TextStatistics,
    Update,
)

V, D, T = 10, 8, 4
TEXT = TextStatistics(block_size=T, sum_p2=0.1, repeat_rate=0.2)
HEAD = Linear(square=0.5, fan_in=D, fan_out=V, bias=0.25)
TERMS = (Term(kind="token", square=0.5, scale=2.0), Term(kind="position", square=0.25))


def stack(**changes: Any) -> Stack:
    known: dict[str, Any] = {"positions": T, "n_embd": D, "blocks": (), "terms": TERMS, "head": HEAD}
    return Stack(**(known | {"final_norm": Norm(gain=1.5)} | changes))


def found(text: TextStatistics = TEXT, **changes: Any) -> Prediction:
    return predict(Setting(stacks=(stack(**changes),), text=text))


def test_logits_of_a_model_without_blocks() -> None:
    plain = found()
    # the head reads features of mean square 1.5
    spread = 8 * 0.5 * 1.5 + 0.25
    assert (plain.own_logit, plain.logit_std) == (0.0, pytest.approx(math.sqrt(spread)))
    assert plain.var["logits", None] == pytest.approx(spread)
    expected = first_loss(vocab_size=V, spread=spread, own_logit=0.0, repeat_rate=0.2)
    assert plain.loss == pytest.approx(expected)
    scaled = found(logit_scale=3.0)
    assert scaled.logit_std == pytest.approx(3 * math.sqrt(spread))
    assert found(head=None).var.keys() == plain.var.keys() - {("logits", None)}
    assert all(map(math.isnan, (found(head=None).loss, found(head=None).logit_std, found(head=None).own_logit)))


def test_a_tied_head_knows_the_token_that_was_read() -> None:
    q = 0.5 * 4 + 0.25
    tied = found(tied=True, logit_scale=3.0)
    # the token's own row, twice, times itself: d · σ² · 2, over the root of what the norm divides by
    own = 3 * 8 * 0.5 * 2 * math.sqrt(1.5 / q)
    spread = 9 * (8 * 0.5 * 1.5 + 0.25)
    assert tied.own_logit == pytest.approx(own)
    assert tied.logit_std == pytest.approx(math.sqrt(spread + own**2 * 9 / 100))
    assert tied.loss == pytest.approx(first_loss(vocab_size=V, spread=spread, own_logit=own, repeat_rate=0.2))
    assert tied.token_cosine == pytest.approx(0.1 * 2 / q)  # a tenth of the pairs holds the same token


def test_logits_that_are_capped_are_those_behind_the_cap() -> None:
    capped, free = found(tied=True, logit_cap=2.0), found(tied=True)
    assert capped.own_logit == pytest.approx(2 * math.tanh(free.own_logit / 2))
    spread = 8 * 0.5 * 1.5 + 0.25
    rng = np.random.default_rng(0)
    square = float((4 * np.tanh(rng.normal(0, math.sqrt(spread), 10**6) / 2) ** 2).mean())
    assert capped.logit_std**2 == pytest.approx(square + capped.own_logit**2 * 9 / 100, rel=3e-3)
    assert found(logit_cap=1e6).logit_std == pytest.approx(found().logit_std, rel=1e-6)
    unknown = found(head=Linear(square=math.nan, fan_in=D, fan_out=V), logit_cap=2.0)
    assert math.isnan(unknown.loss) and math.isnan(unknown.logit_std)


def test_tokens_of_a_sequence_stand_in_place_of_the_texts_mean() -> None:
    setting = Setting(stacks=(stack(),), text=TEXT)
    ids, targets = np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4])
    exact = predict(setting, exact=True, ids=ids, targets=targets)
    assert exact.token_cosine == pytest.approx(2 / 12 * 2 / 2.25)  # one pair of six is equal
    assert _equal(ids, 0.3).tolist() == [[0.3, 1, 0, 0], [1, 0.3, 0, 0], [0, 0, 0.3, 0], [0, 0, 0, 0.3]]
    said = r"^ids need exact=True, targets, and the setting's block_size: both of shape \(4,\)$"
    for bad in (
        {"ids": ids, "targets": targets},
        {"ids": ids, "exact": True},
        {"ids": ids[:3], "targets": targets, "exact": True},
        {"ids": ids, "targets": targets[:3], "exact": True},
    ):
        with pytest.raises(ConfigError, match=said):
            predict(setting, **bad)
    assert not predict(setting, backward=False).grad and predict(setting).grad


def test_an_entropy_is_of_the_rows_that_see_two_keys_or_more() -> None:
    keys, scores = np.array([1.0, 2.0, 4.0]), np.array([9.0, 0.5, 0.25])
    grid = Grid(np.array([1.0, 1.0, 3.0]))
    fractions = [1 - 0.5 / (4 * math.log(2)), 1 - 0.25 * 3 / (8 * math.log(4))]
    assert _entropy(grid, scores, keys) == pytest.approx((fractions[0] + 3 * fractions[1]) / 4)
    assert math.isnan(_entropy(grid, np.array([0.0, 1.01, 0.0]), keys))
    assert math.isfinite(_entropy(grid, np.array([0.0, 1.0, 0.0]), keys))
    assert math.isnan(_entropy(grid, np.array([0.0, math.nan, 0.0]), keys))
    assert math.isnan(_entropy(grid, scores, np.ones(3)))


def test_positions_are_alike_where_all_see_the_same() -> None:
    def attention(**changes: Any) -> Block:
        flat = Linear(square=0.1, fan_in=D, fan_out=D)
        body = Attention(
            query=flat, key=flat, value=flat, out=flat, n_head=1, n_kv_head=1, head_size=D, score_scale=0.1, **changes
        )
        return Block(layer=0, updates=(Update(branches=(Branch(site="attn_out", body=body),)),))

    long = {"positions": 1000}
    assert _grid(stack(**long), exact=True).size.tolist() == [1.0] * 1000
    assert _grid(stack(**long), exact=False).size.tolist() == [1000.0]
    assert _grid(stack(**long, blocks=(attention(causal=False),)), exact=False).size.tolist() == [1000.0]
    assert 90 < len(_grid(stack(**long, blocks=(attention(),)), exact=False).size) < 130
    assert _grid(stack(**long, blocks=(attention(window=80),)), exact=False).size.max() == 10


def test_ratios_of_what_is_known() -> None:
    values = {("a", None): 6.0, ("b", 1): 2.0, ("zero", None): 0.0}
    assert _ratio(values, ("a", None), ("b", 1)) == 3.0
    for over, under in ((("a", None), ("zero", None)), (("a", None), ("c", None)), (("c", None), ("b", 1))):
        assert math.isnan(_ratio(values, over, under))
    var = {("embed", None): 2.0, ("resid_post", 1): 6.0}
    made = Prediction(var=var, own_logit=0, logit_std=0, loss=0, token_cosine=0, grad=var, score_std=(0.1, 0.1))
    assert (made.growth, made.gradient_ratio, made.steep) == (3.0, pytest.approx(1 / 3), False)
    assert Prediction(var={}, own_logit=0, logit_std=0, loss=0, token_cosine=0, steep_from=0).steep


@pytest.mark.parametrize(("spread", "own"), [(0.0, 0.0), (0.25, 0.0), (1.0, 0.0), (0.25, 2.0), (0.1, 3.0)])
def test_the_gradient_at_the_logits_is_that_of_sampled_ones(spread: float, own: float) -> None:
    vocab, r = 50, 0.2
    q = 0.5
    # with a norm of gain 1 the spread is d · σ², and a tied head's own logit d · σ² · scale / √q
    head = Linear(square=spread / D, fan_in=D, fan_out=vocab)
    scale = own / spread * math.sqrt(q) if spread and own else 1.0
    terms = (Term(kind="token", square=q / scale**2, scale=scale),)
    text = TextStatistics(block_size=T, sum_p2=0.02, repeat_rate=r)
    made = found(text, head=head, terms=terms, final_norm=Norm(), tied=bool(own))
    assert made.own_logit == pytest.approx(own)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, math.sqrt(spread), (40_000, vocab))
    logits[:, 0] += own
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    square = (p**2).sum(1).mean() + 1 - 2 * (r * p[:, 0].mean() + (1 - r) * p[:, 1:].mean())
    assert made.grad["logits", None] * vocab == pytest.approx(square, rel=0.01)
    assert made.grad["final_norm", None] == pytest.approx(head.square * square, rel=0.01)
    assert made.grad["embed", None] == pytest.approx(made.grad["final_norm", None] / q)


def test_targets_alike_make_gradients_alike() -> None:
    """Of flat logits the mean product of two positions' gradients is P(same target) − 1/V, as of one-hot targets."""
    head = Linear(square=0.0, fan_in=D, fan_out=V)
    setting = Setting(stacks=(stack(head=head),), text=TEXT)
    trace = follow(setting, [Grid.exact(T)], 0.1)
    own, slope, between = _at_logits(trace.stacks[-1], head, 0.2, 0.0, 0.1, 0.3)
    assert (own, slope) == (pytest.approx(1 - 1 / V), pytest.approx(1 - 1 / V))
    assert between == pytest.approx(np.full((T, T), 0.3 - 1 / V))
    capped = Setting(stacks=(stack(head=HEAD, logit_cap=2.0),), text=TEXT)
    last = follow(capped, [Grid.exact(T)], 0.1).stacks[-1]
    own, behind, _ = _at_logits(last, HEAD, 0.2, 0.0, 0.1, 0.3)
    rng = np.random.default_rng(0)
    slopes = 1 / np.cosh(rng.normal(0, math.sqrt(HEAD.forward * 1.5), 10**6) / 2) ** 2
    assert behind == pytest.approx(own * (slopes**2).mean(), rel=3e-3)
    free = Setting(stacks=(stack(head=HEAD, logit_cap=1e4),), text=TEXT)
    wide = follow(free, [Grid.exact(T)], 0.1).stacks[-1]
    loose = _at_logits(wide, HEAD, 0.2, 0.0, 0.1, 0.3)
    none = _at_logits(
        follow(Setting(stacks=(stack(),), text=TEXT), [Grid.exact(T)], 0.1).stacks[-1], HEAD, 0.2, 0.0, 0.1, 0.3
    )
    for one, other in zip(loose, none, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
