from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import initlab
from initlab.anatomy.look import of
from initlab.anatomy.source import depth_code
from initlab.api.looking import passed
from initlab.drawing.apply import apply_recipe
from initlab.drawing.describe import describe
from initlab.errors import RecipeError
from initlab.judge.matching import best_recipes, mismatches
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.models.wired import wired
from initlab.recipes import Constant, Dims, Distribution, Normal, Recipe, Role, registry
from initlab.report.describe import describe_text

DIMS = Dims(n_layer=4, n_embd=128, n_head=4, block_size=64, vocab_size=256, fan_in=128, fan_out=128)
SMALL = {"vocab_size": 96, "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}


def nanogpt(recipe: str | None = None, **changes: Any) -> NanoGPT:
    torch.manual_seed(0)
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "vocab_size": 256, "block_size": 64}
    config = NanoGPTConfig(**(sizes | changes))
    model = NanoGPT(wired(config, registry.get(recipe)) if recipe else config)
    if recipe:
        apply_recipe(model, registry.get(recipe), 0)
    return model


def foreign(kind: str, **changes: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of its own, at import and in configs
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        heads = {"GPT2": "GPT2LMHeadModel"}
        config = getattr(transformers, f"{kind}Config")(**(SMALL | {"bos_token_id": 1, "eos_token_id": 2} | changes))
        model = getattr(transformers, heads.get(kind, f"{kind}ForCausalLM"))(config)
    assert isinstance(model, nn.Module)
    return model


def undo_scaling(model: nn.Module, layers: str = "") -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight") and layers in name:
            nn.init.normal_(parameter, 0.0, 0.02)
    return model


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("recipe", [id for id, recipe in registry.all_recipes().items() if recipe.base is None])
def test_the_recipe_that_was_applied_is_the_one_that_fits(recipe: str, tied: bool) -> None:
    if registry.get(recipe).wired(DIMS).get("tie_weights") and not tied:
        pytest.skip("its head is the token embedding")
    rows = describe(of(nanogpt(recipe, tie_weights=tied)))
    best, left = best_recipes(rows)
    assert left == 0
    assert recipe in best
    for other in best:  # recipes may coincide at one size; then they draw the same
        assert all(
            row["expected"][other]["std"] == pytest.approx(row["expected"][recipe]["std"], rel=0.05)
            for row in rows
            if row["expected"]  # nothing is expected of gates
        )
    assert mismatches(rows) == []


def test_a_row_says_what_was_found() -> None:
    rows = {(row["role"], row["stack"]): row for row in describe(of(nanogpt("nanogpt")))}
    row = rows["attn_out", "transformer.h"]
    assert (row["n"], row["n_layer"], row["shape"], row["distribution"]) == (4, 4, (128, 128), "normal")
    assert row["std"] == pytest.approx(0.02 / math.sqrt(8), rel=0.01)
    assert row["std_min"] <= row["std"] <= row["std_max"]
    assert row["matches"] == ["nanogpt", "megatron", "olmo-full-megatron"]  # the last is cut at 3 std: 1.3 % less
    assert (row["nearest"], row["difference"]) == ("nanogpt", pytest.approx(0, abs=0.01))
    gain = rows["norm_gain", "transformer.h"]
    assert (gain["std"], gain["mean"], gain["distribution"]) == (0, 1, "constant")
    assert rows["norm_gain", ""]["n"] == 1
    uniform = {(row["role"], row["stack"]): row for row in describe(of(nanogpt("torch-default")))}
    assert uniform["mlp_in", "transformer.h"]["distribution"] == "uniform"


def test_an_undone_depth_scaling_is_seen_on_hugging_faces_gpt2() -> None:
    intact = foreign("GPT2")
    assert mismatches(describe(of(intact))) == []
    assert best_recipes(describe(of(intact)))[0] == ["nanogpt", "megatron"]
    assert depth_code(intact) == "GPT2PreTrainedModel._init_weights"
    found = mismatches(describe(of(undo_scaling(intact))))
    assert found == [
        "everything else is nanogpt (GPT-2's init), but attn_out and mlp_out have std 0.02, "
        "not 0.02/sqrt(2*n_layer) = 0.0071: not depth-scaled, though GPT2PreTrainedModel._init_weights says so"
    ]


class HeadScaled(nn.Module):
    """A model whose code scales its head by depth, and nothing else."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        self.num_layers, self.lm_head = num_layers, nn.Linear(8, 8)
        self.o_proj = nn.Linear(8, 8)

    def _init_weights(self) -> None:
        out_std = 0.02 / math.sqrt(2.0 * self.num_layers)
        nn.init.normal_(self.lm_head.weight, std=out_std)


def test_code_that_scales_something_else_by_depth_says_nothing_of_the_writes() -> None:
    assert depth_code(HeadScaled()) == "HeadScaled._init_weights"
    assert depth_code(HeadScaled(), ["blocks.0.o_proj.weight"]) == ""
    assert depth_code(HeadScaled(), ["blocks.0.lm_head.weight"]) == "HeadScaled._init_weights"


def test_one_layer_that_was_drawn_otherwise_is_named() -> None:
    rows = describe(of(undo_scaling(foreign("GPT2"), ".h.2.")))
    assert mismatches(rows) == [
        "everything else is nanogpt (GPT-2's init), but attn_out in 1 of 4 parameters "
        "(transformer.h.2.attn.c_proj.weight) and mlp_out in 1 of 4 parameters (transformer.h.2.mlp.c_proj.weight) "
        "have std 0.02, not 0.02/sqrt(2*n_layer) = 0.0071: not depth-scaled"
        ", though GPT2PreTrainedModel._init_weights says so"
    ]


def test_a_recipe_applied_on_purpose_overrules_the_models_own_code() -> None:
    model = foreign("GPT2")
    apply_recipe(model, registry.get("nanogpt-no-depth-scale"), 0)
    rows = describe(of(model))
    assert mismatches(rows) == []
    assert "attn_out and mlp_out have std 0.02" in mismatches(rows, ["nanogpt"])[0]  # unless asked
    assert mismatches(rows, ["nanogpt", "nanogpt-no-depth-scale"]) == []  # the closest of several


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Gemma", "GPTNeoX", "OPT"])
def test_a_fresh_foreign_model_raises_nothing(kind: str) -> None:
    extra = {"OPT": {"word_embed_proj_dim": 64, "ffn_dim": 128, "pad_token_id": 1}}.get(kind, {})
    if kind in ("Llama", "Qwen2", "Gemma"):
        extra = {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "pad_token_id": None}
    rows = describe(of(foreign(kind, **extra)))
    assert mismatches(rows) == []
    assert "nanogpt-no-depth-scale" in best_recipes(rows)[0]


def test_a_trained_model_is_no_known_recipe() -> None:
    model = nanogpt()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter) * torch.rand_like(parameter)
    rows = describe(of(model))
    assert best_recipes(rows)[0] == []
    assert mismatches(rows) == ["no known recipe: the weights are trained, or drawn another way"]
    assert "No known recipe" in describe_text(rows)


def test_a_single_wrong_role_is_told_apart_from_the_rest() -> None:
    model = nanogpt("nanogpt")
    nn.init.normal_(model.transformer.wpe.weight)
    assert mismatches(describe(of(model))) == [
        "everything else is nanogpt (GPT-2's init), but pos_embed has std 1, not 0.02"
    ]


def test_the_text_is_an_aligned_table_of_at_most_100_columns_and_a_verdict() -> None:
    text = describe_text(describe(of(undo_scaling(nanogpt()))))
    lines = text.splitlines()
    assert lines[0].split() == ["role", "stack", "n", "shape", "std", "found", "drawn", "fits"]
    assert max(len(line) for line in lines) <= 100
    start = lines[0].index("shape")
    table = lines[1 : lines.index("")]
    assert all(line[start - 1] == " " and line[start].isdigit() for line in table)
    assert "not depth-scaled, though NanoGPT.__init__ says so." in " ".join(lines)
    assert describe_text(describe(of(nanogpt()))).endswith("Initialised as nanogpt = megatron: every role fits.")


def test_parameters_without_a_role_are_named() -> None:
    model = nanogpt()
    model.transformer.h[0].register_parameter("gate", nn.Parameter(torch.ones(3)))
    rows = describe(of(model))
    assert (rows[-1]["role"], list(rows[-1]["stds"]), rows[-1]["expected"]) == ("gate", ["transformer.h.0.gate"], {})
    assert mismatches(rows) == []
    text = " ".join(describe_text(rows).split())
    assert "52 of 53 parameters compared, and those are initialised as nanogpt = megatron." in text
    assert text.endswith("Not compared: transformer.h.0.gate (gates, or of no known role).")


def test_a_users_recipe_is_compared_like_any_other() -> None:
    def rule(role: Role, dims: Dims) -> Distribution:
        if role == Role.BIAS:
            raise ValueError("no biases here")
        return Constant(1.0) if role == Role.NORM_GAIN else Normal(dims("1 / n_embd"))

    mine = Recipe(id="mine", family="user", summary="", source="here", rule=rule)
    model = nanogpt(bias=False)
    apply_recipe(model, mine, 0)
    assert best_recipes(describe(of(model), ["nanogpt", mine])) == (["mine"], 0)
    with_bias = describe(of(nanogpt()), [mine])  # it fails on a role: then that role can't be compared
    assert next(row for row in with_bias if row["role"] == "bias")["matches"] == []
    with pytest.raises(RecipeError, match="'xavier' is not among those"):
        mismatches(with_bias, ["xavier"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_described(value: float) -> None:
    model = nanogpt()
    with torch.no_grad():
        model.transformer.h[1].attn.c_proj.weight[0, 0] = value
    rows = describe(of(model))
    assert len(mismatches(rows)) == 1
    assert "(transformer.h.1.attn.c_proj.weight)" in mismatches(rows)[0]
    assert describe_text(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_fit_the_same_recipe(dtype: torch.dtype) -> None:
    rows = describe(of(nanogpt().to(dtype)))
    assert best_recipes(rows) == (["nanogpt", "megatron"], 0)


def test_models_without_blocks_or_parameters() -> None:
    assert describe(of(nn.ReLU())) == []
    assert mismatches([]) == ["no known recipe: nothing to compare"]
    assert describe_text([]) == "No known recipe: nothing to compare."
    rows = describe(of(nn.Linear(3, 3)))
    assert [list(row["stds"]) for row in rows] == [["weight", "bias"]]
    assert "0 of 2 parameters compared. Not compared: weight, bias (gates," in describe_text(rows)
    with torch.device("meta"), pytest.raises(RecipeError, match="Embedding is on the meta device"):
        describe(of(nn.Embedding(3, 3)))


def test_describing_changes_nothing() -> None:
    model = nanogpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    describe(of(model))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_recipe_with_a_wiring_is_only_named_where_the_model_has_it() -> None:
    plain, wired_so = (
        describe(of(nanogpt("nanogpt-no-depth-scale", **options))) for options in ({}, {"norm": "rmsnorm"})
    )
    llama = {"positions": "rotary", "activation": "swiglu", "bias": False, "norm": "rmsnorm"}
    scaled = nanogpt(
        "nanogpt-no-depth-scale", **llama, norm_multiplier=(1, 1 / 2**0.5, 1 / 3**0.5, 0.5), tie_weights=False
    )
    named = [{id for row in rows for id in row["expected"]} for rows in (plain, wired_so, describe(of(scaled)))]
    assert ["layernorm-scaling" in ids for ids in named] == [False, False, True]
    assert not any("qwen3" in ids for ids in named)  # queries and keys aren't normalised
    assert all("hf-llama" in ids for ids in named)


def test_a_model_of_others_that_was_wired_as_a_recipe_is_known_to_be_from_a_pass() -> None:
    models = [foreign("Llama", intermediate_size=128, pad_token_id=None) for _ in range(2)]
    initlab.apply_recipe(models[1], "layernorm-scaling")
    named = [{id for row in describe(passed(model)) for id in row["expected"]} for model in models]
    assert ["layernorm-scaling" in ids for ids in named] == [False, True]
    assert not {"qwen3", "peri-ln", "deepnorm"} & (named[0] | named[1])


def test_what_doesnt_ask_for_the_block_is_asked_once_and_what_does_for_each() -> None:
    asked: list[tuple[Role, bool]] = []

    def rule(role: Role, dims: Dims) -> Distribution:
        asked.append((role, role == Role.MLP_OUT))
        return Normal(dims("0.02 / (layer + 1)")) if role == Role.MLP_OUT else Normal(dims("0.02"))

    rows = describe(of(nanogpt()), [Recipe(id="mine", family="user", summary="", source="", rule=rule)])
    expected = {row["role"]: row["expected"]["mine"]["each"] for row in rows if row["stack"]}
    assert list(expected["mlp_out"].values()) == [0.02, 0.01, pytest.approx(0.02 / 3), 0.005]
    assert set(expected["mlp_in"].values()) == {0.02}
    assert [role for role, _ in asked].count(Role.MLP_OUT) == 4
    assert [role for role, _ in asked].count(Role.MLP_IN) == 1


def test_a_rule_that_looks_sizes_up_gets_the_blocks_own() -> None:
    place = next(place for place in of(nanogpt()).parameters if place.role == Role.MLP_IN)
    table = {replace(place.dims, layer=layer): Normal(0.1 * (layer + 1)) for layer in range(4)}
    recipe = Recipe(id="t", family="user", summary="", source="", rule=lambda role, dims: table.get(dims, Normal(9.0)))
    rows = {row["role"]: row for row in describe(of(nanogpt()), [recipe])}
    assert list(rows["mlp_in"]["expected"]["t"]["each"].values()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
