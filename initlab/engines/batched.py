"""Calls that are alike made as one, where their function says how: on a GPU small models leave most of it idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from initlab.engines.base import Call, Engine, engine, outcome

Together = Callable[[Sequence[Call], Mapping[str, Any]], Iterator[tuple[int, Any]]]

_TOGETHER: dict[Callable[..., Any], Together] = {}


def together(one: Callable[..., Any], many: Together) -> None:
    """Say how many calls of a function are made at once.

    Args:
        one: the function; calls of it are partial objects.
        many: makes all of them: takes the calls and what is shared, and yields (index, result) as they finish, Failed
            in place of a result.
    """
    _TOGETHER[one] = many


@engine("batched")
class Batched(Engine):
    """Makes calls in this process, those of a function that can make many at once together, others one by one."""

    one_at_a_time = True

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Make the calls and yield (index, result) as they finish.

        Args:
            calls: each is called with what is shared.

        Raises:
            RunError: a call raised it.
        """
        alike: dict[Together, list[int]] = {}
        for index, call in enumerate(calls):
            many = _TOGETHER.get(getattr(call, "func", call))
            if many is None:
                yield index, outcome(call, self.shared)
            else:
                alike.setdefault(many, []).append(index)
        for many, indices in alike.items():
            for place, result in many([calls[index] for index in indices], self.shared):
                yield indices[place], result
