from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from initlab.judge import grouping
from initlab.judge.grouping import grouped, places

ROWS = pd.DataFrame(
    {
        "run": pd.Categorical(["b", "a", "b", "a", "c", "b"], categories=["a", "b", "c", "d"]),
        "layer": pd.array([1, 0, 1, None, 2, 0], dtype="Int64"),
        "value": [3.0, math.nan, 5.0, 1.0, math.nan, 2.0],
        "count": [1, 2, 3, 4, 5, 6],
        "name": pd.array(["x", "y", "z", "x", "y", "w"], dtype="string"),
    }
)
MADE = {
    "mean": ("value", "mean"),
    "median": ("value", "median"),
    "low": ("value", "min"),
    "high": ("count", "max"),
    "total": ("count", "sum"),
    "first": ("name", "first"),
    "kinds": ("name", "nunique"),
}


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("by", [["run"], ["run", "layer"]])
def test_it_gives_what_pandas_gives(by, sort, monkeypatch):
    found = grouped(ROWS, by, sort=sort, **MADE)
    monkeypatch.setattr(grouping, "_MANY", 0)
    assert_frame_equal(found, grouped(ROWS, by, sort=sort, **MADE), check_dtype=False)


def test_no_rows_give_none():
    found = grouped(ROWS[:0], ["run", "layer"], mean=("value", "mean"))
    assert found.empty and list(found) == ["run", "layer", "mean"]


def test_rows_without_a_key_are_in_no_group():
    assert list(places(ROWS, ["run", "layer"])) == [[1], [5], [0, 2], [4]]
    assert np.concatenate(list(places(ROWS, ["run"], sort=False))).tolist() == [0, 2, 5, 1, 3, 4]
