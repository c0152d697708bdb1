from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from initlab.anatomy.look import of
from initlab.measure.refined import Refined
from initlab.models.config import NanoGPTConfig
from initlab.models.nanogpt import NanoGPT
from initlab.recipes import Role

CONFIG = NanoGPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=32)


def tokens(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).clone()


def moved(model: nn.Module) -> list[dict[str, object]]:
    """What is measured of a model whose parameters are changed between two passes."""
    idx = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))
    refined = Refined(model, of(model), tokens)
    with refined.following():
        model(idx, idx)
    assert refined.rows("light") == []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    with refined.following():
        model(idx, idx)
    assert not any(module._forward_pre_hooks for module in model.modules())
    return refined.rows("light")


def test_every_matrix_has_both_parts_and_a_tied_head_is_one() -> None:
    model = NanoGPT(CONFIG)
    rows = moved(model)
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert {(row["module"], row["kind"]) for row in rows} == {
        (name, kind) for name in names for kind in ("effective", "propagating")
    }
    sites = {row["module"]: row["site"] for row in rows}
    assert sites["transformer.h.1.mlp.c_fc"] == Role.MLP_IN
    assert sites["lm_head"] == Role.TOKEN_EMBED
    assert {row["layer"] for row in rows if row["module"] == "transformer.h.1.mlp.c_fc"} == {1}


def test_the_parts_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    model = NanoGPT(CONFIG)
    idx = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))
    block = model.transformer.h[0]
    weight = block.attn.c_attn.weight.detach().clone()

    def given() -> Tensor:
        return block.ln_1(model.transformer.wte(idx) + model.transformer.wpe.weight[:8]).detach()

    before = given()
    found = {row["kind"]: row["rms"] for row in moved(model) if row["module"] == "transformer.h.0.attn.c_attn"}
    effective = given() @ (block.attn.c_attn.weight.detach() - weight).T
    propagating = (given() - before) @ weight.T
    assert found["effective"] == pytest.approx(effective.square().mean().sqrt().item(), rel=1e-4)
    assert found["propagating"] == pytest.approx(propagating.square().mean().sqrt().item(), rel=1e-4)


def test_a_matrix_that_stood_still_has_neither() -> None:
    model = NanoGPT(CONFIG)
    idx = torch.zeros(1, 4, dtype=torch.int64)
    refined = Refined(model, of(model), tokens)
    for _ in range(2):
        with refined.following():
            model(idx, idx)
        rows = refined.rows("light")
    assert rows and all(row["rms"] == 0 for row in rows)


def test_a_matrix_that_is_computed_from_others_is_left_out() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with pytest.warns(FutureWarning):
                self.up = nn.utils.weight_norm(nn.Linear(8, 8))

    model = Block()
    refined = Refined(model, of(model), tokens)
    with refined.following():
        model.up(torch.ones(2, 8))
    assert refined.rows("light") == []
