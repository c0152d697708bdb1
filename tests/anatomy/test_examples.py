"""Lines that show what to pass to a model."""

import runpy

import pytest
import torch
from torch import nn

import initlab
from initlab.anatomy.examples import example, raised_at, signature
from initlab.errors import ProbeError


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


def test_the_line_that_raised_is_of_the_callers_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "mine.py"
    script.write_text("import torch\n\ndef f(x):\n    return torch.nn.functional.linear(x, torch.ones(2, 2))\n")
    space = runpy.run_path(str(script))
    with pytest.raises(RuntimeError) as raised:
        space["f"](torch.ones(3))
    assert raised_at(raised.value) == " at mine.py:4"
    with pytest.raises(ProbeError, match=r"raised in its forward pass at \S*test_examples\.py:\d+: ZeroDivisionError"):
        initlab.probe(Dividing(), torch.ones(2, 2))


class Dividing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        return self.inner(x) * (1 // 0)
