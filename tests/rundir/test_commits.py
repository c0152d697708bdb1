"""What was committed is what is read, whatever happens to the files in between."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cells import cell, manifest

import initlab
from initlab.errors import InitlabError, RunError
from initlab.report.facts import shortfall
from initlab.rundir import COMMITS, RunDir, load
from initlab.rundir import reading as reading_module
from initlab.schema import TABLES

pytestmark = pytest.mark.integration

IDS = ["a", "b", 'quo"te,d', "two\nlines"]
DONE = {"finished": "2026-01-01T00:01:00Z", "cells": IDS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "whole"
    with RunDir.open(path, manifest(cells=IDS)) as folder:
        for run_id in IDS:
            folder.append(cell(run_id))
        folder.finish("2026-01-01T00:01:00Z", 1.0)
    return path


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def equal(left: pd.DataFrame, right: pd.DataFrame) -> bool:
    return list(left.columns) == list(right.columns) and left.astype(object).equals(right.astype(object))


def same_but_for(path: Path, whole: Path, missing: set[str]) -> None:
    """Every table, without the cells that are missing."""
    found, expected = load(path).tables, load(whole).tables
    for name, frame in expected.items():
        kept = frame[~frame["run_id"].isin(missing)].reset_index(drop=True)
        assert equal(getattr(found, name), kept), name


def test_a_whole_run_has_nothing_to_say(whole: Path) -> None:
    run = load(whole)
    assert run.complete and not run.damaged and not run.notes
    lines = [json.loads(line) for line in (whole / COMMITS).read_text().splitlines()]
    assert [line["cell"] for line in lines] == IDS
    assert lines[1]["tables"]["records"][0] == 3
    assert json.loads((whole / "run.json").read_text())["committed"] == 4


@pytest.mark.parametrize("name", ["records", "runs", "summary"])
@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda data: data.replace(b"\nb,", b"\nb.", 1), {"b"}),
        (lambda data: data[:-1], {IDS[3]}),
        (lambda data: data[: data.index(b"\nb,") + 1], set(IDS[1:])),
        (lambda data: data.replace(b"run_id", b"run_ie", 1), set(IDS)),
        (lambda data: b"", set(IDS)),
        (lambda data: re.sub(rb"\nb,.*", b"", data, count=1), {"b"}),
        (lambda data: data[: len(data) // 2] + bytes(512) + data[len(data) // 2 + 512 :], None),
        (lambda data: data + data[data.index(b"\nb,") + 1 :], set()),
    ],
    ids=["a byte", "the end", "cut", "header", "emptied", "a line", "zeros", "doubled behind"],
)
def test_a_damaged_cell_is_named_and_left_out_and_measured_again(
    copied: Path, whole: Path, name: str, damage: Callable[[bytes], bytes], lost: set[str] | None
) -> None:
    path = copied / f"{name}.csv"
    path.write_bytes(damage(path.read_bytes()))
    run = load(copied)
    assert lost is None or set(run.damaged) == lost
    assert all(f"{name}.csv" in why for why in run.damaged.values())
    assert run.complete is (not run.damaged)
    same_but_for(copied, whole, set(run.damaged))
    assert all(f"of {copied} left out: {name}.csv" in note for note in run.notes)
    assert bool(run.notes) is bool(run.damaged)
    with RunDir.open(copied, manifest(cells=IDS)) as folder:
        assert folder.done == set(IDS) - set(run.damaged)
        for run_id in run.damaged:
            folder.append(cell(run_id))
        again = folder.finish("later", 1.0)
    assert again.complete and not again.notes
    order = {run_id: place for place, run_id in enumerate(again.tables.summary["run_id"])}
    assert set(order) == set(IDS)
    for table, frame in load(whole).tables.items():
        moved = frame.sort_values("run_id", key=lambda ids: ids.astype("string").map(order), kind="stable")
        assert equal(getattr(again.tables, table), moved.reset_index(drop=True)), table


@pytest.mark.parametrize("name", [*(f"{name}.csv" for name in TABLES), COMMITS])
def test_a_missing_file_takes_every_cell_with_it(copied: Path, name: str) -> None:
    (copied / name).unlink()
    run = load(copied)
    assert len(run.damaged) == len(IDS) and run.tables.summary.empty and run.tables.records.empty
    with pytest.raises(RunError, match=rf"(?s)has no finished cell that is whole\. Cells .* left out: .*{name}"):
        initlab.load(copied)
    assert any(name in sentence for sentence in shortfall_of(run))


def shortfall_of(run: reading_module.Run) -> list[str]:
    return [sentence for sentence in shortfall(run) if "left out" in sentence]


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda lines: lines[:1] + lines[2:], {"number 2"}),
        (lambda lines: lines[:-1], {"number 4"}),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], {"number 4"}),
        (lambda lines: [lines[0], lines[0], *lines[1:]], set()),
        (lambda lines: [lines[0].replace(b'"a"', b'"x"'), *lines[1:]], {"number 1"}),
        (lambda lines: [lines[0], b"[" * 100_000 + b"\n", *lines[2:]], {"number 2"}),
        (lambda lines: [lines[0], b'{"sum": 1}\n', *lines[2:]], {"number 2"}),
        (lambda lines: [], {f"number {number}" for number in range(1, 5)}),
    ],
)
def test_a_damaged_line_of_a_finished_run_is_missed(
    copied: Path, whole: Path, damage: Callable[[list[bytes]], list[bytes]], lost: set[str]
) -> None:
    path = copied / COMMITS
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    run = load(copied)
    assert set(run.damaged) == lost
    same_but_for(copied, whole, {IDS[int(each.removeprefix("number ")) - 1] for each in lost})


@pytest.mark.parametrize("name", ["records.csv", COMMITS, "run.json"])
def test_a_file_that_cant_be_read_is_a_sentence(copied: Path, name: str) -> None:
    (copied / name).unlink()
    (copied / name).mkdir()
    with pytest.raises(RunError, match=rf"{name}.*Is a directory"):
        initlab.load(copied)


def test_a_manifest_that_was_changed_is_said(copied: Path) -> None:
    text = (copied / "run.json").read_text(encoding="utf-8")
    (copied / "run.json").write_text(text.replace('"depths": [\n   2', '"depths": [\n   3'), encoding="utf-8")
    run = load(copied)
    assert run.manifest["config"]["depths"] == [3, 4]
    assert run.notes == ["run.json isn't as it was written: what it says of the run may be wrong."]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": []},
        {"judging": "x"},
        {"judging": {"select": "x"}},
        {"judging": {"other": []}},
        {"data": None},
        {"cells": [[1]]},
        {"cells": [1]},
        {"recipes": {"nanogpt": 5}},
        {"recipes": {"nanogpt": {"rows": 5}}},
        {"failed": []},
        {"seconds": "x"},
        {"finished": 5},
        {"environment": []},
        {"config": {"depths": 5}},
        {"config": {"recipes": [[]]}},
        {"committed": "x"},
        {"committed": -1},
    ],
)
def test_a_manifest_made_by_hand_gives_one_sentence(copied: Path, changes: dict[str, object]) -> None:
    (copied / "run.json").write_text(json.dumps(manifest(**changes)))
    (name,) = changes
    with pytest.raises(RunError, match=rf"run\.json is damaged: {name}[.a-z]* missing or of another type"):
        initlab.load(copied)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (json.dumps(manifest(schema_version=True)), "no initlab wrote"),
        (json.dumps(manifest(schema_version=10**30)), "newer initlab .*: update initlab"),
        (json.dumps(manifest(kind="diff")), "a newer one may: update initlab"),
        (json.dumps(manifest(kind="a" * 10, committed=10**12)), "kind 'aaaaaaaaaa'"),
    ],
)
def test_what_no_version_wrote_or_a_newer_one_is_a_sentence(copied: Path, content: str, named: str) -> None:
    (copied / "run.json").write_text(content)
    with pytest.raises(InitlabError, match=named):
        initlab.load(copied)


def test_a_run_that_grows_while_it_is_read_is_read_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of commits are read before the tables: a cell that comes in between is no cell without records."""
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("a"))
    lines = reading_module.read_lines
    monkeypatch.setattr(reading_module, "read_lines", lambda path: (lines(path), grow(folder))[0])
    run = load(tmp_path)
    assert run.tables.summary["run_id"].tolist() == ["a"] and len(run.tables.records) == 3
    assert not run.damaged


def grow(folder: RunDir) -> None:
    if "b" not in folder.done:
        folder.append(cell("b"))


def test_a_table_that_is_written_anew_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDir.open(tmp_path, manifest())
    folder.append(cell("a"))
    lines = reading_module.read_lines
    wider = cell("b")
    wider.records["mine"] = 1.0

    def grown(path: Path) -> bytes:
        found = lines(path)
        if "b" not in folder.done:
            folder.append(wider)
        return found

    monkeypatch.setattr(reading_module, "read_lines", grown)
    run = load(tmp_path)
    assert not run.damaged and not run.notes
    assert run.tables.summary["run_id"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(run.tables.records["mine"], [np.nan] * 3 + [1.0] * 3)


def test_killed_while_a_column_is_added_every_cell_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every rename in turn: before it, the old bytes are right, and after it the new ones."""
    wider = cell("c")
    wider.records["mine"], wider.heads["mine"] = 1.0, 2.0
    for last in range(20):
        path = tmp_path / str(last)
        with RunDir.open(path, manifest()) as folder:
            folder.append(cell("a"))
            folder.append(cell("b"))
            left = iter(range(last))

            def replace(source: Path, target: Path, left: object = left) -> None:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                source.rename(target)

            with monkeypatch.context() as patched:
                patched.setattr(Path, "replace", replace)
                try:
                    folder.append(wider)
                except KeyboardInterrupt:
                    done = ["a", "b"]
                else:
                    done = ["a", "b", "c"]
        run = load(path)
        assert not run.damaged and run.tables.summary["run_id"].tolist() == done
        with RunDir.open(path, manifest()) as folder:
            assert folder.done == set(done)
        assert not load(path).damaged
        if len(done) == 3:
            return
    raise AssertionError("never finished")


def test_old_lines_go_once_a_run_is_resumed(tmp_path: Path) -> None:
    wider = cell("b")
    wider.records["mine"] = 1.0
    with RunDir.open(tmp_path, manifest()) as folder:
        folder.append(cell("a"))
        folder.append(wider)
    assert len(json.loads((tmp_path / COMMITS).read_text().splitlines()[0])["tables"]["records"]) == 3
    RunDir.open(tmp_path, manifest()).close()
    assert len(json.loads((tmp_path / COMMITS).read_text().splitlines()[0])["tables"]["records"]) == 2
