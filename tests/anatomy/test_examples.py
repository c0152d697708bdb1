"""Lines that show what to pass to a model."""

import torch
from torch import nn

from initlab.anatomy.examples import example, signature


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.image = nn.Embedding(50, 8), nn.Conv2d(3, 8, 4)

    def forward(self, text, image, mask):
        return self.tok(text), self.image(image)


def test_an_example_can_be_run():
    for model in (Pair(), nn.LSTM(5, 8), nn.Linear(3, 3), nn.Embedding(9, 4)):
        batch = eval(example(model).removeprefix("initlab.probe(model, batch=").removesuffix(")"), {"torch": torch})
        model(**batch) if isinstance(batch, dict) else model(batch)


def test_a_long_signature_is_cut():
    def forward(a, b, c, d, e, f, g=None):
        return a

    model = nn.Linear(2, 2)
    model.forward = forward
    assert signature(model) == "(a, b, c, d, e, f, ...)"
    assert signature(Pair()) == "(text, image, mask)"
