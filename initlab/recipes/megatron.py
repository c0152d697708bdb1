"""The inits of Megatron-LM and of GPT-NeoX, its descendant."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role
from initlab.recipes.registry import recipe


def _two_stds(role: Role, dims: Dims, std: str, output: str) -> Distribution:
    """Megatron's pair: init_method, and output_layer_init_method for what writes into the stream."""
    match role:
        case Role.ATTN_OUT | Role.MLP_OUT:
            return Normal(dims(output))
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(dims(std))


@recipe(
    "megatron",
    family="megatron",
    source="NVIDIA/Megatron-LM megatron/model/utils.py@158a99c (2019): init_method_normal, scaled_init_method_normal; "
    "std 0.02, its default",
)
def megatron(role: Role, dims: Dims) -> Distribution:
    """N(0, 0.02), both output projections 0.02/√(2·n_layer): GPT-2's, as nanogpt has it."""
    return _two_stds(role, dims, "0.02", "0.02 / sqrt(2 * n_layer)")


@recipe(
    "small-init-wang-neox",
    family="megatron",
    source="EleutherAI/gpt-neox megatron/model/init_functions.py@05c4de3, small_init_init_method and wang_init_method; "
    "configs/20B.yml (2022); small init: Nguyen & Salazar 2019, 1910.05895",
)
def small_init_wang_neox(role: Role, dims: Dims) -> Distribution:
    """GPT-NeoX-20B: √(2/(5·n_embd)), both output projections 2/(n_layer·√n_embd)."""
    return _two_stds(role, dims, "sqrt(2 / (5 * n_embd))", "2 / (n_layer * sqrt(n_embd))")


@recipe(
    "small-init-wang-litgpt",
    family="megatron",
    source="Lightning-AI/litgpt litgpt/pretrain.py@0363060 initialize_weights (2024), from jzhang38/TinyLlama",
)
def small_init_wang_litgpt(role: Role, dims: Dims) -> Distribution:
    """TinyLlama and litgpt: √(2/(5·n_embd)), both output projections 1/(n_layer·√n_embd), half of GPT-NeoX's."""
    return _two_stds(role, dims, "sqrt(2 / (5 * n_embd))", "1 / (n_layer * sqrt(n_embd))")
