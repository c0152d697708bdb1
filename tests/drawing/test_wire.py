"""A recipe's wiring on models that were built without it, in a style of their own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.api.looking import anatomy_of, passed
from initlab.drawing.apply import apply_recipe
from initlab.drawing.wire import LEARNED, Multiplied
from initlab.errors import ProbeError, RecipeError
from initlab.recipes import Base, Recipe, registry
from initlab.wiring import Attention, Wiring

pytestmark = pytest.mark.integration

V, C = 64, 32


class Mixer(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.read = nn.ModuleList(nn.Linear(C, 3 * C if fused else C, bias=False) for _ in range(1 if fused else 3))
        self.merge = nn.Linear(C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        parts = self.read[0](x).chunk(3, -1) if len(self.read) == 1 else [each(x) for each in self.read]
        q, k, v = (each.view(B, T, 4, -1).transpose(1, 2) for each in parts)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.merge(z.transpose(1, 2).reshape(B, T, C))


class Layer(nn.Module):
    def __init__(self, fused: bool, post: bool) -> None:
        super().__init__()
        self.post, self.mix = post, Mixer(fused)
        self.norm_a, self.norm_b = nn.LayerNorm(C), nn.LayerNorm(C)
        self.up, self.down = nn.Linear(C, 3 * C), nn.Linear(3 * C, C)
        self.wide = nn.Sequential(self.up, nn.GELU(), self.down)

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.norm_a(x + self.mix(x))
            return self.norm_b(x + self.wide(x))
        x = x + self.mix(self.norm_a(x))
        return x + self.wide(self.norm_b(x))


class Own(nn.Module):
    def __init__(self, n_layer: int = 3, *, fused: bool = False, post: bool = False, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(V, C), nn.Embedding(16, C)
        self.layers = nn.ModuleList(Layer(fused, post) for _ in range(n_layer))
        self.last = nn.Identity() if post else nn.LayerNorm(C)
        self.out = nn.Linear(C, V, bias=False)
        if tied:
            self.out.weight = self.table.weight

    def forward(self, idx: Tensor) -> Tensor:
        x = self.table(idx) + self.places(torch.arange(idx.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.out(self.last(x))


def wiring_of(model: nn.Module) -> Wiring:
    (found,) = passed(model).wirings
    return found


def recipe(id: str = "mine", **options: Any) -> Recipe:
    def wiring(dims: initlab.recipes.Dims) -> dict[str, Any]:
        return {name: dims(value) if name in formulas else value for name, value in options.items()}

    formulas = {name for name, value in options.items() if isinstance(value, str) and "/" in value}
    rule = registry.get("nanogpt").rule
    return Recipe(id=id, family="user", summary="Mine.", source="here", rule=rule, wiring=wiring)


def scales(read: Callable[[Any], float]) -> Callable[[Wiring], list[float]]:
    return lambda wiring: [read(branch) for branch in wiring.branches()]


GIVEN: list[tuple[dict[str, Any], Callable[[Wiring], list[float]], list[float]]] = [
    ({"residual_multiplier": 0.25}, scales(lambda branch: branch.scale), [0.25] * 6),
    (
        {"residual_multiplier": "1 / (layer + 1)"},
        scales(lambda branch: branch.scale),
        [1, 1, 1 / 2, 1 / 2, 1 / 3, 1 / 3],
    ),
    ({"norm_multiplier": "1 / sqrt(layer + 1)"}, scales(lambda branch: branch.norm.scale), [1, 1, 0.5**0.5] * 1),
    ({"attention_multiplier": 0.125}, lambda w: [b.body.score_scale for b in w.branches() if _attends(b)], [0.125] * 3),
    ({"logit_multiplier": 0.5}, lambda w: [w.logit_scale], [0.5]),
    ({"embedding_multiplier": 8.0}, lambda w: [w.embed_scale * term.scale for term in w.terms or ()], [8.0, 8.0]),
    ({"gate": 0.125}, scales(lambda branch: branch.scale), [0.125] * 6),
    ({"gate": 0.0}, scales(lambda branch: branch.scale), [0.0] * 6),
    ({"layer_scale": 1e-3}, scales(lambda branch: float(branch.gain is not None)), [1.0] * 6),
]


def _attends(branch: Any) -> bool:
    return isinstance(branch.body, Attention)


@pytest.mark.parametrize(("options", "read", "expected"), GIVEN)
@pytest.mark.parametrize("fused", [False, True])
def test_a_multiplier_is_given_and_read_again(
    options: dict[str, Any], read: Callable[[Wiring], list[float]], expected: list[float], fused: bool
) -> None:
    model = Own(fused=fused)
    initlab.apply_recipe(model, recipe(**options))
    found = read(wiring_of(model))
    assert found[: len(expected)] == pytest.approx(expected, rel=1e-4)


def test_what_is_computed_is_what_was_written_out() -> None:
    model, idx = Own(), torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(1))
    initlab.apply_recipe(model, recipe(residual_multiplier=0.5, attention_multiplier=0.1, logit_multiplier=3.0))
    x = model.table(idx) + model.places(torch.arange(16))
    for layer in model.layers:
        q, k, v = (each(layer.norm_a(x)).view(2, 16, 4, 8).transpose(1, 2) for each in _plain(layer.mix.read))
        scores = 0.1 * q @ k.mT + torch.full((16, 16), -math.inf).triu(1)
        z = (scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 16, C)
        x = x + 0.5 * layer.mix.merge(z)
        x = x + 0.5 * layer.down(F.gelu(layer.up(layer.norm_b(x))))
    expected = 3 * F.linear(model.last(x), model.out.weight)
    assert torch.allclose(model(idx), expected, atol=1e-5)


def _plain(modules: nn.ModuleList) -> list[Callable[[Tensor], Tensor]]:
    return [lambda x, weight=each.weight: F.linear(x, weight) for each in modules]


class Woven(Mixer):
    """One matrix, whose output holds a head's query, key and value side by side, and a rotation behind it."""

    def __init__(self) -> None:
        super().__init__(True)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = self.read[0](x).view(B, T, 4, 3, -1).unbind(3)
        q, k = turned(q), turned(k)
        z = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
        return self.merge(z.transpose(1, 2).reshape(B, T, C))


def turned(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[1])[:, None, None] * torch.tensor([1.0, 0.3, 1.0, 0.3, 1.0, 0.3, 1.0, 0.3])
    one, other = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-other, one], -1) * angle.sin()


class Normed(Mixer):
    """Queries and keys have a norm each, behind one matrix."""

    def __init__(self) -> None:
        super().__init__(True)
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (each.view(B, T, 4, -1) for each in self.read[0](x).chunk(3, -1))
        q, k = self.norms[0](q), self.norms[1](k)
        z = F.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)), is_causal=True)
        return self.merge(z.transpose(1, 2).reshape(B, T, C))


def of_mixers(make: Callable[[], nn.Module]) -> Own:
    model = Own(2, fused=True)
    for layer in model.layers:
        layer.mix = make()
    return model


@pytest.mark.parametrize(("make", "at"), [(partial(Mixer, True), "read.0"), (Woven, "read.0"), (Normed, "norms.0")])
def test_queries_that_share_a_matrix_are_multiplied_alone(make: Callable[[], nn.Module], at: str) -> None:
    model, idx = of_mixers(make), torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(1))
    initlab.apply_recipe(model, recipe(attention_multiplier=0.1))
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    assert hooked == [f"layers.{layer}.mix.{at}" for layer in range(2)]
    found = [branch.body for branch in wiring_of(model).branches() if isinstance(branch.body, Attention)]
    assert [body.score_scale for body in found] == pytest.approx([0.1] * 2)
    assert all(body.rotary == (make is Woven) and body.value.fan_out == C for body in found)
    plain = copy.deepcopy(model)
    initlab.apply_recipe(plain, "nanogpt")
    attend = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: attend(*a, **k, scale=0.1))
        expected = plain(idx)
    torch.testing.assert_close(model(idx), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["GPT2", "GPTNeoX", "Falcon", "Bloom", "Phi3", "CodeGen"])
def test_mups_attention_is_given_to_the_fused_matrices_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96}
    special = {f"{token}_token_id": 0 for token in ("bos", "eos", "pad")}
    sizes |= {"Phi3": {"intermediate_size": 128}, "GPTNeoX": {"intermediate_size": 128}}.get(name, {})
    sizes |= {"rotary_dim": 8} if name == "CodeGen" else {}
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    config = getattr(transformers, f"{name}Config")(**sizes, **special)
    model = getattr(transformers, kind)(config).eval()
    assert isinstance(model, nn.Module)
    before = [b.body.score_scale for b in wiring_of(model).branches() if isinstance(b.body, Attention)]
    initlab.apply_recipe(model, recipe(attention_multiplier=1 / 16))
    after = [b.body.score_scale for b in wiring_of(model).branches() if isinstance(b.body, Attention)]
    assert before and after[-1] == pytest.approx(1 / 16)
    (pieces,) = {
        hook.pieces for m in model.modules() for hook in m._forward_hooks.values() if isinstance(hook, Multiplied)
    }
    woven = name in ("GPTNeoX", "Bloom")
    expected = [(48 * head, 48 * head + 16) for head in range(4)] if woven else [(0, 64)]
    assert list(pieces) == expected or name == "CodeGen"
    assert sum(end - first for first, end in pieces) == 64


def test_learned_numbers_are_parameters_that_start_where_the_recipe_says() -> None:
    model = Own()
    initlab.apply_recipe(model, recipe(layer_scale=1e-3))
    learned = {name: p for name, p in model.named_parameters() if LEARNED in name}
    assert len(learned) == 6
    assert all(torch.equal(p, torch.full((C,), 1e-3)) for p in learned.values())
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None for p in learned.values())


def test_alpha_of_deepnorm_is_given_to_a_post_norm_model_as_its_inverse() -> None:
    model = Own(post=True)
    initlab.apply_recipe(model, recipe(norm_placement="post", skip_multiplier=2.0))
    assert [branch.scale for branch in wiring_of(model).branches()] == pytest.approx([0.5] * 6)
    with pytest.raises(RecipeError, match=r"skip_multiplier needs a norm of the sum \(post-norm\)"):
        initlab.apply_recipe(Own(), recipe(skip_multiplier=2.0))


def test_another_draw_takes_the_place_of_the_first_and_a_plain_one_takes_it_off() -> None:
    model = Own()
    names = [name for name, _ in model.named_parameters()]
    for multiplier in (0.5, 0.25):
        initlab.apply_recipe(model, recipe(residual_multiplier=multiplier, gate=1.0 if multiplier == 0.5 else 0.5))
        initlab.apply_recipe(model, recipe(residual_multiplier=multiplier))
        assert [branch.scale for branch in wiring_of(model).branches()] == pytest.approx([multiplier] * 6)
    initlab.apply_recipe(model, "nanogpt")
    assert not any(module._forward_hooks for module in model.modules())
    assert [name for name, _ in model.named_parameters()] == names


def test_a_copy_is_wired_too_and_by_itself() -> None:
    model = Own()
    initlab.apply_recipe(model, recipe(gate=0.5))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_parameter(f"layers.0.mix.{LEARNED}").fill_(0.25)
    assert [branch.scale for branch in wiring_of(model).branches()] == pytest.approx([0.5] * 6)
    assert next(branch.scale for branch in wiring_of(twin).branches()) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"norm_placement": "post"}, r"norm_placement='post' \(it has 'pre'\), which can't be given from outside"),
        ({"norm": "rmsnorm"}, r"norm='rmsnorm' \(it has 'layernorm'\)"),
        ({"qk_norm": True}, r"qk_norm=True \(it has False\)"),
        ({"tie_weights": True}, r"tie_weights=True \(it has False\)"),
        ({"positions": "rotary"}, r"positions='rotary' \(it has 'learned'\)"),
        ({"head_scale": 1.0}, "head_scale is known of NanoGPTs alone"),
        ({"residual_multiplier": (0.5, 0.25)}, "residual_multiplier has numbers for 2 blocks, and there are more"),
    ],
)
def test_what_cant_be_given_is_refused_and_nothing_is_left(options: dict[str, Any], text: str) -> None:
    model = Own()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RecipeError, match=text) as caught:
        initlab.apply_recipe(model, recipe(**options, logit_multiplier=2.0))
    assert str(caught.value).startswith("mine is more than a draw, and Own can't be given its wiring: ")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert not any(isinstance(hook, Multiplied) for m in model.modules() for hook in m._forward_hooks.values())


def test_what_was_there_stays_where_a_recipe_is_refused_or_the_model_raises() -> None:
    class Fragile(Own):
        broken = False

        def forward(self, idx: Tensor) -> Tensor:
            if self.broken:
                raise ValueError("broken")
            return super().forward(idx)

    model, idx = Fragile(), torch.randint(V, (2, 16), generator=torch.Generator().manual_seed(1))
    initlab.apply_recipe(model, recipe(layer_scale=0.5, residual_multiplier=0.5))
    seen: list[Tensor] = []
    model.layers[0].down.register_forward_hook(lambda module, args, output: seen.append(output))
    expected, names = model(idx), [name for name, _ in model.named_parameters()]
    with pytest.raises(RecipeError, match="norm='rmsnorm'"):
        initlab.apply_recipe(model, recipe(norm="rmsnorm"))
    assert torch.equal(model(idx), expected)
    anatomy, model.broken = anatomy_of(model), True
    with pytest.raises(ProbeError, match="broken"):
        apply_recipe(model, recipe(residual_multiplier=0.25), 0, anatomy=anatomy, look=passed)
    model.broken = False
    assert torch.equal(model(idx), expected)
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(seen[-1], seen[0])  # the hooks are in the order that they were in


def test_learned_numbers_that_are_taken_off_arent_said_to_stay() -> None:
    model = Own()
    initlab.apply_recipe(model, recipe(layer_scale=0.5))
    assert initlab.apply_recipe(model, "nanogpt") == ()


@pytest.mark.parametrize("value", [math.nan, "x", (1.0, 2.0), True])
def test_a_multiplier_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"logit_multiplier is .*; expected a finite number"):
        initlab.apply_recipe(Own(), recipe(logit_multiplier=value))


def test_a_branch_times_0_is_given_and_read_again() -> None:
    model = Own()
    initlab.apply_recipe(model, recipe(residual_multiplier=0.0))
    assert [branch.scale for branch in wiring_of(model).branches()] == [0.0] * 6
    initlab.apply_recipe(model, recipe(residual_multiplier=0.5))
    assert [branch.scale for branch in wiring_of(model).branches()] == pytest.approx([0.5] * 6)


def _inline(layer: Layer, x: Tensor) -> Tensor:
    x = x + layer.mix(layer.norm_a(x))
    return x + F.linear(F.gelu(F.linear(layer.norm_b(x), layer.up.weight)), layer.down.weight)


def test_a_model_whose_branch_is_no_modules_output_is_refused() -> None:
    model = Own()
    for layer in model.layers:
        layer.forward = partial(_inline, layer)
    with pytest.raises(RecipeError, match="can't be given its wiring"):
        initlab.apply_recipe(model, recipe(residual_multiplier=0.5))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("id", ["mup", "depth-mup", "completep"])
def test_a_parametrisation_is_drawn_into_a_model_of_ones_own(id: str) -> None:
    model = Own(4, tied=True)
    entry = replace(registry.get(id), base=Base(n_layer=2, n_embd=16))
    initlab.apply_recipe(model, replace(entry, id=f"my-{id}"))
    wiring = wiring_of(model)
    expected = {"mup": 1.0, "depth-mup": 0.5**0.5, "completep": 0.5}[id]
    assert [branch.scale for branch in wiring.branches()] == pytest.approx([expected] * 8)
    assert wiring.logit_scale == pytest.approx(0.5)
