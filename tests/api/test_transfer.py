from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Decoder
from torch import nn

import initlab
from initlab.errors import ConfigError, RunError
from initlab.models.config import NanoGPTConfig
from initlab.recipes import Base

pytestmark = pytest.mark.integration

MODEL = NanoGPTConfig(n_layer=1, n_embd=16, n_head=2, block_size=8, bias=False)
TINY: dict[str, Any] = {
    "model": MODEL,
    "widths": (16, 32),
    "lrs": (1e-3, 1e-2, 1e-1),
    "seeds": 1,
    "steps": 3,
    "warmup": 0,
    "text": initlab.Text(batch_size=2),
}
HERE = initlab.RunOptions(jobs=1)


@pytest.fixture(scope="module")
def both() -> initlab.Transfer:
    return initlab.transfer(["nanogpt", "mup"], **TINY, run=HERE)


def test_every_recipe_is_trained_at_every_size_and_rate(both: initlab.Transfer) -> None:
    runs = both.runs
    assert len(runs) == 2 * 2 * 3
    assert runs.groupby(["recipe", "n_embd"])["lr"].nunique().eq(3).all()
    assert set(both.optima["size"]) == {16, 32}
    assert list(both.transfers["recipe"]) == ["nanogpt", "mup"]
    assert both.findings  # of the models before the first step


def test_the_base_is_the_smallest_size_and_is_stored(both: initlab.Transfer) -> None:
    stored = both.run.manifest["recipes"]["mup"]
    assert stored["base"] == {"n_layer": 1, "n_embd": 16, "head_size": None}
    rates = {row["n_embd"]: row["lr"] for row in stored["rows"] if row["role"] == "mlp_in"}
    assert rates == {16: 1.0, 32: 0.5}
    given = initlab.transfer("mup", **TINY, base=Base(n_layer=1, n_embd=64), run=HERE)
    assert given.run.manifest["recipes"]["mup"]["base"]["n_embd"] == 64


def test_a_recipe_is_trained_with_its_own_rates(both: initlab.Transfer) -> None:
    """With the rates that mup multiplies by, but of another base, the wide model comes out otherwise."""
    other = initlab.transfer("mup", **TINY, base=Base(n_layer=1, n_embd=4), run=HERE)
    losses = [
        run.runs[(run.runs["recipe"] == "mup") & (run.runs["n_embd"] == 32)].sort_values("lr")["val_loss"].to_numpy()
        for run in (both, other)
    ]
    assert not np.allclose(*losses, rtol=1e-4)


def test_widths_are_trained_at_the_smallest_depth_and_depths_at_the_smallest_width() -> None:
    found = initlab.transfer("nanogpt", **(TINY | {"depths": (1, 2), "lrs": (1e-3, 3e-3, 1e-2)}), run=HERE)
    sizes = found.runs[["n_layer", "n_embd"]].drop_duplicates().to_numpy().tolist()
    assert sorted(sizes) == [[1, 16], [1, 32], [2, 16]]
    assert set(found.optima["axis"]) == {"n_embd", "n_layer"}


def test_depths_alone_are_trained_at_the_models_own_width() -> None:
    few = {name: value for name, value in TINY.items() if name != "widths"}
    found = initlab.transfer("nanogpt", **few, depths=[1, 2], run=HERE)
    assert set(found.runs["n_embd"]) == {16}
    assert list(found.transfers["axis"]) == ["n_layer"]


def test_the_same_call_resumes_and_another_is_refused(tmp_path: Path) -> None:
    options = initlab.RunOptions(jobs=1, out=tmp_path / "run")
    first = initlab.transfer("nanogpt", **TINY, run=options)
    again = initlab.transfer("nanogpt", **TINY, run=options)
    assert again.runs["val_loss"].tolist() == first.runs["val_loss"].tolist()
    assert isinstance(initlab.load(tmp_path / "run"), initlab.Transfer)
    with pytest.raises(RunError):
        initlab.transfer("nanogpt", **(TINY | {"steps": 4}), run=options)


def decoder(n_layer: int, n_embd: int) -> nn.Module:
    return Decoder(n_layer, n_embd, vocab_size=256)


def test_a_model_of_ones_own_is_trained_relative_to_its_smallest_and_to_its_heads() -> None:
    few = TINY | {"model": decoder, "widths": (16, 32), "depths": (1,)}
    found = initlab.transfer(["nanogpt", "mup"], **few, run=HERE)
    assert len(found.runs) == 12
    stored = found.run.manifest["recipes"]["mup"]
    assert stored["base"] == {"n_layer": 1, "n_embd": 16, "head_size": 8}
    assert {row["lr"] for row in stored["rows"] if row["role"] == "mlp_in" and row["n_embd"] == 32} == {0.5}


def test_the_base_of_a_function_of_configs_has_the_heads_that_it_makes() -> None:
    def two_heads(n_layer: int, n_embd: int) -> NanoGPTConfig:
        return replace(MODEL, n_layer=n_layer, n_embd=n_embd)

    found = initlab.transfer("mup", **(TINY | {"model": two_heads, "depths": (1,)}), run=HERE)
    stored = found.run.manifest["recipes"]["mup"]
    assert stored["base"] == {"n_layer": 1, "n_embd": 16, "head_size": 8}
    # 1/√8 at heads of 8, half of that at heads of 16
    options = {wiring["n_embd"]: wiring["options"]["attention_multiplier"] for wiring in stored["wiring"]}
    assert options == pytest.approx({16: 8**-0.5, 32: 8**-0.5 / 2}, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"widths": (16,)}, ConfigError, "whether a rate holds needs two widths or more"),
        ({"lrs": (1e-3, 1e-2)}, ConfigError, "lrs has 2; expected three or more"),
        ({"lrs": (1e-3, "a", 1e-2)}, ConfigError, "lrs holds 'a'"),
        ({"base": (1, 16)}, ConfigError, r"base is \(1, 16\); expected initlab.recipes.Base"),
        ({"lrs": (1e-3, 1e-2, -1.0)}, ConfigError, "lrs holds -1.0"),
        ({"widths": (16, 17)}, ConfigError, "n_embd 17 has no divisor"),
        ({"widths": 16}, ConfigError, "widths is 16; expected a list"),
        ({"warmup": 3}, ConfigError, "expected fewer, or the peak rate is never trained at"),
        ({"model": replace(MODEL, logit_multiplier=3.0)}, ConfigError, "mup wires logit_multiplier as"),
        ({"model": "gpt2"}, ConfigError, "model is 'gpt2'; expected a NanoGPTConfig, a function"),
    ],
)
def test_what_cant_be_trained_is_refused(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        initlab.transfer("mup", **(TINY | changes), run=HERE)
