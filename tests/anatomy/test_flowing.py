"""Branches whose gradient doesn't reach the stream that they read, and those where it only looks so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import initlab

D = 16


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


class Block(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how, self.norm, self.up, self.down = how, nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        if how == "frozen":
            self.requires_grad_(False)

    def forward(self, x):
        h = self.norm(x.detach() if self.how == "detached" else x.data if self.how == "data" else x)
        h = self.up(h)
        h = Swish.apply(h) if self.how == "a function of its own" else F.gelu(h)
        return x + self.down(h)


class Model(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.embed, self.norm, self.head = nn.Embedding(32, D), nn.LayerNorm(D), nn.Linear(D, 32)
        self.blocks = nn.ModuleList(Block(how) for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.how == "recomputed" else block(x)
        return self.head(self.norm(x))


def judged(how):
    torch.manual_seed(0)
    found = initlab.probe(Model(how), torch.randint(32, (2, 8)), progress=False)
    (finding,) = found.judge(select=["WIR011"])
    return finding


@pytest.mark.parametrize("how", ["detached", "data"])
def test_a_branch_without_a_gradient_is_named(how):
    finding = judged(how)
    assert (finding.status, finding.severity) == ("fail", "warning")
    assert "blocks.N.down reads the stream without a gradient" in finding.message


@pytest.mark.parametrize("how", ["plain", "frozen", "a function of its own", "recomputed"])
def test_what_has_one_is_none(how):
    assert judged(how).status != "fail"
