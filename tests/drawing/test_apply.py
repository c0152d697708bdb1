from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initlab
from initlab.anatomy.look import of
from initlab.drawing.apply import apply_recipe, draw, portable
from initlab.errors import ConfigError, RecipeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.models.wired import wired
from initlab.recipes import Constant, Dims, Distribution, Normal, Recipe, Role, TruncNormal, Uniform, registry

L, D, V, T = 3, 96, 200, 128
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 24, "block_size": 8}


def build(**changes: Any) -> NanoGPT:
    return NanoGPT(NanoGPTConfig(**{**TINY, **changes}))


def drawn(recipe: str | Recipe, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    model = build(**changes)
    apply_recipe(model, registry.get(recipe), seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def recipe_of(value: Distribution) -> Recipe:
    return Recipe(id="mine", family="user", summary="", source="here", rule=lambda role, dims: value)


def role_of(name: str) -> str:
    """The last part of nanoGPT's names, written out."""
    if "ln_" in name:
        return "norm_gain" if name.endswith("weight") else "norm_bias"
    if name.endswith("bias"):
        return "bias"
    tail = name.removesuffix(".weight").split(".")[-2:]
    return {"c_attn": "attn_qkv", "c_fc": "mlp_in", "wte": "token_embed", "wpe": "pos_embed", "lm_head": "unembed"}.get(
        tail[-1], "attn_out" if tail[0] == "attn" else "mlp_out"
    )


def stds(recipe: str) -> dict[str, float]:
    """std of each weight matrix for L, D, V and an untied head."""
    gpt2 = {"token_embed": 0.02, "pos_embed": 0.02, "attn_qkv": 0.02, "mlp_in": 0.02, "unembed": 0.02}
    thin, wide, cut = 0.02 / math.sqrt(D), 1 / math.sqrt(D), 0.986578  # cut: std of a standard normal within ±3
    blocks = math.sqrt(sum(1 / (layer + 1) for layer in range(L)) / L / 2)  # rms of 1/√(2(layer + 1))
    matched = 0.02 * math.sqrt(768 / D)
    small = dict.fromkeys(gpt2, math.sqrt(0.4 / D))
    wide_gpt2 = dict.fromkeys(gpt2, wide)
    torchs = 1 / math.sqrt(3 * D)

    def outputs(std: float) -> dict[str, float]:
        return gpt2 | {"attn_out": std, "mlp_out": std}

    return {
        "nanogpt": outputs(0.02 / math.sqrt(2 * L)),
        "nanogpt-no-depth-scale": outputs(0.02),
        "out-x0.02": outputs(4e-4),
        "out-xsqrt2overL": outputs(0.02 * math.sqrt(2 / L)),
        "out-xinvsqrtL": outputs(0.02 / math.sqrt(L)),
        "zero-out": outputs(0.0),
        "std-0.02-over-sqrt-d": outputs(thin) | {"attn_qkv": thin, "mlp_in": thin, "unembed": thin},
        "xavier": gpt2
        | {"attn_qkv": 1 / math.sqrt(D), "attn_out": 1 / math.sqrt(D), "unembed": math.sqrt(2 / (D + V))}
        | {"mlp_in": math.sqrt(2 / (5 * D)), "mlp_out": math.sqrt(2 / (5 * D))},
        "gpt2-openai-release": outputs(0.02) | {"pos_embed": 0.01},
        "nanogpt-width-matched": outputs(matched / math.sqrt(2 * L)) | {"attn_qkv": matched, "mlp_in": matched},
        "megatron": outputs(0.02 / math.sqrt(2 * L)),
        "small-init-wang-neox": small | dict.fromkeys(("attn_out", "mlp_out"), 2 * wide / L),
        "small-init-wang-litgpt": small | dict.fromkeys(("attn_out", "mlp_out"), wide / L),
        "hf-llama": outputs(0.02),
        "torchtitan-llama3": outputs(0.02 * blocks)
        | {"token_embed": 1.0, "unembed": cut * wide, "mlp_in": 0.02 * blocks},
        "olmo-mitchell": {role: cut * std for role, std in wide_gpt2.items()}
        | {"attn_out": cut * wide * blocks, "mlp_out": cut * wide / 2 * blocks},
        "olmo-full-megatron": {role: cut * std for role, std in outputs(0.02 / math.sqrt(2 * L)).items()}
        | {"unembed": cut * wide},
        "olmo-normal": {role: cut * std for role, std in outputs(0.02).items()},
        "nanodo": wide_gpt2
        | {"attn_out": wide, "mlp_in": math.sqrt(0.4 / D), "mlp_out": math.sqrt(0.4 / D)}
        | {"unembed": math.sqrt(2 / (D + V))},
        "kaiming": gpt2
        | dict.fromkeys(("attn_qkv", "attn_out", "mlp_in", "unembed"), math.sqrt(2) * wide)
        | {"mlp_out": math.sqrt(0.5) * wide},
        "orthogonal": gpt2
        | {"attn_qkv": wide, "attn_out": wide, "mlp_in": wide / 2, "mlp_out": wide / 2, "unembed": V**-0.5},
        "spectral": wide_gpt2 | {"token_embed": 1.0, "pos_embed": 1.0, "attn_out": wide, "mlp_out": wide / 4},
        "deepseek": dict.fromkeys(gpt2, 0.006),
        "mamba": dict.fromkeys(gpt2, torchs)
        | {"token_embed": 0.02, "pos_embed": 0.02}
        | {"attn_out": torchs / math.sqrt(2 * L), "mlp_out": torchs / 2 / math.sqrt(2 * L)},
        "vit-timm": outputs(0.02),
        "vit-jax": gpt2
        | {"attn_qkv": wide, "attn_out": wide, "unembed": 0.0}
        | dict.fromkeys(("mlp_in", "mlp_out"), math.sqrt(0.4 / D)),
        "torch-default": {"token_embed": 1.0, "pos_embed": 1.0, "unembed": torchs, "attn_qkv": torchs}
        | {"attn_out": torchs, "mlp_in": torchs, "mlp_out": 1 / math.sqrt(12 * D)},
    }[recipe]


@pytest.mark.parametrize("id", [id for id, recipe in registry.all_recipes().items() if recipe.wiring is not None])
def test_weights_of_a_model_wired_as_its_recipe_have_the_std_of_its_rule(id: str) -> None:
    recipe = registry.get(id)
    config = NanoGPTConfig(n_layer=L, n_embd=D, n_head=4, vocab_size=V, block_size=T)
    model = NanoGPT(wired(config, recipe))
    apply_recipe(model, recipe, 0)
    weights = dict(model.named_parameters())
    for place in of(model).parameters:
        values = weights[place.name].detach().double().reshape(-1)
        distributions = [recipe(role, dims) for _, role, dims in place.asked() if role not in (Role.OTHER, Role.GATE)]
        if len(values) > 4000 and distributions:
            square = sum(each.std**2 for each in distributions) / len(distributions)
            assert values.square().mean().sqrt().item() == pytest.approx(math.sqrt(square), rel=0.05), place.name


@pytest.mark.parametrize("recipe", [id for id, recipe in registry.all_recipes().items() if recipe.wiring is None])
def test_weights_have_the_std_of_the_formula(recipe: str) -> None:
    weights = drawn(recipe, n_layer=L, n_embd=D, n_head=4, vocab_size=V, block_size=T, tie_weights=False)
    pooled: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        pooled.setdefault(role_of(name), []).append(weight.double().flatten())
    for role, std in stds(recipe).items():
        values = torch.cat(pooled[role])
        assert 4 / math.sqrt(2 * len(values)) < 0.03  # standard errors of a std
        assert values.std(correction=0).item() == pytest.approx(std, rel=0.03)
        assert values.mean().item() == pytest.approx(0, abs=4 * std / math.sqrt(len(values)))
    assert (torch.cat(pooled["norm_gain"]) == 1).all()
    assert (torch.cat(pooled["norm_bias"]) == 0).all()
    if recipe != "torch-default":
        assert (torch.cat(pooled["bias"]) == 0).all()


@pytest.mark.parametrize("tied", [True, False])
def test_torch_default_is_what_torchs_modules_draw_themselves(tied: bool) -> None:
    size = {"n_layer": L, "n_embd": D, "n_head": 4, "vocab_size": V, "block_size": T, "tie_weights": tied}
    torch.manual_seed(0)
    model = build(**size)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm):
            module.reset_parameters()
    model.lm_head.reset_parameters()  # nanoGPT ties wte to the head, whose draw stays
    expected = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = drawn("torch-default", **size)
    assert list(found) == list(expected)
    for kind in {re.sub(r"\d+", r"\\d+", name) for name in expected}:
        ours, torchs = (
            torch.cat([state[name].flatten() for name in state if re.fullmatch(kind, name)])
            for state in (found, expected)
        )
        n = len(ours)
        two_samples = 8 / math.sqrt(2 * n)  # each within 4 standard errors
        assert ours.std(correction=0).item() == pytest.approx(torchs.std(correction=0).item(), rel=two_samples), kind
        if torchs.abs().max() <= 1:  # a uniform has an edge, a normal none
            assert ours.abs().max().item() == pytest.approx(torchs.abs().max().item(), rel=20 / n), kind


def test_recipes_with_one_distribution_family_are_exact_multiples_of_each_other() -> None:
    base, scaled = drawn("nanogpt-no-depth-scale"), drawn("nanogpt")
    for name, weight in base.items():
        factor = 1 / math.sqrt(2 * TINY["n_layer"]) if "c_proj.weight" in name else 1.0
        torch.testing.assert_close(scaled[name], weight * factor, rtol=3e-7, atol=0)


def test_a_uniform_is_the_cdf_of_the_same_normal() -> None:
    normal, uniform = drawn(recipe_of(Normal(1.0))), drawn(recipe_of(Uniform(0.5)))
    for name, z in normal.items():
        expected = 0.5 * torch.erf(z.double() / math.sqrt(2))
        torch.testing.assert_close(uniform[name].double(), expected, rtol=1e-5, atol=1e-8)
        assert uniform[name].abs().max() <= 0.5


@pytest.mark.parametrize("cut", [0.5, 2.0, 3.0])
def test_a_cut_normal_keeps_the_order_of_the_normal_and_its_own_std(cut: float) -> None:
    shape = torch.Size([200, 300])
    z, x = (draw(value, shape, "w", 0).flatten() for value in (Normal(1.0), TruncNormal(0.02, 0.02 * cut)))
    order = z.argsort()
    assert (x[order].diff() >= 0).all()
    assert x.abs().max() <= torch.tensor(0.02 * cut)
    expected = TruncNormal(0.02, 0.02 * cut).std
    assert x.double().std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * len(x)))


def test_a_normal_cut_far_out_is_the_normal() -> None:
    shape = torch.Size([1000])
    torch.testing.assert_close(
        draw(TruncNormal(0.02, 2.0), shape, "w", 3), draw(Normal(0.02), shape, "w", 3), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("value", [Constant(1), Constant(-0.5), Normal(1), Uniform(1), TruncNormal(1, 2)])
def test_a_draw_is_float32_on_the_cpu_whatever_torchs_defaults(value: Distribution) -> None:
    shape = torch.Size([5, 7])
    plain = draw(value, shape, "w", 0)
    with defaults("meta", torch.bfloat16):
        odd = draw(value, shape, "w", 0)
    assert (odd.dtype, odd.device.type, odd.shape) == (torch.float32, "cpu", shape)
    assert torch.equal(odd, plain)


@contextmanager
def defaults(device: str, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("recipe", ["nanogpt-no-depth-scale", "torch-default"])
def test_a_deeper_model_shares_the_blocks_of_a_shallower_one(recipe: str) -> None:
    shallow, deep = drawn(recipe, n_layer=2), drawn(recipe, n_layer=5)
    assert len(deep) > len(shallow)
    for name, weight in shallow.items():
        assert torch.equal(weight, deep[name]), name


def test_blocks_and_parameters_are_drawn_apart() -> None:
    weights = drawn(recipe_of(Normal(1.0)), n_layer=3)
    flat = {name: tuple(weight.flatten()[:8].tolist()) for name, weight in weights.items()}
    assert len(set(flat.values())) == len(flat)


def test_a_seed_fixes_the_draw_and_another_changes_it() -> None:
    first, again, other = drawn("nanogpt", 1), drawn("nanogpt", 1), drawn("nanogpt", 2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert drawn("nanogpt", -1)["transformer.wte.weight"].isfinite().all()


def test_the_global_random_state_and_existing_parameters_stay_where_they_are() -> None:
    model = build()
    before = torch.get_rng_state()
    identities = [id(p) for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    apply_recipe(model, registry.get("torch-default"), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert [id(p) for p in model.parameters()] == identities
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.requires_grad and p.grad is None and p.grad_fn is None for p in model.parameters())


def test_a_tied_head_stays_tied_and_an_untied_one_gets_its_own_draw() -> None:
    tied, untied = build(), build(tie_weights=False)
    for model in (tied, untied):
        apply_recipe(model, registry.get("nanogpt"), 0)
    assert tied.lm_head.weight is tied.transformer.wte.weight
    assert not torch.equal(untied.lm_head.weight, untied.transformer.wte.weight)
    assert torch.equal(tied.transformer.wte.weight, untied.transformer.wte.weight)


def test_a_model_without_biases_has_the_same_weights() -> None:
    with_bias, without = drawn("nanogpt"), drawn("nanogpt", bias=False)
    assert {name for name in with_bias if name.endswith("weight")} == set(without)
    assert all(torch.equal(without[name], with_bias[name]) for name in without)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_gets_the_same_draw_rounded(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    apply_recipe(model, registry.get("nanogpt"), 0)
    single = drawn("nanogpt")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, single[name].to(dtype)), name


def test_a_frozen_parameter_is_drawn_and_stays_frozen() -> None:
    model = build().requires_grad_(False)
    apply_recipe(model, registry.get("nanogpt"), 0)
    assert torch.equal(model.transformer.wte.weight, drawn("nanogpt")["transformer.wte.weight"])
    assert not any(p.requires_grad for p in model.parameters())


class Adapter(NanoGPT):
    """A NanoGPT with matrices that nanoGPT doesn't have, a vector and a gate."""

    def __init__(self, count: int) -> None:
        super().__init__(NanoGPTConfig(**TINY))
        for place in range(count):
            self.transformer.h[0].register_parameter(f"mix_{place}", nn.Parameter(torch.ones(3, 5)))
        self.transformer.h[0].register_parameter("times", nn.Parameter(torch.full((3,), 5.0)))
        self.transformer.h[0].register_parameter("gate", nn.Parameter(torch.full((16,), 1e-4)))


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (
            1,
            r"what transformer\.h\.0\.mix_0 is for isn't known, .*roles=\{'transformer\.h\.\*\.mix_0': 'mlp_in'\}",
        ),
        (7, r"what transformer\.h\.0\.mix_0, .*mix_4 and 2 more are for isn't known"),
    ],
)
def test_a_matrix_of_no_known_role_is_named_and_nothing_is_drawn(count: int, named: str) -> None:
    model = Adapter(count)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match=f"Adapter: {named}"):
        apply_recipe(model, registry.get("nanogpt"), 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_a_recipe_has_no_answer_for_stays_and_is_named() -> None:
    model = Adapter(1)
    left = initlab.apply_recipe(model, "nanogpt", roles={"*.mix_*": None})
    assert left == ("transformer.h.0.mix_0", "transformer.h.0.times", "transformer.h.0.gate")
    assert (model.transformer.h[0].times == 5).all()
    assert (model.transformer.h[0].gate == 1e-4).all()

    def mine(role: Role, dims: Dims) -> Distribution:
        return Constant(0.0) if role == Role.GATE else Normal(0.02)

    assert "transformer.h.0.gate" not in initlab.apply_recipe(model, mine, roles={"*.mix_*": "mlp_in"})
    assert (model.transformer.h[0].gate == 0).all()
    assert model.transformer.h[0].mix_0.std() < 0.1


@pytest.mark.parametrize(
    ("roles", "named"),
    [
        ({"*.mixx": "mlp_in"}, r"no parameter is named '\*\.mixx'; there are transformer"),
        ({"*.mix_0": "mlp"}, r"'\*\.mix_0' is 'mlp'; expected None or one of token_embed, .*other"),
        ({"*.mix_0": "norm_gain"}, r"transformer\.h\.0\.mix_0 is a matrix, 3×5, which can't be norm_gain"),
        ({"*.times": "mlp_out"}, r"transformer\.h\.0\.times is a vector, which can't be mlp_out"),
    ],
)
def test_roles_that_dont_fit_are_refused(roles: dict[str, str], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        initlab.apply_recipe(Adapter(1), "nanogpt", roles=roles)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Linear(2, 2), "Linear: what weight is for isn't known"),
        (nn.ReLU(), "ReLU has no parameters: there is nothing to draw"),
    ],
)
def test_another_model_is_refused_with_what_was_found(model: nn.Module, named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        apply_recipe(model, registry.get("nanogpt"), 0)


def test_a_model_in_a_sequential_is_drawn_as_the_one_inside() -> None:
    inside = nn.Sequential(build())
    apply_recipe(inside, registry.get("nanogpt"), 0)
    assert {place.dims.n_layer for place in of(inside).parameters} == {2}


@pytest.mark.parametrize("value", [TruncNormal(0.0, 1.0), Normal("0.02"), Normal(math.nan)])  # type: ignore[arg-type]
def test_a_recipe_that_fails_on_one_role_leaves_every_weight(value: Distribution) -> None:
    def rule(role: Role, dims: Dims) -> Distribution:
        return value if role == Role.NORM_BIAS else Normal(1.0)

    model = build()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(RecipeError, match="for role norm_bias"):
        apply_recipe(model, Recipe(id="mine", family="user", summary="", source="here", rule=rule), 0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(RecipeError, match="NanoGPT is on the meta device"):
        apply_recipe(model, registry.get("nanogpt"), 0)


@pytest.mark.parametrize("tied", [True, False])
def test_roles_sizes_and_blocks_are_those_of_the_model(tied: bool) -> None:
    places = {place.name: place for place in of(build(tie_weights=tied)).all_parameters()}
    assert list(places) == [name for name, _ in build(tie_weights=tied).named_parameters()]
    for name, place in places.items():
        assert place.role == role_of(name)
        assert place.layer == (int(name.split(".")[2]) if ".h." in name else None)
        assert place.dims.layer == (place.layer or 0)
        assert (place.dims.n_layer, place.dims.n_embd, place.dims.n_head) == (2, 16, 2)
        assert (place.dims.block_size, place.dims.vocab_size, place.dims.tied) == (8, 24, tied)
    fans = {
        "transformer.wte.weight": (24, 16),
        "transformer.wpe.weight": (8, 16),
        "transformer.h.1.attn.c_attn.weight": (16, 16),
        "transformer.h.1.attn.c_attn.bias": (16, 16),
        "transformer.h.1.attn.c_proj.weight": (16, 16),
        "transformer.h.1.mlp.c_fc.weight": (16, 64),
        "transformer.h.1.mlp.c_fc.bias": (16, 64),
        "transformer.h.1.mlp.c_proj.weight": (64, 16),
        "transformer.h.1.mlp.c_proj.bias": (64, 16),
        "transformer.h.1.ln_2.bias": (16, 16),
        "transformer.ln_f.weight": (16, 16),
        "lm_head.weight": (16, 24),
    }
    assert ("lm_head.weight" in places) is not tied
    for name, expected in fans.items():
        if name in places:
            assert (places[name].dims.fan_in, places[name].dims.fan_out) == expected, name


def test_matrices_stored_the_other_way_round_have_the_same_fans() -> None:
    """Hugging Face's GPT-2 has nanoGPT's names and weights of (in, out)."""
    model, turned = build(), build()
    for name, parameter in turned.named_parameters():
        if ".c_" in name and parameter.dim() == 2:
            parameter.data = parameter.data.T.contiguous()
    assert [place.dims for place in of(turned).all_parameters()] == [place.dims for place in of(model).all_parameters()]


def test_a_model_without_blocks_has_depth_zero() -> None:
    model = build(n_layer=1)
    model.transformer.h = nn.ModuleList()
    assert {place.dims.n_layer for place in of(model).all_parameters()} == {0}
    with pytest.raises(RecipeError, match="division by zero"):
        registry.get("nanogpt")(Role.MLP_OUT, of(model).all_parameters()[0].dims)


@pytest.mark.parametrize("name", ["nanogpt", "orthogonal", "torchtitan-llama3", "olmo-mitchell"])
def test_a_portable_recipe_can_be_pickled_and_draws_the_same(name: str) -> None:
    entry = registry.get(name)
    own = Recipe(id="own", family="user", summary="", source="", rule=lambda role, dims: entry.rule(role, dims))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(own)
    with torch.device("meta"):
        shapes = build()
    sent = pickle.loads(pickle.dumps(portable(own, shapes)))
    models = build(), build()
    for model, recipe in zip(models, (own, sent), strict=True):
        apply_recipe(model, recipe, 5)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two)


def test_a_wrapped_model_is_drawn_and_described_as_the_one_inside():
    config = initlab.NanoGPTConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, vocab_size=31)
    plain, inside = initlab.NanoGPT(config), initlab.NanoGPT(config)
    wrapped = nn.DataParallel(inside)
    initlab.apply_recipe(plain, "nanogpt")
    initlab.apply_recipe(wrapped, "nanogpt")
    assert torch.equal(plain.transformer.wte.weight, inside.transformer.wte.weight)
    assert str(initlab.describe_init(wrapped)) == str(initlab.describe_init(plain))
    for function in (initlab.describe_init, lambda model: initlab.apply_recipe(model, "nanogpt")):
        with pytest.raises(ConfigError, match="model is 3, of type int"):
            function(3)
