"""Every recipe drawn into models of other layouts: what was drawn is what the recipe says of each matrix."""

from __future__ import annotations

import importlib
import math
import warnings
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import nn

from initlab.anatomy.look import of
from initlab.anatomy.roles import find_roles
from initlab.drawing.apply import apply_recipe
from initlab.drawing.describe import describe
from initlab.judge.matching import best_recipes, mismatches
from initlab.recipes import Role, registry
from initlab.recipes.base import QKV

LLAMA = {"num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 320, "pad_token_id": None}


def foreign(name: str, **changes: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        head = {"GPT2": "GPT2LMHeadModel", "Bert": "BertForMaskedLM"}.get(name, f"{name}ForCausalLM")
        sizes = {"vocab_size": 256, "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4}
        config = getattr(transformers, f"{name}Config")(**(sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes))
        model = getattr(transformers, head)(config)
    assert isinstance(model, nn.Module)
    return model


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return foreign("Llama", **LLAMA)


@pytest.mark.parametrize("id", [id for id, recipe in registry.all_recipes().items() if recipe.wiring is None])
def test_a_llama_gets_what_the_recipe_says_of_each_matrix(id: str, llama: nn.Module) -> None:
    """Grouped queries, a gate, an untied head: std by role and block within 3 % of the formula."""
    recipe = registry.get(id)
    apply_recipe(llama, recipe, 0)
    named = dict(llama.named_parameters())
    found, wanted = defaultdict(list), defaultdict(list)
    for place in find_roles(llama).parameters:
        if named[place.name].dim() == 2:
            found[place.role, place.layer].append(named[place.name].detach().double().flatten())
            drawn = recipe(place.role, place.dims)
            wanted[place.role, place.layer] += [drawn.std**2] * named[place.name].numel()
    assert {role for role, _ in found} == {
        Role.TOKEN_EMBED,
        *QKV,
        Role.ATTN_OUT,
        Role.MLP_GATE,
        Role.MLP_IN,
        Role.MLP_OUT,
        Role.UNEMBED,
    }
    for key, values in found.items():
        std = math.sqrt(sum(wanted[key]) / len(wanted[key]))
        assert torch.cat(values).std(correction=0).item() == pytest.approx(std, rel=0.03), key


def test_fans_are_those_of_one_matrix_in_a_llama(llama: nn.Module) -> None:
    named = {place.name: place.dims for place in find_roles(llama).parameters}
    layer = "model.layers.1."
    fans = {
        "self_attn.q_proj": (128, 128),
        "self_attn.k_proj": (128, 64),
        "self_attn.o_proj": (128, 128),
        "mlp.gate_proj": (128, 320),
        "mlp.up_proj": (128, 320),
        "mlp.down_proj": (320, 128),
    }
    for name, expected in fans.items():
        dims = named[f"{layer}{name}.weight"]
        assert (dims.fan_in, dims.fan_out, dims.layer) == (*expected, 1)
    spectral = registry.get("spectral")
    std = spectral(Role.ATTN_K, named[f"{layer}self_attn.k_proj.weight"]).std
    assert std == pytest.approx(math.sqrt(1 / 2) / math.sqrt(128))  # half as many outputs as inputs


def test_a_gate_and_an_up_projection_are_told_apart(llama: nn.Module) -> None:
    apply_recipe(llama, registry.get("torchtitan-llama3"), 0)
    named = dict(llama.named_parameters())
    for layer in range(3):
        gate = named[f"model.layers.{layer}.mlp.gate_proj.weight"].std().item()
        up = named[f"model.layers.{layer}.mlp.up_proj.weight"].std().item()
        assert gate == pytest.approx(0.02, rel=0.02)
        assert up == pytest.approx(0.02 / math.sqrt(2 * (layer + 1)), rel=0.02)
    rows = describe(of(llama))
    assert best_recipes(rows) == (["torchtitan-llama3"], 0)
    assert mismatches(rows) == []


@pytest.mark.parametrize(
    ("name", "extra", "fits"),
    [
        ("Llama", LLAMA, "nanogpt-no-depth-scale"),
        ("GPT2", {}, "nanogpt"),
        ("Bert", {"intermediate_size": 512, "pad_token_id": 0}, "nanogpt-no-depth-scale"),
    ],
)
def test_a_larger_catalogue_doesnt_blur_what_a_fresh_model_is(name: str, extra: dict[str, Any], fits: str) -> None:
    rows = describe(of(foreign(name, **extra)))
    best, left = best_recipes(rows)
    assert (best[0], left) == (fits, 0)
    same = {row["role"]: row["expected"][fits]["std"] for row in rows if row["expected"]}
    for id in best:
        for row in rows:
            if row["expected"]:
                assert row["expected"][id]["std"] == pytest.approx(same[row["role"]], rel=1e-9), id
    assert mismatches(rows) == []
