"""Trainable tensors that a model doesn't know of: found in a pass, and named by what holds them."""

import pytest
import torch
from torch import nn

import initlab

D, V = 16, 32


class Model(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.embed, self.head = nn.Embedding(V, D), nn.Linear(D, V)
        blocks = [nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D)) for _ in range(2)]
        self.blocks = blocks if how == "a list" else nn.ModuleList(blocks)
        if how == "a dict":
            self.parts = {"in": {"proj": nn.Linear(D, D)}}
        elif how == "a tensor":
            self.scale = torch.ones(D, requires_grad=True)
        elif how == "parameters":
            self.scales = (nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D)))
        elif how == "a teacher":
            self.teacher = [nn.Linear(D, D).requires_grad_(False)]
        elif how == "registered as well":
            self.both = [self.embed, self.head]
        elif how == "not used":
            self.spare = [nn.Linear(D, D)]

    def forward(self, ids):
        x = self.embed(ids)
        if self.how == "a dict":
            x = self.parts["in"]["proj"](x)
        elif self.how == "a tensor":
            x = x * self.scale
        elif self.how == "a closure's":
            x = x * OUTSIDE
        elif self.how == "parameters":
            x = x * self.scales[0] + self.scales[1]
        elif self.how == "a teacher":
            x = x + self.teacher[0](x)
        for block in self.blocks:
            x = x + block(x)
        return self.both[1](x) if self.how == "registered as well" else self.head(x)


OUTSIDE = nn.Parameter(torch.ones(D))


def judged(how: str):
    torch.manual_seed(0)
    (finding,) = initlab.probe(Model(how), torch.randint(V, (2, 8)), progress=False).judge(select=["GRD003"])
    return finding


@pytest.mark.parametrize(
    ("how", "count", "held", "advice"),
    [
        ("a list", 12, "in Model.blocks, a list of Sequential", "make Model.blocks an nn.ModuleList"),
        ("a dict", 2, "in Model.parts, a dict of dict", "make Model.parts an nn.ModuleDict"),
        ("a tensor", 1, "in Model.scale, a Tensor", "register Model.scale"),
        ("parameters", 2, "in Model.scales, a tuple of Parameter", "make Model.scales an nn.ParameterList"),
        ("a closure's", 1, "in no attribute of its modules", "hold modules in an nn.ModuleList"),
    ],
)
def test_what_an_optimizer_never_sees_is_named(how, count, held, advice):
    finding = judged(how)
    assert (finding.status, finding.severity, finding.measured) == ("fail", "error", count)
    assert held in finding.message and advice in finding.advice


@pytest.mark.parametrize("how", ["registered", "a teacher", "registered as well", "not used"])
def test_what_is_meant_to_be_hidden_or_known_elsewhere_is_none(how):
    assert judged(how).status == "pass"
