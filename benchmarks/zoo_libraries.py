"""Small models of other libraries: litgpt's families, x-transformers with one flag at a time, TransformerLens.

Each library is imported when its models are asked for; one that isn't installed has no cases. They are pinned in the
extra `zoo`; litgpt asks for an older huggingface_hub than transformers does, and is installed without what it asks for:
`pip install --no-deps litgpt lightning lightning-utilities torchmetrics jsonargparse psutil`.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

from torch import nn
from zoo import HEADS, LAYERS, Case, D, T, V

LITGPT = (
    "pythia-14m", "stablelm-base-alpha-3b", "falcon-7b", "Falcon3-1B-Base", "phi-1_5", "Phi-3-mini-4k-instruct",
    "Llama-2-7b-hf", "Llama-3.2-1B", "Mistral-7B-v0.1", "Mixtral-8x7B-v0.1", "Gemma-2-2b", "Gemma-3-1b-it",
    "OLMo-2-1124-7B", "Qwen2.5-0.5B", "Qwen3-0.6B",
)  # fmt: skip


def litgpt_model(name: str) -> nn.Module:
    """One of litgpt's configs, made small in every size."""
    from litgpt import GPT, Config

    told = Config.from_name(name)
    grouped = told.n_query_groups != told.n_head
    size: dict[str, Any] = {
        "block_size": T, "n_layer": LAYERS, "n_embd": D, "n_head": HEADS, "head_size": D // HEADS,
        "n_query_groups": (1 if told.n_query_groups == 1 else 2) if grouped else HEADS,
        "vocab_size": V, "padded_vocab_size": V, "intermediate_size": 2 * D,
    }  # fmt: skip
    if told.sliding_window_size is not None:
        size["sliding_window_size"] = T // 2
    for indices in ("sliding_window_indices", "rope_indices"):
        if getattr(told, indices, None) is not None:
            size[indices] = [1, 1, 0]
    if told.n_expert:
        size["n_expert"] = 4
    if told.attention_scores_scalar:
        size["attention_scores_scalar"] = D // HEADS
    return GPT(Config.from_name(name, **size))


# x-transformers: flags of the layers; of these, ...
LAYER_FLAGS: dict[str, dict[str, Any]] = {
    "(none)": {},
    **{
        flag: {flag: True}
        for flag in (
            "use_scalenorm", "use_rmsnorm", "use_simple_rmsnorm", "use_dynamic_tanh", "use_derf", "alibi_pos_bias",
            "rel_pos_bias", "dynamic_pos_bias", "rotary_pos_emb", "rotary_xpos", "weight_tie_layers", "residual_attn",
            "macaron", "pre_and_post_norm", "attn_aggregated_residuals", "gate_residual", "orthog_residual",
            "scale_residual", "depth_scale_residual", "sandwich_norm", "softclamp_output", "zero_init_branch_output",
            "use_layerscale", "unet_skips", "integrate_layers", "reinject_input", "add_value_residual",
            "attn_flash", "attn_pre_talking_heads", "attn_post_talking_heads", "attn_head_scale", "attn_on_attn",
            "attn_gate_values", "attn_swiglu_values", "attn_qk_norm", "attn_qk_rmsnorm", "attn_value_rmsnorm",
            "attn_l2_distance", "attn_sigmoid", "attn_selective", "attn_one_kv_head", "attn_add_zero_kv",
            "attn_head_learned_sink", "attn_data_dependent_alibi", "attn_use_cope", "attn_softclamp_logits",
            "attn_laser", "attn_zero_init_output", "ff_glu", "ff_swish", "ff_relu_squared", "ff_post_act_ln",
            "ff_no_bias", "ff_zero_init_output",
        )
    },
    "pre_norm=False": {"pre_norm": False},
    "shift_tokens=1": {"shift_tokens": 1},
    "num_residual_streams=2": {"num_residual_streams": 2},
    "attn_kv_heads=2": {"attn_kv_heads": 2},
    "attn_num_mem_kv=4": {"attn_num_mem_kv": 4},
    "attn_sparse_topk=8": {"attn_sparse_topk": 8},
    "attn_max_attend_past=16": {"attn_max_attend_past": 16},
    "sandwich_coef=1": {"sandwich_coef": 1},
}  # fmt: skip
# ... flags of the wrapper, ...
WRAPPER_FLAGS: dict[str, dict[str, Any]] = {
    "tie_embedding": {"tie_embedding": True},
    "use_abs_pos_emb=False": {"use_abs_pos_emb": False},
    "scaled_sinu_pos_emb": {"scaled_sinu_pos_emb": True},
    "post_emb_norm": {"post_emb_norm": True},
    "l2norm_embed": {"l2norm_embed": True},
    "num_memory_tokens=4": {"num_memory_tokens": 4},
}
# ... and those with which layers don't just add to one stream.
NO_STREAM = {
    "gate_residual": "a GRU in place of the sum",
    "orthog_residual": "only what is orthogonal is added",
    "attn_aggregated_residuals": "each layer reads a mixture of all before it",
    "integrate_layers": "each layer reads a mixture of all before it",
    "num_residual_streams=2": "hyper-connections: several streams",
    "unet_skips": "a concatenation and a projection in the stream",
}


def x_transformer(layers: dict[str, Any], wrapper: dict[str, Any]) -> nn.Module:
    """A decoder of three layers; heads of the width over their number."""
    from x_transformers import Decoder, TransformerWrapper

    size: dict[str, Any] = {"dim": D, "depth": LAYERS, "heads": HEADS, "attn_dim_head": D // HEADS}
    return TransformerWrapper(num_tokens=V, max_seq_len=T, attn_layers=Decoder(**size, **layers), **wrapper)


LENS: dict[str, dict[str, Any]] = {
    "gpt2": {"act_fn": "gelu_new"},
    "no norm": {"act_fn": "relu", "normalization_type": None},
    "parallel, rotary": {
        "act_fn": "gelu", "positional_embedding_type": "rotary", "rotary_dim": 16, "parallel_attn_mlp": True,
    },
    "gated MLP, RMSNorm, grouped": {
        "act_fn": "silu", "positional_embedding_type": "rotary", "rotary_dim": D // HEADS, "gated_mlp": True,
        "normalization_type": "RMS", "n_key_value_heads": 2,
    },
    "bidirectional": {"act_fn": "gelu", "attention_dir": "bidirectional"},
    "attention alone": {"attn_only": True},
}  # fmt: skip


def lens_model(more: dict[str, Any]) -> nn.Module:
    """A HookedTransformer."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = {"n_layers": LAYERS, "d_model": D, "n_ctx": T, "d_head": D // HEADS, "n_heads": HEADS, "d_vocab": V}
        return HookedTransformer(HookedTransformerConfig(**size, **({"d_mlp": 4 * D} | more)))


def x_case(flag: str, layers: dict[str, Any], wrapper: dict[str, Any]) -> Case:
    """A row for one flag; `macaron` has two MLPs a layer."""
    kept = flag not in NO_STREAM
    make = partial(x_transformer, layers, wrapper)
    return Case("x-transformers", flag, make, stream=kept, plain=kept, why=NO_STREAM.get(flag, ""))


def lens_case(name: str, more: dict[str, Any]) -> Case:
    """A row for one config."""
    mlp = 0 if more.get("attn_only") else LAYERS
    why = "" if mlp else "no MLP"
    return Case("transformer-lens", name, partial(lens_model, more), mlp=mlp, plain=bool(mlp), why=why)


CASES = {
    "litgpt": [Case("litgpt", name, partial(litgpt_model, name)) for name in LITGPT],
    "x-transformers": [
        *(x_case(flag, layers, {}) for flag, layers in LAYER_FLAGS.items()),
        *(x_case(flag, {}, wrapper) for flag, wrapper in WRAPPER_FLAGS.items()),
    ],
    "transformer-lens": [lens_case(name, more) for name, more in LENS.items()],
}
