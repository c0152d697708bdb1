"""One recipe that can't be used doesn't stop the others; what is Adam's isn't given to SGD."""

from __future__ import annotations

from typing import Any

import pytest

import initlab
from initlab.errors import ConfigError, RecipeError
from initlab.recipes import Dims, Distribution, Normal, Role

pytestmark = pytest.mark.integration

MODEL = initlab.NanoGPTConfig(n_layer=2, n_embd=32, n_head=2, block_size=16)
TEXT = initlab.Text(block_size=16, batch_size=2)


def unanswered(role: Role, dims: Dims) -> Distribution:
    if role == Role.MLP_OUT and dims.n_embd > 32:
        raise RecipeError(f"nothing is known of {role} at {dims.n_embd}")
    return Normal(0.02)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (initlab.compare, {"depths": [2], "widths": [32, 64], "seeds": 1}),
        (initlab.scale, {"depths": [2], "widths": [32, 64], "seeds": 1, "steps": 1}),
        (initlab.confirm, {"depths": [2], "n_embd": 64, "warmups": [0], "lrs": [1e-3], "seeds": 1, "steps": 2}),
        (initlab.train, {"n_embd": 64, "steps": 2, "preset": "shakespeare-cpu", "n_layer": 2}),
    ],
)
def test_a_recipe_without_an_answer_is_left_out_and_says_why(command: Any, options: dict[str, Any]) -> None:
    given = options if command is initlab.train else options | {"model": MODEL}
    found = command([unanswered, "nanogpt"], text=TEXT, **given).run
    assert found.manifest["config"]["recipes"] == ["nanogpt"]
    assert found.manifest["config"]["left_out"] == {"unanswered": "nothing is known of mlp_out at 64"}
    assert set(found.tables.summary["recipe"]) == {"nanogpt"}
    with pytest.raises(RecipeError, match="nothing is known of mlp_out at 64"):
        command(unanswered, text=TEXT, **given)


def test_rates_for_adam_are_refused_with_sgd() -> None:
    options: dict[str, Any] = {"model": MODEL, "text": TEXT, "widths": [32, 64], "seeds": 1, "steps": 1}
    with pytest.raises(ConfigError, match="mup has rates for Adam, which SGD can't take; take adamw, or leave it out"):
        initlab.scale(["nanogpt", "mup"], optimizer="sgd", **options)
    assert not initlab.scale("nanogpt", optimizer="sgd", **options).records.empty
