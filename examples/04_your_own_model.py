"""A model of your own, whatever it looks like: no configuration, no names to follow.

python examples/04_your_own_model.py
"""

import torch
from torch import nn

import initlab


class Mixer(nn.Module):
    """A block that nobody has seen before: a causal running mean in place of attention, then an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        x = x + self.mix(self.norm(x).cumsum(1) / seen)
        return x + self.mlp(x)


torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(256, 64), *(Mixer(64) for _ in range(6)), nn.LayerNorm(64), nn.Linear(64, 256))
probe = initlab.probe(model)  # makes a batch, finds and verifies the stream, measures, judges
print(probe)

print(initlab.describe_init(model))  # which init is this?

# in a test, this fails with the finding as its message as soon as a change of init breaks the signal
initlab.assert_healthy(model)
