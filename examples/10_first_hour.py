"""A model of one's own from its first probe to a guarded training run: diagnosed, mended, compared, watched.

The init scales the outputs by depth first and draws every linear layer again after that, so that the scaling is lost,
as in models that people published.
"""

import json
import math
import tempfile
import textwrap
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import initlab


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.pre, self.mid = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.gate = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.pre(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, C))
        h = self.mid(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    def __init__(self, layers=8, width=128, vocabulary=256, mended=False):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        scaled = [each for block in self.blocks for each in (block.out, block.down)]
        if not mended:  # the scaling comes first, and is drawn over
            self.scale(scaled, layers)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.05)
        if mended:
            self.scale(scaled, layers)

    def scale(self, modules, layers):
        for module in modules:
            nn.init.normal_(module.weight, std=0.05 / math.sqrt(2 * layers))

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def mended():
    return Model(mended=True)


torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
text = initlab.Text(batch_size=8, block_size=64)

found = initlab.probe(Model, text=text)
print("1. What is wrong?\n")
for each in found.failures:
    print(f"{each.severity} {each.code} {each.name}: {each.message}")
    print(f"  drawn at {each.drawn_at}\n" if each.drawn_at else "")

print("2. After the line was moved:\n")
after = initlab.probe(mended, text=text)
print([each.code for each in after.failures if each.severity != "info"] or "no warning")

print("\n3. What changed?\n")
print(initlab.diff(Model, mended, text=text))

print("4. Guarded in a test: notes of today are the baseline, and what comes to them fails\n")
(folder / "findings.json").write_text(json.dumps({"findings": [each.as_dict() for each in after.findings]}))
initlab.assert_healthy(mended, text=text, fail_on="info", baseline=folder / "findings.json")
try:
    initlab.assert_healthy(Model, text=text, fail_on="warning", baseline=folder / "findings.json")
except AssertionError as error:
    print(textwrap.shorten(str(error), 120))

print("\n5. Watched while it trains\n")
model = mended()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
with initlab.watch(model, every=10) as w:
    for _ in range(21):
        ids = torch.randint(256, (4, 32)).cumsum(1) % 7 + 40  # a text that can be learnt
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        w.step(loss=loss)
print(w.result)
