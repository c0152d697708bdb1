"""Attention of other forms than softmax(q kᵀ) v: its parts are the model's tensors, and its rows what they are."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from tests.helpers.keeping import HS, KEPT, NH, B, D, Model, T, V

pytestmark = pytest.mark.integration


class Block(nn.Module):
    """Attention whose weights and z are a subclass's own, and an MLP."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.register_buffer("hidden", torch.ones(T, T, dtype=torch.bool).triu(1))

    def scores(self, q, k):
        return (q @ k.mT / math.sqrt(HS)).masked_fill(self.hidden, -math.inf)

    def weights(self, scores):
        return scores.softmax(-1)

    def given(self, v):
        return v

    def heads(self, z):
        return z

    def written(self, z):
        return self.out(z)

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m in (self.q, self.k, self.v))
        scores, v = self.scores(q, k), self.given(v)
        weights = self.weights(scores)
        z = self.heads(weights @ v)
        if torch.is_grad_enabled():  # not in passes over changed tokens
            KEPT[id(self)] = {"q": q, "k": k, "v": v, "attn_z": z, "scores": scores, "weights": weights}
        x = x + self.written(z.transpose(1, 2).reshape(B, T, D))
        return x + self.down(self.up(self.norm_2(x)).relu())


class Sigmoid(Block):
    def weights(self, scores):
        return (scores - math.log(T)).sigmoid()


class SquaredReLU(Block):
    def weights(self, scores):
        return F.relu(scores).square() / T


class Distance(Block):
    """Scores of distances."""

    def scores(self, q, k):
        return (-(torch.cdist(q, k) ** 2) / math.sqrt(HS)).masked_fill(self.hidden, -1e9)


class Capped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, at):
        ctx.save_for_backward(x)
        ctx.at = at
        return (x / at).tanh() * at

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - (ctx.saved_tensors[0] / ctx.at).tanh() ** 2), None


class BelowPython(Block):
    """A soft cap that no operation of Python's shows."""

    def scores(self, q, k):
        return Capped.apply(q @ k.mT / math.sqrt(HS), 5.0).masked_fill(self.hidden, -math.inf)


class ByHand(Block):
    """A softmax by hand."""

    def weights(self, scores):
        e = (scores - scores.amax(-1, keepdim=True)).exp()
        return e / e.sum(-1, keepdim=True)


class OneMore(Block):
    """A softmax that may attend to nothing."""

    def weights(self, scores):
        e = scores.exp()
        return e / (1 + e.sum(-1, keepdim=True))


class Talking(Block):
    """Heads are mixed after the softmax, by shares."""

    def __init__(self):
        super().__init__()
        self.talk = nn.Conv2d(NH, NH, 1, bias=False)
        with torch.no_grad():
            self.talk.weight.abs_().div_(self.talk.weight.sum(1, keepdim=True))

    def weights(self, scores):
        return self.talk(scores.softmax(-1))


class Sink(Block):
    """A column that no key has."""

    def __init__(self):
        super().__init__()
        self.sink = nn.Parameter(torch.randn(NH))

    def weights(self, scores):
        sink = self.sink.view(1, NH, 1, 1).expand(B, NH, T, 1)
        return torch.cat([sink, scores], -1).softmax(-1)[..., 1:]


class Scaled(Block):
    """A factor for each head."""

    def __init__(self):
        super().__init__()
        self.by = nn.Parameter(torch.rand(1, NH, 1, 1))

    def heads(self, z):
        return z * self.by


class Gated(Block):
    """The output projection gates itself."""

    def __init__(self):
        super().__init__()
        self.out = None
        self.both = nn.Linear(D, 2 * D)

    def written(self, z):
        return F.glu(self.both(z))


class Logarithm(Block):
    """Values are averaged as exponents."""

    def given(self, v):
        return v.exp()

    def heads(self, z):
        return z.log()


FORMS = [Sigmoid, SquaredReLU, Distance, BelowPython, ByHand, OneMore, Talking, Sink, Scaled, Gated, Logarithm]


def probed(block):
    torch.manual_seed(0)
    model = Model(block).double().eval()
    ids = torch.randint(V, (B, T + 1))
    return model, initlab.probe(model, (ids[:, :-1], ids[:, 1:]))


@pytest.mark.parametrize("block", FORMS)
def test_parts_are_what_the_model_computes(block):
    model, probe = probed(block)
    for layer, each in enumerate(model.blocks):
        for site in ("q", "k", "v", "attn_z"):
            row = probe.at(site, layer).squeeze()
            assert row["var"] == pytest.approx(KEPT[id(each)][site].var(unbiased=False).item(), rel=1e-9), (layer, site)


@pytest.mark.parametrize("block", FORMS)
def test_rows_of_heads_are_those_that_multiply_the_values(block):
    model, probe = probed(block)
    for layer, each in enumerate(model.blocks):
        kept = KEPT[id(each)]
        scores, weights = kept["scores"][:, :, 1:].float(), kept["weights"][:, :, 1:]
        shown = ~each.hidden[1:]
        spread = torch.stack([scores[:, :, i, shown[i]].std(-1, correction=0) for i in range(T - 1)]).mean((0, 1))
        rows = probe.heads[probe.heads["layer"] == layer]
        assert rows["logit_std"].tolist() == pytest.approx(spread.tolist(), rel=1e-5)
        entropy = torch.special.entr(weights).sum(-1).mean((0, 2))
        if (weights.sum(-1) - 1).abs().max() > 1e-6:  # no distribution, so it has no entropy
            entropy = torch.full((NH,), math.nan)
        assert rows["entropy"].tolist() == pytest.approx(entropy.tolist(), rel=1e-5, nan_ok=True)


class Difference(Block):
    """Of two patterns, each of half a head's queries and keys."""

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m in (self.q, self.k, self.v))
        pairs = zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        one, other = (self.scores(a, b) for a, b in pairs)
        z = (one.softmax(-1) - 0.2 * other.softmax(-1)) @ v
        if torch.is_grad_enabled():
            KEPT[id(self)] = {"one": one, "other": other, "v": v, "attn_z": z}
        x = x + self.written(z.transpose(1, 2).reshape(B, T, D))
        return x + self.down(self.up(self.norm_2(x)).relu())


def test_a_difference_of_patterns_has_the_heads_of_both():
    model, probe = probed(Difference)
    for layer, each in enumerate(model.blocks):
        kept = KEPT[id(each)]
        assert len(probe.at("q", layer)) == len(probe.at("k", layer)) == 2
        for site in ("v", "attn_z"):
            assert probe.at(site, layer).squeeze()["var"] == pytest.approx(kept[site].var(unbiased=False).item())
        rows = probe.heads[probe.heads["layer"] == layer]
        assert rows["head"].tolist() == list(range(2 * NH))
        assert rows["entropy"].isna().all()
        shown = ~each.hidden[1:]
        both = torch.cat([kept["one"], kept["other"]], 1)[:, :, 1:]
        spread = torch.stack([both[:, :, i, shown[i]].std(-1, correction=0) for i in range(T - 1)]).mean((0, 1))
        assert sorted(rows["logit_std"]) == pytest.approx(sorted(spread.tolist()), rel=1e-5)


class Linear(Block):
    """No weights of keys at all: what keys and values give is asked by queries."""

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m in (self.q, self.k, self.v))
        z = F.elu(q) @ (F.elu(k).mT @ v)
        x = x + self.written(z.transpose(1, 2).reshape(B, T, D))
        return x + self.down(self.up(self.norm_2(x)).relu())


def test_what_weighs_no_keys_has_no_heads():
    _, probe = probed(Linear)
    assert probe.heads.empty and probe.at("q").empty
