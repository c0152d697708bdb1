"""The closed form of every kind of block against a model drawn and run as it says."""

from dataclasses import replace

import numpy as np
import pytest

from initlab.judge import theory
from initlab.judge.theory.settings import (
    MLP,
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
from tests.helpers.wired import Wired, half_wave

D, HEADS, T, V, LAYERS, SEEDS = 192, 4, 64, 256, 4, 5
TEXT = TextStatistics(block_size=T, sum_p2=1 / V, repeat_rate=1 / V)
INNER = ("q", "k", "v", "attn_z", "mlp_pre", "mlp_linear", "mlp_act", "attn_out", "cross_attn_out", "mlp_out")
LAYER_NORM, RMS_NORM = Norm(eps=1e-5), Norm(eps=1e-6, centred=False)


def linear(fan_in, fan_out, gain=1.0, bias=0.0):
    """A matrix that multiplies the mean square with `gain`."""
    return Linear(square=gain / fan_in, fan_in=fan_in, fan_out=fan_out, bias=bias)


def attention(n_kv_head=HEADS, size=D // HEADS, score_gain=0.5, **changes):
    width, narrow = HEADS * size, n_kv_head * size
    made = {
        "query": linear(D, width, score_gain),
        "key": linear(D, narrow, score_gain),
        "value": linear(D, narrow, 0.7),
        "out": linear(width, D, 2.0),
        "n_head": HEADS,
        "n_kv_head": n_kv_head,
        "head_size": size,
        "score_scale": size**-0.5,
    }
    return Attention(**made | changes)


def mlp(hidden=3 * D, gated=False, **changes):
    made = {"up": linear(D, hidden, 1.2), "out": linear(hidden, D, 1.5), "gate": linear(D, hidden) if gated else None}
    return MLP(**made | changes)


def sequential(attend=None, feed=None, pre=LAYER_NORM, post=None, after=None, keep=1.0, **branch):
    """Updates of attention and of an MLP, one after the other; norms before, behind and after the sum."""
    pair = (("attn_out", attend or attention(), "ln_1"), ("mlp_out", feed or mlp(), "ln_2"))

    def named(norm, site):
        return None if norm is None else replace(norm, site=site)

    return tuple(
        Update(
            branches=(
                Branch(
                    site=site,
                    body=body,
                    norm=named(pre, name),
                    post=post if pre is not None else named(post, name),
                    **branch,
                ),
            ),
            keep=keep,
            norm=named(after, name),
        )
        for site, body, name in pair
    )


def parallel(norm=LAYER_NORM):
    one = replace(norm, site="ln_1")
    branches = (Branch(site="attn_out", body=attention(), norm=one), Branch(site="mlp_out", body=mlp(), norm=one))
    return (Update(branches=branches),)


def stack(updates, first=0, **changes):
    made = {
        "positions": T,
        "n_embd": D,
        "blocks": tuple(Block(layer=first + layer, updates=updates) for layer in range(LAYERS)),
        "terms": (Term(kind="token", square=0.5), Term(kind="position", square=0.3)),
        "final_norm": LAYER_NORM,
        "head": linear(D, V, 0.2),
    }
    return Stack(**made | changes)


def one(updates, **changes):
    return Setting(stacks=(stack(updates, **changes),), text=TEXT)


def translating():
    """An encoder of 48 positions and a decoder that looks at it."""
    both_ways = sequential(attend=attention(causal=False))
    first, last = sequential()
    crossing = Branch(site="cross_attn_out", body=attention(causal=False, cross=0), norm=LAYER_NORM)
    middle = Update(branches=(crossing,))
    updates = tuple(
        replace(u, branches=tuple(replace(b, norm=LAYER_NORM) for b in u.branches)) for u in (first, middle, last)
    )
    encoder = stack(both_ways, positions=48, head=None)
    return Setting(stacks=(encoder, stack(updates, first=LAYERS)), text=TEXT)


CASES = {
    "pre-norm": one(sequential()),
    "rms-norm": one(sequential(pre=RMS_NORM), final_norm=RMS_NORM),
    "post-norm": one(sequential(pre=None, after=LAYER_NORM), embed_norm=LAYER_NORM, final_norm=None),
    "post-norm-both-ways": one(
        sequential(attend=attention(causal=False), pre=None, after=LAYER_NORM), embed_norm=LAYER_NORM, final_norm=None
    ),
    "post-norm-kept-stream": one(
        sequential(pre=None, after=LAYER_NORM, keep=1.6), embed_norm=LAYER_NORM, final_norm=None
    ),
    "scaled-behind-norms": one(sequential(pre=replace(LAYER_NORM, gain=0.25), keep=1.2)),
    "heads-scaled": one(sequential(attend=attention(head_square=0.3))),
    "heads-scaled-sub-norm": one(sequential(attend=attention(head_square=1e-4, out_norm=Norm(eps=1e-3)))),
    "sandwich": one(sequential(post=Norm(gain=0.3, eps=1e-6, centred=False))),
    "only-behind": one(sequential(pre=None, post=Norm(gain=0.3, eps=1e-6, centred=False))),
    "parallel": one(parallel()),
    "both-ways": one(sequential(attend=attention(causal=False))),
    "no-positions-both-ways": one(sequential(attend=attention(causal=False)), terms=(Term(kind="token", square=0.5),)),
    "grouped-query": one(sequential(attend=attention(n_kv_head=1))),
    "qk-norm": one(
        sequential(attend=attention(query_norm=replace(RMS_NORM, gain=0.6), key_norm=RMS_NORM, score_gain=7.0))
    ),
    "gated-silu": one(sequential(feed=mlp(gated=True, activation="silu"))),
    "gated-relu2": one(sequential(feed=mlp(gated=True, activation="relu2"))),
    "bilinear": one(sequential(feed=mlp(gated=True, activation="identity"))),
    "unnamed-activation": one(sequential(feed=mlp(activation=half_wave))),
    "multipliers": one(sequential(keep=0.9, square=0.2**2), embed_scale=5.0, logit_scale=0.3),
    "layer-scale": one(sequential(square=0.01)),
    "no-norm": one(sequential(pre=None, keep=0.8, square=0.3)),
    "windowed": one(sequential(attend=attention(window=8))),
    "windowed-both-ways": one(sequential(attend=attention(causal=False, window=9))),
    "sub-norm": one(sequential(attend=attention(out_norm=LAYER_NORM), feed=mlp(inner_norm=LAYER_NORM))),
    "zero-queries": one(sequential(attend=attention(causal=False, score_gain=0.0))),
    "small-heads": one(sequential(attend=attention(size=24))),
    "scores-capped": one(sequential(attend=attention(score_gain=1.1, soft_cap=1.5)), logit_cap=0.8),
    "constant-term": one(
        sequential(), terms=(Term(kind="token", square=0.5), Term(kind="constant", square=0.4, scale=0.8))
    ),
    "sinusoids": one(
        sequential(),
        terms=(Term(kind="token", square=1 / D, scale=D**0.5), Term(kind="position", square=0.5, sinusoid=True)),
    ),
    "biases": one(
        sequential(
            attend=replace(attention(), value=linear(D, D, 0.7, bias=0.2), out=linear(D, D, 1.0, bias=0.1)),
            feed=mlp(up=linear(D, 3 * D, 1.0, bias=0.3)),
            pre=Norm(gain=0.8, bias=0.1),
        )
    ),
    "encoder-decoder": translating(),
    "tied": one(
        sequential(),
        tied=True,
        head=Linear(square=4e-3, fan_in=D, fan_out=V),
        terms=(Term(kind="token", square=4e-3), Term(kind="position", square=4e-3)),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Predicted, and measured on a few draws."""
    setting = CASES[request.param]
    return theory.predict(setting, strict=True), [Wired(setting, seed) for seed in range(SEEDS)]


def off(expected, drawn, sites, most=0.1):
    """Sites whose mean over draws is further off than 10 %, or `most`, and two standard errors."""
    found = {}
    for place, value in expected.items():
        if place[0] in sites and value == 0:
            assert not any(draw[place] for draw in drawn), place
        elif place[0] in sites:
            ratio = np.array([draw[place] for draw in drawn]) / value
            error = ratio.std(ddof=1) / len(ratio) ** 0.5
            if abs(ratio.mean() - 1) > most + 2 * error:
                found[place] = f"{ratio.mean():.2f} ± {error:.2f}"
    return found


def test_the_stream_and_what_is_inside_are_near_their_measurement(case):
    expected, drawn = case
    values = [draw.var for draw in drawn]
    assert set(expected.var) - {("attn_logits", place) for _, place in expected.var} == set(values[0])
    assert off(expected.var, values, {site for site, _ in expected.var} - {"attn_logits"}) == {}


def test_gradients_are_near_their_measurement(case):
    """At this width they are up to a tenth above, as of NanoGPT."""
    expected, drawn = case
    values = [draw.grad for draw in drawn]
    assert {site for site, _ in values[0]} - {site for site, _ in expected.grad} == {"q", "k"}  # no prediction
    assert off(expected.grad, values, {"embed", "resid_pre", "resid_mid", "resid_post", "final_norm", "logits"}) == {}
    assert off(expected.grad, values, {"attn_z", "mlp_act", "mlp_pre", "mlp_linear", "attn_out", "mlp_out"}) == {}
    assert off(expected.grad, values, {"v", "ln_1", "ln_2", "cross_attn_out"}, most=0.2) == {}  # one draw fixes them


def test_how_alike_positions_end_and_the_first_loss(case):
    expected, drawn = case
    for values, wanted, most in (
        ([draw.cosine for draw in drawn], expected.token_cosine, 0.02),
        ([draw.loss for draw in drawn], expected.loss, 0.05),
    ):
        assert abs(np.mean(values) - wanted) < most + 2 * np.std(values, ddof=1) / SEEDS**0.5


def without(setting, at, written):
    """The same where it isn't known what the second branch of a block computes."""
    (only,) = setting.stacks
    blocks = list(only.blocks)
    first, second = blocks[at].updates
    unknown = replace(second.branches[0], body=None, norm=None, written=written)
    blocks[at] = replace(blocks[at], updates=(first, replace(second, branches=(unknown,))))
    return replace(setting, stacks=(replace(only, blocks=tuple(blocks)),))


def test_what_is_not_known_is_taken_as_measured_and_followed_no_way_back():
    setting = CASES["pre-norm"]
    whole, draw = theory.predict(setting, strict=True), Wired(setting, 0)
    found = theory.predict(without(setting, 1, draw.var["mlp_out", 1]), strict=True)
    assert set(whole.var) - set(found.var) == {(site, 1) for site in ("ln_2", "mlp_pre", "mlp_act", "mlp_out")}
    assert off(found.var, [draw.var] * 2, {"resid_post", "resid_pre"}) == {}
    assert {layer for site, layer in found.grad if site == "resid_post"} == {1, 2, 3}
    assert ("attn_out", 1) not in found.grad and ("embed", None) not in found.grad
    lost = theory.predict(without(setting, 1, np.nan), strict=True)
    # behind a norm it doesn't matter how large the stream is
    assert {layer for site, layer in lost.var if site == "resid_post"} == {0}
    assert {layer for site, layer in lost.var if site == "mlp_out"} == {0, 2, 3}
    assert lost.var["final_norm", None] == pytest.approx(1) and not np.isnan(lost.loss)


def test_a_model_that_reads_no_tokens_has_a_stream_and_no_loss():
    setting = one(sequential(attend=attention(causal=False)), terms=None, begun=(0.8, 0.3), head=None)
    setting = replace(setting, text=TextStatistics(block_size=0, sum_p2=np.nan, repeat_rate=np.nan))
    found = theory.predict(setting, strict=True)
    known = theory.predict(CASES["both-ways"], strict=True)
    assert set(known.var) - set(found.var) == {("embed", None), ("resid_pre", 0), ("logits", None)}
    assert found.grad == {} and np.isnan(found.loss) and np.isnan(found.own_logit)
    alone = replace(setting, stacks=(replace(setting.stacks[0], begun=(0.8, np.nan)),))
    sites = {site for site, _ in theory.predict(alone, strict=True).var}  # how alike positions are isn't known
    assert {"mlp_pre", "mlp_out", "q", "v"} <= sites and not {"attn_z", "attn_out", "resid_post"} & sites


def test_nothing_is_known_behind_a_steep_attention_but_what_a_norm_makes_known_again():
    steep = attention(score_gain=3.0)
    for name, sites in (("pre-norm", {"resid_mid", "resid_post"}), ("post-norm", {"resid_mid", "attn_out"})):
        options = {} if name == "pre-norm" else {"pre": None, "after": LAYER_NORM}
        found = theory.predict(one(sequential(attend=steep, **options)), strict=True)
        assert found.steep_from == 0 and found.grad == {} and np.isnan(found.token_cosine)
        assert not sites & {site for site, _ in found.var}
        assert {"mlp_out", "final_norm", "q", "k", "v"} <= {site for site, _ in found.var}
        assert ("resid_post" in {site for site, _ in found.var}) is (name == "post-norm")
        rough = theory.predict(one(sequential(attend=steep, **options)))  # of a model that is to be built
        assert rough.steep and not np.isnan(rough.var["resid_post", LAYERS - 1])


def test_what_is_added_to_scores_counts_with_the_spread_that_was_measured():
    plain = theory.predict(CASES["pre-norm"], strict=True)
    for spread, known in ((0.48**2, True), (0.8**2, False), (np.nan, False)):
        found = theory.predict(one(sequential(attend=attention(spread=spread))), strict=True)
        assert (("attn_z", 0) in found.var) is known and ("attn_logits", 0) not in found.var
        assert found.steep_from is None
        if known:
            assert found.var["attn_z", 0] == pytest.approx(plain.var["attn_z", 0], rel=0.03)


def test_scores_and_values_of_the_same_keys_count_where_there_are_more_of_them_than_features():
    """In a first block, whose positions share little; without it half of what is measured is expected."""
    alone = stack(sequential(attend=attention(causal=False, score_gain=1.0)), positions=512)
    setting = Setting(stacks=(replace(alone, blocks=alone.blocks[:1]),), text=replace(TEXT, block_size=512))
    draws = [Wired(setting, seed, sequences=1) for seed in range(3)]
    expected = theory.predict(setting, strict=True).var["attn_z", 0]
    assert np.mean([draw.var["attn_z", 0] for draw in draws]) == pytest.approx(expected, rel=0.15)


def test_groups_of_positions_stand_for_every_one_of_them():
    for name in ("windowed", "windowed-both-ways", "sinusoids", "both-ways", "encoder-decoder"):
        setting = CASES[name]
        longer = tuple(replace(each, positions=4 * each.positions) for each in setting.stacks)
        setting = replace(setting, stacks=longer)
        grouped, exact = theory.predict(setting), theory.predict(setting, exact=True)
        for kind in ("var", "grad"):
            values, wanted = getattr(grouped, kind), getattr(exact, kind)
            for place, value in wanted.items():
                assert values[place] == pytest.approx(value, rel=0.02), (name, kind, place)
