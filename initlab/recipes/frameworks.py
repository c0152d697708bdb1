"""What frameworks draw when nobody says how."""

from __future__ import annotations

from initlab.recipes.base import Constant, Dims, Distribution, Normal, Role, Uniform
from initlab.recipes.registry import recipe


@recipe(
    "torch-default",
    family="framework",
    source="torch 2.13 nn/modules/linear.py lines 117-128, sparse.py lines 179-181; tie order of nanoGPT model.py",
)
def torch_default(role: Role, dims: Dims) -> Distribution:
    """What torch's own modules draw: U(±1/√fan_in) for weights and biases, N(0, 1) for embeddings."""
    match role:
        case Role.TOKEN_EMBED if dims.tied:
            # nanoGPT assigns wte.weight = lm_head.weight, so the shared matrix keeps the Linear's draw.
            return Uniform(dims("1 / sqrt(n_embd)"))
        case Role.TOKEN_EMBED | Role.POS_EMBED:
            return Normal(1.0)
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS:
            return Constant(0.0)
        case _:
            return Uniform(dims("1 / sqrt(fan_in)"))
