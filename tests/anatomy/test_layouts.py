"""Roles in layouts that nobody's names were made for: lists of lists, dictionaries, plain attributes, raw tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initlab.anatomy.roles import find_roles
from initlab.drawing.apply import apply_recipe
from initlab.recipes import Role, registry

V, T, D, NH, FF = 96, 24, 32, 4, 80


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


class RMS(nn.Module):
    """A norm whose class and gain are called something else."""

    def __init__(self, width: int = D):
        super().__init__()
        self.g = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.g


class Times(nn.Module):
    """Multiplies each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((D,), 1e-4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def holding(**parts: Any) -> nn.Module:
    out = nn.Module()
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            out.add_module(name, part)
        elif isinstance(part, Tensor):
            out.register_parameter(name, nn.Parameter(part))
        else:
            setattr(out, name, part)
    return out


def block(**more: Any) -> nn.Module:
    attention = holding(wq=linear(D, D), wk=linear(D, D // 2), wv=linear(D, D // 2), wo=linear(D, D))
    mlp = holding(w1=linear(D, FF), w2=linear(FF, D), w3=linear(D, FF))
    return holding(attention=attention, feed_forward=mlp, attention_norm=RMS(), ffn_norm=RMS(), **more)


def roles(model: nn.Module) -> dict[str, str]:
    return {place.name.removesuffix(".weight"): place.role.value for place in find_roles(model).parameters}


def layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {place.name: (place.dims.layer, place.dims.n_layer) for place in find_roles(model).parameters}


BLOCK = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_out",
    "feed_forward.w1": "mlp_gate",
    "feed_forward.w2": "mlp_out",
    "feed_forward.w3": "mlp_in",
    "attention_norm.g": "norm_gain",
    "ffn_norm.g": "norm_gain",
}


def dictionary() -> tuple[nn.Module, tuple[str, ...]]:
    layers = nn.ModuleDict({str(i): block() for i in range(3)})
    names = tuple(f"layers.{i}." for i in range(3))
    return holding(tok_embeddings=nn.Embedding(V, D), layers=layers, norm=RMS(), output=linear(D, V)), names


def attributes() -> tuple[nn.Module, tuple[str, ...]]:
    parts = {"tok": nn.Embedding(V, D), "first": block(), "second": block(), "third": block()}
    return holding(**parts, norm=RMS(), head=linear(D, V)), ("first.", "second.", "third.")


@pytest.mark.parametrize("make", [dictionary, attributes])
def test_blocks_in_a_dictionary_and_as_attributes_are_blocks(make: Any) -> None:
    model, names = make()
    found, numbered = roles(model), layers(model)
    assert "other" not in found.values()
    for layer, name in enumerate(names):
        assert {key.removeprefix(name): role for key, role in found.items() if key.startswith(name)} == BLOCK
        assert {numbered[key] for key in numbered if key.startswith(name)} == {(layer, 3)}
    apply_recipe(model, registry.get("nanogpt"), 0)
    assert model.get_submodule(names[1] + "attention_norm").g.eq(1).all()


class PreNorm(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(D), fn


def lucidrains(wrapped: bool) -> nn.Module:
    """A layer is a list: [PreNorm(attention), PreNorm(mlp)], or each branch is a layer [norm, branch, residual]."""

    def attention() -> nn.Module:
        return holding(to_q=linear(D, 48), to_kv=linear(D, 96), to_out=nn.Sequential(nn.Linear(48, D), nn.Dropout(0.1)))

    def mlp() -> nn.Module:
        return holding(net=nn.Sequential(nn.Linear(D, FF), nn.GELU(), nn.Dropout(0.1), nn.Linear(FF, D)))

    def one(branch: nn.Module) -> nn.Module:
        return nn.ModuleList([nn.ModuleList([RMS(), None]), branch, nn.Identity()])  # type: ignore[list-item]

    if wrapped:
        stack = nn.ModuleList([nn.ModuleList([PreNorm(attention()), PreNorm(mlp())]) for _ in range(3)])
    else:
        stack = nn.ModuleList([one(kind()) for _ in range(3) for kind in (attention, mlp)])
    tables = {"token_emb": holding(emb=nn.Embedding(V, D)), "pos_emb": holding(emb=nn.Embedding(T, D))}
    return holding(**tables, layers=holding(layers=stack), to_logits=linear(D, V))


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_layer_that_is_a_list_is_one_layer(wrapped: bool) -> None:
    model = lucidrains(wrapped)
    found = roles(model)
    last = "layers.layers.2.0.fn." if wrapped else "layers.layers.4.1."
    other = "layers.layers.2.1.fn." if wrapped else "layers.layers.5.1."
    assert "other" not in found.values()
    assert [found[last + n] for n in ("to_q", "to_kv", "to_out.0")] == ["attn_q", "attn_qkv", "attn_out"]
    assert [found[other + n] for n in ("net.0", "net.3")] == ["mlp_in", "mlp_out"]
    assert (found["token_emb.emb"], found["pos_emb.emb"], found["to_logits"]) == ("token_embed", "pos_embed", "unembed")
    assert layers(model)[other + "net.3.weight"] == (2, 3)
    place = next(p for p in find_roles(model).parameters if p.name == last + "to_kv.weight")
    assert [(rows, role.value) for rows, role, _ in place.parts] == [(48, "attn_k"), (48, "attn_v")]


def test_raw_tensors_of_heads() -> None:
    """TransformerLens: (n_heads, d_model, d_head), and back."""
    attn = holding(W_Q=torch.ones(NH, D, 6), W_K=torch.ones(NH, D, 6), W_V=torch.ones(NH, D, 6))
    attn.register_parameter("W_O", nn.Parameter(torch.ones(NH, 6, D)))
    attn.register_parameter("b_Q", nn.Parameter(torch.ones(NH, 6)))
    mlp = holding(W_in=torch.ones(D, FF), b_in=torch.ones(FF), W_out=torch.ones(FF, D), b_out=torch.ones(D))
    model = holding(
        embed=holding(W_E=torch.ones(V, D)),
        pos_embed=holding(W_pos=torch.ones(T, D)),
        blocks=nn.ModuleList([holding(attn=attn, mlp=mlp, ln1=RMS())]),
        unembed=holding(W_U=torch.ones(D, V), b_U=torch.ones(V)),
    )
    found = {place.name.rpartition(".")[2]: place for place in find_roles(model).parameters}
    sizes = {name: (place.role.value, place.dims.fan_in, place.dims.fan_out) for name, place in found.items()}
    assert {name: sizes[name] for name in sizes if name.startswith("W")} == {
        "W_E": ("token_embed", V, D),
        "W_pos": ("pos_embed", T, D),
        "W_Q": ("attn_q", D, 24),
        "W_K": ("attn_k", D, 24),
        "W_V": ("attn_v", D, 24),
        "W_O": ("attn_out", 24, D),
        "W_in": ("mlp_in", D, FF),
        "W_out": ("mlp_out", FF, D),
        "W_U": ("unembed", D, V),
    }
    assert {name: sizes[name][0] for name in sizes if name.startswith("b")} == dict.fromkeys(
        ("b_Q", "b_in", "b_out", "b_U"), "bias"
    )


def test_what_is_left_beside_query_key_and_value_is_the_output() -> None:
    mix = holding(query=linear(D, D), keyval=linear(D, 2 * D), merge=linear(D, D))
    model = holding(e=nn.Embedding(V, D), h=nn.ModuleList([holding(mix=mix, n=RMS())]))
    assert {n.removeprefix("h.0.mix."): r for n, r in roles(model).items() if "mix" in n} == {
        "query": "attn_q",
        "keyval": "attn_qkv",
        "merge": "attn_out",
    }


def test_a_partner_of_the_gate_is_no_output() -> None:
    """litgpt: silu(fc_1 x) · fc_2 x."""
    mlp = holding(fc_1=linear(D, FF), fc_2=linear(D, FF), proj=linear(FF, D))
    found = roles(holding(wte=nn.Embedding(V, D), h=nn.ModuleList([holding(mlp=mlp, norm_1=RMS())])))
    assert [found[f"h.0.mlp.{name}"] for name in ("fc_1", "fc_2", "proj")] == ["mlp_gate", "mlp_in", "mlp_out"]


def test_other_uses_are_never_pooled_with_the_streams() -> None:
    gamma, gate = torch.full((D,), 1e-5), torch.zeros(())
    inside = block(
        ls=Times(),
        gamma_1=gamma,
        resid_gate=gate,
        adaLN_modulation=nn.Sequential(nn.SiLU(), nn.Linear(D, 6 * D)),
        conv=nn.Conv1d(D, D, 3),
        mixer=holding(in_proj=linear(D, 128), A_log=torch.ones(64, 16), D=torch.ones(64), dt_bias=torch.ones(64)),
    )
    inside.attention.wq = holding(base_layer=linear(D, D), lora_A=linear(D, 4), lora_B=linear(4, D))
    model = holding(
        wte=nn.Embedding(V, D),
        value_embeds=nn.ModuleDict({"0": nn.Embedding(V, D), "1": nn.Embedding(V, D)}),
        y_embedder=nn.Embedding(V, D),
        patch_embed=nn.Conv2d(3, D, 4),
        layers=nn.ModuleList([inside, block()]),
        lm_head=linear(D, V),
        skip_weights=torch.ones(2),
    )
    found = roles(model)
    assert [name for name, role in found.items() if role == "token_embed"] == ["wte"]
    first = {name.removeprefix("layers.0."): role for name, role in found.items() if name.startswith("layers.0.")}
    gates = ("ls", "gamma_1", "resid_gate")
    assert {name: first[name] for name in gates} == dict.fromkeys(gates, "gate")
    assert found["skip_weights"] == "gate"
    assert first["attention.wq.base_layer"] == "attn_q"
    assert {name for name, role in first.items() if role == "other"} == {
        "adaLN_modulation.1",
        "adaLN_modulation.1.bias",
        "conv",
        "conv.bias",
        "mixer.A_log",
        "mixer.D",
        "mixer.dt_bias",
        "mixer.in_proj",
        "attention.wq.lora_A",
        "attention.wq.lora_B",
    }
    assert {name for name, role in found.items() if role == "other" and not name.startswith("layers")} == {
        "value_embeds.0",
        "value_embeds.1",
        "y_embedder",
        "patch_embed",
        "patch_embed.bias",
    }


def test_tokens_that_are_learned_vectors_are_no_vocabulary() -> None:
    tokens = {"mask_token": torch.ones(1, D), "memory_tokens": torch.ones(4, D), "cls_token": torch.ones(1, 1, D)}
    found = roles(holding(**tokens, layers=nn.ModuleList([block(), block()])))
    assert {name: found[name] for name in tokens} == dict.fromkeys(tokens, "other")


def test_the_callers_word_gives_a_tensor_its_role_fans_and_parts() -> None:
    odd = holding(x=linear(D, 3 * D), y=linear(D, D), p=linear(D, FF), r=linear(D, FF), s=linear(FF, D))
    model = holding(e=nn.Embedding(V, D), h=nn.ModuleList([holding(a=odd, n=RMS())]))
    said = {"h.*.a.x": "attn_qkv", "*.y": "attn_out", "*.p": "mlp_gate", "*.r": "mlp_in", "*.s": "mlp_out"}
    found = {place.name: place for place in find_roles(model, roles=said).parameters}
    assert {name.split(".")[3]: p.role.value for name, p in found.items() if ".a." in name} == {
        key.rpartition(".")[2]: role for key, role in said.items()
    }
    assert found["h.0.a.s.weight"].dims.fan_in == FF
    kept = next(p for p in find_roles(model, roles={"*.s": None}).parameters if p.name == "h.0.a.s.weight")
    assert (kept.role, kept.kept) == (Role.OTHER, True)
