"""A confirmation as terminal text."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from initlab.judge.rules.base import Finding
from initlab.report import console
from initlab.rundir import Run


def confirmation_text(
    run: Run,
    findings: Sequence[Finding],
    regrets: pd.DataFrame,
    effects: pd.DataFrame,
    outcomes: pd.DataFrame,
    *,
    width: int | None = None,
    color: bool = False,
) -> str:
    """What was probed."""
    return console.comparison_text(run, findings, width=width, color=color)
