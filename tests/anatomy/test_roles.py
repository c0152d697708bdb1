from __future__ import annotations

import importlib
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from initlab.anatomy.look import of
from initlab.anatomy.parameters import Parameter
from initlab.anatomy.roles import find_roles
from initlab.drawing.apply import apply_recipe, draw
from initlab.errors import RecipeError
from initlab.models.nanogpt import NanoGPT, NanoGPTConfig
from initlab.recipes import Constant, Dims, Distribution, Normal, Recipe, Role, registry

V, T, D, NH, FF = 96, 64, 32, 4, 48
BASE: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": 2,
    "num_attention_heads": NH,
    "intermediate_size": FF,
    "max_position_embeddings": T,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GQA = BASE | {"num_key_value_heads": 2, "head_dim": 8}
GPT = {"vocab_size": V, "n_embd": D, "n_layer": 2, "n_head": NH, "n_positions": T, "bos_token_id": 1, "eos_token_id": 2}
BART = {"vocab_size": V, "d_model": D, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": T}
BART |= {"encoder_attention_heads": NH, "decoder_attention_heads": NH, "encoder_ffn_dim": FF, "decoder_ffn_dim": FF}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": ("GPT2Config", GPT),
    "LlamaForCausalLM": ("LlamaConfig", GQA),
    "MistralForCausalLM": ("MistralConfig", GQA),
    "Qwen2ForCausalLM": ("Qwen2Config", GQA),
    "Qwen3ForCausalLM": ("Qwen3Config", GQA),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", GQA | {"num_experts": 4, "moe_intermediate_size": 24}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", BASE),
    "GPTJForCausalLM": ("GPTJConfig", GPT | {"rotary_dim": 4}),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", GPT),
    "CodeGenForCausalLM": ("CodeGenConfig", GPT | {"rotary_dim": 4}),
    "CTRLLMHeadModel": ("CTRLConfig", GPT | {"dff": FF}),
    "GemmaForCausalLM": ("GemmaConfig", GQA),
    "Gemma2ForCausalLM": ("Gemma2Config", GQA),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", GQA),
    "PhiForCausalLM": ("PhiConfig", BASE),
    "Phi3ForCausalLM": ("Phi3Config", GQA | {"pad_token_id": 0}),
    "FalconForCausalLM": ("FalconConfig", BASE | {"ffn_hidden_size": FF}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": V, "hidden_size": D, "n_layer": 2, "n_head": NH}),
    "OPTForCausalLM": ("OPTConfig", BASE | {"ffn_dim": FF, "word_embed_proj_dim": D, "pad_token_id": 1}),
    "MixtralForCausalLM": ("MixtralConfig", GQA | {"num_local_experts": 4}),
    "GptOssForCausalLM": ("GptOssConfig", GQA | {"num_local_experts": 4, "rope_parameters": {"rope_type": "default"}}),
    "MptForCausalLM": ("MptConfig", {"vocab_size": V, "d_model": D, "n_layers": 2, "n_heads": NH}),
    "StableLmForCausalLM": ("StableLmConfig", BASE),
    "CohereForCausalLM": ("CohereConfig", GQA),
    "Olmo2ForCausalLM": ("Olmo2Config", BASE),
    "OlmoeForCausalLM": ("OlmoeConfig", BASE | {"num_experts": 4}),
    "Starcoder2ForCausalLM": ("Starcoder2Config", GQA),
    "GraniteMoeForCausalLM": ("GraniteMoeConfig", GQA | {"num_local_experts": 4}),
    "PersimmonForCausalLM": ("PersimmonConfig", BASE),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": V, "d_model": D, "d_kv": 8, "d_ff": FF, "num_layers": 2, "num_heads": NH},
    ),
    "BartForConditionalGeneration": ("BartConfig", BART),
    "BertLMHeadModel": ("BertConfig", BASE | {"is_decoder": True, "pad_token_id": 0}),
}


def foreign(name: str, **changes: Any) -> nn.Module:
    pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of its own, at import and in configs
        transformers = importlib.import_module("transformers")
        config, sizes = MODELS[name]
        model = getattr(transformers, name)(getattr(transformers, config)(**(sizes | changes)))
    assert isinstance(model, nn.Module)
    return model


def assigned(model: nn.Module) -> list[Parameter]:
    return [place for place in find_roles(model).parameters if place.role != Role.OTHER]


def unassigned(model: nn.Module) -> list[str]:
    return [place.name for place in find_roles(model).parameters if place.role == Role.OTHER]


def by_name(model: nn.Module) -> dict[str, str]:
    return {place.name: place.role.value for place in assigned(model)}


def first_block(model: nn.Module, block: str) -> dict[str, str]:
    """Roles of the first block's matrices, and of what stands outside the blocks."""
    roles = by_name(model)
    layers = {place.name: place.layer for place in assigned(model)}
    return {
        name.removeprefix(block).removesuffix(".weight"): role
        for name, role in roles.items()
        if not role.startswith("norm") and role != "bias" and (layers[name] is None or name.startswith(block))
    }


LLAMA = {
    "model.embed_tokens": "token_embed",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "mlp_gate",
    "mlp.up_proj": "mlp_in",
    "mlp.down_proj": "mlp_out",
    "lm_head": "unembed",
}
TIED_LLAMA = {name: role for name, role in LLAMA.items() if name != "lm_head"}
ATTENTION = {name: role for name, role in LLAMA.items() if not name.startswith("mlp")}
MEGATRON = {"mlp.dense_h_to_4h": "mlp_in", "mlp.dense_4h_to_h": "mlp_out"}
FUSED = {"query_key_value": "attn_qkv", "dense": "attn_out"}
BY_HAND: dict[str, tuple[str, dict[str, str]]] = {
    "GPT2LMHeadModel": (
        "transformer.h.0.",
        {
            "transformer.wte": "token_embed",
            "transformer.wpe": "pos_embed",
            "attn.c_attn": "attn_qkv",
            "attn.c_proj": "attn_out",
            "mlp.c_fc": "mlp_in",
            "mlp.c_proj": "mlp_out",
        },
    ),
    "LlamaForCausalLM": ("model.layers.0.", LLAMA),
    "MistralForCausalLM": ("model.layers.0.", LLAMA),
    "Qwen2ForCausalLM": ("model.layers.0.", LLAMA),
    "GemmaForCausalLM": ("model.layers.0.", TIED_LLAMA),
    "GPTNeoXForCausalLM": (
        "gpt_neox.layers.0.",
        {f"attention.{name}": role for name, role in FUSED.items()}
        | MEGATRON
        | {"gpt_neox.embed_in": "token_embed", "lm_head": "unembed"},
    ),
    "PhiForCausalLM": (
        "model.layers.0.",
        {name: role for name, role in ATTENTION.items() if "o_proj" not in name}
        | {"self_attn.dense": "attn_out", "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out"},
    ),
    "FalconForCausalLM": (
        "transformer.h.0.",
        {f"self_attention.{name}": role for name, role in FUSED.items()}
        | MEGATRON
        | {"transformer.word_embeddings": "token_embed"},
    ),
    "BloomForCausalLM": (
        "transformer.h.0.",
        {f"self_attention.{name}": role for name, role in FUSED.items()}
        | MEGATRON
        | {"transformer.word_embeddings": "token_embed"},
    ),
    "OPTForCausalLM": (
        "model.decoder.layers.0.",
        {
            "model.decoder.embed_tokens": "token_embed",
            "model.decoder.embed_positions": "pos_embed",
            "self_attn.q_proj": "attn_q",
            "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v",
            "self_attn.out_proj": "attn_out",
            "fc1": "mlp_in",
            "fc2": "mlp_out",
        },
    ),
    "MixtralForCausalLM": (
        "model.layers.0.",
        ATTENTION | {"mlp.gate": "router", "mlp.experts.gate_up_proj": "mlp_in", "mlp.experts.down_proj": "mlp_out"},
    ),
    "T5ForConditionalGeneration": (
        "decoder.block.0.layer.",
        {
            "shared": "token_embed",
            **{f"{at}.{name}": f"attn_{name}" for at in ("0.SelfAttention", "1.EncDecAttention") for name in "qkv"},
            **{f"{at}.o": "attn_out" for at in ("0.SelfAttention", "1.EncDecAttention")},
            "0.SelfAttention.relative_attention_bias": "pos_embed",
            "2.DenseReluDense.wi": "mlp_in",
            "2.DenseReluDense.wo": "mlp_out",
        },
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_roles_of_a_foreign_model_are_those_read_from_its_code(name: str) -> None:
    block, expected = BY_HAND[name]
    model = foreign(name)
    assert first_block(model, block) == expected
    assert unassigned(model) == []
    for parameter, role in by_name(model).items():
        if parameter.endswith("bias"):
            assert role in ("bias", "norm_bias"), parameter
            assert (role == "norm_bias") == ("norm" in parameter or "ln_" in parameter), parameter
        elif "norm" in parameter or ".ln_" in parameter:
            assert role == "norm_gain", parameter


@pytest.mark.parametrize("name", MODELS)
def test_nine_in_ten_parameters_of_a_foreign_model_have_a_role_in_the_right_layer(name: str) -> None:
    model = foreign(name)
    assert len(assigned(model)) >= 9 * len(unassigned(model))
    for place in assigned(model):
        index = next((int(step) for step in place.name.split(".") if step.isdigit()), None)
        assert place.layer == index, place.name
        assert place.dims.n_layer == (3 if name.startswith("Bart") and "decoder" in place.name else 2) or index is None
        assert (place.dims.n_embd, place.dims.vocab_size, place.dims.n_head) == (D, V, NH), place.name


def test_fans_of_gpt2_are_those_of_nanogpt_though_its_matrices_are_turned() -> None:
    config = NanoGPTConfig(n_layer=2, n_head=NH, n_embd=D, vocab_size=V, block_size=T)
    ours, theirs = (
        of(NanoGPT(config)).all_parameters(),
        {place.name: place for place in of(foreign("GPT2LMHeadModel")).all_parameters()},
    )
    assert {place.name for place in ours} == set(theirs)
    for place in ours:
        assert (theirs[place.name].dims, theirs[place.name].role) == (place.dims, place.role), place.name


def test_nanogpt_on_hugging_faces_gpt2_is_what_it_is_on_nanogpt() -> None:
    model = foreign("GPT2LMHeadModel", n_layer=3, n_embd=64)
    apply_recipe(model, registry.get("nanogpt"), 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / math.sqrt(6) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
        else:
            assert (parameter == float(name.endswith("weight"))).all(), name


@pytest.mark.parametrize("recipe", ["xavier", "torch-default"])
@pytest.mark.parametrize("name", BY_HAND)
def test_a_recipe_can_be_applied_to_a_foreign_model(name: str, recipe: str) -> None:
    model = foreign(name)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    apply_recipe(model, registry.get(recipe), 0)
    for parameter_name, parameter in model.named_parameters():
        assert (parameter != 7).all(), parameter_name


def test_fan_sizes_and_draws_of_grouped_queries_and_fused_gates() -> None:
    model = foreign("Phi3ForCausalLM")
    places = {place.name: place for place in of(model).all_parameters()}
    fused = places["model.layers.0.self_attn.qkv_proj.weight"]
    assert [(rows, role.value, dims.fan_in, dims.fan_out) for rows, role, dims in fused.parts] == [
        (32, "attn_q", D, 32),
        (16, "attn_k", D, 16),
        (16, "attn_v", D, 16),
    ]
    assert fused.axis == 0
    gate = places["model.layers.0.mlp.gate_up_proj.weight"]
    assert (gate.dims.fan_in, gate.dims.fan_out, gate.parts) == (D, FF, ())
    apply_recipe(model, registry.get("xavier"), 0)
    weight = model.get_parameter(fused.name)
    for part, fan_out in zip(weight.split([32, 16, 16]), (32, 16, 16), strict=True):
        n = part.numel()
        assert part.std().item() == pytest.approx(math.sqrt(2 / (D + fan_out)), rel=4 / math.sqrt(2 * n))
    plain = draw(Normal(1.0), weight.shape, fused.name, 0)
    torch.testing.assert_close(weight[:32], plain[:32] * math.sqrt(2 / 64))  # the draw of any other recipe, scaled


def test_falcons_query_groups_are_interleaved_with_their_key_and_value() -> None:
    model = foreign("FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2)
    place = next(p for p in of(model).all_parameters() if p.name.endswith("query_key_value.weight"))
    assert [(rows, role.value, dims.fan_out) for rows, role, dims in place.parts] == [
        (16, "attn_q", 32),
        (8, "attn_k", 16),
        (8, "attn_v", 16),
    ] * 2


def test_experts_have_the_fans_of_one_expert_and_are_no_layers() -> None:
    for name in ("MixtralForCausalLM", "GptOssForCausalLM"):  # (E, out, in) and (E, in, out)
        places = {place.name: place for place in assigned(foreign(name))}
        up, down = (places[f"model.layers.1.mlp.experts.{side}"] for side in ("gate_up_proj", "down_proj"))
        assert (up.role, up.dims.fan_in, up.dims.fan_out, up.layer) == (Role.MLP_IN, D, FF, 1)
        assert (down.role, down.dims.fan_in, down.dims.fan_out) == (Role.MLP_OUT, FF, D)


def test_gemmas_gains_are_stored_less_one() -> None:
    model = foreign("Gemma2ForCausalLM")
    assert {p.offset for p in of(model).all_parameters() if p.role == Role.NORM_GAIN} == {1.0}
    apply_recipe(model, registry.get("nanogpt"), 0)
    assert (model.get_parameter("model.norm.weight") == 0).all()
    for name in ("LlamaForCausalLM", "CohereForCausalLM", "Qwen3ForCausalLM"):
        assert {p.offset for p in of(foreign(name)).all_parameters()} == {0.0}


# ---- models written by hand


class RMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight)


def linear(fan_in: int, fan_out: int) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=False)


def module(**parts: nn.Module) -> nn.Module:
    out = nn.Module()
    for name, part in parts.items():
        out.add_module(name, part)
    return out


def llama(blocks: list[nn.Module]) -> nn.Module:
    return module(tok_embeddings=nn.Embedding(V, D), layers=nn.ModuleList(blocks), norm=RMSNorm(D), output=linear(D, V))


def swiglu(width: int = FF) -> nn.Module:
    return module(w1=linear(D, width), w2=linear(width, D), w3=linear(D, width))


def llama_attention() -> nn.Module:
    return module(wq=linear(D, D), wk=linear(D, 16), wv=linear(D, 16), wo=linear(D, D))


def llama_block(**mlp: nn.Module) -> nn.Module:
    mlp = mlp or {"feed_forward": swiglu()}
    return module(attention=llama_attention(), attention_norm=RMSNorm(D), ffn_norm=RMSNorm(D), **mlp)


def matrix_roles(model: nn.Module, block: str) -> list[str]:
    return [
        place.role.value
        for place in of(model).all_parameters()
        if place.name.startswith(block) and place.role not in (Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS)
    ]


def test_llama_as_meta_wrote_it() -> None:
    model = llama([llama_block(), llama_block(), llama_block()])
    expected = ["attn_q", "attn_k", "attn_v", "attn_out", "mlp_gate", "mlp_out", "mlp_in"]
    assert matrix_roles(model, "layers.2.") == expected
    roles = by_name(model)
    assert (roles["tok_embeddings.weight"], roles["output.weight"], roles["norm.weight"]) == (
        "token_embed",
        "unembed",
        "norm_gain",
    )
    dims = of(model).all_parameters()[1].dims
    assert (dims.n_layer, dims.n_embd, dims.vocab_size, dims.block_size, dims.tied) == (3, D, V, 0, False)
    apply_recipe(model, registry.get("nanogpt"), 0)
    assert model.get_parameter("layers.0.attention.wo.weight").std().item() == pytest.approx(
        0.02 / math.sqrt(6), rel=0.1
    )


@pytest.mark.parametrize("square", [False, True])
def test_a_flat_block(square: bool) -> None:
    width = D if square else FF
    block = module(
        n=RMSNorm(D),
        wq=linear(D, D),
        wk=linear(D, D),
        wv=linear(D, D),
        wo=linear(D, D),
        fc1=linear(D, width),
        fc2=linear(width, D),
    )
    found = assigned(llama([block]))
    roles = {place.name.split(".")[2]: place.role.value for place in found if place.layer == 0}
    qkvo = {"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_out"}
    if square:  # only names tell them apart
        assert {name: roles.get(name) for name in qkvo} == qkvo
    else:
        assert roles == {"n": "norm_gain", **qkvo, "fc1": "mlp_in", "fc2": "mlp_out"}


def test_widths_decide_where_names_are_silent() -> None:
    block = module(
        a=module(x=linear(D, 3 * D), y=linear(D, D)),
        b=module(x=linear(D, FF), y=linear(FF, D)),
        c=RMSNorm(D),
        d=RMSNorm(D),
    )
    model = module(e=nn.Embedding(V, D), f=nn.ModuleList([block, block]), g=linear(D, V))
    assert matrix_roles(model, "f.0.") == ["attn_qkv", "attn_out", "mlp_in", "mlp_out"]
    assert by_name(model)["e.weight"] == "token_embed"
    assert by_name(model)["g.weight"] == "unembed"
    assert of(model).all_parameters()[1].dims.n_layer == 2  # one block, used twice


def test_what_neither_widths_nor_names_decide_has_no_role() -> None:
    block = module(a=module(p=linear(D, D), q2=linear(D, D), r=linear(D, D), s=linear(D, D)), n=RMSNorm(D))
    glu = module(a=module(p=linear(D, FF), r=linear(D, FF), s=linear(FF, D)), n=RMSNorm(D))
    assert len([name for name in unassigned(llama([block])) if ".a." in name]) >= 3
    unknown = unassigned(llama([glu]))
    assert unknown == ["layers.0.a.p.weight", "layers.0.a.r.weight"]  # one of them is the gate
    with pytest.raises(RecipeError, match=r"what layers\.0\.a\.p\.weight, layers\.0\.a\.r\.weight are for isn't known"):
        of(llama([glu])).all_parameters()


def test_experts_in_a_list_are_no_layers() -> None:
    def block() -> nn.Module:
        return llama_block(moe=module(gate=linear(D, 5), experts=nn.ModuleList([swiglu(24) for _ in range(5)])))

    places = {place.name: place for place in of(llama([block(), block()])).all_parameters()}
    assert places["layers.1.moe.gate.weight"].role == Role.ROUTER
    for expert in range(5):
        for name, role in (("w1", Role.MLP_GATE), ("w2", Role.MLP_OUT), ("w3", Role.MLP_IN)):
            place = places[f"layers.1.moe.experts.{expert}.{name}.weight"]
            assert (place.role, place.layer, place.dims.n_layer) == (role, 1, 2)


def test_a_mamba_block_is_no_transformer_block() -> None:
    mixer = module(in_proj=linear(D, 128), x_proj=linear(64, 10), dt_proj=linear(2, 64), out_proj=linear(64, D))
    unknown = unassigned(llama([module(mixer=mixer, n=RMSNorm(D))]))
    assert [name.split(".")[3] for name in unknown] == ["in_proj", "x_proj", "dt_proj", "out_proj"]


@pytest.mark.parametrize("kv_dim", [None, 24])
def test_torchs_own_transformer(kv_dim: int | None) -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(D, NH, FF, batch_first=True), 3, enable_nested_tensor=False
    )
    if kv_dim:
        for layer in encoder.layers:
            layer.self_attn = nn.MultiheadAttention(D, NH, kdim=kv_dim, vdim=kv_dim)
    qkv = ["attn_q", "attn_k", "attn_v"] if kv_dim else ["attn_qkv"]
    assert sorted(matrix_roles(encoder, "layers.1.")) == sorted([*qkv, "attn_out", "mlp_in", "mlp_out"])
    place = next(p for p in of(encoder).all_parameters() if p.role in (Role.ATTN_QKV, Role.ATTN_Q))
    assert (place.dims.fan_in, place.dims.fan_out, place.dims.n_layer, place.dims.n_head) == (D, D, 3, NH)
    apply_recipe(encoder, registry.get("nanogpt"), 0)
    both = nn.Transformer(D, NH, 2, 3, FF, batch_first=True)
    assert not unassigned(both)
    assert {p.stack: p.dims.n_layer for p in assigned(both) if p.stack} == {"encoder.layers": 2, "decoder.layers": 3}


def test_heads_in_a_list_blocks_in_a_sequential() -> None:
    def block() -> nn.Module:
        heads = nn.ModuleList([module(key=linear(D, 8), query=linear(D, 8), value=linear(D, 8)) for _ in range(NH)])
        net = module(net=nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D), nn.Dropout()))
        return module(sa=module(heads=heads, proj=nn.Linear(D, D)), ffwd=net, ln1=nn.LayerNorm(D), ln2=nn.LayerNorm(D))

    model = module(
        token_embedding_table=nn.Embedding(V, D),
        position_embedding_table=nn.Embedding(T, D),
        blocks=nn.Sequential(block(), block(), nn.LayerNorm(D)),
        ln_f=nn.LayerNorm(D),
        lm_head=nn.Linear(D, V),
    )
    roles = {place.name: (place.role.value, place.dims.n_layer) for place in assigned(model)}
    assert roles["blocks.1.ffwd.net.0.weight"] == ("mlp_in", 2)
    assert roles["blocks.1.ffwd.net.2.weight"] == ("mlp_out", 2)
    assert roles["blocks.0.sa.heads.3.key.weight"] == ("attn_k", 2)
    assert roles["position_embedding_table.weight"] == ("pos_embed", 2)
    assert roles["lm_head.bias"] == ("bias", 2)


def test_a_wrapped_model_and_layer_scale() -> None:
    class LayerScale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full((D,), 1e-5))

    model = module(module=llama([llama_block(feed_forward=swiglu(), ls1=LayerScale())]))
    assert by_name(model)["module.layers.0.ls1.gamma"] == "gate"
    assert unassigned(model) == []


def test_a_padding_row_is_zero_and_drawn_around() -> None:
    plain, padded = llama([llama_block()]), llama([llama_block()])
    padded.tok_embeddings = nn.Embedding(V, D, padding_idx=3)
    for model in (plain, padded):
        apply_recipe(model, registry.get("nanogpt"), 0)
    ours, theirs = (model.get_parameter("tok_embeddings.weight") for model in (padded, plain))
    assert (ours[3] == 0).all()
    assert torch.equal(ours[4:], theirs[4:])


def test_a_norm_is_asked_without_its_hooks_and_keeps_its_weight() -> None:
    model = llama([llama_block()])
    calls: list[object] = []
    norm = model.get_submodule("norm")
    norm.register_forward_hook(lambda *args: calls.append(args))
    weight = norm.weight
    before = torch.get_rng_state()
    of(model).all_parameters()
    assert calls == []
    assert norm.weight is weight
    assert (weight == 1).all()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rule_sees_the_role_of_every_part() -> None:
    seen: list[tuple[Role, int]] = []

    def rule(role: Role, dims: Dims) -> Distribution:
        seen.append((role, dims.fan_out))
        return Constant(0.0)

    apply_recipe(foreign("Phi3ForCausalLM"), Recipe(id="mine", family="user", summary="", source="", rule=rule), 0)
    assert {(Role.ATTN_Q, 32), (Role.ATTN_K, 16), (Role.ATTN_V, 16), (Role.ATTN_QKV, 16)} <= set(seen)
    assert (Role.MLP_IN, FF) in seen


def test_matrices_that_only_look_like_attentions_have_no_role() -> None:
    short_conv = module(in_proj=linear(D, 3 * D), out_proj=linear(D, D), conv=nn.Conv1d(D, D, 3))
    attention = llama_attention()
    attention.add_module("b_proj", linear(D, NH))  # a decay, a gate: whatever it is, no query
    unknown = unassigned(llama([llama_block(conv=short_conv), llama_block(), module(attn=attention, n=RMSNorm(D))]))
    assert [name.split(".", 2)[2] for name in unknown] == [
        "conv.in_proj.weight",
        "conv.out_proj.weight",
        "conv.conv.weight",
        "conv.conv.bias",
        "attn.b_proj.weight",
    ]


def test_an_embedding_tied_under_its_heads_name_is_a_token_embedding() -> None:
    head, table = linear(D, V), nn.Embedding(V, D, padding_idx=0)
    table.weight = head.weight
    place = of(module(lm_head=head, embed=table, layers=nn.ModuleList([llama_block()]))).all_parameters()[0]
    assert (place.name, place.role, place.padding_row) == ("lm_head.weight", Role.TOKEN_EMBED, 0)
    assert (place.dims.tied, place.dims.fan_in, place.dims.fan_out) == (True, V, D)


def test_two_attentions_in_a_list_are_one_layer() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(D, D) for _ in range(4))
            self.q_norm = RMSNorm(8)

    block = module(self_attn=nn.ModuleList([Attention(), Attention()]), mlp=swiglu(), norm=RMSNorm(D))
    model = llama([block, llama_block()])
    assert not unassigned(model)
    assert {(place.dims.n_layer, place.layer) for place in assigned(model) if "self_attn" in place.name} == {(2, 0)}


@pytest.mark.parametrize(
    ("kinds", "levels"),
    [
        ("amamam", [0, 0, 1, 1, 2, 2]),
        ("mamama", [0, 0, 0, 1, 1, 2]),  # an MLP before the first attention opens no layer
        ("aammamm", [0, 0, 0, 0, 1, 1, 1]),
        ("aaa", [0, 1, 2]),  # of one kind alone each is a layer
    ],
)
def test_blocks_of_one_branch_each_are_layers_in_pairs(kinds: str, levels: list[int]) -> None:
    def block(kind: str) -> nn.Module:
        return module(attention=llama_attention(), n=RMSNorm(D)) if kind == "a" else module(mlp=swiglu(), n=RMSNorm(D))

    found = [place for place in assigned(llama([block(kind) for kind in kinds])) if place.layer is not None]
    by_block = {place.layer: (place.dims.layer, place.dims.n_layer) for place in found}
    assert by_block == {number: (level, levels[-1] + 1) for number, level in enumerate(levels)}


def test_sizes_outside_the_blocks_are_the_models() -> None:
    model = llama([llama_block(), llama_block()])
    model.register_parameter("temperature", nn.Parameter(torch.tensor(1.0)))
    places = {place.name: place for place in find_roles(model).parameters}
    for name in ("tok_embeddings.weight", "norm.weight", "output.weight", "temperature"):
        place = places[name]
        assert (place.layer, place.stack) == (None, "")
        assert (place.dims.n_layer, place.dims.n_embd, place.dims.layer) == (2, D, 0)
    assert (places["output.weight"].dims.fan_in, places["output.weight"].dims.fan_out) == (D, V)
    assert (places["norm.weight"].dims.fan_in, places["norm.weight"].dims.fan_out) == (D, D)
    assert places["temperature"].role == Role.OTHER


def test_a_model_without_blocks_has_no_layers_and_its_own_widths() -> None:
    places = {place.name: place for place in find_roles(module(fc=linear(24, 12))).parameters}
    dims = places["fc.weight"].dims
    assert (dims.n_layer, dims.n_embd, dims.n_head, dims.fan_in, dims.fan_out) == (0, 24, 1, 24, 12)
    scalar = nn.Module()
    scalar.register_parameter("s", nn.Parameter(torch.tensor(1.0)))
    (place,) = find_roles(scalar).parameters
    assert (place.dims.n_layer, place.dims.n_embd, place.dims.fan_in) == (0, 1, 1)
