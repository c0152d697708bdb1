"""One writer per folder: a lock that its process holds for a run, and that ends with the process however it ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import weakref
from pathlib import Path
from typing import Any

from initlab.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
# a file system without locks, such as Lustre mounted without `flock`
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_held: dict[int, tuple[int, int]] = {}  # file descriptor -> the file's device and number, of locks of this process


class Lock:
    """A folder that this process writes, until it is released or dropped."""

    def __init__(self, file: Path, descriptor: int):
        self._end = weakref.finalize(self, _release, file, descriptor, os.getpid())

    @property
    def held(self) -> bool:
        """Whether it hasn't been released."""
        return self._end.alive

    def release(self) -> None:
        """Let others write; done already, nothing."""
        self._end()


def take(folder: Path, command: str = "") -> Lock:
    """Take the lock of a folder. One whose process has died is free.

    Args:
        folder: that will be written; it exists.
        command: told to whoever asks for the folder meanwhile.

    Returns:
        What holds it.

    Raises:
        RunError: another holds it, which the text names; or the folder can't be written.
    """
    file = folder / LOCK
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(
                f"output folder {folder} can't be written: {error.strerror}; choose another with -o"
            ) from None
        if not _locked(descriptor):
            holder = _holder(descriptor)
            os.close(descriptor)
            raise RunError(_refusal(folder, holder))
        if (number := _number(descriptor)) == _number(file):
            break
        os.close(descriptor)  # whoever held it took it away in between
    _held[descriptor] = number
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "command": command}
    with contextlib.suppress(OSError):  # on a full disk it is locked, if without a name
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())
    return Lock(file, descriptor)


def held_here(folder: Path) -> bool:
    """Tell whether this process holds the lock of a folder."""
    return _number(folder / LOCK) in _held.values()


def _number(file: Path | int) -> tuple[int, int]:
    try:
        found = os.fstat(file) if isinstance(file, int) else file.stat()
    except OSError:
        return (-1, -1)
    return found.st_dev, found.st_ino


def _locked(descriptor: int) -> bool:
    """Lock an open file, unless another has it."""
    if _number(descriptor) in _held.values():
        return False
    if fcntl is None:
        return not _alive(_holder(descriptor))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _UNSUPPORTED and not _alive(_holder(descriptor))
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    """What the holder wrote of itself; empty where it hasn't yet."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        found = json.loads(os.read(descriptor, 65536))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether what wrote a lock file still runs, where nothing but the file tells; elsewhere, it is taken to."""
    pid = holder.get("pid")
    if type(pid) is not int or pid == os.getpid():
        return False
    if holder.get("host") != socket.gethostname() or os.name == "nt":  # there, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    where = f"{folder / LOCK} is its lock"
    if not holder:
        return f"output folder {folder} is being written by another process ({where}); choose another folder with -o"
    pid, host, command = (str(holder.get(key, "?")) for key in ("pid", "host", "command"))
    if (pid, host) == (str(os.getpid()), socket.gethostname()):
        return (
            f"output folder {folder} is being written by this very process (pid {pid}), from another place in it; "
            "close that first (of a watch: close()), or choose another folder"
        )
    called = f", `{command}`" if command else ""
    return (
        f"output folder {folder} is being written by process {pid} on {host}{called} ({where}); wait until it has "
        "ended, or choose another folder with -o"
    )


def _release(file: Path, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:  # a forked child, in which nothing is held
        return
    number = _held.pop(descriptor, None)
    if number is not None and number == _number(file):
        with contextlib.suppress(OSError):
            file.unlink()  # while it is locked, so that nobody's own is taken away
    with contextlib.suppress(OSError):
        os.close(descriptor)


def _forked() -> None:
    """A lock belongs to all who have the file open: a forked child, such as a DataLoader's, would keep it."""
    for descriptor in list(_held):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
