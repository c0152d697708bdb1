"""What a small module does is found by asking a copy of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from initlab.anatomy.asking import gain_offset, kind


class Ask(nn.Module):
    def __init__(self, shape: int = 8) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(shape))
        self.calls = 0


class Rms(Ask):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.g


class LessOne(Ask):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:]) * (1 + self.g)


class Times(Ask):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.g


class Plus(Ask):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.g


class Constant(Ask):
    def forward(self, x: Tensor) -> Tensor:
        return self.g.expand(x.shape)


class Squashed(Ask):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.g


class Fails(Ask):
    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("module", "found", "offset"),
    [
        (Rms(), "norm", 0),
        (LessOne(), "norm", 1),
        (nn.LayerNorm(8), "norm", 0),
        (Times(), "scale", 0),
        (Plus(), "", 1),
        (Constant(), "", 0),
        (Squashed(), "", 0),
        (Fails(), "", 0),
        (nn.PReLU(8), "", 0),
        (nn.Linear(8, 8), "", 0),
        (nn.ReLU(), "", 0),
    ],
)
def test_what_four_times_the_input_does_tells_what_it_is(module: nn.Module, found: str, offset: int) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert kind(module) == found
    if found == "norm":
        assert gain_offset(module) == offset
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert getattr(module, "calls", 0) == 0
