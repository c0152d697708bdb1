"""Watch a training run from inside: what do thirty steps do to the scales, and how far does each step move the weights?

python examples/05_watch_training.py
"""

import torch

import initlab
from initlab.corpus import load_corpus

torch.manual_seed(0)
text = load_corpus()  # the English that initlab brings, as bytes
model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=4, n_head=4, n_embd=64, block_size=64, vocab_size=256))
initlab.apply_recipe(model, "nanogpt-width-matched")  # GPT-2's 0.02 is small at this width: a probe says so (ACT001)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

with initlab.watch(model, every=10) as w:  # out="runs/watch" writes each step as it comes
    for step in range(31):
        x, y = text.batch(8, 64, seed=step)
        loss = model(x, y)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        w.step(loss=loss)

watched = w.result
print(watched)

ratios = watched.updates_by_role.pivot(index="role", columns="step", values="ratio")
print("rms of update / rms of weight, by role and step")
print(ratios.dropna().to_string(float_format="{:.4f}".format))

stream = watched.at("resid_post").pivot(index="layer", columns="step", values="var")
grown = stream[30].iloc[-1] / stream[0].iloc[-1]
print(f"\nresidual variance by block and step, grown {grown:.0f}-fold after the last")
print(stream.to_string(float_format="{:.3g}".format))
