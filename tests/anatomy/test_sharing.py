"""Blocks that share their weights, and what in a model says that they do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from initlab.anatomy.sharing import shared, sharing_said


def blocks(count: int = 3) -> nn.Module:
    model = nn.Module()
    model.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(2, 2), "out": nn.Linear(2, 2)}) for _ in range(count)])
    return model


def test_parameters_of_several_blocks_are_found_by_the_first() -> None:
    model = blocks()
    assert shared(model) == {}
    model.h[1]["fc"].weight = model.h[0]["fc"].weight
    assert shared(model) == {"h.0.fc.weight": ["h.1.fc.weight"]}
    model.h[2]["fc"].weight = model.h[0]["fc"].weight
    assert shared(model) == {"h.0.fc.weight": ["h.1.fc.weight", "h.2.fc.weight"]}
    model.h[2] = model.h[1]
    assert shared(model)["h.1.fc.bias"] == ["h.2.fc.bias"]


def test_matrices_of_other_names_are_tied_and_not_shared() -> None:
    model = blocks()
    model.h[1]["out"].weight = model.h[0]["fc"].weight
    model.wte, model.head = nn.Embedding(3, 2), nn.Linear(2, 3)
    model.head.weight = model.wte.weight
    assert shared(model) == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"share_layers": True}, "config.share_layers"),
        ({"num_hidden_groups": 1}, "config.num_hidden_groups"),
        ({"tie_blocks": "all"}, "config.tie_blocks"),
        ({"loops": [0, 0]}, "config.loops"),
        ({"share_layers": False}, ""),
        ({"recurrence": 0}, ""),
        ({"shared": "none"}, ""),
        ({"shared": ""}, ""),
        ({"shared": None}, ""),
        ({"shared": []}, ""),
        ({"shared": 1.5}, ""),
        ({"tie_word_embeddings": True}, ""),
        ({"shared_experts": 2}, ""),
        ({"tied_head": True}, ""),
        ({"unshared": True}, ""),
        ({"n_layer": 3}, ""),
    ],
)
def test_what_says_that_blocks_share_is_named(values: dict[str, Any], said: str) -> None:
    model = blocks()
    model.config = SimpleNamespace(**values)
    assert sharing_said(model) == said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([r"h\.\d+\.fc"], "_tied_weights_keys"),
        (["h.1.fc.weight"], "_tied_weights_keys"),
        ({"h.*.fc": "h.0.fc"}, "_tied_weights_keys"),
        ({"a": "h.0.fc"}, "_tied_weights_keys"),
        (["lm_head.weight"], ""),
        (None, ""),
    ],
)
def test_tied_weights_that_are_a_pattern_over_blocks_say_so(keys: Any, said: str) -> None:
    model = blocks()
    model._tied_weights_keys = keys
    assert sharing_said(model) == said
