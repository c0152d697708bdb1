"""How two models are wired differently, on rows of the table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from initlab.judge.differences.wirings import COLUMNS, wirings
from initlab.rundir import Run
from initlab.schema import Tables, table


def branch(layer: int | None = 0, update: int | None = 0, **changes: Any) -> dict[str, Any]:
    known = {"run_id": "r", "recipe": "r", "seed": 0, "n_layer": 2, "n_embd": 64, "stack": 0, "layer": layer}
    return known | {"update": update, "site": "attn_out", "kind": "attention", "module": f"h.{layer}"} | changes


def run(*rows: dict[str, Any]) -> Run:
    return Run(Tables(wiring=table("wiring", list(rows))), {})


def found(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    frame = wirings(run(*a), run(*b))
    assert list(frame.columns) == list(COLUMNS) == ["where", "what", "a", "b", "layers"]
    return [tuple(row) for row in frame.itertuples(index=False)]


def test_nothing_is_said_of_what_is_alike_or_unknown() -> None:
    assert found([branch()], [branch()]) == found([], [branch()]) == found([branch()], []) == found([], []) == []


@pytest.mark.parametrize(
    ("column", "old", "new", "said"),
    [
        ("kind", "attention", "mixer", ("branch", "attention", "mixer")),
        ("scale", 1.0, 0.123456, ("what multiplies the branch", "1", "0.1235")),
        ("keep", None, 0.5, ("what multiplies the stream", "none", "0.5")),
        ("score_scale", 0.25, math.nan, ("scale of the scores", "0.25", "none")),
        ("activation", "gelu", "relu", ("activation", "gelu", "relu")),
        ("gated", True, False, ("gated", "yes", "no")),
        ("causal", True, False, ("causal", "yes", "no")),
        ("rotary", False, True, ("rotary positions", "no", "yes")),
        ("bias", True, None, ("bias of the scores", "yes", "none")),
        ("n_kv_head", 4, 2, ("heads of keys and values", "4", "2")),
        ("norm", "ln_1", "", ("norm before the branch", "yes", "no")),
        ("post_norm", None, "norm", ("norm of what the branch gives", "no", "yes")),
        ("qk_norm", "q_norm", None, ("norm of queries and keys", "yes", "no")),
        ("gain", "gamma", None, ("gain of the branch", "yes", "no")),
    ],
)
def test_what_differs_of_a_branch_is_said_in_words(column: str, old: Any, new: Any, said: tuple[str, ...]) -> None:
    assert found([branch(**{column: old})], [branch(**{column: new})]) == [("attention", *said, [0])]
    assert found([branch(**{column: old})], [branch(**{column: old})]) == []


def test_names_of_modules_are_no_difference() -> None:
    assert found([branch(norm="ln_1", module="a")], [branch(norm="norm1", module="b")]) == []


@pytest.mark.parametrize(
    ("column", "old", "new", "said"),
    [
        ("tied", 1, 0, ("token table is the head", "yes", "no")),
        ("logit_scale", 1.0, 0.5, ("scale of the logits", "1", "0.5")),
        ("embed_norm", "norm", None, ("norm of the embedding", "yes", "no")),
        ("final_norm", None, "ln_f", ("final norm", "no", "yes")),
    ],
)
def test_what_differs_of_a_model_is_said_once(column: str, old: Any, new: Any, said: tuple[str, ...]) -> None:
    a, b = ([branch(layer, **{column: value}) for layer in (0, 1)] for value in (old, new))
    assert found(a, b) == [("model", *said, [])]


def test_blocks_that_differ_alike_are_together_and_others_apart() -> None:
    a = [branch(layer, update, site=site) for layer in (0, 1, 2) for update, site in enumerate(("attn_out", "mlp_out"))]
    b = [each | {"scale": 0.5 if each["layer"] else 2.0} for each in a]
    assert found(a, b) == [
        ("attention", "what multiplies the branch", "none", "2", [0]),
        ("MLP", "what multiplies the branch", "none", "2", [0]),
        ("attention", "what multiplies the branch", "none", "0.5", [1, 2]),
        ("MLP", "what multiplies the branch", "none", "0.5", [1, 2]),
    ]


def test_a_branch_that_one_of_them_lacks_is_said() -> None:
    both = [branch(0, 0), branch(0, 1, site="mlp_out"), branch(1, 0)]
    assert found(both, [both[0], both[2]]) == [("block", "branch", "MLP", "none", [0])]
    assert found([both[0], both[2]], both) == [("block", "branch", "none", "MLP", [0])]
    other = branch(0, 1, site="mixer_out")
    assert found([both[0], other], [both[0]]) == [("block", "branch", "mixer_out", "none", [0])]
    unnamed = branch(0, 1, site="")
    assert found([both[0], unnamed], [both[0]]) == [("block", "branch", "block", "none", [0])]


def test_of_other_depths_only_the_models_are_compared() -> None:
    a, b = [branch(0, scale=1.0, tied=1)], [branch(0, scale=2.0, tied=0), branch(1, scale=2.0, tied=0)]
    assert found(a, b) == [("model", "token table is the head", "yes", "no", [])]


def test_several_branches_of_one_sum_are_held_against_each_other_in_order() -> None:
    a = [branch(0, 0, site="attn_out"), branch(0, 0, site="mlp_out"), branch(0, 0, site="mixer_out")]
    assert found(a, a) == []
    b = [a[0], a[1] | {"scale": 0.5}, a[2]]
    assert found(a, b) == [("MLP", "what multiplies the branch", "none", "0.5", [0])]


def test_stacks_are_apart_and_of_several_draws_the_first_counts() -> None:
    a = [branch(0, stack=0, tied=1), branch(0, stack=1, tied=1)]
    b = [branch(0, stack=0, tied=1), branch(0, stack=1, tied=0, scale=0.5)]
    assert found(a, b) == [
        ("model", "token table is the head", "yes", "no", []),
        ("attention", "what multiplies the branch", "none", "0.5", [0]),
    ]
    again = branch(0, run_id="second", scale=9.0)
    assert found([branch(), again], [branch()]) == []
    outside = [branch(None, None, tied=1)]
    assert found(outside, outside) == [] and pd.isna(run(*outside).tables.wiring["layer"].iloc[0])
