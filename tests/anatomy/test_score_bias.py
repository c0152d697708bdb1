"""What is added to attention scores, however it is written: a bias of positions is one, a mask isn't."""

import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import initlab
from initlab.measure.attention import by_input, softmax_statistics

D, HEADS = 32, 4


class Attention(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def scores(self, q, k, T):
        at = torch.arange(T)
        slopes = 2.0 ** -torch.arange(1, HEADS + 1)
        bias = -(at[:, None] - at).clamp(min=0) * slopes[:, None, None]
        mask = torch.full((T, T), -math.inf).triu(1)
        qk = q @ k.mT / math.sqrt(D // HEADS)
        match self.how:
            case "added":
                return qk + bias + mask
            case "in one with the mask":
                return qk + (bias + mask)
            case "taken off":
                return (qk - slopes[:, None, None] * (at[:, None] - at)).masked_fill(mask < 0, -math.inf)
            case "before the scale":
                return (q @ k.mT + bias) / math.sqrt(D // HEADS) + mask
            case "in place":
                qk += bias
                return qk.masked_fill_(mask < 0, -1e9)
            case "none, masked by a sum":
                return qk + mask
            case "none, masked by a large number":
                return torch.where(mask < 0, torch.tensor(-1e4), qk)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        if self.how == "fused":
            bias = -(torch.arange(T)[:, None] - torch.arange(T)).clamp(min=0).float()
            y = F.scaled_dot_product_attention(q, k, v, bias.masked_fill(torch.ones(T, T).triu(1) > 0, -math.inf))
        else:
            y = self.scores(q, k, T).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.embed = nn.Embedding(64, D)
        self.norms, self.blocks = nn.ModuleList(nn.LayerNorm(D) for _ in range(2)), nn.ModuleList()
        self.blocks.extend(Attention(how) for _ in range(2))
        self.head = nn.Linear(D, 64)

    def forward(self, ids):
        x = self.embed(ids)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x)


def probed(how: str, T: int) -> initlab.Probe:
    torch.manual_seed(0)
    return initlab.probe(Model(how), torch.randint(64, (4, T)), progress=False)


@pytest.mark.parametrize("T", [16, 160])  # 160: larger than what every size is taken of
@pytest.mark.parametrize("how", ["added", "in one with the mask", "taken off", "before the scale", "in place", "fused"])
def test_a_bias_of_positions_is_found(how, T):
    found = probed(how, T)
    attention = found.run.tables.wiring.query("kind == 'attention'")
    assert attention["bias"].tolist() == [1, 1] and attention["causal"].tolist() == [1, 1]
    assert not {"ATT002", "WIR008"} & {f.code for f in found.failures}
    assert found.heads["logit_std_by_input"].mean() < found.heads["logit_std"].mean()


@pytest.mark.parametrize("how", ["none, masked by a sum", "none, masked by a large number"])
def test_a_mask_is_no_bias(how):
    found = probed(how, 160)
    attention = found.run.tables.wiring.query("kind == 'attention'")
    assert attention["bias"].tolist() == [0, 0] and attention["causal"].tolist() == [1, 1]
    assert found.heads["logit_std_by_input"].isna().all()
    assert "WIR008" in {f.code for f in found.failures}


def test_what_sequences_share_is_taken_off():
    torch.manual_seed(0)
    B, R, S = 8, 32, 64
    own, shared = torch.randn(B, 2, R, S), torch.tensor([3.0, 0.0])[:, None, None] * torch.randn(2, R, S)
    masked = torch.arange(S) > torch.arange(S - R, S)[:, None]
    scores = (own + shared).masked_fill(masked, -math.inf)
    found = softmax_statistics(scores, scores.softmax(-1))
    plain = softmax_statistics(own.masked_fill(masked, -math.inf), own.masked_fill(masked, -math.inf).softmax(-1))
    assert found.per_head[2, 0] > 3
    torch.testing.assert_close(by_input(found), plain.per_head[1:], rtol=0.01, atol=0)


def test_of_one_sequence_nothing_is_taken_off():
    scores = torch.randn(1, 2, 8, 8)
    assert by_input(softmax_statistics(scores, scores.softmax(-1))).isnan().all()


class Heads(nn.Module):
    """Scores that stand as (B, T, heads, T), as DeepSeek's einsum writes them, or as (B, heads, T, T)."""

    def __init__(self, turned: bool, masked: bool):
        super().__init__()
        self.turned, self.masked = turned, masked
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, HEADS, -1).unbind(2)
        mask = torch.full((T, T), -math.inf).triu(1) if self.masked else torch.zeros(T, T)
        if self.turned:
            scores = torch.einsum("bshd,bthd->bsht", q, k) / math.sqrt(D // HEADS) + mask[:, None]
            y = torch.einsum("bsht,bthd->bshd", scores.softmax(-1), v)
        else:
            scores = torch.einsum("bshd,bthd->bhst", q, k) / math.sqrt(D // HEADS) + mask
            y = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v)
        return self.out(y.flatten(2))


@pytest.mark.parametrize("masked", [True, False])
def test_heads_may_stand_behind_the_queries(masked):
    found = {}
    for turned in (True, False):
        torch.manual_seed(0)
        model = Model("added")
        torch.manual_seed(1)
        model.blocks = nn.ModuleList(Heads(turned, masked) for _ in range(2))
        found[turned] = initlab.probe(model, torch.randint(64, (4, 24)), progress=False)
    one, other = found[True], found[False]
    assert one.run.tables.wiring.query("kind == 'attention'")["causal"].tolist() == [int(masked)] * 2
    columns = ["layer", "head", "entropy", "entropy_frac", "logit_std"]
    pd.testing.assert_frame_equal(one.heads[columns], other.heads[columns])
    assert {f.code for f in one.failures} == {f.code for f in other.failures}
