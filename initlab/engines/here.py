"""Calls one after another in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from initlab.engines.base import Call, Engine, engine, outcome


@engine("here")
class Here(Engine):
    """Makes one call after another in this process: nothing is sent, so a call may be of any function."""

    one_at_a_time = True

    def run(self, calls: Sequence[Call]) -> Iterator[tuple[int, Any]]:
        """Make the calls in order and yield (index, result).

        Args:
            calls: each is called with what is shared.

        Raises:
            RunError: a call raised it.
        """
        for index, call in enumerate(calls):
            yield index, outcome(call, self.shared)
