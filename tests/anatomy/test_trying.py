"""Ways to call a model, tried one after the other."""

import pytest
import torch
from torch import nn

from initlab.anatomy.inputs import Inputs
from initlab.anatomy.trying import first_that_runs


class Picky(nn.Module):
    """Takes 3 features, and leaves a trace of every pass."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        assert not torch.is_grad_enabled()
        x += torch.rand(())
        return self.norm(self.linear(x))


def call(width, value=1.0):
    return Inputs(args=(torch.full((2, width), value),))


def anything(output, inputs):
    return True


@pytest.mark.parametrize(
    ("ways", "complete", "expected"),
    [
        ([call(3)], anything, 0),
        ([call(4), call(3)], anything, 1),
        ([call(3), call(3, 2.0)], lambda output, inputs: inputs.args[0][0, 0] == 2, 1),
        ([call(4), call(3), call(3)], lambda *_: False, 1),
    ],
)
def test_the_first_complete_one_else_the_first_that_ran(ways, complete, expected):
    model = Picky()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert first_that_runs(model, ways, 0, complete) == expected
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(value in (1.0, 2.0) for each in ways for value in each.args[0].flatten().tolist())


def test_where_none_runs_the_first_error_is_given():
    error = first_that_runs(Picky(), [call(4), call(5)], 0, anything)
    assert isinstance(error, RuntimeError) and "2x4" in str(error)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_id_that_a_table_doesnt_have_leaves_the_gpu_usable():
    model = nn.Embedding(4, 2).cuda()
    error = first_that_runs(model, [Inputs(args=(torch.tensor([4]),))], 0, anything)
    assert isinstance(error, IndexError)
    assert torch.ones(2, device="cuda").sum().item() == 2
