"""Tiny models of transformers' own classes, from configs made small; nothing is downloaded."""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TASKS = {
    "causal": ("causal language models", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    "masked": ("masked language models", modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "seq2seq": ("sequence-to-sequence language models", modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),
}

LAYERS, VOCAB = 3, 512
WIDTH = 64  # what the sizes below are for

# What makes a config small, by the names that configs use. Only names that a config has are passed on.
# These grow with the width, ...
SIZES: dict[str, int] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "dim_model", "adapter_in_dim"), 64
    ),
    **dict.fromkeys(("head_dim", "attention_head_dim", "swa_head_dim", "global_head_dim", "kv_channels"), 16),
    **dict.fromkeys(("v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "swa_v_head_dim", "dim_head"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("decoder_ffn_dim", "dim_ff", "d_inner", "shared_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "index_head_dim"), 32),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 32),
    **dict.fromkeys(("lru_width", "attention_hidden_size", "conv_dim", "block_dim"), 64),
    **dict.fromkeys(("hidden_size_per_layer_input", "per_layer_input_dim", "laurel_rank", "adapter_rank"), 16),
    "rotary_dim": 8,
    "mamba_d_ssm": 128,
    **dict.fromkeys(("d_latents", "adapter_input_size", "audio_hidden_size"), 64),
    "word_embed_proj_dim": 64,
}
# ... and these don't.
COUNTS: dict[str, int | str | bool] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), LAYERS),
    **dict.fromkeys(("decoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_selected_experts", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(
        ("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "n_tokens", "encoder_hash_byte_group_vocab"),
        VOCAB,
    ),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length", "max_length"), 64),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "local_window_size", "attention_window_size"), 32),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_num_key_heads", "index_n_heads", "num_memory_blocks"), 2),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups", "attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 16),
    **dict.fromkeys(("num_self_attention_heads", "num_cross_attention_heads"), 4),
    "num_self_attends_per_block": LAYERS,
    "num_latents": 32,
    **dict.fromkeys(("num_nextn_predict_layers", "num_kv_shared_layers"), 0),
    "default_language": "en_XX",
    "index_topk": 8,
    "patch_size": 8,
    "image_size": 32,
    "use_mamba_kernels": False,
}
SMALL: dict[str, Any] = {**COUNTS, **SIZES}

# Tried in turn until a model is built and back-propagates.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4, "num_kv_heads": 4},
    {"head_dim": None, "attention_head_dim": None},  # None: leave it to the config
    {"head_dim": 32, "n_mamba_heads": 2, "mamba_num_heads": 8, "mamba_n_heads": 8, "mamba_d_head": 16, "d_inner": None},
    {"intermediate_size": 64, "chunk_size": None, "v_head_dim": None, "qk_nope_head_dim": None},
    {"num_experts_per_tok": 1, "num_key_value_heads": 4},
    {name: None for name in SMALL if "head" in name and not name.endswith("heads")},
    {"num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "n_group": None, "topk_group": None},
)
EXTRA: tuple[dict[str, Any], ...] = (
    {},
    {"is_decoder": True, "is_encoder_decoder": False},
    {"pad_token_id": 1, "mask_token_id": 4},
)


class TooSlow(BaseException):  # not an Exception, so that nothing on the way takes it for a model's error
    """One class took longer than its limit."""


def build(model_type: str, class_name: str, row: dict[str, Any], width: int = WIDTH) -> Any:
    """The first tiny model of the class that runs forward and backward; else the last that was built, or None.

    What failed is written into the row, under `built` and `runs`; `yes` where nothing did.
    """
    cls, model = getattr(transformers, class_name), None
    for variant in VARIANTS:
        small = widened({**SMALL, **variant}, width)
        for extra in EXTRA:
            try:
                torch.manual_seed(0)
                candidate = cls(tiny_config(model_type, cls.config_class, small, extra))
            except TooSlow:
                raise
            except Exception as error:
                row["built"] = row.get("built") or short(error)
                continue
            model, row["built"] = candidate, "yes"
            try:
                run(candidate)
            except TooSlow:
                raise
            except Exception as error:
                row["runs"] = row.get("runs") or short(error)
                continue
            row["runs"] = "yes"
            torch.manual_seed(0)
            return model
    return model


def widened(small: dict[str, Any], width: int) -> dict[str, Any]:
    """The same sizes for another width."""
    return {name: value * width // WIDTH if name in SIZES and value else value for name, value in small.items()}


def tiny_config(model_type: str, wanted: type, small: dict[str, Any], extra: dict[str, Any]) -> Any:
    """The config class's defaults with every size replaced, in sub-configs too."""
    config = shrink(CONFIG_MAPPING[model_type](), small, extra)
    parts = [config, *(part for part in vars(config).values() if isinstance(part, transformers.PretrainedConfig))]
    return next((part for part in parts if isinstance(part, wanted)), config)


def shrink(config: Any, small: dict[str, Any], extra: dict[str, Any]) -> Any:
    """A config of the same class with the small sizes."""
    cls = type(config)
    values: dict[str, Any] = {}
    depth = next((d for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
                  if isinstance(d := getattr(config, name, None), int)), 0)  # fmt: skip
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            values[name] = shrink(value, small, extra)
        elif name in extra:
            values[name] = extra[name]
        elif name in small and small[name] is not None and isinstance(value, int | None):
            values[name] = small[name]
        elif name.endswith("token_id") and isinstance(value, int) and value >= VOCAB and not special(name):
            values[name] = 1 + len(values) % 8
        elif name == "attn_layer_indices":
            values[name] = [1]
        elif name.endswith("token_id") and isinstance(value, list):
            values[name] = 1
        elif isinstance(value, list) and depth and len(value) == depth and not name.startswith("_"):
            values[name] = spread(value)
    return cls(**values)


def special(name: str) -> bool:
    """Ids that stand for pictures and sounds must not be met in a text."""
    return any(word in name for word in ("image", "audio", "video", "vision"))


def spread(values: list[Any]) -> list[Any]:
    """LAYERS of a list with one entry per layer, every kind of layer among them if they fit."""
    kinds = list({str(value): value for value in values}.values())
    if kinds == ["mamba"]:
        kinds.append("attention")
    return [kinds[place % len(kinds)] for place in range(LAYERS)]


def run(model: Any) -> None:
    """The model's own forward and backward, without initlab."""
    ids = torch.randint(16, VOCAB, (2, 32), generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"input_ids": ids}
    if "use_cache" in signature(model):
        given["use_cache"] = False
    if "decoder_input_ids" in signature(model) and getattr(model.config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids
    logits = model(**given).logits
    if not torch.isfinite(logits).all():
        raise ValueError("logits aren't finite")
    logits = logits[:, : ids.shape[1]]  # Perceiver's are as many as it has positions
    torch.nn.functional.cross_entropy(logits.float().flatten(0, -2), ids.flatten()).backward()
    model.zero_grad(set_to_none=True)


def signature(model: Any) -> set[str]:
    """Names of the forward's arguments."""
    return set(inspect.signature(model.forward).parameters)


def short(error: Exception) -> str:
    """An error in one line."""
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]
