from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from initlab.errors import RecipeError
from initlab.recipes import (
    Base,
    Constant,
    Dims,
    Distribution,
    Formula,
    Normal,
    Orthogonal,
    Recipe,
    Role,
    TruncNormal,
    Uniform,
    registry,
)
from initlab.recipes.tabulating import evaluate, gpt_dims, gpt_roles
from tests.helpers.published import STDS

SIZES = [(1, 16), (2, 64), (12, 768), (48, 1600)]
VOCAB, T = 50304, 1024
EMBEDDINGS = (Role.TOKEN_EMBED, Role.POS_EMBED)
OUTPUTS = (Role.ATTN_OUT, Role.MLP_OUT)
INPUTS = (Role.ATTN_QKV, Role.MLP_IN, Role.UNEMBED)
CUT3 = 0.986578  # std of a standard normal cut at ±3: √(1 − 6φ(3)/erf(3/√2)), by hand


def dims(role: Role = Role.ATTN_QKV, n_layer: int = 12, n_embd: int = 768, *, tied: bool = True) -> Dims:
    size = {"n_layer": n_layer, "n_embd": n_embd, "n_head": 4, "block_size": T, "vocab_size": VOCAB}
    return gpt_dims(role, **size, tied=tied)


def table(output: float, linear: float = 0.02) -> dict[Role, float]:
    return dict.fromkeys((*EMBEDDINGS, *INPUTS), 0.02) | dict.fromkeys(INPUTS, linear) | dict.fromkeys(OUTPUTS, output)


def small_wang(n_embd: int, output: float) -> dict[Role, float]:
    return dict.fromkeys((*EMBEDDINGS, *INPUTS), math.sqrt(0.4 / n_embd)) | dict.fromkeys(OUTPUTS, output)


# std of every weight of block 0 by (n_layer, n_embd), tied, written out by hand
EXPECTED: dict[str, Callable[[int, int], dict[Role, float]]] = {
    "nanogpt": lambda L, d: table(0.02 / math.sqrt(2 * L)),
    "nanogpt-no-depth-scale": lambda L, d: table(0.02),
    "out-x0.02": lambda L, d: table(4e-4),
    "out-xsqrt2overL": lambda L, d: table(0.02 * math.sqrt(2 / L)),
    "out-xinvsqrtL": lambda L, d: table(0.02 / math.sqrt(L)),
    "zero-out": lambda L, d: table(0.0),
    "std-0.02-over-sqrt-d": lambda L, d: table(0.02 / math.sqrt(d), linear=0.02 / math.sqrt(d)),
    "xavier": lambda L, d: (
        dict.fromkeys(EMBEDDINGS, 0.02)
        | dict.fromkeys((Role.ATTN_QKV, Role.ATTN_OUT), 1 / math.sqrt(d))
        | dict.fromkeys((Role.MLP_IN, Role.MLP_OUT), math.sqrt(2 / (5 * d)))
        | {Role.UNEMBED: math.sqrt(2 / (d + VOCAB))}
    ),
    "gpt2-openai-release": lambda L, d: table(0.02) | {Role.POS_EMBED: 0.01},
    "nanogpt-width-matched": lambda L, d: (
        table(math.sqrt(0.1536 / (L * d)), linear=math.sqrt(0.3072 / d)) | {Role.UNEMBED: 0.02}
    ),
    "megatron": lambda L, d: table(0.02 / math.sqrt(2 * L)),
    "small-init-wang-neox": lambda L, d: small_wang(d, 2 / L / math.sqrt(d)),
    "small-init-wang-litgpt": lambda L, d: small_wang(d, 1 / math.sqrt(d) / L),
    "hf-llama": lambda L, d: table(0.02),
    "torchtitan-llama3": lambda L, d: {
        Role.TOKEN_EMBED: CUT3 / math.sqrt(d),
        Role.UNEMBED: CUT3 / math.sqrt(d),
        Role.ATTN_QKV: 0.02,
        Role.ATTN_OUT: 0.0141421356,
        Role.MLP_IN: 0.0141421356,
        Role.MLP_GATE: 0.02,
        Role.MLP_OUT: 0.0141421356,
    },
    "olmo-mitchell": lambda L, d: {
        Role.TOKEN_EMBED: CUT3 / math.sqrt(d),
        Role.POS_EMBED: CUT3 / math.sqrt(d),
        Role.UNEMBED: CUT3 / math.sqrt(d),
        Role.ATTN_QKV: CUT3 / math.sqrt(d),
        Role.ATTN_OUT: CUT3 / math.sqrt(2 * d),
        Role.MLP_IN: CUT3 / math.sqrt(d),
        Role.MLP_OUT: CUT3 / math.sqrt(8 * d),
    },
    "olmo-full-megatron": lambda L, d: (
        table(CUT3 * 0.02 / math.sqrt(2 * L))
        | dict.fromkeys((*EMBEDDINGS, Role.ATTN_QKV, Role.MLP_IN), CUT3 * 0.02)
        | {Role.UNEMBED: CUT3 / math.sqrt(d)}
    ),
    "olmo-normal": lambda L, d: dict.fromkeys((*EMBEDDINGS, *INPUTS, *OUTPUTS), CUT3 * 0.02),
    "nanodo": lambda L, d: (
        dict.fromkeys((*EMBEDDINGS, Role.ATTN_QKV, Role.ATTN_OUT), 1 / math.sqrt(d))
        | dict.fromkeys((Role.MLP_IN, Role.MLP_OUT), math.sqrt(0.4 / d))
        | {Role.UNEMBED: math.sqrt(2 / (d + VOCAB))}
    ),
    "kaiming": lambda L, d: (
        (dict.fromkeys(EMBEDDINGS, 0.02) | dict.fromkeys((*INPUTS, Role.ATTN_OUT), math.sqrt(2 / d)))
        | {Role.MLP_OUT: math.sqrt(0.5 / d)}
    ),
    "orthogonal": lambda L, d: (
        dict.fromkeys(EMBEDDINGS, 0.02)
        | dict.fromkeys((Role.ATTN_QKV, Role.ATTN_OUT), 1 / math.sqrt(d))
        | dict.fromkeys((Role.MLP_IN, Role.MLP_OUT), 0.5 / math.sqrt(d))
        | {Role.UNEMBED: VOCAB**-0.5}
    ),
    "spectral": lambda L, d: (
        dict.fromkeys((*EMBEDDINGS, *INPUTS, Role.ATTN_OUT), 1 / math.sqrt(d)) | {Role.MLP_OUT: 0.25 / math.sqrt(d)}
    ),
    # relative to 2 blocks of 256 features
    "mup": lambda L, d: table(0.32 / math.sqrt(2 * L * d), 0.32 / math.sqrt(d)) | {Role.UNEMBED: 0.02},
    "mup-package": lambda L, d: (
        table(0.32 / math.sqrt(2 * L * d), 0.32 / math.sqrt(d)) | {Role.UNEMBED: 0.0, Role.ATTN_Q: 0.0}
    ),
    "depth-mup": lambda L, d: table(0.32 / math.sqrt(d), 0.32 / math.sqrt(d)) | {Role.UNEMBED: 0.02},
    "completep": lambda L, d: table(0.32 / math.sqrt(d), 0.32 / math.sqrt(d)) | {Role.UNEMBED: 0.02},
    "u-mup": lambda L, d: (
        dict.fromkeys((*INPUTS, *OUTPUTS), 1 / math.sqrt(d))
        | {Role.TOKEN_EMBED: 1.0, Role.POS_EMBED: 1.0, Role.MLP_OUT: 0.5 / math.sqrt(d), Role.UNEMBED: 1 / d}
    ),
    "torch-default": lambda L, d: (
        {Role.TOKEN_EMBED: 1 / math.sqrt(3 * d), Role.POS_EMBED: 1.0, Role.MLP_OUT: 1 / math.sqrt(12 * d)}
        | dict.fromkeys((Role.ATTN_QKV, Role.ATTN_OUT, Role.MLP_IN, Role.UNEMBED), 1 / math.sqrt(3 * d))
    ),
} | STDS


def test_every_recipe_has_its_formulas_written_out_here() -> None:
    assert set(registry.all_recipes()) == set(EXPECTED)


@pytest.mark.parametrize(("n_layer", "n_embd"), SIZES)
@pytest.mark.parametrize("id", EXPECTED)
def test_std_follows_the_formula(id: str, n_layer: int, n_embd: int) -> None:
    recipe = registry.get(id)
    for role, std in EXPECTED[id](n_layer, n_embd).items():
        found = recipe(role, dims(role, n_layer, n_embd))
        assert found.std == pytest.approx(std, rel=2e-6), role
        assert found.mean == 0, role


# what the sources print or imply at the sizes of their own models; computed with a desk calculator
PUBLISHED = [
    ("nanogpt", {"n_layer": 12, "n_embd": 768}, Role.MLP_OUT, 0.00408248),
    ("gpt2-openai-release", {"n_layer": 12, "n_embd": 768}, Role.POS_EMBED, 0.01),
    ("small-init-wang-neox", {"n_layer": 44, "n_embd": 6144}, Role.ATTN_QKV, 0.00806872),  # GPT-NeoX-20B
    ("small-init-wang-neox", {"n_layer": 44, "n_embd": 6144}, Role.MLP_OUT, 0.000579896),
    ("small-init-wang-litgpt", {"n_layer": 22, "n_embd": 2048}, Role.MLP_OUT, 0.00100441),  # TinyLlama-1.1B
    ("torchtitan-llama3", {"n_layer": 32, "n_embd": 4096, "layer": 0}, Role.MLP_IN, 0.0141421),  # Llama 3 8B
    ("torchtitan-llama3", {"n_layer": 32, "n_embd": 4096, "layer": 31}, Role.MLP_IN, 0.0025),
    ("torchtitan-llama3", {"n_layer": 32, "n_embd": 4096, "layer": 31}, Role.MLP_GATE, 0.02),
    ("torchtitan-llama3", {"n_layer": 32, "n_embd": 4096, "tied": False}, Role.TOKEN_EMBED, 1.0),
    ("olmo-mitchell", {"n_layer": 32, "n_embd": 4096, "layer": 31}, Role.ATTN_OUT, 0.00192691),  # 1/512, cut
    ("olmo-mitchell", {"n_layer": 32, "n_embd": 4096, "layer": 31}, Role.MLP_OUT, 0.000963455),
    ("nanogpt-width-matched", {"n_layer": 6, "n_embd": 128}, Role.MLP_IN, 0.0489898),
    ("nanogpt-width-matched", {"n_layer": 6, "n_embd": 768}, Role.MLP_IN, 0.02),
    ("spectral", {"n_layer": 12, "n_embd": 768, "tied": False}, Role.TOKEN_EMBED, 1.0),
]


@pytest.mark.parametrize(("id", "size", "role", "std"), PUBLISHED)
def test_std_at_the_sizes_of_published_models(id: str, size: dict[str, Any], role: Role, std: float) -> None:
    size = {"n_head": 1, "block_size": T, "vocab_size": VOCAB} | size
    layer = size.pop("layer", 0)
    found = registry.get(id)(role, replace(gpt_dims(role, **size), layer=layer))
    assert found.std == pytest.approx(std, rel=1e-5)


def test_recipes_that_draw_alike_are_known() -> None:
    """Two ids for one init are kept where both names are in use; a third would be an accident."""
    drawn: dict[tuple[Any, ...], list[str]] = {}
    for id, recipe in registry.all_recipes().items():
        asked = [(role, dims(role, n_embd=512, tied=tied)) for role in Role for tied in (True, False)]
        values = [recipe(*each) for each in asked]
        rest = (*(recipe.adam(*each) for each in asked), str(recipe.wired(dims(n_embd=512))))
        drawn.setdefault((rest, *((v.kind, round(v.mean, 9), round(v.std, 9)) for v in values)), []).append(id)
    assert [ids for ids in drawn.values() if len(ids) > 1] == [
        ["nanogpt", "megatron"],
        ["nanogpt-no-depth-scale", "hf-llama"],
    ]


@pytest.mark.parametrize("id", EXPECTED)
def test_norms_start_as_the_identity_and_biases_at_zero(id: str) -> None:
    recipe = registry.get(id)
    assert recipe(Role.NORM_GAIN, dims(Role.NORM_GAIN)) == Constant(1.0)
    assert recipe(Role.NORM_BIAS, dims(Role.NORM_BIAS)) == Constant(0.0)
    if id != "torch-default":
        assert recipe(Role.BIAS, dims(Role.BIAS)) == Constant(0.0)


@pytest.mark.parametrize("fan_in", [64, 256])
def test_torchs_biases_go_by_the_fan_in_of_their_matrix(fan_in: int) -> None:
    size = Dims(n_layer=1, n_embd=64, n_head=1, block_size=T, vocab_size=VOCAB, fan_in=fan_in, fan_out=64)
    found = registry.get("torch-default")(Role.BIAS, size)
    assert found == Uniform(1 / math.sqrt(fan_in))
    assert found.std == pytest.approx(1 / math.sqrt(3 * fan_in))


def test_torchs_token_embedding_is_normal_only_without_a_tied_head() -> None:
    recipe = registry.get("torch-default")
    assert recipe(Role.TOKEN_EMBED, dims(Role.TOKEN_EMBED, tied=False)) == Normal(1.0)
    assert recipe(Role.TOKEN_EMBED, dims(Role.TOKEN_EMBED)) == Uniform(1 / math.sqrt(768))


@pytest.mark.parametrize("id", EXPECTED)
def test_every_recipe_answers_every_role(id: str) -> None:
    recipe = registry.get(id)
    for role in Role:
        assert recipe(role, dims(role)).std >= 0
        assert recipe(role, dims(role, tied=False)).formula


@pytest.mark.parametrize("id", EXPECTED)
def test_every_recipe_says_what_it_is_and_where_it_was_read(id: str) -> None:
    recipe = registry.get(id)
    assert recipe.id == id
    assert recipe.family in ("gpt2", "megatron", "llama", "olmo", "fans", "transfer", "depth", "models", "framework")
    assert len(recipe.source) > 20
    assert len(recipe.summary) > 20
    assert recipe.summary.endswith(".")


@pytest.mark.parametrize(("n_layer", "n_embd"), SIZES)
@pytest.mark.parametrize("id", EXPECTED)
def test_the_text_of_a_formula_evaluates_to_its_value(id: str, n_layer: int, n_embd: int) -> None:
    for role in Role:
        size = registry.get(id).based(dims(role, n_layer, n_embd))
        found = registry.get(id)(role, size)
        quantity, _, text = found.formula.partition(", cut at")[0].partition(" = ")
        names = {name: getattr(size, name) for name in Dims.__slots__}
        value = eval(text, {"sqrt": math.sqrt, "log": math.log}, names)
        assert value == pytest.approx(getattr(found, quantity), rel=1e-12), role


def test_a_formula_is_a_number_with_a_text() -> None:
    value = dims()("0.02 / sqrt(2 * n_layer) + log(fan_out / fan_in)")
    assert isinstance(value, Formula)
    assert value == 0.02 / math.sqrt(24)
    assert value.text == "0.02 / sqrt(2 * n_layer) + log(fan_out / fan_in)"
    assert Normal(value).formula == f"std = {value.text}"
    assert json.loads(json.dumps({"std": value})) == {"std": value}


@pytest.mark.parametrize(
    "text",
    [
        "0.02 / sqrt(depth)",
        "0.02 /",
        "",
        "'wide'",
        "1 / 0",
        "(-1) ** 0.5",
        "sqrt(-1)",
        "__import__('os')",
        "10.0 ** 999",
    ],
)
def test_a_formula_that_is_no_number_names_itself_and_the_sizes(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dims()(text)
    assert repr(text) in str(caught.value)
    assert "names: n_layer, n_embd, n_head" in str(caught.value)


def cut_std(scale: float, cut: float) -> float:
    """std of N(0, scale^2) cut at +-cut, by quadrature on its own range."""
    x = np.linspace(0, min(cut, 40 * scale), 400_001)
    density = np.exp(-0.5 * (x / scale) ** 2)
    return math.sqrt(np.trapezoid(x * x * density, x) / np.trapezoid(density, x))


@pytest.mark.parametrize("scale", [1.0, 0.02, 3e-4])
@pytest.mark.parametrize("sigmas", [1e-9, 1e-4, 0.009, 0.011, 0.1, 1.0, 2.0, 3.0, 10.0, 1000.0])
def test_std_of_a_cut_normal_is_that_of_the_integral(scale: float, sigmas: float) -> None:
    value = TruncNormal(scale, sigmas * scale)
    assert value.std == pytest.approx(cut_std(scale, sigmas * scale), rel=1e-5)
    assert value.mean == 0


def test_std_of_a_uniform_is_that_of_the_integral() -> None:
    x = np.linspace(-0.3, 0.3, 100_001)
    assert Uniform(0.3).std == pytest.approx(math.sqrt(np.trapezoid(x * x, x) / 0.6), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (Normal(0.02), "normal", "std = 0.02"),
        (Uniform(0.5), "uniform", "bound = 0.5"),
        (TruncNormal(0.02, 0.06), "truncated normal", "scale = 0.02, cut at ±0.06"),
        (Constant(1.0), "constant", "value = 1"),
        (Orthogonal(0.5), "orthogonal", "gain = 0.5"),
    ],
)
def test_a_distribution_says_what_it_is(value: Distribution, kind: str, text: str) -> None:
    assert (value.kind, value.formula) == (kind, text)


def test_a_duplicate_id_is_refused_and_changes_nothing() -> None:
    before = registry.all_recipes()
    with pytest.raises(RecipeError, match=r"recipe 'nanogpt' exists already \(source: karpathy/nanoGPT"):
        registry.recipe("nanogpt", family="mine", source="here")(lambda role, dims: Normal(0.5))
    assert registry.all_recipes() == before
    assert registry.get("nanogpt")(Role.ATTN_QKV, dims()).std == 0.02


def test_a_known_recipe_is_taken_relative_to_another_base() -> None:
    known = registry.get("mup")
    moved = replace(known, base=Base(n_layer=4, n_embd=64))
    assert registry.get(moved) is moved
    with pytest.raises(RecipeError, match=r"recipe 'mup' exists already .*; rename yours"):
        registry.get(replace(moved, optimizer=None))


def test_a_recipe_of_ones_own_under_a_known_id_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'nanogpt' exists already .*; rename yours"):
        registry.get(own(lambda role, dims: Normal(0.5), id="nanogpt"))
    assert registry.get(registry.get("nanogpt")) is registry.get("nanogpt")


@pytest.mark.parametrize(
    ("name", "close"),
    [("nanogtp", "nanogpt"), ("NanoGPT", "nanogpt"), ("glorot-xavier", "xavier"), ("torch_default", "torch-default")],
)
def test_an_unknown_recipe_gets_the_closest_matches_and_where_the_others_are(name: str, close: str) -> None:
    with pytest.raises(RecipeError) as caught:
        registry.get(name)
    text = str(caught.value)
    assert text.startswith(f"unknown recipe {name!r}; did you mean {close}")
    all_of_them = len(registry.all_recipes())
    assert text.endswith(f"? `initlab recipes` lists all {all_of_them}; your own: path/to/file.py:name")
    assert text.count(" or ") <= 2 and len(text) < 200


@pytest.mark.parametrize("name", ["", "qqqqqqqqqqq"])
def test_an_unknown_recipe_far_from_all_is_only_told_where_they_are(name: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown recipe '{name}'; `initlab recipes` lists all "):
        registry.get(name)


@pytest.mark.parametrize("name", [None, 3, lambda role, dims: Normal(1.0), ["nanogpt"]])
def test_what_is_no_recipe_at_all_is_refused(name: Any) -> None:
    with pytest.raises(RecipeError, match=r"expected an id, file\.py:name, a Recipe, or a function"):
        registry.get(name)


def test_a_function_is_a_recipe_by_its_own_name():
    def halved(role, dims):
        """Half of GPT-2."""
        return Normal(0.01)

    recipe = registry.get(halved)
    assert (recipe.id, recipe.family, recipe.summary) == ("halved", "user", "Half of GPT-2.")
    assert recipe(Role.MLP_IN, dims()).std == 0.01


def own(rule: Any, id: str = "mine") -> Recipe:
    return Recipe(id=id, family="user", summary="", source="here", rule=rule)


def fail(role: Role, dims: Dims) -> Distribution:
    raise KeyError(role)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Normal(math.nan), "returned .*nan.*expected finite, non-negative numbers"),
        (Normal(math.inf), "returned .*inf.* for role attn_qkv; expected finite"),
        (Orthogonal(-1.0), "returned .*non-negative"),
        (Orthogonal(math.nan), "returned .*expected finite"),
        (Normal(-0.02), r"returned .*-0\.02.*non-negative"),
        (Uniform(-1.0), "returned Uniform.*non-negative"),
        (TruncNormal(0.02, -0.04), "returned .*expected finite, positive"),
        (TruncNormal(0.0, 1.0), "returned .*expected finite, positive"),
        (TruncNormal(1.0, 0.0), "returned .*expected finite, positive"),
        (Constant(math.nan), "returned .*expected finite numbers"),
        (Normal("0.02"), "returned .*expected finite"),  # type: ignore[arg-type]
        (Normal(None), "returned .*expected finite"),  # type: ignore[arg-type]
        (Normal(1j), "returned .*expected finite"),  # type: ignore[arg-type]
        (Normal(np.ones(2)), "returned .*expected finite"),  # type: ignore[arg-type]
        (Normal(10**400), "returned .*expected finite"),
        (0.02, r"returned 0\.02 .*expected Normal, Uniform, TruncNormal, Orthogonal or Constant from initlab\.recipes"),
        (None, "returned None .*expected Normal"),
        (SimpleNamespace(std=0.02, mean=0.0, kind="normal", formula=""), "returned namespace.*expected Normal"),
        (Normal, "returned <class.*expected Normal"),
    ],
)
def test_an_answer_that_is_no_finite_distribution_is_refused(value: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=f"recipe mine {named}"):
        own(lambda role, dims: value)(Role.ATTN_QKV, dims())


@pytest.mark.parametrize("value", [Constant(-1.0), Constant(0), Normal(0.0), Uniform(0), Normal(1), TruncNormal(1, 2)])
def test_an_answer_at_the_edge_of_the_allowed_is_taken(value: Distribution) -> None:
    assert own(lambda role, dims: value)(Role.ATTN_QKV, dims()) is value


@pytest.mark.parametrize("role", [Role.BIAS, Role.NORM_GAIN, Role.NORM_BIAS])
def test_a_vector_cant_be_orthogonal(role: Role) -> None:
    with pytest.raises(RecipeError, match=f"for role {role}, whose parameters are vectors; only a matrix can be"):
        own(lambda role, dims: Orthogonal(1.0))(role, dims())


def test_an_orthogonal_value_learns_its_size_from_the_recipe() -> None:
    assert math.isnan(Orthogonal(2.0).std)
    found = own(lambda role, dims: Orthogonal(2.0))(Role.MLP_OUT, dims(Role.MLP_OUT, n_embd=64))
    assert found == Orthogonal(2.0, 256)
    assert found.std == 2 / 16


def test_an_unknown_role_is_refused_with_the_list() -> None:
    with pytest.raises(RecipeError, match=r"unknown role 'attention'; expected one of token_embed, pos_embed, .*bias"):
        registry.get("nanogpt")("attention", dims())  # type: ignore[arg-type]
    assert registry.get("nanogpt")("mlp_in", dims()).std == 0.02  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (fail, "recipe mine failed on role mlp_in: KeyError: "),
        (lambda role: Normal(0.02), "recipe mine failed on role mlp_in: TypeError: .*positional"),
        (lambda role, dims: Normal(dims("0.02 / depth")), r"formula '0\.02 / depth' can't be evaluated"),
        (lambda role, dims: Normal(dims.n_layers), "recipe mine failed on role mlp_in: AttributeError.*'n_layers'$"),
        (lambda role, dims: Normal(role == Role.ATTN_QUERY), r"AttributeError: .*ATTN_QUERY.*; the roles are TOKEN_"),
    ],
)
def test_a_rule_that_raises_names_the_recipe_or_the_formula(rule: Any, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        own(rule)(Role.MLP_IN, dims())


FILE = '''
from __future__ import annotations
from dataclasses import dataclass
from initlab.recipes import Normal, Recipe
from initlab.recipes.registry import recipe

@dataclass
class Options:
    std: float = 0.3

def mine(role, dims):
    """Everything at 0.3.

    More.
    """
    return Normal(Options().std)

def silent(role, dims):
    return Normal(dims("0.1 / n_layer"))

@recipe("registered", family="user", source="a file")
def registered(role, dims):
    """Everything at 0.4."""
    return Normal(0.4)

stated = Recipe(id="stated", family="user", summary="s", source="a file", rule=silent)
usurper = Recipe(id="nanogpt", family="user", summary="s", source="a file", rule=silent)
number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my recipes.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("name", "id", "summary", "std"),
    [
        ("mine", None, "Everything at 0.3.", 0.3),
        ("silent", None, "", 0.1 / 12),
        ("registered", "registered", "Everything at 0.4.", 0.4),
        ("stated", "stated", "s", 0.1 / 12),
    ],
)
def test_a_recipe_from_a_file_is_a_first_class_one(
    file: Path, name: str, id: str | None, summary: str, std: float
) -> None:
    before = registry.all_recipes()
    for _ in range(2):
        found = registry.get(f"{file}:{name}")
        assert (found.id, found.family, found.summary) == (id or f"{file}:{name}", "user", summary)
        assert found(Role.BIAS, dims()).std == std
    assert registry.all_recipes() == before


def test_a_file_is_read_again_after_an_edit(file: Path) -> None:
    assert registry.get(f"{file}:mine")(Role.BIAS, dims()).std == 0.3
    file.write_text(FILE.replace("std: float = 0.3", "std: float = 0.25"))
    assert registry.get(f"{file}:mine")(Role.BIAS, dims()).std == 0.25


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("absent", "has no function or Recipe named 'absent'"),
        ("number", "has no function or Recipe named 'number'"),
        ("", "has no function or Recipe named ''"),
        ("usurper", "recipe 'nanogpt' exists already"),
    ],
)
def test_a_name_that_the_file_cant_give_is_refused(file: Path, name: str, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        registry.get(f"{file}:{name}")


def test_a_class_from_a_file_fails_as_a_rule_with_its_reason(file: Path) -> None:
    with pytest.raises(RecipeError, match="failed on role bias: TypeError"):
        registry.get(f"{file}:Normal")(Role.BIAS, dims())


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("def f(:", "failed on import: SyntaxError"),
        ("import no_such_module_anywhere", "failed on import: ModuleNotFoundError: No module named"),
        ("1 / 0", "failed on import: ZeroDivisionError"),
        ("import sys\nsys.exit(3)", "failed on import: SystemExit: 3"),
        ("from initlab.recipes.gpt2 import nanogpt\nraise ValueError('late')", "failed on import: ValueError: late"),
    ],
)
def test_a_file_that_fails_on_import_says_why(tmp_path: Path, source: str, named: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(source)
    before = registry.all_recipes()
    with pytest.raises(RecipeError, match=named) as caught:
        registry.get(f"{path}:mine")
    assert str(path) in str(caught.value)
    assert registry.all_recipes() == before


@pytest.mark.parametrize("location", ["absent.py", ".", "folder.py"])
def test_a_file_that_isnt_there_is_named(tmp_path: Path, location: str) -> None:
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(RecipeError, match=r"absent\.py not found|folder\.py not found|unknown recipe"):
        registry.get(f"{tmp_path / location}:mine")


def test_the_table_holds_every_role_and_size() -> None:
    sizes = [
        {"n_layer": n_layer, "n_embd": n_embd, "n_head": 4, "block_size": T, "vocab_size": VOCAB}
        for n_layer, n_embd in SIZES
    ]
    found = evaluate(registry.get("nanogpt"), sizes)
    assert json.loads(json.dumps(found)) == found
    assert len(found["rows"]) == len(SIZES) * len(gpt_roles())
    row = next(row for row in found["rows"] if row["role"] == "mlp_out" and row["n_layer"] == 48)
    assert row == {
        "role": "mlp_out",
        "n_layer": 48,
        "n_embd": 1600,
        "layer": 0,
        "distribution": "normal",
        "mean": 0.0,
        "std": 0.02 / math.sqrt(96),
        "formula": "std = 0.02 / sqrt(2 * n_layer)",
    }


@pytest.mark.parametrize(
    ("bias", "tied", "extra", "lacking"),
    [
        (True, True, {Role.BIAS, Role.NORM_BIAS}, {Role.UNEMBED}),
        (False, True, set(), {Role.UNEMBED, Role.BIAS, Role.NORM_BIAS}),
        (False, False, {Role.UNEMBED}, {Role.BIAS, Role.NORM_BIAS}),
    ],
)
def test_a_gpt_without_biases_or_with_its_own_head_has_other_roles(
    bias: bool, tied: bool, extra: set[Role], lacking: set[Role]
) -> None:
    roles = set(gpt_roles(bias=bias, tied=tied))
    assert extra <= roles
    assert not lacking & roles


def test_the_table_of_a_users_numpy_numbers_is_json() -> None:
    size = {"n_layer": 2, "n_embd": 8, "n_head": 2, "block_size": 8, "vocab_size": 16}
    found = evaluate(own(lambda role, dims: Normal(np.float32(0.5))), [size])  # type: ignore[arg-type]
    assert {row["std"] for row in json.loads(json.dumps(found))["rows"]} == {0.5}


def test_blocks_that_are_drawn_differently_have_a_row_for_the_first_and_the_last() -> None:
    size = {"n_layer": 4, "n_embd": 64, "n_head": 4, "block_size": T, "vocab_size": VOCAB}
    rows = evaluate(own(lambda role, dims: Normal(0.02 / (dims.layer + 1))), [size])["rows"]
    found = [(row["layer"], row["std"]) for row in rows if row["role"] == "mlp_in"]
    assert found == [(0, 0.02), (3, 0.005)]


@pytest.mark.parametrize(
    ("id", "shown"),
    [("torchtitan-llama3", {"mlp_gate": 0.02}), ("nanogpt-width-matched", {"router": 0.02}), ("xavier", {})],
)
def test_a_gate_and_a_router_are_shown_where_they_are_drawn_apart(id: str, shown: dict[str, float]) -> None:
    size = {"n_layer": 4, "n_embd": 64, "n_head": 4, "block_size": T, "vocab_size": VOCAB}
    rows = evaluate(registry.get(id), [size], special=True)["rows"]
    assert {row["role"]: row["std"] for row in rows if row["role"] in ("mlp_gate", "router")} == shown
    names = [row["role"] for row in rows]
    assert all(names.index(role) == names.index("mlp_in") - 1 for role in shown)
    assert not {"mlp_gate", "router"} & {row["role"] for row in evaluate(registry.get(id), [size])["rows"]}


def test_a_function_that_makes_models_is_no_recipe() -> None:
    def make(n_layer: int, n_embd: int) -> None: ...

    with pytest.raises(RecipeError, match="make makes models of a size, which take the place of a recipe"):
        registry.get(make)  # type: ignore[arg-type]


def values_smaller(role: Role, dims: Dims) -> Distribution:
    """DeepNorm's way: values and outputs get a beta, queries and keys don't."""
    return Normal(dims("0.02 / n_layer")) if role in (Role.ATTN_V, Role.ATTN_OUT) else Normal(dims("0.02"))


def by_table(role: Role, dims: Dims) -> Distribution:
    return {Role.ATTN_QKV: Normal(0.3), Role.ATTN_Q: Normal(0.1)}[role]


def fused_only(role: Role, dims: Dims) -> Distribution:
    return Normal(0.3) if role == Role.ATTN_QKV else Normal(0.02)


def mistaken(role: Role, dims: Dims) -> Distribution:
    return Normal(dims("0.02 / none")) if role == Role.ATTN_V else Normal(0.02)


def test_q_k_and_v_are_told_apart_where_a_recipe_tells_them_apart() -> None:
    size = dims()
    answers = {
        rule: [float(own(rule)(role, size).std) for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)]
        for rule in (values_smaller, by_table, fused_only)
    }
    assert answers == {
        values_smaller: [0.02, 0.02, 0.02 / size.n_layer],
        by_table: [0.1, 0.3, 0.3],
        fused_only: [0.3, 0.3, 0.3],
    }
    assert [own(rule).splits(size) for rule in answers] == [True, True, False]
    with pytest.raises(RecipeError, match=r"'0\.02 / none'"):
        own(mistaken)(Role.ATTN_V, size)


@pytest.mark.parametrize("id", [id for id, recipe in registry.all_recipes().items() if recipe.wiring is None])
def test_published_inits_draw_q_k_and_v_alike_and_have_no_answer_for_gates(id: str) -> None:
    entry = registry.get(id)
    assert {entry(role, dims()) for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)} == {entry(Role.ATTN_QKV, dims())}
    assert not entry.knows(Role.GATE, dims())


def test_a_table_has_one_line_for_q_k_and_v_that_are_alike() -> None:
    size = {"n_layer": 2, "n_embd": 64, "n_head": 4, "block_size": 16, "vocab_size": 99}
    assert [row["role"] for row in evaluate(own(fused_only), [size])["rows"]].count("attn_qkv") == 1
    rows = {row["role"]: row["std"] for row in evaluate(own(values_smaller), [size])["rows"]}
    assert (rows["attn_q"], rows["attn_v"]) == (0.02, 0.01)
    assert "attn_qkv" not in rows
