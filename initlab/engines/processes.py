"""Calls in separate processes, by joblib's loky, one torch thread each.

Two threads on one model are up to ten times slower than one where other processes share the cores, and small models
gain little from a second core; two processes gain nearly all of it. Loky's processes import nothing of the caller's:
multiprocessing would run a script without a `__main__` guard again in each of them.

Each worker is an executor of its own: where one process dies, loky gives up the whole executor, and with it every
call that was running.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from joblib.externals.loky.backend import resource_tracker as loky_tracker
from joblib.externals.loky.process_executor import ProcessPoolExecutor, TerminatedWorkerError

from initlab.engines.base import Call, Engine, Failed, engine, outcome
from initlab.engines.sending import ONE_THREAD, send_by_value
from initlab.errors import RunError

_TRIES = 2


@engine("processes")
class Processes(Engine):
    """Makes calls in processes, started when there is something to do and kept until it is closed.

    A call whose process dies (killed, out of memory) is made once more by a new one, then yields Failed.

    Args:
        shared: keyword arguments of every call, sent once to each process; a file that is mapped is mapped again there.
        jobs: processes.
    """

    def __init__(self, shared: Mapping[str, Any], jobs: int = 1):
        super().__init__(shared, jobs)
        self._workers = [_Worker(self.shared) for _ in range(jobs)]

    @property
    def pids(self) -> list[int]:
        """Return the ids of the processes that have begun to make calls."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Make the calls, begun in order as processes come free, and yield (index, result) as they finish.

        Args:
            calls: each is called with what is shared; they and their results travel by cloudpickle.

        Raises:
            RunError: a call raised it, or no process can be started.
        """
        waiting = deque(range(len(calls)))
        deaths: dict[int, list[str]] = {}
        idle = self._workers[: len(calls)]
        running: dict[Future[Any], tuple[_Worker, int]] = {}
        try:
            while waiting or running:
                while idle and waiting:
                    worker, index = idle.pop(0), waiting.popleft()
                    running[worker.submit(calls[index])] = worker, index
                arrived: list[tuple[int, Any]] = []
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, index = running.pop(future)
                    idle.append(worker)
                    try:
                        arrived.append((index, worker.answer(future)))
                    except _Died as died:
                        causes = deaths.setdefault(index, [])
                        causes.append(str(died))
                        if len(causes) < _TRIES:
                            waiting.appendleft(index)
                        else:
                            text = f"the worker process ended {_TRIES} times: {', '.join(dict.fromkeys(causes))}"
                            arrived.append((index, Failed(text)))
                yield from arrived
        finally:
            for worker, _ in running.values():
                worker.end()

    def close(self) -> None:
        """End every process at once, also in the middle of a call."""
        for worker in self._workers:
            worker.end()


class _Died(Exception):
    """The process ended before it answered."""


class _Worker:
    """One process at a time, in an executor of its own."""

    def __init__(self, shared: Mapping[str, Any]):
        self.pid: int | None = None
        self._shared = shared
        self._executor: ProcessPoolExecutor | None = None
        self._ready: Future[int] | None = None
        self._served = False

    def submit(self, call: Call) -> Future[Any]:
        """Send a call. Raises RunError: the process can't be started."""
        if self._executor is not None:
            try:
                return self._executor.submit(_make, call)
            except BrokenProcessPool:  # it died since it was last asked
                self.end()
        return self._start().submit(_make, call)

    def answer(self, future: Future[Any]) -> Any:
        """Return what a call gave.

        Raises:
            _Died: the process ended first.
            RunError: the call raised it, or the process never came to it.
        """
        assert self._ready is not None
        try:
            self.pid = self._ready.result()
            self._served = True
        except Exception as error:
            self.end()
            if self._served:
                raise _Died(_cause(error)) from None
            raise RunError(
                f"a worker process can't be started: {_cause(error)} (its own message, if any, is on stderr); use "
                "fewer jobs; jobs=1 needs no worker"
            ) from error
        try:
            return future.result()
        except (TerminatedWorkerError, _Died) as error:
            self.end()
            raise _Died(_cause(error)) from None
        except RunError:
            raise
        except Exception as error:  # what can't be sent or read, there or here
            return Failed(_cause(error))

    def end(self) -> None:
        """Kill the process, if there is one."""
        executor, self._executor, self._ready, self.pid = self._executor, None, None, None
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)

    def _start(self) -> ProcessPoolExecutor:
        send_by_value()
        # the parent's own search path, so that the same initlab and torch are found, wherever they were added from
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path))), "PYTHONSAFEPATH": "1"}
        options: dict[str, Any] = {"env": ONE_THREAD | paths, "job_reducers": {np.memmap: _place}}
        try:
            with _undisturbed():
                self._executor = ProcessPoolExecutor(1, initializer=_settle, initargs=(os.getpid(),), **options)
                self._ready = self._executor.submit(_load, self._shared)
                return self._executor
        except OSError as error:
            self.end()
            raise RunError(f"a worker process can't be started: {error}; use jobs=1, which needs no worker") from None


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Start processes that Ctrl-C doesn't reach, since the parent ends them, and that say nothing of loky's affairs."""
    # a process that it replaced to free memory, a missing pgrep
    warnings.filterwarnings("ignore", category=UserWarning, module=r"joblib\.externals\.loky")
    # the semaphores that its tracker tidies up after a parent that was killed: the tracker's command line has these
    sys.warnoptions.append("ignore::UserWarning")
    blocked = {signal.SIGINT} if hasattr(signal, "pthread_sigmask") else set()
    try:
        if blocked:
            for tracker in (loky_tracker, resource_tracker):
                tracker.ensure_running()  # which unblocks SIGINT
            signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        yield
    finally:
        sys.warnoptions.remove("ignore::UserWarning")
        if blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)


def _cause(error: BaseException) -> str:
    """Say what went wrong, in one line of what loky says."""
    if error.__cause__ is not None:  # the traceback of the other process, as text
        return str(error.__cause__).strip('\n"').splitlines()[-1]
    codes = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
    text = codes[1] if codes else str(error)
    return f"{text}, as when memory runs out: try fewer jobs" if text.startswith("SIGKILL") else text


def _place(value: Any) -> Any:
    """Send the place of a file that is mapped, not what it holds."""
    if not value.flags.c_contiguous or value.mode not in ("r", "r+"):
        return value.__reduce__()
    whole = value
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    # a slice has the offset of what it was cut from
    cut = value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    return np.memmap, (value.filename, value.dtype, "r", whole.offset + cut, value.shape)


_shared: Mapping[str, Any] | None = None  # of a worker


def _settle(parent: int) -> None:
    """Make a fresh worker print where it disturbs nobody, and end with its parent."""
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _load(shared: Mapping[str, Any]) -> int:
    global _shared
    _shared = shared
    return os.getpid()


def _make(call: Call) -> Any:
    if _shared is None:
        raise _Died("loky replaced it, to free memory")
    return outcome(call, _shared)
