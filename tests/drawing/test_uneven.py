"""Rows of one matrix that were drawn otherwise are seen, and chance is not."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

import initlab
from initlab.anatomy.look import of
from initlab.drawing.describe import describe
from initlab.judge.matching import coverage, mismatches
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.models.wired import wired
from initlab.recipes import Constant, Dims, Distribution, Role, registry


def nanogpt(seed: int = 0, recipe: str = "nanogpt", **changes: int) -> NanoGPT:
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32, "vocab_size": 400} | changes
    model = NanoGPT(wired(NanoGPTConfig(**sizes), registry.get(recipe)))
    initlab.apply_recipe(model, recipe, seed=seed)
    return model


def odd(model: nn.Module) -> list[str]:
    return [each["which"] for row in describe(of(model), ["nanogpt"]) for each in row["odd"]]


DIMS = Dims(n_layer=2, n_embd=64, n_head=4, block_size=32, vocab_size=400, fan_in=64, fan_out=64)


@pytest.mark.parametrize("recipe", [id for id, recipe in registry.all_recipes().items() if not recipe.splits(DIMS)])
def test_no_recipe_draws_odd_rows(recipe: str) -> None:
    assert odd(nanogpt(recipe=recipe)) == []


@pytest.mark.parametrize("seed", range(3))
def test_chance_makes_no_odd_rows_in_a_large_table(seed: int) -> None:
    assert odd(nanogpt(seed, vocab_size=20_000, n_embd=16, n_head=2)) == []


def added_tokens(model: NanoGPT) -> None:
    model.transformer.wte.weight[384:] = torch.randn(16, 64)


def large_values(model: NanoGPT) -> None:
    model.transformer.h[1].attn.c_attn.weight[128:] *= 1.3


def zero_queries(model: NanoGPT) -> None:
    model.transformer.h[1].attn.c_attn.weight[:64] = 0


def one_row(model: NanoGPT) -> None:
    model.transformer.h[0].mlp.c_fc.weight[7] *= 4


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (added_tokens, r"rows 384–399 of transformer\.wte\.weight have std (1|1\.0\d|0\.9\d), the others 0\.02"),
        (large_values, r"the attn_v rows of transformer\.h\.1\.attn\.c_attn\.weight have std 0\.026, the others 0\.02"),
        (zero_queries, r"the attn_q rows of transformer\.h\.1\.attn\.c_attn\.weight have std 0, the others 0\.02"),
        (one_row, r"row 7 of transformer\.h\.0\.mlp\.c_fc\.weight has std 0\.0[78]\d?, the others 0\.02"),
    ],
)
def test_rows_that_were_drawn_otherwise_are_named(fault: Callable[[NanoGPT], None], said: str) -> None:
    model = nanogpt()
    torch.manual_seed(0)
    with torch.no_grad():
        fault(model)
    sentences = mismatches(describe(of(model)))
    assert any(re.match(said, sentence) for sentence in sentences), sentences


def test_one_head_of_a_matrix_of_its_own_is_named() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=96, **sizes))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[32:48] *= 1.5
    assert odd(model) == ["rows 32–47 of model.layers.0.self_attn.q_proj.weight"]


def test_a_difference_that_the_recipe_explains_is_not_said() -> None:
    def no_queries(role: Role, dims: Dims) -> Distribution:
        return Constant(0.0) if role == Role.ATTN_Q else registry.get("nanogpt")(role, dims)

    model = nanogpt()
    initlab.apply_recipe(model, no_queries)
    rows = describe(of(model), ["nanogpt", registry.get(no_queries)])
    assert mismatches(rows, ["no_queries"]) == []
    assert "the attn_q rows of transformer.h.0.attn.c_attn.weight have std 0" in " ".join(mismatches(rows, ["nanogpt"]))


def test_trained_weights_have_no_odd_rows_though_rows_differ() -> None:
    model = nanogpt()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter *= torch.exp(torch.randn(len(parameter), 1))
    assert odd(model) == []


def test_coverage_counts_what_was_compared() -> None:
    model = nanogpt()
    model.transformer.h[0].register_parameter("mix", nn.Parameter(torch.ones(3, 3)))
    rows = describe(of(model))
    total = len(list(model.parameters()))
    assert coverage(rows) == (total - 1, total, ["transformer.h.0.mix"])
    text = str(initlab.describe_init(model))
    assert f"{total - 1} of {total} parameters compared" in text
    assert "every role fits" not in text
    assert "every role fits" in str(initlab.describe_init(nanogpt()))
