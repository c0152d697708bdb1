"""Heads that are cut out of positions and joined again position by position, or across them, in many spellings."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initlab.anatomy import look

B, T, NH, HS = 4, 10, 4, 8
D = NH * HS


class Attention(nn.Module):
    """Fused queries, keys and values; how heads are cut and joined is the subclass's."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def cut(self, x):
        return x.view(B, T, NH, HS).transpose(1, 2)

    def join(self, z):
        return z.transpose(1, 2).contiguous().view(B, T, D)

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x):
        q, k, v = (self.cut(each) for each in self.qkv(x).chunk(3, -1))
        return self.out(self.join(self.mix(q, k, v)))


class WrittenOut(Attention):
    def mix(self, q, k, v):
        return (q @ k.transpose(-2, -1) / HS**0.5).softmax(-1) @ v


class Turning(Attention):
    """Rotary positions between the cut and the product."""

    def mix(self, q, k, v):
        angles = torch.arange(T)[:, None] * torch.arange(1, HS // 2 + 1)
        cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        q, k = (x * cos + torch.cat([-x[..., HS // 2 :], x[..., : HS // 2]], -1) * sin for x in (q, k))
        return super().mix(q, k, v)


class Permuting(Attention):
    def cut(self, x):
        return x.reshape(B, T, NH, HS).permute(0, 2, 1, 3)

    def join(self, z):
        return z.permute(0, 2, 1, 3).flatten(2)


class Flattened(Attention):
    """Tokens of all samples in one dimension before and after."""

    def forward(self, x):
        q, k, v = (self.cut(each.view(B, T, D)) for each in self.qkv(x.reshape(B * T, D)).chunk(3, -1))
        return self.out(self.join(self.mix(q, k, v)).view(B * T, D)).view(B, T, D)


class HeadsInTheBatch(Attention):
    """As fairseq has it: the dimension of the heads is merged with the batch's."""

    def cut(self, x):
        return super().cut(x).reshape(B * NH, T, HS)

    def join(self, z):
        return super().join(z.view(B, NH, T, HS))


class Scrambling(Attention):
    def join(self, z):
        return z.reshape(B, T, D)


class ScramblingWrittenOut(Scrambling, WrittenOut):
    pass


class ScramblingHeadsInTheBatch(HeadsInTheBatch):
    def join(self, z):
        return z.view(B, NH, T, HS).reshape(B, T, D)


class Cutting(Attention):
    def cut(self, x):
        return x.reshape(B, NH, T, HS)


class CuttingWrittenOut(Cutting, WrittenOut):
    pass


class CuttingTurning(Cutting, Turning):
    """What queries and keys are made of can't be followed through a rotation's halves but by their first part."""


class OverHeads(Attention):
    def cut(self, x):
        return x.view(B, T, NH, HS)

    def join(self, z):
        return z.reshape(B, T, D)


class Viewing(Attention):
    def cut(self, x):
        return x.contiguous().view(B, NH, T, HS)


class HeadsInTheBatchCut(Attention):
    def cut(self, x):
        return x.contiguous().view(B * NH, T, HS)

    def join(self, z):
        return z.view(B, T, D)


class HeadsFirst(Attention):
    """The dimension of the heads before the batch's, which is as long."""

    def cut(self, x):
        return x.view(B, T, NH, HS).permute(2, 0, 1, 3)

    def join(self, z):
        return z.permute(1, 2, 0, 3).reshape(B, T, D)


class Axial(Attention):
    """Within rows of a picture of two columns by five; heads before them."""

    def cut(self, x):
        return x.view(B, 2, 5, NH, HS).permute(0, 3, 1, 2, 4)

    def join(self, z):
        return z.permute(0, 2, 3, 1, 4).reshape(B, T, D)


class OneKeyForAll(Attention):
    """The heads of the queries are folded into positions, of which each key serves all."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, D + 2 * HS)

    def forward(self, x):
        q, k, v = self.qkv(x).split([D, HS, HS], -1)
        q = q.view(B, T, NH, HS).transpose(1, 2).reshape(B, 1, NH * T, HS)
        z = F.scaled_dot_product_attention(q, k.view(B, 1, T, HS), v.view(B, 1, T, HS))
        return self.out(z.view(B, NH, T, HS).transpose(1, 2).reshape(B, T, D))


CUT = ("queries", "keys", "values")
KINDS = {
    Attention: (),
    WrittenOut: (),
    Turning: (),
    Permuting: (),
    Flattened: (),
    HeadsInTheBatch: (),
    Scrambling: ("output",),
    ScramblingWrittenOut: ("output",),
    ScramblingHeadsInTheBatch: ("output",),
    Cutting: CUT,
    CuttingWrittenOut: CUT,
    CuttingTurning: CUT,
    OverHeads: ("positions",),
    Viewing: CUT,
    HeadsInTheBatchCut: CUT,
    HeadsFirst: (),
    Axial: (),
    OneKeyForAll: (),
}


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.norm_1, self.norm_2, self.attention = nn.LayerNorm(D), nn.LayerNorm(D), kind()
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.blocks = nn.ModuleList([Block(kind) for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_followed_through_reshapes(kind):
    torch.manual_seed(0)
    model = Model(kind)
    anatomy = look.of(model, lambda: model(torch.randn(B, T, D)))
    bodies = [next(block.branches()).body for block in anatomy.seen[0].blocks]
    assert [body.n_head for body in bodies] == [NH, NH]
    assert [body.crossed for body in bodies] == [KINDS[kind]] * 2
