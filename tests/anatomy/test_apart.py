"""Heads that are computed one by one are found, all of them; so is attention inside a branch that isn't understood."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from tests.helpers.keeping import HS, KEPT, NH, B, D, Keeping, Model, T, V


class Head(nn.Module):
    """One head, as in the video lecture."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(D, HS, bias=False) for _ in range(3))  # named for nothing
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        k, q = self.a(x), self.b(x)
        scores = (q @ k.transpose(-2, -1) * HS**-0.5).masked_fill(self.tril[:T, :T] == 0, -math.inf)
        v = self.c(x)
        return self.dropout(F.softmax(scores, dim=-1)) @ v, q, k, v


class Heads(Keeping):
    """A list of heads, put side by side and projected."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(NH))
        self.proj, self.up, self.down = nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def joined(self, z):
        return self.proj(torch.cat(z, dim=-1))

    def forward(self, x):
        h = self.norm_1(x)
        z, q, k, v = zip(*(head(h) for head in self.heads), strict=True)
        self.keep(**{s: torch.stack(each) for s, each in (("q", q), ("k", k), ("v", v), ("attn_z", z))})
        x = x + self.joined(z)
        return x + self.down(self.up(self.norm_2(x)).relu())


class Each(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(HS, D) for _ in range(NH))

    def forward(self, z):
        return sum(part(each) for part, each in zip(self.parts, z, strict=True))


class Summed(Heads):
    """Each head has an output matrix of its own."""

    def __init__(self):
        super().__init__()
        self.proj = Each()

    def joined(self, z):
        return self.proj(z)


class Gated(Heads):
    """A gated linear unit after the output matrix."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(D, 2 * D)

    def joined(self, z):
        return F.glu(super().joined(z))


@pytest.mark.parametrize("block", [Heads, Summed, Gated])
def test_every_head_is_found(block):
    torch.manual_seed(0)
    model = Model(block).double().eval()
    ids = torch.randint(V, (B, T + 1))
    probe = initlab.probe(model, (ids[:, :-1], ids[:, 1:]))
    for layer, each in enumerate(model.blocks):
        for site in ("q", "k", "v", "attn_z"):
            rows, kept = probe.at(site, layer), KEPT[id(each)][site]
            assert rows["numel"].sum() == kept.numel(), site
            square = (rows["rms"] ** 2 * rows["numel"]).sum() / kept.numel()
            assert square == pytest.approx(kept.square().mean().item(), rel=1e-9), site
    heads = probe.heads.groupby("layer")["head"]
    assert heads.apply(list).tolist() == [list(range(NH))] * 2
    assert probe.at("attn_out")["layer"].tolist() == [0, 1]


def test_heads_of_their_own_are_one_attention_in_the_closed_form():
    torch.manual_seed(0)
    model = Model(Heads).eval()
    anatomy = initlab.anatomy.look.of(model, lambda: model(torch.randint(V, (B, T))))
    body = next(anatomy.wirings[0].blocks[0].branches()).body
    assert (body.n_head, body.n_kv_head, body.head_size, len(body.apart)) == (NH, NH, HS, NH)
    roles = {name: place.role for name, place in anatomy.places.items() if ".heads." in name}
    assert {name[-8:]: role for name, role in roles.items()} == {
        "a.weight": "attn_k",
        "b.weight": "attn_q",
        "c.weight": "attn_v",
    }
    assert len(roles) == 2 * NH * 3
    rows = initlab.probe(model, torch.randint(V, (32, T))).at("attn_z")
    assert (rows["var"] / rows["expected_var"]).to_numpy() == pytest.approx(1, rel=0.3)
