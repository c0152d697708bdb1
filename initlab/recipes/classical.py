"""Inits from before transformers, applied to one."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role
from initlab.recipes.registry import recipe


@recipe("xavier", family="classical", source="Glorot & Bengio 2010; torch.nn.init.xavier_normal_; q, k, v each as d×d")
def xavier(role: Role, dims: Dims) -> Distribution:
    """Glorot normal: √(2/(fan_in + fan_out)) in every linear weight, embeddings at 0.02."""
    match role:
        case Role.TOKEN_EMBED | Role.POS_EMBED:
            return Normal(dims("0.02"))
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(dims("sqrt(2 / (fan_in + fan_out))"))
