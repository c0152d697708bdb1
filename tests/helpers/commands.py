"""Commands in processes of their own, as a user starts them, which end with the test that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import initlab

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(initlab.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
# Stays in a forward pass once a file has some lines. A signal that is sent after a time may find the command at its
# end, or in a destructor, where Python ignores what is raised.
_HELD = """
import functools, sys, time
from pathlib import Path
from initlab.models.nanogpt import NanoGPT

file, lines, forward = Path(sys.argv[1]), int(sys.argv[2]), NanoGPT.forward

@functools.wraps(forward)
def held(*given, **named):
    if file.exists() and file.read_bytes().count(b"\\n") >= lines:
        print("held", flush=True)
        time.sleep(600)
    return forward(*given, **named)

NanoGPT.forward = held
from initlab.cli import main
sys.exit(main(sys.argv[3:]))
"""


@contextmanager
def process(*command: object) -> Iterator[subprocess.Popen[str]]:
    """Start Python with these arguments; killed at the end, where it still runs."""
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as started:
        try:
            yield started
        finally:
            started.kill()  # nothing where it has ended


@contextmanager
def held(file: Path, lines: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Start an initlab command, and wait until it is in the first pass of a model after `file` has `lines` lines."""
    with process("-c", _HELD, file, lines, *arguments) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "held\n", started.communicate()
        yield started


def wait_until(condition: Callable[[], object], started: subprocess.Popen[str] | None = None) -> None:
    """Wait for a condition, minutes if need be, as on a machine that has much else to do; not past a process's end."""
    deadline = time.monotonic() + 120
    while not condition():
        assert started is None or started.poll() is None, started.communicate()
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.02)
