"""The folder that a watch writes into, and the process that writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from initlab import rundir
from initlab.errors import RunError
from initlab.rundir import RunDir


def open_folder(path: Path, manifest: dict[str, Any], start_step: int) -> RunDir:
    """Open the folder of a new watch, or of one that goes on from a checkpoint.

    Args:
        path: of the folder.
        manifest: of the watch.
        start_step: updates that the checkpoint has; rows of later ones are dropped.

    Raises:
        RunError: it holds another run, or steps of this one and start_step is 0.
    """
    later: list[str] = []
    if (path / rundir.MANIFEST).exists():
        summary = rundir.load(path).tables.summary
        if len(summary) and not start_step:
            raise RunError(
                f"output folder {path} holds steps {summary['step'].min()} to {summary['step'].max()} of a watched "
                "run; pass start_step= (updates done) to go on with it, or choose another folder"
            )
        later = summary.loc[summary["step"] >= start_step, "run_id"].tolist()
    folder = RunDir.open(path, manifest)
    if later:
        folder.forget(later)
    return folder


def rank() -> int:
    """Tell this process among several that train together; 0 where it is alone. Never imports what isn't used."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0
    return int(distributed.get_rank())
