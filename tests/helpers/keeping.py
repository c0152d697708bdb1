"""Models of blocks that keep their own tensors, in float64, beside which what a probe measured is held."""

import pytest
import torch
from torch import nn

import initlab

B, T, D, NH, V = 2, 12, 32, 4, 40
HS = D // NH
INNER = ("q", "k", "v", "attn_z", "mlp_pre", "mlp_act")


KEPT = {}  # outside the models, whose own attributes a probe puts back


class Keeping(nn.Module):
    """A block that keeps what it computes, by site."""

    def __init__(self):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def keep(self, **tensors):
        if torch.is_grad_enabled():  # not in passes over changed tokens, which come after the one that is measured
            KEPT.setdefault(id(self), {}).update({site: tensor.detach().clone() for site, tensor in tensors.items()})


class Model(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        self.blocks = nn.ModuleList(block() for _ in range(2))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def check_inner_sites(block, sites=INNER, heads=NH):
    """Compare what is measured in a model of such blocks with what the blocks kept."""
    torch.manual_seed(0)
    model = Model(block).double().eval()
    ids = torch.randint(V, (B, T + 1))
    probe = initlab.probe(model, (ids[:, :-1], ids[:, 1:]))
    for layer, each in enumerate(model.blocks):
        for site in sites:
            row = probe.at(site, layer).squeeze()
            assert row["var"] == pytest.approx(KEPT[id(each)][site].var(unbiased=False).item(), rel=1e-9), (layer, site)
    assert probe.heads.groupby("layer").size().tolist() == [heads] * len(model.blocks)
    return model, probe
