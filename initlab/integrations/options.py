"""What callbacks hand on to `initlab.watch`."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature

from initlab.api.watch import watch
from initlab.errors import ConfigError

OF_TRAINER = ("start_step", "loss_scale")  # options that a trainer knows better


def refuse_others(given: Iterable[str]) -> None:
    """Refuse options that `watch` hasn't, or that the trainer says. Raises ConfigError.

    Args:
        given: names of them.
    """
    known = [p.name for p in signature(watch).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = [name for name in known if name not in OF_TRAINER]
    for name in given:
        if name not in known:
            why = "the trainer says that" if name in OF_TRAINER else "watch has no such option"
            raise ConfigError(f"WatchCallback: {name!r}: {why}; known: {', '.join(known)}")
