"""What a training run leaves in its own folder while it goes on."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from initlab import schema
from initlab.errors import RunError
from initlab.rundir import write_whole

COLUMNS = [name for name in schema.TRAINING if name != "run_id"]


class MetricsFile:
    """The rows of a run on disk as they come: a CSV file of whole lines, whatever ends the run."""

    def __init__(self, path: Path):
        self.path = path
        write_whole(path, (",".join(COLUMNS) + "\n").encode())

    def append(self, row: dict[str, Any]) -> None:
        """Raises RunError on a full disk; the lines before stay whole."""
        line = ",".join(_text(row[name]) for name in COLUMNS) + "\n"
        size = None
        try:
            size = self.path.stat().st_size  # a file that was deleted meanwhile isn't begun again in its middle
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
            raise RunError(
                f"could not write {self.path}: {error.strerror}; its rows before step {row['step']} are kept, and the "
                "same command with the same -o resumes from the last checkpoint"
            ) from None


def _text(value: float) -> str:
    """As the tables have it: nothing for NaN, nine digits of a float, all of a whole number."""
    if math.isnan(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.9g}"


def run_folder(out: Path, run_id: str) -> Path:
    """runs/<run_id>, made. Raises RunError where it can't be."""
    folder = out / "runs" / quote(run_id, safe=" +,=@")  # a user's recipe is named by its file, with slashes
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} can't be made: {error.strerror}; choose another output folder with -o") from None
    return folder
