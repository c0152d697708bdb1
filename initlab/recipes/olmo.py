"""The three inits of allenai/OLMo, all cut at three std."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Role, TruncNormal
from initlab.recipes.registry import recipe

SOURCE = "allenai/OLMo olmo/model.py@59a53e3"


def _olmo(role: Role, dims: Dims, std: str) -> Distribution:
    match role:
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return TruncNormal(dims(std), dims(f"3 * {std}"))


@recipe("olmo-mitchell", family="olmo", source=f"{SOURCE} lines 493-496, 716-718, 1183-1222: OLMo 1 (2024)")
def olmo_mitchell(role: Role, dims: Dims) -> Distribution:
    """1/√n_embd; attention's output 1/√(2·n_embd·(layer + 1)) and the MLP's 1/√(2·fan_in·(layer + 1)), by block."""
    std = {
        Role.ATTN_OUT: "1 / sqrt(2 * n_embd * (layer + 1))",
        Role.MLP_OUT: "1 / sqrt(2 * fan_in * (layer + 1))",
    }.get(role, "1 / sqrt(n_embd)")
    return _olmo(role, dims, std)


@recipe(
    "olmo-full-megatron",
    family="olmo",
    source=f"{SOURCE} lines 498-500, 719-721, 1186-1226 (2024), init_std 0.02: «the init used for Llama 2» (config.py)",
)
def olmo_full_megatron(role: Role, dims: Dims) -> Distribution:
    """0.02, both output projections 0.02/√(2·n_layer), an untied head 1/√n_embd."""
    std = {
        Role.ATTN_OUT: "0.02 / sqrt(2 * n_layer)",
        Role.MLP_OUT: "0.02 / sqrt(2 * n_layer)",
        Role.UNEMBED: "1 / sqrt(n_embd)",
    }.get(role, "0.02")
    return _olmo(role, dims, std)


@recipe(
    "olmo-normal",
    family="olmo",
    source=f"{SOURCE} lines 489-491; configs/peteish*: OLMo 2 (2024), init_std 0.02, init_cutoff_factor 3",
)
def olmo_normal(role: Role, dims: Dims) -> Distribution:
    """0.02 in every matrix, whatever the depth."""
    return _olmo(role, dims, "0.02")
