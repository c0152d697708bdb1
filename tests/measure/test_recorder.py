"""What enters the sum of token and position: scaled, dropped out, normed, or never added at all."""

import math

import pytest
import torch
from torch import nn

import initlab


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


def test_behind_a_norm_tables_count_as_they_are():
    def join(m, token, position):
        return m.join_norm(token + position)

    assert ratio_of(join) == pytest.approx(1.0, rel=1e-6)
    assert ratio_of(join, trained=False) == pytest.approx(1.0, rel=1e-6)  # the operations show that it is added


def test_positions_that_are_never_added_have_no_ratio():
    """As rotary tables, which are handed to the attention."""
    assert math.isnan(ratio_of(lambda m, token, position: 1.0 * token))


def test_a_bias_of_the_scores_is_no_position_that_is_added():
    """T5 keeps its table in the first attention, which runs after the stream has begun."""

    class Scores(Model):
        def __init__(self):
            super().__init__(lambda m, token, position: token)
            self.wpe = nn.Embedding(64, 4)

    torch.manual_seed(0)
    row = initlab.probe(Scores(), torch.randint(300, (4, 32))).summary.iloc[0]
    assert math.isnan(row["token_position_ratio"])


@pytest.mark.parametrize("kind", ["buffer", "attribute", "parameter"])
def test_positions_that_are_no_table_count_as_they_enter_the_sum(kind):
    class Added(Model):
        def __init__(self):
            super().__init__(lambda m, token, position: nn.functional.dropout(3 * token + m.places, 0.2))
            del self.wpe
            self.wpe = lambda places: None
            places = torch.linspace(0, 60, 32)[:, None] * torch.linspace(1, 0.01, 32)
            if kind == "buffer":
                self.register_buffer("places", places.sin())
            else:
                self.places = nn.Parameter(places.sin()) if kind == "parameter" else places.sin()

    torch.manual_seed(0)
    model = Added()
    ids = torch.randint(300, (4, 32))
    raw = 9 * model.wte(ids).square().mean() / model.places.square().mean()
    row = initlab.probe(model, ids).summary.iloc[0]
    assert row["token_position_ratio"] == pytest.approx(raw.item(), rel=0.03)  # of a sample of the elements
