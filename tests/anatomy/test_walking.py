"""Matrices that are computed from parameters are these parameters' matrices."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from initlab.anatomy import look
from initlab.wiring import Attention
from tests.helpers.keeping import HS, NH, B, D, Keeping, Model, T, V, check_inner_sites


class Adapted(nn.Module):
    """A product of two thin matrices is added."""

    def __init__(self, linear):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, linear.in_features)), nn.Parameter(torch.randn(D, 2) * 0.1)

    def forward(self, weight):
        return weight + (self.b @ self.a)[: len(weight)]


class Doubled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 2, self.bias)


class Kind(torch.Tensor):
    """A tensor of a user's own class."""


def adapted(linear):
    parametrize.register_parametrization(linear, "weight", Adapted(linear))


def doubled(linear):
    linear.__class__ = Doubled


def of_a_kind(linear):
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Kind))


def pruned(linear):
    prune.random_unstructured(linear, "weight", 0.3)


WAYS = [parametrizations.weight_norm, parametrizations.spectral_norm, adapted, doubled, pruned, of_a_kind]


class Plain(Keeping):
    """Each matrix is computed in one way."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out, self.up, self.down = (nn.Linear(D, D) for _ in range(6))

    def forward(self, x):
        h = self.norm_1(x)
        q, k, v = (m(h).view(B, T, NH, HS).transpose(1, 2) for m in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, D))
        u = self.up(self.norm_2(x))
        self.keep(q=q, k=k, v=v, attn_z=z, mlp_pre=u, mlp_act=u.relu())
        return x + self.down(u.relu())


def block(way):
    """Make a block of such matrices."""

    def make():
        made = Plain()
        for module in [each for each in made.modules() if isinstance(each, nn.Linear)]:
            way(module)
        return made

    return make


@pytest.mark.parametrize("way", WAYS)
def test_sites_behind_computed_matrices_are_what_the_model_computes(way):
    check_inner_sites(block(way))


@pytest.mark.parametrize("way", WAYS)
def test_a_computed_matrix_has_the_parameter_s_role_and_its_own_size(way):
    torch.manual_seed(0)
    model = Model(block(way)).double().eval()
    ids = torch.randint(V, (B, T))
    anatomy = look.of(model, lambda: model(ids))
    attention, mlp = (branch.body for branch in anatomy.wirings[0].blocks[0].branches())
    assert isinstance(attention, Attention)
    found = {"q": attention.query, "k": attention.key, "v": attention.value, "out": attention.out}
    for name, linear in (found | {"up": mlp.up, "down": mlp.out}).items():
        module = model.blocks[0].get_submodule(name)
        assert linear.weight.startswith(f"blocks.0.{name}.")
        assert model.get_parameter(linear.weight).shape == (D, D)
        applied = module.weight * 2 if way is doubled else module.weight
        held = model.get_parameter(linear.weight) if linear.square is None else None
        square = linear.square if held is None else held.square().mean().item()
        assert square == pytest.approx(applied.square().mean().item(), rel=1e-6)
    wanted = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "out": "attn_out", "up": "mlp_in", "down": "mlp_out"}
    matrices = {linear.weight for linear in (*found.values(), mlp.up, mlp.out)}
    assert {name.split(".")[2]: anatomy.places[name].role for name in matrices} == wanted
    thin = [place.role for name, place in anatomy.places.items() if "parametrizations.weight.0." in name]
    assert set(thin) <= {"other"}
