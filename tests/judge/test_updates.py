"""Ratios of updates to weights, on frames of a few rows."""

import math

import pandas as pd
import pytest

from initlab import schema
from initlab.judge.updates import by_role, matrix_ratios, update_ratios


def records():
    rows = []
    for step, module, role, numel, update, weight in (
        (0, "a", "mlp_in", 100, 0.001, 0.1),
        (0, "b", "mlp_in", 300, 0.003, 0.1),
        (0, "c", "bias", 10, 0.001, 0.0),
        (9, "a", "mlp_in", 100, 0.002, 0.2),
    ):
        keys = {"run_id": f"step{step}", "step": step, "module": module, "role": role, "numel": numel, "site": role}
        keys |= {"seed": 0, "n_layer": 1, "n_embd": 1, "position": 0, "call": 0, "n_tokens": 1}
        rows += [{**keys, "kind": "update", "rms": update}, {**keys, "kind": "weight", "rms": weight}]
    return schema.table("records", rows)


def test_the_ratio_is_of_the_same_parameter_and_step():
    found = update_ratios(records())
    assert found["ratio"].tolist()[:2] == pytest.approx([0.01, 0.03])
    assert math.isnan(found["ratio"][2])  # of a weight that is 0
    assert found["ratio"][3] == pytest.approx(0.01)


def test_roles_are_taken_together_by_their_elements():
    found = by_role(update_ratios(records())).set_index(["step", "role"])["ratio"]
    rms = math.sqrt((100 * 0.001**2 + 300 * 0.003**2) / 400)
    assert found[0, "mlp_in"] == pytest.approx(rms / 0.1)
    assert matrix_ratios(update_ratios(records()))[0] == pytest.approx(rms / 0.1)


def test_a_run_without_updates_has_no_ratios():
    empty = records().query("kind == 'weight'")
    assert update_ratios(empty).empty and by_role(update_ratios(empty)).empty
    assert isinstance(matrix_ratios(update_ratios(empty)), pd.Series)
