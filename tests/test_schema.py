from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from initlab import schema
from initlab.errors import SchemaError
from initlab.schema import COVERAGE, FORMATS, HEADS, RECORDS, RESIDUAL_SITES, SITES, SUMMARY, TABLES, Tables

KEYS = {"run_id": "a", "recipe": "nanogpt", "seed": 0, "step": 0, "n_layer": 2, "n_embd": 8}
COVERED = {"run_id": "a", "kind": "grad", "site": "embed", "expected": 1, "fired": 1, "note": "why"}


def filled(name: str, **values: Any) -> dict[str, object]:
    """A row with a value in every integer column, which can't be NA."""
    return {column: 1 for column, spec in TABLES[name].items() if spec.dtype == "int64"} | values


def coverage(**values: Any) -> pd.DataFrame:
    return pd.DataFrame([COVERED | values])


def test_tables_have_the_promised_columns() -> None:
    assert list(TABLES) == [
        *("records", "heads", "summary", "coverage", "wiring", "routing", "writes", "behaviour"),
        *("draws", "declared", "training", "runs"),
    ]
    keys = list(KEYS)
    assert [list(table)[:6] for table in (RECORDS, HEADS, SUMMARY)] == [keys] * 3
    fractions = {f"frac_{edge}_{fmt}" for edge in ("under", "over") for fmt in FORMATS}
    assert fractions | {"frac_zero", "frac_nonfinite", "var", "rms", "abs_max", "kurtosis", "expected_var"} <= set(
        RECORDS
    )
    assert set(RESIDUAL_SITES) < set(SITES)
    assert [site for site in SITES if site in RESIDUAL_SITES] == list(RESIDUAL_SITES)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_what_it_means(name: str) -> None:
    assert all(column.meaning.strip() and not column.meaning.endswith(".") for column in TABLES[name].values())


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_table_has_the_dtypes_of_a_full_one(name: str) -> None:
    empty, full = schema.table(name, []), schema.table(name, [filled(name)])
    declared = {column: spec.dtype for column, spec in TABLES[name].items()}
    for frame in (empty, full):
        assert list(frame.columns) == list(declared)
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == declared
    assert len(empty) == 0
    assert len(full) == 1


def test_columns_that_a_row_lacks_are_na_and_texts_are_empty() -> None:
    frame = schema.table("records", [filled("records", run_id="a", module="lm_head"), filled("records", layer=3)])
    assert frame["layer"].isna().tolist() == [True, False]
    assert frame["run_id"].isna().tolist() == [False, True]
    assert frame["var"].isna().all()
    assert frame["module"].tolist() == ["lm_head", ""]


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(SchemaError, match=r"unknown columns for table coverage: sites, variance"):
        schema.table("coverage", [{"variance": 1.0}, {"sites": "x"}])


@pytest.mark.parametrize(
    ("column", "value", "dtype"),
    [
        ("expected", None, "int64"),
        ("expected", 1.5, "int64"),
        ("expected", math.inf, "int64"),
        ("expected", "many", "int64"),
        ("expected", 2**63, "int64"),
        ("expected", [1], "int64"),
    ],
)
def test_an_integer_column_refuses_what_is_no_integer(column: str, value: Any, dtype: str) -> None:
    with pytest.raises(SchemaError, match=f"table coverage, column {column}: not {dtype}"):
        schema.cast("coverage", coverage(**{column: value}))


@pytest.mark.parametrize(("value", "kept"), [(2, 2), (2.0, 2), (np.int32(2), 2), (2**63 - 1, 2**63 - 1), (-1, -1)])
def test_an_integer_column_takes_whole_numbers_exactly(value: Any, kept: int) -> None:
    assert schema.cast("coverage", coverage(expected=value))["expected"].tolist() == [kept]


@pytest.mark.parametrize("column", ["layer", "mean"])
def test_a_word_in_a_number_column_is_refused(column: str) -> None:
    frame = schema.table("records", [filled("records")]).astype({column: object})
    frame.loc[0, column] = "large"
    with pytest.raises(SchemaError, match=f"table records, column {column}: not "):
        schema.cast("records", frame)


def test_a_block_number_that_is_no_integer_is_refused() -> None:
    frame = schema.table("records", [filled("records")]).astype({"layer": object})
    frame.loc[0, "layer"] = 0.5
    with pytest.raises(SchemaError, match="column layer: not Int64"):
        schema.cast("records", frame)


def test_float_columns_keep_nan_and_infinity() -> None:
    values = [math.nan, math.inf, -math.inf, 1e-300, -0.0]
    frame = schema.table("records", [filled("records", mean=value) for value in values])
    np.testing.assert_array_equal(frame["mean"], values)


def test_cast_orders_columns_keeps_strangers_at_the_end_and_leaves_the_input_alone() -> None:
    frame = coverage(zeta=1, alpha="a word")[["zeta", *reversed(COVERAGE), "alpha"]]
    before = frame.copy()
    made = schema.cast("coverage", frame)
    assert list(made.columns) == [*COVERAGE, "zeta", "alpha"]
    assert made["zeta"].dtype == "float64" and made["zeta"].tolist() == [1.0] and made["alpha"].tolist() == ["a word"]
    assert schema.extras("coverage", made) == ["zeta", "alpha"]
    pd.testing.assert_frame_equal(frame, before)


def test_required_columns_that_are_missing_are_named() -> None:
    with pytest.raises(SchemaError, match=r"coverage lacks the columns kind, fired, which every version"):
        schema.cast("coverage", coverage().drop(columns=["kind", "fired", "note"]))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_its_optional_columns_is_filled(name: str) -> None:
    full = schema.table(name, [filled(name)])
    optional = [column for column, spec in TABLES[name].items() if not spec.required]
    made = schema.cast(name, full.drop(columns=optional))
    assert list(made.columns) == list(TABLES[name])
    for column in optional:
        dtype = TABLES[name][column].dtype
        assert made[column].dtype == dtype
        assert made[column].tolist() == [""] if dtype == "string" else made[column].isna().all()


@pytest.mark.parametrize("name", TABLES)
def test_keys_and_whole_numbers_are_required_and_statistics_are_not(name: str) -> None:
    required = {column for column, spec in TABLES[name].items() if spec.required}
    assert "run_id" in required
    assert {column for column, spec in TABLES[name].items() if spec.dtype == "int64"} <= required
    assert not {column for column in required if TABLES[name][column].dtype == "float64"}


def test_rows_hold_further_columns_only_where_they_are_announced() -> None:
    rows: list[dict[str, object]] = [filled("records", abs_median=0.5), filled("records")]
    made = schema.table("records", rows, extra=("abs_median", "never"))
    assert list(made.columns) == [*RECORDS, "abs_median", "never"]
    np.testing.assert_array_equal(made["abs_median"], [0.5, math.nan])
    assert made["never"].dtype == "float64" and made["never"].isna().all()
    assert list(schema.table("records", [], extra=("abs_median",)).columns) == [*RECORDS, "abs_median"]
    with pytest.raises(SchemaError, match=r"unknown columns for table records: abs_median$"):
        schema.table("records", rows, extra=("never",))


def test_categories_are_texts_even_when_all_values_are_missing() -> None:
    frame = schema.table("records", [filled("records", recipe="007")])
    assert frame["role"].cat.categories.dtype == frame["recipe"].cat.categories.dtype
    assert frame["recipe"].tolist() == ["007"]


def cell(run_id: str, rows: int = 2, **values: Any) -> Tables:
    key = KEYS | {"run_id": run_id}
    return Tables(
        records=schema.table("records", [filled("records", **key, **values) for _ in range(rows)]),
        heads=schema.table("heads", [filled("heads", **key)]),
        summary=schema.table("summary", [filled("summary", **key)]),
        coverage=schema.table("coverage", [COVERED | {"run_id": run_id}]),
        wiring=schema.table("wiring", [filled("wiring", **{k: v for k, v in key.items() if k != "step"})]),
        routing=schema.table("routing", [filled("routing", **key)]),
        writes=schema.table("writes", [filled("writes", run_id=run_id)]),
        behaviour=schema.table("behaviour", [filled("behaviour", **{k: v for k, v in key.items() if k != "step"})]),
        draws=schema.table("draws", [filled("draws", **{k: v for k, v in key.items() if k != "step"})]),
        declared=schema.table("declared", [filled("declared", **{k: v for k, v in key.items() if k != "step"})]),
        training=schema.table("training", [filled("training", run_id=run_id)]),
        runs=schema.table("runs", [filled("runs", run_id=run_id)]),
    )


def test_concat_stacks_cells_whose_categories_differ() -> None:
    a, b = cell("a", role="bias", layer=1), cell("b", rows=3)
    merged = Tables.concat([a, Tables(), b])
    assert [len(frame) for _, frame in merged.items()] == [5] + [2] * 11
    for name, frame in merged.items():
        assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {
            column: spec.dtype for column, spec in TABLES[name].items()
        }
        assert frame.index.tolist() == list(range(len(frame)))
    assert merged.records["role"].tolist()[:2] == ["bias", "bias"]
    assert merged.records["role"].isna().tolist() == [False, False, True, True, True]
    assert merged.records["layer"].isna().tolist() == [False, False, True, True, True]


def test_concat_keeps_the_further_columns_of_every_part() -> None:
    a, b = cell("a"), cell("b")
    a.records["mine"], b.records["yours"], a.heads["sink"] = 1.0, 2.0, 0.25
    merged = Tables.concat([a, cell("c"), b])
    assert list(merged.records.columns) == [*RECORDS, "mine", "yours"]
    np.testing.assert_array_equal(merged.records["mine"], [1, 1] + [math.nan] * 4)
    np.testing.assert_array_equal(merged.records["yours"], [math.nan] * 4 + [2, 2])
    np.testing.assert_array_equal(merged.heads["sink"], [0.25, math.nan, math.nan])
    assert list(merged.of("b").records.columns) == [*RECORDS, "mine", "yours"]


@pytest.mark.parametrize("parts", [[], [Tables(), Tables()]])
def test_concat_of_nothing_is_empty_tables(parts: list[Tables]) -> None:
    merged = Tables.concat(parts)
    assert {name: len(frame) for name, frame in merged.items()} == dict.fromkeys(TABLES, 0)
    assert {name: list(frame.columns) for name, frame in merged.items()} == {n: list(t) for n, t in TABLES.items()}


def test_of_takes_the_rows_of_one_cell_from_every_table() -> None:
    merged = Tables.concat([cell("a"), cell("ab", rows=3)])
    one = merged.of("ab")
    assert [len(frame) for _, frame in one.items()] == [3] + [1] * 11
    assert all(set(frame["run_id"]) == {"ab"} for _, frame in one.items())
    assert all(frame.empty for _, frame in merged.of("nowhere").items())
    pd.testing.assert_frame_equal(
        Tables.concat([merged.of("a")]).records, schema.cast("records", cell("a").records), check_categorical=False
    )


def test_tables_are_not_shared_between_instances() -> None:
    assert Tables().records is not Tables().records
    assert [name for name, _ in Tables().items()] == list(TABLES)
