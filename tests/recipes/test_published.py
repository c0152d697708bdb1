"""Constants and measurements that papers and their code print, against what the recipes give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from initlab.drawing.apply import apply_recipe
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.models.wired import wired
from initlab.recipes import Role, registry
from initlab.recipes.tabulating import gpt_dims

pytestmark = pytest.mark.integration


def test_the_readme_counts_the_recipes() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"lists {len(registry.all_recipes())} recipes" in text


def size(role: Role, n_layer: int, n_embd: int = 512) -> Any:
    return gpt_dims(role, n_layer=n_layer, n_embd=n_embd, n_head=8, block_size=512, vocab_size=50304)


@pytest.mark.parametrize(
    ("n_layer", "alpha", "beta"),
    [
        (2, 1.414214, 0.5),
        (8, 2.0, 0.353553),
        (18, 2.449490, 0.288675),
        (100, 3.760603, 0.188030),
        (200, 4.472136, 0.158114),
    ],
)
def test_deepnorms_constants(n_layer: int, alpha: float, beta: float) -> None:
    """2203.00555, figure 2: (2M)^(1/4) and (8M)^(-1/4); by a desk calculator."""
    for id in ("deepnorm", "deepnorm-torchscale"):
        recipe = registry.get(id)
        assert recipe.wired(size(Role.OTHER, n_layer))["skip_multiplier"] == pytest.approx(alpha, rel=1e-6)
        plain = registry.get("normformer") if id == "deepnorm-torchscale" else registry.get("xavier")
        for role in (Role.ATTN_V, Role.ATTN_OUT, Role.MLP_IN, Role.MLP_OUT):
            dims = size(role, n_layer)
            assert recipe(role, dims).std / plain(role, dims).std == pytest.approx(beta, rel=1e-5), role
        assert recipe(Role.ATTN_Q, size(Role.ATTN_Q, n_layer)).std == plain(Role.ATTN_Q, size(Role.ATTN_Q, n_layer)).std


@pytest.mark.parametrize(("n_layer", "omega"), [(6, 2.017009), (12, 2.601286), (18, 3.040839), (60, 4.922444)])
def test_admins_closed_form(n_layer: int, omega: float) -> None:
    """admin_torch.admin.calculate_init(2 * n_layer), as its module gives it."""
    assert registry.get("admin").wired(size(Role.OTHER, n_layer))["skip_multiplier"] == pytest.approx(omega, rel=1e-6)


@pytest.mark.parametrize(("n_layer", "start"), [(12, 0.1), (18, 0.1), (24, 1e-5), (36, 1e-6), (48, 1e-6)])
def test_caits_table_of_starts(n_layer: int, start: float) -> None:
    """2103.17239: 0.1 up to depth 18, 1e-5 at 24, 1e-6 beyond; deit's S24, S36, M36 and M48."""
    assert registry.get("layerscale-cait").wired(size(Role.OTHER, n_layer))["layer_scale"] == start


@pytest.mark.parametrize(("n_layer", "published"), [(12, 1.059), (128, 2.142)])
def test_rezeros_published_jacobians(n_layer: int, published: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean squared singular value of d output / d input at gates of 0.1.

    From tbachlechner/ReZero-examples@fe7e7ef, its notebook: 4 positions of 16 features, 4 heads, an MLP of 64 with
    ReLU, no mask, 10 draws. One draw scatters by 3 % at 12 layers and 9 % at 128, so their mean and the published one
    by up to 10 %.
    """
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kw: attend(*args, **(kw | {"is_causal": False}))
    )
    recipe = registry.get("rezero")
    config = NanoGPTConfig(n_layer=n_layer, n_embd=16, n_head=4, vocab_size=8, block_size=4, activation="relu")
    model = NanoGPT(wired(config, recipe))

    def blocks(x: Tensor) -> Tensor:
        for block in model.transformer.h:
            x = block(x)
        return x

    found = []
    for seed in range(10):
        apply_recipe(model, recipe, seed)
        for name, parameter in model.named_parameters():
            if "gate" in name:
                parameter.data.fill_(0.1)
        x = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed))
        jacobian = torch.autograd.functional.jacobian(blocks, x, vectorize=True).reshape(64, 64)  # type: ignore[no-untyped-call]
        found.append(float(torch.linalg.svdvals(jacobian).square().mean()))
    assert sum(found) / len(found) == pytest.approx(published, rel=0.1)
    assert math.isfinite(max(found))
