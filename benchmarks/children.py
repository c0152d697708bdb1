"""Work done in forked processes, one for each task, so that a crash or a hang is one result."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any


@dataclass(frozen=True, slots=True)
class Death:
    """Of a child that gave nothing: in words."""

    how: str


def results(
    tasks: Sequence[Any], run: Callable[[Any], Any], *, jobs: int, seconds: int
) -> Iterator[tuple[Any, Any | Death]]:
    """Run every task in a forked child; yield (task, what it gave) as they finish.

    Args:
        tasks: what `run` takes.
        run: what a child does; what it gives is pickled. Prints nothing.
        jobs: children at a time.
        seconds: of CPU time for one task; six times as long on the clock.
    """
    context, waiting = get_context("fork"), list(reversed(tasks))
    active: dict[Any, tuple[Any, Any, float]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                task = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                child = context.Process(target=_child, args=(sender, run, task, seconds))
                child.start()
                sender.close()
                active[receiver] = (child, task, time.monotonic())
            ready = connection.wait(list(active), timeout=1)
            late = [each for each, (_, _, since) in active.items() if time.monotonic() - since > 6 * seconds]
            for receiver in {*ready, *late}:
                child, task, _ = active.pop(receiver)
                try:
                    given = receiver.recv() if receiver in ready else None
                except EOFError:
                    given = None
                if given is None:
                    child.kill()
                child.join()
                yield task, Death(_death(child.exitcode, seconds)) if given is None else given
    finally:  # also where nobody asks for the rest
        for child, _, _ in active.values():
            child.kill()


def short(error: Exception) -> str:
    """An error's first line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300]


def _death(code: int | None, seconds: int) -> str:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"more than {seconds} s"
    return f"the process died: {signal.Signals(-code).name if code and code < 0 else code}"


def _child(sender: Any, run: Callable[[Any], Any], task: Any, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sender.send(run(task))
