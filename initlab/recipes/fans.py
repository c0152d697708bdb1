"""Inits that go by the fan-in and fan-out of each matrix, applied to a transformer: q, k and v count one by one."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Orthogonal, Role, Uniform
from initlab.recipes.registry import recipe


def _by_fans(role: Role, matrix: Distribution, embedding: Distribution) -> Distribution:
    match role:
        case Role.TOKEN_EMBED | Role.POS_EMBED:
            return embedding
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return matrix


@recipe("xavier", family="fans", source="Glorot & Bengio 2010; torch.nn.init.xavier_normal_; q, k, v each as d×d")
def xavier(role: Role, dims: Dims) -> Distribution:
    """Glorot normal: √(2/(fan_in + fan_out)) in every linear weight, embeddings at 0.02."""
    return _by_fans(role, Normal(dims("sqrt(2 / (fan_in + fan_out))")), Normal(dims("0.02")))


@recipe(
    "nanodo",
    family="fans",
    source="google-deepmind/nanodo nanodo/model.py@003211b (2024), lines 27-29; codebase of Wortsman et al. 2023, "
    "2309.14322",
)
def nanodo(role: Role, dims: Dims) -> Distribution:
    """Glorot uniform in every linear weight, embeddings at 1/√n_embd."""
    return _by_fans(role, Uniform(dims("sqrt(6 / (fan_in + fan_out))")), Normal(dims("1 / sqrt(n_embd)")))


@recipe("kaiming", family="fans", source="He et al. 2015, 1502.01852; torch.nn.init.kaiming_normal_, mode fan_in, relu")
def kaiming(role: Role, dims: Dims) -> Distribution:
    """He normal: √(2/fan_in) in every linear weight, embeddings at 0.02."""
    return _by_fans(role, Normal(dims("sqrt(2 / fan_in)")), Normal(dims("0.02")))


@recipe("orthogonal", family="fans", source="Saxe et al. 2013, 1312.6120; torch.nn.init.orthogonal_, gain 1")
def orthogonal(role: Role, dims: Dims) -> Distribution:
    """Every linear weight (semi-)orthogonal, entries of std 1/√max(fan_in, fan_out); embeddings at 0.02."""
    return _by_fans(role, Orthogonal(dims("1")), Normal(dims("0.02")))


@recipe(
    "spectral",
    family="fans",
    source="Yang, Simon & Bernstein 2023, 2310.17813: spectral norm ∝ √(fan_out/fan_in); as in karpathy/nanochat "
    "gpt.py@3a5e0bc (2025), lines 188-194; its learning rates are no part of an init",
)
def spectral(role: Role, dims: Dims) -> Distribution:
    """min(1, √(fan_out/fan_in))/√fan_in in every linear weight; embeddings at 1, where tied as the head."""
    embedding = "1 / sqrt(n_embd) * min(1, sqrt(vocab_size / n_embd))" if dims.tied else "1"
    matrix = "1 / sqrt(fan_in) * min(1, sqrt(fan_out / fan_in))"
    if role in (Role.TOKEN_EMBED, Role.POS_EMBED):
        return Normal(dims(embedding))
    return _by_fans(role, Normal(dims(matrix)), Normal(1.0))
