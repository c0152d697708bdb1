"""Numbers that heads are multiplied with, read from the operations, however they are written."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initlab.anatomy import look

B, T, D = 2, 12, 32


class Block(nn.Module):
    def __init__(self, n_head, way):
        super().__init__()
        self.n_head, self.way = n_head, way
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        shape = {"whole": (1, n_head, 1, 1), "of positions": (T,)}.get(way, (n_head,))
        self.strength = nn.Parameter(torch.full(shape, 0.5))

    def forward(self, x):
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in self.qkv(self.norm(x)).split(D, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if self.way == "whole":
            z = (z * self.strength).transpose(1, 2)
        elif self.way == "viewed":
            z = (self.strength.view(1, -1, 1, 1) * z).transpose(1, 2)
        elif self.way == "of positions":
            z = (z * self.strength[:, None]).transpose(1, 2)
        elif self.way == "behind positions":
            z = z.transpose(1, 2) * self.strength[:, None]
        else:
            z = torch.einsum("bthd,h->bthd", z.transpose(1, 2), self.strength)
        return x + self.out(z.reshape(B, T, D))


class Model(nn.Module):
    def __init__(self, n_head, way):
        super().__init__()
        self.tokens, self.head = nn.Embedding(48, D), nn.Linear(D, 48)
        self.blocks = nn.ModuleList([Block(n_head, way) for _ in range(2)])

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("way", ["whole", "viewed", "behind positions", "einsum"])
@pytest.mark.parametrize("n_head", [4, 1])
def test_numbers_of_heads_are_found(way, n_head):
    torch.manual_seed(0)
    model = Model(n_head, way).eval()
    ids = torch.randint(0, 48, (B, T))
    found = look.of(model, lambda: model(ids))
    bodies = [branch.body for wiring in found.wirings for branch in wiring.branches()]
    assert [body.head_gain for body in bodies] == ["blocks.0.strength", "blocks.1.strength"]
    assert [body.n_head for body in bodies] == [n_head, n_head]
    assert found.places["blocks.0.strength"].role == "gate"


def test_numbers_of_positions_are_not_those_of_heads():
    torch.manual_seed(0)
    model = Model(4, "of positions").eval()
    ids = torch.randint(0, 48, (B, T))
    found = look.of(model, lambda: model(ids))
    assert [branch.body for branch in found.seen[0].branches()] == [None, None]
    assert "what its heads give is multiplied with blocks.0.strength" in " ".join(found.wirings[0].unknown)
