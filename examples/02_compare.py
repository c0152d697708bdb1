"""Compare inits of the same model, on the same random draw and the same text, over depths.

python examples/02_compare.py
"""

import initlab

comparison = initlab.compare(
    ["nanogpt", "nanogpt-no-depth-scale", "zero-out"],
    model=initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64),
    depths=[2, 4, 8],
    seeds=2,
)
print(comparison)

# the tables are pandas frames, one row per tensor: how much does each MLP write, by depth of the model?
writes = comparison.at("mlp_out").groupby(["recipe", "n_layer"], observed=True)["var"].mean().unstack()
print(writes.to_string(float_format="{:.2e}".format))
