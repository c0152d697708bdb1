"""Random corruptions of run folders: none is read as other tables without a word."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from cells import as_before, cell, manifest

import initlab
from initlab.errors import InitlabError
from initlab.report.facts import shortfall
from initlab.rundir import RunDir, load

pytestmark = pytest.mark.integration

KINDS = {"probe": 1, "compare": 3, "watch": 4, "train": 2, "confirm": 5}
TRAINED = ("training", "runs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for kind, cells in KINDS.items():
        run_ids = [f"{kind}-L2-d64-s{number}" for number in range(cells)]
        planned = [] if kind == "watch" else run_ids
        with RunDir.open(folder / kind, manifest(kind=kind, cells=planned)) as made:
            for run_id in run_ids:
                tables = cell(run_id)
                if kind not in ("train", "confirm"):
                    for name in TRAINED:
                        setattr(tables, name, getattr(tables, name).iloc[:0])
                made.append(tables)
            made.finish("2026-01-01T00:01:00Z", 1.0)
    return {kind: folder / kind for kind in KINDS}


def corrupt(folder: Path, chance: random.Random) -> str:
    """Damage a file of a folder as disks, copies and people do; returns what was done."""
    path = chance.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    lines = bytes(data).splitlines(keepends=True)
    at = chance.randrange(max(len(data), 1))
    how = chance.choice(("bit", "zeros", "cut", "empty", "gone", "line gone", "line doubled", "lines swapped", "digit"))
    if how == "gone":
        path.unlink()
    elif how == "bit" and data:
        data[at] ^= 1 << chance.randrange(8)
    elif how == "zeros":
        data[at : at + 512] = bytes(min(512, len(data) - at))
    elif how == "cut":
        del data[at:]
    elif how == "empty":
        data.clear()
    elif how == "digit":
        digits = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
        if digits:
            place = chance.choice(digits)
            data[place] = ord(str((int(chr(data[place])) + 1) % 10))
    elif lines:
        place = chance.randrange(len(lines))
        other = chance.randrange(len(lines))
        if how == "line gone":
            del lines[place]
        elif how == "line doubled":
            lines.insert(place, lines[place])
        else:
            lines[place], lines[other] = lines[other], lines[place]
        data[:] = b"".join(lines)
    if how != "gone":
        path.write_bytes(data)
    return f"{how} in {folder.name}/{path.name}"


def accepted(whole: Path, folder: Path, seed: int) -> str | None:
    """What was read with other tables, or another manifest, and nothing said; None where all is well."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    done = corrupt(folder, random.Random(seed))
    try:
        run = initlab.load(folder).run
    except InitlabError:
        return None
    expected = load(whole)
    same = run.manifest == expected.manifest and all(
        pd.DataFrame.equals(found.astype(object), frame.astype(object))
        for (_, found), (_, frame) in zip(run.tables.items(), expected.tables.items(), strict=True)
    )
    said = [note for note in run.notes if note in shortfall(run)]
    return None if same or said else done


def rounds(runs: dict[str, Path], folder: Path, count: int) -> list[str]:
    kinds = list(KINDS)
    found = (accepted(runs[kinds[seed % len(kinds)]], folder / "run", seed) for seed in range(count))
    return [each for each in found if each is not None]


def test_no_corruption_passes_for_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    assert rounds(runs, tmp_path, 25) == []


@pytest.mark.slow
def test_none_of_a_thousand_corruptions_passes_for_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    assert rounds(runs, tmp_path, 1000) == []


def test_the_fuzz_sees_what_passes_where_nothing_is_checked(runs: dict[str, Path], tmp_path: Path) -> None:
    """It can fail: without commits.jsonl, as folders of earlier versions are read, many corruptions go through."""
    earlier = {}
    for kind, path in runs.items():
        earlier[kind] = tmp_path / kind
        shutil.copytree(path, earlier[kind])
        as_before(earlier[kind])
    assert len(rounds(earlier, tmp_path, 25)) > 3
