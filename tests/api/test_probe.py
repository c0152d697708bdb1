"""What `probe` and those that pass their options on to it refuse, and what their headlines say."""

import pytest
import torch
from torch import nn

import initlab
from initlab.errors import ConfigError, InitlabError, ProbeError

pytestmark = pytest.mark.integration

TEXT = initlab.Text("uniform", block_size=8, batch_size=2)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.proj = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return x + self.proj(torch.relu(self.fc(self.norm(x))))


class Model(nn.Module):
    def __init__(self, recurrent=False):
        super().__init__()
        self.embed, self.head = nn.Embedding(64, 16), nn.Linear(16, 64, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.memory = nn.LSTM(16, 16, batch_first=True) if recurrent else None

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x if self.memory is None else self.memory(x)[0])


@pytest.mark.parametrize("seed", ["a", 1.5, -1, 2**70, True, None])
def test_a_seed_that_is_none_is_one_error(seed):
    calls = (
        initlab.probe,
        initlab.fix,
        initlab.assert_healthy,
        lambda m, seed: initlab.apply_recipe(m, "nanogpt", seed=seed),
    )
    for call in calls:
        with pytest.raises(ConfigError, match=rf"^seed is {seed!r}; expected a whole number from 0 on"):
            call(Model(), seed=seed)


def test_an_unknown_option_is_one_error():
    with pytest.raises(ConfigError, match=r"^fix has no option 'foo'; known: recipe, apply, seed, .*metrics$"):
        initlab.fix(Model(), foo=3)
    with pytest.raises(ConfigError, match=r"^assert_healthy has no option 'stat'; did you mean stats\? known: fail_on"):
        initlab.assert_healthy(Model(), stat="light")


def test_headlines_say_of_how_many_parameters_roles_are_known():
    torch.manual_seed(0)
    part = r"roles are known of 14 of 18 parameters"
    found = initlab.probe(Model(recurrent=True), text=TEXT)
    assert " ".join(str(found).split()).endswith(f"; {part}.")
    assert f"({part})" in " ".join(str(initlab.fix(Model(recurrent=True), text=TEXT)).split("\n\n")[0].split())
    assert "roles are known" not in str(initlab.probe(Model(), text=TEXT)) + str(initlab.fix(Model(), text=TEXT))


def test_an_error_of_the_models_own_comes_first():
    class Broken(Model):
        def forward(self, ids):
            raise KeyError("mine")

    with pytest.raises(ProbeError) as caught:
        initlab.probe(Broken(), text=TEXT)
    chain, error = [], caught.value
    while error is not None:
        chain.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert [type(each) for each in chain] == [ProbeError, KeyError]
    assert not isinstance(chain[-1], InitlabError)


def test_finite_gains_are_told_from_infinite_ones():
    torch.manual_seed(0)
    model = Model()
    nn.init.constant_(model.blocks[1].norm.weight, 1e30)
    described = initlab.describe_init(model)
    (gains,) = (row for row in described.rows if row["role"] == "norm_gain")
    assert gains["stds"]["blocks.1.norm.weight"] == 0.0
    assert "norm_gain in 1 of 2 parameters (blocks.1.norm.weight) has the value 1.00e30, not 1" in str(
        described.mismatches
    )
    records = initlab.probe(model, text=TEXT).records
    row = records[(records["module"] == "blocks.1.norm.weight") & (records["kind"] == "weight")].iloc[0]
    assert row["frac_nonfinite"] == 0 and row["mean"] == pytest.approx(1e30) and row["var"] == 0
