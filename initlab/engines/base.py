"""What an engine is, and the open list of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Self, TypeVar

from initlab.environment import cores
from initlab.errors import ConfigError, RunError
from initlab.registry import Registry

Call = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """In place of a result: what the call raised, or what its worker died of."""

    text: str


class Engine(ABC):
    """Makes independent calls. A context manager: leaving it ends what it started.

    Calls are partial objects of functions that can be imported, so that an engine may also look at what it is given:
    which calls are alike, and how large. Several runs may follow each other; what was started for one is kept for the
    next.

    Args:
        shared: keyword arguments of every call, sent once to each place where calls are made.
        jobs: calls at a time.

    Attributes:
        one_at_a_time: it makes one call after another, and is not asked for more.
        elsewhere: it makes calls on machines that it finds by an address. Then it is also given `device`, where the
            models of the calls are, and `address`, None where nothing was said; and jobs is 0 where nothing was said,
            as many as there is room for, which it sets `jobs` to.
    """

    one_at_a_time: ClassVar[bool] = False
    elsewhere: ClassVar[bool] = False

    def __init__(self, shared: Mapping[str, Any], jobs: int = 1):
        self.shared = dict(shared)
        self.jobs = jobs

    @abstractmethod
    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Make the calls, begun in order, and yield (index, result) as they finish.

        A call that raises, or whose place is lost, yields Failed and the others go on. A RunError ends the run: what
        can't be written for this call can't for the next.

        Args:
            calls: each is called with what is shared.

        Raises:
            RunError: a call raised it, or nothing can be started.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to end
        """End what was started, also in the middle of a call."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


ENGINES: Registry[type[Engine]] = Registry(
    "engine", tuple(f"initlab.engines.{name}" for name in ("here", "processes", "batched", "ray"))
)
Making = Callable[[Mapping[str, Any], int], Engine]  # of what is shared, and the number of jobs
Made = TypeVar("Made", bound=type[Engine])


def engine(name: str) -> Callable[[Made], Made]:
    """Add an engine by decorating its class.

    The class is derived from `initlab.engines.Engine`, whose docstrings say what `run` is given and gives, what `close`
    ends, and which class attributes it may set.

    Args:
        name: what `engine=` and `--engine` call it.

    Raises:
        ConfigError: the name is taken, or the class isn't derived from Engine.
    """

    def wrap(made: Made) -> Made:
        if not (isinstance(made, type) and issubclass(made, Engine)):
            raise ConfigError(f"engine {name!r} is {made!r:.80}; expected a class derived from initlab.engines.Engine")
        ENGINES.add(name, made, made.__module__)
        return made

    return wrap


def choose(
    name: str, jobs: int | None, device: str, calls: int, address: str | None = None, usual: int | None = None
) -> tuple[Making, int]:
    """Find an engine by name, and how many calls it makes at a time.

    Args:
        name: of ENGINES, or `auto`: `processes` where several calls are made at a time, else `batched` on a GPU and
            `here` on a CPU.
        jobs: calls at a time; None: what is usual, or as many as machines elsewhere have room for.
        device: where the models of the calls are.
        calls: how many there are; more jobs than that are not needed.
        address: where an engine that makes calls elsewhere finds its machines.
        usual: calls at a time on this machine; None: the cores on a CPU, 1 on a GPU.

    Raises:
        ConfigError: no such engine, jobs that it can't make, or an address that it has no use for.
    """
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise ConfigError(f"jobs is {jobs!r}; expected a whole number from 1 on")
    known = None if name == "auto" else ENGINES.get(name)
    if address is not None and not (known is not None and known.elsewhere):
        raise ConfigError(f"address is {address!r} and engine {name!r} makes calls on this machine; expected 'ray'")
    if known is not None and known.one_at_a_time:
        if jobs not in (None, 1):
            raise ConfigError(f"jobs is {jobs} and engine {name!r} makes one call at a time; expected another engine")
        return known, 1
    if known is not None and known.elsewhere:
        placed: dict[str, Any] = {"device": device, "address": address}
        return partial(known, **placed), min(jobs or 0, max(calls, 1))
    most = min(jobs or usual or (1 if device.startswith("cuda") else cores()), max(calls, 1))
    alone = "batched" if device.startswith("cuda") else "here"
    return known or ENGINES.get("processes" if most > 1 else alone), most


def outcome(call: Call, shared: Mapping[str, Any]) -> Any:
    """Make a call; return its result, or Failed with what it raised.

    Args:
        call: of an engine.
        shared: its keyword arguments.

    Raises:
        RunError: the call raised it.
    """
    try:
        return call(**shared)
    except RunError:
        raise
    except (Exception, SystemExit) as error:
        return Failed(f"{type(error).__name__}: {error}")
