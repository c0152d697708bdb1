"""What was committed is what is read: a line for each finished cell, with rows and a checksum for each table.

A cell is committed by its line in commits.jsonl, which is written last. Whatever a killed process leaves behind it in
the tables belongs to no line and is never read, and bytes that aren't those of the line are found, whatever changed
them: the cell is named, left out, and measured again by a command that resumes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from initlab.errors import RunError
from initlab.rundir.files import read_bytes

COMMITS = "commits.jsonl"
_DIGITS = 16  # of a checksum: 64 bits, against accidents


@dataclass(frozen=True, slots=True)
class Part:
    """A cell's rows in one table.

    Attributes:
        rows: how many.
        kept: size in bytes and checksum, of those with the table's header before them. More than one while the table is
            being written anew with other columns: either may be found.
    """

    rows: int
    kept: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """A line of commits.jsonl.

    Attributes:
        number: of the line, from 0.
        run_id: of the cell.
        parts: by table; those without rows are left out.
    """

    number: int
    run_id: str
    parts: Mapping[str, Part]

    def line(self) -> bytes:
        """Write it, with a checksum of itself."""
        parts = {name: [part.rows, *map(list, part.kept)] for name, part in self.parts.items()}
        content = {"number": self.number, "cell": self.run_id, "tables": parts}
        return (json.dumps(content | {"sum": _sum_of(content)}, ensure_ascii=False) + "\n").encode()


@dataclass
class Stored:
    """What a folder holds, as bytes.

    Attributes:
        commits: of the cells that are whole.
        headers: first line of each table's file.
        pieces: table -> run id -> the cell's lines.
        damaged: cell, or what else was lost -> which file.
    """

    commits: list[Commit] = field(default_factory=list)
    headers: dict[str, bytes] = field(default_factory=dict)
    pieces: dict[str, dict[str, bytes]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)

    def data(self, name: str) -> bytes:
        """Put a table's file together.

        Args:
            name: of the table.
        """
        own = self.pieces.get(name, {})
        lines = b"".join(own[commit.run_id] for commit in self.commits if commit.run_id in own)
        return self.headers[name] + lines if lines else b""


def checksum(header: bytes, lines: bytes) -> str:
    """Take the checksum of a cell's lines in a table.

    Args:
        header: first line of the table.
        lines: of the cell.
    """
    made = hashlib.sha256(header)
    made.update(lines)
    return made.hexdigest()[:_DIGITS]


def part_of(rows: int, header: bytes, lines: bytes) -> Part:
    """Describe a cell's lines in a table.

    Args:
        rows: how many.
        header: first line of the table.
        lines: of the cell.
    """
    return Part(rows, ((len(lines), checksum(header, lines)),))


def read_lines(path: Path) -> bytes:
    """Read commits.jsonl of a folder; empty where there is none. Raises RunError where it can't be read."""
    try:
        return (path / COMMITS).read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"{path / COMMITS} can't be read: {error.strerror}") from None


def stored(path: Path, lines: bytes, tables: Iterable[str], finished: int | None) -> Stored:
    """Read a folder's tables, as far as they are what was committed.

    Args:
        path: of the folder.
        lines: of commits.jsonl, read before any table.
        tables: names.
        finished: how many lines there must be; None of a run that isn't finished.
    """
    commits, damaged = _commits(lines, finished)
    found = Stored(damaged=damaged)
    for name in tables:
        source = path / f"{name}.csv"
        try:
            data = read_bytes(source)
            why = f"{source.name} isn't what was written" if data else f"{source.name} is gone, or empty"
        except RunError as error:
            data, why = b"", str(error)
        header = data[: data.find(b"\n") + 1]
        found.headers[name], found.pieces[name] = header, _pieces(name, data, len(header), commits)
        for commit in commits:
            if name in commit.parts and commit.run_id not in found.pieces[name]:
                found.damaged.setdefault(commit.run_id, why)
    found.commits = [_as_found(commit, found) for commit in commits if commit.run_id not in found.damaged]
    return found


def _as_found(commit: Commit, held: Stored) -> Commit:
    """A commit, of the bytes that are there."""
    parts = {
        name: part_of(part.rows, held.headers[name], held.pieces[name][commit.run_id])
        for name, part in commit.parts.items()
        if name in held.pieces
    }
    return replace(commit, parts=parts)


def _pieces(name: str, data: bytes, start: int, commits: list[Commit]) -> dict[str, bytes]:
    """Cells' lines in a table's file, of those whose checksum holds.

    They follow each other in the order of the commits; behind a damage, a cell is looked for by its first line.
    """
    header, view, at = hashlib.sha256(data[:start]), memoryview(data), start
    found = {}
    for commit in commits:
        part = commit.parts.get(name)
        if part is None:
            continue
        piece = _piece(header, view, at, part)
        if piece is None:
            elsewhere = data.find(b"\n" + _field(commit.run_id) + b",", max(start - 1, 0)) + 1
            at = elsewhere or at
            piece = _piece(header, view, at, part) if elsewhere else None
        if piece is not None:
            found[commit.run_id] = bytes(piece)
            at += len(piece)
    return found


def _piece(header: Any, view: memoryview, at: int, part: Part) -> memoryview | None:
    for size, wanted in part.kept:
        made = header.copy()
        made.update(view[at : at + size])
        if made.hexdigest()[:_DIGITS] == wanted:
            return view[at : at + size]
    return None


def _field(text: str) -> bytes:
    """A text as a field of a CSV file."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([text])
    return out.getvalue().encode()


def _commits(lines: bytes, finished: int | None) -> tuple[list[Commit], dict[str, str]]:
    """The lines that are whole, in order, and what is known of those that aren't; half a last line is nothing yet."""
    whole = lines[: lines.rfind(b"\n") + 1].splitlines()
    found: dict[int, Commit] = {}
    cells: set[str] = set()
    for line in whole:
        commit = _commit(line)
        if commit is not None and commit.number not in found and commit.run_id not in cells:
            found[commit.number] = commit
            cells.add(commit.run_id)
    expected = max([finished or 0, len({*whole}), *(number + 1 for number in found)])
    lost = [number for number in range(min(expected, len(found) + 10_000)) if number not in found]
    return [found[number] for number in sorted(found)], {
        f"number {number + 1}": f"its line in {COMMITS} is damaged or gone" for number in lost
    }


def _commit(line: bytes) -> Commit | None:
    try:
        content = json.loads(line)
        said = content.pop("sum")
        if said != _sum_of(content):
            return None
        parts = {
            name: Part(int(rows), tuple((int(size), str(wanted)) for size, wanted in kept))
            for name, (rows, *kept) in content["tables"].items()
        }
        return Commit(int(content["number"]), str(content["cell"]), parts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _sum_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]
