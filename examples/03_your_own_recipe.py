"""A recipe of your own: a function from a parameter's role and sizes to a distribution.

    python examples/03_your_own_recipe.py
    initlab compare nanogpt examples/03_your_own_recipe.py:by_layer

(The command needs no registration: it reads the function from this file.)
"""

import initlab
from initlab.recipes import Constant, Dims, Distribution, Normal, Role


def by_layer(role: Role, dims: Dims) -> Distribution:
    """Output projections shrink with the block's own number instead of the model's depth."""
    match role:
        case Role.ATTN_OUT | Role.MLP_OUT:
            return Normal(dims("0.02 / sqrt(2 * (layer + 1))"))  # the formula is shown in tables as written here
        case Role.NORM_GAIN:
            return Constant(1.0)
        case Role.NORM_BIAS | Role.BIAS:
            return Constant(0.0)
        case _:
            return Normal(0.02)


if __name__ == "__main__":
    model = initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64)
    print(initlab.compare(["nanogpt", by_layer], model=model, depths=[2, 4, 8], seeds=2))
