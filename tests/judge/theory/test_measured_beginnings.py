"""Where the closed form begins with what was measured, and what it is compared with behind a dropout that is shared."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import initlab

D, HEADS, T = 64, 4, 48


class Block(nn.Module):
    def __init__(self, norm, dropout):
        super().__init__()
        self.norms = nn.ModuleList(norm(D) for _ in range(2))
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(y))
        return x + self.dropout(self.down(F.gelu(self.up(self.norms[1](x)))))


class Heard(nn.Module):
    """A convolution whose outputs are positive before blocks."""

    def __init__(self, norm=nn.LayerNorm, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv1d(8, D, 3, padding=1)
        self.blocks = nn.ModuleList(Block(norm, dropout) for _ in range(2))
        self.norm, self.head = norm(D), nn.Linear(D, 10)

    def forward(self, x):
        x = 2 * F.relu(self.conv(x)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def probed(**options):
    torch.manual_seed(0)
    return initlab.probe(Heard(**options).train(), torch.randn(8, 8, T), progress=False)


def test_a_layer_norm_takes_the_mean_of_what_it_begins_with_off():
    rows = probed().records.query("kind == 'activation' and site == 'attn_z'")
    # 64 features of one draw scatter by a third; with their common mean left in it would be 5 times too much
    assert (rows["var"] / rows["expected_var"]).map(math.log).abs().max() < math.log(1.5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_dropout_that_branches_share_is_counted_on_both_sides(dropout):
    found = probed(dropout=dropout)
    assert not {"RES002", "RES003"} & {f.code for f in found.failures}
    writes = found.records.query("kind == 'activation' and site == 'mlp_out'")["var"].array
    rest = probed().records.query("kind == 'activation' and site == 'mlp_out'")["var"].array
    assert (writes / rest).mean() == pytest.approx(1 / (1 - dropout), rel=0.15)
