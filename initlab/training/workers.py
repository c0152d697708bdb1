"""Calls in separate processes, one torch thread each.

Two threads on one model are up to ten times slower than one where other processes share the cores, and small models
gain little from a second core; two processes gain nearly all of it. The workers are plain child processes that import
nothing of the caller's: multiprocessing would run a script without a `__main__` guard again in each of them, and can't
start from a notebook's functions.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from initlab.errors import RunError
from initlab.training.worker import receive, send

_TRIES = 2
# OpenMP's threads would otherwise spin while they wait, on cores that other workers need
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of a result: what the call raised, or what its worker died of."""

    text: str


class Here:
    """What Workers are, without any: calls made one after another in this process."""

    def __init__(self, shared: Mapping[str, Any]):
        self._shared = shared

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, calls: Sequence[partial[Any]]) -> Iterator[tuple[int, Any]]:
        """Make the calls in order and yield (index, result); one that raises yields Failed."""
        for index, call in enumerate(calls):
            try:
                result = call(**self._shared)
            except Exception as error:
                result = Failed(f"{type(error).__name__}: {error}")
            yield index, result


class Workers:
    """Processes that make calls, started when there is something to do. A context manager: leaving it ends them."""

    def __init__(self, jobs: int, shared: Mapping[str, Any]):
        """
        Args:
            jobs: processes.
            shared: keyword arguments of every call, sent once to each process.
        """
        self._shared = pickle.dumps(dict(shared))
        self._workers = [_Worker(self._shared) for _ in range(jobs)]
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Of the processes that were started, in the order of the workers."""
        return [worker.process.pid for worker in self._workers if worker.process is not None]

    def run(self, calls: Sequence[partial[Any]]) -> Iterator[tuple[int, Any]]:
        """Make the calls, in order as workers come free, and yield (index, result) as they finish.

        A call that raises yields Failed. One whose worker dies (killed, out of memory) is made once more by a new
        worker, then yields Failed.

        Args:
            calls: of functions that can be imported, with arguments that can be pickled.

        Raises:
            RunError: no worker can be started.
        """
        todo: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for index, call in enumerate(calls):
            todo.put((index, pickle.dumps(call)))
        self._threads = [
            threading.Thread(target=_feed, args=(worker, todo, done), daemon=True)
            for worker in self._workers[: len(calls)]
        ]
        for thread in self._threads:
            thread.start()
        for _ in calls:
            index, result = done.get()
            if isinstance(result, RunError):
                raise result
            yield index, result

    def close(self) -> None:
        """End every process at once, also in the middle of a call."""
        for worker in self._workers:
            worker.kill()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()


class _Died(Exception):
    """The process ended before it answered."""


class _Worker:
    def __init__(self, shared: bytes):
        self.process: subprocess.Popen[bytes] | None = None
        self._shared = shared
        self._closed = False
        self._served = False
        self._lock = threading.Lock()  # no process is started once all were killed

    def ask(self, call: bytes) -> tuple[bool, Any]:
        """(True, result), or (False, what the call raised).

        Raises:
            _Died: the process ended first.
            RunError: it can't be started.
        """
        if self.process is None:
            self._start()
        return self._exchange(call)

    def _start(self) -> None:
        with self._lock:
            if self._closed:
                raise _Died
            # the parent's own search path, so that the same initlab and torch are found, wherever they were added from
            code = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}\n"
            code += "from initlab.training.worker import main\nmain()"
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", code],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=os.environ | _ONE_THREAD,
                    start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its workers
                )
            except OSError as error:
                raise RunError(
                    f"a worker process can't be started: {error}; use jobs=1, which needs no worker"
                ) from error
        try:
            fine, text = self._exchange(self._shared)
        except _Died as died:
            if self._closed or self._served:
                raise
            raise RunError(
                f"a worker process ended while it started ({died}; its own message, if any, is on stderr); "
                "use fewer jobs; jobs=1 needs no worker"
            ) from None
        if not fine:
            raise RunError(f"a worker process can't load what it needs: {text}; jobs=1 needs no worker")
        self._served = True

    def _exchange(self, message: bytes) -> tuple[bool, Any]:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            send(process.stdin, message)
            answer: tuple[bool, Any] = pickle.loads(receive(process.stdout))
        except (EOFError, OSError):
            process.kill()  # it may have closed its streams without ending
            code = process.wait()
            _close_streams(process)
            self.process = None
            raise _Died(_cause(code)) from None
        return answer

    def kill(self) -> None:
        with self._lock:
            self._closed = True
            if self.process is not None:
                self.process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.wait()
            _close_streams(self.process)
            self.process = None

    @property
    def closed(self) -> bool:
        return self._closed


def _feed(
    worker: _Worker, todo: queue.SimpleQueue[tuple[int, bytes]], done: queue.SimpleQueue[tuple[int, Any]]
) -> None:
    """Give a worker one call after another, until none is left."""
    while not worker.closed:
        try:
            index, call = todo.get_nowait()
        except queue.Empty:
            return
        done.put((index, _tried(worker, call)))


def _tried(worker: _Worker, call: bytes) -> Any:
    causes: list[str] = []
    while len(causes) < _TRIES:
        try:
            fine, answer = worker.ask(call)
        except _Died as died:
            causes.append(str(died))
        except RunError as error:
            return error
        except Exception as error:  # of an answer that can't be unpickled: without one, the caller would wait for ever
            return Failed(f"{type(error).__name__}: {error}")
        else:
            return answer if fine else Failed(answer)
        if worker.closed:
            break
    return Failed(f"the worker process ended {len(causes)} times: {', '.join(dict.fromkeys(causes))}")


def _cause(code: int) -> str:
    """What a process ended by, from its exit code."""
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"{name}, as when memory runs out: try fewer jobs" if name == "SIGKILL" else name
    return f"signal {-code}"


def _close_streams(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was not sent can't be flushed to a process that has gone
                stream.close()
