"""Probe one model: does the signal keep its scale, and does the first loss say «I know nothing»?

python examples/01_probe.py
"""

import torch

import initlab

torch.manual_seed(0)
model = initlab.NanoGPT(initlab.NanoGPTConfig(n_layer=6, n_head=4, n_embd=256, block_size=128, vocab_size=256))
probe = initlab.probe(model)  # reads the English that initlab brings; leaves the model exactly as it was
print(probe)

stream = probe.at("resid_post")[["layer", "var", "expected_var"]]
print(stream.to_string(index=False))
