"""What a model of nanoGPT's names says of itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from initlab.anatomy.sites import activation_name, dropout_in_force


def named(path: str, part: nn.Module) -> nn.Module:
    """A model with a module at that path."""
    model = inner = nn.Module()
    *folders, last = path.split(".")
    for folder in folders:
        inner.add_module(folder, nn.Module())
        inner = inner.get_submodule(folder)
    inner.add_module(last, part)
    return model


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (nn.ReLU(), "relu"),
        (nn.SiLU(), "silu"),
        (nn.Tanh(), None),
    ],
)
def test_an_activation_is_named_as_the_theory_does(part: nn.Module, name: str | None) -> None:
    model = named("transformer.h.0.mlp.gelu", part)
    assert activation_name(model) == name
    assert activation_name(named("other", part)) is None
    for declared, found in (("relu2", "relu2"), ("swoosh", None), (None, name)):
        model.config = SimpleNamespace(activation=declared)
        assert activation_name(model) == found


def test_dropout_is_in_force_where_the_model_trains() -> None:
    model = named("transformer.drop", nn.Dropout(0.3))
    assert dropout_in_force(model) == 0.3
    assert dropout_in_force(model.eval()) == 0.0
    assert dropout_in_force(named("transformer.drop", nn.Identity())) == 0.0
    assert dropout_in_force(nn.Linear(2, 2)) == 0.0
