"""The whole pipeline: measure inits, train them, and see whether the probe was right.

    python examples/09_confirm.py                      # half a minute: two recipes, two blocks, 200 steps

`initlab confirm nanogpt nanogpt-no-depth-scale nanogpt-width-matched torch-default` is the same on a grid that tells
more apart, in about ten minutes on two cores; reports/recipes-trained holds its result.
"""

import initlab

model = initlab.NanoGPTConfig(n_layer=2, n_embd=64, n_head=1, block_size=64)
c = initlab.compare(["nanogpt-width-matched", "torch-default"], model=model, seeds=1)
print(c)

r = initlab.confirm(c, depths=[2], lrs=[3e-3], warmups=[40], seeds=3, steps=200)  # smaller models, of confirm's own
print(r)

print("Differences in validation loss, nats: a verdict only where the interval leaves out 0")
columns = ["question", "recipe", "warmup", "difference", "low", "high", "verdict"]
print(r.effects[columns].to_string(index=False, float_format="{:+.3f}".format))
print(f"\n{int(r.runs['escaped'].sum())} of {len(r.runs)} runs learnt more than how frequent bytes are")
