"""Orthogonal draws: as torch's own, and of every single matrix in fused and stacked ones."""

from __future__ import annotations

import hashlib
import importlib
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initlab.anatomy.look import of
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.roles import find_roles
from initlab.drawing.apply import _matrices, apply_recipe
from initlab.drawing.describe import describe
from initlab.errors import RecipeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.recipes import Dims, Distribution, Normal, Orthogonal, Recipe, Role, registry

SIZES = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 48, "block_size": 16}


def nanogpt(recipe: str | Recipe = "orthogonal", seed: int = 0, **changes: Any) -> NanoGPT:
    model = NanoGPT(NanoGPTConfig(**(SIZES | changes)))
    apply_recipe(model, registry.get(recipe), seed)
    return model


def foreign(name: str, **changes: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        head = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
        sizes = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
        config = getattr(transformers, f"{name}Config")(**(sizes | {"bos_token_id": 1, "eos_token_id": 2} | changes))
        model = getattr(transformers, head)(config)
    assert isinstance(model, nn.Module)
    return model


def assert_orthogonal(matrix: Tensor, gain: float = 1.0) -> None:
    """Of the shorter side's vectors."""
    matrix = matrix.detach().double()
    matrix = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    product = matrix @ matrix.mT
    torch.testing.assert_close(product, gain**2 * torch.eye(len(matrix), dtype=torch.double), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"])
def test_it_is_torchs_orthogonal_of_the_same_normals(name: str) -> None:
    weight = nanogpt(seed=3).transformer.h[1].get_submodule(name).weight
    key = hashlib.sha256(f"3:transformer.h.1.{name}.weight".encode()).digest()[:8]
    generator = torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
    expected = nn.init.orthogonal_(torch.empty(weight.shape), generator=generator)
    torch.testing.assert_close(weight.detach(), expected, rtol=0, atol=1e-6)


def test_queries_keys_and_values_are_orthogonal_one_by_one() -> None:
    weight = nanogpt().transformer.h[0].attn.c_attn.weight
    for part in weight.split(32):
        assert_orthogonal(part)
    assert not torch.allclose(weight[:32], weight[32:64])


def test_matrices_stored_the_other_way_round() -> None:
    """Hugging Face's GPT-2 has Conv1D weights of (in, out)."""
    model = foreign("GPT2")
    apply_recipe(model, registry.get("orthogonal"), 0)
    named = dict(model.named_parameters())
    for part in named["transformer.h.1.attn.c_attn.weight"].split(64, dim=1):
        assert_orthogonal(part)
    assert_orthogonal(named["transformer.h.1.mlp.c_fc.weight"])
    assert_orthogonal(named["transformer.h.1.mlp.c_proj.weight"])


def test_grouped_queries_and_gates() -> None:
    model = foreign("Phi3", num_key_value_heads=2, intermediate_size=96, pad_token_id=None)
    apply_recipe(model, registry.get("orthogonal"), 0)
    named = dict(model.named_parameters())
    for part in named["model.layers.0.self_attn.qkv_proj.weight"].split([64, 32, 32]):
        assert_orthogonal(part)
    for part in named["model.layers.0.mlp.gate_up_proj.weight"].split(96):
        assert_orthogonal(part)


def test_every_expert_is_orthogonal_by_itself() -> None:
    extra = {"num_key_value_heads": 2, "intermediate_size": 40, "num_local_experts": 3, "pad_token_id": None}
    model = foreign("Mixtral", **extra)
    apply_recipe(model, registry.get("orthogonal"), 0)
    stacked = {place.name for place in find_roles(model).parameters}
    named = {name: p for name, p in model.named_parameters() if p.dim() == 3 and name in stacked}
    assert named
    for name, parameter in named.items():
        for expert in parameter:
            # gate and up are one tensor of (2·40, 64) per expert
            for part in expert.split(40) if expert.shape[0] == 80 else [expert]:
                assert_orthogonal(part)
        assert not torch.allclose(parameter[0], parameter[1]), name


def test_falcons_groups_hold_the_rows_of_one_query_matrix() -> None:
    """Parts of one group of heads: each matrix is made of the rows that have its fan_out."""
    size = Dims(n_layer=1, n_embd=8, n_head=4, block_size=4, vocab_size=4, fan_in=8, fan_out=8)
    key = Dims(n_layer=1, n_embd=8, n_head=4, block_size=4, vocab_size=4, fan_in=8, fan_out=4)
    place = Parameter(
        "w", Role.ATTN_QKV, 0, size, parts=((4, Role.ATTN_Q, size), (2, Role.ATTN_K, key), (2, Role.ATTN_V, key)) * 2
    )
    axis, matrices = _matrices(place, torch.Size([16, 8]))
    assert axis == -2
    assert matrices == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7], [12, 13, 14, 15]]


def test_a_gain_scales_it_and_independent_parts_stay_so() -> None:
    def rule(role: Role, dims: Dims) -> Distribution:
        return Orthogonal(0.5) if role in (Role.ATTN_QKV, Role.MLP_OUT) else registry.get("nanogpt")(role, dims)

    model = nanogpt(Recipe(id="mine", family="user", summary="", source="here", rule=rule))
    assert_orthogonal(model.transformer.h[0].mlp.c_proj.weight, 0.5)
    assert_orthogonal(model.transformer.h[0].attn.c_attn.weight[:32], 0.5)
    plain = nanogpt("nanogpt")
    assert torch.equal(model.transformer.h[0].mlp.c_fc.weight, plain.transformer.h[0].mlp.c_fc.weight)


def test_what_isnt_made_of_such_matrices_is_refused_and_nothing_is_drawn() -> None:
    model = NanoGPT(NanoGPTConfig(**SIZES))
    places = find_roles(model).parameters
    odd = Dims(n_layer=2, n_embd=32, n_head=4, block_size=16, vocab_size=48, fan_in=31, fan_out=7)
    wrong = [Parameter(p.name, p.role, p.layer, odd) if p.role == Role.MLP_IN else p for p in places]
    seen = replace(of(model), parameters=tuple(wrong))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=r"mlp\.c_fc\.weight of shape \(128, 32\) can't be drawn orthogonal.* 31 × 7"):
        apply_recipe(model, registry.get("orthogonal"), 0, anatomy=seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_told_from_independent_entries_of_the_same_std(dtype: torch.dtype) -> None:
    def same_std(role: Role, dims: Dims) -> Distribution:
        drawn = registry.get("orthogonal")(role, dims)
        return Normal(drawn.std) if isinstance(drawn, Orthogonal) else drawn

    twin = Recipe(id="twin", family="user", summary="", source="here", rule=same_std)
    for recipe, other in (("orthogonal", "twin"), ("twin", "orthogonal")):
        model = nanogpt(twin if recipe == "twin" else recipe, n_embd=64).to(dtype)
        rows = [row for row in describe(of(model), ["orthogonal", twin]) if row["role"] in ("attn_qkv", "mlp_out")]
        for row in rows:
            assert (row["distribution"] == "orthogonal") is (recipe == "orthogonal")
            assert row["matches"] == [recipe]
            assert row["expected"][other]["misfits"]
