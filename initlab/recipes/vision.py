"""Inits of vision and diffusion transformers, whose blocks are a GPT's."""

from __future__ import annotations

from initlab.recipes.base import QKV, Constant, Dims, Distribution, Normal, Role, TruncNormal, Uniform
from initlab.recipes.by_role import by_role, wiring, xavier_uniform
from initlab.recipes.registry import recipe

_PATCHES = "patches' embedding, a convolution, has no role here"


@recipe(
    "vit-timm",
    family="models",
    source="huggingface/pytorch-image-models (timm) vision_transformer.py: init_weights_vit_timm (2021 on), "
    "trunc_normal_ of std 0.02 cut at ±2; the same in facebookresearch/dino vision_transformer.py (2021), deit@7e160fe",
    note=f"the cut is 100 std away; {_PATCHES}",
)
def vit_timm(role: Role, dims: Dims) -> Distribution:
    """ViT as timm, DeiT and DINO draw it: 0.02 in every matrix, whatever the depth."""
    return by_role(role, matrix=TruncNormal(dims("0.02"), 2.0), tokens=TruncNormal(dims("0.02"), 2.0))


@recipe(
    "vit-jax",
    family="models",
    source="google-research/vision_transformer vit_jax/models_vit.py (2021): flax's Dense under xavier_uniform, "
    "posemb_init normal(0.02), head zeros; Dosovitskiy et al. 2020, 2010.11929",
    note=f"biases of the MLP, N(0, 1e-6) there, are 0; tokens, which it hasn't, are drawn as positions; {_PATCHES}",
)
def vit_jax(role: Role, dims: Dims) -> Distribution:
    """The original ViT: Glorot uniform in every matrix, positions at 0.02, an untied head at 0."""
    return by_role(role, matrix=xavier_uniform(dims), tokens=Normal(dims("0.02")), head=Constant(0.0))


@recipe(
    "dit",
    family="models",
    source="facebookresearch/DiT@ed81ce2 (2023) models.py lines 99-214: initialize_weights, adaLN-Zero; Peebles & Xie "
    "2022, 2212.09748",
    wiring=wiring(layer_scale=0.0, tie_weights=False),
    note="gates and the shifts and scales of norms are computed from what is conditioned on, by matrices that start at "
    f"0: here gates are learned numbers, from 0. Positions are fixed sinusoids there, 0.02 if learned; {_PATCHES}",
)
def dit(role: Role, dims: Dims) -> Distribution:
    """adaLN-Zero: every gate and the head at 0, Glorot uniform in every matrix, q, k and v as one; labels at 0.02."""
    if role == Role.ATTN_QKV or role in QKV:
        return Uniform(dims("sqrt(6 / (fan_in + 3 * n_embd))"))
    return by_role(role, matrix=xavier_uniform(dims), tokens=Normal(dims("0.02")), head=Constant(0.0))
