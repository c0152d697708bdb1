"""Inits that look at a batch, against their sources' loops written out by hand."""

from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.errors import ConfigError, RecipeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.recipes.profiled import PROFILED

V, T, L, D = 96, 24, 3, 64
IDS = torch.randint(V, (4, T), generator=torch.Generator().manual_seed(1))


def gpt(**options: Any) -> NanoGPT:
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_embd": D, "n_head": 4, "vocab_size": V, "block_size": T}
    return NanoGPT(NanoGPTConfig(**(sizes | options)))


def outputs(model: nn.Module, kinds: tuple[type, ...] = (nn.Linear,)) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: found.__setitem__(name, out.detach()))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        model(IDS, IDS) if isinstance(model, NanoGPT) else model(IDS)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"tie_weights": False}, {"norm": "none", "tie_weights": False}, {"activation": "swiglu", "dropout": 0.5}],
    ids=str,
)
def test_after_lsuv_every_layers_output_has_unit_variance(options: dict[str, Any]) -> None:
    model = gpt(**options)
    left = initlab.apply_recipe(model, "lsuv", batch=IDS)
    assert model.training
    for name, output in outputs(model.eval()).items():
        assert output.std(correction=0).item() == pytest.approx(1, abs=0.1), name
    for name, parameter in model.named_parameters():
        if name not in left and parameter.dim() == 2:  # still orthonormal, but for its scale
            tall = parameter if parameter.shape[0] >= parameter.shape[1] else parameter.mT
            product = (tall.mT @ tall).detach()
            torch.testing.assert_close(product / product[0, 0], torch.eye(len(product)), atol=1e-4, rtol=0)
    assert "transformer.wpe.weight" in left
    assert ("transformer.wte.weight" in left) == (not model.config.tie_weights)


def test_lsuv_is_its_authors_loop() -> None:
    """Layer by layer, in order: ÷ std until it is within 0.1 of 1."""
    model, reference = gpt(tie_weights=False), gpt(tie_weights=False)
    initlab.apply_recipe(model, "lsuv", batch=IDS, seed=3)
    named = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "wte" not in name and "wpe" not in name:
            q = parameter.detach() / torch.linalg.matrix_norm(parameter.detach(), 2)  # its orthonormal draw
            named[name].data.copy_(q)
    for layer in range(L):
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            name = f"transformer.h.{layer}.{part}"
            while abs((std := outputs(reference)[name].std(correction=0).item()) - 1) > 0.1:
                named[f"{name}.weight"].data.div_(std)
    for name, parameter in model.named_parameters():
        if ".h." in name:
            torch.testing.assert_close(parameter.detach(), named[name].detach(), rtol=1e-3, atol=1e-5)


def test_what_looks_at_a_batch_is_seeded_and_leaves_nothing_behind() -> None:
    models = [gpt(dropout=0.1) for _ in range(3)]
    state = torch.random.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        initlab.apply_recipe(model, "lsuv", batch=IDS, seed=seed)
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [model.transformer.h[0].mlp.c_fc.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def foreign(name: str) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = importlib.import_module("transformers")
        torch.manual_seed(0)
        sizes = {"num_hidden_layers": 2, "hidden_size": D, "num_attention_heads": 4, "vocab_size": V}
        config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=128, pad_token_id=0)
        model = getattr(transformers, {"Bert": "BertForMaskedLM"}.get(name, f"{name}ForCausalLM"))(config)
    assert isinstance(model, nn.Module)
    return model.eval()


@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_lsuv_takes_models_of_others(name: str) -> None:
    model = foreign(name)
    initlab.apply_recipe(model, "lsuv", batch=IDS)
    found = outputs(model)
    assert len(found) > 10
    for layer, output in found.items():
        assert output.std(correction=0).item() == pytest.approx(1, abs=0.1), layer


def omegas(model: NanoGPT) -> list[float]:
    """Admin's adaptive profiling, as its code has it: block by block, on the model as it was drawn."""
    ratio, found = 1.0, []
    parts = model.transformer
    with torch.no_grad():
        x = parts.wte(IDS) + parts.wpe(torch.arange(T))
        for block in parts.h:
            for f, norm in ((block.attn, block.ln_1), (block.mlp, block.ln_2)):
                found.append(ratio)
                y = f(x)
                total = (x * ratio).var(correction=0) + y.var(correction=0)
                x = norm(x * ratio + y)
                ratio = math.sqrt(total.item())
    return found


@pytest.mark.parametrize("keep", [1.0, 1.7])
def test_admins_profiled_omega_is_that_of_its_code(keep: float) -> None:
    model, before = (gpt(norm_placement="post", skip_multiplier=keep) for _ in range(2))
    for each in (model, before):
        torch.manual_seed(5)
        for parameter in each.transformer.parameters():
            nn.init.normal_(parameter, std=0.3) if parameter.dim() == 2 else None
    initlab.apply_recipe(model, "admin-profiled", batch=IDS)
    expected = iter(omegas(before))
    found = []
    for old, new in zip(before.transformer.h, model.transformer.h, strict=True):
        for f in ("attn", "mlp"):
            pair = (getattr(each, f).c_proj.weight.detach() for each in (old, new))
            found.append((next(pair) / next(pair)).median().item() * keep)
            assert found[-1] == pytest.approx(next(expected), rel=1e-4)
    assert found == sorted(found) and found[-1] > 1.5


def test_admins_omega_is_of_post_norm_models_alone() -> None:
    left = initlab.apply_recipe(foreign("Bert"), "admin-profiled", batch=IDS)
    written = [
        f"bert.encoder.layer.{layer}.{part}output.dense.weight" for layer in (0, 1) for part in ("attention.", "")
    ]
    assert not set(written) & set(left)
    assert "bert.encoder.layer.0.intermediate.dense.weight" in left
    model = gpt()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        RecipeError, match=r"admin-profiled is of post-norm blocks.* in NanoGPT a branch is added without"
    ):
        initlab.apply_recipe(model, "admin-profiled", batch=IDS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Silent(nn.Module):
    """A second layer whose output is always 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(V, D), nn.Linear(D, D), nn.Linear(D, V)

    def forward(self, idx: Tensor) -> Tensor:
        return self.second(0 * F.relu(self.first(self.embed(idx))))


@pytest.mark.parametrize("id", PROFILED.items())
def test_without_a_batch_one_error_says_what_to_pass(id: str) -> None:
    with pytest.raises(ConfigError, match=rf"{id} looks at .*none was given: apply_recipe\(model, '{id}', batch=ids\)"):
        initlab.apply_recipe(gpt(), id)


def test_what_cant_be_scaled_changes_nothing() -> None:
    model = Silent()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RecipeError, match="LSUV can't scale second: the std of its output on this batch is 0"):
        initlab.apply_recipe(model, "lsuv", batch=IDS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="batch is given, and only lsuv, admin-profiled, gradinit look at one"):
        initlab.apply_recipe(gpt(), "nanogpt", batch=IDS)


def test_commands_take_one_in_a_function_that_makes_its_models() -> None:
    def scaled(n_layer: int, n_embd: int) -> nn.Module:
        model = gpt(n_layer=n_layer, n_embd=n_embd)
        initlab.apply_recipe(model, "lsuv", batch=IDS, seed=torch.initial_seed())
        return model

    text = initlab.Text(data="uniform")
    run = initlab.compare(["nanogpt", scaled], model=gpt_of, depths=[2], widths=[32], seeds=2, text=text).run
    records = run.tables.records
    own = records[(records["recipe"] == "scaled") & (records["site"] == "mlp_pre") & (records["kind"] == "activation")]
    assert own["std"].tolist() == pytest.approx([1.0] * len(own), abs=0.3)
    assert own["std"].nunique() == len(own)  # each seed is a draw of its own


def gpt_of(n_layer: int, n_embd: int) -> nn.Module:
    return gpt(n_layer=n_layer, n_embd=n_embd)
