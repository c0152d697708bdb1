"""A run's folder, written: one process at a time, cell by cell; a cell is there as a whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from initlab import schema
from initlab.errors import RunError
from initlab.rundir.commits import COMMITS, Commit, Stored, part_of, read_lines, stored
from initlab.rundir.files import append_all, csv_bytes, parse, write_whole
from initlab.rundir.lock import LOCK, held_here, take
from initlab.rundir.manifest import (
    COMMITTED,
    MANIFEST,
    SUM,
    read_manifest,
    refuse_another_run,
    write_manifest,
)
from initlab.rundir.reading import Run, as_stored, laid_out, load, read
from initlab.schema import Tables

_ORDER = (
    *("records", "heads", "coverage", "wiring", "routing", "behaviour", "draws", "declared"),
    *("writes", "training", "runs", "summary"),
)
_ALWAYS = ("records", "heads", "coverage", "summary")  # a file each, if only of column names


class RunDir:
    """An open run folder, new or resumed. A context manager: leaving it lets others write."""

    def __init__(self, path: Path, manifest: dict[str, Any], held: Stored):
        self.path = path
        self.manifest = manifest
        self._commits = held.commits
        self._headers = held.headers
        self._lock = take(path, str(manifest.get("command", "")))

    @classmethod
    def open(cls, path: str | Path, manifest: dict[str, Any]) -> RunDir:
        """Create the folder, or resume the same run in it; nobody else can write it until `close`.

        Raises:
            RunError: another process writes the folder, or it can't be written, holds another run, or holds files that
                are no run.
        """
        path = Path(path)
        _refuse_other_files(path, _contents(path))
        folder = cls(path, manifest, Stored())
        try:
            folder._begin()
        except BaseException:
            folder._lock.release()
            raise
        return folder

    def _begin(self) -> None:
        found = _contents(self.path)  # again, now that it can't change any more
        _refuse_other_files(self.path, found)
        if MANIFEST in found:
            run, held = read(self.path)
            refuse_another_run(self.path, run.manifest, self.manifest)
            committed = set(run.tables.summary["run_id"])
            self.manifest = {
                **self.manifest,
                "created": run.manifest["created"],
                "seconds": run.manifest.get("seconds", 0.0),
                "failed": {id: text for id, text in self.manifest["failed"].items() if id not in committed},
            }
            self._adopt(held or as_stored(run.tables), run.tables)
        else:
            write_whole(self.path / COMMITS, b"")
        self.write_manifest()

    @property
    def done(self) -> set[str]:
        """Run ids of the cells that are committed."""
        return {commit.run_id for commit in self._commits}

    def append(self, tables: Tables) -> None:
        """Commit the tables of one finished cell.

        Raises:
            RunError: the disk is full, with nothing half-written; or the cell is committed already.
        """
        (run_id,) = map(str, tables.summary["run_id"].unique())
        if run_id in self.done:
            raise RunError(f"cell {run_id} is in {self.path} already; it isn't written twice")
        pieces, parts, headers = [], {}, {}
        for name in _ORDER:
            frame = getattr(tables, name)
            if not len(frame) and name not in _ALWAYS:
                continue
            path = self.path / f"{name}.csv"
            frame = self._fitted(name, frame[frame["run_id"] == run_id])
            header = self._headers.get(name) or csv_bytes(frame.iloc[:0], header=True)
            lines = csv_bytes(frame, header=False)
            if len(frame):
                parts[name] = part_of(len(frame), header, lines)
            headers[name] = header
            pieces.append((path, lines if self._headers.get(name) and path.exists() else header + lines))
        commit = Commit(len(self._commits), run_id, parts)
        pieces.append((self.path / COMMITS, commit.line()))
        append_all(pieces, f"{len(self._commits)} finished cells are kept, the same command with the same -o resumes")
        self._headers.update(headers)
        self._commits.append(commit)

    def fail(self, run_id: str, error: str) -> None:
        """Record a cell that could not be measured."""
        self.manifest["failed"][run_id] = error
        self.write_manifest()

    def finish(self, finished: str, seconds: float) -> Run:
        """Mark the run as done, read it back, and let others write."""
        self.manifest.update(finished=finished, seconds=round(self.manifest.get("seconds", 0) + seconds, 1))
        self.close()
        return load(self.path)

    def close(self) -> None:
        """Let others write. Of a finished run, run.json says how many cells there are."""
        try:
            if self.manifest.get("finished") and self._lock.held:
                self.write_manifest()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def restore_if_deleted(self, parts: Iterable[Tables]) -> None:
        """Write the whole run again where its folder was deleted meanwhile.

        Args:
            parts: all that was committed, in any number of tables.

        Raises:
            RunError: the folder can't be written, or another process has begun to.
        """
        if (self.path / MANIFEST).exists():
            return
        self._lock.release()
        again = RunDir.open(self.path, self.manifest)
        self._lock, self._commits, self._headers = again._lock, again._commits, again._headers
        for tables in parts:
            for cell in _cells(tables):
                self.append(cell)

    def forget(self, run_ids: Iterable[str]) -> None:
        """Drop committed cells that will be measured again."""
        dropped = set(run_ids)
        held = stored(self.path, read_lines(self.path), schema.TABLES, None)
        held.commits = [commit for commit in held.commits if commit.run_id not in dropped]
        self._write(held)

    def write_manifest(self) -> None:
        """Bring run.json up to date with `manifest`."""
        committed = len(self._commits) if self.manifest.get("finished") else None
        kept = {key: value for key, value in self.manifest.items() if key != SUM}
        write_manifest(self.path, kept | {COMMITTED: committed})

    def _adopt(self, held: Stored, tables: Tables) -> None:
        """Go on with what a folder holds: what isn't committed goes, and columns that this version adds come."""
        others = {
            name: frame
            for name, frame in tables.items()
            if held.headers.get(name) and held.headers[name] != csv_bytes(frame.iloc[:0], header=True)
        }
        self._lay_out(others, held)

    def _lay_out(self, frames: dict[str, pd.DataFrame], held: Stored) -> None:
        """Write the folder with other frames in tables' places; meanwhile old and new lines of a cell are right."""
        parts = {commit.run_id: dict(commit.parts) for commit in held.commits}
        for name, frame in frames.items():
            header, pieces, rows = laid_out(frame)
            for run_id, lines in pieces.items():
                new = part_of(rows[run_id], header, lines)
                before = parts[run_id].get(name)
                parts[run_id][name] = replace(new, kept=(*new.kept, *before.kept)) if before else new
            held.headers[name], held.pieces[name] = header, pieces
        held.commits = [replace(commit, parts=parts[commit.run_id]) for commit in held.commits]
        self._write(held)

    def _write(self, held: Stored) -> None:
        """Write the whole folder anew. Killed at any moment, it holds every cell, as it was or as it will be."""
        commits = [replace(commit, number=number) for number, commit in enumerate(held.commits)]
        write_whole(self.path / COMMITS, b"".join(commit.line() for commit in commits))
        for name in _ORDER:
            path = self.path / f"{name}.csv"
            data = held.data(name)
            if not data:
                held.headers[name] = b""
            there = path.read_bytes() if path.is_file() else None
            if data != (there or b"") or (there is None and name in _ALWAYS):
                write_whole(path, data)
        self._commits, self._headers = commits, held.headers

    def _fitted(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with the columns of the file that it goes into, which first gets those that it lacks."""
        header = self._headers.get(name)
        there = next(csv.reader([header.decode()])) if header else []
        if not there or there == list(frame.columns):
            return frame
        if set(frame.columns) <= set(there):
            return frame.reindex(columns=there)
        held = stored(self.path, read_lines(self.path), schema.TABLES, None)
        before = parse(name, held.data(name), self.path / f"{name}.csv")
        both = schema.cast(name, pd.concat([before, frame], ignore_index=True))
        self._lay_out({name: both.iloc[: len(before)]}, held)
        return both.iloc[len(before) :]


def _cells(tables: Tables) -> Iterator[Tables]:
    for run_id in tables.summary["run_id"].unique():
        yield tables.of(run_id)


def _contents(path: Path) -> list[str]:
    """Names in a folder, which is made if it isn't there."""
    # a process killed while it wrote leaves a temporary file, and a lock that nobody holds
    passing = {LOCK, COMMITS, f"{COMMITS}.tmp", f"{MANIFEST}.tmp"}
    try:
        path.mkdir(parents=True, exist_ok=True)
        return sorted(item.name for item in path.iterdir() if item.name not in passing)
    except FileExistsError:
        raise RunError(f"output folder {path} can't be written: it is a file; choose another with -o") from None
    except OSError as error:
        raise RunError(f"output folder {path} can't be written: {error.strerror}; choose another with -o") from None


def _refuse_other_files(path: Path, found: list[str]) -> None:
    if found and MANIFEST not in found:
        raise RunError(f"output folder {path} holds other files ({', '.join(found[:3])}); choose an empty one with -o")


def check(path: Path) -> None:
    """Whether a run may be written there, as far as that can be told before it is made.

    Raises:
        RunError: the folder can't be made, holds files that are no run, or another process writes it.
    """
    there = path.exists()
    _refuse_other_files(path, _contents(path))
    take(path).release()
    if not there:
        path.rmdir()


def note(path: Path, key: str, value: Any) -> None:
    """Set a key of a run's manifest on disk, or take it away if the value is empty.

    Args:
        path: of the folder.
        key: of run.json.
        value: that it gets.

    Raises:
        RunError: as `load` says; or another process writes the folder.
    """
    manifest = read_manifest(path)
    if manifest.get(key) == value or (not value and key not in manifest):
        return
    lock = None if held_here(path) else take(path)
    try:
        manifest = read_manifest(path)
        manifest.pop(key, None)
        if value:
            manifest[key] = value
        write_manifest(path, manifest)
    finally:
        if lock is not None:
            lock.release()
