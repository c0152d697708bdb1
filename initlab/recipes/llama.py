"""Inits that Llama-like models are trained from; Meta released checkpoints, but no init."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role, TruncNormal
from initlab.recipes.registry import recipe


@recipe(
    "hf-llama",
    family="llama",
    source="huggingface/transformers 5.23.0 (2026) modeling_utils.py lines 2295-2315, configuration_llama.py line 72: "
    "initializer_range 0.02",
)
def hf_llama(role: Role, dims: Dims) -> Distribution:
    """N(0, 0.02) in every matrix, whatever the depth."""
    match role:
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(dims("0.02"))


@recipe(
    "torchtitan-llama3",
    family="llama",
    source="pytorch/torchtitan torchtitan/models/llama3/__init__.py@b5bcd76 (2026), lines 45-66, 95-106; its cut at ±2 "
    "is 100 std away, so left out",
)
def torchtitan_llama3(role: Role, dims: Dims) -> Distribution:
    """N(0, 0.02); outputs and the up projection 0.02/√(2·(layer + 1)), by block; embedding N(0, 1), head 1/√n_embd."""
    match role:
        # a tied matrix keeps the head's draw, which comes last
        case Role.TOKEN_EMBED if not dims.tied:
            return Normal(1.0)
        case Role.UNEMBED | Role.TOKEN_EMBED:
            return TruncNormal(dims("1 / sqrt(n_embd)"), dims("3 / sqrt(n_embd)"))
        # w3 of w2(silu(w1 x) * w3 x); w1, the gate, has 0.02
        case Role.ATTN_OUT | Role.MLP_OUT | Role.MLP_IN:
            return Normal(dims("0.02 / sqrt(2 * (layer + 1))"))
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(dims("0.02"))
