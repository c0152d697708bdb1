"""Bytes on disk: files that are written whole, or grow by whole pieces, and tables as CSV, which may be packed."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from initlab import schema
from initlab.errors import RunError

# Tables shrink 10- to 40-fold. What grows more is no table of ours, and would fill the memory.
_MOST_GROWTH = 1000
_LEAST_ROOM = 1 << 24
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


def write_whole(path: Path, data: bytes) -> None:
    """Write a whole file or nothing; it is on the disk before it takes the old one's place.

    Args:
        path: of the file.
        data: all of it.

    Raises:
        RunError: it can't be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"could not write {path}: {error.strerror}") from None


def append_all(pieces: Sequence[tuple[Path, bytes]], failed: str) -> None:
    """Append to files in order, each on the disk before the next; all or none.

    Args:
        pieces: files with what is added.
        failed: added to the error, what the user can do.

    Raises:
        RunError: the disk is full, or another reason; every file is as it was.
    """
    sizes = {path: path.stat().st_size if path.exists() else 0 for path, _ in pieces}
    for path, data in pieces:
        try:
            with path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            for written, size in sizes.items():
                with contextlib.suppress(OSError):
                    os.truncate(written, size)
            raise RunError(f"could not write {path}: {error.strerror}; {failed}") from None


def read_bytes(path: Path) -> bytes:
    """Read a table's file, or the packed one beside it (`.xz`, as committed samples are); empty where there is none.

    Args:
        path: of the file that isn't packed.

    Raises:
        RunError: it can't be read, or unpacked.
    """
    packed = path.with_name(path.name + ".xz")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RunError(f"{path} can't be read: {error.strerror}") from None
    try:
        data = packed.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise RunError(f"{packed} can't be read: {error.strerror}") from None
    most = max(_LEAST_ROOM, _MOST_GROWTH * len(data))
    try:
        with lzma.open(io.BytesIO(data)) as file:
            found = file.read(most + 1)
    except (lzma.LZMAError, EOFError, MemoryError) as error:
        raise RunError(f"{packed} is damaged: {error}") from None
    if len(found) > most:
        raise RunError(f"{packed} is damaged: {len(data)} bytes unpack to more than {most}, which no table does")
    return found


def csv_bytes(frame: pd.DataFrame, *, header: bool) -> bytes:
    """Write a frame as CSV; 9 significant digits round-trip a float32.

    A text that a spreadsheet would run as a formula gets an apostrophe before it, which `parse` takes off again
    (OWASP, CSV injection): names in a run may be somebody else's.

    Args:
        frame: of a table.
        header: with a line of column names, or without.
    """
    texts = [str(name) for name, column in frame.items() if not pd.api.types.is_numeric_dtype(column.dtype)]
    frame = frame.assign(**{name: _renamed(frame[name], _FORMULA, "'{}".format) for name in texts})
    return frame.to_csv(index=False, header=header, float_format="%.9g", lineterminator="\n").encode()


def _renamed(column: pd.Series, which: re.Pattern[str], new: Callable[[str], str]) -> pd.Series:
    """The column with some of its texts written otherwise; the very same where it has none of them."""
    found = [text for text in column.dropna().unique() if isinstance(text, str) and which.match(text)]
    return column.astype(object).replace({text: new(text) for text in found}) if found else column


def parse(name: str, data: bytes, source: Path) -> pd.DataFrame:
    """Read a table from CSV.

    Args:
        name: of the table.
        data: the file; a last line without its end, as a killed process leaves it, is dropped.
        source: named in errors.

    Raises:
        RunError: no CSV.
        SchemaError: a table lacks what every version writes, or holds what its column can't.
    """
    whole = data[: data.rfind(b"\n") + 1]
    if not whole:
        return schema.table(name, [])
    text = {column: "string" for column, spec in schema.TABLES[name].items() if spec.dtype in ("string", "category")}
    try:
        frame = pd.read_csv(io.BytesIO(whole), dtype=text, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise RunError(f"{source} is damaged: {error}") from None
    plain = {column: _renamed(frame[column], _QUOTED, lambda cell: cell[1:]) for column in text if column in frame}
    return schema.cast(name, frame.assign(**plain))
