"""What the closed form must know of a model beside its weights; None for one that isn't known for sure."""

from __future__ import annotations

from typing import Any

from torch import nn

from initlab.anatomy.look import Anatomy
from initlab.anatomy.sites import activation_name, dropout_in_force

# transformers' names of what the closed form knows under others
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}
_EXACT = ("gelu", "relu", "silu")
# Each checked against measurement: tests/measure/test_architectures.py. Others may scale, clip or reorder something.
_GPT2 = ("GPT2LMHeadModel",)
_LLAMA = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def architecture(anatomy: Anatomy, block_size: int) -> dict[str, Any] | None:
    """Tell what the weights don't show: activation, dropout in force, eps of the norms, as fields of `theory.Wiring`.

    Args:
        anatomy: of the model.
        block_size: tokens in the measured sequences; a sliding window must not cut them.
    """
    model = anatomy.model
    if anatomy.layout == "nanogpt" and not _is_of_transformers(model):
        activation = activation_name(model)
        return None if activation is None else {"activation": activation, "dropout": dropout_in_force(model)}
    if not _is_of_transformers(model):
        return None
    config: Any = model.config
    name = type(model).__name__
    if name in _GPT2:
        return _gpt2(config, model.training)
    return _llama(config, model.training, block_size) if name in _LLAMA else None


def _is_of_transformers(model: nn.Module) -> bool:
    return type(model).__module__.startswith("transformers.models.")


def _activation(name: Any) -> str | None:
    name = _ACTIVATIONS.get(name, name)
    return name if name in (*_EXACT, "gelu_tanh") else None


def _gpt2(config: Any, training: bool) -> dict[str, Any] | None:
    activation = _activation(config.activation_function)
    drops = {config.embd_pdrop, config.resid_pdrop, config.attn_pdrop}
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx and not config.add_cross_attention
    if activation is None or not plain or (training and len(drops) > 1):
        return None
    return {
        "activation": activation,
        "dropout": drops.pop() if training else 0.0,
        "eps": config.layer_norm_epsilon,
    }


def _llama(config: Any, training: bool, block_size: int) -> dict[str, Any] | None:
    activation = _activation(config.hidden_act)
    window = getattr(config, "sliding_window", None)
    cut = window is not None and window < block_size and getattr(config, "use_sliding_window", True)
    if activation is None or cut or (training and config.attention_dropout):
        return None
    return {"activation": activation, "dropout": 0.0, "eps": config.rms_norm_eps}
