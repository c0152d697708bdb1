from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from initlab.judge import rows
from initlab.judge.rows import Rows, largest, middle, smallest

FRAME = pd.DataFrame(
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
    "one": ("value", "first"),
    "first": ("name", "first"),
    "kinds": ("name", "nunique"),
}


@pytest.mark.parametrize("many", [0, 4096])
@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("by", [["run"], ["run", "layer"]])
def test_groups_are_summed_up_as_pandas_does_it(by, sort, many, monkeypatch):
    monkeypatch.setattr(rows, "_MANY", many)
    found = Rows.of(FRAME).grouped(by, sort=sort, **MADE)
    wanted = FRAME.groupby(by, observed=True, sort=sort).agg(**MADE).reset_index()
    made = pd.DataFrame({name: found[name] for name in found.names}).astype({"run": str, "first": str})
    assert_frame_equal(made, wanted.astype({"run": str, "first": str}), check_dtype=False)


def test_no_rows_give_none():
    found = Rows.of(FRAME)[:0].grouped(["run", "layer"], mean=("value", "mean"))
    assert found.empty and found.names == ("run", "layer", "mean")
    assert list(Rows.of(FRAME)[:0].parts("run")) == []


@pytest.mark.parametrize("many", [0, 4096])
def test_rows_without_a_key_are_in_no_group(many, monkeypatch):
    monkeypatch.setattr(rows, "_MANY", many)
    table = Rows.of(FRAME)
    assert [own.tolist() for own in table.groups("run", "layer")] == [[1], [5], [0, 2], [4]]
    assert np.concatenate(table.groups("run", sort=False)).tolist() == [0, 2, 5, 1, 3, 4]


def test_what_is_missing_is_none_or_nan_whatever_the_dtype():
    frame = FRAME.assign(run=FRAME["run"].where(FRAME["count"] > 1), name=FRAME["name"].where(FRAME["count"] > 2))
    table = Rows.of(frame)
    assert table["run"].tolist() == [None, "a", "b", "a", "c", "b"]
    assert table["name"].tolist()[:3] == [None, None, "z"]
    assert math.isnan(table["layer"][3]) and table["layer"].dtype == float
    assert table["count"].dtype == np.int64


def test_rows_are_picked_by_mask_by_place_and_one_by_one():
    table = Rows.of(FRAME).assign(twice=FRAME["count"].to_numpy() * 2, all="one")
    some = table[table["count"] > 2][[2, 0]]
    assert some["twice"].tolist() == [10, 6] and some["all"].tolist() == ["one", "one"]
    assert dict(some[-1]) == {"run": "b", "layer": 1.0, "value": 5.0, "count": 3, "name": "z", "twice": 6, "all": "one"}
    assert [type(some[0][name]) for name in ("run", "layer", "count")] == [str, float, int]
    assert [row["count"] for row in some] == [5, 3]
    assert some.among("name", ("z", "x")).tolist() == [False, True]
    assert "twice" in some and "other" not in some and some[0].get("other") is None
    with pytest.raises(KeyError):
        some["other"]


def test_pairs_are_those_of_an_inner_join():
    left, right = Rows.of(FRAME), Rows({"run": ["b", "c", "b"], "count": [7, 8, 9]})
    here, there = left.matching(right, "run")
    joined = FRAME.astype({"run": str}).merge(pd.DataFrame({"run": ["b", "c", "b"], "other": [7, 8, 9]}), on="run")
    assert left["count"][here].tolist() == joined["count"].tolist()
    assert right["count"][there].tolist() == joined["other"].tolist()


def test_a_table_cannot_be_written_into():
    with pytest.raises(ValueError, match="read-only"):
        Rows.of(FRAME)["value"][0] = 1.0


def test_nan_is_neither_largest_nor_smallest_nor_in_the_middle():
    values = np.array([math.nan, 2.0, 5.0, 1.0, 5.0])
    assert (largest(values), smallest(values), middle(values)) == (2, 3, 3.5)
    assert math.isnan(middle(values[:1]))
