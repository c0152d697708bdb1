"""What a run was made with: versions, machine, commit."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path
from typing import Any

COMMAND: ContextVar[str] = ContextVar("command", default="")  # as it was typed, where a command line runs
_PACKAGES = ("torch", "numpy", "pandas", "tiktoken")


def describe(device: str) -> dict[str, Any]:
    """Versions and machine, without anything that names its owner."""
    import torch

    versions = {name: metadata.version(name) for name in _PACKAGES}
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu_name()
    return {
        "python": platform.python_version(),
        **versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": f"{device} ({name})" if name else device,
        "threads": torch.get_num_threads(),
    }


def cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """CPU cores that this process may use: those it isn't kept off, within a container's share of the machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text(encoding="ascii").split()
        return max(1, min(count, math.ceil(int(microseconds) / int(period))))
    except (OSError, ValueError):  # no container, or no limit: `max`
        return count


def git(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout around a folder and whether it has changes; None outside one, or without git."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
