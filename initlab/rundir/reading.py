"""A run's folder, read: what was committed, whole, and a word for everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from initlab import schema
from initlab.rundir.commits import Commit, Part, Stored, part_of, read_lines, stored
from initlab.rundir.files import csv_bytes, parse, read_bytes
from initlab.rundir.manifest import COMMITTED, MANIFEST, SUM, read_manifest, unchanged
from initlab.schema import Tables

_TRIES = 5  # at a folder that is being written


@dataclass
class Run:
    """What a run folder holds: tables, and the manifest that run.json stores.

    Manifest keys: schema_version, kind (probe, compare, scale or watch), command, config (what makes two runs the
    same), recipes (evaluated, see `initlab.recipes.evaluate`), data, environment, created, finished (None while
    incomplete), cells (planned run ids), failed (run id -> error text); init (of a probe: how the weights compare with
    known recipes and with the model's own code), metrics (column of a further statistic -> what it means) and judging
    (overrides of rules and limits), where there are any.

    Attributes:
        tables: of the cells that are whole.
        manifest: of run.json.
        damaged: cell -> file; of those that aren't what was written, and were left out.
        notes: sentences about what reading the folder found.
    """

    tables: Tables
    manifest: dict[str, Any]
    damaged: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # of judge.keeping

    @property
    def complete(self) -> bool:
        """Every planned cell is in the tables, and no other was lost."""
        return not self.damaged and set(self.manifest["cells"]) <= set(self.tables.summary["run_id"])


def load(path: str | Path) -> Run:
    """Read a run folder; cells that were not committed are dropped, and those that are damaged named and dropped.

    Raises:
        RunError: no run in the folder, or run.json is damaged or of a newer schema than this version knows.
        SchemaError: a table lacks what every version writes, or holds what its column can't.
    """
    return read(Path(path))[0]


def read(path: Path) -> tuple[Run, Stored | None]:
    """Read a run folder, as tables and, but for one of an earlier version, as bytes.

    Args:
        path: of the folder.

    Raises:
        RunError, SchemaError: as `load` says.
    """
    manifest = read_manifest(path)
    if not manifest.keys() & {COMMITTED, SUM}:
        return _of_earlier_versions(path, manifest), None
    for _ in range(_TRIES):
        lines = read_lines(path)  # before the tables, which may have grown by the time that they are read
        found = stored(path, lines, schema.TABLES, manifest.get(COMMITTED))
        if not found.damaged or (lines == read_lines(path) and manifest == read_manifest(path)):
            break
        manifest = read_manifest(path)  # a resumed run, or a table with a new column, was written meanwhile
    frames = {name: parse(name, found.data(name), path / f"{name}.csv") for name in schema.TABLES}
    notes = _said(path, found.damaged)
    if not unchanged(manifest):
        notes.append(f"{MANIFEST} isn't as it was written: what it says of the run may be wrong.")
    kept = {key: value for key, value in manifest.items() if key not in (COMMITTED, SUM)}
    return Run(Tables(**frames), kept, found.damaged, notes), found


def _said(path: Path, damaged: dict[str, str]) -> list[str]:
    alike: dict[str, list[str]] = {}
    for cell, why in damaged.items():
        alike.setdefault(why, []).append(cell)
    return [
        f"{'Cell' if len(cells) == 1 else 'Cells'} {', '.join(cells[:4])}"
        f"{f' and {len(cells) - 4} more' if len(cells) > 4 else ''} of {path} left out: {why}; the same command with "
        "the same -o measures again."
        for why, cells in alike.items()
    ]


def _of_earlier_versions(path: Path, manifest: dict[str, Any]) -> Run:
    """A folder without commits.jsonl: a cell is committed by its line in summary.csv."""
    summary = parse("summary", read_bytes(path / "summary.csv"), path / "summary.csv")
    committed = set(summary["run_id"])
    frames, doubled = {}, []
    for name in schema.TABLES:
        source = path / f"{name}.csv"
        frame = summary if name == "summary" else parse(name, read_bytes(source), source)
        frame = frame[frame["run_id"].isin(committed)]
        # Floats don't tell rows apart: two processes that measured into one folder differ in seconds.
        again = frame.duplicated([column for column in frame if frame[column].dtype != "float64"])
        if again.any():
            doubled.append(f"{again.sum()} in {source.name}")
        frames[name] = schema.cast(name, frame[~again].reset_index(drop=True))
    notes = [f"Doubled rows of {path} were left out: {', '.join(doubled)}."] if doubled else []
    return Run(Tables(**frames), manifest, notes=notes)


def as_stored(tables: Tables) -> Stored:
    """Lay out tables as the files of a folder.

    Args:
        tables: of a run.
    """
    run_ids = list(dict.fromkeys(map(str, tables.summary["run_id"])))
    parts: dict[str, dict[str, Part]] = {run_id: {} for run_id in run_ids}
    found = Stored()
    for name, frame in tables.items():
        header, pieces, rows = laid_out(frame)
        found.headers[name], found.pieces[name] = header if pieces else b"", pieces
        for run_id, lines in pieces.items():
            parts[run_id][name] = part_of(rows[run_id], header, lines)
    found.commits = [Commit(number, run_id, parts[run_id]) for number, run_id in enumerate(run_ids)]
    return found


def laid_out(frame: pd.DataFrame) -> tuple[bytes, dict[str, bytes], dict[str, int]]:
    """Write a table as CSV, cell by cell: its header, and lines and their number by run id.

    Args:
        frame: of a table.
    """
    cells = {str(run_id): rows for run_id, rows in frame.groupby("run_id", observed=True, sort=False)}
    lines = {run_id: csv_bytes(rows, header=False) for run_id, rows in cells.items()}
    return csv_bytes(frame.iloc[:0], header=True), lines, {run_id: len(rows) for run_id, rows in cells.items()}
