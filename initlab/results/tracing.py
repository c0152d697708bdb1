"""What `trace_init` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from initlab.judge.rules import Finding, evaluate
from initlab.report.trace import trace_text
from initlab.rundir import Run
from initlab.schema import Tables

CODES = ("DRW",)  # rules that need nothing but the writes


@dataclass(frozen=True)
class InitTrace:
    """A model, and what its init code did.

    Attributes:
        model: as the function returned it.
        writes: a row for each write to each parameter and buffer; columns in `initlab.schema.WRITES`.
        notes: what couldn't be seen.
    """

    model: Any
    writes: pd.DataFrame
    notes: list[str]

    @cached_property
    def findings(self) -> list[Finding]:
        """Verdict of every rule about writes, failures first."""
        return evaluate(self._run, select=CODES)

    @property
    def _run(self) -> Run:
        return Run(Tables(writes=self.writes), {"kind": "trace"})

    def __repr__(self) -> str:
        return trace_text(type(self.model).__name__, self._run, self.findings, self.notes)
