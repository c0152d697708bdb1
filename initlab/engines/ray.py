"""Calls on the machines of a Ray cluster, or by a Ray of this machine's own.

Each call is a task of one CPU core, or of one GPU where the models are on one. What is shared is put into the
cluster's store once and read once by each worker process. The calls and their results travel by the cloudpickle that
the rest of initlab uses, so that a user's own file needn't be on the other machines; initlab and torch must be.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import cloudpickle

from initlab.engines.base import Call, Engine, Failed, engine, outcome
from initlab.engines.sending import ONE_THREAD, send_by_value
from initlab.environment import cores
from initlab.errors import ConfigError, RunError

_TRIES = 2
_QUIET = 5.0  # seconds without a result, after which the cluster is asked whether it is still there


@engine("ray")
class Ray(Engine):
    """Makes calls as tasks of Ray, on every machine of a cluster.

    A call whose worker or machine is lost is made once more, then yields Failed.

    Args:
        shared: keyword arguments of every call.
        jobs: calls that are asked for at a time; 0: all of them, and Ray makes as many as there is room for.
        device: where the models of the calls are; on `cuda` each call has a GPU to itself.
        address: of a cluster, as `ray.init` takes it. None: what the environment's RAY_ADDRESS says, else a Ray of its
            own on this machine, which ends with it; in a process that is connected to one already, that one.

    Raises:
        ConfigError: Ray isn't installed, or a GPU is asked for by its number.
        RunError: the cluster can't be reached, or has no GPU where one is needed.
    """

    elsewhere = True

    def __init__(self, shared: Mapping[str, Any], jobs: int = 1, device: str = "cpu", address: str | None = None):
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"engine 'ray' needs Ray, which can't be imported ({error}): pip install 'initlab[ray]'"
            ) from None
        if device.startswith("cuda:"):
            raise ConfigError(f"device is {device} and Ray gives each call a GPU of its own; expected cuda")
        self._ray: Any = ray
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._resource = "GPU" if device.startswith("cuda") else "CPU"
        self._there = True
        self._started = not ray.is_initialized()
        if self._started:
            self._connect(jobs)
        try:
            room = self._room()
            if not room:
                raise RunError(
                    f"{self._where} has no {self._resource}, which the runs are on; add a machine that has one, or "
                    f"choose another device"
                )
            super().__init__(shared, min(jobs, room) if jobs else room)
            self._at_once = jobs
            send_by_value()
            self._shared = uuid.uuid4().hex, [ray.put(cloudpickle.dumps(self.shared))]  # a list isn't fetched by Ray
        except BaseException:
            self.close()
            raise
        options = {"num_gpus": 1, "num_cpus": 0} if self._resource == "GPU" else {"num_cpus": 1}
        # Ray's own retries would be as silent as endless; a task that was lost is counted here
        self._task = ray.remote(max_retries=0, **options)(_make)

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Make the calls, begun in order as there is room for them, and yield (index, result) as they finish.

        Args:
            calls: each is called with what is shared; they and their results travel by cloudpickle.

        Raises:
            RunError: a call raised it, or the cluster is gone.
        """
        waiting = deque(range(len(calls)))
        lost: dict[int, list[str]] = {}
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self._at_once or len(calls)):
                    index = waiting.popleft()
                    running[self._asked(self._task.remote, *self._shared, cloudpickle.dumps(calls[index]))] = index
                done, _ = self._asked(self._ray.wait, list(running), timeout=_QUIET)
                if not done:
                    self._look()
                for task in done:
                    index = running.pop(task)
                    try:
                        found = cloudpickle.loads(self._ray.get(task))
                    except self._losses as error:
                        causes = lost.setdefault(index, [])
                        causes.append(_cause(error))
                        if len(causes) < _TRIES:
                            waiting.appendleft(index)
                            continue
                        found = Failed(f"its worker was lost {_TRIES} times: {', '.join(dict.fromkeys(causes))}")
                    except self._ray.exceptions.RayTaskError as error:  # what can't be sent or read, there
                        found = Failed(_cause(error))
                    except self._ends as error:
                        raise self._gone(error) from error
                    if isinstance(found, RunError):
                        raise found
                    yield index, found
        finally:
            for task in running if self._there else ():
                with suppress(Exception):
                    self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster, or end the Ray that was started here; one that the caller had connected to goes on."""
        if self._started and self._there:
            self._ray.shutdown()

    @property
    def _where(self) -> str:
        return "this machine's Ray" if self._address == "local" else f"the Ray cluster at {self._address}"

    @property
    def _losses(self) -> tuple[type[Exception], ...]:
        """What Ray raises where a worker, its machine, or what a task gave is lost."""
        known = self._ray.exceptions
        return (
            known.WorkerCrashedError,
            known.NodeDiedError,
            known.OutOfMemoryError,
            known.ObjectLostError,
            known.LocalRayletDiedError,
        )

    @property
    def _ends(self) -> tuple[type[Exception], ...]:
        """What Ray raises where it isn't there any more."""
        return (ConnectionError, TimeoutError, RuntimeError, self._ray.exceptions.RayError)

    def _connect(self, jobs: int) -> None:
        threads = dict(ONE_THREAD)
        own: dict[str, Any] = {}
        if self._address == "local":
            own = {"num_cpus": max(1, min(jobs or cores(), cores())), "include_dashboard": False}
            # the same initlab and torch are found, wherever they were added from
            threads["PYTHONPATH"] = os.pathsep.join(filter(None, map(str, sys.path)))
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent from here
        try:
            if self._address not in ("local", "auto"):
                _knock(self._address)
            self._ray.init(
                self._address,
                runtime_env={"env_vars": threads},
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                **own,
            )
        except Exception as error:
            raise RunError(
                f"{self._where} can't be reached: {_cause(error)}; check the address, and that RAY_AUTH_MODE and "
                "Ray's version are the cluster's; without an address and RAY_ADDRESS, this machine has a Ray of its own"
            ) from error

    def _look(self) -> None:
        """Raise RunError where the cluster is gone: Ray would wait for it a minute, and then end this process."""
        client = self._address.startswith("ray://")
        try:
            _knock(self._address if client else self._ray.get_runtime_context().gcs_address)
        except OSError as error:
            raise self._gone(error) from error
        if not self._asked(self._room):
            raise RunError(f"{self._where} has no {self._resource} any more; {_RESUME}")

    def _room(self) -> int:
        """Calls that all machines can make at a time."""
        return int(self._ray.cluster_resources().get(self._resource, 0))

    def _asked(self, function: Any, *given: Any, **named: Any) -> Any:
        """What Ray answers. Raises RunError: it doesn't."""
        try:
            return function(*given, **named)
        except self._ends as error:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> RunError:
        self._there = False  # whatever it is asked would only wait
        return RunError(f"{self._where} is gone: {_cause(error)}; {_RESUME}")


_RESUME = "what was finished is kept, and the same command resumes once it is back"


def _knock(address: str) -> None:
    """Raise OSError or ValueError where nobody answers: Ray itself asks for some minutes before it says so."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address!r} is no HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _cause(error: BaseException) -> str:
    """Say what went wrong, in the last line of what Ray says of a task, else the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    kind = type(error).__name__
    return lines[-1].strip() if kind.startswith("RayTaskError") else f"{kind}: {lines[0].strip()[:200]}"


_loaded: dict[str, Mapping[str, Any]] = {}  # of a worker: what is shared, by its key


def _make(key: str, box: list[Any], call: bytes) -> bytes:
    """Make a call, in a worker. A RunError is given back as it is, since Ray would raise another one in its place."""
    import ray

    if key not in _loaded:
        _loaded.clear()  # of an engine before
        _loaded[key] = cloudpickle.loads(ray.get(box[0]))
    try:
        return cloudpickle.dumps(outcome(cloudpickle.loads(call), _loaded[key]))
    except RunError as error:
        return cloudpickle.dumps(error)
