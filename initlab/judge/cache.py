"""What is derived from a run's tables, derived once: a page and its figures ask for the same things dozens of times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from initlab.rundir import Run

P = ParamSpec("P")
T = TypeVar("T")


def kept(derive: Callable[Concatenate[Run, P], T]) -> Callable[Concatenate[Run, P], T]:
    """A function of a run (and of arguments that can be hashed) that remembers its result with the run.

    It is derived again where a table was replaced, or the run is judged by other rules or limits. Frames are handed out
    as copies, which cost nothing until they are written to; anything else must not be changed.
    """

    @functools.wraps(derive)
    def asked(run: Run, *args: P.args, **named: P.kwargs) -> T:
        key = (
            derive.__module__,
            derive.__qualname__,
            args,
            tuple(sorted(named.items())),
            repr(run.manifest.get("judging")),
        )
        frames = [frame for _, frame in run.tables.items()]
        before = run.derived.get(key)
        if before is None or any(a is not b for a, b in zip(before[0], frames, strict=True)):
            before = run.derived[key] = (frames, derive(run, *args, **named))
        found: Any = before[1]
        return found.copy(deep=False) if isinstance(found, pd.DataFrame) else found

    return asked
