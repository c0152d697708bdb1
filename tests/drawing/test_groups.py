from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import initlab
from initlab.drawing.apply import apply_recipe, portable
from initlab.drawing.groups import adam_groups
from initlab.errors import RecipeError
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import Adam, Base, Recipe, Role, registry

CONFIG = NanoGPTConfig(n_layer=4, n_head=2, n_embd=64, block_size=16, vocab_size=32)
COMPLETEP = replace(registry.get("completep"), base=Base(n_layer=2, n_embd=16))


def settings(model: nn.Module, recipe: Recipe | None) -> dict[str, tuple[float, float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"], group["eps"])
        for group in adam_groups(model, recipe, lr=0.1, weight_decay=0.5, eps=1e-6)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("recipe", [None, registry.get("nanogpt")])
def test_without_an_optimizer_part_the_groups_are_nanogpts(recipe: Recipe | None) -> None:
    model = NanoGPT(CONFIG)
    groups = adam_groups(model, recipe, lr=0.1, weight_decay=0.5)
    for group, own in zip(groups, model.decay_groups(0.5), strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in own["params"]]
        assert group["weight_decay"] == own["weight_decay"]
        assert (group["lr"], group["eps"], group["lr_multiplier"]) == (0.1, 1e-8, 1.0)


def test_every_parameter_is_in_one_group_with_the_recipes_multipliers() -> None:
    model = NanoGPT(wired(CONFIG, COMPLETEP))
    found = settings(model, COMPLETEP)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    # four times the base's width, twice its depth
    assert found["transformer.h.3.mlp.c_fc.weight"] == pytest.approx((0.1 / 4, 0.5 * 4, 1e-6 / 8))
    assert found["transformer.h.0.attn.c_attn.weight"] == pytest.approx((0.1 / 4, 0.5 * 4, 1e-6 / 8))
    assert found["transformer.wte.weight"] == pytest.approx((0.1, 0.5, 1e-6 / 8))
    assert found["transformer.h.3.mlp.c_fc.bias"] == pytest.approx((0.1, 0.0, 1e-6 / 8))


def test_a_frozen_parameter_is_in_no_group() -> None:
    model = NanoGPT(CONFIG)
    model.transformer.wte.weight.requires_grad_(False)
    assert "transformer.wte.weight" not in settings(model, COMPLETEP)


def test_parts_of_a_fused_matrix_with_rates_of_their_own_are_refused() -> None:
    recipe = replace(COMPLETEP, optimizer=lambda role, dims: Adam(lr=2.0 if role == Role.ATTN_V else 1.0))
    with pytest.raises(RecipeError, match=r"parts of transformer.h.0.attn.c_attn.weight differently"):
        adam_groups(NanoGPT(CONFIG), recipe, lr=0.1)


def test_a_recipe_as_data_draws_wires_and_rates_the_same() -> None:
    config = wired(CONFIG, COMPLETEP)
    model, twin = NanoGPT(config), NanoGPT(config)
    data = portable(COMPLETEP, model)
    assert wired(CONFIG, data) == config
    assert settings(model, data) == settings(model, COMPLETEP)
    apply_recipe(model, COMPLETEP, 3)
    apply_recipe(twin, data, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_nanogpt_of_another_wiring_is_refused_and_left_as_it_was() -> None:
    model = NanoGPT(CONFIG)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RecipeError, match=r"completep needs residual_multiplier=0.5, .* in the NanoGPT's config"):
        apply_recipe(model, COMPLETEP, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_another_model_that_isnt_wired_so_is_refused_and_left_as_it_was() -> None:
    block = {name: nn.Linear(16, 16) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    model = nn.ModuleDict({"wte": nn.Embedding(32, 16), "h": nn.ModuleList([nn.ModuleDict(block)])})
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(
        RecipeError, match=r"completep is more than a draw, and .* wiring: it needs attention_multiplier="
    ):
        apply_recipe(model, COMPLETEP, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_ones_own_loop_gets_the_rates_of_a_recipe_relative_to_ones_own_base() -> None:
    base = Base(n_layer=4, n_embd=16)
    model = NanoGPT(wired(CONFIG, registry.get("mup").at(base)))
    initlab.apply_recipe(model, "mup", base=base)
    groups = initlab.adam_groups(model, "mup", lr=0.4, weight_decay=0.1, base=base)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(model.transformer.h[0].mlp.c_fc.weight)] == pytest.approx(0.1)
    assert rates[id(model.transformer.wte.weight)] == 0.4
    assert len(rates) == len(list(model.parameters()))
    torch.optim.AdamW(groups).step()
