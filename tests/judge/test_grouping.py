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
    "first known": ("value", "first"),
    "sum": ("value", "sum"),
    "block": ("layer", "mean"),
    "kinds": ("name", "nunique"),
}


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("by", [["run"], ["run", "layer"], ["count"]])
def test_it_gives_what_pandas_gives(by, sort, monkeypatch):
    found = grouped(ROWS, by, sort=sort, **MADE)
    monkeypatch.setattr(grouping, "_MANY", 0)
    pandas = grouped(ROWS, by, sort=sort, **MADE).astype({"block": float})  # what is missing is NaN, not NA
    assert_frame_equal(found, pandas, check_dtype=False)


def test_no_rows_give_none():
    found = grouped(ROWS[:0], ["run", "layer"], mean=("value", "mean"))
    assert found.empty and list(found) == ["run", "layer", "mean"]


def test_rows_without_a_key_are_in_no_group():
    assert list(places(ROWS, ["run", "layer"])) == [[1], [5], [0, 2], [4]]
    assert np.concatenate(list(places(ROWS, ["run"], sort=False))).tolist() == [0, 2, 5, 1, 3, 4]


def test_groups_are_sorted_unless_told_otherwise():
    assert grouped(ROWS, ["name"], n=("count", "sum"))["name"].tolist() == ["w", "x", "y", "z"]


@pytest.mark.parametrize("by", ["key", "each"])
@pytest.mark.parametrize(("how", "expected"), [("min", 1), ("max", 2**60 + 1), ("sum", 2**60 + 2)])
def test_integers_are_whole_to_the_last_digit(by, how, expected):
    numbers = pd.DataFrame({"key": [0, 0], "each": [0, 1], "n": [2**60 + 1, 1]})
    found = grouped(numbers, [by], made=("n", how))["made"]
    assert found.tolist() == ([expected] if by == "key" else [2**60 + 1, 1])
    assert found.dtype == np.int64


def test_few_rows_are_none_of_pandas_business(monkeypatch):
    monkeypatch.delattr(pd.DataFrame, "groupby")
    assert len(grouped(ROWS, ["run"], **MADE)) == 3
