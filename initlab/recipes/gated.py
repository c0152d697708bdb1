"""Schemes for many layers without norms, or with learned gates: blocks start as the identity, or close to it."""

from __future__ import annotations

from initlab.recipes.base import OUTPUTS, QKV, Constant, Dims, Distribution, Normal, Role, TruncNormal, Uniform
from initlab.recipes.by_role import by_role, fairseq, fairseq_wiring, wiring, xavier_uniform
from initlab.recipes.registry import recipe

_TFIXUP = "Huang et al. 2020, Improving Transformer Optimization Through Better Initialization (ICML); "
_TFIXUP_CODE = (
    "layer6ai-labs/T-Fixup@b17e166 (2021): fairseq/modules/transformer_layer.py lines {}, models/transformer.py 378-381"
)
_TFIXUP_NOTE = (
    "the code leaves q and k at fairseq's gain of 1/√2, the paper draws them with gain 1. Positions, sinusoids "
)
_TFIXUP_NOTE += "there, are 1/√n_embd if they are learned"
_SCALED = (Role.ATTN_V, *OUTPUTS, Role.MLP_IN, Role.MLP_GATE)
_WITHOUT_NORMS = fairseq_wiring(norm="none")


def _t_fixup(role: Role, dims: Dims, factor: str) -> Distribution:
    if role == Role.TOKEN_EMBED:
        return Normal(dims("1 / (sqrt(n_embd) * (9 * n_layer) ** 0.25)"))
    return fairseq(role, dims, xavier_uniform(dims, factor if role in _SCALED else ""))


@recipe(
    "t-fixup",
    family="depth",
    source=_TFIXUP + _TFIXUP_CODE.format("157-175"),
    wiring=_WITHOUT_NORMS,
    note=f"the decoder's, whose blocks there have a third branch, cross-attention; {_TFIXUP_NOTE}",
)
def t_fixup(role: Role, dims: Dims) -> Distribution:
    """No norms; Glorot uniform, values, outputs, MLP and tokens ÷ (9·n_layer)^¼."""
    return _t_fixup(role, dims, " / (9 * n_layer) ** 0.25")


@recipe(
    "t-fixup-encoder",
    family="depth",
    source=_TFIXUP + _TFIXUP_CODE.format("31-49"),
    wiring=_WITHOUT_NORMS,
    note=f"the encoder's, whose blocks have the two branches of a GPT's; {_TFIXUP_NOTE}",
)
def t_fixup_encoder(role: Role, dims: Dims) -> Distribution:
    """No norms; Glorot uniform, values, outputs and MLP × 0.67·n_layer^-¼, tokens ÷ (9·n_layer)^¼."""
    return _t_fixup(role, dims, " * 0.67 / n_layer ** 0.25")


@recipe(
    "fixup",
    family="depth",
    source="Zhang, Dauphin & Ma 2019, Fixup, 1901.09321, rules 1 to 3; hongyizhang/Fixup@f3fa449 "
    "transformer_zero.py lines 540-570, multihead_attention_zero.py reset_parameters, with 2·n_layer branches",
    wiring=fairseq_wiring(norm="none", gate=1.0),
    note="one learned multiplier a branch, from 1, and biases for its added scalars, from 0; the head isn't 0, as "
    "rule 1 has it of a classifier, and isn't in the code either",
)
def fixup(role: Role, dims: Dims) -> Distribution:
    """No norms, outputs at 0; Glorot uniform, q, k, v × B^(-1/6), the MLP × B^(-1/2), B = 2·n_layer branches."""
    if role in OUTPUTS:
        return Constant(0.0)
    if role == Role.ATTN_QKV or role in QKV:
        return xavier_uniform(dims, " / (2 * n_layer) ** (1 / 6)")
    if role in (Role.MLP_IN, Role.MLP_GATE):
        return xavier_uniform(dims, " / sqrt(2 * n_layer)")
    return fairseq(role, dims, xavier_uniform(dims))


@recipe(
    "rezero",
    family="depth",
    source="Bachlechner et al. 2020, ReZero, 2003.04887; majumderb/rezero@e2c94a8 (2021) rezero/transformer/rztx.py "
    "lines 47, 74-80; Glorot uniform as in tbachlechner/ReZero-examples@fe7e7ef",
    wiring=wiring(norm="none", gate=0.0),
    note="one number a branch; the code has one a block, which both of its branches share, and so twice its gradient",
)
def rezero(role: Role, dims: Dims) -> Distribution:
    """No norms, branches × a learned number from 0; Glorot uniform in every matrix, q, k and v as one."""
    if role == Role.ATTN_QKV:
        # torch.nn.MultiheadAttention draws the packed matrix
        return Uniform(dims("sqrt(6 / (fan_in + 3 * n_embd))"))
    return by_role(role, matrix=xavier_uniform(dims), tokens=xavier_uniform(dims))


@recipe(
    "skipinit",
    family="depth",
    source="De & Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity, 2002.10444: a "
    "learned scalar at the end of each branch, from 0; He's init",
    wiring=wiring(norm="none", gate=0.0, tie_weights=False),
    note="of convolutional networks, whose inputs are normalised: so are tokens + positions here",
)
def skipinit(role: Role, dims: Dims) -> Distribution:
    """No norms, branches × a learned number from 0; He normal in every matrix."""
    he = Normal(dims("sqrt(2 / fan_in)"))
    return by_role(role, matrix=he, tokens=Normal(dims("1 / sqrt(2)")), head=he)


@recipe(
    "layerscale-cait",
    family="depth",
    source="Touvron et al. 2021, Going deeper with Image Transformers, 2103.17239: ε = 0.1 up to depth 18, "
    "1e-5 at 24, 1e-6 beyond; facebookresearch/deit@7e160fe (2024) cait_models.py lines 134-147, 208-219",
    wiring=lambda dims: {"layer_scale": dims("0.1 if n_layer <= 18 else 1e-5 if n_layer <= 24 else 1e-6")},
    note="its smallest models of 36 blocks (XXS36) have 1e-5 in the code; the cut at ±2 is 100 std away. Without the "
    "class-attention layers",
)
def layerscale_cait(role: Role, dims: Dims) -> Distribution:
    """Branches × a learned number a channel, from 0.1, 1e-5 or 1e-6 by depth; N(0, 0.02) in every matrix."""
    return by_role(role, matrix=TruncNormal(dims("0.02"), 2.0), tokens=TruncNormal(dims("0.02"), 2.0))
