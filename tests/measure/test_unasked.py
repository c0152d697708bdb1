"""Parts that get no gradient because the batch or the loss doesn't ask for them, beside the same ones forgotten."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import initlab

D, V = 16, 32


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.cross_norm, self.cross = nn.LayerNorm(D), nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))

    def forward(self, x: Tensor, states: Tensor | None) -> Tensor:
        x = x + self.down(torch.tanh(self.up(self.norm(x))))
        return x if states is None else x + self.cross(self.cross_norm(states))


class Model(nn.Module):
    def __init__(self, forgets: str = "") -> None:
        super().__init__()
        self.forgets = forgets
        self.tok, self.blocks = nn.Embedding(V, D), nn.ModuleList(Block() for _ in range(2))
        self.norm, self.head, self.pooler = nn.LayerNorm(D), nn.Linear(D, V), nn.Linear(D, D)

    def run(self, ids: Tensor, states: Tensor | None) -> dict[str, Tensor]:
        x = self.tok(ids)
        for number, block in enumerate(self.blocks):
            x = x if self.forgets == "block" and number else block(x, states)
        if self.forgets == "detached":
            x = x.detach()
        pooled = x[:, 0] if self.forgets == "pooler" else self.pooler(x[:, 0])
        return {"logits": self.head(self.norm(x)), "pooled": pooled}


class Reader(Model):
    def forward(self, ids: Tensor, encoder_states: Tensor | None = None) -> dict[str, Tensor]:
        return self.run(ids, encoder_states)


class Alone(Model):
    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        return self.run(ids, None)


def told(model: nn.Module) -> Any:
    return initlab.probe(model, torch.arange(V).view(2, V // 2), stats="light").judge(select=["GRD001"])[0]


def test_what_another_argument_or_output_asks_for_is_a_note() -> None:
    torch.manual_seed(0)
    found = told(Reader())
    assert (found.status, found.severity, found.measured) == ("fail", "info", 2 * 6 + 2)
    assert "blocks.0.cross_norm" in found.message


@pytest.mark.parametrize(
    ("model", "forgets", "count"),
    [(Alone, "", 12), (Reader, "block", 6), (Reader, "pooler", 2), (Reader, "detached", 0)],
)
def test_what_is_forgotten_is_loud(model: type[Model], forgets: str, count: int) -> None:
    torch.manual_seed(0)
    found = told(model(forgets))
    assert found.status == "fail" and found.severity in ("warning", "error")
    if count:
        assert found.measured >= count


def test_nothing_is_left_behind() -> None:
    model = Reader()
    told(model)
    assert not any(module._forward_pre_hooks for module in model.modules())
