"""Experts whose weights are stacked in one parameter, in the ways that they are used: their tensors are found."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from tests.helpers.keeping import HS, KEPT, NH, B, D, Keeping, Model, T, V, check_inner_sites

E, H = 3, 2 * D


class Stacked(Keeping):
    """Every expert sees every token, and the router's weights are a third factor of the last product."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out, self.router = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, E)
        self.first = nn.Parameter(torch.randn(E, D, H) * 0.2)
        self.second = nn.Parameter(torch.randn(E, H, D) * 0.2)

    def forward(self, x):
        q, k, v = (part.view(B, T, NH, HS).transpose(1, 2) for part in self.qkv(self.norm_1(x)).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        self.keep(q=q, k=k, v=v, attn_z=z)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        h = self.norm_2(x)
        return x + self.mix(h, self.router(h).softmax(-1))

    def mix(self, h, weights):
        u = torch.einsum("btd,edf->btef", h, self.first)
        self.keep(mlp_pre=u, mlp_act=F.gelu(u))
        return torch.einsum("btef,efd,bte->btd", F.gelu(u), self.second, weights)


class WeighedBefore(Stacked):
    """The weights are multiplied in before the last product, which sums over experts and features."""

    def mix(self, h, weights):
        u = torch.einsum("btd,edf->btef", h, self.first)
        self.keep(mlp_pre=u, mlp_act=F.gelu(u))
        return torch.einsum("btef,efd->btd", F.gelu(u) * weights[..., None], self.second)


class Batched(Stacked):
    """A batched product of copies of all tokens."""

    def mix(self, h, weights):
        u = torch.bmm(h.reshape(1, -1, D).expand(E, -1, -1), self.first)
        self.keep(mlp_pre=u, mlp_act=F.relu(u))
        y = torch.bmm(F.relu(u), self.second) * weights.reshape(-1, E).T[..., None]
        return y.sum(0).view(B, T, D)


class Gathered(Stacked):
    """Each token fetches its expert's weights and biases; the gate is clamped, and 1 added to what it multiplies."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(E, 2 * H, D) * 0.2)
        self.second = nn.Parameter(torch.randn(E, D, H) * 0.2)
        self.one, self.two = nn.Parameter(torch.randn(E, 2 * H)), nn.Parameter(torch.randn(E, D))

    def mix(self, h, weights):
        best, expert = weights.view(-1, E).max(-1)
        both = torch.bmm(self.first[expert], h.reshape(-1, D, 1)).squeeze(-1) + self.one[expert]
        gate, up = both[..., ::2], both[..., 1::2]
        bound = gate.clamp(max=2.0)
        act = (up.clamp(-2.0, 2.0) + 1) * (bound * torch.sigmoid(1.7 * bound))
        self.keep(mlp_pre=gate, mlp_act=act)
        y = torch.bmm(self.second[expert], act.unsqueeze(-1)).squeeze(-1) + self.two[expert]
        return (y * best[:, None]).view(B, T, D)


class Dispatched(Stacked):
    """One-hot products send tokens to places of experts, and fetch what comes back."""

    def mix(self, h, weights):
        flat, picked = h.reshape(-1, D), F.one_hot(weights.view(-1, E).argmax(-1), E).to(h)
        sent = torch.einsum("se,sd->esd", picked, flat)
        u = torch.einsum("esd,edf->esf", sent, self.first)
        self.keep(mlp_pre=u, mlp_act=F.silu(u))
        y = torch.einsum("esf,efd->esd", F.silu(u), self.second)
        return torch.einsum("se,esd->sd", weights.view(-1, E), y).view(B, T, D)


@pytest.mark.parametrize("block", [Stacked, WeighedBefore, Batched, Gathered, Dispatched])
def test_stacked_experts_are_found(block):
    _, probe = check_inner_sites(block)
    assert probe.at("mlp_out")["layer"].tolist() == [0, 1]


class Looped(Stacked):
    """A loop over experts, each with its tokens, which adds to places of one tensor."""

    def mix(self, h, weights):
        flat = h.reshape(-1, D)
        best, chosen = weights.view(-1, E).max(-1)
        y, pre, act = torch.zeros_like(flat), [], []
        for number in range(E):
            mine = torch.where(chosen == number)[0]
            pre.append(flat[mine] @ self.first[number])
            act.append(pre[-1].tanh())
            y.index_add_(0, mine, (act[-1] @ self.second[number]) * best[mine, None])
        self.keep(mlp_pre=torch.cat(pre), mlp_act=torch.cat(act))
        return y.view(B, T, D)


def test_experts_in_a_loop_are_found_one_by_one():
    torch.manual_seed(0)
    model = Model(Looped).double().eval()
    ids = torch.randint(V, (B, T + 1))
    probe = initlab.probe(model, (ids[:, :-1], ids[:, 1:]))
    for layer, block in enumerate(model.blocks):
        for site in ("mlp_pre", "mlp_act"):
            rows = probe.at(site, layer)
            kept = KEPT[id(block)][site]
            square = (rows["rms"] ** 2 * rows["numel"]).sum() / rows["numel"].sum()
            assert square == pytest.approx(kept.square().mean().item(), rel=1e-9), site
            assert rows["numel"].sum() == kept.numel()
