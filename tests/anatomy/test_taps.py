"""What a site says it shows is that tensor: models that keep their own tensors, in styles of their own, in float64."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from tests.helpers.keeping import HS, NH, B, D, Keeping, Model, T, V, check_inner_sites


class Rotated(Keeping):
    """RoPE with complex numbers, shared keys and values, a gated MLP in one matrix."""

    def __init__(self):
        super().__init__()
        self.wq, self.wkv, self.wo = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.both, self.down = nn.Linear(D, 4 * D), nn.Linear(2 * D, D)

    def turned(self, x):
        angle = torch.arange(T)[:, None] * 0.3 ** torch.arange(HS // 2)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], HS // 2, 2))
        return torch.view_as_real(
            pairs * torch.polar(torch.ones_like(angle, dtype=x.dtype), angle.to(x.dtype))
        ).flatten(-2)

    def forward(self, x):
        h = self.norm_1(x)
        q = self.turned(self.wq(h).view(B, T, NH, HS).transpose(1, 2))
        k, v = self.wkv(h).view(B, T, 2, NH // 2, HS).permute(2, 0, 3, 1, 4)
        k = self.turned(k)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        self.keep(q=q, k=k, v=v, attn_z=z)
        x = x + self.wo(z.transpose(1, 2).reshape(B, T, D))
        gate, up = self.both(self.norm_2(x)).chunk(2, -1)
        act = F.silu(gate) * up
        self.keep(mlp_pre=gate, mlp_act=act)
        return x + self.down(act)


class WrittenOut(Keeping):
    """Fused q, k, v; scores, mask and softmax by hand; the tanh form of GELU by hand."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.register_buffer("mask", torch.ones(T, T, dtype=torch.bool).tril())

    def forward(self, x):
        q, k, v = (part.view(B, T, NH, HS).transpose(1, 2) for part in self.qkv(self.norm_1(x)).split(D, -1))
        scores = (q @ k.mT / math.sqrt(HS)).masked_fill(~self.mask, -math.inf)
        z = scores.softmax(-1) @ v
        self.keep(q=q, k=k, v=v, attn_z=z)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        u = self.up(self.norm_2(x))
        act = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        self.keep(mlp_pre=u, mlp_act=act)
        return x + self.down(act)


class Raw(Keeping):
    """Parameters of its own and einsum; the key first in the product, and q scaled beforehand."""

    def __init__(self):
        super().__init__()
        self.WQ, self.WK, self.WV = (nn.Parameter(torch.randn(NH, D, HS) * 0.2) for _ in range(3))
        self.WO = nn.Parameter(torch.randn(NH, HS, D) * 0.2)
        self.W1, self.b1 = nn.Parameter(torch.randn(D, 3 * D) * 0.2), nn.Parameter(torch.zeros(3 * D))
        self.W2 = nn.Parameter(torch.randn(3 * D, D) * 0.2)

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = (torch.einsum("btd,nds->btns", h, W) for W in (self.WQ, self.WK, self.WV))
        q = q * HS**-0.5
        scores = torch.einsum("bjns,bins->bnij", k, q) + torch.full((T, T), -math.inf, dtype=x.dtype).triu(1)
        z = torch.einsum("bnij,bjns->bins", scores.softmax(-1), v)
        self.keep(q=q, k=k, v=v, attn_z=z)
        x = x + torch.einsum("bins,nsd->bid", z, self.WO)
        u = self.norm_2(x) @ self.W1 + self.b1
        self.keep(mlp_pre=u, mlp_act=u.relu().square())
        return x + u.relu().square() @ self.W2


class Parallel(Keeping):
    """One norm for both branches, QK-norm, heads merged into the batch, and the sum in place."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = nn.RMSNorm(HS), nn.RMSNorm(HS)
        self.norm_2 = nn.Identity()  # of a norm without a gradient a probe would make further passes
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def heads(self, x):
        return x.view(B, T, NH, HS).transpose(1, 2)

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = self.q_norm(self.heads(self.q(h))), self.k_norm(self.heads(self.k(h))), self.heads(self.v(h))
        q, k, v = (each.reshape(B * NH, T, HS) for each in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2)) * HS**-0.5
        scores = scores + torch.full((T, T), -math.inf, dtype=x.dtype).triu(1)
        z = torch.bmm(F.softmax(scores, dim=-1), v)
        u = self.up(h)
        self.keep(q=q, k=k, v=v, attn_z=z, mlp_pre=u, mlp_act=F.gelu(u))
        y = self.out(z.view(B, NH, T, HS).transpose(1, 2).reshape(B, T, D)) + self.down(F.gelu(u))
        y += x
        return y


class Post(Keeping):
    """Post-norm blocks with torch's own attention, open to both sides."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(D, NH, batch_first=True)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        parts = F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        q, k, v = (part.view(B, T, NH, HS).transpose(1, 2) for part in parts)
        self.keep(q=q, k=k, v=v, attn_z=F.scaled_dot_product_attention(q, k, v))
        x = self.norm_1(x + self.attn(x, x, x, need_weights=False)[0])
        u = self.up(x)
        self.keep(mlp_pre=u, mlp_act=u.tanh())
        return self.norm_2(x + self.down(u.tanh()))


class Grouped(Post):
    """An MLP of grouped convolutions, whose activation has a ceiling kept as a tensor."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Conv1d(D, 4 * D, 1, groups=4), nn.Conv1d(4 * D, D, 1, groups=4)
        self.register_buffer("top", torch.tensor(0.5))

    def forward(self, x):
        q, k, v = (
            part.view(B, T, NH, HS).transpose(1, 2)
            for part in F.linear(x, self.attn.in_proj_weight, self.attn.in_proj_bias).chunk(3, -1)
        )
        self.keep(q=q, k=k, v=v, attn_z=F.scaled_dot_product_attention(q, k, v))
        x = self.norm_1(x + self.attn(x, x, x, need_weights=False)[0])
        u = self.up(x.mT)
        act = torch.minimum(u, self.top).sigmoid()
        self.keep(mlp_pre=u, mlp_act=act)
        return self.norm_2(x + self.down(act).mT)


@pytest.mark.parametrize("block", [Rotated, WrittenOut, Raw, Parallel, Post, Grouped])
def test_inner_sites_are_what_the_model_computes(block):
    check_inner_sites(block)


class ValueResidual(Keeping):
    """Values are half the first block's: a sum of two states inside a branch, and no stream."""

    first = None

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x, first=None):
        h = self.norm_1(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m in (self.q, self.k, self.v))
        v = v if first is None else 0.5 * v + 0.5 * first
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        return x + self.down(self.up(self.norm_2(x)).relu()), v if first is None else first


class WithValues(Model):
    def __init__(self):
        super().__init__(ValueResidual)

    def forward(self, ids):
        x, first = self.embed(ids), None
        for block in self.blocks:
            x, first = block(x, first)
        return self.head(x)


def test_a_sum_inside_a_branch_is_no_stream():
    torch.manual_seed(0)
    probe = initlab.probe(WithValues().eval(), torch.randint(V, (B, T)))
    assert probe.at("resid_post")["module"].tolist() == ["blocks.0", "blocks.1"]
    assert probe.at("mlp_out")["module"].tolist() == ["blocks.0.down", "blocks.1.down"]


class Cloned(Parallel):
    """What is computed from the stream is added to a copy of it, in place."""

    def forward(self, x):
        y = self.out(self.v(self.norm_1(x)).relu())
        x = x.clone()
        x += y
        return x + self.down(self.up(self.norm_2(x)).relu())


def test_a_copy_of_the_stream_is_the_stream():
    torch.manual_seed(0)
    probe = initlab.probe(Model(Cloned).eval(), torch.randint(V, (B, T)))
    assert probe.at("resid_mid")["layer"].tolist() == [0, 1]
    assert probe.at("mlp_out")["module"].str.endswith("down").sum() == 2
