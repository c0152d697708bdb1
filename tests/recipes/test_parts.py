"""Wiring and optimizer part of each recipe, against the formulas of its source written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from initlab.errors import ConfigError, RecipeError
from initlab.models.config import NanoGPTConfig
from initlab.models.wired import OPTIONS, dims_of, wired
from initlab.recipes import Adam, Base, Dims, Normal, Recipe, Role, registry
from initlab.recipes.tabulating import evaluate, gpt_dims
from tests.helpers import published

SIZES = [(2, 256), (8, 64), (12, 1024)]
HEAD = 64  # features, at every width
MATRICES = (Role.ATTN_QKV, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT)


def dims(role: Role, n_layer: int, n_embd: int) -> Dims:
    return gpt_dims(role, n_layer=n_layer, n_embd=n_embd, n_head=n_embd // HEAD, block_size=128, vocab_size=256)


# by (n_layer, n_embd), at heads of 64 and a base of 2 blocks of 256 features
WIRINGS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "mup": lambda L, d: {"attention_multiplier": 1 / 8, "logit_multiplier": 256 / d},
    "mup-package": lambda L, d: {"attention_multiplier": 1 / 8, "logit_multiplier": 256 / d, "tie_weights": False},
    "depth-mup": lambda L, d: {
        "attention_multiplier": 1 / 8,
        "logit_multiplier": 256 / d,
        "residual_multiplier": math.sqrt(2 / L),
    },
    "completep": lambda L, d: {
        "attention_multiplier": 1 / 8,
        "logit_multiplier": 256 / d,
        "residual_multiplier": 2 / L,
    },
    "u-mup": lambda L, d: {
        "attention_multiplier": 1 / 8,
        "residual_multiplier": 1 / math.sqrt(L),
        "tie_weights": False,
    },
} | published.WIRINGS


def rates(hidden: Adam, **others: Adam) -> dict[Role, Adam]:
    rest = [Role.TOKEN_EMBED, Role.POS_EMBED, Role.UNEMBED, Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS]
    return (
        dict.fromkeys(rest, Adam(eps=hidden.eps))
        | dict.fromkeys(MATRICES, hidden)
        | {Role(name): adam for name, adam in others.items()}
    )


OPTIMIZERS: dict[str, Callable[[int, int], dict[Role, Adam]]] = {
    "mup": lambda L, d: rates(Adam(256 / d, d / 256)),
    "mup-package": lambda L, d: rates(Adam(256 / d, d / 256)),
    "depth-mup": lambda L, d: rates(
        Adam(256 / d * math.sqrt(2 / L), d / 256, 256 / d * math.sqrt(2 / L)),
        norm_gain=Adam(math.sqrt(2 / L), eps=256 / d * math.sqrt(2 / L)),
        norm_bias=Adam(math.sqrt(2 / L), eps=256 / d * math.sqrt(2 / L)),
        bias=Adam(math.sqrt(2 / L), eps=256 / d * math.sqrt(2 / L)),
    ),
    "completep": lambda L, d: rates(Adam(256 / d, d / 256, 256 / d * 2 / L)),
    "u-mup": lambda L, d: rates(
        Adam(256 / d * math.sqrt(2 / L), d / 256 * math.sqrt(L / 2)),
        token_embed=Adam(math.sqrt(256 / d), math.sqrt(d / 256)),
        pos_embed=Adam(math.sqrt(256 / d), math.sqrt(d / 256)),
        unembed=Adam(256 / d, d / 256),
    ),
    "cerebras-gpt": lambda L, d: rates(Adam(256 / d)),
}


def close(value: Any) -> Any:
    """An expected value, to be compared with; tuples are compared number by number."""
    return pytest.approx(value, rel=1e-9) if isinstance(value, float | tuple) else value


def test_every_recipe_with_a_wiring_or_an_optimizer_has_them_written_out_here() -> None:
    known = registry.all_recipes()
    assert {id for id, recipe in known.items() if recipe.wiring} == set(WIRINGS)
    assert {id for id, recipe in known.items() if recipe.optimizer} == set(OPTIMIZERS)


@pytest.mark.parametrize(("n_layer", "n_embd"), SIZES)
@pytest.mark.parametrize("id", WIRINGS)
def test_the_wiring_follows_the_formula(id: str, n_layer: int, n_embd: int) -> None:
    config = NanoGPTConfig(n_layer=n_layer, n_embd=n_embd, n_head=n_embd // HEAD)
    found = wired(config, registry.get(id))
    expected = WIRINGS[id](n_layer, n_embd)
    for name in OPTIONS:
        assert getattr(found, name) == close(expected.get(name, getattr(config, name))), name


@pytest.mark.parametrize(("n_layer", "n_embd"), SIZES)
@pytest.mark.parametrize("id", OPTIMIZERS)
def test_the_rates_follow_the_formula(id: str, n_layer: int, n_embd: int) -> None:
    for role, expected in OPTIMIZERS[id](n_layer, n_embd).items():
        found = registry.get(id).adam(role, dims(role, n_layer, n_embd))
        for name in ("lr", "weight_decay", "eps"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), (role, name)


@pytest.mark.parametrize("id", ["mup", "mup-package", "depth-mup", "completep"])
def test_at_its_base_a_parametrisation_is_the_standard_one(id: str) -> None:
    recipe = replace(registry.get(id), base=Base(n_layer=4, n_embd=128))
    config = wired(NanoGPTConfig(n_layer=4, n_embd=128, n_head=2), recipe)
    assert config.attention_multiplier == pytest.approx(1 / 8)
    assert (config.logit_multiplier, config.residual_multiplier) == (1, 1)
    assert all(recipe.adam(role, dims(role, 4, 128)) == Adam() for role in Role)


def test_heads_that_grow_are_scaled_by_their_size_and_not_its_root() -> None:
    recipe = replace(registry.get("mup"), base=Base(n_layer=2, n_embd=64, head_size=16))
    grown = [wired(NanoGPTConfig(n_embd=d, n_head=4), recipe).attention_multiplier for d in (64, 256)]
    assert grown == [pytest.approx(1 / 4), pytest.approx(1 / 16)]


def test_what_differs_from_block_to_block_is_a_number_of_each() -> None:
    recipe = made(wiring=lambda dims: {"residual_multiplier": dims("1 / (layer + 1)"), "norm": "rmsnorm"})
    found = recipe.wired(dims(Role.OTHER, 3, 64))
    assert found == {"residual_multiplier": (1, pytest.approx(1 / 2), pytest.approx(1 / 3)), "norm": "rmsnorm"}


def test_a_recipe_is_shown_and_stored_with_its_parts() -> None:
    size = {"n_layer": 4, "n_embd": 512, "n_head": 8, "block_size": 128, "vocab_size": 256}
    found = evaluate(registry.get("completep"), [size])
    assert found["base"] == {"n_layer": 2, "n_embd": 256, "head_size": None}
    (wiring,) = found["wiring"]
    assert wiring["options"]["residual_multiplier"] == 0.5
    assert wiring["formulas"]["residual_multiplier"] == "base_layer / n_layer"
    rows = {row["role"]: row for row in found["rows"]}
    assert (rows["mlp_in"]["lr"], rows["mlp_in"]["lr_formula"]) == (0.5, "base_embd / n_embd")
    assert (rows["token_embed"]["lr"], rows["token_embed"]["lr_formula"]) == (1.0, "1")
    assert not {"wiring", "base", "note"} & evaluate(registry.get("nanogpt"), [size]).keys()


def made(**parts: Any) -> Recipe:
    return Recipe(
        id="mine", family="user", summary="Mine.", source="here", rule=lambda role, dims: Normal(0.02), **parts
    )


@pytest.mark.parametrize(
    ("parts", "error", "text"),
    [
        ({"wiring": lambda dims: {"gain": 2.0}}, RecipeError, "wiring of mine has gain, which NanoGPT doesn't take"),
        ({"wiring": lambda dims: 1 / 0}, RecipeError, "the wiring of mine failed: ZeroDivisionError"),
        ({"wiring": lambda dims: {"norm": "batchnorm"}}, ConfigError, "unknown norm 'batchnorm'"),
        (
            {"wiring": lambda dims: {"logit_multiplier": dims("base_embd / n_embd")}},
            RecipeError,
            r"relative to a base, and the recipe has none: base=Base\(…\)",
        ),
        (
            {"wiring": lambda dims: {"norm_placement": "post"}},
            ConfigError,
            "mine wires norm_placement as 'post', and the model's config says 'sandwich'",
        ),
    ],
)
def test_a_wiring_that_cant_be_used_says_why(parts: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        wired(NanoGPTConfig(norm_placement="sandwich"), made(**parts))


@pytest.mark.parametrize("found", [None, 0.5, Adam(lr=math.nan), Adam(eps=-1.0), Adam(weight_decay=math.inf)])
def test_an_optimizer_part_that_is_none_is_refused(found: Any) -> None:
    recipe = made(optimizer=lambda role, dims: found)
    with pytest.raises(RecipeError, match=r"the optimizer part of mine returned .*; expected Adam\(lr=…\) of finite"):
        recipe.adam(Role.BIAS, dims_of(NanoGPTConfig()))


@pytest.mark.parametrize("size", [{"n_layer": 0}, {"n_embd": 1.5}, {"head_size": 0}])
def test_a_base_that_is_no_size_is_refused(size: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"the base's {next(iter(size))} is .*; expected a whole number from 1 on"):
        Base(**({"n_layer": 2, "n_embd": 64} | size))
