"""What a branch computes is read in whatever way it is written: each against the block's own tensors, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import initlab
from initlab.anatomy import look
from initlab.wiring import MLP, Attention
from tests.helpers.keeping import HS, NH, B, D, Keeping, Model, T, V, check_inner_sites


class NormedApart(Keeping):
    """Queries, keys and values each read a norm of their own; a bias before the MLP's last matrix, sums with 0."""

    def __init__(self):
        super().__init__()
        self.norm_1 = nn.Identity()  # of a norm without a gradient a probe would make further passes
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(3))
        self.qkv, self.out = nn.ModuleList(nn.Linear(D, D) for _ in range(3)), nn.Linear(D, D)
        self.gate, self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(D, 2 * D, bias=False), nn.Linear(2 * D, D)
        self.inner = nn.Parameter(torch.zeros(2 * D))

    def normed(self, x):
        return [norm(x + 0.0) * 1.0 for norm in self.norms]

    def forward(self, x):
        given = self.normed(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m, h in zip(self.qkv, given, strict=True))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        gate = self.gate(self.norm_2(x))
        act = F.silu(gate) * self.up(self.norm_2(x)) + self.inner
        self.keep(q=q, k=k, v=v, attn_z=z, mlp_pre=gate, mlp_act=act)
        return x + self.down(act)


class NormedThrice(NormedApart):
    """The same norm, called three times."""

    def __init__(self):
        super().__init__()
        self.norm_1 = self.norms[0]
        del self.norms

    def normed(self, x):
        return [self.norm_1(x) + 0.0 for _ in range(3)]


class NormedInPart(NormedThrice):
    """What keys are made of isn't normed."""

    def normed(self, x):
        h = self.norm_1(x)
        return [h, x, h]


def branches(block):
    """The first block's branches, and the model."""
    torch.manual_seed(0)
    model = Model(block).eval()
    anatomy = look.of(model, lambda: model(torch.randint(V, (B, T))))
    return list(anatomy.seen[0].blocks[0].branches()), anatomy


@pytest.mark.parametrize("block", [NormedApart, NormedThrice, NormedInPart])
def test_one_state_normed_several_times_is_one_branch_of_self_attention(block):
    _, probe = check_inner_sites(block)
    assert probe.at("attn_out")["module"].tolist() == ["blocks.0.out", "blocks.1.out"]


def test_each_norm_of_a_state_is_known():
    (attention, mlp), anatomy = branches(NormedApart)
    assert isinstance(attention.body, Attention)
    assert [norm.gain for norm in (attention.norm, *attention.norms)] == [
        f"blocks.0.norms.{i}.weight" for i in range(3)
    ]
    assert isinstance(mlp.body, MLP)
    assert (mlp.norm.gain, mlp.norms) == ("blocks.0.norm_2.weight", ())
    assert anatomy.places["blocks.0.inner"].role == "bias"
    assert branches(NormedThrice)[0][0].norms == ()
    assert branches(NormedInPart)[0][0].body is None


def test_what_norms_of_their_own_give_is_predicted_where_they_are_alike():
    torch.manual_seed(0)
    model = Model(NormedApart).eval()
    ids = torch.randint(V, (B, T))
    assert initlab.probe(model, ids).at("v", 0)["expected_var"].notna().all()
    nn.init.constant_(model.blocks[0].norms[2].weight, 2.0)
    assert initlab.probe(model, ids).at("v", 0)["expected_var"].isna().all()
