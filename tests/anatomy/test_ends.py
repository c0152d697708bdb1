"""What a stream begins with, and whether blocks hand it on to one another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import initlab
from initlab.anatomy.look import Anatomy, of

D, V, T = 32, 64, 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def write(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.write(x)


class Dropping(Block):
    """Stochastic depth, half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        kept = (torch.rand(()) < 0.5).float() if self.training else 0.5
        return x + self.write(x) * (float(kept) / 0.5)


class Tower(nn.Module):
    def __init__(self, block: type[nn.Module] = Block, enter: Callable[[Tower, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.words, self.places, self.first = nn.Embedding(V, D), nn.Embedding(T, D), nn.LayerNorm(D)
        self.picture, self.mix = nn.Linear(4, D), nn.Linear(2 * D, D)
        self.blocks = nn.ModuleList(block() for _ in range(4))
        self.last, self.head = nn.LayerNorm(D), nn.Linear(D, V)
        self.enter, self.skips = enter, False

    def forward(self, ids: Tensor) -> Tensor:
        x = start = self.words(ids) if self.enter is None else self.enter(self, ids)
        for number, block in enumerate(self.blocks):
            if self.skips and number == 2:
                x = self.mix(torch.cat([x, start], -1))
            x = block(x)
        return self.head(self.last(x))


def looked(model: nn.Module) -> Anatomy:
    torch.manual_seed(0)
    return of(model, lambda: model(torch.randint(0, V, (2, T))))


def shown(model: Tower, ids: Tensor) -> Tensor:
    return model.words(ids) + model.picture(torch.ones(len(ids), 4))[:, None]


def scaled(model: Tower, ids: Tensor) -> Tensor:
    return model.first(model.words(ids) + 0.1 * model.places(torch.arange(ids.shape[1])))


def test_one_vector_for_a_whole_sequence_is_no_position() -> None:
    def halves(model: Tower, ids: Tensor) -> Tensor:
        return model.words(ids) + torch.linspace(0, 1, T)[:, None] * torch.ones(D)

    (wiring,) = looked(Tower(enter=halves)).wirings
    assert wiring.terms is not None and [term.kind for term in wiring.terms] == ["token", "position"]
    terms = [each.terms for each in looked(Tower(enter=shown)).seen]
    assert all(each is None or "position" not in [term.kind for term in each] for each in terms)


def test_a_table_behind_a_norm_counts_as_it_is_multiplied() -> None:
    torch.manual_seed(0)
    ratio = initlab.probe(Tower(enter=scaled).eval(), torch.randint(0, V, (8, T))).summary["token_position_ratio"]
    assert ratio.iloc[0] == pytest.approx(100, rel=0.2)


def test_a_long_skip_between_blocks_is_said_and_nothing_is_expected() -> None:
    model = Tower().eval()
    assert looked(model).wirings
    model.skips = True
    anatomy = looked(model)
    assert not anatomy.wirings
    assert "blocks.2: it begins with something else than what blocks.1 hands on" in anatomy.seen[0].unknown


def test_what_chance_drops_is_no_factor_of_the_block() -> None:
    model = Tower(Dropping).train()
    for seed in range(4):
        torch.manual_seed(seed)
        (wiring,) = of(model, lambda: model(torch.zeros(2, T, dtype=torch.long))).seen
        assert {branch.scale for block in wiring.blocks for branch in block.branches()} == {1.0}
    found = initlab.probe(model.train(), torch.randint(0, V, (2, T))).findings
    assert next(f for f in found if f.code == "WIR001").status == "pass" and model.training
