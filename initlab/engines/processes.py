"""Calls in separate processes, by joblib's loky, one torch thread each.

Two threads on one model are up to ten times slower than one where other processes share the cores, and small models
gain little from a second core; two processes gain nearly all of it. Loky's processes import nothing of the caller's:
multiprocessing would run a script without a `__main__` guard again in each of them.

Each worker is an executor of its own: where one process dies, loky gives up the whole executor, and with it every
call that was running.
"""

from __future__ import annotations

import io
import os
import pickle
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
from typing import Any

import cloudpickle
import numpy as np
from joblib.externals.loky import ProcessPoolExecutor

from initlab.engines.base import Call, Engine, Failed, engine, outcome
from initlab.errors import RunError

_TRIES = 2
# OpenMP's threads would otherwise spin while they wait, on cores that other workers need
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


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
        sent = _packed(self.shared)
        self._workers = [_Worker(sent) for _ in range(jobs)]

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
        waiting = deque(enumerate(calls))
        deaths: dict[int, list[str]] = {}
        idle = self._workers[: len(calls)]
        running: dict[Future[bytes], tuple[_Worker, int]] = {}
        try:
            while waiting or running:
                arrived: list[tuple[int, Any]] = []
                while idle and waiting:
                    index, call = waiting.popleft()
                    try:
                        message = _packed(call)
                    except Exception as error:
                        arrived.append((index, Failed(f"{type(error).__name__}: {error}")))
                        continue
                    worker = idle.pop(0)
                    running[worker.submit(message)] = worker, index
                for future in wait(running, return_when=FIRST_COMPLETED).done if not arrived else ():
                    worker, index = running.pop(future)
                    idle.append(worker)
                    try:
                        arrived.append((index, worker.answer(future)))
                    except _Died as died:
                        causes = deaths.setdefault(index, [])
                        causes.append(str(died))
                        if len(causes) < _TRIES:
                            waiting.appendleft((index, calls[index]))
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

    def __init__(self, shared: bytes):
        self.pid: int | None = None
        self._shared = shared
        self._executor: ProcessPoolExecutor | None = None
        self._ready: Future[int] | None = None
        self._served = False

    def submit(self, call: bytes) -> Future[bytes]:
        """Send a call. Raises RunError: the process can't be started."""
        if self._executor is not None:
            try:
                return self._executor.submit(_make, call)
            except BrokenProcessPool:  # it died since it was last asked
                self.end()
        return self._start().submit(_make, call)

    def answer(self, future: Future[bytes]) -> Any:
        """Return what a call gave.

        Raises:
            _Died: the process ended first.
            RunError: the call raised it, or the process never came to it.
        """
        assert self._ready is not None
        try:
            self.pid = self._ready.result()
            self._served = True
            answer = future.result()
        except BrokenProcessPool as error:
            self.end()
            cause = _cause(error)
            if not self._served:
                raise RunError(
                    f"a worker process ended while it started ({cause}; its own message, if any, is on stderr); "
                    "use fewer jobs; jobs=1 needs no worker"
                ) from None
            raise _Died(cause) from None
        if not answer:
            self.end()
            raise _Died("replaced, to free memory")
        try:
            return pickle.loads(answer)
        except Exception as error:
            return Failed(f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """Kill the process, if there is one."""
        executor, self._executor, self._ready, self.pid = self._executor, None, None, None
        if executor is not None:
            executor.shutdown(wait=True, kill_workers=True)

    def _start(self) -> ProcessPoolExecutor:
        # loky's own housekeeping: a process that it replaced to free memory, a missing pgrep
        warnings.filterwarnings("ignore", category=UserWarning, module=r"joblib\.externals\.loky")
        # the parent's own search path, so that the same initlab and torch are found, wherever they were added from
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, map(str, sys.path))), "PYTHONSAFEPATH": "1"}
        try:
            with _interrupts_blocked(), _quiet_tracker():
                self._executor = ProcessPoolExecutor(
                    1, initializer=_settle, initargs=(os.getpid(),), env=_ONE_THREAD | paths
                )
                self._ready = self._executor.submit(_load, self._shared)
                return self._executor
        except OSError as error:
            self.end()
            raise RunError(f"a worker process can't be started: {error}; use jobs=1, which needs no worker") from error


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C doesn't reach: the parent ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quiet_tracker() -> Iterator[None]:
    """Keep loky's tracker, once it is started, from listing semaphores on stderr where the parent is killed."""
    sys.warnoptions.append("ignore::UserWarning")  # as its command line has them
    try:
        yield
    finally:
        sys.warnoptions.remove("ignore::UserWarning")


def _cause(error: BrokenProcessPool) -> str:
    """What a process ended by, from loky's message."""
    found = re.search(r"exit codes of the workers are \{(\w+)\((-?\d+)\)", str(error))
    if found is None:
        return str(error).split("\n")[0]
    name, code = found.groups()
    if name == "SIGKILL":
        return "SIGKILL, as when memory runs out: try fewer jobs"
    return name if name.startswith("SIG") else f"exit code {code}" if int(code) >= 0 else f"signal {code[1:]}"


class _Pickler(cloudpickle.Pickler):
    """Sends the place of a file that is mapped, not what it holds."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap) and value.flags.c_contiguous and value.mode in ("r", "r+"):
            whole = value
            while isinstance(whole.base, np.memmap):
                whole = whole.base
            # a slice says the offset of what it was cut from
            cut = value.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
            return np.memmap, (value.filename, value.dtype, "r", whole.offset + cut, value.shape)
        return super().reducer_override(value)


def _packed(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


_shared: dict[str, Any] | None = None  # of a worker


def _settle(parent: int) -> None:
    """Make a fresh worker print where it disturbs nobody, and end with its parent."""
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _load(shared: bytes) -> int:
    global _shared
    try:
        _shared = pickle.loads(shared)
    except Exception as error:
        raise RunError(
            f"a worker process can't load what it needs: {type(error).__name__}: {error}; jobs=1 needs no worker"
        ) from None
    return os.getpid()


def _make(call: bytes) -> bytes:
    if _shared is None:
        return b""  # loky replaces a process that has grown by 300 MB
    try:
        return _packed(outcome(pickle.loads(call), _shared))
    except RunError:
        raise
    except Exception as error:  # what can't be loaded, or sent back
        return pickle.dumps(Failed(f"{type(error).__name__}: {error}"))
