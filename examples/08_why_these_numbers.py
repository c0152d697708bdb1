# %% [markdown]
"""Why 0.02, and why 1/√(2·n_layer)? A lesson in seven cells; every number in its sentences is computed where it stands.

python examples/08_why_these_numbers.py            (or cell by cell, in an editor that knows # %%)
"""

# %% One matrix multiplies the variance by fan_in · σ²
import math

import numpy as np
import torch

import initlab
from initlab.judge.activations import gelu

torch.manual_seed(0)
sigma, d = 0.02, 768
x = torch.nn.functional.layer_norm(torch.randn(4096, d), (d,))  # what every block sees: variance 1
y = x @ (sigma * torch.randn(d, d))
print(f"1. A vector of variance {x.var():.2f} through a {d}×{d} matrix of std {sigma} has variance {y.var():.3f};")
print(f"   fan_in · σ² = {d * sigma**2:.3f}.")

# %% Why 0.02? It puts the activation where it bends
z = np.linspace(-8, 8, 4001)


def bend(variance: float) -> float:
    """Share of the variance of gelu(z), z ~ N(0, variance), that no straight line explains."""
    weight = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    u = math.sqrt(variance) * z
    f = gelu(u)
    mean, slope = (weight * f).sum(), (weight * f * z).sum()
    var = (weight * f * f).sum() - mean**2
    return float(1 - slope**2 / var)


print("\n2. How much of GELU's output is not a straight line of its input, at std 0.02:")
for width in (64, 256, 768, 1600):
    print(f"   n_embd {width:4d}: pre-activation variance {width * sigma**2:.3f}, {bend(width * sigma**2):6.1%}")
print("   0.02 is a number for GPT-2's widths, not a constant of nature: narrow models with it are nearly linear,")
print(f"   and 0.02·√(768/n_embd) keeps the {bend(768 * sigma**2):.1%} at every width (recipe nanogpt-width-matched).")

# %% Every block adds two writes to the stream, and nothing takes any away
depths = [2, 8, 32]
c = initlab.compare(
    ["nanogpt-no-depth-scale", "nanogpt"],
    model=initlab.NanoGPTConfig(n_embd=128, n_head=2, block_size=64),
    depths=depths,
    seeds=2,
    text=initlab.Text(batch_size=2),
)
first, last = c.at("embed"), c.at("resid_post", layer=-1)
keys = ["recipe", "n_layer", "seed"]
grown = (
    (last.set_index(keys)["var"] / first.set_index(keys)["var"]).groupby(["recipe", "n_layer"], observed=True).mean()
)
print("\n3. Variance after the last block ÷ of the embedding, unscaled, at n_embd 128:")
for depth in depths:
    print(f"   {depth:2d} blocks: ×{grown['nanogpt-no-depth-scale', depth]:.1f}")

# %% 2·n_layer writes of variance w sum to 2·n_layer·w; so divide each std by √(2·n_layer)
print("\n4. The same with both output projections at 0.02/√(2·n_layer):")
for depth in depths:
    print(f"   {depth:2d} blocks: ×{grown['nanogpt', depth]:.1f}")

# %% So the variance is not kept constant: its growth is
print("\n5. That is no constant variance, it is a growth that doesn't know the depth. It knows the width:")
for width in (128, 384, 768, 1600):
    growths = [initlab.predict("nanogpt", n_layer=depth, n_embd=width).growth for depth in (12, 48)]
    print(f"   n_embd {width:4d}: ×{growths[0]:.1f} at 12 blocks, ×{growths[1]:.1f} at 48 (closed form)")

# %% The way back mirrors the way forth
print("\n6. Variance of the gradient at the embedding ÷ after the last block, n_embd 768, closed form:")
for depth in (12, 48):
    ratios = [
        initlab.predict(recipe, n_layer=depth, n_embd=768).gradient_ratio
        for recipe in ("nanogpt", "nanogpt-no-depth-scale")
    ]
    print(f"   {depth} blocks: {ratios[0]:.0f} scaled, {ratios[1]:.0f} unscaled")

# %% And the first loss: a model that knows nothing should say so
model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=4, n_head=4, n_embd=256, block_size=64, vocab_size=256))
s = initlab.probe(model, stats="light").summary.iloc[0]
std, excess = s["logit_std"], s["logit_std"] ** 2 / 2
print(
    f"\n7. A fresh 4-block model's loss is {s['loss']:.3f}; ln V is {s['ln_vocab']:.3f}, and half the logits' variance,"
)
print(f"   {excess:.3f}, comes on top: logits of std {std:.2f}, from 0.02·√n_embd = {0.02 * math.sqrt(256):.2f}.")
print(f"   With 0.1 in a tied head that would be {(0.1 * math.sqrt(256)) ** 2 / 2:.2f} nats above ln V.")
