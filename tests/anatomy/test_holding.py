"""Configs, however they hold what they say."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from torch import nn

from initlab.anatomy.holding import holders


class OfClass:
    n_embd = 64
    init_std = 0.02

    def method(self):
        return self.n_embd


class Derived(OfClass):
    init_std = 0.05


@dataclass
class OfFields:
    init_std: float = 0.02
    n_embd: int = 64


class Mixed(OfClass):
    def __init__(self):
        self.n_embd = 32


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OfClass(), {"n_embd": 64, "init_std": 0.02}),
        (Derived(), {"n_embd": 64, "init_std": 0.05}),
        (OfFields(), {"init_std": 0.02, "n_embd": 64}),
        (SimpleNamespace(init_std=0.1), {"init_std": 0.1}),
        ({"init_std": 0.1}, {"init_std": 0.1}),
        (Mixed(), {"n_embd": 32}),  # what an object sets itself is what it says
    ],
)
def test_what_a_config_says_is_read(config, said):
    model = nn.Linear(2, 2)
    model.cfg = config
    assert dict(holders(model))["cfg"] == said
