"""The verdict on a run by the rules that it says it is judged by, made once whoever asks."""

from __future__ import annotations

from collections.abc import Sequence

from initlab.judge.cache import kept
from initlab.judge.rules import Finding, evaluate
from initlab.judge.rules.fresh import before_training
from initlab.rundir import Run


def judged(run: Run) -> Sequence[Finding]:
    """Judge every recipe by the rules and limits in the run's manifest; of a confirmation, its inits alone.

    Args:
        run: tables and manifest; judged anew only where one of the two has changed.

    Returns:
        As `initlab.judge.rules.evaluate`; not to be changed.

    Raises:
        ConfigError: an unknown code, or a limit that is none.
    """
    return _judged(before_training(run))  # which a run and its part before training have in common


@kept
def _judged(run: Run) -> tuple[Finding, ...]:
    return tuple(evaluate(run, **run.manifest.get("judging", {})))
