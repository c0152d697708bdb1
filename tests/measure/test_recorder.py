"""What enters the sum of token and position: scaled, dropped out, normed, or never added at all."""

import math

import pytest
import torch
from torch import nn

import initlab
from initlab.measure.recorder import sum_factors


class Block(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.norm = nn.LayerNorm(n_embd)
        self.fc = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x):
        return x + self.proj(torch.relu(self.fc(self.norm(x))))


class Model(nn.Module):
    """Token and position tables, joined in the way of `join(token, position)`."""

    def __init__(self, join, *, trained=True, n_embd=32):
        super().__init__()
        self.join = join
        self.wte, self.wpe = nn.Embedding(300, n_embd), nn.Embedding(64, n_embd)
        nn.init.normal_(self.wte.weight, 0, 0.02)
        self.wpe.weight.requires_grad_(trained)
        self.blocks = nn.ModuleList(Block(n_embd) for _ in range(2))
        self.lm_head = nn.Linear(n_embd, 300)
        self.join_norm = nn.LayerNorm(n_embd)

    def forward(self, idx):
        x = self.join(self, self.wte(idx), self.wpe(torch.arange(idx.shape[1])))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def ratio_of(join, **options):
    torch.manual_seed(0)
    model = Model(join, **options)
    ids = torch.randint(300, (4, 32))
    raw = model.wte(ids).square().mean() / model.wpe.weight[:32].square().mean()
    row = initlab.probe(model, ids).summary.iloc[0]
    return row["token_position_ratio"] / raw.item()


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    ("join", "expected"),
    [
        (lambda m, token, position: token + position, 1.0),
        (lambda m, token, position: token * math.sqrt(32) + position, 32.0),
        (lambda m, token, position: token + 0.1 * position, 100.0),
        (lambda m, token, position: nn.functional.dropout(8 * token + position, 0.3), 64.0),
    ],
)
def test_tables_count_as_they_enter_the_sum(join, expected, trained):
    assert ratio_of(join, trained=trained) == pytest.approx(expected, rel=1e-3)


def test_behind_a_norm_learned_tables_count_as_they_are_and_fixed_ones_not_at_all():
    def join(m, token, position):
        return m.join_norm(token + position)

    assert ratio_of(join) == pytest.approx(1.0, rel=1e-6)
    assert math.isnan(ratio_of(join, trained=False))


def test_positions_that_are_never_added_have_no_ratio():
    """As rotary tables, which are handed to the attention."""
    assert math.isnan(ratio_of(lambda m, token, position: 1.0 * token))


def test_factors_of_a_sum():
    torch.manual_seed(0)
    token, position = torch.randn(2, 16, 8), torch.randn(16, 8)
    assert sum_factors(3 * token - 2 * position, token, position) == pytest.approx((3, -2), rel=1e-5)
    assert sum_factors(torch.randn(2, 16, 8), token, position) is None
    assert sum_factors(token, token, torch.randn(16, 4)) is None  # of another width
    assert sum_factors(torch.zeros(2, 16, 8), token, position) is None
    half = (3 * token - 2 * position).bfloat16()
    assert sum_factors(half, token, position) == pytest.approx((3, -2), rel=1e-2)
