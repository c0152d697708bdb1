"""What engines whose calls leave this process have in common."""

from __future__ import annotations

import sys
from pathlib import Path

import cloudpickle

# OpenMP's threads would otherwise spin while they wait, on cores that other workers need
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def send_by_value() -> None:
    """Send what a user's file defines, and the files beside it, with what refers to them: no worker can import them."""
    files = {name: Path(file) for name, module in sys.modules.items() if (file := getattr(module, "__file__", None))}
    folders = {file.parent for name, file in files.items() if name.startswith("initlab_user_")}
    for name in [name for name, file in files.items() if file.parent in folders]:
        cloudpickle.register_pickle_by_value(sys.modules[name])
