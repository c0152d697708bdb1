"""The benchmark of any model: what it measures of one, and that a model can't take the table down with it."""

import os
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import any_model
import zoo_measure
from zoo import CASES, Case, D
from zoo_inputs import CASES as WITH_INPUTS
from zoo_layouts import CASES as LAYOUTS

pytestmark = pytest.mark.integration

BY_HAND = [*CASES, *LAYOUTS, *WITH_INPUTS]


class Dies(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.linear = way, nn.Linear(D, D)

    def forward(self, x):
        if self.way == "exits":
            os._exit(3)
        if self.way == "raises":
            raise RuntimeError("first line\nsecond line")
        while time.sleep(0) is None:
            x = x + 0


def failing(way):
    return Case("odd", way, lambda: Dies(way), attention=0, mlp=0, stream=False, plain=False, why="fails")


def not_built():
    raise ValueError("no such size")


@pytest.fixture(scope="module")
def rows():
    cases = [BY_HAND[0], failing("exits"), failing("raises"), Case("odd", "unbuilt", not_built)]
    measured = list(zoo_measure.rows(cases, seeds=1, jobs=2, seconds=20))
    measured += zoo_measure.rows([failing("hangs")], seeds=1, jobs=1, seconds=1)
    return {row["name"]: row for row in measured}


def test_a_model_is_seen(rows):
    row = rows["pre-norm"]
    assert row["reached"] == "yes"
    assert (row["blocks"], row["verified"], row["roles"], row["redrawn"]) == (3, 1.0, 1.0, "exact")
    assert row["probe_s"] > row["bare_s"] > 0


def test_what_fails_is_one_row(rows):
    assert rows["exits"]["reached"] == "the process died: 3"
    assert "RuntimeError: first line" in rows["raises"]["reached"]
    assert rows["hangs"]["reached"] == "more than 1 s"
    assert rows["unbuilt"]["built"] == "ValueError: no such size"


def test_page_counts_what_was_built(rows):
    table = pd.DataFrame(rows.values()).reindex(columns=any_model.COLUMNS)
    counts = any_model.summary(table).set_index("")["all"]
    assert counts["reached"] == "1/4 (25%)"
    assert counts["stream verified"] == "1/1 (100%)"
    text = any_model.page(table, 60.0, ["litgpt"])
    assert "Not installed, left out: litgpt." in text
    assert "| odd | unbuilt | ValueError: no such size |" in text


# b is further off than c, but by less than two standard errors more than the tolerance
@pytest.mark.parametrize(("third", "within"), [(2.0, "yes"), (2.3, "no")])
def test_ratio_of_the_worst_block(monkeypatch, third, within):
    class Given:
        def __init__(self, *var):
            self.var = var

        def at(self, site):
            rows = {"var": self.var, "expected_var": [2.0, 2.0, 2.0], "module": ["a", "b", "c"], "call": 0}
            return pd.DataFrame(rows)

    further = iter([Given(2.2, 2.0, third), Given(2.0, 2.1, third)])
    monkeypatch.setattr(zoo_measure.initlab, "probe", lambda *_, **__: next(further))
    row = zoo_measure.closed_form(BY_HAND[0], Given(1.8, 3.0, third), 3)
    assert (row["closed"], row["worst_at"], row["within"]) == (1.0, "b 0", within)
    assert row["ratio"] == pytest.approx((1.5 + 1.0 + 1.05) / 3)


def test_names_are_told_apart():
    names = [(case.group, case.name) for case in BY_HAND]
    assert len(set(names)) == len(names)
    assert all(case.plain or case.why for case in BY_HAND)


@pytest.mark.parametrize("case", [*CASES, *LAYOUTS], ids=lambda case: case.name)
def test_model_runs_and_learns(case):
    model = case.make().train(case.train)
    output = model(torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0)))
    output = output[0] if isinstance(output, tuple) else output
    assert output.shape == (2, 24, 256)
    output.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
