"""GradInit: its gradient by finite differences, its loop by the authors' written out by hand, its optimum by a grid."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import initlab
from initlab.anatomy.inputs import Inputs
from initlab.drawing import gradinit as module
from initlab.drawing.gradinit import Settings, halves, learn, meta_gradient
from initlab.errors import ConfigError, RecipeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig

pytestmark = pytest.mark.integration

V, T, L, D = 48, 16, 2, 32


def walk(rows: int, seed: int) -> Tensor:
    """Sequences in which each id follows from the one before, but for a tenth."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (rows, T), generator=generator)
    for place in range(1, T):
        keep = torch.rand(rows, generator=generator) < 0.9
        ids[:, place] = torch.where(keep, (5 * ids[:, place - 1] + 3) % V, ids[:, place])
    return ids


IDS = walk(12, 1)


def gpt(**options: Any) -> NanoGPT:
    torch.manual_seed(0)
    sizes = {"n_layer": L, "n_embd": D, "n_head": 2, "vocab_size": V, "block_size": T, "bias": True}
    model = NanoGPT(NanoGPTConfig(**(sizes | options)))
    initlab.apply_recipe(model, "torch-default")
    return model


def in_few_steps(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    monkeypatch.setattr(module, "Settings", functools.partial(Settings, **({"steps": 30} | options)))


def loss_of(model: nn.Module, ids: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """Cross entropy of the next tokens."""

    def loss(values: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, values, (ids, ids))[0]
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return loss


def wide(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.double().named_parameters()}


@pytest.mark.parametrize("gamma", [0.0, math.inf], ids=["norm", "loss"])
def test_its_gradient_is_that_of_finite_differences(gamma: float) -> None:
    model, settings = gpt(), Settings(gamma=gamma)
    values = wide(model)
    first, second = (loss_of(model, ids) for ids in (IDS[:8], IDS[4:]))
    at = torch.linspace(0.7, 1.4, len(values), dtype=torch.float64)

    def aim(scales: Tensor) -> float:
        scaled = {n: (v * s).requires_grad_() for (n, v), s in zip(values.items(), scales, strict=True)}
        gradients = torch.autograd.grad(first(scaled), list(scaled.values()))
        if gamma == 0.0:
            return float(sum(each.abs().sum() for each in gradients))
        steps = {n: v - settings.eta * g.sign() for (n, v), g in zip(scaled.items(), gradients, strict=True)}
        return float(second(steps).detach()) / settings.eta

    found, norm = meta_gradient(values, at, first, second, settings)
    assert norm > 1
    for place in range(len(values)):
        ends = [aim(at + side * 1e-7 * torch.eye(len(values), dtype=at.dtype)[place]) for side in (-1, 1)]
        assert found[place].item() == pytest.approx((ends[1] - ends[0]) / 2e-7, rel=1e-5, abs=1e-4), place


def authors(model: nn.Module, losses: list[tuple[Any, Any]], settings: Settings) -> list[float]:
    """Their loop: the parameters are scaled in place, and each has moments of its own, one pair for either aim."""
    parameters = dict(model.named_parameters())
    state = {
        n: {"alpha": 1.0, "norm": p.norm().item(), "m": [0.0, 0.0], "v": [0.0, 0.0]}
        for n, p in model.named_parameters()
    }
    counts, (one, two) = [0, 0], settings.betas
    for first, second in losses:
        gradients = torch.autograd.grad(first(parameters), list(parameters.values()), create_graph=True)
        norm = sum(g.abs().sum() for g in gradients)
        held = norm.item() > settings.gamma
        if held:
            by = torch.autograd.grad(norm, list(parameters.values()), allow_unused=True)
        else:
            stepped = {
                n: (p - settings.eta * g.sign()).detach().requires_grad_()
                for (n, p), g in zip(parameters.items(), gradients, strict=True)
            }
            by = torch.autograd.grad(second(stepped) / settings.eta, list(stepped.values()))
        counts[held] += 1
        for (name, p), g in zip(parameters.items(), by, strict=True):
            s, now = state[name], p.norm().item()
            if s["norm"] == 0 or now == 0 or g is None:
                continue
            gradient = (g * p).sum().item() * s["norm"] / now
            s["m"][held] = s["m"][held] * one + gradient * (1 - one)
            s["v"][held] = s["v"][held] * two + gradient**2 * (1 - two)
            size = math.sqrt(s["v"][held] / (1 - two ** counts[held])) + 1e-8
            moved = settings.lr / (1 - one ** counts[held]) * s["m"][held] / size
            s["alpha"] = max(s["alpha"] - moved, settings.least)
            p.data.mul_(s["alpha"] * s["norm"] / now)
    assert min(counts) > 2
    return [state[name]["alpha"] for name in parameters]


def test_it_is_its_authors_loop() -> None:
    model = gpt(norm="none", bias=False)
    values, settings = wide(model), Settings(gamma=30.0, lr=0.02)
    rows = [torch.randperm(12, generator=torch.Generator().manual_seed(step)) for step in range(25)]
    losses = [(loss_of(model, IDS[order[:8]]), loss_of(model, IDS[order[4:]])) for order in rows]
    every = iter(losses)
    bounds = torch.full((len(values),), 0.01, dtype=torch.float64), torch.full((len(values),), math.inf)
    scales = learn(values, lambda: next(every), bounds, Settings(gamma=30.0, lr=0.02, steps=25))
    with sdpa_kernel(SDPBackend.MATH):
        theirs = torch.tensor(authors(model, losses, settings), dtype=torch.float64)
    torch.testing.assert_close(scales, theirs, rtol=1e-6, atol=1e-6)


def test_the_scale_it_finds_is_the_best_on_a_grid() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(64, 8).double(), torch.randn(8, 4).double()
    y = torch.tanh(x @ w * 0.4) + 0.5 * torch.randn(64, 4).double()
    settings = Settings(eta=0.02, lr=0.01, steps=400, betas=(0.9, 0.999), gamma=math.inf)

    def loss(values: dict[str, Tensor]) -> Tensor:
        return (torch.tanh(x @ values["w"]) - y).square().mean()

    def after(scale: float) -> float:
        start = (w * scale).requires_grad_()
        (g,) = torch.autograd.grad(loss({"w": start}), [start])
        return float(loss({"w": start - settings.eta * g.sign()}).detach())

    grid = [0.01 * step for step in range(1, 151)]
    best = min(grid, key=after)
    bounds = torch.tensor([0.01]).double(), torch.tensor([math.inf]).double()
    found = float(learn({"w": w}, lambda: (loss, loss), bounds, settings))
    assert found == pytest.approx(best, abs=0.02)
    assert abs(best - 1) > 0.3


def test_the_gradients_norm_is_brought_under_its_bound() -> None:
    model = gpt(norm="none", bias=False)
    values, loss = wide(model), loss_of(model, IDS)
    settings = Settings(steps=150, gamma=30.0, lr=0.01)
    bounds = torch.full((len(values),), 0.01, dtype=torch.float64), torch.full((len(values),), math.inf)
    scales = learn(values, lambda: (loss, loss), bounds, settings)
    norms = [meta_gradient(values, each, loss, loss, Settings(gamma=math.inf))[1] for each in (bounds[0] * 100, scales)]
    assert norms[0] > 1.5 * settings.gamma
    assert norms[1] < 1.1 * settings.gamma
    assert float(scales.min()) >= 0.01


def test_only_scales_change_and_all_is_reproducible(monkeypatch: pytest.MonkeyPatch) -> None:
    in_few_steps(monkeypatch)
    models = [gpt(dropout=0.2) for _ in range(3)]
    before, state = copy.deepcopy(models[0].state_dict()), torch.random.get_rng_state()
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.transformer.h[1].mlp.c_fc.weight.requires_grad_(False)
        left = initlab.apply_recipe(model, "gradinit", batch=IDS, seed=seed)
        assert model.training and all(p.grad is None for p in model.parameters())
        assert "transformer.h.1.mlp.c_fc.weight" in left
        assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(state, torch.random.get_rng_state())
    changed = 0
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])
        if not before[name].any():
            assert not value.any()
            continue
        scale = float((value * before[name]).sum() / before[name].square().sum())
        torch.testing.assert_close(value, before[name] * scale, rtol=1e-5, atol=1e-7)
        changed += scale != pytest.approx(1, abs=1e-3)
    assert changed > 15
    assert not torch.equal(models[0].lm_head.weight, models[2].lm_head.weight)
    assert torch.equal(models[0].transformer.h[1].mlp.c_fc.weight, before["transformer.h.1.mlp.c_fc.weight"])


def test_a_batch_is_shuffled_and_cut_into_overlapping_thirds() -> None:
    ids = torch.arange(12)[:, None].expand(12, 3)
    inputs = Inputs(kwargs={"input_ids": ids, "attention_mask": ids * 0 + 1}, ids=ids, targets=ids + 1)
    generator = torch.Generator().manual_seed(0)
    first, second = halves(inputs, generator)
    assert first.ids is not None and second.ids is not None and first.targets is not None
    rows = [set(each.ids[:, 0].tolist()) for each in (first, second) if each.ids is not None]
    assert [len(each) for each in rows] == [8, 8] and len(rows[0] & rows[1]) == 4
    assert torch.equal(first.targets, first.ids + 1) and torch.equal(first.kwargs["input_ids"], first.ids)
    assert not torch.equal(halves(inputs, generator)[0].ids, first.ids)  # type: ignore[arg-type]
    short = Inputs(args=(ids[:2],), ids=ids[:2])
    assert halves(short, generator) == (short, short)
    squared = Inputs(args=(ids, torch.ones(3, 3)), ids=ids)
    assert halves(squared, generator) == (squared, squared)


def trained(model: nn.Module, steps: int) -> list[float]:
    """Loss on rows that nobody saw, after each step of Adam at 0.001."""
    optimizer, unseen, losses = torch.optim.Adam(model.parameters(), lr=1e-3), walk(32, 99), []
    for step in range(steps + 1):
        with torch.no_grad():
            losses.append(loss_of(model, unseen)({}).item())
        optimizer.zero_grad()
        loss_of(model, walk(12, 200 + step))({}).backward()
        optimizer.step()
    return losses


def test_a_badly_scaled_model_learns_faster_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    in_few_steps(monkeypatch, steps=250)
    models = [gpt(n_layer=6, tie_weights=False) for _ in range(2)]
    initlab.apply_recipe(models[1], "gradinit", batch=walk(24, 2))
    plain, learned = (trained(model, 20) for model in models)
    assert learned[1] < plain[1] - 0.1  # measured: 3.89 and 3.75
    assert learned[10] < plain[10] - 0.4  # 3.38 and 2.84
    assert learned[20] < plain[20] - 0.4  # 2.91 and 2.29


def test_models_in_16_bits_are_scaled_in_32(monkeypatch: pytest.MonkeyPatch) -> None:
    in_few_steps(monkeypatch, steps=5)
    model, exact = gpt().bfloat16(), gpt().bfloat16().float()
    for each in (model, exact):
        initlab.apply_recipe(each, "gradinit", batch=IDS)
    for (name, one), two in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.detach(), two.detach().bfloat16(), rtol=0, atol=0, msg=name)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))


def test_class_labels_are_a_loss_and_without_one_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    in_few_steps(monkeypatch)
    torch.manual_seed(0)
    model, x = Classifier(), torch.randn(9, 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError, match="gradinit needs a loss, and Classifier returned none on this batch"):
        initlab.apply_recipe(model, "gradinit", batch=x)
    with pytest.raises(RecipeError, match="the gradient isn't finite after 0 of 30 steps"):
        initlab.apply_recipe(model, "gradinit", batch=(x * math.inf, torch.arange(9) % 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    initlab.apply_recipe(model, "gradinit", batch=(x, torch.arange(9) % 3))
    assert not torch.equal(model.up.weight, before["up.weight"])


class Fused(torch.autograd.Function):
    """A kernel without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


class Kernel(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Fused.apply(self.up.weight.sum() + x))


def test_a_kernel_without_a_second_derivative_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (torch.randn(9, 8), torch.arange(9) % 3)
    in_few_steps(monkeypatch, steps=2)
    initlab.apply_recipe(Kernel(), "gradinit", batch=batch)  # the loss needs none
    in_few_steps(monkeypatch, steps=2, gamma=1e-3)
    with pytest.raises(RecipeError, match=r"GradInit can't differentiate by the scales: .*once_differentiable"):
        initlab.apply_recipe(Kernel(), "gradinit", batch=batch)
