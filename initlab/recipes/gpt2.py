"""GPT-2's init as nanoGPT writes it, and the variations on its residual scaling that circulate."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role
from initlab.recipes.registry import recipe

NANOGPT_SOURCE = "karpathy/nanoGPT model.py@3adf61e, lines 140-168"
FOLKLORE = "circulates as advice; in no version of nanoGPT or minGPT (git log -S over both histories)"


def _gpt2(role: Role, dims: Dims, residual_std: str) -> Distribution:
    match role:
        case Role.ATTN_OUT | Role.MLP_OUT:
            return Normal(dims(residual_std))
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(dims("0.02"))


@recipe("nanogpt", family="gpt2", source=NANOGPT_SOURCE)
def nanogpt(role: Role, dims: Dims) -> Distribution:
    """GPT-2 as in nanoGPT: N(0, 0.02), both output projections 0.02/√(2·n_layer)."""
    return _gpt2(role, dims, "0.02 / sqrt(2 * n_layer)")


@recipe(
    "nanogpt-no-depth-scale",
    family="gpt2",
    source="what huggingface/transformers 5.14.1 drew for GPT-2 (#47458); openai/gpt-2 src/model.py@9b63575, line 50",
)
def nanogpt_no_depth_scale(role: Role, dims: Dims) -> Distribution:
    """nanogpt with 0.02 in the output projections too, whatever the depth."""
    return _gpt2(role, dims, "0.02")


@recipe(
    "gpt2-openai-release",
    family="gpt2",
    source="openai/gpt-2 src/model.py@9b63575 (2019), lines 50-56, 152-155: w_init_stdev 0.02 in every conv1d; the "
    "paper's 1/√N is not in it",
)
def gpt2_openai_release(role: Role, dims: Dims) -> Distribution:
    """The code that OpenAI released: no depth scaling, and positions at 0.01."""
    return Normal(dims("0.01")) if role == Role.POS_EMBED else _gpt2(role, dims, "0.02")


@recipe(
    "nanogpt-width-matched",
    family="gpt2",
    source="derived here (2026): keeps fan_in·σ² of GPT-2's smallest model, 768·0.02² = 0.31, at every width",
)
def nanogpt_width_matched(role: Role, dims: Dims) -> Distribution:
    """nanogpt with 0.02·√(768/n_embd) for 0.02 in the blocks' matrices, so that narrow models are as nonlinear."""
    match role:
        case Role.ATTN_OUT | Role.MLP_OUT:
            return Normal(dims("0.02 * sqrt(768 / n_embd) / sqrt(2 * n_layer)"))
        case Role.ATTN_QKV | Role.MLP_IN | Role.MLP_GATE:
            return Normal(dims("0.02 * sqrt(768 / n_embd)"))
        case _:
            return _gpt2(role, dims, "0.02")


@recipe("out-x0.02", family="gpt2", source=FOLKLORE)
def out_x002(role: Role, dims: Dims) -> Distribution:
    """nanogpt with output projections at 0.02 × 0.02: blocks start as almost the identity."""
    return _gpt2(role, dims, "0.02 * 0.02")


@recipe("out-xsqrt2overL", family="gpt2", source=FOLKLORE)
def out_xsqrt2over_l(role: Role, dims: Dims) -> Distribution:
    """nanogpt with output projections at 0.02·√(2/n_layer): twice nanogpt's std."""
    return _gpt2(role, dims, "0.02 * sqrt(2 / n_layer)")


@recipe("out-xinvsqrtL", family="gpt2", source=FOLKLORE)
def out_xinvsqrt_l(role: Role, dims: Dims) -> Distribution:
    """nanogpt with output projections at 0.02/√n_layer: √2 times nanogpt's std."""
    return _gpt2(role, dims, "0.02 / sqrt(n_layer)")


@recipe(
    "zero-out",
    family="gpt2",
    source="KellerJordan/modded-nanogpt records/track_1_short/2024-10-14_ModernArch, line 171; Fixup (1901.09321)",
)
def zero_out(role: Role, dims: Dims) -> Distribution:
    """nanogpt with output projections at 0: every block starts as the identity."""
    if role in (Role.ATTN_OUT, Role.MLP_OUT):
        return Constant(0.0)
    return _gpt2(role, dims, "0.02")


@recipe("std-0.02-over-sqrt-d", family="gpt2", source=FOLKLORE)
def std_002_over_sqrt_d(role: Role, dims: Dims) -> Distribution:
    """Every linear weight at 0.02/√n_embd, embeddings at 0.02: blocks that barely act."""
    if role in (Role.TOKEN_EMBED, Role.POS_EMBED):
        return Normal(dims("0.02"))
    if role in (Role.NORM_GAIN, Role.NORM_BIAS, Role.BIAS):
        return _gpt2(role, dims, "0.02")
    return Normal(dims("0.02 / sqrt(n_embd)"))
