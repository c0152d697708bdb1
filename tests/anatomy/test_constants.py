"""Parameters that their class makes of one number, read from its `__init__`."""

import math

import pytest
import torch
from torch import nn

import initlab
from initlab.anatomy.constants import constants


class Gated(nn.Module):
    def __init__(self, width, *, open=True, start=0.3):
        super().__init__()
        self.start = start
        self.zero = nn.Parameter(torch.zeros(1))
        self.scaled = nn.Parameter(1e-4 * torch.ones(width))
        self.full = nn.Parameter(torch.full((width,), -self.start))
        self.listed = nn.Parameter(torch.tensor([math.log(2), math.log(2)]))
        self.drawn = nn.Parameter(torch.randn(width))
        self.unequal = nn.Parameter(torch.tensor([0.0, 1.0]))
        ones = torch.ones(width).float() / 4
        self.quarter = nn.Parameter(ones)
        if open:
            self.way = nn.Parameter(torch.ones(1))
        else:
            self.way = nn.Parameter(torch.zeros(1))
        self.register_parameter("registered", nn.Parameter(torch.ones(2)))
        table = torch.zeros(width)
        table[::2] = torch.arange(0, width, 2).float().sin()
        self.table = nn.Parameter(table)
        self.edge = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.edge[0] = 1.0
        self.added = nn.Parameter(torch.zeros(width))
        self.added.data += 2
        self.renamed = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.renamed)
        self.asked = nn.Parameter(torch.zeros(width))
        for name, parameter in self.named_parameters():
            if name.endswith("asked"):
                parameter.data.fill_(3)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.other = nn.Parameter(torch.ones(4))


class Derived(Base):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(4))


class Whole(nn.Module):
    """Inits of other classes' parameters, by class."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Derived(), Base()])
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            module.gain.data.normal_()
        if isinstance(module, Derived):
            nn.init.normal_(module.other)


def test_every_spelling_of_one_number():
    found = {name: value for name, (_, value) in constants(Gated(3)).items()}
    way = found.pop("way", None)
    assert found == pytest.approx(
        {"zero": 0, "scaled": 1e-4, "full": -0.3, "listed": math.log(2), "quarter": 0.25, "registered": 1}
    )
    assert way is None, "open is an argument that nothing keeps"


def test_branches_that_the_attributes_rule_out_did_not_run():
    class Kept(nn.Module):
        def __init__(self, open):
            super().__init__()
            self.open = open
            if self.open:
                self.way = nn.Parameter(torch.ones(1))
            else:
                self.way = nn.Parameter(torch.zeros(1))

    assert constants(Kept(True)) == {"way": ("Kept.__init__", 1.0)}
    assert constants(Kept(False)) == {"way": ("Kept.__init__", 0.0)}


def test_the_last_class_decides_and_inits_by_class_are_about_that_class():
    assert constants(Whole()) == {
        "parts.0.gain": ("Derived.__init__", 0.0),
        "parts.1.gain": ("Base.__init__", 1.0),
        "parts.1.other": ("Base.__init__", 1.0),
    }


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gate = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x):
        return x + self.gate * self.down(torch.relu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(32, 16), nn.ModuleList([Block(16) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 32)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def test_a_gate_that_to_empty_lost_is_seen_and_set_again():
    torch.manual_seed(0)
    healthy, lost = Net(), Net()
    with torch.no_grad():
        for block in lost.blocks:
            block.gate.zero_()
    assert [f for f in initlab.probe(healthy).failures if f.code == "INI014"] == []
    (finding,) = [f for f in initlab.probe(lost).failures if f.code == "INI014"]
    assert finding.severity == "warning"
    assert "Block.__init__ makes blocks.0.gate 0.5, but it is 0; in all blocks.*.gate (3)" in finding.message
    fixed = initlab.fix(lost, apply=True)
    assert [change.how for change in fixed.changes] == ["set to 0.5"]
    assert all(float(block.gate.detach()) == 0.5 for block in lost.blocks)


def test_a_recipe_drawn_into_the_model_is_no_loss():
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.blocks[0].gate.zero_()
    initlab.apply_recipe(model, "nanogpt")
    assert "INI014" not in {finding.code for finding in initlab.probe(model).failures}
