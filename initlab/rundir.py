"""A run's folder: tables that grow cell by cell, and run.json that says what they are.

A cell is committed by its line in summary.csv, written last: whatever a killed process leaves behind in the other
files belongs to no summary line and is dropped on the next read.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import lzma
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from initlab import schema
from initlab.errors import RunError
from initlab.schema import Tables

MANIFEST = "run.json"
# summary.csv last: its line is what makes a cell count.
_COMMIT_ORDER = (
    *("records", "heads", "coverage", "wiring", "routing", "behaviour", "draws", "declared"),
    *("writes", "training", "runs", "summary"),
)
_ALWAYS = ("records", "heads", "coverage", "summary")  # a file each, if only of column names
_MOST_NAMED = 4  # differences, in an error
_REQUIRED = {"config": dict, "recipes": dict, "cells": list, "failed": dict, "created": str}


@dataclass
class Run:
    """What a run folder holds: tables, and the manifest that run.json stores.

    Manifest keys: schema_version, kind (probe, compare, scale or watch), command, config (what makes two runs the
    same), recipes (evaluated, see `initlab.recipes.evaluate`), data, environment, created, finished (None while
    incomplete), cells (planned run ids), failed (run id -> error text); init (of a probe: how the weights compare with
    known recipes and with the model's own code), metrics (column of a further statistic -> what it means) and judging
    (overrides of rules and limits), where there are any.
    """

    tables: Tables
    manifest: dict[str, Any]
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)  # of judge.keeping

    @property
    def complete(self) -> bool:
        """Every planned cell is in the tables."""
        return set(self.manifest["cells"]) <= set(self.tables.summary["run_id"])


class RunDir:
    """An open run folder, new or resumed."""

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, manifest: dict[str, Any]) -> RunDir:
        """Create the folder, or resume the same run in it.

        Raises:
            RunError: the folder can't be written, holds another run, or holds files that are no run.
        """
        path = Path(path)
        found = _contents(path)
        if MANIFEST in found:
            run = load(path)
            _refuse_another_run(path, run.manifest, manifest)
            committed = set(run.tables.summary["run_id"])
            manifest = {
                **manifest,
                "created": run.manifest["created"],
                "seconds": run.manifest.get("seconds", 0.0),
                "failed": {id: text for id, text in manifest["failed"].items() if id not in committed},
            }
            folder = cls(path, manifest)
            folder._rewrite(run.tables)
        elif found:
            shown = ", ".join(found[:3])
            raise RunError(f"output folder {path} holds other files ({shown}); choose an empty one with -o")
        else:
            folder = cls(path, manifest)
        folder.write_manifest()
        return folder

    @property
    def done(self) -> set[str]:
        """Run ids of the cells that are committed."""
        path = self.path / "summary.csv"
        return set(_read_table("summary", path)["run_id"]) if path.exists() else set()

    def append(self, tables: Tables) -> None:
        """Commit the tables of one finished cell. Raises RunError, with nothing half-written, on a full disk."""
        filled = [name for name in _COMMIT_ORDER if len(getattr(tables, name)) or name in _ALWAYS]
        paths = {name: self.path / f"{name}.csv" for name in filled}
        frames = {name: _fitted(name, getattr(tables, name), path) for name, path in paths.items()}
        sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
        for name, path in paths.items():
            try:
                with path.open("ab") as file:
                    file.write(_csv(frames[name], header=sizes[name] == 0))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                for written, size in sizes.items():
                    with contextlib.suppress(OSError):
                        os.truncate(paths[written], size)
                raise RunError(
                    f"could not write {path}: {error.strerror}; {len(self.done)} finished cells are kept, "
                    "the same command with the same -o resumes"
                ) from None

    def fail(self, run_id: str, error: str) -> None:
        """Record a cell that could not be measured."""
        self.manifest["failed"][run_id] = error
        self.write_manifest()

    def finish(self, finished: str, seconds: float) -> Run:
        """Mark the run as done and read it back."""
        self.manifest.update(finished=finished, seconds=round(self.manifest.get("seconds", 0) + seconds, 1))
        self.write_manifest()
        return load(self.path)

    def _rewrite(self, tables: Tables) -> None:
        for name in _COMMIT_ORDER:
            frame = getattr(tables, name)
            path = self.path / f"{name}.csv"
            if len(frame) or name in _ALWAYS or path.exists():
                write_whole(path, _csv(frame, header=True) if len(frame) else b"")

    def forget(self, run_ids: Iterable[str]) -> None:
        """Drop committed cells that will be measured again."""
        tables, dropped = load(self.path).tables, set(run_ids)
        self._rewrite(Tables(**{name: frame[~frame["run_id"].isin(dropped)] for name, frame in tables.items()}))

    def write_manifest(self) -> None:
        """Bring run.json up to date with `manifest`."""
        _write_manifest(self.path, self.manifest)


def _contents(path: Path) -> list[str]:
    """Names in a folder, which is made if it isn't there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # a process killed while it wrote leaves a temporary file
        return sorted(item.name for item in path.iterdir() if item.name != MANIFEST + ".tmp")
    except FileExistsError:
        raise RunError(f"output folder {path} can't be written: it is a file; choose another with -o") from None
    except OSError as error:
        raise RunError(f"output folder {path} can't be written: {error.strerror}; choose another with -o") from None


def check(path: Path) -> None:
    """Whether a run may be written there, as far as that can be told before it is made.

    Raises:
        RunError: the folder can't be made, or holds files that are no run.
    """
    found = _contents(path)
    if found and MANIFEST not in found:
        raise RunError(f"output folder {path} holds other files ({', '.join(found[:3])}); choose an empty one with -o")
    if not found:
        path.rmdir()


def load(path: str | Path) -> Run:
    """Read a run folder; cells that were not committed are dropped.

    Raises:
        RunError: no run in the folder, or run.json is damaged or of a newer schema than this version knows.
        SchemaError: a table lacks what every version writes, or holds what its column can't.
    """
    path = Path(path)
    source = path / MANIFEST
    manifest = _read_manifest(path)
    version = manifest.get("schema_version")
    if type(version) is not int or version < 1:
        raise RunError(f"{source} has schema version {version}, which no initlab wrote; measure into a new folder")
    if version > schema.SCHEMA_VERSION:
        raise RunError(
            f"{source} was written by a newer initlab (schema {version}), this one reads up to "
            f"{schema.SCHEMA_VERSION}: update initlab"
        )
    damaged = [key for key, kind in _REQUIRED.items() if not isinstance(manifest.get(key), kind)]
    if damaged:
        raise RunError(
            f"{source} is damaged: {', '.join(damaged)} missing or of another type; measure into a new folder"
        )
    tables = {name: _read_table(name, path / f"{name}.csv") for name in schema.TABLES}
    if tables["summary"].duplicated(["run_id", "step"]).any():
        # two processes measured into one folder; their cells are the same but for the seconds
        tables = {name: frame.drop_duplicates() for name, frame in tables.items()}
        tables["summary"] = tables["summary"].drop_duplicates(["run_id", "step"])
    committed = set(tables["summary"]["run_id"])
    kept = {
        name: schema.cast(name, frame[frame["run_id"].isin(committed)].reset_index(drop=True))
        for name, frame in tables.items()
    }
    return Run(Tables(**kept), manifest)


def note(path: Path, key: str, value: Any) -> None:
    """Set a key of a run's manifest on disk, or take it away if the value is empty. Raises RunError as `load` does."""
    manifest = _read_manifest(path)
    if manifest.get(key) == value or (not value and key not in manifest):
        return
    manifest.pop(key, None)
    if value:
        manifest[key] = value
    _write_manifest(path, manifest)


def _read_manifest(path: Path) -> dict[str, Any]:
    source = path / MANIFEST
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"no run in {path}: {MANIFEST} not found; give the folder that -o named") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{source} can't be read: {error}") from None
    return manifest if isinstance(manifest, dict) else {}


def _write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    write_whole(path / MANIFEST, (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode())


def _refuse_another_run(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    there, now = found.get("kind"), wanted.get("kind")
    if there != now:
        raise RunError(f"output folder {path} holds a run of `{there}`, not of `{now}`; choose another folder with -o")
    different = sorted(
        f"{key}: {found['config'].get(key)!r} there, {wanted['config'].get(key)!r} now"
        for key in wanted["config"].keys() | found["config"].keys()
        if found["config"].get(key) != wanted["config"].get(key)
    )
    if found["recipes"] != wanted["recipes"] and not different:
        different = ["the recipes' definitions changed"]
    if different:
        more = len(different) - _MOST_NAMED
        shown = different[:_MOST_NAMED] + ([f"{more} more"] if more > 0 else [])
        raise RunError(
            f"output folder {path} holds another run ({'; '.join(shown)}); "
            "choose another folder with -o, or repeat the same command to resume"
        )


def _csv(frame: pd.DataFrame, *, header: bool) -> bytes:
    # 9 significant digits round-trip a float32.
    return frame.to_csv(index=False, header=header, float_format="%.9g", lineterminator="\n").encode()


def _fitted(name: str, frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The frame with the columns of the file that it goes into, which first gets those that it lacks."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            there = next(csv.reader(file), [])
    except FileNotFoundError:
        return frame
    if not there or there == list(frame.columns):
        return frame
    if set(frame.columns) <= set(there):
        return frame.reindex(columns=there)
    before = _read_table(name, path)
    both = schema.cast(name, pd.concat([before, frame], ignore_index=True))
    write_whole(path, _csv(both.iloc[: len(before)], header=True))
    return both.iloc[len(before) :]


def _read_table(name: str, path: Path) -> pd.DataFrame:
    packed = path.with_name(path.name + ".xz")  # as committed samples are
    if path.exists():
        data = path.read_bytes()
    elif packed.exists():
        try:
            data = lzma.decompress(packed.read_bytes())
        except lzma.LZMAError as error:
            raise RunError(f"{packed} is damaged: {error}") from None
    else:
        return schema.table(name, [])
    whole = data[: data.rfind(b"\n") + 1]  # a killed process can leave half a line
    if not whole:
        return schema.table(name, [])
    text = {column: "string" for column, spec in schema.TABLES[name].items() if spec.dtype in ("string", "category")}
    try:
        frame = pd.read_csv(io.BytesIO(whole), dtype=text, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    return schema.cast(name, frame)


def write_whole(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"could not write {path}: {error.strerror}") from None
