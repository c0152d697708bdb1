"""Looking at a model changes nothing of it."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from initlab.anatomy.asking import gain_offset
from initlab.anatomy.roles import find_roles
from initlab.anatomy.stacks import linear_fans, stored_weight


class CountingNorm(nn.Module):
    """Counts its calls in a buffer, in train mode alone, and adds 1 to its gain as Gemma's does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x * (1 + self.weight)


def test_asking_a_norm_for_its_offset_leaves_its_buffers():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, momentum=None), CountingNorm())
    assert gain_offset(model[2]) == 1
    find_roles(model)
    assert model[1].num_batches_tracked == 0
    assert model[2].calls == 0


def test_a_forward_put_on_the_instance_is_not_called():
    norm, calls = nn.LayerNorm(8), []
    norm.forward = lambda x: calls.append(x)
    assert gain_offset(norm) == 0
    assert not calls


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm", "orthogonal"])
def test_a_parametrized_weight_is_not_computed_to_read_it(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 6))
    for module in model:
        getattr(parametrizations, kind)(module)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []
    for module in model:
        module.parametrizations.weight.register_forward_hook(lambda *_: calls.append(1))
    assert linear_fans(model[2]) == (8, 6)
    assert stored_weight(model[2]).shape == (6, 8)
    find_roles(model)
    assert not calls
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
