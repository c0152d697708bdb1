"""Torch's own files, read without running what they hold."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from initlab.errors import CheckpointError


def read(path: Path, expected: str, kept: str) -> Any:
    """Read a file that torch.save wrote, onto the CPU; nothing in it is executed.

    Args:
        path: of the file.
        expected: what should be there, for the error.
        kept: what of its content is needed, for a file that torch refuses.

    Raises:
        CheckpointError: there is no such file, it holds more than tensors and plain values, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; expected {expected}")
    if member := damaged(path):
        raise CheckpointError(f"{path} is damaged: its part {member} isn't what was written; copy or save it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise nearly anything
        refused, kind = re.search(r"GLOBAL (\S+)", str(error)), type(error).__name__  # both of torch's wordings hold it
    if refused:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors and plain values ({refused[1]}), which could run code when "
            "loaded, so torch refused it; if you trust the file, load it yourself with weights_only=False and save "
            f"only its {kept}"
        )
    raise CheckpointError(
        f"{path} can't be read as a torch checkpoint ({kind}): it was cut short, damaged, or isn't one; expected a "
        "file written by torch.save, copy or save it again"
    )


def damaged(path: Path) -> str | None:
    """Name the part of a file of torch.save's that isn't what its checksum says, which torch itself doesn't look at.

    Args:
        path: of the file; one that is no zip archive, as old ones aren't, has no checksums.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return None  # which torch will say better
