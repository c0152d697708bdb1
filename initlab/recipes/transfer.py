"""Parametrisations whose best learning rate is meant to hold over width, or over width and depth.

The base is the size that rates are tuned at: there, multipliers of width and depth are 1; the std of the weights
doesn't depend on it. Rates are those of AdamW, which multiplies its decay with the rate once more.
"""

from __future__ import annotations

from collections.abc import Callable

from initlab.recipes.base import OUTPUTS, VECTORS, Adam, Base, Constant, Dims, Distribution, Normal, Role
from initlab.recipes.by_role import by_role, wiring
from initlab.recipes.registry import recipe

# what the papers call matrix-like: both sides grow with the width
_HIDDEN = frozenset(Role) - {Role.TOKEN_EMBED, Role.POS_EMBED, Role.UNEMBED, Role.ROUTER, Role.OTHER, Role.GATE}
_HIDDEN -= frozenset(VECTORS)
_BASE = Base(n_layer=2, n_embd=256)
_WIDTH = "base_embd / n_embd"
_GROWTH = "n_embd / base_embd"  # of the decay of what has its rate divided: rate × decay stays as it is
# q·k grows with the head's size once q and k are aligned, not with its root
_ATTENTION = "sqrt(base_head) * n_head / n_embd"
_AT_BASE = "Attention has 1/√(head size) at the base, as the package mup advises; nanoGPT-mup has 1/(head size) at any"
# a hyperparameter of its own: what the source has at 256 features, at every width; rates are relative to the base
_SIGMA = "0.02 * sqrt(256 / n_embd)"


def _drawn(role: Role, dims: Dims, hidden: str, outputs: str, embedding: str = "0.02") -> Distribution:
    """Say of blocks' matrices, those of them that write to the stream, and embeddings and head."""
    beside = Normal(dims(embedding))
    matrix = Normal(dims(outputs if role in OUTPUTS else hidden)) if role in _HIDDEN else beside
    return by_role(role, matrix=matrix, tokens=beside)


def rates(
    hidden: str, *, decay: str = _GROWTH, eps: str = "1", vectors: str = "1", head: str = "1"
) -> Callable[[Role, Dims], Adam]:
    """Make an optimizer part; formulas are 1 at the base.

    The final norm's gain counts as one of the blocks': a recipe isn't told where a vector stands.

    Args:
        hidden: of the rate of blocks' matrices.
        decay: of these matrices' decay.
        eps: of every parameter's, since gradients shrink with the logits' and the branches' multipliers.
        vectors: of the rate of gains and biases.
        head: of an untied head's rate.
    """

    def adam(role: Role, dims: Dims) -> Adam:
        if role in _HIDDEN:
            return Adam(lr=dims(hidden), weight_decay=dims(decay), eps=dims(eps))
        if role in VECTORS:
            return Adam(lr=dims(vectors), eps=dims(eps))
        return Adam(lr=dims(head if role == Role.UNEMBED else "1"), eps=dims(eps))

    return adam


_MUP = {"attention_multiplier": _ATTENTION, "logit_multiplier": _WIDTH}


@recipe(
    "mup",
    family="transfer",
    source="Yang et al. 2022, Tensor Programs V, 2203.03466, table 8 (Adam); as in EleutherAI/nanoGPT-mup "
    "model.py@b2a5e60 (2025), lines 63-68, 140-147, 182-196, 281-299",
    base=_BASE,
    wiring=wiring(**_MUP),
    optimizer=rates(_WIDTH),
    note="decay of the blocks' matrices grows with the width, so that rate × decay stays as it is, as on that "
    f"repository's branch completep; the lines above leave it. {_AT_BASE}",
)
def mup(role: Role, dims: Dims) -> Distribution:
    """nanogpt with 0.32/√width in the blocks (0.02 at 256), Adam's rate there and logits ∝ 1/width."""
    return _drawn(role, dims, _SIGMA, f"{_SIGMA} / sqrt(2 * n_layer)")


@recipe(
    "mup-package",
    family="transfer",
    source="microsoft/mup@1981497 (2022): mup/init.py, layer.py (MuReadout), optim.py (MuAdam); README: query and "
    "readout at 0, attention 8/head_size",
    base=_BASE,
    wiring=wiring(**_MUP, tie_weights=False),
    optimizer=rates(_WIDTH),
)
def mup_package(role: Role, dims: Dims) -> Distribution:
    """mup with queries and an untied head at 0, as mup's README advises: no scores and no logits at first."""
    if role in (Role.ATTN_Q, Role.UNEMBED):
        return Constant(0.0)
    return _drawn(role, dims, _SIGMA, f"{_SIGMA} / sqrt(2 * n_layer)")


@recipe(
    "depth-mup",
    family="transfer",
    source="Yang et al. 2023, Tensor Programs VI, 2310.02244; as α = 0.5 in EleutherAI/nanoGPT-mup, branch "
    "completep@6f8bc3b (2025), model.py lines 113-118, 168-177, 331-362",
    base=_BASE,
    wiring=wiring(**_MUP, residual_multiplier="sqrt(base_layer / n_layer)"),
    optimizer=rates(
        "base_embd / n_embd * sqrt(base_layer / n_layer)",
        vectors="sqrt(base_layer / n_layer)",
        eps="base_embd / n_embd * sqrt(base_layer / n_layer)",
    ),
    note=f"the paper's blocks have one layer; with two and more its rate isn't claimed to hold over depth. {_AT_BASE}",
)
def depth_mup(role: Role, dims: Dims) -> Distribution:
    """mup with branches × 1/√depth, and Adam's rates in the blocks × 1/√depth."""
    return _drawn(role, dims, _SIGMA, _SIGMA)


@recipe(
    "completep",
    family="transfer",
    source="Dey et al. 2025, CompleteP, 2505.01618; as in EleutherAI/nanoGPT-mup, branch "
    "completep@6f8bc3b (2025), model.py lines 113-118, 168-177, 331-362",
    base=_BASE,
    wiring=wiring(**_MUP, residual_multiplier="base_layer / n_layer"),
    optimizer=rates(_WIDTH, eps="base_embd / n_embd * base_layer / n_layer"),
    note=_AT_BASE,
)
def completep(role: Role, dims: Dims) -> Distribution:
    """mup with branches × 1/depth; Adam's rates don't depend on depth."""
    return _drawn(role, dims, _SIGMA, _SIGMA)


def _unit_rates(role: Role, dims: Dims) -> Adam:
    """As scale of the weights × rate of the unit-scaled ones; divided by the same at the base.

    Decay is independent of the rate (optim.py scaled_parameters): rate × decay of every matrix stays as it is.
    """
    if role in _HIDDEN:
        growth = "n_embd / base_embd * sqrt(n_layer / base_layer)"
        return Adam(lr=dims("base_embd / n_embd * sqrt(base_layer / n_layer)"), weight_decay=dims(growth))
    if role in (Role.TOKEN_EMBED, Role.POS_EMBED):
        return Adam(lr=dims("sqrt(base_embd / n_embd)"), weight_decay=dims("sqrt(n_embd / base_embd)"))
    return Adam(lr=dims(_WIDTH), weight_decay=dims(_GROWTH)) if role == Role.UNEMBED else Adam()


@recipe(
    "u-mup",
    family="transfer",
    source="Blake et al. 2024, u-μP, 2407.17465, tables 2 and 3; graphcore-research/unit-scaling@a7b5b3c: "
    "functional.py lines 191-270, 396-530, optim.py lr_scale_func_adam",
    base=_BASE,
    wiring=wiring(attention_multiplier=_ATTENTION, residual_multiplier="1 / sqrt(n_layer)", tie_weights=False),
    optimizer=_unit_rates,
    note="the same function and Adam's same updates, with the scale of each op moved into the std of its matrix and "
    "its rate (abc-symmetry), multipliers of 1, and a stream that isn't kept at unit variance, which no pre-norm sees; "
    "gradients and weights are not of unit scale, which u-μP is for in low precision. Without its scaled softmax",
)
def u_mup(role: Role, dims: Dims) -> Distribution:
    """Unit-scaled mup: 1/√fan_in in every matrix, embeddings at 1, an untied head at 1/n_embd."""
    if role == Role.UNEMBED:
        return Normal(dims("1 / fan_in"))
    return _drawn(role, dims, "1 / sqrt(fan_in)", "1 / sqrt(fan_in)", "1")
