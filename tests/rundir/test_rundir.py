from __future__ import annotations

import copy
import csv
import errno
import json
import lzma
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from cells import CELLS, cell, manifest
from disks import file_limit

from initlab import schema
from initlab.errors import InitlabError, RunError, SchemaError
from initlab.rundir import COMMITS, RunDir, load
from initlab.rundir.files import csv_bytes
from initlab.schema import TABLES, Tables

pytestmark = pytest.mark.integration

FILES = [
    "behaviour.csv",
    "commits.jsonl",
    "coverage.csv",
    "declared.csv",
    "draws.csv",
    "heads.csv",
    "records.csv",
    "routing.csv",
    "run.json",
    "runs.csv",
    "summary.csv",
    "training.csv",
    "wiring.csv",
    "writes.csv",
]
ORDER = [
    *("records", "heads", "coverage", "wiring", "routing", "behaviour", "draws", "declared"),
    *("writes", "training", "runs", "summary", "commits"),
]  # commits last: what makes a cell count


def same(found: Tables, expected: Tables) -> None:
    """Same dtypes, texts and integers; floats to the bit once they are float32, as they were measured."""
    for (name, left), (_, right) in zip(found.items(), expected.items(), strict=True):
        floats = [column for column, spec in TABLES[name].items() if spec.dtype == "float64"]
        pd.testing.assert_frame_equal(left.drop(columns=floats), right.drop(columns=floats))
        assert (left[floats].dtypes == "float64").all()
        np.testing.assert_array_equal(left[floats].astype(np.float32), right[floats].astype(np.float32))


def started(path: Path, *run_ids: str) -> RunDir:
    folder = RunDir.open(path, manifest())
    for run_id in run_ids:
        folder.append(cell(run_id))
    return folder


def of_an_earlier_version(path: Path) -> None:
    """Make a closed folder one that has no commits.jsonl."""
    (path / COMMITS).unlink()
    content = json.loads((path / "run.json").read_text(encoding="utf-8"))
    del content["committed"], content["sum"]
    (path / "run.json").write_text(json.dumps(content), encoding="utf-8")


def run_ids(path: Path) -> dict[str, list[str]]:
    return {name: sorted(set(frame["run_id"])) for name, frame in load(path).tables.items()}


def test_a_run_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = started(tmp_path / "deep" / "run", *CELLS)
    run = folder.finish("2026-01-01T00:01:00Z", 12.34)
    same(run.tables, Tables.concat([cell(run_id) for run_id in CELLS]))
    assert run.manifest == manifest(finished="2026-01-01T00:01:00Z", seconds=12.3)
    assert run.complete
    assert sorted(item.name for item in folder.path.iterdir()) == FILES
    assert "→ √2" in (folder.path / "run.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 0.0, 1e-45, 1.1754944e-38, 3.4028235e38, 0.1, 1 / 3, 16777217.0]
)
def test_a_float_survives_the_csv_file(tmp_path: Path, value: float) -> None:
    value = float(np.float32(value))
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("a", var=value))
    found = load(tmp_path).tables.records["var"]
    assert found.dtype == "float64"
    np.testing.assert_array_equal(found.astype(np.float32), np.full(3, value, np.float32))


@pytest.mark.parametrize("value", [1e-300, 1e300, 1 / 3])
def test_a_float64_keeps_nine_digits(tmp_path: Path, value: float) -> None:
    RunDir.open(tmp_path, manifest()).append(cell("a", var=value))
    assert load(tmp_path).tables.records["var"].tolist() == pytest.approx([value] * 3, rel=1e-8)


@pytest.mark.parametrize(
    "text",
    ["NA", "nan", "None", "null", "inf", "007", "1e5", 'quo"ted', "com,ma", "two\nlines", " edge ", "√·é"],
)
@pytest.mark.parametrize("column", ["recipe", "module"])
def test_a_text_that_looks_like_something_else_stays_a_text(tmp_path: Path, column: str, text: str) -> None:
    RunDir.open(tmp_path, manifest()).append(cell("a", **{column: text}))
    assert load(tmp_path).tables.records[column].tolist() == [text] * 3


def test_missing_values_stay_missing_and_empty_texts_empty(tmp_path: Path) -> None:
    tables = cell("a", role=None, layer=None, module="", expected_var=math.nan)
    RunDir.open(tmp_path, manifest()).append(tables)
    records = load(tmp_path).tables.records
    assert records[["role", "layer", "expected_var"]].isna().all(axis=None)
    assert records["module"].tolist() == ["", "", ""]
    same(load(tmp_path).tables, tables)


def test_large_integers_are_not_rounded(tmp_path: Path) -> None:
    RunDir.open(tmp_path, manifest()).append(cell("a", numel=2**62 + 1))
    assert load(tmp_path).tables.records["numel"].tolist() == [2**62 + 1] * 3


def test_a_cell_without_heads_leaves_room_for_one_with(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, manifest())
    bare = cell("a")
    bare.heads = schema.table("heads", [])
    folder.append(bare)
    folder.append(cell("b"))
    same(load(tmp_path).tables, Tables.concat([bare, cell("b")]))


def test_statistics_of_a_users_own_come_back_also_where_cells_have_different_ones(tmp_path: Path) -> None:
    a, b, c = cell("a"), cell("b"), cell("c")
    a.records["mine"] = [0.5, math.nan, math.inf]
    b.records["yours"], b.heads["sink"] = 2.0, 0.25
    folder = RunDir.open(tmp_path, manifest())
    for part in (a, b, c):
        folder.append(part)
    expected = Tables.concat([a, b, c])
    found = load(tmp_path).tables
    same(found, expected)
    for name, column in (("records", "mine"), ("records", "yours"), ("heads", "sink")):
        np.testing.assert_array_equal(getattr(found, name)[column], getattr(expected, name)[column])
    assert list(found.records.columns) == [*TABLES["records"], "mine", "yours"]
    folder.close()
    resumed = RunDir.open(tmp_path, manifest())
    resumed.forget(["b"])
    resumed.append(cell("b"))
    assert load(tmp_path).tables.records["mine"].tolist()[:1] == [0.5]


def test_a_failure_to_make_room_for_a_column_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = started(tmp_path, "a")
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    b = cell("b")
    b.records["mine"] = 1.0
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(RunError, match=r"could not write .*commits\.jsonl: No space left"):
            folder.append(b)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before
    folder.append(b)
    assert load(tmp_path).tables.records["mine"].tolist()[-1] == 1.0


def test_a_run_of_a_version_with_other_columns_is_read_and_resumed(tmp_path: Path) -> None:
    started(tmp_path, "a")
    of_an_earlier_version(tmp_path)
    path = tmp_path / "records.csv"
    frame = pd.read_csv(path, keep_default_na=False)
    frame = frame.drop(columns=["kurtosis", "expected_var", "role"])
    frame["of_tomorrow"] = 7
    frame.to_csv(path, index=False)
    records = load(tmp_path).tables.records
    assert records[["kurtosis", "expected_var", "role"]].isna().all(axis=None)
    assert records["of_tomorrow"].tolist() == [7.0] * 3
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("b"))
    assert load(tmp_path).tables.records["of_tomorrow"].isna().tolist() == [False] * 3 + [True] * 3
    assert load(tmp_path).tables.records["kurtosis"].isna().tolist() == [True] * 3 + [False] * 3


def test_a_new_folder_is_a_readable_run_without_cells(tmp_path: Path) -> None:
    folder = RunDir.open(tmp_path, manifest())
    run = load(tmp_path)
    assert folder.done == set()
    assert not run.complete
    assert all(frame.empty for _, frame in run.tables.items())


def test_resume_keeps_created_cells_and_seconds(tmp_path: Path) -> None:
    started(tmp_path, "a", "b").finish("then", 5.0)
    folder = RunDir.open(tmp_path, manifest(created="2027-01-01T00:00:00Z"))
    assert folder.done == {"a", "b"}
    assert load(tmp_path).manifest["finished"] is None
    folder.append(cell("c"))
    run = folder.finish("now", 1.5)
    assert run.complete
    same(run.tables, Tables.concat([cell(run_id) for run_id in CELLS]))
    assert run.manifest == manifest(finished="now", seconds=6.5)


def test_resume_accepts_a_run_whose_config_was_stored_as_json(tmp_path: Path) -> None:
    started(tmp_path, "a")
    again = json.loads(json.dumps(manifest()))
    assert RunDir.open(tmp_path, again).done == {"a"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": {"recipes": ["nanogpt"], "depths": [2, 8], "seed": 0}}, r"depths: \[2, 4\] there, \[2, 8\] now"),
        ({"config": {"recipes": ["nanogpt"], "depths": [2, 4]}}, "seed: 0 there, None now"),
        ({"config": {"recipes": ["nanogpt"], "depths": [2, 4], "seed": 0, "x": 1}}, "x: None there, 1 now"),
        ({"config": {"recipes": ["x"], "depths": [1], "seed": 0}}, r"depths: .*; recipes: \['nanogpt'\] there"),
        ({"recipes": {"nanogpt": {"rows": []}}}, "the recipes' definitions changed"),
    ],
)
def test_another_run_is_refused_by_name_and_loses_nothing(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    started(tmp_path, "a")
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    with pytest.raises(RunError, match=rf"holds another run \({named}.*choose another folder with -o") as caught:
        RunDir.open(tmp_path, manifest(**change))
    assert str(tmp_path) in str(caught.value)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["thesis.txt", "records.csv", ".hidden", "run.json.bak"])
def test_a_folder_with_other_files_is_refused_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=rf"holds other files \({name}\); choose an empty one with -o"):
        RunDir.open(tmp_path, manifest())
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_process_killed_while_it_wrote_the_first_manifest_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "run.json.tmp").write_text('{"schema_ver')
    assert started(tmp_path, "a").done == {"a"}
    assert sorted(item.name for item in tmp_path.iterdir()) == FILES


@pytest.mark.parametrize("cut", [1, 20, 200])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_torn_last_line_drops_that_cell_alone(tmp_path: Path, cut: int, earlier: bool) -> None:
    started(tmp_path, "a", "b")
    path = tmp_path / COMMITS
    if earlier:
        of_an_earlier_version(tmp_path)
        path = tmp_path / "summary.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    assert run_ids(tmp_path) == {name: ["a"] for name in TABLES}
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("b"))
    same(load(tmp_path).tables, Tables.concat([cell("a"), cell("b")]))


@pytest.mark.parametrize("name", [name for name in ORDER if name != "commits"])
@pytest.mark.parametrize("size", [1, 10, 10_000])
def test_a_cell_torn_before_its_commit_is_dropped_and_measured_again(tmp_path: Path, name: str, size: int) -> None:
    started(tmp_path, "a")
    path = tmp_path / f"{name}.csv"
    with path.open("ab") as file:
        file.write(csv_bytes(getattr(cell("b"), name), header=False)[:size])
    same(load(tmp_path).tables, cell("a"))
    folder = RunDir.open(tmp_path, manifest())
    assert folder.done == {"a"}
    assert b"\nb," not in path.read_bytes()
    folder.append(cell("b"))
    same(load(tmp_path).tables, Tables.concat([cell("a"), cell("b")]))


@pytest.mark.parametrize("content", [b"", b"run_id,rec"])
def test_half_a_header_is_an_empty_table(tmp_path: Path, content: bytes) -> None:
    RunDir.open(tmp_path, manifest())
    of_an_earlier_version(tmp_path)
    for name in TABLES:
        (tmp_path / f"{name}.csv").write_bytes(content)
    assert all(frame.empty for _, frame in load(tmp_path).tables.items())
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("a"))
    same(load(tmp_path).tables, cell("a"))


def test_a_folder_of_another_kind_of_run_is_refused_by_its_name(tmp_path: Path) -> None:
    started(tmp_path, "a")
    with pytest.raises(RunError, match=r"holds a run of `compare`, not of `train`; choose another folder with -o$"):
        RunDir.open(tmp_path, manifest(kind="train"))


def test_a_run_without_training_has_no_files_for_it(tmp_path: Path) -> None:
    untrained = {name: frame for name, frame in cell("a").items() if name not in ("training", "runs")}
    RunDir.open(tmp_path, manifest()).append(Tables(**untrained))
    RunDir.open(tmp_path, manifest()).append(Tables(**untrained | {"summary": cell("b").summary}))
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(set(FILES) - {"training.csv", "runs.csv"})


def test_a_missing_table_of_an_earlier_version_is_an_empty_one(tmp_path: Path) -> None:
    started(tmp_path, "a")
    of_an_earlier_version(tmp_path)
    (tmp_path / "heads.csv").unlink()
    tables = load(tmp_path).tables
    assert tables.heads.empty
    assert len(tables.records) == 3


@pytest.mark.parametrize(
    ("damage", "error", "named"),
    [
        (lambda text: text.replace("run_id,", "id,", 1), SchemaError, "lacks the columns run_id"),
        (lambda text: text + 'a,"open quote\n', RunError, "records.csv is damaged"),
        (lambda text: text + "a" + ",1" * 99 + "\n", RunError, "records.csv is damaged"),
        (lambda text: text + "a" + "," * (len(schema.RECORDS) - 1) + "\n", SchemaError, "column seed: not int64"),
    ],
)
def test_a_damaged_table_is_an_error_of_ours(
    tmp_path: Path, damage: Callable[[str], str], error: type[InitlabError], named: str
) -> None:
    started(tmp_path, "a")
    of_an_earlier_version(tmp_path)
    path = tmp_path / "records.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(error, match=named):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "can't be read"),
        ('{"schema_version": 1, "con', "can't be read"),
        ("[1]", "has schema version None"),
        ("{}", "has schema version None"),
        (json.dumps(manifest(schema_version=99)), r"newer initlab \(schema 99\), this one reads up to 1: update"),
        (json.dumps(manifest(schema_version="1")), "has schema version 1, which no initlab wrote"),
        (json.dumps(manifest(schema_version=0)), "has schema version 0, which no initlab wrote"),
        (json.dumps({"schema_version": 1}), "is damaged: config, recipes, cells, failed, created missing"),
        (json.dumps(manifest(config=None, cells={})), "is damaged: config, cells missing or of another type"),
    ],
)
def test_a_damaged_manifest_is_an_error_that_keeps_the_tables(tmp_path: Path, content: str, named: str) -> None:
    started(tmp_path, "a")
    (tmp_path / "run.json").write_text(content)
    before = (tmp_path / "records.csv").read_bytes()
    for attempt in (lambda: load(tmp_path), lambda: RunDir.open(tmp_path, manifest())):
        with pytest.raises(RunError, match=named):
            attempt()
    assert not (tmp_path / "run.lock").exists()
    assert (tmp_path / "records.csv").read_bytes() == before


def test_a_manifest_that_is_no_text_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="can't be read"):
        load(tmp_path)


@pytest.mark.parametrize("below", ["", "nowhere"])
def test_a_folder_without_a_run_says_what_to_give(tmp_path: Path, below: str) -> None:
    with pytest.raises(RunError, match=r"no run in .*run\.json not found; give the folder that -o named"):
        load(tmp_path / below)


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_folder_that_cant_be_made_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"can't be written: .*; choose another with -o"):
        RunDir.open(tmp_path / "file" / below, manifest())
    with pytest.raises(RunError, match=r"no run in|can't be read"):
        load(tmp_path / "file" / below)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", refuse)
        with pytest.raises(RunError, match=r"could not write .*commits\.jsonl: Permission denied"):
            RunDir.open(tmp_path, manifest())
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match="can't be written: Permission denied; choose another with -o"):
        RunDir.open(tmp_path, manifest())
    assert list(tmp_path.iterdir()) == []


@contextmanager
def full_disk_at_sync(number: int) -> Iterator[None]:
    """os.fsync raises ENOSPC at its n-th call, after the bytes were handed over."""
    calls = 0

    def sync(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        yield


@pytest.mark.parametrize("number", range(1, len(ORDER) + 1))
def test_a_full_disk_leaves_every_file_as_it_was(tmp_path: Path, number: int) -> None:
    folder = started(tmp_path, "a")
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    with (
        full_disk_at_sync(number),
        pytest.raises(
            RunError, match=r"No space left on device; 1 finished cells are kept, the same command"
        ) as caught,
    ):
        folder.append(cell("b"))
    assert f"{ORDER[number - 1]}." in str(caught.value)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_a_cell_can_be_appended_again_once_there_is_room(tmp_path: Path) -> None:
    folder = started(tmp_path, "a")
    with full_disk_at_sync(3), pytest.raises(RunError):
        folder.append(cell("b"))
    folder.append(cell("b"))
    assert folder.done == {"a", "b"}
    same(load(tmp_path).tables, Tables.concat([cell("a"), cell("b")]))


def test_a_disk_that_fills_in_the_first_cell_leaves_an_empty_run(tmp_path: Path) -> None:
    folder = started(tmp_path)
    with full_disk_at_sync(4), pytest.raises(RunError, match="0 finished cells are kept"):
        folder.append(cell("a"))
    assert all(frame.empty for _, frame in load(tmp_path).tables.items())
    folder.append(cell("a"))
    same(load(tmp_path).tables, cell("a"))


def test_half_written_bytes_are_taken_back(tmp_path: Path) -> None:
    folder = started(tmp_path, "a")
    path = tmp_path / "records.csv"
    before = path.read_bytes()
    with file_limit(len(before) + 100), pytest.raises(RunError, match=r"could not write .*records\.csv"):
        folder.append(cell("b"))
    assert path.read_bytes() == before
    same(load(tmp_path).tables, cell("a"))


def test_a_manifest_that_cant_be_replaced_keeps_the_old_one(tmp_path: Path) -> None:
    folder = started(tmp_path, "a")
    before = (tmp_path / "run.json").read_bytes()
    with file_limit(10), pytest.raises(RunError, match=r"could not write .*run\.json"):
        folder.fail("b", "x" * 100)
    assert (tmp_path / "run.json").read_bytes() == before
    assert not (tmp_path / "run.json.tmp").exists()


def test_a_failed_cell_is_recorded_and_tried_again_on_resume(tmp_path: Path) -> None:
    folder = started(tmp_path, "a")
    folder.fail("b", "ProbeError: exploded")
    folder.append(cell("c"))
    run = folder.finish("now", 1.0)
    assert run.manifest["failed"] == {"b": "ProbeError: exploded"}
    assert not run.complete
    again = RunDir.open(tmp_path, manifest())
    assert load(tmp_path).manifest["failed"] == {}
    assert again.done == {"a", "c"}
    again.append(cell("b"))
    assert again.finish("later", 1.0).complete


def test_a_run_saved_twice_keeps_the_failures_it_brings(tmp_path: Path) -> None:
    started(tmp_path, "a")
    RunDir.open(tmp_path, manifest(failed={"a": "was measured since", "b": "exploded"}))
    assert load(tmp_path).manifest["failed"] == {"b": "exploded"}


def test_opening_leaves_the_callers_manifest_alone(tmp_path: Path) -> None:
    started(tmp_path, "a").finish("then", 5.0)
    mine = manifest(created="later")
    before = copy.deepcopy(mine)
    RunDir.open(tmp_path, mine)
    assert mine == before


def test_a_packed_table_is_read_and_a_damaged_one_refused(tmp_path: Path) -> None:
    started(tmp_path, "a", "b")
    expected = load(tmp_path).tables
    table = tmp_path / "records.csv"
    packed = tmp_path / "records.csv.xz"
    packed.write_bytes(lzma.compress(table.read_bytes()))
    table.unlink()
    same(load(tmp_path).tables, expected)
    packed.write_bytes(b"no archive")
    damaged = load(tmp_path).damaged
    assert set(damaged) == {"a", "b"} and "records.csv.xz is damaged" in damaged["a"]
    of_an_earlier_version(tmp_path)
    with pytest.raises(RunError, match=r"records\.csv\.xz is damaged"):
        load(tmp_path)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_table_that_unpacks_to_gigabytes_is_refused(tmp_path: Path, earlier: bool) -> None:
    started(tmp_path, "a")
    if earlier:
        of_an_earlier_version(tmp_path)
    (tmp_path / "records.csv").unlink()
    packed = lzma.compress(bytes(1 << 25))
    assert len(packed) < 1 << 14
    (tmp_path / "records.csv.xz").write_bytes(packed)
    if earlier:
        with pytest.raises(RunError, match="bytes unpack to more than"):
            load(tmp_path)
    else:
        assert "bytes unpack to more than" in load(tmp_path).damaged["a"]


def test_a_cell_that_two_processes_measured_counts_once(tmp_path: Path) -> None:
    """As it could happen before folders were locked; seconds are all that differs."""
    folder = started(tmp_path, "a", "b")
    once = load(tmp_path).tables
    with pytest.raises(RunError, match=r"cell a is in .* already"):
        folder.append(cell("a"))
    folder.close()
    of_an_earlier_version(tmp_path)
    for name, frame in cell("a").items():
        for column in {"seconds", "tokens_per_second"} & set(frame):
            frame[column] += 1.5
        with (tmp_path / f"{name}.csv").open("ab") as file:
            file.write(csv_bytes(frame, header=False))
    run = load(tmp_path)
    same(run.tables, once)
    assert "Doubled rows" in run.notes[0] and "1 in runs.csv" in run.notes[0] and "2 in training.csv" in run.notes[0]
    RunDir.open(tmp_path, manifest()).close()
    assert not load(tmp_path).notes
    same(load(tmp_path).tables, once)


@pytest.mark.parametrize("name", ["=1+1", "+a", "-h.0", "@sum(a)", "\tx", "'=1+1", "'plain", "h.0 = 1"])
def test_no_text_is_a_formula_to_a_spreadsheet_and_each_comes_back(tmp_path: Path, name: str) -> None:
    given = cell("a")
    given.records["module"] = pd.array([name] * len(given.records), dtype="string")
    RunDir.open(tmp_path, manifest()).append(given)
    rows = list(csv.reader((tmp_path / "records.csv").read_text().splitlines()))
    assert not any(each.startswith(("=", "+", "@", "\t")) for row in rows for each in row)
    assert not any(each.startswith("-") and not re.fullmatch(r"-[\d.e+-]+|-inf", each) for row in rows for each in row)
    assert set(load(tmp_path).tables.records["module"]) == {name}
